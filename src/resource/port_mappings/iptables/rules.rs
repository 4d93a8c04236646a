//! The rules of an attachment, and those that all share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;

use super::super::{Marking, PortMappings, SourceNat, any_of};
use crate::net::iptables::rule::PORTS_MAX;
use crate::net::iptables::{AddressMatch, Match, Protocol, Rule, Target, Transport, Variant, installed};
use crate::net::nft::{Base, Chain, Hook, Kind};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, Prefix};

/// The chains that all containers share. Their names are frozen: people and other programs know them.
pub(super) const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
pub(super) const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// What older versions of the reference had beside it.
pub(super) const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";

/// What the names of containers' chains begin with, now and in older versions.
pub(super) const CHAIN_PREFIX: &str = "CNI-DN-";
pub(super) const OLD_CHAIN_PREFIX: &str = "CNI-SN-";

pub(super) const PREROUTING: &str = "PREROUTING";
const OUTPUT: &str = "OUTPUT";
pub(super) const POSTROUTING: &str = "POSTROUTING";

/// Where a rule goes that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Front,
    Back,
}

/// A rule that all containers share.
pub(super) struct Shared {
    pub(super) chain: &'static str,
    /// What `iptables-nft` makes of a built-in chain when it finds none.
    pub(super) base: Option<Base>,
    pub(super) rule: Rule,
    pub(super) place: Place,
}

/// The rules of an attachment in one protocol's `nat` table.
pub(super) struct Rules {
    pub(super) protocol: Protocol,
    pub(super) chain: String,
    /// In the container's chain: first those that mark, then the one that translates, for each port.
    pub(super) own: Vec<Rule>,
    /// In the chain of all containers: what leads there.
    pub(super) entries: Vec<Rule>,
    pub(super) shared: Vec<Shared>,
    /// A chain of somebody else's that must be there.
    pub(super) foreign: Option<String>,
}

impl Rules {
    /// `None` without an address of that protocol.
    pub(super) fn new(protocol: Protocol, wanted: &PortMappings) -> Option<Self> {
        let pod = wanted.addresses.iter().find(|prefix| prefix.is_ipv4() == (protocol == Protocol::Ipv4))?;
        let chain = chain_name(&wanted.attachment);
        let foreign = match &wanted.marking {
            Marking::Chain(name) if wanted.source_nat != SourceNat::None => Some(name.clone()),
            _ => None,
        };
        Some(Self {
            protocol,
            own: own_rules(wanted, *pod),
            entries: entries(wanted, &chain, pod.address()),
            shared: shared_rules(wanted),
            chain,
            foreign,
        })
    }

    pub(super) fn native_chain(&self) -> Chain<'_> {
        self.protocol.nat().chain(&self.chain)
    }

    /// Whether only the command understands some of it.
    pub(super) fn has_conditions(&self) -> bool {
        self.entries.iter().any(|rule| !rule.conditions.is_empty())
    }

    /// The variant to write to, and whether its command must do so.
    pub(super) fn variant(&self) -> (Variant, bool) {
        // Without a command, nobody will look with it either.
        let variant = installed(self.protocol).unwrap_or(Variant::Nft);
        (variant, variant == Variant::Legacy || self.has_conditions())
    }
}

fn shared_rules(wanted: &PortMappings) -> Vec<Shared> {
    let base = |hook, priority| Some(Base { kind: Kind::Nat, hook, priority });
    let to_ports =
        Rule { matches: vec![Match::LocalDestination], ..Rule::to(Target::Chain(DNAT.to_owned())) };
    let mut shared = Vec::new();
    if let (Marking::Bit(bit), SourceNat::Hairpin | SourceNat::All) = (&wanted.marking, wanted.source_nat) {
        let commented = |text: &str, target| Rule { comment: Some(text.to_owned()), ..Rule::to(target) };
        shared.push(Shared {
            chain: SETMARK,
            base: None,
            rule: commented("CNI portfwd masquerade mark", Target::Mark(*bit)),
            place: Place::Back,
        });
        shared.push(Shared {
            chain: MASQ,
            base: None,
            rule: Rule { matches: vec![Match::Mark(*bit)], ..Rule::to(Target::Masquerade) },
            place: Place::Back,
        });
        shared.push(Shared {
            chain: POSTROUTING,
            base: base(Hook::Postrouting, 100),
            rule: commented("CNI portfwd requiring masquerade", Target::Chain(MASQ.to_owned())),
            place: Place::Front,
        });
    }
    for (chain, hook) in [(PREROUTING, Hook::Prerouting), (OUTPUT, Hook::Output)] {
        // Behind what is there: a service that has the port comes first (CVE-2019-9946).
        shared.push(Shared { chain, base: base(hook, -100), rule: to_ports.clone(), place: Place::Back });
    }
    shared
}

