//! A pod's interface that shares another link, its master: macvlan, ipvlan or VLAN; or a dummy, which has none.
//!
//! It is made by one request, in the pod's namespace and under its final name; nothing is moved. Its name says nothing
//! of whose it is, so it is born into a group with a number made from its attachment, and leaves it as it gets the alias
//! that names the attachment. Only what has the one or the other is ever taken for the attachment's own.

use std::path::PathBuf;

use anyhow::{Context, bail};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::veth::{alias, mac_from};
use super::{Ensured, Finding, World};
use crate::net::netns::Identity;
use crate::net::rtnl::link;
use crate::net::rtnl::sublink::{self, MacvlanMode, NewSublink, Settings};
use crate::net::{self, Link, Mac, Netns, Rtnl};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};

/// The pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sublink {
    /// Whose it is.
    pub attachment: Attachment,
    /// The namespace that it is in, for those who remove it without being told of the pod.
    pub sandbox: Sandbox,
    /// Its kind, and what that is told.
    pub settings: Settings,
    /// Where its master is; nobody looks where there is none.
    pub place: Place,
    /// Its master; on a CHECK `None` where the configuration does not name it.
    pub master: Option<String>,
    /// Its MAC address: on a CHECK `None` where the result does not tell.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Mtu,
}

/// A namespace that may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its path.
    pub path: PathBuf,
    /// What tells it from another that has the path later.
    pub identity: Identity,
}

/// In which namespace a master is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the host's.
    Host,
    /// In the pod's (`linkInContainer`).
    Pod,
}

/// The MTU of an interface, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mtu {
    /// This one.
    Fixed(u32),
    /// The master's. What it was when the interface was made, where that is known; later the kernel may let the
    /// interface follow its master, or not.
    Inherited(Option<u32>),
}

impl Place {
    /// The link of a name there, looked up anew.
    pub fn link(self, name: &str, world: &mut World<'_>) -> anyhow::Result<Option<Link>> {
        Ok(match self {
            Self::Host => {
                world.forget_host_link(name);
                world.host_link(name)?
            }
            Self::Pod => world.pod()?.rtnl()?.link(name)?,
        })
    }

    fn link_by_index(self, index: u32, world: &mut World<'_>) -> anyhow::Result<Option<Link>> {
        Ok(match self {
            Self::Host => world.host()?.link_by_index(index)?,
            Self::Pod => world.pod()?.rtnl()?.link_by_index(index)?,
        })
    }
}

impl Sandbox {
    /// The namespace, if it is still there.
    pub(super) fn open(&self) -> net::Result<Option<Netns>> {
        Ok(Netns::find(&self.path)?.filter(|found| found.identity() == self.identity))
    }
}

/// The MAC address of an attachment's interface, where nobody asks for one: always the same, and known before an IPAM is
/// asked that may want to know it (DHCP).
pub fn mac_of(attachment: &Attachment) -> Mac {
    let Attachment { network, container_id, ifname } = attachment;
    mac_from(&["pod", "/", network, "/", container_id, "/", ifname])
}

/// The number of the group that an attachment's interface is born into; never 0, which is that of all other links.
fn mark(attachment: &Attachment) -> u32 {
    let Attachment { network, container_id, ifname } = attachment;
    let digits = sha512_hex(&["group", "/", network, "/", container_id, "/", ifname], 8);
    u32::from_str_radix(&digits, 16).unwrap_or_default().max(1)
}

/// The name that an attachment's interface is born with where it cannot have its own at once.
fn passing_name(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    format!("tmp{}", sha512_hex(&[network, "/", container_id, "/", ifname], 12))
}

