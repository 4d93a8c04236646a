//! Everything a plugin may have changed, as lines that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::expect::soon;
use crate::pod::Pod;
use crate::sandbox::{SCRATCH, Sandbox};

/// Links, addresses, routes and rules of a host and some pods, the address store, and the files below /run that name
/// a container.
///
/// Left out is what may change without meaning anything: counters, indices, locks, empty directories, the position of
/// host-local's round robin, and what a plugin keeps below /run that is not about one container.
#[derive(Clone, Debug)]
pub struct Snapshot {
    lines: BTreeSet<String>,
    /// Containers that had been heard of.
    known: BTreeSet<String>,
    /// Files below /run, each with a container that it names.
    notes: BTreeSet<(String, PathBuf)>,
}

impl Snapshot {
    /// Looks at everything now.
    pub fn take(host: &Sandbox, pods: &[&Pod]) -> Result<Self> {
        let mut lines = BTreeSet::new();
        network(host, "host", &mut lines)?;
        for pod in pods {
            network(pod, pod.netns(), &mut lines)?;
        }
        rules(host, &mut lines);
        for path in files(Path::new("/var/lib/cni"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name != "lock" && !name.starts_with("last_reserved_ip.") {
                let text = fs::read(&path).unwrap_or_default();
                lines.insert(format!("file {}: {:?}", path.display(), String::from_utf8_lossy(&text)));
            }
        }
        let known = host.containers();
        let mut notes = BTreeSet::new();
        for path in files(Path::new("/run"))? {
            let mut text = path.to_string_lossy().into_owned();
            text.push(' ');
            text.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()));
            for word in text.split(|letter: char| !letter.is_alphanumeric()) {
                // Two hexadecimal digits are more likely part of a MAC address than a container.
                let digits = word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
                if known.contains(word) && !digits {
                    notes.insert((word.to_owned(), path.clone()));
                }
            }
        }
        Ok(Self { lines, known, notes })
    }

    /// Nothing differs from `before`, and of the containers that came since no note is left.
    pub fn unchanged_since(&self, before: &Self) -> Result<()> {
        let mut difference = String::new();
        for line in before.lines.difference(&self.lines) {
            difference.push_str(&format!("\n  - {line}"));
        }
        for line in self.lines.difference(&before.lines) {
            difference.push_str(&format!("\n  + {line}"));
        }
        for (id, path) in self.notes.iter().filter(|(id, _)| !before.known.contains(id)) {
            difference.push_str(&format!("\n  + file {} names container {id}", path.display()));
        }
        if difference.is_empty() { Ok(()) } else { bail!("something was left or lost:{difference}") }
    }

    /// Nothing of `before` is lost, and what came since is no more than `tolerated` has, such as a bridge that stays
    /// when the last pod goes, whatever state that is in. Of rules, so many of a kind as are there are tolerated.
    pub fn nothing_beyond(&self, before: &Self, tolerated: &Self) -> Result<()> {
        let mut difference = String::new();
        for line in before.lines.difference(&self.lines) {
            if !self.lines.iter().any(|have| is_no_less(have, line)) {
                difference.push_str(&format!("\n  - {line}"));
            }
        }
        for line in self.lines.difference(&before.lines) {
            if !tolerated.lines.iter().any(|have| is_no_less(have, line) || is_same_bridge(have, line)) {
                difference.push_str(&format!("\n  + {line}"));
            }
        }
        for (id, path) in self.notes.iter().filter(|(id, _)| !before.known.contains(id)) {
            difference.push_str(&format!("\n  + file {} names container {id}", path.display()));
        }
        if difference.is_empty() { Ok(()) } else { bail!("something was left or lost:{difference}") }
    }

    /// Its rules only.
    pub fn rules(&self) -> Self {
        let lines = self.lines.iter().filter(|line| line.contains(" times: ")).cloned().collect();
        Self { lines, known: self.known.clone(), notes: BTreeSet::new() }
    }

    /// Everything is again as it was; waits for it, since the kernel removes links in its own time.
    pub fn restored(&self, host: &Sandbox, pods: &[&Pod]) -> Result<()> {
        soon(|| Self::take(host, pods)?.unchanged_since(self))
    }
}