fn own_rules(wanted: &PortMappings, pod: Prefix) -> Vec<Rule> {
    let setmark = match &wanted.marking {
        Marking::Bit(_) => SETMARK.to_owned(),
        Marking::Chain(name) => name.clone(),
    };
    let mut sources: Vec<IpNetwork> = Vec::new();
    match wanted.source_nat {
        SourceNat::None => {}
        SourceNat::All => sources.extend(IpNetwork::new(any_of(pod.address()), 0)),
        SourceNat::Hairpin => {
            sources.push(super::super::network(pod));
            if pod.is_ipv4() {
                sources.push(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
            }
        }
    }
    let mut rules: Vec<Rule> = Vec::new();
    for mapping in wanted.mappings_of(pod.address()) {
        let to = SocketAddr::new(pod.address(), mapping.container_port);
        let rule = |target| Rule {
            destination: mapping.only_address().map(|address| AddressMatch::within(address.into())),
            transport: Some(mapping.protocol),
            matches: vec![Match::Port(mapping.host_port)],
            ..Rule::to(target)
        };
        let marks = sources.iter().map(|source| Rule {
            source: Some(AddressMatch::within(*source)),
            ..rule(Target::Chain(setmark.clone()))
        });
        for rule in marks.chain([rule(Target::Dnat(to))]) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// What leads to a container's chain: all of its ports, those of the other protocol too, fifteen to a rule.
fn entries(wanted: &PortMappings, chain: &str, pod: IpAddr) -> Vec<Rule> {
    let Attachment { network, container_id, .. } = &wanted.attachment;
    let conditions = wanted.conditions_of(pod);
    let mut rules = Vec::new();
    for transport in Transport::ALL {
        let mut ports: Vec<u16> = Vec::new();
        let mappings = wanted.mappings.iter().filter(|mapping| mapping.protocol == transport);
        ports.extend(mappings.map(|mapping| mapping.host_port));
        rules.extend(ports.chunks(PORTS_MAX).map(|ports| Rule {
            transport: Some(transport),
            comment: Some(comment(network, container_id)),
            matches: vec![Match::Ports(ports.to_vec())],
            conditions: conditions.to_vec(),
            ..Rule::to(Target::Chain(chain.to_owned()))
        }));
    }
    rules
}

pub(super) fn chain_name(attachment: &Attachment) -> String {
    hashed(CHAIN_PREFIX, &attachment.network, &attachment.container_id)
}

pub(super) fn hashed(prefix: &str, network: &str, container_id: &str) -> String {
    format!("{prefix}{}", sha512_hex(&[network, container_id], 21))
}

pub(super) fn comment(network: &str, container_id: &str) -> String {
    format!("dnat name: {network:?} id: {container_id:?}")
}

/// The container in a comment on a network, if it is the one whose chain this is.
pub(super) fn container_in(text: &str, network: &str, chain: &str) -> Option<String> {
    let (_, rest) = text.split_once(" id: \"")?;
    let id = rest.strip_suffix('"')?;
    (text == comment(network, id) && chain == hashed(CHAIN_PREFIX, network, id)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_reference() {
        let id = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
        let attachment =
            Attachment { network: "test".into(), container_id: id.into(), ifname: "eth0".into() };
        assert_eq!(chain_name(&attachment), "CNI-DN-67e92b96e692a494b6b85");
        let text = comment("test", id);
        assert_eq!(container_in(&text, "test", &chain_name(&attachment)).as_deref(), Some(id));
        assert_eq!(container_in(&text, "tes", &chain_name(&attachment)), None);
        assert_eq!(container_in(&text, "test", "CNI-DN-0"), None);
    }
}
