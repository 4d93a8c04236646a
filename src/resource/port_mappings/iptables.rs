//! Host ports in the `nat` tables of iptables, exactly as the reference plugins have them:
//!
//! ```text
//! -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
//! -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
//! -A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
//! -A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
//! -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
//! -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"id\"" -m multiport --dports 8080 -j CNI-DN-x
//! -A CNI-DN-x -s 10.1.0.0/16 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-x -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-x -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80
//! ```
//!
//! The first five are there once, and stay. The name of a container's chain follows from network and container, not
//! from the interface: two interfaces of a container on one network share it.

pub(super) mod entry;
mod rules;

use std::collections::BTreeSet;

use anyhow::Result;

use super::super::{Ensured, Finding, Kept};
use super::{PortMappings, foreign_chain_missing};
use crate::net;
use crate::net::iptables::commands::Change;
use crate::net::iptables::{Commands, Protocol, Rule, Target, Transport, Variant, comment_of, legacy};
use crate::net::nft::{self, Chain, ChainState, Nft, Transaction, repeat_if_overtaken};
use crate::spec::Attachment;
use rules::{
    CHAIN_PREFIX, DNAT, MASQ, OLD_CHAIN_PREFIX, OLD_SNAT, POSTROUTING, PREROUTING, Place, Rules, Shared,
    chain_name, container_in, hashed,
};

pub(super) fn ensure(nft: &mut Nft, wanted: &PortMappings) -> Result<Ensured> {
    let mut ensured = Ensured::Present;
    for protocol in Protocol::ALL {
        let Some(rules) = Rules::new(protocol, wanted) else { continue };
        let made = match rules.variant() {
            (variant, true) => ensure_by_command(&rules, variant)?,
            (_, false) => {
                if let Some(name) = &rules.foreign
                    && !nft.has_chain(protocol.nat().chain(name))?
                {
                    return Err(foreign_chain_missing(name, protocol).into());
                }
                repeat_if_overtaken(|| ensure_native(nft, &rules))?
            }
        };
        if made == Ensured::Created {
            ensured = Ensured::Created;
        }
    }
    Ok(ensured)
}

fn ensure_native(nft: &mut Nft, rules: &Rules) -> net::Result<Ensured> {
    let (chain, entry) = (rules.native_chain(), rules.protocol.nat().chain(DNAT));
    let mut transaction = Transaction::new();
    if !lacking_shared(nft, rules)?.is_empty() || !nft.has_chain(entry)? {
        // If anything changes meanwhile, the transaction fails as a whole: a rule would be there twice.
        transaction.only_in(nft.generation()?);
        let lacking = lacking_shared(nft, rules)?;
        add_shared(nft, &mut transaction, rules, &lacking)?;
    }
    let (mut own, mut entries) = (Vec::new(), Vec::new());
    match nft.chain_state(chain)? {
        // Nothing can lead to a chain that is not there, so the other pods' rules need not be looked at.
        None => transaction.add_chain(chain),
        // Flushed (`iptables -t nat -F`). A new one and its rules get handles by which they are found again.
        Some(ChainState { uses: 0, .. }) => {
            transaction.delete_chain(chain);
            transaction.add_chain(chain);
        }
        Some(state) => {
            own = nft.rules(chain)?;
            entries = nft.rules_leading_to(chain, entry, state, own.len())?;
        }
    }
    let is_missing =
        |present: &[nft::Rule], rule: &&Rule| !present.iter().any(|found| rule.is(found, rules.protocol));
    let missing: Vec<&Rule> = rules.own.iter().filter(|rule| is_missing(&own, rule)).collect();
    if own.is_empty() {
        missing.iter().for_each(|rule| add(&mut transaction, rules.protocol, chain, rule));
    } else {
        // What marks must stand before what translates, which ends a packet's way.
        let (last, first): (Vec<&Rule>, _) = missing.iter().partition(|rule| is_translation(rule));
        for rule in first.iter().rev() {
            let expressions = rule.expressions(rules.protocol);
            transaction.insert_rule_of(chain, expressions, rule.transport.map(Transport::number));
        }
        last.iter().for_each(|rule| add(&mut transaction, rules.protocol, chain, rule));
    }
    for rule in rules.entries.iter().filter(|rule| is_missing(&entries, rule)) {
        add(&mut transaction, rules.protocol, entry, rule);
    }
    let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
    nft.commit(transaction)?;
    Ok(ensured)
}

