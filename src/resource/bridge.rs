//! The bridge on the host. Many attachments share it.

use anyhow::{Context, bail};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::veth::mac_from;
use super::{Ensured, Finding, World, or_undo};
use crate::net::netns::Identity;
use crate::net::rtnl::link;
use crate::net::{Mac, sysctl};
use crate::spec::{CniError, Code};

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The MAC address it has, or is born with where it is not there yet.
    pub mac: Mac,
    /// The MTU it is born with, in bytes; one that is there keeps its own.
    pub mtu: Option<u32>,
    /// Whether it receives all packets. Never switched off: somebody else may have switched it on.
    pub promiscuous: bool,
    /// Whether it filters VLANs.
    pub vlan_filtering: bool,
}

/// The MAC of a bridge that is to be made. Pods that come at the same moment must all say the same in their results,
/// so it is made from what they have in common; and bridges of one name on two hosts may share a network, so that is
/// the host's namespace in this boot.
pub fn new_mac(name: &str, host: Identity) -> anyhow::Result<Mac> {
    let boot = sysctl::boot_id()?;
    Ok(mac_from(&["bridge", &boot, &host.device.to_string(), &host.inode.to_string(), name]))
}

impl Bridge {
    /// Makes the bridge, or adopts the one that is there.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        if let Some(found) = world.host_link(&self.name)? {
            self.adopt(&found, world)?;
            self.finish(&found, world)?;
            return Ok(Ensured::Present);
        }
        let create = if self.vlan_filtering { link::create_filtering_bridge } else { link::create_bridge };
        match world.host()?.execute_one(create(&self.name, self.mac, self.mtu)) {
            Err(e) if e.errno == Errno::EOPNOTSUPP && self.vlan_filtering => Err(filters_no_vlans().into()),
            // Another pod's ADD was faster.
            Err(e) if e.errno == Errno::EEXIST => {
                self.finish_new(world)?;
                Ok(Ensured::Present)
            }
            made => {
                let finished = made.map_err(Into::into).and_then(|()| self.finish_new(world));
                // Even if the request failed: its acknowledgement may be what was lost.
                or_undo(finished, || self.remove(world))?;
                Ok(Ensured::Created)
            }
        }
    }

    /// A bridge that somebody else made may still take the MAC of its lowest port, and change it as pods come and go;
    /// and it may listen to router advertisements of pods. Both are settled once.
    fn adopt(&self, found: &link::Link, world: &mut World<'_>) -> anyhow::Result<()> {
        if found.kind != "bridge" || link::has_mac_of_its_own(found) {
            return Ok(());
        }
        if let Some(mac) = found.mac {
            world.host()?.execute_one(link::set_mac(found, mac))?;
        }
        self.ignore_advertisements();
        Ok(())
    }

    fn ignore_advertisements(&self) {
        // A host without IPv6 does not have the sysctl, and no use for it.
        let _ = sysctl::set(&format!("ipv6/conf/{}/accept_ra", self.name), "0");
    }

    fn finish_new(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        self.ignore_advertisements();
        let found = world.existing_host_link(&self.name)?;
        self.finish(&found, world)
    }

    fn finish(&self, found: &link::Link, world: &mut World<'_>) -> anyhow::Result<()> {
        if found.kind != "bridge" {
            let kind = if found.kind.is_empty() { "device" } else { &found.kind };
            let msg = format!("bridge: {:?} already exists but is not a bridge (it is a {kind})", self.name);
            bail!(
                CniError::new(Code::Conflict, msg).with_details("name another bridge, or remove that link")
            );
        }
        let mut changes = Vec::new();
        if self.vlan_filtering && !found.vlan_filtering {
            changes.push(link::set_vlan_filtering(found));
        }
        if self.promiscuous && !found.promiscuous {
            changes.push(link::set_promiscuous(found));
        }
        if !found.up {
            changes.push(link::set_up(found));
        }
        if changes.is_empty() {
            return Ok(());
        }
        for answer in world.host()?.execute(changes)? {
            match answer {
                Err(e) if e.errno == Errno::EOPNOTSUPP && self.vlan_filtering => bail!(filters_no_vlans()),
                answer => answer?,
            }
        }
        world.forget_host_link(&self.name);
        // Some kernels without the feature do not refuse the attribute, but pass over it.
        if self.vlan_filtering && !world.existing_host_link(&self.name)?.vlan_filtering {
            bail!(filters_no_vlans());
        }
        Ok(())
    }

    /// Tells how the bridge is otherwise. Its MTU is not looked at: the kernel lowers it to that of its ports.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("bridge {}", self.name);
        world.forget_host_link(&self.name);
        let Some(found) = world.host_link(&self.name)? else { return Ok(vec![Finding::missing(object)]) };
        let mut findings = Vec::new();
        if found.kind != "bridge" {
            findings.push(Finding::differs(format!("link {}", self.name), "a bridge", &found.kind));
        }
        if let Some(mac) = found.mac.filter(|mac| *mac != self.mac) {
            findings.push(Finding::differs(format!("MAC address of {object}"), self.mac, mac));
        }
        if !found.up {
            findings.push(Finding::differs(&object, "up", "down"));
        }
        if self.promiscuous && !found.promiscuous {
            findings.push(Finding::differs(&object, "promiscuous", "not"));
        }
        if self.vlan_filtering && !found.vlan_filtering {
            findings.push(Finding::differs(&object, "filtering VLANs", "not"));
        }
        Ok(findings)
    }

    /// Deletes the bridge if nobody uses it, neither a pod nor a call. DEL does not do so, as in the reference.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        world.forget_host_link(&self.name);
        let Some(found) = world.host_link(&self.name)?.filter(|l| l.kind == "bridge") else { return Ok(()) };
        if world.is_bridge_unused("")? {
            world.host()?.execute_one(link::delete(&found)).context("remove the bridge")?;
        }
        world.forget_host_link(&self.name);
        Ok(())
    }
}

fn filters_no_vlans() -> CniError {
    CniError::new(
        Code::MissingFeature,
        "vlan, vlanTrunk: this kernel has no VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING)",
    )
}
