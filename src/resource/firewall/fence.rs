//! What keeps networks from each other in tables of our own; see [`rules`].
//!
//! A pod is an element for each of its addresses, a bridge is one that its pods share. So neither a packet nor an ADD or
//! DEL costs more with more pods or networks.

mod rules;

use std::net::IpAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::owner::{Owner, strays};
use super::super::share::{self, Turn};
use super::super::{Ensured, Finding, Kept, World, or_undo, owned};
use super::Policy;
use crate::net;
use crate::net::nft::{Element, Nft, Set, Transaction, repeat_if_overtaken};
use crate::spec::Attachment;
use rules::{BRIDGES, INTERNAL, PODS, Part, WITHIN};

/// What the names of shared elements begin with, which are the bridge's: in each set.
const THINGS: [(&str, Set<'static>); 3] = [("fence_", BRIDGES), ("internal_", INTERNAL), ("within_", WITHIN)];

/// A pod that cannot be reached from everywhere.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// Whose it is.
    pub attachment: Attachment,
    /// The network's bridge. For [`remove`](Self::remove), none means that nobody knows it, nor the addresses:
    /// everything of this attachment is looked for.
    pub bridge: String,
    /// From which other pods it can be reached.
    pub policy: Policy,
    /// Whether nothing of the network leaves its bridge.
    pub internal: bool,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod's own ports of the bridge.
    pub ports: Vec<String>,
}

impl Fence {
    /// The fence of an attachment of which nothing else is known, for removing it.
    pub fn of(attachment: &Attachment) -> Self {
        Self {
            attachment: attachment.clone(),
            bridge: String::new(),
            policy: Policy::Isolated,
            internal: true,
            addresses: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// Makes the fence, unless it is there. Rules that somebody took away or changed are put back.
    ///
    /// # Errors
    ///
    /// The kernel's, with the object's name, and those of a [`Turn`].
    pub fn ensure(&self, world: &mut World<'_>) -> Result<Ensured> {
        let turn = Turn::take(world)?;
        let mut joined = Ensured::Present;
        for set in self.shared() {
            if turn.join(&thing_of(set, &self.bridge), &self.attachment)? == Ensured::Created {
                joined = Ensured::Created;
            }
        }
        let nft = world.nft()?;
        let mut ensured = Ensured::Present;
        let outcome = repeat_if_overtaken(|| self.ensure_in(nft)).map(|it| ensured = it);
        or_undo(outcome.map_err(Into::into), || match joined {
            Ensured::Created => self.leave(&turn, world),
            Ensured::Present => Ok(()),
        })?;
        Ok(if joined == Ensured::Created { joined } else { ensured })
    }

    fn ensure_in(&self, nft: &mut Nft) -> net::Result<Ensured> {
        let mut transaction = Transaction::new();
        for part in self.parts() {
            if drift_of(&part, nft)?.is_some() {
                part.add(&mut transaction);
                transaction.begin_anew();
            }
        }
        for (set, wanted) in self.elements().into_iter().chain(self.shared_elements()) {
            match nft.element(set, &wanted.key)? {
                Some(found) if found == wanted => continue,
                // An address has one owner at a time, and the result that it stands in says that it is this one.
                Some(_) => transaction.delete_element(set, &wanted.key),
                None => {}
            }
            transaction.add_element(set, &wanted);
        }
        let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
        nft.commit(transaction)?;
        Ok(ensured)
    }

    /// Tells what is missing or otherwise.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World<'_>) -> Result<Vec<Finding>> {
        let nft = world.nft()?;
        let mut findings = Vec::new();
        for part in self.parts() {
            findings.extend(drift_of(&part, nft)?);
        }
        let wanted: Vec<_> = self.elements().into_iter().chain(self.shared_elements()).collect();
        findings.extend(owned::observe(nft, &wanted, |element| rules::written(&element.key))?);
        Ok(findings)
    }

    /// Removes the pod's elements, and the bridge's with its last pod. What another has by now stays.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World<'_>) -> Result<()> {
        let owner = Owner::new(&self.attachment);
        if self.bridge.is_empty() {
            owned::remove_all_of(world.nft()?, &PODS, &owner)?;
            for (attachment, bridge) in sharers(&self.attachment.network, world)? {
                if attachment == self.attachment {
                    let turn = Turn::take(world)?;
                    leave(&attachment, &bridge, &turn, world)?;
                }
            }
            return Ok(());
        }
        owned::remove(world.nft()?, &owner, &self.elements())?;
        let turn = Turn::take(world)?;
        self.leave(&turn, world)
    }

    fn leave(&self, turn: &Turn, world: &mut World<'_>) -> Result<()> {
        leave(&self.attachment, &self.bridge, turn, world)
    }

    /// The chains that it needs: those of bridges only where pods of one bridge are kept from each other.
    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![rules::routed()];
        if self.policy == Policy::Isolated {
            parts.push(rules::bridged());
        }
        parts
    }

    /// The sets in which the bridge is to have an element.
    fn shared(&self) -> Vec<Set<'static>> {
        let mut sets = Vec::new();
        if self.policy != Policy::Open {
            sets.push(BRIDGES);
        }
        if self.internal {
            sets.push(INTERNAL);
        }
        sets.push(WITHIN);
        sets
    }

    fn shared_elements(&self) -> Vec<(Set<'static>, Element)> {
        let element = |set| Element { key: key_in(set, &self.bridge), ..Element::default() };
        self.shared().into_iter().map(|set| (set, element(set))).collect()
    }

    /// What the pod itself has in the sets.
    fn elements(&self) -> Vec<(Set<'static>, Element)> {
        let owner = Owner::new(&self.attachment);
        let element = |key| owned::element(&owner, key);
        let mut elements = Vec::new();
        for &address in &self.addresses {
            let key = rules::pod_key(&self.bridge, address);
            elements.push((rules::closed(address), element(key.clone())));
            if self.policy == Policy::Isolated {
                elements.push((rules::isolated(address), element(key)));
            }
        }
        if self.policy == Policy::Isolated {
            let ports = self.ports.iter().map(|port| (rules::PORTS, element(rules::bridge_key(port))));
            elements.extend(ports);
        }
        elements
    }
}

