//! Masquerading in a table of our own. A pod is one element per address:
//!
//! ```text
//! table inet bridgehead {
//!     set pods_10.1.0.0/16 {
//!         type ipv4_addr
//!         elements = { 10.1.0.5 comment "net/id/eth0" }
//!     }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         ip saddr @pods_10.1.0.0/16 ip daddr != 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade
//!     }
//! }
//! ```
//!
//! The sets are hash tables without verdicts, so neither a connection nor an ADD or DEL costs more with more pods. A
//! subnet's set and rule are made together, with its first pod, and stay, unless somebody says that the network is gone.

use super::super::owner::{Owner, strays};
use super::super::{Ensured, Finding, Kept, owned};
use super::multicast;
use crate::net::Result;
use crate::net::nft::expr::{self, Operator, Side};
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Family, Hook, KeyType, Kind, Nft, Rule, Set, Table, Transaction,
    repeat_if_overtaken, set,
};
use crate::spec::Prefix;

const TABLE: Table<'static> = Table::new(Family::Inet, "bridgehead");
const ENTRY: Chain<'static> = TABLE.chain("postrouting");
const BASE: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };

/// What the names of all sets of pods begin with.
const SET_PREFIX: &str = "pods_";

/// A subnet as it stands in the table: a set of the pods in it, and a rule.
struct Subnet {
    network: Prefix,
    set_name: String,
}

impl Subnet {
    fn of(source: Prefix) -> Self {
        let network = source.network();
        // `nft` takes no colon in a name. The longest has 48 bytes; the kernel takes 255.
        Self { network, set_name: format!("{SET_PREFIX}{network}").replace(':', "-") }
    }

    /// The subnet that a set is for; `None` for a set that is for something else.
    fn of_set(set_name: String) -> Option<Self> {
        let network = set_name.strip_prefix(SET_PREFIX)?.replace('-', ":").parse().ok()?;
        Some(Self { network, set_name })
    }

    fn set(&self) -> Set<'_> {
        let key: &[KeyType] =
            if self.network.is_ipv4() { &[KeyType::Ipv4Address] } else { &[KeyType::Ipv6Address] };
        Set { table: TABLE, name: &self.set_name, key, carries: Carries::Nothing }
    }

    /// `ip saddr @<set> ip daddr != <network> ip daddr != 224.0.0.0/4 masquerade`
    fn rule(&self) -> Vec<Expr> {
        let address = self.network.address();
        let mut rule = expr::family_is(address).to_vec();
        rule.extend([expr::load_address(Side::Source, address), expr::lookup(&self.set_name)]);
        for spared in [self.network, multicast(address)] {
            rule.extend(expr::address_in(Side::Destination, Operator::NotEqual, super::network(spared)));
        }
        rule.push(expr::masquerade());
        rule
    }
}

fn element(owner: &Owner, source: Prefix) -> Element {
    owned::element(owner, set::address_key(source.address()))
}

/// Asks for the elements, and reads the chain: it has a rule per subnet and none per pod. So it is noticed where
/// somebody emptied it (`nft flush chain`), and the rule is made again.
pub(super) fn ensure(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<Ensured> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        prepare_subnets(nft, &mut transaction, sources)?;
        for &source in sources {
            let subnet = Subnet::of(source);
            let wanted = element(owner, source);
            match nft.element(subnet.set(), &wanted.key)? {
                Some(found) if found == wanted => continue,
                // An address has one owner at a time, and the IPAM says that it is this one.
                Some(_) => transaction.delete_element(subnet.set(), &wanted.key),
                None => {}
            }
            transaction.add_element(subnet.set(), &wanted);
        }
        let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
        nft.commit(transaction)?;
        Ok(ensured)
    })
}

