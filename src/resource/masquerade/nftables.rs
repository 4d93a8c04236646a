//! Masquerading in a table of our own. A pod is one element per address:
//!
//! ```text
//! table inet bridgehead {
//!     map masquerade_ipv4 {
//!         type ipv4_addr : verdict
//!         elements = { 10.1.0.5 comment "net/id/eth0" : goto subnet_10.1.0.0/16 }
//!     }
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat; policy accept;
//!         ip saddr vmap @masquerade_ipv4
//!         ip6 saddr vmap @masquerade_ipv6
//!     }
//!     chain subnet_10.1.0.0/16 {
//!         ip daddr 10.1.0.0/16 return
//!         ip daddr 224.0.0.0/4 return
//!         masquerade
//!     }
//! }
//! ```
//!
//! The maps are hash tables, so neither a packet nor an ADD or DEL costs more with more pods. What is not an element
//! is made once per subnet and stays.

use std::net::IpAddr;

use super::super::owner::Owner;
use super::super::{Ensured, Finding};
use super::multicast;
use crate::net::Result;
use crate::net::nft::expr::{self, Operator, Side};
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Family, Hook, KeyType, Kind, Nft, Set, Table, Transaction, Verdict,
    repeat_if_overtaken, set,
};
use crate::spec::Prefix;

const TABLE: Table<'static> = Table::new(Family::Inet, "bridgehead");
/// The base chain. It is this resource's alone, since it is made anew with each subnet.
const ENTRY: Chain<'static> = TABLE.chain("postrouting");
const BASE: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };
const IPV4: Set<'static> = map("masquerade_ipv4", &[KeyType::Ipv4Address]);
const IPV6: Set<'static> = map("masquerade_ipv6", &[KeyType::Ipv6Address]);

const fn map(name: &'static str, key: &'static [KeyType]) -> Set<'static> {
    Set { table: TABLE, name, key, carries: Carries::Verdict }
}

fn map_of(address: IpAddr) -> Set<'static> {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// The name of a subnet's chain. `nft` takes no colon in a name.
fn subnet_chain(source: Prefix) -> String {
    format!("subnet_{}", source.network()).replace(':', "-")
}

fn element(owner: &Owner, source: Prefix) -> Element {
    Element {
        key: set::address_key(source.address()),
        verdict: Some(Verdict::Goto(subnet_chain(source))),
        comment: Some(owner.as_str().to_owned()),
    }
}

pub(super) fn ensure(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<Ensured> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        let mut present: Vec<String> = Vec::new();
        for &source in sources {
            let chain = subnet_chain(source);
            if !present.contains(&chain) && !nft.has_chain(TABLE.chain(&chain))? {
                if transaction.is_empty() {
                    add_skeleton(&mut transaction);
                }
                add_subnet(&mut transaction, &chain, source);
            }
            present.push(chain);
        }
        for &source in sources {
            let map = map_of(source.address());
            let wanted = element(owner, source);
            match nft.element(map, &wanted.key)? {
                Some(found) if found == wanted => continue,
                // An address has one owner at a time, and the IPAM says that it is this one.
                Some(_) => transaction.delete_element(map, &wanted.key),
                None => {}
            }
            transaction.add_element(map, &wanted);
        }
        let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
        nft.commit(transaction)?;
        Ok(ensured)
    })
}

/// What all subnets share. Written so that it does not matter if it is there already, or somebody else makes it too.
fn add_skeleton(transaction: &mut Transaction) {
    transaction.add_table(TABLE);
    transaction.add_set(IPV4);
    transaction.add_set(IPV6);
    transaction.add_base_chain(ENTRY, BASE);
    transaction.flush_chain(ENTRY);
    for (map, example) in [(IPV4, IpAddr::from([0; 4])), (IPV6, IpAddr::from([0; 16]))] {
        // ip saddr vmap @masquerade_ipv4
        let mut rule = expr::family_is(example).to_vec();
        rule.push(expr::load_address(Side::Source, example));
        rule.push(expr::lookup_verdict(map.name));
        transaction.add_rule(ENTRY, rule, None);
    }
}

