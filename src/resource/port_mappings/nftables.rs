//! Host ports in a table of our own. A pod is elements:
//!
//! ```text
//! table inet bridgehead {
//!     map hostports_ip {
//!         type inet_proto . inet_service : ipv4_addr . inet_service
//!         elements = { tcp . 8080 comment "net/id/eth0" : 10.1.0.5 . 80 }
//!     }
//!     map hostports_at_ip {
//!         type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
//!     }
//!     set hairpin_10.1.0.0/16 {
//!         type ipv4_addr . inet_proto . inet_service
//!         elements = { 10.1.0.5 . tcp . 8080 comment "net/id/eth0" }
//!     }
//!     set from_localhost_ip { type ipv4_addr; elements = { 10.1.0.5 comment "net/id/eth0" } }
//!     set from_all_ip { type ipv4_addr . inet_proto . inet_service; }
//!     chain hostports {
//!         meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @hostports_at_ip
//!         meta nfproto ipv4 dnat ip to meta l4proto . th dport map @hostports_ip
//!     }
//!     chain hostports_prerouting {
//!         type nat hook prerouting priority dstnat + 1; policy accept;
//!         fib daddr type local jump hostports
//!     }
//!     chain hostports_output {
//!         type nat hook output priority dstnat + 1; policy accept;
//!         fib daddr type local jump hostports
//!     }
//!     chain hostports_postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         ct status dnat ip saddr 10.1.0.0/16 ip daddr . meta l4proto . ct original proto-dst @hairpin_10.1.0.0/16 masquerade
//!         ct status dnat ip saddr 127.0.0.1 ip daddr @from_localhost_ip masquerade
//!         ct status dnat ip daddr . meta l4proto . ct original proto-dst @from_all_ip masquerade
//!     }
//! }
//! ```
//!
//! and the same for IPv6 but for 127.0.0.1. All are hash tables without verdicts: neither a connection nor an ADD or
//! DEL costs more with more pods, or with more ports than its own. (A range would be one element of an interval map. The
//! kernel copies such a map, or walks through it, at each change; a hash table it does not.)
//!
//! A packet to an address that is not the host's is none of this (CVE-2025-67499), and a service that has the port comes
//! first, whoever was there earlier: it has priority `dstnat` (CVE-2019-9946). A neighbour of the pod would be answered
//! without the host, so its packets are masqueraded. (That they came by the pod's bridge cannot be told any more when
//! they leave.) A subnet's set and rule are made together, with its first pod, and stay, unless
//! somebody says that the network is gone.
//!
//! Where a network has conditions, it has a chain and maps of its own, which `nft` makes with the first pod: only `nft`
//! understands them. The pods of all networks with the same conditions share them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::super::owner::{Owner, strays};
use super::super::{Ensured, Finding, Kept};
use super::{PortMapping, PortMappings, SourceNat};
use crate::net::Result;
use crate::net::nft::expr::{self, MetaKey, Operator, Register, Side};
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Family, Hook, KeyType, Kind, Nft, Set, Table, Transaction, Verdict,
    command, repeat_if_overtaken, set,
};
use crate::spec::Prefix;
use crate::spec::digest::sha512_hex;

const TABLE: Table<'static> = Table::new(Family::Inet, "bridgehead");
const PREROUTING: Chain<'static> = TABLE.chain("hostports_prerouting");
const OUTPUT: Chain<'static> = TABLE.chain("hostports_output");
const POSTROUTING: Chain<'static> = TABLE.chain("hostports_postrouting");

/// What the names of chains and maps of ports begin with, and those of the sets of neighbours.
const PREFIX: &str = "hostports";
const HAIRPIN: &str = "hairpin_";