fn is_translation(rule: &Rule) -> bool {
    matches!(rule.target, Target::Dnat(_))
}

fn add(transaction: &mut Transaction, protocol: Protocol, chain: Chain, rule: &Rule) {
    transaction.add_rule_of(chain, rule.expressions(protocol), rule.transport.map(Transport::number));
}

/// The shared rules that are not there.
fn lacking_shared<'r>(nft: &mut Nft, rules: &'r Rules) -> net::Result<Vec<&'r Shared>> {
    let mut lacking = Vec::new();
    for shared in &rules.shared {
        let is_there = match shared.chain {
            // It has a rule per pod, but the kernel counts what leads to a chain.
            POSTROUTING => {
                let masq = rules.protocol.nat().chain(MASQ);
                match nft.chain_state(masq)? {
                    Some(state) => state.uses as usize > nft.rules(masq)?.len(),
                    None => false,
                }
            }
            chain => {
                let found = nft.rules(rules.protocol.nat().chain(chain))?;
                found.iter().any(|found| shared.rule.is(found, rules.protocol))
            }
        };
        if !is_there {
            lacking.push(shared);
        }
    }
    Ok(lacking)
}

fn add_shared(
    nft: &mut Nft,
    transaction: &mut Transaction,
    rules: &Rules,
    lacking: &[&Shared],
) -> net::Result<()> {
    let table = rules.protocol.nat();
    transaction.add_table(table);
    transaction.add_chain(table.chain(DNAT));
    for shared in lacking {
        let chain = table.chain(shared.chain);
        match shared.base {
            // Adding one that is there would set its policy.
            Some(base) if !nft.has_chain(chain)? => transaction.add_base_chain(chain, base),
            Some(_) => {}
            None => transaction.add_chain(chain),
        }
        if shared.chain == PREROUTING {
            transaction.begin_anew();
        }
    }
    for Shared { chain, rule, place, .. } in lacking {
        let chain = table.chain(chain);
        match place {
            Place::Back => add(transaction, rules.protocol, chain, rule),
            Place::Front => transaction.insert_rule_of(chain, rule.expressions(rules.protocol), None),
        }
    }
    Ok(())
}

/// The `nat` table as a command lists it.
struct Listing<'c> {
    commands: &'c Commands,
    lines: Vec<String>,
}

impl<'c> Listing<'c> {
    fn read(commands: &'c Commands) -> net::Result<Self> {
        Ok(Self { commands, lines: commands.nat_table()? })
    }

    fn has_chain(&self, chain: &str) -> bool {
        let declarations = [format!("-N {chain}"), format!("-P {chain} ")];
        self.lines.iter().any(|line| *line == declarations[0] || line.starts_with(&declarations[1]))
    }

    fn has_rule(&self, chain: &str, rule: &Rule) -> net::Result<bool> {
        if rule.conditions.is_empty() {
            return Ok(self.lines.contains(&format!("-A {chain} {rule}")));
        }
        // It is listed in other words than it was written in.
        let (beginning, end) = (format!("-A {chain} "), rule.target.to_string());
        let may_be = |line: &String| line.starts_with(&beginning) && line.ends_with(&end);
        Ok(self.lines.iter().any(may_be) && self.commands.nat_has_rule(&format!("{chain} {rule}"))?)
    }

    /// The shared rules that are not there.
    fn lacking_shared<'r>(&self, rules: &'r Rules) -> net::Result<Vec<&'r Shared>> {
        let mut lacking = Vec::new();
        for shared in &rules.shared {
            if !self.has_rule(shared.chain, &shared.rule)? {
                lacking.push(shared);
            }
        }
        Ok(lacking)
    }
}

