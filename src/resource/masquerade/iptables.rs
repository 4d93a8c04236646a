//! Masquerading in the `nat` tables of iptables, exactly as the reference plugins have it:
//!
//! ```text
//! -N CNI-ac401170a6a418c7c78d298f
//! -A POSTROUTING -s 10.1.0.5/32 -m comment --comment "name: \"net\" id: \"id\"" -j CNI-ac401170a6a418c7c78d298f
//! -A CNI-ac401170a6a418c7c78d298f -d 10.1.0.0/16 -m comment --comment "..." -j ACCEPT
//! -A CNI-ac401170a6a418c7c78d298f ! -d 224.0.0.0/4 -m comment --comment "..." -j MASQUERADE
//! ```
//!
//! The chain's name follows from network and container, not from the interface: two interfaces of a container on one
//! network share it. One thing is other than there: every ACCEPT stands before the MASQUERADE, also that of a second
//! subnet; the reference appends it behind, where no packet comes.

use std::collections::BTreeSet;

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::super::{Ensured, Finding, Kept};
use super::multicast;
use crate::net;
use crate::net::iptables::commands::Change;
use crate::net::iptables::{
    AddressMatch, Commands, Protocol, Rule, Target, Variant, comment_of, installed, legacy,
};
use crate::net::nft::{self, Base, Chain, ChainState, Hook, Kind, Nft, Transaction, repeat_if_overtaken};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, Prefix};

const POSTROUTING: &str = "POSTROUTING";

/// What the names of containers' chains begin with.
const CHAIN_PREFIX: &str = "CNI-";

/// What `iptables-nft` makes of that chain when it finds none.
const BASE: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };

/// The rules of an attachment in one protocol's `nat` table.
pub(super) struct Rules {
    protocol: Protocol,
    chain: String,
    /// `-j ACCEPT`, one per subnet.
    accept: Vec<Rule>,
    /// `-j MASQUERADE`
    masquerade: Rule,
    /// In POSTROUTING, one per address.
    entries: Vec<Rule>,
}

impl Rules {
    /// `None` without an address of that protocol.
    pub(super) fn new(protocol: Protocol, attachment: &Attachment, sources: &[Prefix]) -> Option<Self> {
        let sources: Vec<Prefix> =
            sources.iter().copied().filter(|s| s.is_ipv4() == (protocol == Protocol::Ipv4)).collect();
        let first = sources.first()?.address();
        let chain = chain_name(attachment);
        let Attachment { network, container_id, .. } = attachment;
        let rule = |source: Option<AddressMatch>, destination: Option<AddressMatch>, target: Target| Rule {
            source,
            destination,
            comment: Some(comment(network, container_id)),
            ..Rule::to(target)
        };
        let mut accept = Vec::new();
        let mut entries = Vec::new();
        for &source in &sources {
            let subnet = AddressMatch::within(super::network(source));
            let subnet_rule = rule(None, Some(subnet), Target::Accept);
            if !accept.contains(&subnet_rule) {
                accept.push(subnet_rule);
            }
            let host = AddressMatch::within(IpNetwork::from(source.address()));
            entries.push(rule(Some(host), None, Target::Chain(chain.clone())));
        }
        let masquerade =
            rule(None, Some(AddressMatch::outside(super::network(multicast(first)))), Target::Masquerade);
        Some(Self { protocol, chain, accept, masquerade, entries })
    }

    /// The rules of the chain itself in order.
    fn own(&self) -> impl Iterator<Item = &Rule> {
        self.accept.iter().chain([&self.masquerade])
    }

    fn native_chain(&self) -> Chain<'_> {
        self.protocol.nat().chain(&self.chain)
    }

    fn native_entry(&self) -> Chain<'static> {
        self.protocol.nat().chain(POSTROUTING)
    }
}

/// `CNI-` and the beginning of a hash over network and container, as the reference makes it.
pub(super) fn chain_name(attachment: &Attachment) -> String {
    format!("{CHAIN_PREFIX}{}", sha512_hex(&[&attachment.network, &attachment.container_id], 24))
}

/// The comment of each rule.
fn comment(network: &str, container_id: &str) -> String {
    format!("name: {network:?} id: {container_id:?}")
}