const ENTRIES: [(Chain<'static>, Base); 2] = [
    (PREROUTING, Base { kind: Kind::Nat, hook: Hook::Prerouting, priority: -99 }),
    (OUTPUT, Base { kind: Kind::Nat, hook: Hook::Output, priority: -99 }),
];
const EXIT: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A set or map whose name is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Named {
    name: String,
    kind: Purpose,
    is_ipv4: bool,
    /// Of the sets of neighbours, whose.
    subnet: Option<IpNetwork>,
}

/// What the sets and maps are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Purpose {
    /// Ports of all addresses.
    Ports,
    /// Ports of one address.
    PortsAt,
    /// Whose neighbours' packets are masqueraded.
    Hairpin,
    /// Who is masqueraded when 127.0.0.1 talks to it.
    FromLocalhost,
    /// Who is masqueraded whoever talks to it.
    FromAll,
}

impl Named {
    fn new(kind: Purpose, suffix: &str, is_ipv4: bool) -> Self {
        let family = if is_ipv4 { "ip" } else { "ip6" };
        let name = match kind {
            Purpose::Ports => format!("{PREFIX}_{family}{suffix}"),
            Purpose::PortsAt => format!("{PREFIX}_at_{family}{suffix}"),
            Purpose::Hairpin => format!("{HAIRPIN}{family}"),
            Purpose::FromLocalhost => format!("from_localhost_{family}"),
            Purpose::FromAll => format!("from_all_{family}"),
        };
        Self { name, kind, is_ipv4, subnet: None }
    }

    /// The set of those whose neighbours are in a subnet.
    fn hairpin(subnet: Prefix) -> Self {
        let network = subnet.network();
        // `nft` takes no colon in a name.
        let name = format!("{HAIRPIN}{network}").replace(':', "-");
        Self {
            name,
            kind: Purpose::Hairpin,
            is_ipv4: subnet.is_ipv4(),
            subnet: Some(super::network(network)),
        }
    }

    /// The set or map of a name; `None` for one that is for something else.
    fn of_name(name: &str) -> Option<Self> {
        if let Some(subnet) = name.strip_prefix(HAIRPIN) {
            return subnet.replace('-', ":").parse().ok().map(Self::hairpin);
        }
        let rest = name.strip_prefix(PREFIX)?.strip_prefix('_')?;
        let (kind, rest) = match rest.strip_prefix("at_") {
            Some(rest) => (Purpose::PortsAt, rest),
            None => (Purpose::Ports, rest),
        };
        let family = rest.split('_').next().filter(|family| ["ip", "ip6"].contains(family))?;
        Some(Self { name: name.to_owned(), kind, is_ipv4: family == "ip", subnet: None })
    }

    fn set(&self) -> Set<'_> {
        use KeyType::{InetProtocol, InetService, Ipv4Address, Ipv6Address};
        let (key, data): (&[KeyType], &'static [KeyType]) = match (self.kind, self.is_ipv4) {
            (Purpose::Ports, true) => (&[InetProtocol, InetService], &[Ipv4Address, InetService]),
            (Purpose::Ports, false) => (&[InetProtocol, InetService], &[Ipv6Address, InetService]),
            (Purpose::PortsAt, true) => {
                (&[Ipv4Address, InetProtocol, InetService], &[Ipv4Address, InetService])
            }
            (Purpose::PortsAt, false) => {
                (&[Ipv6Address, InetProtocol, InetService], &[Ipv6Address, InetService])
            }
            (Purpose::FromLocalhost, _) => (&[Ipv4Address], &[]),
            (Purpose::Hairpin | Purpose::FromAll, true) => (&[Ipv4Address, InetProtocol, InetService], &[]),
            (Purpose::Hairpin | Purpose::FromAll, false) => (&[Ipv6Address, InetProtocol, InetService], &[]),
        };
        let carries = if data.is_empty() { Carries::Nothing } else { Carries::Data(data) };
        Set { table: TABLE, name: &self.name, key, carries }
    }

    fn example(&self) -> IpAddr {
        if self.is_ipv4 { V4 } else { V6 }
    }

    /// The rule that looks into it.
    fn rule(&self) -> Vec<Expr> {
        let example = self.example();
        let mut rule = expr::family_is(example).to_vec();
        let (offset, len) = expr::address_field(Side::Destination, example);
        let load_destination = |register| expr::load_network_header(offset, len, register);
        // The registers behind an address, of four bytes each.
        let after = if self.is_ipv4 {
            [Register::Reg32_01, Register::Reg32_02]
        } else {
            [Register::Reg2, Register::Reg32_05]
        };
        match self.kind {
            Purpose::Ports => rule.extend([
                expr::load_meta(MetaKey::L4Proto, Register::Reg1),
                expr::load_transport_header(2, 2, Register::Reg32_01),
                expr::lookup_data(&self.name),
                expr::translate_destination(example),
            ]),
            Purpose::PortsAt => rule.extend([
                load_destination(Register::Reg1),
                expr::load_meta(MetaKey::L4Proto, after[0]),
                expr::load_transport_header(2, 2, after[1]),
                expr::lookup_data(&self.name),
                expr::translate_destination(example),
            ]),
            Purpose::FromLocalhost => {
                rule.extend(expr::destination_is_translated());
                let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST).into();
                rule.extend(expr::address_in(Side::Source, Operator::Equal, localhost));
                rule.extend([load_destination(Register::Reg1), expr::lookup(&self.name), expr::masquerade()]);
            }
            Purpose::Hairpin | Purpose::FromAll => {
                rule.extend(expr::destination_is_translated());
                if let Some(subnet) = self.subnet {
                    rule.extend(expr::address_in(Side::Source, Operator::Equal, subnet));
                }
                rule.extend([
                    load_destination(Register::Reg1),
                    expr::load_meta(MetaKey::L4Proto, after[0]),
                    expr::load_original_port(after[1]),
                    expr::lookup(&self.name),
                    expr::masquerade(),
                ]);
            }
        }
        rule
    }
}

