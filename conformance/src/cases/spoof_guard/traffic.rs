//! What the pod `one` sends to the pod `other`: what it may, and what it may not.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use serde_json::Value;

use super::frames::*;
use crate::cases::networks::Attachment;
use crate::expect::text_at;
use crate::sandbox::Sandbox;

/// A frame and what it is.
pub(super) type Named = (String, Frame);

/// Two pods on one bridge, and what they are called.
pub(super) struct Stage {
    pub(super) one: Attachment,
    pub(super) other: Attachment,
    own: Names,
    others: Names,
}

/// What a pod is called.
struct Names {
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    local: Ipv6Addr,
}

impl Names {
    fn of(attachment: &Attachment) -> Result<Self> {
        let text = |pointer: &str| text_at(&attachment.result, pointer);
        let bare = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(text("/interfaces/2/mac")?.split(':')) {
            *byte = u8::from_str_radix(digits, 16)?;
        }
        let [a, b, c, d, e, f] = mac;
        Ok(Self {
            mac,
            v4: bare(text("/ips/0/address")?).parse()?,
            v6: bare(text("/ips/1/address")?).parse()?,
            local: Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]),
        })
    }
}

const STRANGER_MAC: Mac = [2, 0, 0, 0, 0x66, 0x66];
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 99);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const NOBODY6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 0x99);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 1);
const ROUTER_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Types of ICMPv6.
const ECHO: u8 = 128;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const SOLICITS_ROUTER: u8 = 133;
const ADVERTISES_ROUTER: u8 = 134;
const SOLICITS: u8 = 135;
const ADVERTISES: u8 = 136;
const REDIRECTS: u8 = 137;
const MLD2_REPORT: u8 = 143;

impl Stage {
    /// Attaches both pods to the same network, which has an address of each family for them.
    pub(super) fn new(host: &Sandbox, network: Value) -> Result<Self> {
        // Without it, the bridge itself drops malformed packets, and there would be nothing to see.
        for family in ["iptables", "ip6tables"] {
            // Not every kernel has it.
            let _ = host.set_sysctl(&format!("bridge/bridge-nf-call-{family}"), "0");
        }
        let one = Attachment::new(host, "one", network.clone())?;
        let other = Attachment::new(host, "other", network)?;
        let (own, others) = (Names::of(&one)?, Names::of(&other)?);
        Ok(Self { one, other, own, others })
    }

    fn frame(&self, protocol: u16, payload: &[u8]) -> Frame {
        ethernet(self.others.mac, self.own.mac, protocol, payload)
    }

    fn from4(&self, from: Ipv4Addr, protocol: u8, payload: &[u8]) -> Frame {
        self.frame(ETHER_IPV4, &ipv4(from, self.others.v4, protocol, 0, payload))
    }

    fn part4(&self, offset: u16, protocol: u8, payload: &[u8]) -> Frame {
        self.frame(ETHER_IPV4, &ipv4(self.own.v4, self.others.v4, protocol, offset, payload))
    }

    fn from6(&self, from: Ipv6Addr, protocol: u8, payload: &[u8]) -> Frame {
        self.frame(ETHER_IPV6, &ipv6(from, self.others.v6, protocol, payload))
    }

    fn icmp6(&self, from: Ipv6Addr, kind: u8, body: &[u8]) -> Frame {
        self.from6(from, ICMPV6, &icmpv6(from, self.others.v6, kind, body))
    }

    fn arp(&self, operation: u16, mac: Mac, address: Ipv4Addr) -> Frame {
        self.frame(ETHER_ARP, &arp(operation, (mac, address), ([0; 6], self.others.v4)))
    }

    /// A frame that always arrives.
    pub(super) fn passing(&self) -> Named {
        named("an IPv4 packet", self.from4(self.own.v4, UDP, &udp(1, 2, b"the last")))
    }

    /// A packet from an address that is nobody's.
    pub(super) fn stranger(&self) -> Named {
        named("from another address", self.from4(STRANGER, UDP, &udp(1, 2, b"zero")))
    }
}

fn named(name: &str, frame: Frame) -> Named {
    (name.to_owned(), frame)
}

fn list<const N: usize>(frames: [(&str, Frame); N]) -> Vec<Named> {
    frames.into_iter().map(|(name, frame)| named(name, frame)).collect()
}

/// The target of a neighbour solicitation or advertisement, with the sender's MAC address as option.
fn target(address: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    bytes(&[&[0; 4], &address.octets(), &[option, 1], &mac])
}

