//! What the kernel answers is read without trust: whatever the bytes, no parser panics or goes on for ever.
//!
//! The bytes are answers of a real kernel (`fuzz/corpus/netlink_replies`), altered in a few places.

use std::path::Path;

use nix::errno::Errno;
use proptest::prelude::*;

use super::netlink::{Header, messages, parse_error};
use super::nft::{ChainState, Rule, expr, set, userdata};
use super::rtnl::{Link, address, link, route, vlan};

/// Length of struct nfgenmsg.
const NFGENMSG: usize = 4;

/// Hands the messages of a datagram to every parser there is; gives how much they found.
fn read(datagram: &[u8]) -> usize {
    messages(datagram).map(|(header, body)| read_message(&header, body)).sum()
}

fn read_message(header: &Header, body: &[u8]) -> usize {
    let attributes = body.get(NFGENMSG..).unwrap_or_default();
    let found = Link::parse(body);
    let mut count = usize::from(!found.name.is_empty());
    count += usize::from(parse_error("read", header, body).is_some_and(|e| e.errno != Errno::EIO));
    count += usize::from(link::event(header.kind, body).is_some());
    count += usize::from(address::parse(body).is_some());
    count += route::parse(body).len() + vlan::parse(body).count();
    count += usize::from(ChainState::parse(attributes).is_some());
    count += usize::from(set::parse_name(attributes).is_some());
    count += set::parse_elements(attributes).len();
    count += usize::from(userdata::decode(body).is_some());
    if let Some(rule) = Rule::parse(attributes) {
        let expressions = [expr::masquerade(), expr::counter()];
        count += rule.expressions().count() + rule.verdicts().count();
        count += usize::from(rule.consists_of(&expressions) || rule.looks_up("m") || rule.leads_to("c"));
    }
    count
}

/// Answers of a real kernel, by the names of their files.
fn captured() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/netlink_replies");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(file).unwrap()))
        .collect()
}

#[test]
fn answers_of_a_real_kernel_are_understood() {
    let all = captured();
    assert!(all.len() > 20);
    for (name, bytes) in all {
        // An acknowledgement and the end of an empty list say nothing, and that is right.
        assert!(read(&bytes) > 0 || ["link-set-ack", "nft-sets-ip"].contains(&name.as_str()), "{name}");
    }
}

#[test]
fn no_error_number_is_too_large() {
    let header = Header { kind: 2, flags: 0, sequence: 1 };
    for code in [i32::MIN, i32::MAX, 1] {
        assert_eq!(parse_error("x", &header, &code.to_ne_bytes()).unwrap().errno, Errno::UnknownErrno);
    }
}

#[test]
fn answers_can_be_read_when_any_byte_is_another() {
    // The short ones, for the sake of time; between them they have every attribute that is looked at.
    for (_, bytes) in captured().into_iter().filter(|(_, bytes)| bytes.len() < 500) {
        for at in 0..bytes.len() {
            for byte in [0, 0xff, bytes[at] ^ 0x40, bytes[at].wrapping_add(4)] {
                let mut altered = bytes.clone();
                altered[at] = byte;
                read(&altered);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&bytes);
        let header = Header { kind: 2, flags: 0x200, sequence: 1 };
        read_message(&header, &bytes);
    }

    #[test]
    fn answers_can_be_read_when_some_bytes_are_others(
        seed in proptest::sample::select(captured()),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        end in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = seed.1;
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        read(&bytes);
    }
}
