//! A bridge that an ADD has made in this boot, and that no pod is on any more. DEL leaves it, as the reference does; this
//! is for a runtime whose networks come and go.

use super::bridge::new_mac;
use super::{Bridge, Masquerade, PortMappings, World, vlan_gateway};
use crate::ipam::flock::Mode;
use crate::net::{Link, Mac};
use crate::spec::Prefix;

/// A bridge, if it is unused, and what there is for its subnets, which an ADD that failed has left too.
#[derive(Clone, Copy, Debug)]
pub struct UnusedBridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// The subnets of the pods that were on it.
    pub subnets: &'a [Prefix],
}

/// Whether a bridge can be removed.
enum Unused {
    /// It is somebody else's, or has pods.
    No,
    /// It is gone.
    Gone,
    /// It has no ports but those of these links, which go with it.
    But(Vec<Link>),
}

impl UnusedBridge<'_> {
    /// Removes it, unless somebody else has made it, something is on it, or another call is about to attach a pod.
    ///
    /// # Errors
    ///
    /// The kernel's; code 11 where other calls with that bridge do not come to an end.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let mac = new_mac(self.name, world.home()?.identity())?;
        // Most calls leave others there, and need not wait to be alone.
        if let Unused::No = self.look(mac, world)? {
            return Ok(());
        }
        world.use_bridge(self.name, Mode::Exclusive)?;
        world.forget_host_link(self.name);
        match self.look(mac, world)? {
            Unused::No => return Ok(()),
            Unused::Gone => {}
            Unused::But(gateways) => {
                for gateway in gateways {
                    world.remove_host_link(&gateway)?;
                }
                let bridge = Bridge {
                    name: self.name.to_owned(),
                    mac,
                    mtu: None,
                    promiscuous: false,
                    vlan_filtering: false,
                };
                bridge.remove(world)?;
                if world.host_link(self.name)?.is_some() {
                    return Ok(());
                }
            }
        }
        Masquerade::remove_empty(self.subnets, world)?;
        PortMappings::remove_empty(self.subnets, world)?;
        world.end_bridge_use();
        Ok(())
    }

    fn look(&self, mac: Mac, world: &mut World<'_>) -> anyhow::Result<Unused> {
        let Some(found) = world.host_link(self.name)? else { return Ok(Unused::Gone) };
        if found.kind != "bridge" || found.mac != Some(mac) {
            return Ok(Unused::No);
        }
        let host = world.host()?;
        let mut gateways = Vec::new();
        for port in host.ports(&found)? {
            let peer = match port.peer {
                Some(index) => host.link_by_index(index)?,
                None => None,
            };
            let is_gateway = |link: &Link| {
                link.name.starts_with(&format!("{}.", self.name))
                    && vlan_gateway::port_name(&link.name) == port.name
            };
            match peer.filter(is_gateway) {
                Some(gateway) => gateways.push(gateway),
                None => return Ok(Unused::No),
            }
        }
        Ok(Unused::But(gateways))
    }
}