/// Ports that are looked for together: a chain, and its maps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// What the names end with.
    suffix: String,
    /// What must hold for a packet beside that it is to this host, in the words of `nft`.
    conditions: Vec<String>,
    /// Whether it has ports of IPv4, and of IPv6.
    families: Vec<bool>,
}

impl Group {
    /// The group of a pod's ports of one family.
    fn of(wanted: &PortMappings, is_ipv4: bool) -> Self {
        let conditions = if is_ipv4 { &wanted.conditions_v4 } else { &wanted.conditions_v6 };
        if conditions.is_empty() {
            return Self::common();
        }
        let suffix = format!("_{}", sha512_hex(&[&conditions.join(" ")], 8));
        Self { suffix, conditions: conditions.clone(), families: vec![is_ipv4] }
    }

    /// Those without conditions.
    fn common() -> Self {
        Self { suffix: String::new(), conditions: Vec::new(), families: vec![true, false] }
    }

    /// All that a pod has ports in.
    fn all_of(wanted: &PortMappings) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for prefix in &wanted.addresses {
            let group = Self::of(wanted, prefix.is_ipv4());
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups
    }

    fn chain_name(&self) -> String {
        format!("{PREFIX}{}", self.suffix)
    }

    fn maps(&self) -> Vec<Named> {
        let of_family = |is_ipv4: &bool| {
            [Purpose::PortsAt, Purpose::Ports].map(|kind| Named::new(kind, &self.suffix, *is_ipv4))
        };
        self.families.iter().flat_map(of_family).collect()
    }

    /// `fib daddr type local jump hostports`; only where there are no conditions.
    fn entry(&self) -> Vec<Expr> {
        let mut rule = expr::destination_is_local().to_vec();
        rule.push(expr::verdict(&Verdict::Jump(self.chain_name())));
        rule
    }

    /// The same in words, for a chain.
    fn entry_in_words(&self, chain: Chain) -> String {
        let family = if self.families == [true] { "ipv4" } else { "ipv6" };
        let Table { family: of, name } = chain.table;
        let (of, conditions) = (of.name(), self.conditions.join(" "));
        let rule =
            format!("meta nfproto {family} fib daddr type local {conditions} jump {}", self.chain_name());
        format!("add rule {of} {name} {} {rule}\n", chain.name)
    }
}

/// The sets of those who are masqueraded, whatever their subnet.
fn shared_exits() -> [Named; 3] {
    [(Purpose::FromLocalhost, true), (Purpose::FromAll, true), (Purpose::FromAll, false)]
        .map(|(kind, is_ipv4)| Named::new(kind, "", is_ipv4))
}

