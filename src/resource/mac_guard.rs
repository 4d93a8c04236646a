//! The guard against false MAC addresses (`macspoofchk`): a pod may only send frames with its own.
//!
//! ```text
//! table bridge bridgehead {
//!     set guarded { type ifname . ether_addr; elements = { "veth0" . 02:... comment "net/id/eth0" } }
//!     set guarded_ports { type ifname; elements = { "veth0" comment "net/id/eth0" } }
//!     chain guard {
//!         type filter hook prerouting priority dstnat; policy accept;
//!         iifname . ether saddr @guarded accept
//!         iifname @guarded_ports drop
//!     }
//! }
//! ```
//!
//! A pod is one element in each set; nothing else changes with it.

use anyhow::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::owner::Owner;
use super::{Ensured, Finding, Kept, World, owned};
use crate::net::nft::expr::{self, MetaKey, Register};
use crate::net::nft::{
    Base, Carries, Chain, Element, Expr, Family, Hook, KeyType, Kind, Nft, Rule, Set, Table, Transaction,
    Verdict, repeat_if_overtaken, set,
};
use crate::net::{self, Mac};
use crate::spec::Attachment;

const TABLE: Table<'static> = Table::new(Family::Bridge, "bridgehead");
const CHAIN: Chain<'static> = TABLE.chain("guard");
/// `dstnat` of a bridge (`NF_BR_PRI_NAT_DST_BRIDGED`, linux/netfilter_bridge.h).
const BASE: Base = Base { kind: Kind::Filter, hook: Hook::Prerouting, priority: -300 };
const GUARDED: Set<'static> = Set {
    table: TABLE,
    name: "guarded",
    key: &[KeyType::Ifname, KeyType::EtherAddress],
    carries: Carries::Nothing,
};
const PORTS: Set<'static> =
    Set { table: TABLE, name: "guarded_ports", key: &[KeyType::Ifname], carries: Carries::Nothing };
const SETS: [Set<'static>; 2] = [GUARDED, PORTS];

/// The base chain in which the reference plugins have a rule per pod.
const FOREIGN: Chain<'static> = Table::new(Family::Bridge, "nat").chain("PREROUTING");

/// What keeps a pod from sending with another MAC address than its own.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MacGuard {
    /// Whose it is.
    pub attachment: Attachment,
    /// The port of the bridge that the pod's frames come from.
    pub host_ifname: String,
    /// The MAC address that the pod may send with.
    pub mac: Mac,
}

impl MacGuard {
    /// Sets up the guard, unless it is there.
    ///
    /// # Errors
    ///
    /// The kernel's, with the object's name.
    pub fn ensure(&self, world: &mut World) -> Result<Ensured> {
        self.ensure_with(world.nft()?)
    }

    /// Tells what is missing or otherwise.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World) -> Result<Vec<Finding>> {
        self.observe_with(world.nft()?)
    }

    /// Removes the guard of the port, in our form and in that of the reference plugins. One that is another
    /// attachment's by now stays.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        self.remove_with(world.nft()?)
    }

    /// Removes what the reference plugins would have left for an attachment.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove).
    pub fn remove_foreign(attachment: &Attachment, world: &mut World) -> Result<()> {
        remove_foreign(world.nft()?, attachment)
    }

    fn elements(&self) -> [(Set<'static>, Element); 2] {
        let owner = Owner::new(&self.attachment);
        let port = set::ifname_key(&self.host_ifname);
        let element = |key| owned::element(&owner, key);
        [(GUARDED, element(set::key(&[&port, &self.mac.0]))), (PORTS, element(set::key(&[&port])))]
    }

    fn ensure_with(&self, nft: &mut Nft) -> Result<Ensured> {
        let ensured = repeat_if_overtaken(|| {
            let mut transaction = Transaction::new();
            // The rules are two, however many pods there are. Somebody may have flushed the chain.
            let found = nft.rules(CHAIN)?;
            if !is_as_made(&found) {
                add_skeleton(&mut transaction);
            }
            if found.is_empty() {
                transaction.begin_anew();
            }
            for (set, wanted) in self.elements() {
                match nft.element(set, &wanted.key)? {
                    Some(found) if found == wanted => continue,
                    // The remains of a link of the same name.
                    Some(_) => transaction.delete_element(set, &wanted.key),
                    None => {}
                }
                transaction.add_element(set, &wanted);
            }
            let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
            nft.commit(transaction)?;
            Ok(ensured)
        })?;
        Ok(ensured)
    }

    fn observe_with(&self, nft: &mut Nft) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let rules = nft.rules(CHAIN)?;
        let is_missing = |set: Set| !rules.iter().any(|rule| rule.looks_up(set.name));
        if !is_as_made(&rules) && !SETS.into_iter().any(is_missing) {
            findings.push(Finding::spoiled(CHAIN.to_string()));
        }
        let lacking = SETS.into_iter().filter(|set| is_missing(*set));
        findings.extend(lacking.map(|set| Finding::missing(format!("rule for {set} in {CHAIN}"))));
        findings.extend(owned::observe(nft, &self.elements(), |_| self.host_ifname.clone())?);
        Ok(findings)
    }

    fn remove_with(&self, nft: &mut Nft) -> Result<()> {
        owned::remove(nft, &Owner::new(&self.attachment), &self.elements())?;
        remove_foreign(nft, &self.attachment)
    }
}