/// Makes the sets and rules of the sources' subnets that are not there. What has its rule has its set, since a rule
/// keeps the set that it looks into.
fn prepare_subnets(nft: &mut Nft, transaction: &mut Transaction, sources: &[Prefix]) -> Result<()> {
    let rules = nft.rules(ENTRY)?;
    let lacking = lacking_a_rule(&rules, sources);
    if rules.is_empty() && !lacking.is_empty() {
        transaction.begin_anew();
    }
    let mut has_sets = false;
    for subnet in &lacking {
        has_sets |= nft.has_set(subnet.set())?;
    }
    if !has_sets {
        // If somebody else makes the set meanwhile, the transaction fails as a whole: a rule would be there twice.
        for subnet in &lacking {
            transaction.add_table(TABLE);
            // create set inet bridgehead pods_10.1.0.0/16 { type ipv4_addr; }
            transaction.create_set(subnet.set());
            add_rule(transaction, subnet);
        }
        return Ok(());
    }
    // Somebody took the rule and left the set, which then does not keep two from making the rule at once.
    transaction.only_in(nft.generation()?);
    for subnet in lacking_a_rule(&nft.rules(ENTRY)?, sources) {
        transaction.add_table(TABLE);
        transaction.add_set(subnet.set());
        add_rule(transaction, &subnet);
    }
    Ok(())
}

/// The subnets of sources, each once, that there is no rule for.
fn lacking_a_rule(rules: &[Rule], sources: &[Prefix]) -> Vec<Subnet> {
    let mut lacking: Vec<Subnet> = Vec::new();
    for subnet in sources.iter().copied().map(Subnet::of) {
        let wanted = subnet.rule();
        if !lacking.iter().any(|other| other.network == subnet.network)
            && !rules.iter().any(|rule| rule.consists_of(&wanted))
        {
            lacking.push(subnet);
        }
    }
    lacking
}

fn add_rule(transaction: &mut Transaction, subnet: &Subnet) {
    // add chain inet bridgehead postrouting { type nat hook postrouting priority srcnat; policy accept; }
    transaction.add_base_chain(ENTRY, BASE);
    // add rule inet bridgehead postrouting ip saddr @pods_10.1.0.0/16 ...
    transaction.add_rule(ENTRY, subnet.rule(), None);
}

pub(super) fn observe(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if sources.is_empty() {
        return Ok(findings);
    }
    let rules = nft.rules(ENTRY)?;
    if rules.is_empty() && !nft.has_chain(ENTRY)? {
        findings.push(Finding::missing(ENTRY.to_string()));
    }
    for &source in sources {
        let subnet = Subnet::of(source);
        let set = subnet.set();
        let wanted_rule = subnet.rule();
        if !rules.iter().any(|rule| rule.consists_of(&wanted_rule)) {
            let finding = Finding::missing(format!("rule for {set} in {ENTRY}"));
            // Two addresses may be of one subnet.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        let wanted = [(set, element(owner, source))];
        findings.extend(owned::observe(nft, &wanted, |_| source.address().to_string())?);
    }
    Ok(findings)
}

pub(super) fn remove(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<()> {
    let subnets: Vec<(Subnet, Element)> =
        sources.iter().map(|source| (Subnet::of(*source), element(owner, *source))).collect();
    let elements: Vec<_> = subnets.iter().map(|(subnet, element)| (subnet.set(), element.clone())).collect();
    owned::remove(nft, owner, &elements)
}

/// Removes the sets and rules of subnets in which nobody is.
pub(super) fn remove_empty(nft: &mut Nft, networks: &[Prefix]) -> Result<()> {
    let subnets: Vec<Subnet> = networks.iter().copied().map(Subnet::of).collect();
    let sets: Vec<_> = subnets.iter().map(|subnet| (subnet.set(), subnet.rule())).collect();
    nft.remove_empty(ENTRY, &sets)
}

/// Removes whatever an owner has; goes through the sets of all subnets.
pub(super) fn remove_all_of(nft: &mut Nft, owner: &Owner) -> Result<()> {
    let subnets = subnets(nft)?;
    owned::remove_all_of(nft, &sets_of(&subnets), owner)
}

/// Removes the elements of a network's attachments that are not kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> anyhow::Result<()> {
    for owner in strays(owners(nft, network)?, kept)? {
        remove_all_of(nft, &owner)?;
    }
    Ok(())
}

/// The owners on a network that have elements.
pub(super) fn owners(nft: &mut Nft, network: &str) -> Result<Vec<Owner>> {
    let subnets = subnets(nft)?;
    owned::owners(nft, &sets_of(&subnets), network)
}

fn sets_of(subnets: &[Subnet]) -> Vec<Set<'_>> {
    subnets.iter().map(Subnet::set).collect()
}

/// All subnets of the table.
fn subnets(nft: &mut Nft) -> Result<Vec<Subnet>> {
    Ok(nft.set_names(TABLE)?.into_iter().filter_map(Subnet::of_set).collect())
}
