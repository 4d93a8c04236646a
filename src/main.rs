//! One program of many names: the name it is called by says which plugin it is. `bridgehead` is the tool for people.

use std::path::Path;
use std::process::ExitCode;

use bridgehead::{dhcp, dispatch, logger, netavark, registry, tool};

// musl's allocator maps and unmaps memory for each larger block, which costs a netlink program a third of its time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    logger::start();
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // A plugin and the tool have one name; a runtime gives no arguments, and people no variable.
    let is_plugin =
        name != registry::TOOL || (arguments.len() == 0 && std::env::var_os("CNI_COMMAND").is_some());
    match registry::find(name).filter(|_| is_plugin) {
        Some(plugin)
            if plugin.name == dhcp::NAME && std::env::args_os().nth(1).is_some_and(|it| it == "daemon") =>
        {
            dhcp::daemon::run(arguments.skip(1), Path::new(dispatch::STATE))
        }
        Some(plugin) => dispatch::run(plugin),
        // podman knows it by any name that the file may have, and says what it wants in a word that the tool has not.
        None => match std::env::args_os().nth(1).and_then(|word| netavark::Verb::parse(word.to_str()?)) {
            Some(verb) => netavark::run(verb, arguments.skip(1)),
            None => tool::run(arguments),
        },
    }
}
