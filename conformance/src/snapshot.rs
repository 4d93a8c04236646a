//! Everything a plugin may have changed, as lines that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::pod::Pod;
use crate::sandbox::{SCRATCH, Sandbox};

/// Links, addresses, routes and rules of a host and some pods, and the files of the address store and below /run.
///
/// Left out is what may change without meaning anything: counters, indices, locks, empty directories, and the
/// position of host-local's round robin.
#[derive(Clone, Debug)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at everything now.
    pub fn take(host: &Sandbox, pods: &[&Pod]) -> Result<Self> {
        let mut lines = BTreeSet::new();
        network(host, "host", &mut lines)?;
        for pod in pods {
            network(pod, pod.netns(), &mut lines)?;
        }
        for program in [
            ["nft", "-s", "list", "ruleset"].as_slice(),
            &["iptables-legacy-save"],
            &["ip6tables-legacy-save"],
        ] {
            let Ok(finished) = host.try_run(program) else { continue };
            // Counted, since one line (a closing brace) may be there many times, and unnumbered, so that one rule
            // more does not make all that follow it different.
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for line in finished.stdout.lines().filter(|line| !line.starts_with('#')) {
                *counts.entry(line).or_default() += 1;
            }
            for (line, count) in counts {
                lines.insert(format!("{} {count} times: {line}", program[0]));
            }
        }
        for root in ["/var/lib/cni", "/run"] {
            files(Path::new(root), &mut lines)?;
        }
        Ok(Self(lines))
    }

    /// Nothing differs from `before`.
    pub fn unchanged_since(&self, before: &Self) -> Result<()> {
        let mut difference = String::new();
        for line in before.0.difference(&self.0) {
            difference.push_str(&format!("\n  - {line}"));
        }
        for line in self.0.difference(&before.0) {
            difference.push_str(&format!("\n  + {line}"));
        }
        if difference.is_empty() { Ok(()) } else { bail!("something was left or lost:{difference}") }
    }

    /// Everything is again as it was; waits up to two seconds, since the kernel removes links in its own time.
    pub fn restored(&self, host: &Sandbox, pods: &[&Pod]) -> Result<()> {
        crate::expect::soon(|| Self::take(host, pods)?.unchanged_since(self))
    }
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
            if route["table"] == "local" {
                continue;
            }
            if !text.contains("\"fe80:") && !text.contains("\"ff00::") && !text.contains("linkdown") {
                lines.insert(format!(
                    "{name}: route {} table {} dev {} via {}",
                    route["dst"], route["table"], route["dev"], route["gateway"]
                ));
            }
        }
    }
    Ok(())
}

fn files(directory: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ignored = path == Path::new(SCRATCH)
            || path == Path::new("/run/netns")
            || path == Path::new("/run/layers")
            || name.ends_with("lock")
            || name.starts_with("last_reserved_ip.");
        if ignored {
            continue;
        }
        if path.is_dir() {
            files(&path, lines)?;
        } else {
            let text = fs::read(&path).unwrap_or_default();
            lines.insert(format!("file {}: {:?}", path.display(), String::from_utf8_lossy(&text)));
        }
    }
    Ok(())
}
