//! What is left of host ports of which there is no record, and what the reference plugins leave.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::World;
use super::super::owner::Owner;
use super::claims::Claims;
use super::{iptables, nftables};
use crate::net::nft::{Chain, Family, Nft, Table, Transaction, repeat_if_overtaken};
use crate::spec::Attachment;

/// The reference's tables, and the chains in which a container has rules. These are told apart by their comments, which
/// are the container's ID and nothing else.
const TABLES: [Table<'static>; 2] =
    [Table::new(Family::Ip, "cni_hostport"), Table::new(Family::Ip6, "cni_hostport")];
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

/// Host ports of an attachment of which there is no record, by whichever suite and in whichever tables. They are only
/// ever removed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ForeignPortMappings {
    /// Whose they are.
    pub attachment: Attachment,
}

impl ForeignPortMappings {
    /// Removes them. Where there is nothing, that is a few questions to the kernel; our sets are gone through.
    ///
    /// # Errors
    ///
    /// The kernel's, with the object's name.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        let nft = world.nft()?;
        iptables::remove(nft, &self.attachment, None)?;
        iptables::remove_old(nft, &self.attachment)?;
        for table in TABLES {
            for name in CHAINS {
                remove_rules(nft, table.chain(name), &self.attachment.container_id)?;
            }
        }
        nftables::remove_all_of(nft, &Owner::new(&self.attachment))?;
        match Claims::lock_existing(world)? {
            Some(claims) => claims.release_all_of(&self.attachment),
            None => Ok(()),
        }
    }
}

fn remove_rules(nft: &mut Nft, chain: Chain, container_id: &str) -> Result<()> {
    if !nft.has_chain(chain)? {
        return Ok(());
    }
    repeat_if_overtaken(|| {
        let mut transaction = Transaction::new();
        for rule in nft.rules(chain)? {
            if rule.comment.as_deref() == Some(container_id) {
                transaction.delete_rule(chain, rule.handle);
            }
        }
        nft.commit(transaction)
    })?;
    Ok(())
}