/// What a pod may send.
pub(super) fn good(stage: &Stage) -> Vec<Named> {
    let Names { mac, v4, v6, local } = stage.own;
    let other = stage.others.v6;
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let mld2 = |from| {
        icmpv6(
            from,
            ALL_MLD_ROUTERS,
            MLD2_REPORT,
            &[0, 0, 0, 1, 4, 0, 0, 0, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2],
        )
    };
    let mut frames = list([
        ("an ARP request", ethernet(BROADCAST, mac, ETHER_ARP, &arp(1, (mac, v4), ([0; 6], GATEWAY)))),
        ("an ARP reply", stage.arp(2, mac, v4)),
        ("an ARP announcement", ethernet(BROADCAST, mac, ETHER_ARP, &arp(1, (mac, v4), ([0; 6], v4)))),
        ("an ARP probe", stage.arp(1, mac, NOBODY)),
        ("UDP", stage.from4(v4, UDP, &udp(1, 2, b"x"))),
        ("TCP", stage.from4(v4, TCP, &[0; 20])),
        ("SCTP", stage.from4(v4, 132, &[0; 12])),
        ("ICMP echo", stage.from4(v4, ICMP, &icmp(8, &[0; 8]))),
        ("IGMP", stage.from4(v4, IGMP, &icmp(0x16, &[239, 1, 2, 3]))),
        ("IGMP from 0.0.0.0", stage.from4(NOBODY, IGMP, &icmp(0x22, &[0; 4]))),
        ("DHCP renewal", stage.from4(v4, UDP, &udp(68, 67, b"renew"))),
        ("first fragment", stage.part4(0x2000, UDP, &udp(1, 2, b"12345678"))),
        // What these begin with would be ports, and the type of a redirect, if it were the first.
        ("later fragment", stage.part4(1, UDP, &[0, 67, 0, 68, 1, 2, 3, 4])),
        ("later fragment of ICMP", stage.part4(1, ICMP, &[5, 1, 0, 0, 1, 2, 3, 4])),
    ]);
    let discover = ipv4(NOBODY, Ipv4Addr::BROADCAST, UDP, 0, &udp(68, 67, b"discover"));
    frames.push(named("DHCP discovery", ethernet(BROADCAST, mac, ETHER_IPV4, &discover)));
    frames.extend(list([
        ("UDP by IPv6", stage.from6(v6, UDP, &udp(1, 2, b"x"))),
        ("UDP from the link-local address", stage.from6(local, UDP, &udp(1, 2, b"x"))),
        ("TCP by IPv6", stage.from6(v6, TCP, &[0; 20])),
        ("ICMPv6 echo", stage.icmp6(v6, ECHO, &[0; 4])),
        ("DHCPv6 solicitation", stage.from6(local, UDP, &udp(546, 547, b"solicit"))),
        ("neighbour solicitation", stage.icmp6(v6, SOLICITS, &target(other, 1, mac))),
        ("neighbour solicitation from link-local", stage.icmp6(local, SOLICITS, &target(other, 1, mac))),
        ("DAD", stage.icmp6(NOBODY6, SOLICITS, &target(v6, 1, mac)[..20])),
        ("DAD with a nonce", stage.icmp6(NOBODY6, SOLICITS, &bytes(&[&[0; 4], &v6.octets(), &nonce]))),
        ("DAD for link-local", stage.icmp6(NOBODY6, SOLICITS, &target(local, 1, mac)[..20])),
        ("neighbour advertisement", stage.icmp6(v6, ADVERTISES, &target(v6, 2, mac))),
        ("neighbour advertisement from link-local", stage.icmp6(local, ADVERTISES, &target(v6, 2, mac))),
        ("neighbour advertisement of link-local", stage.icmp6(local, ADVERTISES, &target(local, 2, mac))),
        ("router solicitation", stage.icmp6(local, SOLICITS_ROUTER, &bytes(&[&[0; 4], &[1, 1], &mac]))),
        ("router solicitation from ::", stage.icmp6(NOBODY6, SOLICITS_ROUTER, &[0; 4])),
        ("MLD report", stage.icmp6(local, MLD_REPORT, &bytes(&[&[0; 4], &ALL_NODES.octets()]))),
        ("MLD done", stage.icmp6(local, MLD_DONE, &bytes(&[&[0; 4], &ALL_NODES.octets()]))),
        ("MLD report from ::", stage.icmp6(NOBODY6, MLD_REPORT, &bytes(&[&[0; 4], &ALL_NODES.octets()]))),
        (
            "MLDv2 report",
            stage.frame(ETHER_IPV6, &ipv6(local, ALL_MLD_ROUTERS, 0, &router_alert(&mld2(local)))),
        ),
        (
            "MLDv2 report from ::",
            stage.frame(ETHER_IPV6, &ipv6(NOBODY6, ALL_MLD_ROUTERS, 0, &router_alert(&mld2(NOBODY6)))),
        ),
        ("UDP behind options", stage.from6(v6, DESTINATION_OPTIONS, &padding(UDP, &udp(1, 2, b"x")))),
        ("first fragment by IPv6", stage.from6(v6, FRAGMENT, &fragment(UDP, 1, &udp(1, 2, b"12345678")))),
        (
            "first fragment of echo",
            stage.from6(v6, FRAGMENT, &fragment(ICMPV6, 1, &icmpv6(v6, other, ECHO, &[0; 4]))),
        ),
        ("later fragment by IPv6", stage.from6(v6, FRAGMENT, &fragment(UDP, 8, &[2, 35, 2, 34, 0, 0, 0, 0]))),
        (
            "later fragment of echo",
            stage.from6(v6, FRAGMENT, &fragment(ICMPV6, 8, &[134, 0, 0, 0, 0, 0, 0, 0])),
        ),
    ]));
    frames
}

