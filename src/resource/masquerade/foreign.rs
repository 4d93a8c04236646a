//! What the reference plugins leave of their masquerading.

use anyhow::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::super::owner::Owner;
use super::super::{Kept, World};
use super::{iptables, nftables};
use crate::net::nft::{Chain, Family, Nft, Table, Transaction, repeat_if_overtaken};
use crate::spec::Attachment;
use crate::spec::digest::sha512_hex;

/// Their chain in nf_tables. Its rules are told apart by their comments.
const CHECKS: Chain<'static> = Table::new(Family::Inet, "cni_plugins_masquerade").chain("masq_checks");

/// NAT of an attachment of which there is no record, by whichever suite and in whichever tables. It is only ever
/// removed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ForeignMasquerade {
    /// Whose it is.
    pub attachment: Attachment,
}

impl ForeignMasquerade {
    /// Removes it. Where there is nothing, that is a few questions to the kernel.
    ///
    /// # Errors
    ///
    /// The kernel's, with the object's name.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        let nft = world.nft()?;
        remove(nft, &self.attachment)?;
        Ok(nftables::remove_all_of(nft, &Owner::new(&self.attachment))?)
    }
}

/// Removes both forms of the reference: in iptables, which is ours too, and in nftables.
pub(super) fn remove(nft: &mut Nft, attachment: &Attachment) -> Result<()> {
    iptables::remove(nft, attachment, &[])?;
    if !nft.has_chain(CHECKS)? {
        return Ok(());
    }
    let beginning = comment_beginning(attachment);
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for rule in nft.rules(CHECKS)? {
            if rule.comment.is_some_and(|comment| comment.starts_with(&beginning)) {
                transaction.delete_rule(CHECKS, rule.handle);
            }
        }
        nft.commit(transaction)
    })?;
    Ok(())
}

/// Removes the reference's rules of a network's attachments that are not kept.
pub(super) fn collect(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> Result<()> {
    if !nft.has_chain(CHECKS)? {
        return Ok(());
    }
    let of_network = format!("{}-", sha512_hex(&[network], 16));
    let mut rules = nft.rules(CHECKS)?;
    rules.retain(|rule| rule.comment.as_ref().is_some_and(|comment| comment.starts_with(&of_network)));
    let kept: Vec<String> = kept()?.iter().map(comment_beginning).collect();
    let mut transaction = Transaction::new();
    for rule in rules {
        let comment = rule.comment.unwrap_or_default();
        if !kept.iter().any(|beginning| comment.starts_with(beginning)) {
            transaction.delete_rule(CHECKS, rule.handle);
        }
    }
    match nft.commit(transaction) {
        // A DEL was faster. What else there is, the next GC finds.
        Err(e) if e.errno == Errno::ENOENT => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// What the comment of such a rule begins with: a hash of the network, and one of the interface.
fn comment_beginning(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    format!("{}-{}", sha512_hex(&[network], 16), sha512_hex(&[ifname, ":", container_id], 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_reference() {
        let beginning = |network: &str, ifname: &str, container_id: &str| {
            comment_beginning(&Attachment {
                network: network.into(),
                container_id: container_id.into(),
                ifname: ifname.into(),
            })
        };
        assert_eq!(beginning("unit-test", "eth0", "one"), "6fd94d501e58f0aa-287fc69eff0574a2");
        assert_eq!(beginning("alternate", "net1", "three"), "82783ef24bdc7036-acb19d111858e348");
    }
}
