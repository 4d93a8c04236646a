//! The table that spoof guards share: sets, chains and rules, which are the same however many pods there are.
//!
//! ```text
//! table bridge bridgehead {
//!     set spoof_ports { type ifname }
//!     set spoof_ipv4 { type ifname . ether_addr . ipv4_addr }
//!     set spoof_ipv6 { type ifname . ether_addr . ipv6_addr }
//!     set spoof_targets { typeof iifname . ether saddr . @th,64,64 . @th,128,64 }
//!
//!     chain spoof_entry {
//!         type filter hook prerouting priority dstnat; policy accept;
//!         iifname @spoof_ports goto spoof_check
//!     }
//!     chain spoof_check { ... }
//!     chain spoof_check_ipv4 { ... }
//!     chain spoof_check_ipv6 { ... }
//!     chain spoof_check_unspecified { ... }
//! }
//! ```
//!
//! Every rule says what may pass, and what no rule lets pass is dropped. So a frame that is cut off, malformed, or of
//! a protocol that this program does not know does not pass either: where a rule cannot load what it asks for, it does
//! not match.
//!
//! What a bridge keeps for itself comes here too: see [`ReservedFrames`](super::super::ReservedFrames).
//!
//! A VLAN tag is no way around: the kernel has taken the outermost off a frame before it comes here, so protocol and
//! headers are those behind it, and what has a second one is of a protocol that does not pass.

use nix::libc::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6};

use crate::net::nft::expr::{self, MetaKey, Operator, Register};
use crate::net::nft::{
    Base, Carries, Chain, Expr, Family, Hook, KeyType, Kind, Set, Table, Transaction, Verdict,
};

const TABLE: Table<'static> = Table::new(Family::Bridge, "bridgehead");

/// The ports that are guarded.
pub(super) const PORTS: Set<'static> = set("spoof_ports", &[KeyType::Ifname]);

/// What may stand in a frame as source: of Ethernet and of IPv4, or as sender of ARP.
pub(super) const IPV4: Set<'static> =
    set("spoof_ipv4", &[KeyType::Ifname, KeyType::EtherAddress, KeyType::Ipv4Address]);

/// What may stand in a frame as source: of Ethernet and of IPv6.
pub(super) const IPV6: Set<'static> =
    set("spoof_ipv6", &[KeyType::Ifname, KeyType::EtherAddress, KeyType::Ipv6Address]);

/// What a pod may announce itself as: source of Ethernet, and target of neighbour discovery.
///
/// The target is an address, but `nft` has a name for that field since 1.0.7 only. So that every version reads its own
/// listing again, it is two halves, which none of them has a name for.
pub(super) const TARGETS: Set<'static> = set(
    "spoof_targets",
    &[
        KeyType::Ifname,
        KeyType::EtherAddress,
        KeyType::Transport { offset: 64, len: 64 },
        KeyType::Transport { offset: 128, len: 64 },
    ],
);

