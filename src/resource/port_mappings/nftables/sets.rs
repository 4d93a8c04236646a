//! The chains, sets and maps of ports, and what a pod has in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::super::super::owner::Owner;
use super::super::{PortMapping, PortMappings, SourceNat};
use crate::net::nft::expr::{self, MetaKey, Operator, Register, Side};
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Family, Hook, KeyType, Kind, Set, Table, Verdict, set,
};
use crate::spec::Prefix;
use crate::spec::digest::sha512_hex;

pub(super) const TABLE: Table<'static> = Table::new(Family::Inet, "bridgehead");
pub(super) const PREROUTING: Chain<'static> = TABLE.chain("hostports_prerouting");
const OUTPUT: Chain<'static> = TABLE.chain("hostports_output");
pub(super) const POSTROUTING: Chain<'static> = TABLE.chain("hostports_postrouting");

/// What the names of chains and maps of ports begin with, and those of the sets of neighbours.
const PREFIX: &str = "hostports";
const HAIRPIN: &str = "hairpin_";

pub(super) const ENTRIES: [(Chain<'static>, Base); 2] = [
    (PREROUTING, Base { kind: Kind::Nat, hook: Hook::Prerouting, priority: -99 }),
    (OUTPUT, Base { kind: Kind::Nat, hook: Hook::Output, priority: -99 }),
];
pub(super) const EXIT: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A set or map whose name is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) kind: Purpose,
    pub(super) is_ipv4: bool,
    /// Of the sets of neighbours, whose.
    pub(super) subnet: Option<IpNetwork>,
}

/// What the sets and maps are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Purpose {
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
    pub(super) fn new(kind: Purpose, suffix: &str, is_ipv4: bool) -> Self {
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
    pub(super) fn hairpin(subnet: Prefix) -> Self {
        let network = subnet.network();
        // `nft` takes no colon in a name.
        let name = format!("{HAIRPIN}{network}").replace(':', "-");
        Self {
            name,
            kind: Purpose::Hairpin,
            is_ipv4: subnet.is_ipv4(),
            subnet: Some(super::super::network(network)),
        }
    }

    /// The set or map of a name; `None` for one that is for something else.
    pub(super) fn of_name(name: &str) -> Option<Self> {
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

    pub(super) fn set(&self) -> Set<'_> {
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

    pub(super) fn example(&self) -> IpAddr {
        if self.is_ipv4 { V4 } else { V6 }
    }

    /// The rule that looks into it.
    pub(super) fn rule(&self) -> Vec<Expr> {
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
pub(super) struct Group {
    /// What the names end with.
    pub(super) suffix: String,
    /// What must hold for a packet beside that it is to this host, in the words of `nft`.
    pub(super) conditions: Vec<String>,
    /// Whether it has ports of IPv4, and of IPv6.
    pub(super) families: Vec<bool>,
}

impl Group {
    /// The group of a pod's ports of one family.
    pub(super) fn of(wanted: &PortMappings, is_ipv4: bool) -> Self {
        let conditions = if is_ipv4 { &wanted.conditions_v4 } else { &wanted.conditions_v6 };
        if conditions.is_empty() {
            return Self::common();
        }
        let suffix = format!("_{}", sha512_hex(&[&conditions.join(" ")], 8));
        Self { suffix, conditions: conditions.clone(), families: vec![is_ipv4] }
    }

    /// Those without conditions.
    pub(super) fn common() -> Self {
        Self { suffix: String::new(), conditions: Vec::new(), families: vec![true, false] }
    }

    /// All that a pod has ports in.
    pub(super) fn all_of(wanted: &PortMappings) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for prefix in &wanted.addresses {
            let group = Self::of(wanted, prefix.is_ipv4());
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups
    }

    pub(super) fn chain_name(&self) -> String {
        format!("{PREFIX}{}", self.suffix)
    }

    pub(super) fn maps(&self) -> Vec<Named> {
        let of_family = |is_ipv4: &bool| {
            [Purpose::PortsAt, Purpose::Ports].map(|kind| Named::new(kind, &self.suffix, *is_ipv4))
        };
        self.families.iter().flat_map(of_family).collect()
    }

    /// `fib daddr type local jump hostports`; only where there are no conditions.
    pub(super) fn entry(&self) -> Vec<Expr> {
        let mut rule = expr::destination_is_local().to_vec();
        rule.push(expr::verdict(&Verdict::Jump(self.chain_name())));
        rule
    }

    /// The same in words, for a chain.
    pub(super) fn entry_in_words(&self, chain: Chain) -> String {
        let family = if self.families == [true] { "ipv4" } else { "ipv6" };
        let Table { family: of, name } = chain.table;
        let (of, conditions) = (of.name(), self.conditions.join(" "));
        let rule =
            format!("meta nfproto {family} fib daddr type local {conditions} jump {}", self.chain_name());
        format!("add rule {of} {name} {} {rule}\n", chain.name)
    }
}

/// The sets of those who are masqueraded, whatever their subnet.
pub(super) fn shared_exits() -> [Named; 3] {
    [(Purpose::FromLocalhost, true), (Purpose::FromAll, true), (Purpose::FromAll, false)]
        .map(|(kind, is_ipv4)| Named::new(kind, "", is_ipv4))
}

/// All sets of those who are masqueraded that a pod may be in.
pub(super) fn exits(wanted: &PortMappings) -> Vec<Named> {
    let mut exits = Vec::from(shared_exits());
    if wanted.source_nat == SourceNat::Hairpin {
        exits.extend(wanted.addresses.iter().copied().map(Named::hairpin));
    }
    exits
}

/// The elements of a pod, by the set that they are in.
pub(super) fn elements(wanted: &PortMappings) -> BTreeMap<Named, Vec<Element>> {
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
