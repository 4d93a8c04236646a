//! The link that has the gateway addresses of a VLAN on the bridge.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::veth::mac_from;
use super::{Ensured, Finding, World, or_undo};
use crate::net::rtnl::link;
use crate::net::rtnl::veth_pair::{VethPair, create_veth};
use crate::net::rtnl::vlan::{self, Membership};
use crate::net::{Mac, sysctl};
use crate::spec::digest::sha512_hex;

/// A veth pair on the host named `<bridge>.<vlan>`, whose other end is an untagged port of the bridge in that VLAN.
/// Its form is the reference's, so that both can use the same. All pods of the VLAN share it, whatever VLANs besides
/// theirs the first of them left to it; DEL leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanGateway {
    /// The bridge.
    pub bridge: String,
    /// The VLAN.
    pub vlan: u16,
    /// The MAC address that the link has, or is born with.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether the VLANs that the bridge gave the port when it joined (normally 1) stay.
    pub keep_default: bool,
}

/// The name of the link for a VLAN of a bridge.
pub fn link_name(bridge: &str, vlan: u16) -> String {
    format!("{bridge}.{vlan}")
}

/// The name of the other end of such a link, which is the port of the bridge.
pub fn port_name(link: &str) -> String {
    format!("veth{}", sha512_hex(&["vlan gateway", link], 8))
}

impl VlanGateway {
    /// Name of the link.
    pub fn name(&self) -> String {
        link_name(&self.bridge, self.vlan)
    }

    /// Makes the link, or uses the one that is there.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let name = self.name();
        if world.host_link(&name)?.is_some_and(|found| found.up) {
            return Ok(Ensured::Present);
        }
        let bridge = world.existing_host_link(&self.bridge)?;
        // The end that is born a port is the bridge's; the peer stays outside and takes the addresses.
        let request = create_veth(&VethPair {
            name: &port_name(&name),
            mac: mac_from(&["vlan port", &name, &self.mac.to_string()]),
            master: Some(bridge.index),
            mtu: self.mtu,
            peer_name: &name,
            peer_mac: self.mac,
            peer_netns: None,
        });
        match world.host()?.execute_one(request) {
            Err(e) if e.errno == Errno::EEXIST => {
                self.finish(world)?;
                Ok(Ensured::Present)
            }
            made => {
                let finished = made.map_err(Into::into).and_then(|()| self.finish(world));
                // Even if the request failed: its acknowledgement may be what was lost.
                or_undo(finished, || self.remove(world))?;
                Ok(Ensured::Created)
            }
        }
    }

    fn finish(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let name = self.name();
        world.forget_host_link(&name);
        let _ = sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0");
        let gateway = world.existing_host_link(&name)?;
        if let Some(port) = world.host_link(&port_name(&name))? {
            let mut batch = vec![vlan::add(&port, &[(self.vlan..=self.vlan, Membership::Native)])];
            if !self.keep_default {
                let others: Vec<_> = world
                    .host()?
                    .port_vlans(&port)?
                    .into_iter()
                    .map(|(vid, _)| vid..=vid)
                    .filter(|range| *range.start() != self.vlan)
                    .collect();
                if !others.is_empty() {
                    batch.push(vlan::delete(&port, &others));
                }
            }
            for answer in world.host()?.execute(batch)? {
                answer?;
            }
        }
        world.host()?.execute_one(link::set_up(&gateway))?;
        world.forget_host_link(&name);
        Ok(())
    }

    /// Tells whether the link is missing or down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("gateway link {}", self.name());
        world.forget_host_link(&self.name());
        Ok(match world.host_link(&self.name())? {
            None => vec![Finding::missing(object)],
            Some(found) if !found.up => vec![Finding::differs(object, "up", "down")],
            Some(_) => Vec::new(),
        })
    }

    /// Deletes the link if the bridge has no pods, and no other call is about to attach one. Only the roll-back of the
    /// call that made it does so.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        world.forget_host_link(&self.name());
        if let Some(found) = world.host_link(&self.name())?
            && world.is_bridge_unused(&port_name(&self.name()))?
        {
            world.forget_host_link(&self.name());
            world.remove_host_link(&found)?;
        }
        Ok(())
    }
}