/// Removes the elements of a network's attachments that are not kept. The reference's guards do not say which network
/// they are of, and stay.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    owned::collect(world.nft()?, &SETS, network, kept)
}

/// Whether these are the rules, and no others.
fn is_as_made(found: &[Rule]) -> bool {
    let wanted = rules();
    found.len() == wanted.len() && found.iter().zip(&wanted).all(|(found, wanted)| found.consists_of(wanted))
}

/// Everything but elements. Written so that it does not matter if somebody else makes it at the same time.
fn add_skeleton(transaction: &mut Transaction) {
    transaction.add_table(TABLE);
    transaction.add_set(GUARDED);
    transaction.add_set(PORTS);
    transaction.add_base_chain(CHAIN, BASE);
    transaction.flush_chain(CHAIN);
    for rule in rules() {
        transaction.add_rule(CHAIN, rule, None);
    }
}

fn rules() -> [Vec<Expr>; 2] {
    [
        // iifname . ether saddr @guarded accept
        vec![
            expr::load_meta(MetaKey::Iifname, Register::Reg1),
            // The source address stands behind the destination's six bytes.
            expr::load_link_header(6, 6, Register::Reg2),
            expr::lookup(GUARDED.name),
            expr::verdict(&Verdict::Accept),
        ],
        // iifname @guarded_ports drop
        vec![
            expr::load_meta(MetaKey::Iifname, Register::Reg1),
            expr::lookup(PORTS.name),
            expr::verdict(&Verdict::Drop),
        ],
    ]
}

/// The reference has two chains per pod, and a rule in a base chain that leads to them:
///
/// ```text
/// table bridge nat {
///     chain PREROUTING { iifname "veth0" jump cni-br-iface-<container>-<ifname> comment "macspoofchk-..." }
///     chain cni-br-iface-<container>-<ifname> { jump cni-br-iface-<container>-<ifname>-mac }
///     chain cni-br-iface-<container>-<ifname>-mac { ether saddr ... return; drop }
/// }
/// ```
fn remove_foreign(nft: &mut Nft, attachment: &Attachment) -> Result<()> {
    Ok(repeat_if_overtaken(|| try_to_remove_foreign(nft, attachment))?)
}

fn try_to_remove_foreign(nft: &mut Nft, attachment: &Attachment) -> net::Result<()> {
    let Attachment { container_id, ifname, .. } = attachment;
    let name = format!("cni-br-iface-{container_id}-{ifname}");
    let mac_name = format!("{name}-mac");
    let (chain, mac_chain) = (FOREIGN.table.chain(&name), FOREIGN.table.chain(&mac_name));
    // A longer name than the kernel takes cannot be there.
    let there = |nft: &mut Nft, chain: Chain| match nft.has_chain(chain) {
        Err(e) if matches!(e.errno, Errno::EINVAL | Errno::ERANGE | Errno::ENAMETOOLONG) => Ok(false),
        answer => answer,
    };
    let (has_chain, has_mac_chain) = (there(nft, chain)?, there(nft, mac_chain)?);
    if !has_chain && !has_mac_chain {
        return Ok(());
    }
    let comment = format!("macspoofchk-{container_id}-{ifname}");
    let mut transaction = Transaction::new();
    for rule in nft.rules(FOREIGN)? {
        if rule.leads_to(&name) || rule.comment.as_deref() == Some(&comment) {
            transaction.delete_rule(FOREIGN, rule.handle);
        }
    }
    for (chain, there) in [(chain, has_chain), (mac_chain, has_mac_chain)] {
        if there {
            transaction.flush_chain(chain);
        }
    }
    for (chain, there) in [(chain, has_chain), (mac_chain, has_mac_chain)] {
        if there {
            transaction.delete_chain(chain);
        }
    }
    nft.commit(transaction)
}

#[cfg(test)]
mod tests;