/// IPv4 that a pod may not send.
pub(super) fn false_ipv4(stage: &Stage) -> Vec<Named> {
    let Names { mac, v4, .. } = stage.own;
    let Names { mac: other_mac, v4: other, .. } = stage.others;
    let packet = |data: &[u8]| ipv4(v4, other, UDP, 0, &udp(1, 2, data));
    let with_options = {
        // A header of 24 bytes, with four times "no operation".
        let mut packet = ipv4(v4, other, UDP, 0, &bytes(&[&[1; 4], &udp(67, 68, b"offer")]));
        packet[0] = 0x46;
        packet
    };
    let mut frames = list([
        ("from another MAC", ethernet(other_mac, STRANGER_MAC, ETHER_IPV4, &packet(b"other MAC"))),
        ("from another address", stage.from4(STRANGER, UDP, &udp(1, 2, b"x"))),
        ("from the other pod", stage.from4(other, UDP, &udp(1, 2, b"x"))),
        ("from the gateway", stage.from4(GATEWAY, TCP, &[0; 20])),
        ("from outside", stage.from4([192, 0, 2, 77].into(), ICMP, &icmp(8, &[0; 8]))),
        ("from localhost", stage.from4(Ipv4Addr::LOCALHOST, UDP, &udp(1, 2, b"x"))),
        ("from broadcast", stage.from4(Ipv4Addr::BROADCAST, UDP, &udp(1, 2, b"x"))),
        ("UDP from 0.0.0.0", stage.from4(NOBODY, UDP, &udp(1, 2, b"x"))),
        ("TCP from 0.0.0.0", stage.from4(NOBODY, TCP, &[0; 20])),
        ("ICMP from 0.0.0.0", stage.from4(NOBODY, ICMP, &icmp(8, &[0; 8]))),
        ("DHCP offer from 0.0.0.0", stage.from4(NOBODY, UDP, &udp(67, 68, b"offer"))),
        ("DHCP offer", stage.from4(v4, UDP, &udp(67, 68, b"offer"))),
        ("DHCP offer from another port", stage.from4(v4, UDP, &udp(1067, 68, b"offer"))),
        ("DHCP offer behind options", stage.frame(ETHER_IPV4, &with_options)),
        ("DHCP offer in fragments", stage.part4(0x2000, UDP, &udp(67, 68, b"12345678"))),
        ("a fragment without ports", stage.part4(0x2000, UDP, &[0])),
        ("ICMP redirect", stage.from4(v4, ICMP, &icmp(5, &bytes(&[&STRANGER.octets(), &packet(b"")])))),
        ("ICMP redirect in fragments", stage.part4(0x2000, ICMP, &icmp(5, &[0; 4]))),
        (
            "ICMP router advertisement",
            stage.from4(v4, ICMP, &icmp(9, &[1, 2, 0, 60, 10, 20, 0, 2, 0, 0, 0, 0])),
        ),
        ("a packet that is cut off", stage.frame(ETHER_IPV4, &packet(b"this is cut off")[..30])),
        ("a header that is cut off", stage.frame(ETHER_IPV4, &packet(b"")[..13])),
        ("two bytes", stage.frame(ETHER_IPV4, &[0x45, 0])),
    ]);
    let offer = ipv4(v4, Ipv4Addr::BROADCAST, UDP, 0, &udp(67, 68, b"to all"));
    frames.push(named("DHCP offer to all", ethernet(BROADCAST, mac, ETHER_IPV4, &offer)));
    frames
}

