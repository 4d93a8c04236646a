//! A gateway address of pods, on the bridge. It stays when pods go, and never flaps when they come.

use std::net::IpAddr;

use anyhow::bail;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::vlan_gateway::port_name;
use super::{Ensured, Finding, World, or_undo};
use crate::net::rtnl::address::{self, Address, DuplicateDetection};
use crate::net::rtnl::link;
use crate::spec::{CniError, Code, Prefix};

/// An address of a host link that pods have as their gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The bridge, or the VLAN's link of it.
    pub link: String,
    /// The address with its subnet's prefix length.
    pub address: Prefix,
    /// The other gateway addresses that this attachment has there, which are no conflict.
    pub companions: Vec<Prefix>,
    /// Whether another address of the link may be replaced (`forceAddress`).
    pub force: bool,
}

impl Gateway {
    /// Adds the address.
    ///
    /// Another IPv4 address, or an overlapping IPv6 one, is a conflict. With `forceAddress` the new one is added all
    /// the same; the old one goes if no pod is on the link, and stays as long as pods may have it as their gateway.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let found = world.existing_host_link(&self.link)?;
        let addresses = world.host_addresses(&found)?;
        if addresses.iter().any(|a| prefix_of(a) == Some(self.address)) {
            return Ok(Ensured::Present);
        }
        let conflicts: Vec<Prefix> =
            addresses.iter().filter_map(prefix_of).filter(|have| self.conflicts_with(*have)).collect();
        if let (Some(have), false) = (conflicts.first(), self.force) {
            bail!(
                CniError::new(
                    Code::Conflict,
                    format!(
                        "{:?} already has an IP address different from {}: it has {have}",
                        self.link, self.address
                    ),
                )
                .with_details(format!(
                    "if the subnet of this network has changed, set \"forceAddress\": true (pods on {have} keep \
                     their gateway until the last of them is gone), or run: ip address del {have} dev {}",
                    self.link
                ))
            );
        }
        let (ip, len) = (self.address.address(), self.address.prefix_len());
        world.forget_host_link(&self.link);
        match world.host()?.execute_one(address::add(&found, ip, len, DuplicateDetection::Off)) {
            // Another pod's ADD was faster.
            Err(e) if e.errno == Errno::EEXIST => Ok(Ensured::Present),
            added => {
                let finished = added.map_err(Into::into).and_then(|()| finish(&found, &conflicts, world));
                // Even if the request failed: its acknowledgement may be what was lost.
                or_undo(finished, || self.remove(world))?;
                Ok(Ensured::Created)
            }
        }
    }

    fn conflicts_with(&self, have: Prefix) -> bool {
        let is_link_local = matches!(have.address(), IpAddr::V6(a) if a.is_unicast_link_local());
        !self.companions.contains(&have)
            && have.is_ipv4() == self.address.is_ipv4()
            && !is_link_local
            && (have.is_ipv4() || have.overlaps(self.address))
    }

    /// Tells whether the address is missing.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        // Without the link there is a finding already.
        let Some(found) = world.host_link(&self.link)? else { return Ok(Vec::new()) };
        let addresses = world.host()?.addresses(&found)?;
        if addresses.iter().any(|a| prefix_of(a) == Some(self.address)) {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::missing(format!("gateway address {} on link {}", self.address, self.link))])
    }

    /// Deletes the address if the bridge has no pods, and no other call is about to attach one. Only a roll-back does so.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let Some(found) = world.host_link(&self.link)? else { return Ok(()) };
        if !world.is_bridge_unused(&port_name(&self.link))? {
            return Ok(());
        }
        match world.host()?.execute_one(address::delete(
            &found,
            self.address.address(),
            self.address.prefix_len(),
        )) {
            Err(e) if !matches!(e.errno, Errno::EADDRNOTAVAIL | Errno::ENODEV) => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// What follows a new address on a link: those that it replaces go, if no pod can have them as its gateway. Only a
/// bridge tells that, by having no ports. The link of a VLAN does not, so there the old ones stay.
fn finish(found: &link::Link, conflicts: &[Prefix], world: &mut World<'_>) -> anyhow::Result<()> {
    if !conflicts.is_empty() && found.kind == "bridge" && world.host()?.ports(found)?.is_empty() {
        let outdated =
            conflicts.iter().map(|p| address::delete(found, p.address(), p.prefix_len())).collect();
        for answer in world.host()?.execute(outdated)? {
            match answer {
                Err(e) if e.errno != Errno::EADDRNOTAVAIL => return Err(e.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

fn prefix_of(address: &Address) -> Option<Prefix> {
    Prefix::new(address.address, address.prefix_len)
}