/// The container in a comment on a network, if it is the one whose chain this is.
fn container_in(text: &str, network: &str, chain: &str) -> Option<String> {
    let (_, rest) = text.split_once(" id: \"")?;
    let container_id = rest.strip_suffix('"')?.to_owned();
    let attachment = Attachment { network: network.to_owned(), container_id, ifname: String::new() };
    let is_ours = text == comment(network, &attachment.container_id) && chain == chain_name(&attachment);
    is_ours.then_some(attachment.container_id)
}

/// The variant to write to: that of the system's command. Without one, nobody will look with it either.
fn variant(protocol: Protocol) -> Variant {
    installed(protocol).unwrap_or(Variant::Nft)
}

pub(super) fn ensure(nft: &mut Nft, attachment: &Attachment, sources: &[Prefix]) -> Result<Ensured> {
    let mut ensured = Ensured::Present;
    for protocol in Protocol::ALL {
        let Some(rules) = Rules::new(protocol, attachment, sources) else { continue };
        let changed = match variant(protocol) {
            Variant::Nft => repeat_if_overtaken(|| ensure_native(nft, &rules))?,
            Variant::Legacy => ensure_legacy(&rules)?,
        };
        if changed == Ensured::Created {
            ensured = Ensured::Created;
        }
    }
    Ok(ensured)
}

fn ensure_native(nft: &mut Nft, rules: &Rules) -> net::Result<Ensured> {
    let (chain, entry) = (rules.native_chain(), rules.native_entry());
    let mut transaction = Transaction::new();
    let (mut own, mut entries) = (Vec::new(), Vec::new());
    match nft.chain_state(chain)? {
        // Nothing can lead to a chain that is not there, so the other pods' rules need not be looked at.
        None => {
            transaction.add_table(chain.table);
            add_entry(nft, &mut transaction, entry)?;
            transaction.add_chain(chain);
        }
        // Flushed (`iptables -t nat -F`). A new one and its rules get handles by which they are found again.
        Some(ChainState { uses: 0, .. }) => {
            transaction.delete_chain(chain);
            add_entry(nft, &mut transaction, entry)?;
            transaction.add_chain(chain);
        }
        Some(state) => {
            own = nft.rules(chain)?;
            entries = nft.rules_leading_to(chain, entry, state, own.len())?;
            if entries.is_empty() {
                add_entry(nft, &mut transaction, entry)?;
            }
        }
    }
    let missing = |present: &[nft::Rule], rule: &Rule| {
        let is_there = present.iter().any(|found| rule.is(found, rules.protocol));
        (!is_there).then(|| rule.expressions(rules.protocol))
    };
    // In front, and so in reverse: what is there already may end with a MASQUERADE.
    for rule in rules.accept.iter().rev() {
        if let Some(expressions) = missing(&own, rule) {
            transaction.insert_rule(chain, expressions, None);
        }
    }
    if let Some(expressions) = missing(&own, &rules.masquerade) {
        transaction.add_rule(chain, expressions, None);
    }
    for rule in &rules.entries {
        if let Some(expressions) = missing(&entries, rule) {
            transaction.add_rule(entry, expressions, None);
        }
    }
    let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
    nft.commit(transaction)?;
    Ok(ensured)
}

/// Makes POSTROUTING where it is not there.
fn add_entry(nft: &mut Nft, transaction: &mut Transaction, entry: Chain) -> net::Result<()> {
    match nft.chain_state(entry)? {
        None => {
            transaction.add_base_chain(entry, BASE);
            transaction.begin_anew();
        }
        // No pod's chain is led to.
        Some(ChainState { uses: 0, .. }) => transaction.begin_anew(),
        Some(_) => {}
    }
    Ok(())
}

