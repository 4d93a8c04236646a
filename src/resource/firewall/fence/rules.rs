//! The sets and chains that fences share, which are the same however many pods and networks there are.
//!
//! ```text
//! table inet bridgehead {
//!     set firewall_ipv4 { type ifname . ipv4_addr }             # pods that are closed, behind their bridge
//!     set firewall_isolated_ipv4 { type ifname . ipv4_addr }    # those closed for their neighbours, too
//!     set firewall_bridges { type ifname }                      # bridges of networks with a policy
//!     set firewall_internal { type ifname }                     # bridges that nothing leaves
//!     set firewall_within { type ifname . ifname }              # both kinds, each with itself
//!
//!     chain firewall_forward {
//!         type filter hook forward priority filter; policy accept;
//!         iifname . ip daddr @firewall_isolated_ipv4 counter drop
//!         iifname . oifname @firewall_within accept
//!         iifname @firewall_internal counter drop
//!         oifname @firewall_internal counter drop
//!         iifname @firewall_bridges oifname . ip daddr @firewall_ipv4 counter drop
//!     }
//! }
//! table bridge bridgehead {
//!     set firewall_ports { type ifname }                        # ports of pods that are isolated
//!
//!     chain firewall_forward {
//!         type filter hook forward priority filter; policy accept;
//!         iifname @firewall_ports oifname @firewall_ports counter drop
//!     }
//! }
//! ```
//!
//! and the same for IPv6. What comes by a bridge and goes by it is here only if it is sent back by the host, or if the
//! kernel shows what bridges carry (`net.bridge.bridge-nf-call-iptables`): neighbour discovery, too.
//!
//! A pod cannot get round it by a false sender: what is asked is the bridge that a packet comes
//! by, and the address that it is for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::nft::expr::{self, MetaKey, Register, Side};
use crate::net::nft::{
    Base, Carries, Chain, Expr, Family, Hook, KeyType, Kind, Set, Table, Transaction, Verdict, set,
};

const INET: Table<'static> = Table::new(Family::Inet, "bridgehead");
const BRIDGE: Table<'static> = Table::new(Family::Bridge, "bridgehead");

const CHAIN: &str = "firewall_forward";

/// `filter` of inet, and of a bridge (`NF_BR_PRI_FILTER_BRIDGED`, linux/netfilter_bridge.h).
const PRIORITY: i32 = 0;
const PRIORITY_BRIDGED: i32 = -200;

/// Bridges of networks that have a policy.
pub(super) const BRIDGES: Set<'static> = named("firewall_bridges", &[KeyType::Ifname]);
/// Bridges of internal networks.
pub(super) const INTERNAL: Set<'static> = named("firewall_internal", &[KeyType::Ifname]);
/// Bridges of both kinds, each with itself.
pub(super) const WITHIN: Set<'static> = named("firewall_within", &[KeyType::Ifname, KeyType::Ifname]);
/// Ports of isolated pods.
pub(super) const PORTS: Set<'static> =
    Set { table: BRIDGE, name: "firewall_ports", key: &[KeyType::Ifname], carries: Carries::Nothing };

const V4: &[KeyType] = &[KeyType::Ifname, KeyType::Ipv4Address];
const V6: &[KeyType] = &[KeyType::Ifname, KeyType::Ipv6Address];
const CLOSED: [Set<'static>; 2] = [named("firewall_ipv4", V4), named("firewall_ipv6", V6)];
const ISOLATED: [Set<'static>; 2] =
    [named("firewall_isolated_ipv4", V4), named("firewall_isolated_ipv6", V6)];

/// All sets in which pods have elements.
pub(super) const PODS: [Set<'static>; 5] = [CLOSED[0], CLOSED[1], ISOLATED[0], ISOLATED[1], PORTS];

const fn named(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { table: INET, name, key, carries: Carries::Nothing }
}

/// The set of pods that are closed, of the family of an address.
pub(super) fn closed(address: IpAddr) -> Set<'static> {
    CLOSED[usize::from(address.is_ipv6())]
}

/// The set of pods that are isolated, of the family of an address.
pub(super) fn isolated(address: IpAddr) -> Set<'static> {
    ISOLATED[usize::from(address.is_ipv6())]
}

/// The key of a link.
pub(super) fn bridge_key(name: &str) -> Vec<u8> {
    set::key(&[&set::ifname_key(name)])
}

/// The key of a link with itself.
pub(super) fn pair_key(name: &str) -> Vec<u8> {
    set::key(&[&set::ifname_key(name), &set::ifname_key(name)])
}

/// The key of a pod's address behind a bridge.
pub(super) fn pod_key(bridge: &str, address: IpAddr) -> Vec<u8> {
    set::key(&[&set::ifname_key(bridge), &set::address_key(address)])
}

/// A key for people.
pub(super) fn written(key: &[u8]) -> String {
    const NAME: usize = 16;
    let (name, address) = key.split_at(key.len().min(NAME));
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default());
    // Of a pair, the second is the first.
    let address = match address.len() {
        4 => <[u8; 4]>::try_from(address).ok().map(IpAddr::from),
        _ if key.starts_with(address) => None,
        _ => <[u8; 16]>::try_from(address).ok().map(IpAddr::from),
    };
    address.map_or_else(|| name.to_string(), |address| format!("{name} . {address}"))
}

