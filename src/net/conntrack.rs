//! Connection tracking: what the kernel remembers of the flows of an address.

use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::netlink::{Answer, Message};
use super::nft::{Family, Nft};
use super::{Result, sysctl};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink.h,
/// nfnetlink_conntrack.h).
const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;

/// Attributes (linux/netfilter/nfnetlink_conntrack.h).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// What of an attribute's type is its kind (`NLA_TYPE_MASK`, linux/netlink.h), and how long what stands before the
/// attributes of a message of netfilter is.
const KIND: u16 = 0x3fff;
const NFGENMSG: usize = 4;
/// Only the source of the tuple counts (`CTA_FILTER_F_CTA_IP_SRC`, net/netfilter/nf_internals.h).
const SOURCE: u32 = 1;
/// Protocol and destination port count (`CTA_FILTER_F_CTA_PROTO_NUM`, `CTA_FILTER_F_CTA_PROTO_DST_PORT`).
const PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Whether the kernel may know of connections of this namespace.
pub fn is_in_use() -> bool {
    match sysctl::read("netfilter/nf_conntrack_count") {
        Ok(count) => count != "0",
        Err(e) => e.errno != Errno::ENOENT,
    }
}

/// Whether the kernel can be told by netlink to forget some without loading a module for it.
pub fn is_at_hand() -> bool {
    !would_load_a_module()
}

