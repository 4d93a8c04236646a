//! Bridges that are isolated from each other in the `filter` tables of iptables, exactly as the reference plugins have
//! it:
//!
//! ```text
//! -A FORWARD -m comment --comment "...: same-bridge|isolated)" -j CNI-ISOLATION-STAGE-1
//! -A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -m comment --comment "...: isolated)" -j DROP       (isolated only)
//! -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -m comment --comment "...: isolated)" -j CNI-ISOLATION-STAGE-2
//! -A CNI-ISOLATION-STAGE-1 -m comment --comment "...: same-bridge|isolated)" -j RETURN
//! -A CNI-ISOLATION-STAGE-2 -o cni0 -m comment --comment "...: same-bridge|isolated)" -j DROP
//! -A CNI-ISOLATION-STAGE-2 -m comment --comment "...: same-bridge|isolated)" -j RETURN
//! ```
//!
//! Unlike there, a bridge's rules go with its last pod, and the chains with the last bridge.

use std::net::IpAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::owner::Owner;
use super::super::share::{self, Turn};
use super::super::{Ensured, Finding, Kept, World, or_undo};
use super::admission::missing;
use super::{Policy, VARIANTS, of_protocol, variant};
use crate::net;
use crate::net::iptables::filter::{FORWARD, Found};
use crate::net::iptables::{Filter, LinkMatch, Protocol, Rule, Target, Variant};
use crate::net::nft::{Nft, repeat_if_overtaken};
use crate::spec::Attachment;

/// What comes by an isolated bridge.
pub(super) const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
/// What leaves it for another link.
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// What the rules that both policies share say of them; the second is what the reference wrote when it had no other.
const SHARED_BY: [&str; 2] = ["same-bridge|isolated", "same-bridge"];

/// What the names of shared isolations begin with.
const SHARED: &str = "isolation_";

/// A bridge whose pods are not to be reached from other such bridges, and with `isolated` not from each other.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// Of whom it is the network's bridge.
    pub attachment: Attachment,
    /// The bridge. For [`remove`](Self::remove), none means that nobody knows it: it is looked for.
    pub bridge: String,
    /// How far.
    pub policy: Policy,
    /// The pod's addresses, which say of which protocols there are rules.
    pub addresses: Vec<IpAddr>,
    /// The pod's own ports of the bridge.
    pub ports: Vec<String>,
}

impl Isolation {
    /// Makes chains and rules, those that are not there.
    ///
    /// # Errors
    ///
    /// The kernel's, those of the legacy command, and those of a [`Turn`].
    pub fn ensure(&self, world: &mut World<'_>) -> Result<Ensured> {
        let turn = Turn::take(world)?;
        let joined = turn.join(&self.thing(), &self.attachment)?;
        let mut ensured = joined;
        let outcome = self.protocols().try_for_each(|protocol| {
            let nft = world.nft()?;
            if repeat_if_overtaken(|| self.ensure_in(protocol, nft))? == Ensured::Created {
                ensured = Ensured::Created;
            }
            Ok(())
        });
        or_undo(outcome, || match joined {
            Ensured::Created => self.leave(&turn, world),
            Ensured::Present => Ok(()),
        })?;
        Ok(ensured)
    }