fn ensure_by_command(rules: &Rules, variant: Variant) -> Result<Ensured> {
    let commands = Commands::find(rules.protocol, variant)?;
    let listing = Listing::read(&commands)?;
    if let Some(name) = &rules.foreign
        && !listing.has_chain(name)
    {
        return Err(foreign_chain_missing(name, rules.protocol).into());
    }
    let mut changes = Vec::new();
    let lacking = listing.lacking_shared(rules)?;
    let mut chains: Vec<&str> = vec![DNAT, &rules.chain];
    chains.extend(lacking.iter().filter(|shared| shared.base.is_none()).map(|shared| shared.chain));
    for chain in chains {
        if !listing.has_chain(chain) {
            changes.push(Change::EmptyChain(chain.to_owned()));
        }
    }
    for Shared { chain, rule, place, .. } in lacking {
        changes.push(match place {
            Place::Back => Change::Append((*chain).to_owned(), rule.clone()),
            Place::Front => Change::Insert((*chain).to_owned(), rule.clone()),
        });
    }
    let mut missing = Vec::new();
    for rule in &rules.own {
        if !listing.has_rule(&rules.chain, rule)? {
            missing.push(rule);
        }
    }
    if missing.len() == rules.own.len() {
        changes.extend(missing.into_iter().map(|rule| Change::Append(rules.chain.clone(), rule.clone())));
    } else {
        let (last, first): (Vec<&Rule>, _) = missing.into_iter().partition(|rule| is_translation(rule));
        let insert = |rule: &&Rule| Change::Insert(rules.chain.clone(), (*rule).clone());
        changes.extend(first.iter().rev().map(insert));
        changes.extend(last.into_iter().map(|rule| Change::Append(rules.chain.clone(), rule.clone())));
    }
    for rule in &rules.entries {
        if !listing.has_rule(DNAT, rule)? {
            changes.push(Change::Append(DNAT.to_owned(), rule.clone()));
        }
    }
    if changes.is_empty() {
        return Ok(Ensured::Present);
    }
    commands.change_nat(&changes)?;
    Ok(Ensured::Created)
}

pub(super) fn observe(nft: &mut Nft, wanted: &PortMappings) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for protocol in Protocol::ALL {
        let Some(rules) = Rules::new(protocol, wanted) else { continue };
        let command = match protocol {
            Protocol::Ipv4 => "iptables",
            Protocol::Ipv6 => "ip6tables",
        };
        let missing = |chain: &str, rule: &Rule| {
            Finding::missing(format!("rule of {command} -t nat: -A {chain} {rule}"))
        };
        match rules.variant() {
            (variant, true) => {
                let commands = Commands::find(protocol, variant)?;
                let listing = Listing::read(&commands)?;
                let shared = rules.shared.iter().map(|shared| (shared.chain, &shared.rule));
                let own = rules.own.iter().map(|rule| (rules.chain.as_str(), rule));
                for (chain, rule) in shared.chain(own).chain(rules.entries.iter().map(|rule| (DNAT, rule))) {
                    if !listing.has_rule(chain, rule)? {
                        findings.push(missing(chain, rule));
                    }
                }
            }
            (_, false) => {
                let lacking = lacking_shared(nft, &rules)?;
                findings.extend(lacking.iter().map(|shared| missing(shared.chain, &shared.rule)));
                let chain = rules.native_chain();
                let (mut own, mut entries) = (Vec::new(), Vec::new());
                if let Some(state) = nft.chain_state(chain)? {
                    own = nft.rules(chain)?;
                    entries = nft.rules_leading_to(chain, protocol.nat().chain(DNAT), state, own.len())?;
                }
                let is_there =
                    |present: &[nft::Rule], rule: &Rule| present.iter().any(|found| rule.is(found, protocol));
                for (chain, wanted, present) in
                    [(rules.chain.as_str(), &rules.own, &own), (DNAT, &rules.entries, &entries)]
                {
                    let lacking = wanted.iter().filter(|rule| !is_there(present, rule));
                    findings.extend(lacking.map(|rule| missing(chain, rule)));
                }
            }
        }
    }
    Ok(findings)
}

/// Removes a container's chain and what leads to it, from the tables of either variant: which one the command stands
/// for may have been changed since. Where it is known what an attachment had, the rest stays: another interface of the
/// container has it.
pub(super) fn remove(nft: &mut Nft, attachment: &Attachment, had: Option<&PortMappings>) -> Result<()> {
    let chain = chain_name(attachment);
    for protocol in Protocol::ALL {
        let rules = had.and_then(|had| Rules::new(protocol, had));
        // Where the addresses are known and there is none of this protocol, there is nothing to look for.
        if had.is_some() && rules.is_none() {
            continue;
        }
        repeat_if_overtaken(|| remove_native(nft, protocol, DNAT, &chain, rules.as_ref()))?;
        remove_legacy(protocol, DNAT, &chain, rules.as_ref())?;
    }
    Ok(())
}

/// Removes what older versions of the reference had beside it.
pub(super) fn remove_old(nft: &mut Nft, attachment: &Attachment) -> Result<()> {
    let chain = hashed(OLD_CHAIN_PREFIX, &attachment.network, &attachment.container_id);
    for protocol in Protocol::ALL {
        repeat_if_overtaken(|| remove_native(nft, protocol, OLD_SNAT, &chain, None))?;
        remove_legacy(protocol, OLD_SNAT, &chain, None)?;
    }
    Ok(())
}