pub(super) fn ensure_legacy(rules: &Rules) -> Result<Ensured> {
    let legacy = Commands::find(rules.protocol, Variant::Legacy)?;
    let chain = &rules.chain;
    let mut changes = Vec::new();
    let (own, entries) = match listed(&legacy, rules.protocol, chain)? {
        Some(own) => (own, legacy.nat_rules(POSTROUTING)?.unwrap_or_default()),
        None => {
            changes.push(Change::EmptyChain(chain.clone()));
            (Vec::new(), Vec::new())
        }
    };
    let is_missing = |present: &[String], chain: &str, rule: &Rule| {
        let line = format!("-A {chain} {rule}");
        !present.contains(&line)
    };
    for rule in rules.accept.iter().rev().filter(|rule| is_missing(&own, chain, rule)) {
        changes.push(Change::Insert(chain.clone(), rule.clone()));
    }
    if is_missing(&own, chain, &rules.masquerade) {
        changes.push(Change::Append(chain.clone(), rules.masquerade.clone()));
    }
    for rule in rules.entries.iter().filter(|rule| is_missing(&entries, POSTROUTING, rule)) {
        changes.push(Change::Append(POSTROUTING.to_owned(), rule.clone()));
    }
    if changes.is_empty() {
        return Ok(Ensured::Present);
    }
    legacy.change_nat(&changes)?;
    Ok(Ensured::Created)
}

/// The rules of a chain; `None` where it is not there. Nothing is executed where the kernel can say so itself.
fn listed(legacy: &Commands, protocol: Protocol, chain: &str) -> Result<Option<Vec<String>>> {
    if !legacy::nat_has_chain(protocol, chain)? {
        return Ok(None);
    }
    Ok(legacy.nat_rules(chain)?)
}

pub(super) fn observe(nft: &mut Nft, attachment: &Attachment, sources: &[Prefix]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for protocol in Protocol::ALL {
        let Some(rules) = Rules::new(protocol, attachment, sources) else { continue };
        let chain = rules.native_chain();
        let mut expect = |chain: Chain, rule: &Rule, found: bool| {
            if !found {
                findings
                    .push(Finding::missing(format!("iptables rule -A {} {rule} in table nat", chain.name)));
            }
        };
        match variant(protocol) {
            Variant::Nft => {
                let own = nft.rules(chain)?;
                let entries = match nft.chain_state(chain)? {
                    Some(state) => nft.rules_leading_to(chain, rules.native_entry(), state, own.len())?,
                    None => Vec::new(),
                };
                let has =
                    |present: &[nft::Rule], rule: &Rule| present.iter().any(|found| rule.is(found, protocol));
                rules.own().for_each(|rule| expect(chain, rule, has(&own, rule)));
                rules.entries.iter().for_each(|r| expect(rules.native_entry(), r, has(&entries, r)));
            }
            Variant::Legacy => {
                let legacy = Commands::find(protocol, Variant::Legacy)?;
                let (own, entries) = match listed(&legacy, protocol, &rules.chain)? {
                    Some(own) => (own, legacy.nat_rules(POSTROUTING)?.unwrap_or_default()),
                    None => (Vec::new(), Vec::new()),
                };
                let has = |present: &[String], chain: &str, rule: &Rule| {
                    present.contains(&format!("-A {chain} {rule}"))
                };
                rules.own().for_each(|rule| expect(chain, rule, has(&own, chain.name, rule)));
                rules
                    .entries
                    .iter()
                    .for_each(|r| expect(rules.native_entry(), r, has(&entries, POSTROUTING, r)));
            }
        }
    }
    Ok(findings)
}

/// Removes the chain and what leads to it, from the tables of either variant: which one the command stands for may
/// have been changed since.
pub(super) fn remove(nft: &mut Nft, attachment: &Attachment, sources: &[Prefix]) -> Result<()> {
    let chain = chain_name(attachment);
    for protocol in Protocol::ALL {
        let rules = Rules::new(protocol, attachment, sources);
        // Where the sources are known and there is none of this protocol, there is nothing to look for.
        if rules.is_none() && !sources.is_empty() {
            continue;
        }
        let entries = rules.map(|rules| rules.entries).unwrap_or_default();
        repeat_if_overtaken(|| remove_native(nft, protocol, &chain, &entries))?;
        remove_legacy(protocol, &chain, &entries)?;
    }
    Ok(())
}