/// All sets of those who are masqueraded that a pod may be in.
fn exits(wanted: &PortMappings) -> Vec<Named> {
    let mut exits = Vec::from(shared_exits());
    if wanted.source_nat == SourceNat::Hairpin {
        exits.extend(wanted.addresses.iter().copied().map(Named::hairpin));
    }
    exits
}

/// The elements of a pod, by the set that they are in.
fn elements(wanted: &PortMappings) -> BTreeMap<Named, Vec<Element>> {
    let comment = Some(Owner::new(&wanted.attachment).as_str().to_owned());
    let mut found: BTreeMap<Named, Vec<Element>> = BTreeMap::new();
    for &subnet in &wanted.addresses {
        let pod = subnet.address();
        let group = Group::of(wanted, pod.is_ipv4());
        let mut add = |kind, key, data| {
            let element = Element { key, data, comment: comment.clone(), ..Element::default() };
            let suffix = if matches!(kind, Purpose::Ports | Purpose::PortsAt) { &*group.suffix } else { "" };
            let named = match kind {
                Purpose::Hairpin => Named::hairpin(subnet),
                kind => Named::new(kind, suffix, pod.is_ipv4()),
            };
            found.entry(named).or_default().push(element);
        };
        let address = set::address_key(pod);
        for mapping in wanted.mappings_of(pod) {
            let PortMapping { host_port, container_port, protocol, .. } = mapping;
            let (protocol, port) = (&[protocol.number()][..], &host_port.to_be_bytes()[..]);
            let data = set::key(&[&address, &container_port.to_be_bytes()]);
            match mapping.only_address() {
                None => add(Purpose::Ports, set::key(&[protocol, port]), data),
                Some(host) => {
                    add(Purpose::PortsAt, set::key(&[&set::address_key(host), protocol, port]), data);
                }
            }
            let key = set::key(&[&address, protocol, port]);
            match wanted.source_nat {
                SourceNat::Hairpin => add(Purpose::Hairpin, key, Vec::new()),
                SourceNat::All => add(Purpose::FromAll, key, Vec::new()),
                SourceNat::None => {}
            }
        }
        if wanted.source_nat == SourceNat::Hairpin && pod.is_ipv4() {
            add(Purpose::FromLocalhost, address, Vec::new());
        }
    }
    // Two addresses of the host may lead to one port of the pod.
    for elements in found.values_mut() {
        elements.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        elements.dedup_by(|one, other| one.key == other.key);
    }
    found
}

/// Makes what is missing. Ports that were not claimed until now have no elements, and need not be asked for.
pub(super) fn ensure(nft: &mut Nft, wanted: &PortMappings, claimed: Ensured) -> Result<Ensured> {
    let mut are_new = claimed == Ensured::Created;
    let groups = Group::all_of(wanted);
    let ensured = repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        if !lacking(nft, &groups, wanted)?.is_empty() {
            // If anything changes meanwhile, the transaction fails as a whole: a rule would be there twice.
            transaction.only_in(nft.generation()?);
            let lacking = lacking(nft, &groups, wanted)?;
            add_skeleton(nft, &mut transaction, &groups, wanted, lacking)?;
        }
        for (named, elements) in elements(wanted) {
            let set = named.set();
            let missing = if are_new { elements } else { replaced(nft, &mut transaction, set, elements)? };
            transaction.create_elements(set, &missing);
        }
        // If something is there all the same, it is asked for.
        are_new = false;
        let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
        nft.commit(transaction)?;
        Ok(ensured)
    })?;
    for group in groups.iter().filter(|group| !group.conditions.is_empty()) {
        add_conditions(nft, group)?;
    }
    Ok(ensured)
}