/// The link of a namespace that is the attachment's own.
fn own(attachment: &Attachment, rtnl: &mut Rtnl) -> net::Result<Option<Link>> {
    for name in [&attachment.ifname, &passing_name(attachment)] {
        if let Some(found) = rtnl.link(name)?.filter(|link| is_own(attachment, link)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn is_own(attachment: &Attachment, link: &Link) -> bool {
    if link.alias.is_empty() { link.group == mark(attachment) } else { link.alias == alias(attachment) }
}

impl Sublink {
    /// Makes the interface, which stays down. What an earlier attempt of the same attachment left is replaced.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        world.pod()?.forget_link();
        let ifname = &self.attachment.ifname;
        match self.create(ifname, world)? {
            Ok(()) => self.complete(world)?,
            Err(e) if e.errno == Errno::EEXIST => self.create_despite(&e, world)?,
            Err(e) => bail!(self.explain(&e)),
        }
        if let (Settings::Macvlan { mode: MacvlanMode::Passthru, .. }, Some(mac)) = (self.settings, self.mac)
        {
            self.set_mac(mac, world)?;
        }
        Ok(Ensured::Created)
    }

    /// Sends the request; the inner error is the kernel's about it.
    fn create(&self, name: &str, world: &mut World<'_>) -> anyhow::Result<net::Result<()>> {
        let master = match &self.master {
            Some(master) => {
                let found = self.place.link(master, world)?;
                Some(found.with_context(|| format!("link {master} has vanished"))?.index)
            }
            None => None,
        };
        let netns = match self.place {
            Place::Host if master.is_some() => Some(world.pod()?.netns()),
            _ => None,
        };
        let is_from_host = netns.is_some();
        let request = sublink::create(&NewSublink {
            name,
            settings: self.settings,
            master,
            netns,
            // One that is given a VLAN or an ipvlan would tie it to that, and it would not follow its master's.
            mac: self.mac.filter(|_| self.has_own_mac()),
            mtu: match self.mtu {
                Mtu::Fixed(mtu) => Some(mtu),
                Mtu::Inherited(_) => None,
            },
            group: mark(&self.attachment),
        });
        let rtnl = if is_from_host { world.host()? } else { world.pod()?.rtnl()? };
        Ok(rtnl.execute_one(request))
    }

    /// Whether it is born with a MAC address of its own. A passthru has its master's until it is given another.
    fn has_own_mac(&self) -> bool {
        match self.settings {
            Settings::Macvlan { mode, .. } => mode != MacvlanMode::Passthru,
            Settings::Dummy => true,
            Settings::Ipvlan { .. } | Settings::Vlan { .. } => false,
        }
    }

    fn complete(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let request = sublink::complete(&self.attachment.ifname, &alias(&self.attachment));
        Ok(world.pod()?.rtnl()?.execute_one(request)?)
    }

    /// Makes it where the kernel says that something is there already.
    fn create_despite(&self, error: &net::Error, world: &mut World<'_>) -> anyhow::Result<()> {
        let ifname = &self.attachment.ifname;
        if let Some(found) = world.pod()?.rtnl()?.link(ifname)? {
            if !is_own(&self.attachment, &found) {
                let msg = format!("CNI_IFNAME: interface {ifname:?} already exists in the container");
                bail!(CniError::new(Code::Conflict, msg));
            }
            world.remove_pod_link(&found)?;
            return match self.create(ifname, world)? {
                Ok(()) => self.complete(world),
                Err(e) => bail!(self.explain(&e)),
            };
        }
        // Older kernels look for the name among the host's links.
        if self.place == Place::Host && self.master.is_some() && world.host()?.link(ifname)?.is_some() {
            let passing = passing_name(&self.attachment);
            if let Err(e) = self.create(&passing, world)? {
                bail!(self.explain(&e));
            }
            let pod = world.pod()?.rtnl()?;
            let found = pod.link(&passing)?.with_context(|| format!("link {passing} has vanished"))?;
            pod.execute_one(sublink::complete_and_rename(&found, ifname, &alias(&self.attachment)))?;
            return Ok(());
        }
        bail!(self.explain(error))
    }

    /// Gives a passthru its MAC address, which is its master's as it is born, whatever the request says. The kernel
    /// gives the master the same, and its own again when the macvlan is gone.
    fn set_mac(&self, mac: Mac, world: &mut World<'_>) -> anyhow::Result<()> {
        let pod = world.pod()?;
        let found = pod.existing_link(&self.attachment.ifname)?;
        if found.mac != Some(mac) {
            pod.rtnl()?.execute_one(link::set_mac(&found, mac))?;
        }
        Ok(())
    }

    /// What a refusal of the kernel means.
    fn explain(&self, error: &net::Error) -> CniError {
        let master = self.master.as_deref().unwrap_or_default();
        let kind = self.settings.kind();
        let conflict = |msg: String| CniError::new(Code::Conflict, msg);
        match (error.errno, self.settings) {
            (Errno::EEXIST, Settings::Vlan { id }) => conflict(format!(
                "vlanId: VLAN {id} of {master} is there already, maybe in another pod: Linux has each only once: {error}"
            )),
            (Errno::EBUSY, _) => conflict(format!(
                "master: {master} is in use as something else than the master of {kind} links, such as a bridge's \
                 port: {error}"
            )),
            (Errno::EINVAL, Settings::Macvlan { mode: MacvlanMode::Passthru, .. }) => conflict(format!(
                "master: {master} cannot have a macvlan in mode passthru: it has another macvlan, or is no Ethernet \
                 link: {error}"
            )),
            (Errno::EINVAL, Settings::Macvlan { .. }) => conflict(format!(
                "master: {master} cannot have a macvlan: it has one in mode passthru, or is no Ethernet link: {error}"
            )),
            // The words are of rtnetlink for a kind that is not there; of others, for a master that is not suitable.
            (Errno::EOPNOTSUPP, _) if error.text.is_empty() || error.text.contains("nknown device type") => {
                let option = self.settings.option();
                let msg = format!("this kernel has no {kind} links ({option}): {error}");
                CniError::new(Code::MissingFeature, msg)
            }
            (Errno::EOPNOTSUPP, settings) => {
                conflict(format!("master: {master} cannot be the master of a {settings}: {error}"))
            }
            _ => CniError::new(Code::Kernel, error.to_string()),
        }
    }

    /// Tells how the interface is otherwise.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let ifname = &self.attachment.ifname;
        let object = format!("pod interface {ifname}");
        let Some(found) = world.pod()?.rtnl()?.link(ifname)? else {
            let mut findings = vec![Finding::missing(object)];
            if let Some(master) = &self.master
                && self.place.link(master, world)?.is_none()
            {
                findings.push(Finding::missing(format!("master {master}")));
            }
            return Ok(findings);
        };
        let mut findings = Vec::new();
        if found.kind != self.settings.kind() {
            let have = if found.kind.is_empty() { "a device" } else { &found.kind };
            findings.push(Finding::differs(&object, self.settings.kind(), have));
            return Ok(findings);
        }
        if let Some(have) = found.settings.filter(|have| !self.settings.is_met_by(*have)) {
            findings.push(Finding::differs(&object, self.settings, have));
        } else if found.settings.is_none() && self.settings != Settings::Dummy {
            findings.push(Finding::differs(&object, self.settings, "in another mode"));
        }
        let master = match found.peer.filter(|_| self.settings != Settings::Dummy) {
            Some(index) => self.place.link_by_index(index, world)?,
            None => None,
        };
        if let Some(want) = &self.master {
            let have = master.as_ref().map(|link| link.name.as_str());
            if have != Some(want) {
                let have = have.unwrap_or("none of that namespace");
                findings.push(Finding::differs(format!("master of {object}"), want, have));
            }
        }
        // Those that share their master's address follow it, or not, if it changes.
        let shared = match self.settings {
            Settings::Vlan { .. } | Settings::Ipvlan { .. } => master.as_ref().and_then(|link| link.mac),
            Settings::Macvlan { .. } | Settings::Dummy => None,
        };
        if let (Some(want), Some(have)) = (self.mac, found.mac)
            && want != have
            && shared != Some(have)
        {
            findings.push(Finding::differs(format!("MAC address of {object}"), want, have));
        }
        self.compare_mtu(&found, master.as_ref(), &object, &mut findings);
        Ok(findings)
    }

    fn compare_mtu(&self, found: &Link, master: Option<&Link>, object: &str, findings: &mut Vec<Finding>) {
        let want = match self.mtu {
            Mtu::Fixed(mtu) => mtu,
            Mtu::Inherited(Some(mtu)) if master.is_none_or(|master| master.mtu != found.mtu) => mtu,
            Mtu::Inherited(_) => return,
        };
        if found.mtu != want {
            findings.push(Finding::differs(format!("MTU of {object}"), want, found.mtu));
        }
    }

    /// Deletes the interface and returns when it is gone. Where the pod's namespace is not known, that which it was made
    /// in is looked at, if it is there.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let is_in_pod = world.has_pod()? && world.pod()?.netns().identity() == self.sandbox.identity;
        if is_in_pod {
            let pod = world.pod()?;
            pod.forget_link();
            if let Some(found) = own(&self.attachment, pod.rtnl()?)? {
                world.remove_pod_link(&found)?;
            }
        } else if let Some(netns) = self.sandbox.open()? {
            let home = world.home()?;
            let found = netns.run(&home, || own(&self.attachment, &mut Rtnl::open()?))??;
            if let Some(found) = found {
                world.remove_link_in(&netns, &found)?;
            }
        }
        Ok(())
    }
}