/// Which of the rules that lead to a chain are to go. Those of another interface of the container stay; where nobody
/// knows whose is whose, all go.
fn condemned<T>(leading: Vec<T>, entries: &[Rule], is: impl Fn(&T, &Rule) -> bool) -> (Vec<T>, Vec<T>) {
    let is_ours = |found: &T| entries.is_empty() || entries.iter().any(|rule| is(found, rule));
    leading.into_iter().partition(is_ours)
}

fn remove_native(nft: &mut Nft, protocol: Protocol, chain: &str, entries: &[Rule]) -> net::Result<()> {
    let table = protocol.nat();
    let (chain, entry) = (table.chain(chain), table.chain(POSTROUTING));
    let Some(state) = nft.chain_state(chain)? else { return Ok(()) };
    let own_rules = nft.rules(chain)?.len();
    let leading = nft.rules_leading_to(chain, entry, state, own_rules)?;
    let is = |found: &nft::Rule, rule: &Rule| rule.is(found, protocol);
    let (condemned, others) = condemned(leading, entries, is);
    let mut transaction = Transaction::new();
    for rule in condemned {
        transaction.delete_rule(entry, rule.handle);
    }
    if others.is_empty() {
        transaction.flush_chain(chain);
        transaction.delete_chain(chain);
    }
    nft.commit(transaction)
}

fn remove_legacy(protocol: Protocol, chain: &str, entries: &[Rule]) -> Result<()> {
    if !legacy::nat_has_chain(protocol, chain)? {
        return Ok(());
    }
    let legacy = Commands::find(protocol, Variant::Legacy)?;
    let jump = format!(" -j {chain}");
    let leading: Vec<String> = legacy
        .nat_rules(POSTROUTING)?
        .unwrap_or_default()
        .into_iter()
        .filter_map(|line| line.strip_prefix("-A ").map(str::to_owned))
        .filter(|rule| rule.ends_with(&jump))
        .collect();
    let is = |found: &String, rule: &Rule| *found == format!("{POSTROUTING} {rule}");
    let (condemned, others) = condemned(leading, entries, is);
    let mut changes: Vec<Change> = condemned.into_iter().map(Change::Delete).collect();
    if others.is_empty() {
        changes.push(Change::EmptyChain(chain.to_owned()));
        changes.push(Change::DeleteChain(chain.to_owned()));
    }
    if !changes.is_empty() {
        legacy.change_nat(&changes)?;
    }
    Ok(())
}

/// Removes the chains of a network's containers of which no attachment is kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> Result<()> {
    let mut containers = BTreeSet::new();
    for protocol in Protocol::ALL {
        containers.extend(native_containers(nft, protocol, network)?);
        containers.extend(legacy_containers(protocol, network)?);
    }
    if containers.is_empty() {
        return Ok(());
    }
    for attachment in kept()? {
        containers.remove(&attachment.container_id);
    }
    for container_id in containers {
        let attachment = Attachment { network: network.to_owned(), container_id, ifname: String::new() };
        remove(nft, &attachment, &[])?;
    }
    Ok(())
}

/// The containers that have a chain with a rule on a network.
fn native_containers(nft: &mut Nft, protocol: Protocol, network: &str) -> net::Result<Vec<String>> {
    let table = protocol.nat();
    let mut containers = Vec::new();
    for name in nft.chain_names(table)?.into_iter().filter(|name| name.starts_with(CHAIN_PREFIX)) {
        let rules = nft.rules(table.chain(&name))?;
        let found = rules.iter().find_map(|rule| container_in(&comment_of(rule)?, network, &name));
        containers.extend(found);
    }
    Ok(containers)
}

/// The same; chains that no rule leads to any more are not found.
fn legacy_containers(protocol: Protocol, network: &str) -> Result<Vec<String>> {
    if !legacy::has_nat(protocol) {
        return Ok(Vec::new());
    }
    let rules = Commands::find(protocol, Variant::Legacy)?.nat_rules(POSTROUTING)?.unwrap_or_default();
    let container = |line: &String| {
        let (rest, chain) = line.split_once(" -j ")?;
        let (_, quoted) = rest.split_once("--comment \"")?;
        container_in(&quoted.strip_suffix('"')?.replace('\\', ""), network, chain)
    };
    Ok(rules.iter().filter_map(container).collect())
}