/// Those of some elements that are not there. What is there in their place is deleted: a port is claimed, and the IPAM
/// says whose an address is.
fn replaced(
    nft: &mut Nft,
    transaction: &mut Transaction,
    set: Set,
    elements: Vec<Element>,
) -> Result<Vec<Element>> {
    let found = nft.elements_of(set, &keys(&elements))?;
    let mut missing = Vec::new();
    for (wanted, found) in elements.into_iter().zip(found) {
        if found.as_ref().is_some_and(|found| *found == wanted || is_shared(found, &wanted)) {
            continue;
        }
        if let Some(found) = found {
            transaction.delete_element(set, &found.key);
        }
        missing.push(wanted);
    }
    Ok(missing)
}

/// Whether another interface of the same container has what one should have. It was there first, and keeps it.
fn is_shared(found: &Element, wanted: &Element) -> bool {
    let owner = |element: &Element| element.comment.clone().map(Owner::from_comment);
    match (owner(found), owner(wanted)) {
        (Some(one), Some(other)) => one != other && one.shares_container_with(&other),
        _ => false,
    }
}

fn keys(elements: &[Element]) -> Vec<Vec<u8>> {
    elements.iter().map(|element| element.key.clone()).collect()
}

/// A chain that does not have all of its rules, and those that it does not have.
struct Lacking {
    chain: String,
    base: Option<Base>,
    rules: Vec<Vec<Expr>>,
}

fn lacking(nft: &mut Nft, groups: &[Group], wanted: &PortMappings) -> Result<Vec<Lacking>> {
    let rules_for = |sets: &[Named]| sets.iter().map(Named::rule).collect::<Vec<_>>();
    let mut wanted = vec![(POSTROUTING.name.to_owned(), Some(EXIT), rules_for(&exits(wanted)))];
    for group in groups {
        wanted.push((group.chain_name(), None, rules_for(&group.maps())));
        if group.conditions.is_empty() {
            let entries =
                ENTRIES.map(|(chain, base)| (chain.name.to_owned(), Some(base), vec![group.entry()]));
            wanted.extend(entries);
        }
    }
    let mut lacking = Vec::new();
    for (chain, base, mut rules) in wanted {
        let found = nft.rules(TABLE.chain(&chain))?;
        rules.retain(|rule| !found.iter().any(|it| it.consists_of(rule)));
        if !rules.is_empty() {
            lacking.push(Lacking { chain, base, rules });
        }
    }
    Ok(lacking)
}

fn add_skeleton(
    nft: &mut Nft,
    transaction: &mut Transaction,
    groups: &[Group],
    wanted: &PortMappings,
    lacking: Vec<Lacking>,
) -> Result<()> {
    if nft.rules(PREROUTING)?.is_empty() {
        transaction.begin_anew();
    }
    transaction.add_table(TABLE);
    let maps: Vec<Named> = groups.iter().flat_map(Group::maps).collect();
    for named in maps.iter().chain(&exits(wanted)) {
        transaction.add_set(named.set());
    }
    for group in groups {
        transaction.add_chain(TABLE.chain(&group.chain_name()));
    }
    for (chain, base) in ENTRIES {
        transaction.add_base_chain(chain, base);
    }
    for Lacking { chain, base, rules } in lacking {
        let chain = TABLE.chain(&chain);
        if let Some(base) = base {
            transaction.add_base_chain(chain, base);
        }
        for rule in rules {
            transaction.add_rule(chain, rule, None);
        }
    }
    Ok(())
}

/// The entries that do not lead to a group's chain.
fn closed_entries(nft: &mut Nft, group: &Group) -> Result<Vec<Chain<'static>>> {
    let mut closed = Vec::new();
    for (chain, _) in ENTRIES {
        if !nft.rules(chain)?.iter().any(|rule| rule.leads_to(&group.chain_name())) {
            closed.push(chain);
        }
    }
    Ok(closed)
}

/// Has `nft` write the rules that lead to a group's chain, if they are not there.
fn add_conditions(nft: &mut Nft, group: &Group) -> Result<()> {
    let closed = closed_entries(nft, group)?;
    if closed.is_empty() {
        return Ok(());
    }
    let script: String = closed.into_iter().map(|chain| group.entry_in_words(chain)).collect();
    command::execute(&script)
}