/// The pod's interface of an attachment of which there is no record: its own, or one that another suite made, which has
/// no alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignSublink {
    /// Whose it is.
    pub attachment: Attachment,
    /// Its kind.
    pub kind: String,
}

impl ForeignSublink {
    /// Deletes it. Without the pod's namespace there is nothing left of it.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let pod = world.pod()?;
        pod.forget_link();
        let rtnl = pod.rtnl()?;
        let found = match own(&self.attachment, rtnl)? {
            Some(found) => Some(found),
            None => rtnl
                .link(&self.attachment.ifname)?
                .filter(|link| link.kind == self.kind && link.alias.is_empty() && link.group == 0),
        };
        match found {
            Some(found) => world.remove_pod_link(&found),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::names::check_ifname;

    fn attachment(container_id: &str) -> Attachment {
        Attachment { network: "n".into(), container_id: container_id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn only_what_says_so_is_ones_own() {
        let (own, other) = (attachment("a"), attachment("b"));
        let link = |group, alias: &str| Link { group, alias: alias.to_owned(), ..Link::default() };
        assert!(is_own(&own, &link(mark(&own), "")) && is_own(&own, &link(0, &alias(&own))));
        for foreign in [link(0, ""), link(mark(&other), ""), link(0, &alias(&other)), link(mark(&own), "x")] {
            assert!(!is_own(&own, &foreign), "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_from_an_attachment_can_be_used(id in "[a-z0-9]{1,64}") {
            let attachment = attachment(&id);
            prop_assert!(check_ifname(&passing_name(&attachment)).is_ok());
            prop_assert!(mac_of(&attachment).is_valid());
            prop_assert!(mark(&attachment) != 0);
        }
    }
}
