//! What would drop a pod's packets whatever this program accepts: a base chain of somebody else's whose policy is to
//! drop. In nf_tables, an accept is one for its own chain only.

use anyhow::Result;
use netlink_packet_netfilter::nftables::Expressions;
use serde::{Deserialize, Serialize};

use super::{Backend, variant};
use crate::net::iptables::filter::FORWARD;
use crate::net::iptables::{Commands, Protocol, TableName, Variant, legacy};
use crate::net::nft::{self, Family, Forwarding, Nft, Verdict};

/// What the comments of our own rules in chains of others begin with.
pub(super) const TAG: &str = "bridgehead openForward ";

/// Chains into which the firewalls of Docker and of ufw sort packets; none of them accepts what a pod begins.
const SORTING: [&str; 2] = ["DOCKER", "ufw"];

/// A chain that drops what the host forwards for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// Its family, as `nft` calls it.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether it is a table of the legacy kind.
    pub legacy: bool,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { family, table, chain, legacy } = self;
        if *legacy {
            let command = if family == "ip" { "iptables-legacy" } else { "ip6tables-legacy" };
            return write!(f, "chain {chain} of {command} has the policy DROP");
        }
        write!(f, "chain {family} {table} {chain} of nftables has the policy drop")
    }
}

impl Obstacle {
    fn new(dropping: Forwarding) -> Self {
        let Forwarding { family, table, chain, .. } = dropping;
        Self { family: family.name().to_owned(), table, chain, legacy: false }
    }

    /// The family, of those that can have one.
    pub(super) fn family(&self) -> Family {
        match self.family.as_str() {
            "ip" => Family::Ip,
            "ip6" => Family::Ip6,
            _ => Family::Inet,
        }
    }

    /// Whether it is the chain of iptables, in which [`Admission`](super::Admission) has its rules.
    pub fn is_of_iptables(&self) -> bool {
        self.family() != Family::Inet && self.table == TableName::Filter.name() && self.chain == FORWARD
    }
}

/// What would drop the packets of pods that a back end lets through. Chains are listed for it, so it is for those who
/// ask for it only.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub fn obstacles(backend: Backend, nft: &mut Nft) -> Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    for dropping in nft.forward_chains()?.into_iter().filter(|chain| chain.drops) {
        let obstacle = Obstacle::new(dropping);
        let protocol = if obstacle.family() == Family::Ip6 { Protocol::Ipv6 } else { Protocol::Ipv4 };
        if backend == Backend::Iptables && obstacle.is_of_iptables() && variant(protocol) == Variant::Nft {
            continue;
        }
        let table = nft::Table::new(obstacle.family(), &obstacle.table);
        let rules = nft.rules(table.chain(&obstacle.chain))?;
        if !rules.iter().any(may_accept) {
            found.push(obstacle);
        }
    }
    for protocol in Protocol::ALL {
        let is_ours = backend == Backend::Iptables && variant(protocol) == Variant::Legacy;
        if !is_ours && legacy::has_table(protocol, TableName::Filter) {
            let lines = Commands::find(protocol, Variant::Legacy)?.filter_rules()?;
            if lines.iter().any(|line| line == "-P FORWARD DROP") {
                let family = if protocol == Protocol::Ipv4 { "ip" } else { "ip6" };
                found.push(Obstacle {
                    family: family.to_owned(),
                    table: TableName::Filter.name().to_owned(),
                    chain: FORWARD.to_owned(),
                    legacy: true,
                });
            }
        }
    }
    Ok(found)
}

/// Whether a rule of somebody else's could let through what a pod begins: then he knows what he does.
fn may_accept(rule: &nft::Rule) -> bool {
    if rule.comment.as_deref().is_some_and(|text| text.starts_with(TAG)) {
        return false;
    }
    let is_about_connections = rule.expressions().any(|expression| match expression {
        Expressions::Other { expression_type, .. } => expression_type == "ct" || expression_type == "match",
        _ => false,
    });
    rule.verdicts().any(|verdict| match verdict {
        Verdict::Accept => !is_about_connections,
        Verdict::Jump(chain) | Verdict::Goto(chain) => {
            !SORTING.iter().any(|start| chain.starts_with(start)) && !chain.starts_with("CNI-")
        }
        Verdict::Drop | Verdict::Return => false,
    })
}