/// IPv6 that a pod may not send.
pub(super) fn false_ipv6(stage: &Stage) -> Vec<Named> {
    let Names { mac, v6, local, .. } = stage.own;
    let Names { mac: other_mac, v6: other, local: others_local, .. } = stage.others;
    let hello = udp(1, 2, b"x");
    let router = |from| icmpv6(from, ALL_NODES, ADVERTISES_ROUTER, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let to_all =
        |from, protocol, payload: &[u8]| stage.frame(ETHER_IPV6, &ipv6(from, ALL_NODES, protocol, payload));
    // The type is in the second fragment: the first ends with a header of options.
    let headless = fragment(DESTINATION_OPTIONS, 1, &[ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
    let endless = fragment(DESTINATION_OPTIONS, 1, &[DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
    list([
        ("from another MAC", ethernet(other_mac, STRANGER_MAC, ETHER_IPV6, &ipv6(v6, other, UDP, &hello))),
        ("from another address", stage.from6(STRANGER6, UDP, &hello)),
        ("from the other pod", stage.from6(other, UDP, &hello)),
        ("from the gateway", stage.from6(GATEWAY6, TCP, &[0; 20])),
        ("from the other's link-local address", stage.from6(others_local, UDP, &hello)),
        ("from another link-local address", stage.from6(ROUTER_LOCAL, UDP, &hello)),
        ("from localhost", stage.from6(Ipv6Addr::LOCALHOST, UDP, &hello)),
        ("from a multicast address", stage.from6(ALL_NODES, UDP, &hello)),
        ("from its IPv4 address", stage.from6(stage.own.v4.to_ipv6_mapped(), UDP, &hello)),
        ("UDP from ::", stage.from6(NOBODY6, UDP, &hello)),
        ("TCP from ::", stage.from6(NOBODY6, TCP, &[0; 20])),
        ("echo from ::", stage.icmp6(NOBODY6, ECHO, &[0; 4])),
        ("DHCPv6 from ::", stage.from6(NOBODY6, UDP, &udp(546, 547, b"x"))),
        ("router advertisement from ::", to_all(NOBODY6, ICMPV6, &router(NOBODY6))),
        ("neighbour advertisement from ::", stage.icmp6(NOBODY6, ADVERTISES, &target(v6, 2, mac))),
        ("DAD for the other's address", stage.icmp6(NOBODY6, SOLICITS, &target(other, 1, mac)[..20])),
        ("DAD for ::", stage.icmp6(NOBODY6, SOLICITS, &target(NOBODY6, 1, mac)[..20])),
        ("DAD that is cut off", stage.icmp6(NOBODY6, SOLICITS, &target(v6, 1, mac)[..19])),
        ("router advertisement", to_all(local, ICMPV6, &router(local))),
        ("router advertisement from global", to_all(v6, ICMPV6, &router(v6))),
        (
            "router advertisement behind hop-by-hop options",
            to_all(local, 0, &padding(ICMPV6, &router(local))),
        ),
        (
            "router advertisement behind options",
            to_all(local, DESTINATION_OPTIONS, &padding(ICMPV6, &router(local))),
        ),
        ("router advertisement in fragments", to_all(local, FRAGMENT, &fragment(ICMPV6, 1, &router(local)))),
        (
            "router advertisement in one fragment",
            to_all(local, FRAGMENT, &fragment(ICMPV6, 0, &router(local))),
        ),
        ("a fragment without a type", to_all(local, FRAGMENT, &headless)),
        ("a fragment without an end of headers", to_all(local, FRAGMENT, &endless)),
        (
            "redirect",
            stage.icmp6(local, REDIRECTS, &bytes(&[&[0; 4], &STRANGER6.octets(), &STRANGER6.octets()])),
        ),
        ("advertisement of the other's address", stage.icmp6(v6, ADVERTISES, &target(other, 2, mac))),
        ("advertisement of the gateway's address", stage.icmp6(local, ADVERTISES, &target(GATEWAY6, 2, mac))),
        ("advertisement of ::", stage.icmp6(v6, ADVERTISES, &target(NOBODY6, 2, mac))),
        (
            "advertisement from another MAC",
            ethernet(
                other_mac,
                STRANGER_MAC,
                ETHER_IPV6,
                &ipv6(v6, other, ICMPV6, &icmpv6(v6, other, ADVERTISES, &target(v6, 2, STRANGER_MAC))),
            ),
        ),
        ("DHCPv6 advertisement", stage.from6(local, UDP, &udp(547, 546, b"advertise"))),
        ("DHCPv6 reply from global", stage.from6(v6, UDP, &udp(547, 546, b"reply"))),
        (
            "DHCPv6 reply behind options",
            stage.from6(v6, DESTINATION_OPTIONS, &padding(UDP, &udp(547, 546, b"reply"))),
        ),
        (
            "DHCPv6 reply in fragments",
            stage.from6(v6, FRAGMENT, &fragment(UDP, 1, &udp(547, 546, b"12345678"))),
        ),
        ("a packet that is cut off", stage.frame(ETHER_IPV6, &ipv6(v6, other, UDP, &hello)[..42])),
        ("a header that is cut off", stage.frame(ETHER_IPV6, &ipv6(v6, other, UDP, &hello)[..20])),
    ])
}

/// ARP that a pod may not send.
pub(super) fn false_arp(stage: &Stage) -> Vec<Named> {
    let Names { mac, v4, .. } = stage.own;
    let Names { mac: other_mac, v4: other, .. } = stage.others;
    let whole = arp(1, (mac, v4), ([0; 6], other));
    let changed = |at: usize, value: u8| {
        let mut packet = whole.clone();
        packet[at] = value;
        stage.frame(ETHER_ARP, &packet)
    };
    list([
        ("request from another address", stage.arp(1, mac, STRANGER)),
        ("request from the other", stage.arp(1, mac, other)),
        ("reply for the gateway", stage.arp(2, mac, GATEWAY)),
        (
            "announcement for the gateway",
            ethernet(BROADCAST, mac, ETHER_ARP, &arp(1, (mac, GATEWAY), ([0; 6], GATEWAY))),
        ),
        ("request with another MAC as sender", stage.arp(1, STRANGER_MAC, v4)),
        ("reply with the other's MAC as sender", stage.arp(2, other_mac, v4)),
        ("probe with another MAC as sender", stage.arp(1, STRANGER_MAC, NOBODY)),
        ("request in a frame from another MAC", ethernet(other_mac, STRANGER_MAC, ETHER_ARP, &whole)),
        (
            "request that is false in all",
            ethernet(other_mac, STRANGER_MAC, ETHER_ARP, &arp(1, (STRANGER_MAC, STRANGER), ([0; 6], other))),
        ),
        ("request of another hardware", changed(1, 6)),
        ("request of another protocol", changed(2, 0x86)),
        ("request with a longer MAC", changed(4, 8)),
        ("request with a longer address", changed(5, 16)),
        ("request that is cut off", stage.frame(ETHER_ARP, &whole[..17])),
    ])
}

/// Neither IPv4 nor IPv6 nor ARP, though some carry them.
pub(super) fn false_protocols(stage: &Stage) -> Vec<Named> {
    let Names { mac, v4, .. } = stage.own;
    let Names { mac: other_mac, v4: other, .. } = stage.others;
    let packet = |data: &[u8]| ipv4(v4, other, UDP, 0, &udp(1, 2, data));
    let stranger = ipv4(STRANGER, other, UDP, 0, &udp(1, 2, b"inside"));
    let snap = bytes(&[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &packet(b"snap")]);
    list([
        ("RARP", stage.frame(ETHER_RARP, &arp(3, (mac, v4), (mac, v4)))),
        ("LLDP", stage.frame(ETHER_LLDP, &[2, 7, 4, 2, 0, 0, 0, 0x66, 0x66, 0, 0])),
        ("PPPoE discovery", stage.frame(0x8863, &[0x11, 9, 0, 0, 0, 4, 1, 1, 0, 0])),
        ("PPPoE session", stage.frame(0x8864, &bytes(&[&[0x11, 0, 0, 1, 0, 38, 0, 0x21], &stranger]))),
        ("MPLS", stage.frame(0x8847, &bytes(&[&[0, 1, 1, 64], &stranger]))),
        ("a BPDU of STP", stage.frame(38, &bytes(&[&[0x42, 0x42, 3], &[0; 35]]))),
        ("IPv4 in SNAP", stage.frame(snap.len() as u16, &snap)),
        ("IPv4 behind two VLAN tags", tagged(7, &tagged(8, &stage.frame(ETHER_IPV4, &packet(b"two tags"))))),
        ("IPv4 as IPv6", stage.frame(ETHER_IPV6, &packet(b"as IPv6"))),
        ("an unknown protocol", ethernet(other_mac, mac, 0x9999, b"whatever")),
    ])
}
