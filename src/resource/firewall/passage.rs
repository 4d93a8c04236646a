//! A way through a chain of somebody else's that would drop a pod's packets (`openForward`), marked as this program's:
//!
//! ```text
//! table inet filter {
//!     chain forward {
//!         type filter hook forward priority filter; policy drop;
//!         iifname "cni0" accept comment "bridgehead openForward cni0"
//!         oifname "cni0" ct state established,related accept comment "bridgehead openForward cni0"
//!     }
//! }
//! ```

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::owner::Owner;
use super::super::share::{self, Turn};
use super::super::{Ensured, Finding, Kept, World, or_undo};
use super::obstacle::{Obstacle, TAG};
use crate::net;
use crate::net::iptables::link_name;
use crate::net::nft::expr::{self, MetaKey, Operator, Register};
use crate::net::nft::{Chain, Expr, Nft, Table, Transaction, Verdict, repeat_if_overtaken};
use crate::spec::Attachment;

/// What the names of shared passages begin with.
const SHARED: &str = "passage_";

/// What a bridge's pods are let through by.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Passage {
    /// Of whom it is the network's bridge.
    pub attachment: Attachment,
    /// The bridge. For [`remove`](Self::remove), none means that nobody knows it: it is looked for.
    pub bridge: String,
    /// The chains.
    pub through: Vec<Obstacle>,
}

impl Passage {
    /// Inserts the rules, unless they are there.
    ///
    /// # Errors
    ///
    /// The kernel's, with the object's name, and those of a [`Turn`].
    pub fn ensure(&self, world: &mut World<'_>) -> Result<Ensured> {
        let turn = Turn::take(world)?;
        let joined = turn.join(&self.thing(), &self.attachment)?;
        let nft = world.nft()?;
        let mut ensured = joined;
        let outcome = repeat_if_overtaken(|| self.ensure_in(nft)).map(|changed| {
            if changed == Ensured::Created {
                ensured = changed;
            }
        });
        or_undo(outcome.map_err(Into::into), || match joined {
            Ensured::Created => self.leave(&turn, world),
            Ensured::Present => Ok(()),
        })?;
        Ok(ensured)
    }

    fn ensure_in(&self, nft: &mut Nft) -> net::Result<Ensured> {
        let mut transaction = Transaction::new();
        transaction.only_in(nft.generation()?);
        for chain in self.chains() {
            let present = nft.rules(chain)?;
            // In front, and so in reverse.
            for rule in self.rules().into_iter().rev() {
                if !present.iter().any(|found| found.consists_of(&rule)) {
                    transaction.insert_rule(chain, rule, Some(&self.comment()));
                }
            }
        }
        let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
        nft.commit(transaction)?;
        Ok(ensured)
    }

    /// Tells what is missing. A chain that is not there is no obstacle any more.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World<'_>) -> Result<Vec<Finding>> {
        let nft = world.nft()?;
        let mut findings = Vec::new();
        for chain in self.chains() {
            if !nft.has_chain(chain)? {
                continue;
            }
            let present = nft.rules(chain)?;
            if !self.rules().iter().all(|rule| present.iter().any(|found| found.consists_of(rule))) {
                findings.push(Finding::missing(format!("rule {:?} of {chain}", self.comment())));
            }
        }
        Ok(findings)
    }

    /// Removes the rules with the bridge's last pod.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World<'_>) -> Result<()> {
        if self.bridge.is_empty() {
            for other in sharers(&self.attachment.network, world)? {
                if other.attachment == self.attachment {
                    other.remove(world)?;
                }
            }
            return Ok(());
        }
        let turn = Turn::take(world)?;
        self.leave(&turn, world)
    }

    fn leave(&self, turn: &Turn, world: &mut World<'_>) -> Result<()> {
        if !turn.leave(&self.thing(), &self.attachment)? {
            return Ok(());
        }
        let nft = world.nft()?;
        // Also in chains that are not obstacles any more, or that this pod has not found.
        let everywhere = nft.forward_chains()?;
        repeat_if_overtaken(|| {
            let mut transaction = Transaction::new();
            for found in &everywhere {
                let chain = Table::new(found.family, &found.table).chain(&found.chain);
                for rule in nft.rules(chain)? {
                    if rule.comment.as_deref() == Some(&self.comment()) {
                        transaction.delete_rule(chain, rule.handle);
                    }
                }
            }
            nft.commit(transaction)
        })?;
        Ok(())
    }

    fn chains(&self) -> impl Iterator<Item = Chain<'_>> {
        self.through.iter().map(|it| Table::new(it.family(), &it.table).chain(&it.chain))
    }

    fn thing(&self) -> String {
        format!("{SHARED}{}", self.bridge)
    }

    fn comment(&self) -> String {
        format!("{TAG}{}", self.bridge)
    }

    fn rules(&self) -> [Vec<Expr>; 2] {
        let is_bridge = |key: MetaKey| {
            [expr::load_meta(key, Register::Reg1), expr::compare(Operator::Equal, &link_name(&self.bridge))]
        };
        let accept = || expr::verdict(&Verdict::Accept);
        let mut answers = is_bridge(MetaKey::Oifname).to_vec();
        answers.extend(expr::is_established());
        answers.push(accept());
        let [load, compare] = is_bridge(MetaKey::Iifname);
        [vec![load, compare, accept()], answers]
    }
}

/// What a network's attachments share.
fn sharers(network: &str, world: &World<'_>) -> Result<Vec<Passage>> {
    let passage = |(thing, attachment): (String, Attachment)| {
        let bridge = thing.strip_prefix(SHARED)?.to_owned();
        Some(Passage { attachment, bridge, through: Vec::new() })
    };
    Ok(share::sharers(network, &world.state)?.into_iter().filter_map(passage).collect())
}

/// Removes what a network's attachments share that are not kept.
pub(in super::super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    let found = sharers(network, world)?;
    if found.is_empty() {
        return Ok(());
    }
    let kept: Vec<Owner> = kept()?.iter().map(Owner::new).collect();
    for passage in found.iter().filter(|it| !kept.contains(&Owner::new(&it.attachment))) {
        passage.remove(world)?;
    }
    Ok(())
}