/// Which rules are to go, and which stay. Where nobody knows whose is whose, all go; so do those that only the command
/// understands.
fn condemned<T>(found: Vec<T>, known: Option<&[Rule]>, is: impl Fn(&T, &Rule) -> bool) -> (Vec<T>, Vec<T>) {
    let known = known.filter(|rules| rules.iter().all(|rule| rule.conditions.is_empty()));
    found.into_iter().partition(|found| known.is_none_or(|rules| rules.iter().any(|rule| is(found, rule))))
}

fn remove_native(
    nft: &mut Nft,
    protocol: Protocol,
    entry: &str,
    chain: &str,
    rules: Option<&Rules>,
) -> net::Result<()> {
    let table = protocol.nat();
    let (chain, entry) = (table.chain(chain), table.chain(entry));
    let Some(state) = nft.chain_state(chain)? else { return Ok(()) };
    let own = nft.rules(chain)?;
    let leading = nft.rules_leading_to(chain, entry, state, own.len())?;
    let is = |found: &nft::Rule, rule: &Rule| rule.is(found, protocol);
    let (going, staying) = condemned(leading, rules.map(|it| it.entries.as_slice()), is);
    let mut transaction = Transaction::new();
    for rule in going {
        transaction.delete_rule(entry, rule.handle);
    }
    if staying.is_empty() {
        transaction.flush_chain(chain);
        transaction.delete_chain(chain);
    } else {
        for rule in condemned(own, rules.map(|it| it.own.as_slice()), is).0 {
            transaction.delete_rule(chain, rule.handle);
        }
    }
    nft.commit(transaction)
}

fn remove_legacy(protocol: Protocol, entry: &str, chain: &str, rules: Option<&Rules>) -> Result<()> {
    if !legacy::nat_has_chain(protocol, chain)? {
        return Ok(());
    }
    let commands = Commands::find(protocol, Variant::Legacy)?;
    let rules_of = |chain: &str| -> net::Result<Vec<String>> {
        let lines = commands.nat_rules(chain)?.unwrap_or_default();
        Ok(lines.into_iter().filter_map(|line| line.strip_prefix("-A ").map(str::to_owned)).collect())
    };
    let jump = format!(" -j {chain}");
    let mut leading = rules_of(entry)?;
    leading.retain(|rule| rule.ends_with(&jump));
    let is = |of: &'static str| move |found: &String, rule: &Rule| *found == format!("{of} {rule}");
    let (going, staying) = condemned(leading, rules.map(|it| it.entries.as_slice()), is(DNAT));
    let mut changes: Vec<Change> = going.into_iter().map(Change::Delete).collect();
    if staying.is_empty() {
        changes.push(Change::EmptyChain(chain.to_owned()));
        changes.push(Change::DeleteChain(chain.to_owned()));
    } else {
        let is_own = |found: &String, rule: &Rule| *found == format!("{chain} {rule}");
        let own = condemned(rules_of(chain)?, rules.map(|it| it.own.as_slice()), is_own).0;
        changes.extend(own.into_iter().map(Change::Delete));
    }
    commands.change_nat(&changes)?;
    Ok(())
}

/// Removes the chains of a network's containers of which no attachment is kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> Result<()> {
    let mut containers = BTreeSet::new();
    for protocol in Protocol::ALL {
        let rules = nft.rules(protocol.nat().chain(DNAT))?;
        for comment in rules.iter().filter_map(comment_of) {
            let id = comment.split_once(" id: \"").and_then(|(_, rest)| rest.strip_suffix('"'));
            let chain = id.map(|id| hashed(CHAIN_PREFIX, network, id)).unwrap_or_default();
            containers.extend(container_in(&comment, network, &chain));
        }
        if legacy::nat_has_chain(protocol, DNAT)? {
            let entries = entry::all_legacy(protocol)?;
            containers.extend(entries.iter().filter_map(|it| container_in(&it.comment, network, &it.chain)));
        }
    }
    if containers.is_empty() {
        return Ok(());
    }
    for attachment in kept()? {
        containers.remove(&attachment.container_id);
    }
    for container_id in containers {
        let attachment = Attachment { network: network.to_owned(), container_id, ifname: String::new() };
        remove(nft, &attachment, None)?;
    }
    Ok(())
}