/// Whether two lines are the same but for a number of times, of which `have` has as many at least.
fn is_no_less(have: &str, line: &str) -> bool {
    let parts = |text: &str| -> Option<(String, usize, String)> {
        let (counted, what) = text.split_once(" times: ")?;
        let (program, count) = counted.rsplit_once(' ')?;
        Some((program.to_owned(), count.parse().ok()?, what.to_owned()))
    };
    match (parts(have), parts(line)) {
        (Some((program, count, what)), Some((other, least, same))) => {
            program == other && what == same && count >= least
        }
        _ => have == line,
    }
}

/// Whether two lines are about the same bridge.
fn is_same_bridge(one: &str, other: &str) -> bool {
    let name = |text: &str| -> Option<String> {
        text.split_once(" address ")
            .filter(|_| text.contains("kind \"bridge\""))
            .map(|(link, _)| link.to_owned())
    };
    name(one).is_some_and(|one| name(other) == Some(one))
}

fn network(pod: &Pod, name: &str, lines: &mut BTreeSet<String>) -> Result<()> {
    for link in pod.ip("addr show")? {
        let ifname = link["ifname"].as_str().unwrap_or_default().to_owned();
        for address in link["addr_info"].as_array().into_iter().flatten() {
            if address["scope"] != "link" {
                lines.insert(format!("{name}: {ifname} has {}/{}", address["local"], address["prefixlen"]));
            }
        }
        let mut line = format!("{name}: link {ifname}");
        // The rest are counters, timers and what follows from these.
        for part in ["address", "mtu", "master", "promiscuity", "ifalias", "txqlen"] {
            line.push_str(&format!(" {part} {}", link[part]));
        }
        let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
        let details = &link["linkinfo"];
        line.push_str(&format!(" up {up} kind {}", details["info_kind"]));
        for part in ["/info_data/vlan_filtering", "/info_slave_data/hairpin", "/info_slave_data/isolated"] {
            line.push_str(&format!(" {part} {}", details.pointer(part).unwrap_or(&serde_json::Value::Null)));
        }
        lines.insert(line);
    }
    for family in ["-4", "-6"] {
        for route in pod.routes(family, "all")? {
            let text = route.to_string();
            // Those of table `local` follow from the addresses, and, like the kernel's own for link-local and
            // multicast, come late.
            let kernels = text.contains("\"fe80:") || text.contains("\"ff00::");
            if route["table"] != "local" && !kernels {
                lines.insert(format!(
                    "{name}: route {} table {} dev {} via {}",
                    route["dst"], route["table"], route["dev"], route["gateway"]
                ));
            }
        }
    }
    Ok(())
}

/// The rules of nf_tables (those of iptables are among them, except where it is the old one, which is asked itself).
fn rules(host: &Sandbox, lines: &mut BTreeSet<String>) {
    let programs =
        [["nft", "-s", "list", "ruleset"].as_slice(), &["iptables-legacy-save"], &["ip6tables-legacy-save"]];
    for program in programs {
        let Ok(finished) = host.try_run(program) else { continue };
        // Counted, since one line (a closing brace) may be there many times, and unnumbered, so that one rule more
        // does not make all that follow it different.
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for line in finished.stdout.lines().filter(|line| !line.starts_with('#')) {
            *counts.entry(line).or_default() += 1;
        }
        for (line, count) in counts {
            lines.insert(format!("{} {count} times: {line}", program[0]));
        }
    }
}

/// All files below a directory but those of the case itself.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if [SCRATCH, "/run/netns", "/run/layers"].iter().any(|own| path == Path::new(own)) {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}
