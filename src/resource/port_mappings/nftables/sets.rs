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

/// Which addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Addresses {
    V4,
    V6,
}

impl Addresses {
    fn like(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn example(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// A set or map whose name is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) kind: Purpose,
    of: Addresses,
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
    fn new(kind: Purpose, suffix: &str, of: Addresses) -> Self {
        let family = match of {
            Addresses::V4 => "ip",
            Addresses::V6 => "ip6",
        };
        let name = match kind {
            Purpose::Ports => format!("{PREFIX}_{family}{suffix}"),
            Purpose::PortsAt => format!("{PREFIX}_at_{family}{suffix}"),
            Purpose::Hairpin => format!("{HAIRPIN}{family}"),
            Purpose::FromLocalhost => format!("from_localhost_{family}"),
            Purpose::FromAll => format!("from_all_{family}"),
        };
        Self { name, kind, of, subnet: None }
    }

    /// The set of those whose neighbours are in a subnet.
    pub(super) fn hairpin(subnet: Prefix) -> Self {
        let network = subnet.network();
        // `nft` takes no colon in a name.
        let name = format!("{HAIRPIN}{network}").replace(':', "-");
        Self {
            name,
            kind: Purpose::Hairpin,
            of: Addresses::like(network.address()),
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
        let of = match rest.split('_').next()? {
            "ip" => Addresses::V4,
            "ip6" => Addresses::V6,
            _ => return None,
        };
        Some(Self { name: name.to_owned(), kind, of, subnet: None })
    }

    pub(super) fn set(&self) -> Set<'_> {
        use KeyType::{InetProtocol, InetService, Ipv4Address, Ipv6Address};
        let (key, data): (&[KeyType], &'static [KeyType]) = match (self.kind, self.of) {
            (Purpose::Ports, Addresses::V4) => (&[InetProtocol, InetService], &[Ipv4Address, InetService]),
            (Purpose::Ports, Addresses::V6) => (&[InetProtocol, InetService], &[Ipv6Address, InetService]),
            (Purpose::PortsAt, Addresses::V4) => {
                (&[Ipv4Address, InetProtocol, InetService], &[Ipv4Address, InetService])
            }
            (Purpose::PortsAt, Addresses::V6) => {
                (&[Ipv6Address, InetProtocol, InetService], &[Ipv6Address, InetService])
            }
            (Purpose::FromLocalhost, _) => (&[Ipv4Address], &[]),
            (Purpose::Hairpin | Purpose::FromAll, Addresses::V4) => {
                (&[Ipv4Address, InetProtocol, InetService], &[])
            }
            (Purpose::Hairpin | Purpose::FromAll, Addresses::V6) => {
                (&[Ipv6Address, InetProtocol, InetService], &[])
            }
        };
        let carries = if data.is_empty() { Carries::Nothing } else { Carries::Data(data) };
        Set { table: TABLE, name: &self.name, key, carries }
    }

    pub(super) fn example(&self) -> IpAddr {
        self.of.example()
    }

    /// The rule that looks into it.
    pub(super) fn rule(&self) -> Vec<Expr> {
        let example = self.example();
        let mut rule = expr::family_is(example).to_vec();
        let (offset, len) = expr::address_field(Side::Destination, example);
        let load_destination = |register| expr::load_network_header(offset, len, register);
        // The registers behind an address, of four bytes each.
        let after = match self.of {
            Addresses::V4 => [Register::Reg32_01, Register::Reg32_02],
            Addresses::V6 => [Register::Reg2, Register::Reg32_05],
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
    /// Of which addresses it has ports.
    of: Vec<Addresses>,
}

impl Group {
    /// The group of the ports that lead to an address of a pod.
    fn of(wanted: &PortMappings, pod: IpAddr) -> Self {
        let conditions = wanted.conditions_of(pod);
        if conditions.is_empty() {
            return Self::common();
        }
        let suffix = format!("_{}", sha512_hex(&[&conditions.join(" ")], 8));
        Self { suffix, conditions: conditions.to_vec(), of: vec![Addresses::like(pod)] }
    }

    /// Those without conditions.
    pub(super) fn common() -> Self {
        Self { suffix: String::new(), conditions: Vec::new(), of: vec![Addresses::V4, Addresses::V6] }
    }

    /// All that a pod has ports in.
    pub(super) fn all_of(wanted: &PortMappings) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for prefix in &wanted.addresses {
            let group = Self::of(wanted, prefix.address());
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
        let maps = |of: &Addresses| {
            [Purpose::PortsAt, Purpose::Ports].map(|kind| Named::new(kind, &self.suffix, *of))
        };
        self.of.iter().flat_map(maps).collect()
    }

    /// `fib daddr type local jump hostports`; only where there are no conditions.
    pub(super) fn entry(&self) -> Vec<Expr> {
        let mut rule = expr::destination_is_local().to_vec();
        rule.push(expr::verdict(&Verdict::Jump(self.chain_name())));
        rule
    }

    /// The same in words, for a chain.
    pub(super) fn entry_in_words(&self, chain: Chain) -> String {
        let family = if self.of == [Addresses::V4] { "ipv4" } else { "ipv6" };
        let Table { family: of, name } = chain.table;
        let (of, conditions) = (of.name(), self.conditions.join(" "));
        let rule =
            format!("meta nfproto {family} fib daddr type local {conditions} jump {}", self.chain_name());
        format!("add rule {of} {name} {} {rule}\n", chain.name)
    }
}

/// The sets of those who are masqueraded, whatever their subnet.
pub(super) fn shared_exits() -> [Named; 3] {
    use Addresses::{V4, V6};
    [(Purpose::FromLocalhost, V4), (Purpose::FromAll, V4), (Purpose::FromAll, V6)]
        .map(|(kind, of)| Named::new(kind, "", of))
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
        let group = Group::of(wanted, pod);
        let mut add = |kind, key, data| {
            let element = Element { key, data, comment: comment.clone(), ..Element::default() };
            let suffix = if matches!(kind, Purpose::Ports | Purpose::PortsAt) { &*group.suffix } else { "" };
            let named = match kind {
                Purpose::Hairpin => Named::hairpin(subnet),
                kind => Named::new(kind, suffix, Addresses::like(pod)),
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
