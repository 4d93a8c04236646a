//! What a runtime hands a plugin: variables, one `CNI_..=..` a line, then an empty line and the configuration.
//!
//! Whatever they are, each plugin finds them right or says with a code of the specification what is wrong.

#![no_main]

use bridgehead::ipam::range::RangeSet;
use bridgehead::ipam::{HostLocal, Static};
use bridgehead::registry;
use bridgehead::spec::request::Environment;
use bridgehead::spec::{Command, Request};
use libfuzzer_sys::fuzz_target;

const COMMANDS: [Command; 5] = [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status];

fuzz_target!(|data: &[u8]| {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let (variables, stdin) = (&data[..end], data.get(end + 2..).unwrap_or_default());
    let variables = String::from_utf8_lossy(variables);
    let environment = Environment::read(|name| {
        variables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    });
    let checked = environment.check();
    assert!(checked.is_ok() || checked.is_err_and(|error| error.code == 4 && !error.msg.is_empty()));
    for command in COMMANDS {
        match Request::parse(command, &environment, stdin.to_vec()) {
            Ok(request) => read(&request),
            Err(error) => assert!([1, 4, 6, 7].contains(&error.code) && !error.msg.is_empty(), "{error}"),
        }
    }
});

fn read(request: &Request) {
    let _ = request.config.valid_attachments();
    let _ = request.config.ipam_lock_timeout();
    for plugin in registry::PLUGINS {
        let _ = request.config.check_version(plugin.versions);
        if let Err(error) = (plugin.parse)(request) {
            assert!([2, 4, 6, 7].contains(&error.code) && !error.msg.is_empty(), "{}: {error}", plugin.name);
        }
        (plugin.leftovers)(request);
        (plugin.lease)(request);
    }
    let Ok(args) = request.args() else { return };
    if let Ok(pool) = HostLocal::parse(&request.config, &args) {
        pool.sets().iter().for_each(walk);
    }
    if let Ok(fixed) = Static::parse(&request.config, &args) {
        let result = fixed.result();
        assert_eq!(fixed.observe(&result), Vec::<String>::new());
        let _ = result.to_value(request.config.version);
    }
}

/// The stretches of a set have all its addresses, each once, whichever was handed out last.
fn walk(set: &RangeSet) {
    let last = set.ranges().first().map(|range| range.gateway());
    for last in [None, last] {
        let all: u128 = set
            .stretches_after(last)
            .iter()
            .map(|stretch| (stretch.last - stretch.first).saturating_add(1))
            .fold(0, u128::saturating_add);
        assert!(all >= set.size());
    }
}
