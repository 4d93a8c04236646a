//! What is left of host ports of which there is no record, and what the reference plugins leave.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::World;
use super::super::owner::Owner;
use super::claims::Claims;
use super::unclaimed::Translation;
use super::{iptables, nftables};
use crate::net;
use crate::net::iptables::Protocol;
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

/// The reference's table of a protocol.
pub(super) fn table(protocol: Protocol) -> Table<'static> {
    match protocol {
        Protocol::Ipv4 => TABLES[0],
        Protocol::Ipv6 => TABLES[1],
    }
}

/// The ports in the reference's table, each with its container's ID.
pub(super) fn translations(nft: &mut Nft, protocol: Protocol) -> net::Result<Vec<(String, Translation)>> {
    let mut found = Vec::new();
    let [ports, ports_of_old, ..] = CHAINS.map(|name| table(protocol).chain(name));
    // Mostly it is not there.
    if !nft.has_chain(ports)? {
        return Ok(found);
    }
    for chain in [ports, ports_of_old] {
        let rules = nft.rules(chain)?.into_iter();
        found.extend(rules.filter_map(|rule| {
            let translation = iptables::entry::translation_of(&rule)?;
            Some((rule.comment?, translation))
        }));
    }
    Ok(found)
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
