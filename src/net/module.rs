//! Modules of the kernel: whether a part of it is there, without having it loaded.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Whether a part of the kernel can be used, as far as files tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is at work.
    Loaded,
    /// The kernel would load it on demand, or has it built in.
    Available,
    /// No file speaks of it. It may be built in all the same: then ask the kernel, which has nothing to load.
    Unknown,
}

/// Where the kernel lists the modules that are loaded, and those built in that have parameters (sysfs-module).
const LOADED: &str = "/sys/module";

/// Where modules are (depmod(8)), each release of the kernel in a directory of its own.
const MODULES: [&str; 2] = ["/lib/modules", "/usr/lib/modules"];

/// The lists in such a directory: of files that can be loaded, and of those whose code is built in.
const LISTS: [&str; 2] = ["modules.dep", "modules.builtin"];

/// The release of the kernel, as the names of its directories have it.
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The first two numbers of the kernel's release; zeros if it cannot be told.
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string(RELEASE).unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What files tell of a module. `name` is as in /sys/module, with underscores.
pub fn presence(name: &str) -> Presence {
    if Path::new(LOADED).join(name).exists() {
        return Presence::Loaded;
    }
    let Ok(release) = fs::read_to_string(RELEASE) else { return Presence::Unknown };
    let is_listed = MODULES
        .iter()
        .flat_map(|directory| LISTS.map(|list| (directory, list)))
        .any(|(directory, list)| lists(&Path::new(directory).join(release.trim()).join(list), name));
    if is_listed { Presence::Available } else { Presence::Unknown }
}

/// Whether a list has a module. Each line begins with its file, compressed or not: `kernel/drivers/net/veth.ko.xz:`.
fn lists(path: &Path, name: &str) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    BufReader::new(file).split(b'\n').map_while(Result::ok).any(|line| names(&line, name))
}

fn names(line: &[u8], name: &str) -> bool {
    let file = line.split(|byte| *byte == b':').next().unwrap_or_default();
    let file = file.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let stem = file.split(|byte| *byte == b'.').next().unwrap_or_default();
    // Files may have a dash where the module has an underscore.
    stem.len() == name.len()
        && stem.iter().zip(name.bytes()).all(|(a, b)| *a == b || (*a == b'-' && b == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_whole_name() {
        for line in ["kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko", "kernel/net/bridge/bridge.ko"] {
            assert!(names(line.as_bytes(), "bridge"), "{line}");
        }
        assert!(names(b"kernel/drivers/x/nf-tables.ko:", "nf_tables"));
        for line in ["kernel/net/x/br_bridge.ko:", "kernel/a.ko: kernel/net/bridge/bridge.ko", "", ":"] {
            assert!(!names(line.as_bytes(), "bridge"), "{line}");
        }
    }
}