/// A chain with its rules, and the sets that these look into.
pub(super) struct Part {
    pub(super) chain: Chain<'static>,
    pub(super) rules: Vec<Vec<Expr>>,
    base: Base,
    sets: Vec<Set<'static>>,
}

impl Part {
    /// Makes it, whatever of it is there or is being made by somebody else.
    pub(super) fn add(&self, transaction: &mut Transaction) {
        transaction.add_table(self.chain.table);
        for set in &self.sets {
            transaction.add_set(*set);
        }
        transaction.add_base_chain(self.chain, self.base);
        transaction.flush_chain(self.chain);
        for rule in &self.rules {
            transaction.add_rule(self.chain, rule.clone(), None);
        }
    }
}

/// What is asked of packets that the host forwards.
pub(super) fn routed() -> Part {
    let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let mut rules = Vec::new();
    // iifname . ip daddr @firewall_isolated_ipv4 counter drop
    rules.extend(
        families.map(|family| [is_for(MetaKey::Iifname, family, isolated(family)), drop_it()].concat()),
    );
    // iifname . oifname @firewall_within accept
    rules.push(vec![
        expr::load_meta(MetaKey::Iifname, Register::Reg1),
        expr::load_meta(MetaKey::Oifname, Register::Reg2),
        expr::lookup(WITHIN.name),
        expr::verdict(&Verdict::Accept),
    ]);
    // iifname @firewall_internal counter drop
    // oifname @firewall_internal counter drop
    rules
        .extend([MetaKey::Iifname, MetaKey::Oifname].map(|key| [is_link(key, INTERNAL), drop_it()].concat()));
    // iifname @firewall_bridges oifname . ip daddr @firewall_ipv4 counter drop
    rules.extend(families.map(|family| {
        let pod = is_for(MetaKey::Oifname, family, closed(family));
        [is_link(MetaKey::Iifname, BRIDGES), pod, drop_it()].concat()
    }));
    let sets = [&CLOSED[..], &ISOLATED, &[BRIDGES, INTERNAL, WITHIN]].concat();
    let base = Base { kind: Kind::Filter, hook: Hook::Forward, priority: PRIORITY };
    Part { chain: INET.chain(CHAIN), rules, base, sets }
}

/// What is asked of frames that a bridge forwards.
pub(super) fn bridged() -> Part {
    // iifname @firewall_ports oifname @firewall_ports counter drop
    let rule = [is_link(MetaKey::Iifname, PORTS), is_link(MetaKey::Oifname, PORTS), drop_it()].concat();
    let base = Base { kind: Kind::Filter, hook: Hook::Forward, priority: PRIORITY_BRIDGED };
    Part { chain: BRIDGE.chain(CHAIN), rules: vec![rule], base, sets: vec![PORTS] }
}

fn is_link(key: MetaKey, set: Set) -> Vec<Expr> {
    vec![expr::load_meta(key, Register::Reg1), expr::lookup(set.name)]
}

/// `<key> . ip daddr @<set>`, `<key> . ip6 daddr @<set>`
fn is_for(key: MetaKey, family: IpAddr, set: Set) -> Vec<Expr> {
    let (offset, len) = expr::address_field(Side::Destination, family);
    let mut parts = expr::family_is(family).to_vec();
    parts.extend([
        expr::load_meta(key, Register::Reg1),
        expr::load_network_header(offset, len, Register::Reg2),
        expr::lookup(set.name),
    ]);
    parts
}

fn drop_it() -> Vec<Expr> {
    vec![expr::counter(), expr::verdict(&Verdict::Drop)]
}
