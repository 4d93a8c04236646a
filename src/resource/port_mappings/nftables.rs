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

mod sets;

use super::super::owner::Owner;
use super::super::{Ensured, Finding, Kept, owned};
use super::PortMappings;
use crate::net::Result;
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Nft, Set, Transaction, command, repeat_if_overtaken, set,
};
use crate::spec::Prefix;
use sets::{ENTRIES, EXIT, Group, Named, POSTROUTING, PREROUTING, TABLE, elements, exits, shared_exits};

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
            match (found, set.carries) {
                (None, _) => findings.push(Finding::missing(object())),
                (Some(found), _) if found == *wanted || is_shared(&found, wanted) => {}
                (Some(found), Carries::Data(parts)) if found.comment == wanted.comment => {
                    let to = |element: &Element| set::words(parts, &element.data);
                    findings.push(Finding::differs(object(), to(wanted), to(&found)));
                }
                (Some(found), _) => {
                    findings.push(Finding::differs(object(), owned::whose(wanted), owned::whose(&found)))
                }
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
            let ours = found.filter(|it| !owned::is_of_another(it, &owner));
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
    let all = all_sets(nft)?;
    owned::remove_all_of(nft, &sets_of(&all), owner)
}

/// Removes the elements of a network's attachments that are not kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> anyhow::Result<()> {
    let all = all_sets(nft)?;
    owned::collect(nft, &sets_of(&all), network, kept)
}

fn sets_of(all: &[Named]) -> Vec<Set<'_>> {
    all.iter().map(Named::set).collect()
}

/// All sets and maps of ports that are there.
fn all_sets(nft: &mut Nft) -> Result<Vec<Named>> {
    let names = nft.set_names(TABLE)?;
    let shared = shared_exits().into_iter().filter(|exit| names.contains(&exit.name)).collect::<Vec<_>>();
    Ok(shared.into_iter().chain(names.iter().filter_map(|name| Named::of_name(name))).collect())
}