pub(super) fn observe(nft: &mut Nft, wanted: &PortMappings) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let groups = Group::all_of(wanted);
    for Lacking { chain, rules, .. } in lacking(nft, &groups, wanted)? {
        let which = if rules.len() == 1 { "a rule".to_owned() } else { format!("{} rules", rules.len()) };
        findings.push(Finding::missing(format!("{which} of {}", TABLE.chain(&chain))));
    }
    for group in groups.iter().filter(|group| !group.conditions.is_empty()) {
        for chain in closed_entries(nft, group)? {
            findings
                .push(Finding::missing(format!("the rule of {chain} that leads to {}", group.chain_name())));
        }
    }
    for (named, elements) in elements(wanted) {
        let set = named.set();
        let found = nft.elements_of(set, &keys(&elements))?;
        for (wanted, found) in elements.iter().zip(found) {
            let object = || format!("element {} of {set}", set::words(set.key, &wanted.key));
            let whose = |element: &Element| element.comment.clone().unwrap_or_else(|| "nobody's".to_owned());
            match (found, set.carries) {
                (None, _) => findings.push(Finding::missing(object())),
                (Some(found), _) if found == *wanted || is_shared(&found, wanted) => {}
                (Some(found), Carries::Data(parts)) if found.comment == wanted.comment => {
                    let to = |element: &Element| set::words(parts, &element.data);
                    findings.push(Finding::differs(object(), to(wanted), to(&found)));
                }
                (Some(found), _) => findings.push(Finding::differs(object(), whose(wanted), whose(&found))),
            }
        }
    }
    Ok(findings)
}

pub(super) fn remove(nft: &mut Nft, unwanted: &PortMappings) -> Result<()> {
    let owner = Owner::new(&unwanted.attachment);
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for (named, elements) in elements(unwanted) {
            let set = named.set();
            let found = nft.elements_of(set, &keys(&elements))?.into_iter().flatten();
            // Somebody else may have the port, or the address, by now.
            let ours = found.filter(|it| it.comment.as_deref().is_none_or(|text| text == owner.as_str()));
            let keys: Vec<Vec<u8>> = ours.map(|element| element.key).collect();
            transaction.delete_elements(set, &keys);
        }
        nft.commit(transaction)
    })
}

/// Removes the sets and rules of subnets in which nobody has ports.
pub(super) fn remove_empty(nft: &mut Nft, networks: &[Prefix]) -> Result<()> {
    let subnets: Vec<Named> = networks.iter().copied().map(Named::hairpin).collect();
    let sets: Vec<_> = subnets.iter().map(|named| (named.set(), named.rule())).collect();
    nft.remove_empty(POSTROUTING, &sets)
}

/// Removes all elements of an owner, whatever they are; goes through all sets of ports.
pub(super) fn remove_all_of(nft: &mut Nft, owner: &Owner) -> Result<()> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for named in all_sets(nft)? {
            let set = named.set();
            let found = nft.elements(set)?.into_iter();
            let ours = found.filter(|element| element.comment.as_deref() == Some(owner.as_str()));
            let keys: Vec<Vec<u8>> = ours.map(|element| element.key).collect();
            transaction.delete_elements(set, &keys);
        }
        nft.commit(transaction)
    })
}

/// Removes the elements of a network's attachments that are not kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> anyhow::Result<()> {
    let mut owners = Vec::new();
    for named in all_sets(nft)? {
        let comments = nft.elements(named.set())?.into_iter().filter_map(|element| element.comment);
        owners.extend(comments.map(Owner::from_comment).filter(|owner| owner.is_on(network)));
    }
    owners.sort();
    owners.dedup();
    for owner in strays(owners, kept)? {
        remove_all_of(nft, &owner)?;
    }
    Ok(())
}

/// All sets and maps of ports that are there.
fn all_sets(nft: &mut Nft) -> Result<Vec<Named>> {
    let names = nft.set_names(TABLE)?;
    let shared = shared_exits().into_iter().filter(|exit| names.contains(&exit.name)).collect::<Vec<_>>();
    Ok(shared.into_iter().chain(names.iter().filter_map(|name| Named::of_name(name))).collect())
}