/// The key of a bridge in a set that its pods share.
fn key_in(set: Set, bridge: &str) -> Vec<u8> {
    if set == WITHIN { rules::pair_key(bridge) } else { rules::bridge_key(bridge) }
}

/// What the bridge's element of a set is as something shared.
fn thing_of(set: Set, bridge: &str) -> String {
    let start = THINGS.iter().find(|(_, of)| *of == set).map_or("", |(start, _)| start);
    format!("{start}{bridge}")
}

/// Removes the bridge's elements with its last pod.
fn leave(attachment: &Attachment, bridge: &str, turn: &Turn, world: &mut World<'_>) -> Result<()> {
    for (_, set) in THINGS {
        if !turn.leave(&thing_of(set, bridge), attachment)? {
            continue;
        }
        let key = key_in(set, bridge);
        let nft = world.nft()?;
        repeat_if_overtaken(|| {
            let mut transaction = Transaction::new();
            if nft.element(set, &key)?.is_some() {
                transaction.delete_element(set, &key);
            }
            nft.commit(transaction)
        })?;
    }
    Ok(())
}

/// How a chain is otherwise than it should be. Its rules do not grow in number with pods.
fn drift_of(part: &Part, nft: &mut Nft) -> net::Result<Option<Finding>> {
    let found = nft.rules(part.chain)?;
    if found.is_empty() {
        return Ok(Some(Finding::missing(format!("content of {}", part.chain))));
    }
    let is_same = found.len() == part.rules.len()
        && found.iter().zip(&part.rules).all(|(found, wanted)| found.consists_of(wanted));
    Ok((!is_same).then(|| Finding::spoiled(part.chain.to_string())))
}

/// The attachments to a network that share something, with their bridges.
fn sharers(network: &str, world: &World<'_>) -> Result<Vec<(Attachment, String)>> {
    let mut found = Vec::new();
    for (thing, attachment) in share::sharers(network, &world.state)? {
        let bridge = THINGS.iter().find_map(|(start, _)| thing.strip_prefix(start));
        found.extend(bridge.map(|bridge| (attachment, bridge.to_owned())));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Removes what a network's attachments have that are not kept.
pub(in super::super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    let mut owners = owned::owners(world.nft()?, &PODS, network)?;
    let shared = sharers(network, world)?;
    owners.extend(shared.iter().map(|(attachment, _)| Owner::new(attachment)));
    owners.sort();
    owners.dedup();
    for owner in strays(owners, kept)? {
        owned::remove_all_of(world.nft()?, &PODS, &owner)?;
        for (attachment, bridge) in shared.iter().filter(|(attachment, _)| Owner::new(attachment) == owner) {
            let turn = Turn::take(world)?;
            leave(attachment, bridge, &turn, world)?;
        }
    }
    Ok(())
}
