//! A TAP device as the pod's interface: a virtual machine, or another program, is at its other end.
//!
//! It ends with this program until the last step makes it stay, and by then it has the alias that names its owner. So
//! whatever is left by a call that was killed is either nothing or known by its alias.

use anyhow::bail;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::sublink::Sandbox;
use super::veth::alias;
use super::{Ensured, Finding, World};
use crate::net::tun::{DEVICE, NewTap, Tap as NewDevice};
use crate::net::{Link, Mac, Rtnl, rtnl, selinux};
use crate::spec::{Attachment, CniError, Code};

/// The pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// Whose it is.
    pub attachment: Attachment,
    /// The namespace that it is in, for those who remove it without being told of the pod.
    pub sandbox: Sandbox,
    /// Its MAC address: on a CHECK `None` where the result does not tell.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; `None` for the kernel's choice.
    pub mtu: Option<u32>,
    /// User who may open it; `None` for all.
    pub owner: Option<u32>,
    /// Group whose members may open it; `None` for all.
    pub group: Option<u32>,
    /// Whether programs may have several queues of it.
    pub multi_queue: bool,
    /// Whether packets have a header of virtio, unless the program that opens it says otherwise.
    pub vnet_hdr: bool,
    /// The bridge in the pod that it is a port of, if of any.
    pub bridge: Option<String>,
    /// Its SELinux context, if it is to have one of its own.
    pub label: Option<String>,
}

impl Tap {
    /// Makes the device, which stays down.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let ifname = &self.attachment.ifname;
        self.remove(world)?;
        let pod = world.pod()?;
        pod.forget_link();
        let bridge = match &self.bridge {
            Some(name) => match pod.rtnl()?.link(name)? {
                Some(found) if found.kind == "bridge" => Some(found),
                Some(_) => {
                    bail!(CniError::config(format!("bridge: {name:?} in the container is not a bridge")))
                }
                None => bail!(CniError::config(format!("bridge: the container has no link {name:?}"))),
            },
            None => None,
        };
        let new = NewTap {
            name: ifname,
            owner: self.owner,
            group: self.group,
            multi_queue: self.multi_queue,
            vnet_hdr: self.vnet_hdr,
        };
        let made = match &self.label {
            Some(label) => pod.visit(|| selinux::run(label, || NewDevice::create(&new)))??,
            None => pod.visit(|| NewDevice::create(&new))?,
        };
        let device = match made {
            Ok(device) => device,
            Err(e) if e.errno == Errno::EBUSY => {
                let msg = format!("CNI_IFNAME: interface {ifname:?} already exists in the container");
                bail!(CniError::new(Code::Conflict, msg));
            }
            Err(e)
                if e.deed.contains(DEVICE)
                    && matches!(e.errno, Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) =>
            {
                bail!(CniError::new(Code::Kernel, format!("this host has no TAP devices (CONFIG_TUN): {e}")));
            }
            Err(e) => return Err(e.into()),
        };
        let text = alias(&self.attachment);
        let request = rtnl::link::dress(ifname, &text, self.mac, self.mtu, bridge.as_ref());
        match pod.rtnl()?.execute_one(request) {
            Err(e) if e.errno == Errno::EINVAL && self.mtu.is_some() => {
                let mtu = self.mtu.unwrap_or_default();
                bail!(CniError::config(format!("mtu: the kernel refuses {mtu} for a TAP device: {e}")));
            }
            outcome => outcome?,
        }
        device.persist()?;
        Ok(Ensured::Created)
    }

    /// Tells how the device is otherwise. Whether packets have a header is up to the program that has it open.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let ifname = &self.attachment.ifname;
        let object = format!("pod interface {ifname}");
        let pod = world.pod()?;
        let Some(found) = pod.rtnl()?.link(ifname)? else { return Ok(vec![Finding::missing(object)]) };
        let Some(info) = found.tun.filter(|info| info.is_tap) else {
            let have = if found.kind.is_empty() { "a device" } else { &found.kind };
            return Ok(vec![Finding::differs(object, "a TAP device", have)]);
        };
        let mut findings = Vec::new();
        if let (Some(want), Some(have)) = (self.mac, found.mac)
            && want != have
        {
            findings.push(Finding::differs(format!("MAC address of {object}"), want, have));
        }
        if let Some(want) = self.mtu.filter(|mtu| *mtu != found.mtu) {
            findings.push(Finding::differs(format!("MTU of {object}"), want, found.mtu));
        }
        let all = |id: Option<u32>| id.map_or_else(|| "everybody".to_owned(), |id| id.to_string());
        for (what, want, have) in [("owner", self.owner, info.owner), ("group", self.group, info.group)] {
            if want != have {
                findings.push(Finding::differs(format!("{what} of {object}"), all(want), all(have)));
            }
        }
        let word = |on: bool| if on { "on" } else { "off" };
        for (what, want, have) in
            [("multiple queues", self.multi_queue, info.multi_queue), ("persistence", true, info.persistent)]
        {
            if want != have {
                findings.push(Finding::differs(format!("{what} of {object}"), word(want), word(have)));
            }
        }
        if let Some(name) = &self.bridge {
            let bridge = pod.rtnl()?.link(name)?.map(|link| link.index);
            if bridge.is_none() || found.master != bridge {
                let have = found.master.map_or_else(|| "none".to_owned(), |index| format!("index {index}"));
                findings.push(Finding::differs(format!("bridge of {object}"), name, have));
            }
        }
        Ok(findings)
    }

    /// Deletes the device, if it is the attachment's, and returns when it is gone. Where the pod's namespace is not known,
    /// that which it was made in is looked at, if it is there.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let is_own = |link: &Link| link.kind == "tun" && link.alias == alias(&self.attachment);
        let ifname = &self.attachment.ifname;
        if world.has_pod()? && world.pod()?.netns().identity() == self.sandbox.identity {
            world.pod()?.forget_link();
            if let Some(found) = world.pod()?.rtnl()?.link(ifname)?.filter(is_own) {
                world.remove_pod_link(&found)?;
            }
        } else if let Some(netns) = self.sandbox.open()? {
            let home = world.home()?;
            let found = netns.run(&home, || Rtnl::open()?.link(ifname))??;
            if let Some(found) = found.filter(is_own) {
                world.remove_link_in(&netns, &found)?;
            }
        }
        Ok(())
    }
}