    fn ensure_in(&self, protocol: Protocol, nft: &mut Nft) -> net::Result<Ensured> {
        let mut filter = Filter::open(protocol, variant(protocol), nft)?;
        for chain in [STAGE_1, STAGE_2] {
            if !filter.has_chain(chain)? {
                filter.make_chain(chain);
            }
        }
        let lacks = |filter: &Filter<'_>, present: &[Found], rule: &Rule| {
            !present.iter().any(|found| filter.is(found, rule))
        };
        let present = filter.rules(FORWARD)?;
        if lacks(&filter, &present, &to_stage_1()) {
            filter.prepare_forward()?;
            filter.insert(FORWARD, &to_stage_1());
        }
        for (chain, first) in [(STAGE_1, self.stage_1()), (STAGE_2, vec![self.stage_2()])] {
            let present = filter.rules(chain)?;
            // In front, and so in reverse.
            for rule in first.iter().rev() {
                if lacks(&filter, &present, rule) {
                    filter.insert(chain, rule);
                }
            }
            if lacks(&filter, &present, &back()) {
                filter.append(chain, &back());
            }
        }
        filter.only_as_found();
        let ensured = if filter.is_unchanged() { Ensured::Present } else { Ensured::Created };
        filter.commit()?;
        Ok(ensured)
    }

    /// Tells what is missing.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World<'_>) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for protocol in self.protocols() {
            let mut filter = Filter::open(protocol, variant(protocol), world.nft()?)?;
            let (mut first, second) = (self.stage_1(), vec![self.stage_2(), back()]);
            first.push(back());
            for (chain, wanted) in [(FORWARD, vec![to_stage_1()]), (STAGE_1, first), (STAGE_2, second)] {
                let present = filter.rules(chain)?;
                let lacking =
                    wanted.iter().filter(|rule| !present.iter().any(|found| filter.is(found, rule)));
                findings.extend(lacking.map(|rule| missing(chain, rule)));
            }
        }
        Ok(findings)
    }

    /// Removes the rules of the bridge with its last pod.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World<'_>) -> Result<()> {
        if self.bridge.is_empty() {
            for other in shared(&self.attachment.network, world)? {
                if other.attachment == self.attachment && other.policy == self.policy {
                    other.remove(world)?;
                }
            }
            return Ok(());
        }
        let turn = Turn::take(world)?;
        self.leave(&turn, world)
    }

    fn leave(&self, turn: &Turn, world: &mut World<'_>) -> Result<()> {
        if !turn.leave(&self.thing(), &self.attachment)? || self.has_pods_of_others(world)? {
            return Ok(());
        }
        for protocol in Protocol::ALL {
            for variant in VARIANTS {
                let nft = world.nft()?;
                repeat_if_overtaken(|| self.remove_in(protocol, variant, nft))?;
            }
        }
        Ok(())
    }

    fn remove_in(&self, protocol: Protocol, variant: Variant, nft: &mut Nft) -> net::Result<()> {
        let Some(mut filter) = Filter::in_use(protocol, variant, nft)? else { return Ok(()) };
        let present = filter.rules(STAGE_1)?;
        if present.is_empty() {
            return Ok(());
        }
        let (own, other) = (self.stage_1(), Self { policy: self.other_policy(), ..self.clone() }.stage_1());
        let (mut is_other_there, mut is_last) = (false, true);
        for found in &present {
            if own.iter().any(|rule| filter.is(found, rule)) {
                filter.delete(STAGE_1, found);
            } else if !SHARED_BY.iter().any(|policy| filter.is(found, &of(policy, Target::Return))) {
                is_last = false;
                is_other_there |= other.iter().any(|rule| filter.is(found, rule));
            }
        }
        if is_last {
            for found in filter.rules(FORWARD)?.iter().filter(|found| found.leads_to(STAGE_1)) {
                filter.delete(FORWARD, found);
            }
            filter.delete_chain(STAGE_1);
            if filter.has_chain(STAGE_2)? {
                filter.delete_chain(STAGE_2);
            }
        } else if !is_other_there {
            for found in filter.rules(STAGE_2)? {
                let is_ours = |policy: &&str| {
                    let outbound = Some(LinkMatch::is(&self.bridge));
                    filter.is(&found, &Rule { outbound, ..of(policy, Target::Drop) })
                };
                if SHARED_BY.iter().any(is_ours) {
                    filter.delete(STAGE_2, &found);
                }
            }
        }
        filter.only_as_found();
        filter.commit()
    }

    /// Whether pods of another suite are on the bridge, which nobody counts. A link of this one has its owner as alias.
    fn has_pods_of_others(&self, world: &mut World<'_>) -> Result<bool> {
        let Some(bridge) = world.host()?.link(&self.bridge)? else { return Ok(false) };
        let ports = world.host()?.ports(&bridge)?;
        Ok(ports
            .iter()
            .any(|port| port.kind == "veth" && port.alias.is_empty() && !self.ports.contains(&port.name)))
    }

    /// What is shared: the file name of it.
    fn thing(&self) -> String {
        format!("{SHARED}{}_{}", self.policy.name(), self.bridge)
    }

    fn protocols(&self) -> impl Iterator<Item = Protocol> {
        Protocol::ALL.into_iter().filter(|protocol| of_protocol(&self.addresses, *protocol).next().is_some())
    }

    fn other_policy(&self) -> Policy {
        match self.policy {
            Policy::Isolated => Policy::SameBridge,
            Policy::Open | Policy::SameBridge => Policy::Isolated,
        }
    }

    fn stage_1(&self) -> Vec<Rule> {
        let rule = |outbound: LinkMatch, target: Target| Rule {
            inbound: Some(LinkMatch::is(&self.bridge)),
            outbound: Some(outbound),
            comment: Some(comment(self.policy.name())),
            ..Rule::to(target)
        };
        let leaving = rule(LinkMatch::is_not(&self.bridge), Target::Chain(STAGE_2.to_owned()));
        match self.policy {
            Policy::Isolated => vec![rule(LinkMatch::is(&self.bridge), Target::Drop), leaving],
            Policy::Open | Policy::SameBridge => vec![leaving],
        }
    }

    fn stage_2(&self) -> Rule {
        Rule { outbound: Some(LinkMatch::is(&self.bridge)), ..of_both(Target::Drop) }
    }
}

pub(super) fn to_stage_1() -> Rule {
    of_both(Target::Chain(STAGE_1.to_owned()))
}

fn back() -> Rule {
    of_both(Target::Return)
}

/// A rule that both policies share.
fn of_both(target: Target) -> Rule {
    of(SHARED_BY[0], target)
}

fn of(policy: &str, target: Target) -> Rule {
    Rule { comment: Some(comment(policy)), ..Rule::to(target) }
}

fn comment(policy: &str) -> String {
    format!("CNI firewall plugin rules (ingressPolicy: {policy})")
}

/// What a network's attachments share.
fn shared(network: &str, world: &World<'_>) -> Result<Vec<Isolation>> {
    let isolation = |(thing, attachment): (String, Attachment)| {
        let (policy, bridge) = thing.strip_prefix(SHARED)?.split_once('_')?;
        let policy = if policy == Policy::Isolated.name() { Policy::Isolated } else { Policy::SameBridge };
        let bridge = bridge.to_owned();
        Some(Isolation { attachment, bridge, policy, addresses: Vec::new(), ports: Vec::new() })
    };
    Ok(share::sharers(network, &world.state)?.into_iter().filter_map(isolation).collect())
}

/// Removes what a network's attachments share that are not kept.
pub(in super::super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    let found = shared(network, world)?;
    if found.is_empty() {
        return Ok(());
    }
    let kept: Vec<Owner> = kept()?.iter().map(Owner::new).collect();
    for isolation in found.iter().filter(|it| !kept.contains(&Owner::new(&it.attachment))) {
        isolation.remove(world)?;
    }
    Ok(())
}
