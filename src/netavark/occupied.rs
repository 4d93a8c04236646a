//! What others have on this host, so that a new network does not ask for the same.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::network::{self, Network};
use crate::net::{Link, Rtnl};
use crate::spec::{CniError, Code, Prefix};

/// Where podman keeps its networks, as root and if not told otherwise.
const NETWORKS: &str = "/etc/containers/networks";

/// Most bytes of a file that is read there. Real ones have less than one kilobyte.
const FILE_MAX: u64 = 1 << 16;

/// What others have.
#[derive(Clone, Debug, Default)]
pub(super) struct Occupied {
    /// The links of the host.
    pub(super) links: Vec<Link>,
    /// podman's other networks.
    pub(super) networks: Vec<Other>,
    /// Where the host's routes lead to, and by which link.
    pub(super) routes: Vec<(Prefix, String)>,
}

/// Another network.
#[derive(Clone, Debug, Default)]
pub(super) struct Other {
    /// Its name.
    pub(super) name: String,
    /// Its bridge, or what else its driver has there.
    pub(super) bridge: String,
    /// Its subnets.
    pub(super) subnets: Vec<Prefix>,
}

impl Occupied {
    /// Looks at the host. What is there for the network's own bridge is not another's.
    ///
    /// Errors: code 100 if the kernel does not tell.
    pub(super) fn look(own: &Network) -> Result<Self, CniError> {
        let failed = |e: crate::net::Error| CniError::new(Code::Kernel, e.to_string());
        let mut rtnl = Rtnl::open().map_err(failed)?;
        let links = rtnl.links().map_err(failed)?;
        let mut routes = Vec::new();
        for route in rtnl.raw_routes().map_err(failed)? {
            let Some(link) = links.iter().find(|link| route.is_by(link)) else { continue };
            let is_own = !own.network_interface.is_empty() && link.name == own.network_interface;
            if let Some(prefix) = Prefix::new(route.dst(), route.dst_len())
                && !is_own
                && !prefix.is_default()
                && !route.is_local_to_link()
            {
                routes.push((prefix, link.name.clone()));
            }
        }
        Ok(Self { links, networks: networks(Path::new(NETWORKS), &own.name), routes })
    }

    /// Who has addresses of a subnet, in words.
    pub(super) fn holder(&self, prefix: Prefix) -> Option<String> {
        let of_networks = self.networks.iter().find_map(|other| {
            let theirs = other.subnets.iter().find(|it| it.overlaps(prefix))?;
            Some(format!("{theirs} of network {:?}", other.name))
        });
        of_networks.or_else(|| {
            let (theirs, link) = self.routes.iter().find(|(it, _)| it.overlaps(prefix))?;
            Some(format!("{theirs}, which this host reaches by link {link}"))
        })
    }
}

/// The networks in a directory. What cannot be read says nothing.
fn networks(directory: &Path, own: &str) -> Vec<Other> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
    let mut found: Vec<Other> =
        files.filter_map(|path| read(&path)).filter(|other| other.name != own).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn read(path: &Path) -> Option<Other> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    let network: Network = network::decode(&network::object(&bytes).ok()?).ok()?;
    let subnets = network.prefixes();
    Some(Other { name: network.name, bridge: network.network_interface, subnets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_garbage_is_passed_over() {
        let directory = std::env::temp_dir().join(format!("bridgehead-networks-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let text = r#"{"name":"a","network_interface":"podman1","subnets":[{"subnet":"10.89.0.0/24"}]}"#;
        for (name, text) in [("a.json", text), ("b.json", "{"), ("c.txt", text)] {
            fs::write(directory.join(name), text).unwrap();
        }
        let found = networks(&directory, "own");
        let own = networks(&directory, "a");
        fs::remove_dir_all(&directory).unwrap();
        assert!(own.is_empty());
        let occupied = Occupied { networks: found, ..Occupied::default() };
        let holder = |text: &str| occupied.holder(text.parse().unwrap());
        assert_eq!(holder("10.88.0.0/15").unwrap(), "10.89.0.0/24 of network \"a\"");
        assert_eq!(holder("10.90.0.0/24"), None);
    }
}
