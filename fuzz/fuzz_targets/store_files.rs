//! The files of host-local's store, of its index and of the attachments' records, as sections: a line `== NAME`, and
//! the content of the file. Names are those of `file`.
//!
//! Whatever they hold, no call panics, no address is given twice, none that is taken is given, and what was given can
//! be released.

#![no_main]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use bridgehead::ipam::range::{RangeConf, RangeSet};
use bridgehead::ipam::{LockedStore, Owner, Store};
use bridgehead::plan::Records;
use bridgehead::spec::Attachment;
use bridgehead::spec::config::ValidAttachments;
use libfuzzer_sys::fuzz_target;

/// A directory of this process.
static ROOT: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("store-{}", std::process::id())));

const PATIENCE: Duration = Duration::from_secs(10);

fuzz_target!(|data: &[u8]| {
    let _ = fs::remove_dir_all(&*ROOT);
    for directory in ["data/net", "run/attachments/bridge/net"] {
        fs::create_dir_all(ROOT.join(directory)).expect("a directory");
    }
    let (indices, others): (Vec<_>, Vec<_>) =
        sections(data).partition(|(name, _)| name.starts_with("index/"));
    for (name, content) in others {
        write(&ROOT, &name, content);
    }
    let store = Store::new(&ROOT.join("data"), "net", &ROOT.join("run"));
    // Read once, so that there is an index, which is then altered without a change of its stamp.
    drop(lock(&store));
    if let Some(Ok(index)) = fs::read_dir(ROOT.join("run/ipam")).expect("the indices").next() {
        for (name, content) in indices {
            write(&index.path(), &name["index/".len()..], content);
        }
    }
    use_store(&store);
    read_records();
});

/// The files with names that mean something; others could be anywhere.
fn sections(data: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let starts: Vec<usize> = (0..data.len())
        .filter(|&at| data[at..].starts_with(b"== ") && (at == 0 || data[at - 1] == b'\n'))
        .collect();
    let mut ends: Vec<usize> = starts.iter().skip(1).copied().collect();
    ends.push(data.len());
    let sections: Vec<_> = starts
        .into_iter()
        .zip(ends)
        .filter_map(|(start, end)| {
            let section = &data[start + 3..end];
            let line = section.iter().position(|byte| *byte == b'\n')?;
            Some((file(section[..line].to_vec())?, &section[line + 1..]))
        })
        .collect();
    sections.into_iter()
}

/// `data/net/..`, `record/..` or `index/..`, with one plain name behind.
fn file(name: Vec<u8>) -> Option<String> {
    let name = String::from_utf8(name).ok()?;
    let (directory, plain) = name.rsplit_once('/')?;
    let known = ["data/net", "record", "index", "index/owners", "index/taken"].contains(&directory);
    let is_plain =
        !plain.is_empty() && plain.len() < 200 && !plain.contains('\0') && plain != "." && plain != "..";
    (known && is_plain).then(|| name.replacen("record/", "run/attachments/bridge/net/", 1))
}

fn write(root: &Path, name: &str, content: &[u8]) {
    // A name that is there as something else is as good as none.
    let _ = fs::write(root.join(name), content);
}

fn lock(store: &Store) -> LockedStore {
    store.lock(PATIENCE).expect("no lock is held").expect("the directory is there")
}

fn owner(container_id: &str) -> Owner {
    Owner { container_id: container_id.into(), ifname: "eth0".into() }
}

fn use_store(store: &Store) {
    let subnet = Some("10.0.0.0/28".parse().expect("a network"));
    let sets = [RangeSet::single(&RangeConf { subnet, ..RangeConf::default() }, "ipam").expect("a set")];
    let is_there = |address: &IpAddr| ROOT.join("data/net").join(address.to_string()).exists();
    let all: Vec<IpAddr> = (0..16_u8).map(|last| IpAddr::from([10, 0, 0, last])).collect();
    let mut locked = lock(store);
    let mut given = BTreeSet::new();
    for container in ["x", "y", "z"] {
        let taken: Vec<IpAddr> = all.iter().copied().filter(is_there).collect();
        let Ok(ips) = locked.allocate(&sets, &[], &owner(container)) else { continue };
        let own = locked.owned(&owner(container)).expect("what was given");
        for address in ips.iter().map(|ip| ip.address.address()) {
            assert!(own.contains(&address), "{address} is not on record");
            // A file may have named the container as its owner before.
            assert!(given.insert(address), "{address} was given twice");
            let content =
                fs::read_to_string(ROOT.join("data/net").join(address.to_string())).expect("a reservation");
            assert!(
                content.trim_start().starts_with(container) || !taken.contains(&address),
                "{address} was taken"
            );
        }
    }
    let _ = store.usage(&sets, |_| false);
    let _ = locked.observe(&owner("a"), &all[2..4]);
    for container in ["a", "x", "y", "z"] {
        let _ = locked.release(&owner(container));
    }
    assert!(given.iter().all(|address| !is_there(address)));
    let _ = locked.collect(&ValidAttachments::Only(Vec::new()), &[]);
    drop(locked);
    drop(lock(store));
}

fn read_records() {
    let records = Records::new(&ROOT.join("run"), "bridge");
    let attachment = Attachment { network: "net".into(), container_id: "c".into(), ifname: "eth0".into() };
    let _ = records.attachments("net");
    let Ok(mut claim) = records.claim(&attachment) else { return };
    if let Ok(Some(record)) = records.read(&attachment) {
        records.write(&record, &mut claim).expect("a record");
        assert_eq!(records.read(&attachment).expect("the record"), Some(record));
    }
    claim.delete().expect("the record can go");
    assert_eq!(records.read(&attachment).expect("no record"), None);
}
