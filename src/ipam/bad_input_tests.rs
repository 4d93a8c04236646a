//! Whatever the files of the store hold: no call panics, no address is given twice, and what is nobody's can be had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::range::{RangeConf, RangeSet};
use super::{Owner, Store};
use crate::spec::config::ValidAttachments;

const PATIENCE: Duration = Duration::from_secs(10);

/// Directories on a tmpfs for one run, removed at its end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/dev/shm/bridgehead-bad-input-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("data/net")).unwrap();
        Self(root)
    }

    fn store(&self) -> Store {
        Store::new(&self.0.join("data"), "net", &self.0.join("run"))
    }

    fn reservation(&self, name: &str) -> PathBuf {
        self.0.join("data/net").join(name)
    }

    /// The files of the index, of which there is at most one here.
    fn index_file(&self, name: &str) -> Option<PathBuf> {
        let directory = fs::read_dir(self.0.join("run/ipam")).ok()?.next()?.ok()?.path();
        Some(directory.join(name)).filter(|file| file.parent().is_some_and(|parent| parent.is_dir()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn owner(container_id: &str) -> Owner {
    Owner { container_id: container_id.into(), ifname: "eth0".into() }
}

/// 14 addresses, one of them the gateway's.
fn sets() -> [RangeSet; 1] {
    let subnet = Some("10.0.0.0/28".parse().unwrap());
    [RangeSet::single(&RangeConf { subnet, ..RangeConf::default() }, "ipam").unwrap()]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(vec![0; 12]),
        Just(b" \r\n".to_vec()),
        "[abc]{0,2}\r?\n?(eth[01])?\n?".prop_map(String::into_bytes),
        "10\\.0\\.0\\.[0-9]{1,2}\n?".prop_map(String::into_bytes),
    ]
}

fn file() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        "10\\.0\\.0\\.[0-9]{1,2}",
        Just("last_reserved_ip.0".to_owned()),
        Just("lock".to_owned()),
        Just(".bridgehead-draft".to_owned()),
        "[a-z0-9:.]{1,8}",
    ];
    (name.prop_filter("a file's name", |name| name != "." && name != ".."), content())
}

fn index_file() -> impl Strategy<Value = (String, Vec<u8>)> {
    let names = ["owners/a:eth0", "owners/b:eth0", "taken/4-a00", "taken/4-xyz", "taken/6-0", "stamp"];
    (proptest::sample::select(names.to_vec()).prop_map(str::to_owned), content())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_files_are_a_store(
        files in proptest::collection::vec(file(), 0..8).prop_map(BTreeMap::from_iter),
        index in proptest::collection::vec(index_file(), 0..4),
    ) {
        let place = Place::new();
        for (name, content) in &files {
            fs::write(place.reservation(name), content).unwrap();
        }
        // Read once, so that there is an index, which then is altered without a change of its stamp.
        drop(place.store().lock(PATIENCE).unwrap());
        for (name, content) in &index {
            if let Some(file) = place.index_file(name) {
                fs::write(file, content).unwrap();
            }
        }
        let names = |place: &Place| -> BTreeSet<String> {
            let entries = fs::read_dir(place.0.join("data/net")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let before = names(&place);
        let mut locked = place.store().lock(PATIENCE).unwrap().unwrap();
        let mut given: BTreeSet<IpAddr> = BTreeSet::new();
        for container in ["x", "y", "z"] {
            if let Ok(ips) = locked.allocate(&sets(), &[], &owner(container)) {
                for ip in ips {
                    let address = ip.address.address();
                    prop_assert!(!before.contains(&address.to_string()), "{address} was taken");
                    prop_assert!(given.insert(address), "{address} was given twice");
                }
            }
        }
        let _ = place.store().usage(&sets(), |_| false);
        let _ = locked.observe(&owner("a"), &["10.0.0.2".parse().unwrap()]);
        for container in ["a", "b", "x", "y", "z"] {
            let _ = locked.release(&owner(container));
        }
        for address in &given {
            prop_assert!(!place.reservation(&address.to_string()).exists(), "{address} is still reserved");
        }
        let _ = locked.collect(&ValidAttachments::Only(Vec::new()), &[]);
        drop(locked);
        // What is readable and no reservation was somebody's intention.
        let after = names(&place);
        for (name, content) in &files {
            let text = std::str::from_utf8(content).map_or("", str::trim);
            let is_owned = text.starts_with(|letter: char| letter.is_ascii_alphanumeric());
            let is_torn = text.is_empty() || text.chars().any(|c| c.is_control() && !c.is_whitespace());
            let is_ours = name.starts_with(['.', 'l']) || is_owned || is_torn;
            prop_assert!(is_ours || after.contains(name), "{name} with {content:?} is gone");
        }
    }
}