fn add_subnet(transaction: &mut Transaction, chain: &str, source: Prefix) {
    let chain = TABLE.chain(chain);
    transaction.add_chain(chain);
    transaction.flush_chain(chain);
    for rule in subnet_rules(source) {
        transaction.add_rule(chain, rule, None);
    }
}

fn subnet_rules(source: Prefix) -> [Vec<Expr>; 3] {
    let address = source.address();
    // ip daddr <network> return
    let returning = |network: Prefix| {
        let mut rule = expr::family_is(address).to_vec();
        rule.extend(expr::address_in(Side::Destination, Operator::Equal, super::network(network)));
        rule.push(expr::verdict(&Verdict::Return));
        rule
    };
    [returning(source), returning(multicast(address)), vec![expr::masquerade()]]
}

pub(super) fn observe(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if sources.is_empty() {
        return Ok(findings);
    }
    let entry_rules = nft.rules(ENTRY)?;
    if entry_rules.is_empty() && !nft.has_chain(ENTRY)? {
        findings.push(Finding::missing(ENTRY.to_string()));
    }
    for &source in sources {
        let map = map_of(source.address());
        if !entry_rules.iter().any(|rule| rule.looks_up(map.name)) {
            findings.push(Finding::missing(format!("rule for {map} in {ENTRY}")));
        }
        let name = subnet_chain(source);
        let chain = TABLE.chain(&name);
        let rules = nft.rules(chain)?;
        let wanted = subnet_rules(source);
        if rules.len() != wanted.len()
            || !rules.iter().zip(&wanted).all(|(rule, want)| rule.consists_of(want))
        {
            findings.push(Finding::missing(format!("masquerading in {chain}")));
        }
        let address = source.address();
        let wanted = element(owner, source);
        match nft.element(map, &wanted.key)? {
            None => findings.push(Finding::missing(format!("element {address} of {map}"))),
            Some(found) if found == wanted => {}
            Some(found) => findings.push(Finding::differs(
                format!("element {address} of {map}"),
                described(&wanted),
                described(&found),
            )),
        }
    }
    findings.dedup();
    Ok(findings)
}

fn described(element: &Element) -> String {
    let verdict = element.verdict.as_ref().map_or_else(|| "nothing".to_owned(), Verdict::to_string);
    format!("{verdict} for {}", element.comment.as_deref().unwrap_or("nobody"))
}

pub(super) fn remove(nft: &mut Nft, owner: &Owner, sources: &[Prefix]) -> Result<()> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for source in sources {
            let map = map_of(source.address());
            let key = set::address_key(source.address());
            let Some(found) = nft.element(map, &key)? else { continue };
            // Somebody else may have the address by now.
            if found.comment.as_deref().is_none_or(|comment| comment == owner.as_str()) {
                transaction.delete_element(map, &key);
            }
        }
        nft.commit(transaction)
    })
}

pub(super) fn remove_all_of(nft: &mut Nft, owner: &Owner) -> Result<()> {
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for map in [IPV4, IPV6] {
            for found in nft.elements(map)? {
                if found.comment.as_deref() == Some(owner.as_str()) {
                    transaction.delete_element(map, &found.key);
                }
            }
        }
        nft.commit(transaction)
    })
}

pub(super) fn owners(nft: &mut Nft, network: &str) -> Result<Vec<Owner>> {
    let mut owners = Vec::new();
    for map in [IPV4, IPV6] {
        let comments = nft.elements(map)?.into_iter().filter_map(|element| element.comment);
        owners.extend(comments.map(Owner::from_comment).filter(|owner| owner.is_on(network)));
    }
    owners.sort();
    owners.dedup();
    Ok(owners)
}
