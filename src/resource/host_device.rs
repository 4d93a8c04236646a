//! A device of the host that is the pod's interface as long as the pod has it.
//!
//! It is moved and renamed by one request each way. In the pod, its alias is the name that it had on the host: the
//! reference's contract, by which either suite returns what the other has moved.

use std::path::PathBuf;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::link_tuning::{Attributes, changes};
use super::sublink::Sandbox;
use super::{Ensured, Finding, World};
use crate::net::rtnl::link;
use crate::net::rtnl::relocation::{Relocation, relocate};
use crate::net::{Link, Mac, Netns, Rtnl};
use crate::spec::names::check_ifname;
use crate::spec::{CniError, Code};

/// A device, as it was on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// Its name in the pod.
    pub ifname: String,
    /// The pod's namespace, for those who return it without being told of the pod.
    pub sandbox: Sandbox,
    /// Its name on the host; on a CHECK `None` where nobody says.
    pub name: Option<String>,
    /// Its kind on the host; empty for physical devices, which the kernel gives back when the pod's namespace ends.
    pub kind: String,
    /// Its MAC address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU in bytes, where it is known.
    pub mtu: Option<u32>,
    /// Its alias.
    pub alias: String,
    /// Whether it was up.
    pub up: bool,
    /// What else of it can be tuned, as it was; nothing where nobody knows.
    #[serde(default)]
    pub modes: Attributes,
}

impl HostDevice {
    /// The device that a link of the host is, on its way to a pod.
    pub fn of(found: Link, ifname: String, sandbox: Sandbox) -> Self {
        let modes = Attributes {
            promisc: Some(found.promiscuous),
            allmulti: Some(found.all_multicast),
            tx_queue_len: found.tx_queue_len,
            ..Attributes::default()
        };
        Self {
            modes,
            ifname,
            sandbox,
            name: Some(found.name),
            kind: found.kind,
            mac: found.mac,
            mtu: Some(found.mtu),
            alias: found.alias,
            up: found.up,
        }
    }