fn would_load_a_module() -> bool {
    if Path::new("/sys/module/nf_conntrack_netlink").exists() {
        return false;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let module = format!("/lib/modules/{}/kernel/net/netfilter/nf_conntrack_netlink.ko", release.trim());
    // Where there is no such file, it is built in, or the request fails.
    ["", ".xz", ".zst", ".gz"].iter().any(|end| Path::new(&format!("{module}{end}")).exists())
}

/// Flows that are alike in one of their directions.
struct Pattern {
    deed: String,
    family: NetfilterProtoFamily,
    /// The direction, the part of its tuple that counts, and the attributes in that part.
    tuple: u16,
    part: u16,
    alike: Vec<Vec<u8>>,
    /// Where the filter of that direction is, and which attributes it says count.
    filter: u16,
    counts: u32,
}

impl Pattern {
    fn message(&self, message_type: u8) -> NetfilterMessage {
        let attributes = vec![
            nested(self.tuple, &nested_bytes(self.part, &self.alike.concat())),
            nested(CTA_FILTER, &plain(self.filter, &self.counts.to_ne_bytes())),
        ];
        message(self.family, message_type, attributes)
    }

    /// The message by which the kernel forgets one of the flows that it lists, if it is alike: a kernel before 5.8 does
    /// not know the filter, and lists all.
    fn deletion_of(&self, listed: &[u8]) -> Option<Message> {
        let all: Vec<(u16, &[u8])> = attributes(listed.get(NFGENMSG..)?).collect();
        let of = |wanted: u16| all.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
        let tuple = of(self.tuple)?;
        // Attributes begin at whole words.
        let has = |alike: &Vec<u8>| tuple.windows(alike.len()).step_by(4).any(|it| it == alike.as_slice());
        if !self.alike.iter().all(has) {
            return None;
        }
        // By its number, too, so that a flow that has come to be meanwhile stays.
        let mut wanted = vec![nested(CTA_TUPLE_ORIG, of(CTA_TUPLE_ORIG)?)];
        wanted.extend(
            [CTA_ID, CTA_ZONE].iter().filter_map(|it| of(*it).map(|of| DefaultNla::new(*it, of.to_vec()))),
        );
        Some(Message::new(self.deed.clone(), 0, message(self.family, DELETE, wanted)))
    }
}

/// Has the kernel forget the flows that addresses began, and those whose answers come from them, translated or not:
/// `conntrack -D -s <address>` and `conntrack -D -r <address>`. The kernel goes through its whole table for each.
pub fn forget(nft: &mut Nft, addresses: &[IpAddr]) -> Result<()> {
    let directions = [(CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)];
    let patterns = addresses.iter().flat_map(|address| {
        directions.map(|(tuple, filter)| {
            let (family, kind, bytes) = match address {
                IpAddr::V4(a) => (NetfilterProtoFamily::IPv4, CTA_IP_V4_SRC, a.octets().to_vec()),
                IpAddr::V6(a) => (NetfilterProtoFamily::IPv6, CTA_IP_V6_SRC, a.octets().to_vec()),
            };
            let deed = format!("forget connections of {address}");
            let alike = vec![plain(kind, &bytes)];
            Pattern { deed, family, tuple, part: CTA_TUPLE_IP, alike, filter, counts: SOURCE }
        })
    });
    forget_alike(nft, &patterns.collect::<Vec<_>>())
}

/// Has the kernel forget the flows of a transport protocol that began towards some ports, at whatever address:
/// `conntrack -D -p <protocol> --orig-port-dst <port>`. The kernel goes through its whole table for each.
pub fn forget_ports(nft: &mut Nft, protocol: u8, ports: &[(Family, u16)]) -> Result<()> {
    let patterns = ports.iter().map(|(family, port)| Pattern {
        deed: format!("forget connections to port {port}"),
        family: family.number(),
        tuple: CTA_TUPLE_ORIG,
        part: CTA_TUPLE_PROTO,
        alike: vec![padded(CTA_PROTO_NUM, &[protocol]), padded(CTA_PROTO_DST_PORT, &port.to_be_bytes())],
        filter: CTA_FILTER_ORIG_FLAGS,
        counts: PROTOCOL_AND_PORT,
    });
    forget_alike(nft, &patterns.collect::<Vec<_>>())
}

/// A kernel before 6.11 filters what it lists, and not what it deletes. It takes the tuple for one that lacks the rest,
/// and refuses it (EINVAL), so it never takes the request for one to forget everything; there, each flow is deleted.
fn forget_alike(nft: &mut Nft, patterns: &[Pattern]) -> Result<()> {
    let requests = patterns.iter().map(|it| Message::new(it.deed.clone(), 0, it.message(DELETE)));
    let answers = nft.execute(requests.collect())?;
    for (pattern, answer) in patterns.iter().zip(answers) {
        match answer {
            Err(e) if e.errno == Errno::EINVAL => {
                let listed = nft.dump(&pattern.deed, pattern.message(GET))?;
                let deletions: Vec<Message> =
                    listed.iter().filter_map(|it| pattern.deletion_of(it)).collect();
                for answer in nft.execute(deletions)? {
                    tolerate(answer)?;
                }
            }
            answer => tolerate(answer)?,
        }
    }
    Ok(())
}

/// What is gone by itself is no error, nor what the kernel cannot do.
fn tolerate(answer: Answer) -> Result<()> {
    match answer {
        Err(e) if matches!(e.errno, Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(()),
        answer => answer.map(drop),
    }
}

fn message(family: NetfilterProtoFamily, message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let subsys = NetfilterSubsystem::Other(SUBSYSTEM);
    let inner = NetfilterMessageInner::Other { subsys, message_type, attributes };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// The attributes that stand one after the other, with their kinds.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn nested(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, value.to_vec())
}

fn nested_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    plain(kind | NLA_F_NESTED, value)
}

/// An attribute as bytes, with zeros behind it up to a whole word.
fn padded(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = plain(kind, value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute as bytes; the values here are whole words.
fn plain(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    [&len.to_ne_bytes()[..], &kind.to_ne_bytes()[..], value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;

    fn to_port(port: u16) -> Pattern {
        Pattern {
            deed: String::new(),
            family: NetfilterProtoFamily::IPv4,
            tuple: CTA_TUPLE_ORIG,
            part: CTA_TUPLE_PROTO,
            alike: vec![padded(CTA_PROTO_NUM, &[UDP]), padded(CTA_PROTO_DST_PORT, &port.to_be_bytes())],
            filter: CTA_FILTER_ORIG_FLAGS,
            counts: PROTOCOL_AND_PORT,
        }
    }

    /// A flow of UDP to port 8080, as the kernel lists it.
    fn listed() -> Vec<u8> {
        let ip = [plain(CTA_IP_V4_SRC, &[192, 0, 2, 2]), plain(2, &[192, 0, 2, 1])].concat();
        let ports = [padded(2, &[0x1f, 0x91]), padded(CTA_PROTO_DST_PORT, &[0x1f, 0x90])].concat();
        let proto = [padded(CTA_PROTO_NUM, &[UDP]), ports].concat();
        let tuple = [nested_bytes(CTA_TUPLE_IP, &ip), nested_bytes(CTA_TUPLE_PROTO, &proto)].concat();
        [vec![2, 0, 0, 0], nested_bytes(CTA_TUPLE_ORIG, &tuple), plain(CTA_ID, &[1, 2, 3, 4])].concat()
    }

    #[test]
    fn of_what_is_listed_only_what_is_alike_is_deleted() {
        assert!(to_port(8080).deletion_of(&listed()).is_some());
        // Its source port is no destination.
        assert!(to_port(8081).deletion_of(&listed()).is_none());
        let from = |address: [u8; 4]| Pattern { alike: vec![plain(CTA_IP_V4_SRC, &address)], ..to_port(0) };
        assert!(from([192, 0, 2, 2]).deletion_of(&listed()).is_some());
        assert!(from([192, 0, 2, 1]).deletion_of(&listed()).is_none());
    }

    #[test]
    fn what_is_cut_off_is_passed_over() {
        let listed = listed();
        for len in 0..listed.len() {
            let _ = to_port(8080).deletion_of(&listed[..len]);
        }
        assert!(to_port(8080).deletion_of(&[2, 0, 0, 0, 3, 0, 1, 0]).is_none());
    }
}
