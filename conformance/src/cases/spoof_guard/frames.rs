//! Frames byte by byte, right or wrong: what goes over the wire, not what a system would send.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(in crate::cases) type Mac = [u8; 6];

/// A whole frame, from its destination on.
pub(in crate::cases) type Frame = Vec<u8>;

/// Protocols of IP (linux/in.h, linux/ipv6.h).
pub(in crate::cases) const ICMP: u8 = 1;
pub(in crate::cases) const IGMP: u8 = 2;
pub(in crate::cases) const TCP: u8 = 6;
pub(in crate::cases) const UDP: u8 = 17;
pub(in crate::cases) const FRAGMENT: u8 = 44;
pub(in crate::cases) const ICMPV6: u8 = 58;
pub(in crate::cases) const DESTINATION_OPTIONS: u8 = 60;

/// Protocols of Ethernet (linux/if_ether.h).
pub(in crate::cases) const ETHER_IPV4: u16 = 0x0800;
pub(in crate::cases) const ETHER_ARP: u16 = 0x0806;
pub(in crate::cases) const ETHER_RARP: u16 = 0x8035;
pub(in crate::cases) const ETHER_IPV6: u16 = 0x86dd;
pub(in crate::cases) const ETHER_LLDP: u16 = 0x88cc;

/// Everybody.
pub(in crate::cases) const BROADCAST: Mac = [0xff; 6];

/// Bytes one after the other.
pub(in crate::cases) fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// An Ethernet frame.
pub(in crate::cases) fn ethernet(to: Mac, from: Mac, protocol: u16, payload: &[u8]) -> Frame {
    bytes(&[&to, &from, &protocol.to_be_bytes(), payload])
}

/// The frame with a VLAN tag (IEEE 802.1Q).
pub(in crate::cases) fn tagged(vlan: u16, frame: &[u8]) -> Frame {
    bytes(&[&frame[..12], &[0x81, 0x00], &vlan.to_be_bytes(), &frame[12..]])
}

/// An ARP packet: 1 asks, 2 answers (RFC 826).
pub(in crate::cases) fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    bytes(&[
        &[0, 1, 8, 0, 6, 4],
        &operation.to_be_bytes(),
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    ])
}

/// An IPv4 packet. `fragment` has the flags and the offset: 0x2000 says that more follow.
pub(in crate::cases) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = bytes(&[
        &[0x45, 0],
        &len.to_be_bytes(),
        &[0x77, 0x77],
        &fragment.to_be_bytes(),
        &[64, protocol, 0, 0],
        &from.octets(),
        &to.octets(),
    ]);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    bytes(&[&header, payload])
}

/// An IPv6 packet.
pub(in crate::cases) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    bytes(&[&[0x60, 0, 0, 0], &len.to_be_bytes(), &[protocol, 255], &from.octets(), &to.octets(), payload])
}

/// A fragment header of IPv6, in front of a part of a packet. `offset` has the offset in its upper 13 bits, and 1 in
/// the lowest says that more follow.
pub(in crate::cases) fn fragment(protocol: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    bytes(&[&[protocol, 0], &offset.to_be_bytes(), &[0, 0, 0x77, 0x77], payload])
}

/// A header of options of IPv6 with nothing but padding (eight bytes), in front of a packet.
pub(in crate::cases) fn padding(protocol: u8, payload: &[u8]) -> Vec<u8> {
    bytes(&[&[protocol, 0, 1, 4, 0, 0, 0, 0], payload])
}

/// The hop-by-hop options of a report of MLD (RFC 2710): a router should look at it.
pub(in crate::cases) fn router_alert(payload: &[u8]) -> Vec<u8> {
    bytes(&[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0], payload])
}

/// A UDP packet without checksum.
pub(in crate::cases) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    bytes(&[&from.to_be_bytes(), &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload])
}

/// A message of ICMP or IGMP.
pub(in crate::cases) fn icmp(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = bytes(&[&[kind, 0, 0, 0], body]);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// A message of ICMPv6, whose checksum is also about the addresses.
pub(in crate::cases) fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = bytes(&[&[kind, 0, 0, 0], body]);
    let len = message.len() as u32;
    let about = bytes(&[&from.octets(), &to.octets(), &len.to_be_bytes(), &[0, 0, 0, ICMPV6], &message]);
    let sum = checksum(&about);
    message[2..4].copy_from_slice(&sum);
    message
}

/// The internet checksum (RFC 1071).
fn checksum(data: &[u8]) -> [u8; 2] {
    let mut sum: u32 = 0;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