    /// Moves it into the pod, where it is down.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let (ifname, name) = (&self.ifname, self.name.as_deref().unwrap_or_default());
        let pod = world.pod()?;
        pod.forget_link();
        if pod.rtnl()?.link(ifname)?.is_some() {
            let msg = format!("CNI_IFNAME: interface {ifname:?} already exists in the container");
            bail!(CniError::new(Code::Conflict, msg));
        }
        world.forget_host_link(name);
        let found = world.existing_host_link(name)?;
        world.forget_host_link(name);
        let netns = world.pod()?.netns();
        let request = relocate(&Relocation { link: &found, netns, name: ifname, alias: name });
        world.host()?.execute_one(request)?;
        Ok(Ensured::Created)
    }

    /// Tells how it is otherwise in the pod.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("pod interface {}", self.ifname);
        let Some(found) = world.pod()?.rtnl()?.link(&self.ifname)? else {
            return Ok(vec![Finding::missing(object)]);
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
        if let Some(name) = self.name.as_ref().filter(|name| **name != found.alias) {
            findings.push(Finding::differs(
                format!("alias of {object}, by which it finds its way back,"),
                format!("{name:?}"),
                format!("{:?}", found.alias),
            ));
        }
        Ok(findings)
    }

    /// Returns it to the host, with the name and all else that it had there.
    ///
    /// If somebody else has its name by now, that is an error, and it stays where it is until the name is free.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        if let Some((netns, mut rtnl)) = self.open_pod(world)? {
            let found = match rtnl.link(&self.ifname)?.filter(|link| self.is_in_pod_as(link)) {
                Some(found) => Some(found),
                None => rtnl.links()?.into_iter().find(|link| self.is_in_pod_as(link)),
            };
            if let Some(found) = found {
                return self.bring_home(&found, &mut rtnl, &netns, world);
            }
        }
        self.rename_at_home(name, world)
    }

    /// The pod's namespace, if it is still there.
    fn open_pod(&self, world: &mut World<'_>) -> anyhow::Result<Option<(Netns, Rtnl)>> {
        let home = world.home()?;
        let Some(netns) = self.sandbox.open()? else { return Ok(None) };
        let rtnl = netns.run(&home, Rtnl::open)??;
        Ok(Some((netns, rtnl)))
    }

    /// Whether a link of the pod is this device: by its alias; or by its MAC address, where the move was interrupted before
    /// it had one, or the pod took it away.
    fn is_in_pod_as(&self, link: &Link) -> bool {
        let is_named = link.name == self.ifname || Some(&link.name) == self.name.as_ref();
        Some(&link.alias) == self.name.as_ref()
            || (is_named && link.kind == self.kind && self.mac.is_some() && link.mac == self.mac)
    }

    fn bring_home(
        &self,
        found: &Link,
        rtnl: &mut Rtnl,
        netns: &Netns,
        world: &mut World<'_>,
    ) -> anyhow::Result<()> {
        let name = self.name.as_deref().unwrap_or_default();
        world.forget_host_link(name);
        if world.host_link(name)?.is_some() {
            let msg = format!(
                "device {:?} cannot go back from {} to the host as {name:?}: another link has that name",
                found.name,
                netns.path().display()
            );
            let details = "it stays where it is; rename or remove the other link, and call DEL again";
            bail!(CniError::new(Code::Conflict, msg).with_details(details));
        }
        let home = world.home()?;
        // It keeps the alias until all is as it was, so that it is known if this call does not come so far.
        rtnl.execute_one(relocate(&Relocation { link: found, netns: &home, name, alias: name }))?;
        self.restore(name, world)
    }

    /// What the kernel gave back to the host when the pod's namespace ended has the name that it had in the pod, or one
    /// that the kernel made up.
    fn rename_at_home(&self, name: &str, world: &mut World<'_>) -> anyhow::Result<()> {
        world.forget_host_link(name);
        let at_home = world.host_link(name)?;
        if at_home.as_ref().is_some_and(|link| link.alias == name && self.alias != name && self.is_like(link))
        {
            // An earlier DEL did not come to its end.
            return self.restore(name, world);
        }
        let is_lost = |link: &Link| link.alias == name && link.name != name && self.is_like(link);
        let Some(found) = world.host()?.links()?.into_iter().find(is_lost) else { return Ok(()) };
        let home = world.home()?;
        if at_home.is_some() {
            let msg = format!(
                "device {name:?} is back on the host as {:?}, and another link has its name",
                found.name
            );
            bail!(CniError::new(Code::Conflict, msg));
        }
        let rename = relocate(&Relocation { link: &found, netns: &home, name, alias: name });
        for answer in world.host()?.execute(vec![link::set_down(&found), rename])? {
            answer?;
        }
        self.restore(name, world)
    }

    fn is_like(&self, link: &Link) -> bool {
        link.kind == self.kind && (self.mac.is_none() || link.mac == self.mac)
    }

    /// Gives the device on the host back what it had there. Goes on past errors, and tells the first. Its own alias comes
    /// last, and only if all is well: the next DEL goes by the other.
    fn restore(&self, name: &str, world: &mut World<'_>) -> anyhow::Result<()> {
        world.forget_host_link(name);
        let found = world.existing_host_link(name)?;
        let mut batch = Vec::new();
        if let Some(mac) = self.mac.filter(|mac| found.mac != Some(*mac)) {
            batch.push(link::set_mac(&found, mac));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| found.mtu != *mtu) {
            batch.push(link::set_mtu(&found, mtu));
        }
        // Who tuned it could not set it back if the pod was gone before.
        batch.extend(changes(&found, &self.modes));
        if self.up {
            batch.push(link::set_up(&found));
        }
        world.forget_host_link(name);
        if !batch.is_empty() {
            for answer in world.host()?.execute(batch)? {
                answer?;
            }
        }
        Ok(world.host()?.execute_one(link::set_alias(name, &self.alias))?)
    }
}

/// A device of the host in a pod of which there is no record: moved there by another suite, and told by its alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignHostDevice {
    /// Its name in the pod.
    pub ifname: String,
    /// Its name on the host, where the configuration says it.
    pub name: Option<String>,
}

impl ForeignHostDevice {
    /// Returns it to the host. It stays down, as the other suite would have left it.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if world.has_pod()? {
            let netns = world.pod()?.netns();
            let sandbox = Sandbox { path: netns.path().to_owned(), identity: netns.identity() };
            let found = world.pod()?.rtnl()?.link(&self.ifname)?;
            // Links that this program makes have an alias that can be no name.
            if let Some(found) = found.filter(|link| check_ifname(&link.alias).is_ok()) {
                return self.device(found.alias, found.kind, sandbox).remove(world);
            }
        }
        let Some(name) = &self.name else { return Ok(()) };
        let home = world.home()?;
        let nowhere = Sandbox { path: PathBuf::new(), identity: home.identity() };
        self.device(name.clone(), String::new(), nowhere).remove(world)
    }

    fn device(&self, name: String, kind: String, sandbox: Sandbox) -> HostDevice {
        HostDevice {
            ifname: self.ifname.clone(),
            sandbox,
            name: Some(name),
            kind,
            mac: None,
            mtu: None,
            alias: String::new(),
            up: false,
            modes: Attributes::default(),
        }
    }
}