/// All sets in which pods have elements.
pub(super) const SETS: [Set<'static>; 4] = [PORTS, IPV4, IPV6, TARGETS];

const fn set(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { table: TABLE, name, key, carries: Carries::Nothing }
}

const ENTRY: &str = "spoof_entry";
const CHECK: &str = "spoof_check";
const CHECK_IPV4: &str = "spoof_check_ipv4";
const CHECK_IPV6: &str = "spoof_check_ipv6";
const CHECK_UNSPECIFIED: &str = "spoof_check_unspecified";

/// `dstnat` of a bridge (`NF_BR_PRI_NAT_DST_BRIDGED`, linux/netfilter_bridge.h).
const PRIORITY: i32 = -300;

/// Protocols (linux/in.h) and types of messages (RFC 792, 1256, 4443, 4861, 2710, 3810).
const IGMP: u8 = 2;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const MLD_REPORT: u8 = 131;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

/// Ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;

/// A chain of the guard: where it stands, and its rules.
pub(super) struct Part {
    pub(super) chain: Chain<'static>,
    base: Option<Base>,
    pub(super) rules: Vec<Vec<Expr>>,
}

impl Part {
    fn base(name: &'static str, hook: Hook, priority: i32, rules: Vec<Vec<Expr>>) -> Self {
        let base = Some(Base { kind: Kind::Filter, hook, priority });
        Self { chain: TABLE.chain(name), base, rules }
    }

    fn regular(name: &'static str, rules: Vec<Vec<Expr>>) -> Self {
        Self { chain: TABLE.chain(name), base: None, rules }
    }
}

/// All chains with their rules.
pub(super) fn parts() -> [Part; 5] {
    [
        Part::base(ENTRY, Hook::Prerouting, PRIORITY, vec![entry()]),
        Part::regular(CHECK, check()),
        Part::regular(CHECK_IPV4, check_ipv4()),
        Part::regular(CHECK_IPV6, check_ipv6()),
        Part::regular(CHECK_UNSPECIFIED, check_unspecified()),
    ]
}

/// Everything but elements. Written so that it does not matter what of it is there, or if somebody else makes it at the
/// same time.
pub(super) fn add_skeleton(transaction: &mut Transaction, parts: [Part; 5]) {
    transaction.add_table(TABLE);
    for set in SETS {
        transaction.add_set(set);
    }
    for part in &parts {
        match part.base {
            Some(base) => transaction.add_base_chain(part.chain, base),
            None => transaction.add_chain(part.chain),
        }
    }
    for part in &parts {
        transaction.flush_chain(part.chain);
    }
    for part in parts {
        for rule in part.rules {
            transaction.add_rule(part.chain, rule, None);
        }
    }
}

/// `iifname @spoof_ports goto spoof_check`
fn entry() -> Vec<Expr> {
    vec![expr::load_meta(MetaKey::Iifname, Register::Reg1), expr::lookup(PORTS.name), goto(CHECK)]
}

fn check() -> Vec<Vec<Expr>> {
    // The sender of an ARP packet (struct arphdr and what follows it): eight bytes behind the front, MAC and then IPv4.
    let (arp_mac, arp_ip) = (network(8, 6), network(14, 4));
    vec![
        // iifname . ether saddr . ip saddr @spoof_ipv4 goto spoof_check_ipv4
        [protocol(ETH_P_IP), is_own(&ETHER_SOURCE, &network(12, 4), IPV4), vec![goto(CHECK_IPV4)]].concat(),
        // iifname . ether saddr . ip6 saddr @spoof_ipv6 goto spoof_check_ipv6
        [protocol(ETH_P_IPV6), is_own(&ETHER_SOURCE, &network(8, 16), IPV6), vec![goto(CHECK_IPV6)]].concat(),
        // arp htype 1 arp ptype ip arp hlen 6 arp plen 4
        //   iifname . ether saddr . arp saddr ip @spoof_ipv4
        //   iifname . arp saddr ether . arp saddr ip @spoof_ipv4 accept
        [
            protocol(ETH_P_ARP),
            vec![
                expr::load_network_header(0, 6, Register::Reg1),
                expr::compare(Operator::Equal, &[0, 1, 8, 0, 6, 4]),
            ],
            is_own(&ETHER_SOURCE, &arp_ip, IPV4),
            is_own(&arp_mac, &arp_ip, IPV4),
            accept(),
        ]
        .concat(),
        // counter drop
        counter_drop(),
    ]
}

/// The source is the pod's, or 0.0.0.0.
fn check_ipv4() -> Vec<Vec<Expr>> {
    let unspecified = || [protocol(ETH_P_IP), load(&network(12, 4)), vec![is(&[0; 4])]].concat();
    vec![
        // ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
        [
            unspecified(),
            udp_port(0, Operator::Equal, DHCP_CLIENT),
            udp_port(2, Operator::Equal, DHCP_SERVER),
            accept(),
        ]
        .concat(),
        // ip saddr 0.0.0.0 meta l4proto igmp accept
        [unspecified(), transport(&[(Operator::Equal, IGMP)]), accept()].concat(),
        // ip saddr 0.0.0.0 counter drop
        [unspecified(), counter_drop()].concat(),
        // meta l4proto != udp meta l4proto != icmp accept
        [transport(&[(Operator::NotEqual, UDP)]), transport(&[(Operator::NotEqual, ICMP)]), accept()]
            .concat(),
        // ip frag-off & 8191 != 0 accept
        // It is put together with a first fragment only if that passed.
        [
            protocol(ETH_P_IP),
            load(&network(6, 2)),
            vec![expr::mask(&[0x1f, 0xff]), expr::compare(Operator::NotEqual, &[0; 2])],
            accept(),
        ]
        .concat(),
        // udp dport != 68 accept
        [udp_port(2, Operator::NotEqual, DHCP_CLIENT), accept()].concat(),
        // icmp type != redirect icmp type != router-advertisement accept
        [message_is_not(ICMP, &[ICMP_REDIRECT, ICMP_ROUTER_ADVERTISEMENT]), accept()].concat(),
        // counter drop
        counter_drop(),
    ]
}

/// The source is the pod's, also its link-local address, or `::`.
fn check_ipv6() -> Vec<Vec<Expr>> {
    vec![
        // ip6 saddr :: goto spoof_check_unspecified
        [protocol(ETH_P_IPV6), load(&network(8, 16)), vec![is(&[0; 16]), goto(CHECK_UNSPECIFIED)]].concat(),
        // meta l4proto != udp meta l4proto != ipv6-icmp accept
        [transport(&[(Operator::NotEqual, UDP)]), transport(&[(Operator::NotEqual, ICMPV6)]), accept()]
            .concat(),
        // frag frag-off != 0 accept
        [
            vec![
                expr::load_ipv6_fragment_offset(),
                expr::mask(&[0xff, 0xf8]),
                expr::compare(Operator::NotEqual, &[0; 2]),
            ],
            accept(),
        ]
        .concat(),
        // udp dport != 546 accept
        [udp_port(2, Operator::NotEqual, DHCPV6_CLIENT), accept()].concat(),
        // icmpv6 type != nd-router-advert icmpv6 type != nd-neighbor-advert icmpv6 type != nd-redirect accept
        [message_is_not(ICMPV6, &[ROUTER_ADVERTISEMENT, NEIGHBOUR_ADVERTISEMENT, REDIRECT]), accept()]
            .concat(),
        // icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,64 . @th,128,64 @spoof_targets accept
        [message(Operator::Equal, NEIGHBOUR_ADVERTISEMENT), has_own_target(), accept()].concat(),
        // counter drop
        counter_drop(),
    ]
}

/// The source is `::`: what a host may send that has no address yet.
fn check_unspecified() -> Vec<Vec<Expr>> {
    vec![
        // icmpv6 type nd-neighbor-solicit iifname . ether saddr . @th,64,64 . @th,128,64 @spoof_targets accept
        [message(Operator::Equal, NEIGHBOUR_SOLICITATION), has_own_target(), accept()].concat(),
        // icmpv6 type 131-133 accept
        // mld-listener-report, mld-listener-done, nd-router-solicit
        [
            message(Operator::GreatherThanEqual, MLD_REPORT),
            vec![expr::compare(Operator::LessThanEqual, &[ROUTER_SOLICITATION])],
            accept(),
        ]
        .concat(),
        // icmpv6 type mld2-listener-report accept
        [message(Operator::Equal, MLD2_REPORT), accept()].concat(),
        // counter drop
        counter_drop(),
    ]
}

/// A part of a packet that is loaded into registers.
type Field = dyn Fn(Register) -> Expr;

/// `ether saddr`
const ETHER_SOURCE: fn(Register) -> Expr = |register| expr::load_link_header(6, 6, register);

fn network(offset: u32, len: u32) -> impl Fn(Register) -> Expr {
    move |register| expr::load_network_header(offset, len, register)
}

fn load(field: &Field) -> Vec<Expr> {
    vec![field(Register::Reg1)]
}

/// `iifname . <MAC address> . <IP address> @<set>`
fn is_own(mac: &Field, address: &Field, set: Set) -> Vec<Expr> {
    vec![
        expr::load_meta(MetaKey::Iifname, Register::Reg1),
        mac(Register::Reg2),
        address(Register::Reg32_06),
        expr::lookup(set.name),
    ]
}

/// `iifname . ether saddr . @th,64,64 . @th,128,64 @spoof_targets`
fn has_own_target() -> Vec<Expr> {
    vec![
        expr::load_meta(MetaKey::Iifname, Register::Reg1),
        ETHER_SOURCE(Register::Reg2),
        expr::load_transport_header(8, 8, Register::Reg32_06),
        expr::load_transport_header(16, 8, Register::Reg3),
        expr::lookup(TARGETS.name),
    ]
}

/// `meta protocol <protocol>`, which `nft` takes to be meant by what follows.
fn protocol(number: i32) -> Vec<Expr> {
    // Numbers of Ethernet's protocols have 16 bits.
    let number = (number as u16).to_be_bytes();
    vec![expr::load_meta(MetaKey::EtherTypeProtocol, Register::Reg1), is(&number)]
}

/// `meta l4proto <operator> <protocol>`; behind IPv6, extension headers are stepped over.
fn transport(conditions: &[(Operator, u8)]) -> Vec<Expr> {
    let mut rule = Vec::new();
    for (operator, number) in conditions {
        rule.push(expr::load_meta(MetaKey::L4Proto, Register::Reg1));
        rule.push(expr::compare(*operator, &[*number]));
    }
    rule
}

/// `udp sport <operator> <port>` for offset 0, `udp dport` for 2.
fn udp_port(offset: u32, operator: Operator, port: u16) -> Vec<Expr> {
    let mut rule = transport(&[(Operator::Equal, UDP)]);
    rule.push(expr::load_transport_header(offset, 2, Register::Reg1));
    rule.push(expr::compare(operator, &port.to_be_bytes()));
    rule
}

/// `icmp type != <one> icmp type != <other>` and so on, or that of `icmpv6`.
fn message_is_not(protocol: u8, types: &[u8]) -> Vec<Expr> {
    let mut rule = transport(&[(Operator::Equal, protocol)]);
    for number in types {
        rule.push(expr::load_transport_header(0, 1, Register::Reg1));
        rule.push(expr::compare(Operator::NotEqual, &[*number]));
    }
    rule
}

/// `icmpv6 type <operator> <type>`
fn message(operator: Operator, number: u8) -> Vec<Expr> {
    let mut rule = transport(&[(Operator::Equal, ICMPV6)]);
    rule.push(expr::load_transport_header(0, 1, Register::Reg1));
    rule.push(expr::compare(operator, &[number]));
    rule
}

fn is(value: &[u8]) -> Expr {
    expr::compare(Operator::Equal, value)
}

fn goto(chain: &str) -> Expr {
    expr::verdict(&Verdict::Goto(chain.to_owned()))
}

fn accept() -> Vec<Expr> {
    vec![expr::verdict(&Verdict::Accept)]
}

/// Counted, so that who wonders why a pod is not heard has a number to look at.
fn counter_drop() -> Vec<Expr> {
    vec![expr::counter(), expr::verdict(&Verdict::Drop)]
}
