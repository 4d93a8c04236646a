//! Connection tracking: what the kernel remembers of the flows of an address.

use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::netlink::Message;
use super::nft::{Family, Nft};
use super::{Result, sysctl};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h).
const SUBSYSTEM: u8 = 1;
const DELETE: u8 = 2;

/// Attributes (linux/netfilter/nfnetlink_conntrack.h).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
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

/// Has the kernel forget the flows that addresses began, and those whose answers come from them, translated or not:
/// `conntrack -D -s <address>` and `conntrack -D -r <address>`. The kernel goes through its whole table for each.
///
/// Kernels before 5.8 know no such filter; there, everything stays.
pub fn forget(nft: &mut Nft, addresses: &[IpAddr]) -> Result<()> {
    let directions = [(CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS), (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS)];
    let requests = addresses.iter().flat_map(|address| {
        directions.map(|(tuple, flags)| {
            let (family, kind, bytes) = match address {
                IpAddr::V4(a) => (NetfilterProtoFamily::IPv4, CTA_IP_V4_SRC, a.octets().to_vec()),
                IpAddr::V6(a) => (NetfilterProtoFamily::IPv6, CTA_IP_V6_SRC, a.octets().to_vec()),
            };
            // A kernel that does not know the filter takes the tuple for one that lacks its protocol, and refuses it
            // (EINVAL). So it never takes the request for one to forget everything.
            let attributes = vec![
                nested(tuple, &nested_bytes(CTA_TUPLE_IP, &plain(kind, &bytes))),
                nested(CTA_FILTER, &plain(flags, &SOURCE.to_ne_bytes())),
            ];
            let subsys = NetfilterSubsystem::Other(SUBSYSTEM);
            let inner = NetfilterMessageInner::Other { subsys, message_type: DELETE, attributes };
            let payload = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
            Message::new(format!("forget connections of {address}"), 0, payload)
        })
    });
    send(nft, requests.collect())
}

/// Has the kernel forget the flows of a transport protocol that began towards some ports, at whatever address:
/// `conntrack -D -p <protocol> --orig-port-dst <port>`. The kernel goes through its whole table for each.
///
/// Kernels before 5.8 know no such filter; there, everything stays.
pub fn forget_ports(nft: &mut Nft, protocol: u8, ports: &[(Family, u16)]) -> Result<()> {
    let requests = ports.iter().map(|(family, port)| {
        let number = padded(CTA_PROTO_NUM, &[protocol]);
        let tuple = [number, padded(CTA_PROTO_DST_PORT, &port.to_be_bytes())].concat();
        let attributes = vec![
            nested(CTA_TUPLE_ORIG, &nested_bytes(CTA_TUPLE_PROTO, &tuple)),
            nested(CTA_FILTER, &plain(CTA_FILTER_ORIG_FLAGS, &PROTOCOL_AND_PORT.to_ne_bytes())),
        ];
        let subsys = NetfilterSubsystem::Other(SUBSYSTEM);
        let inner = NetfilterMessageInner::Other { subsys, message_type: DELETE, attributes };
        let payload = NetfilterMessage::new(NetfilterHeader::new(family.number(), 0, 0), inner);
        Message::new(format!("forget connections to port {port}"), 0, payload)
    });
    send(nft, requests.collect())
}

fn send(nft: &mut Nft, requests: Vec<Message>) -> Result<()> {
    for answer in nft.execute(requests)? {
        match answer {
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            answer => answer?,
        }
    }
    Ok(())
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
