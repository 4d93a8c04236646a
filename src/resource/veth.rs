//! The veth pair: one end on the host, where it may be a port of a bridge, the other the pod's interface.

use std::net::IpAddr;

use anyhow::bail;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, Kept, World};
use crate::net::rtnl::link::{self, Link, Port};
use crate::net::rtnl::veth_pair::{VethPair, create_veth};
use crate::net::{Mac, Rtnl, sysctl};
use crate::spec::digest::sha512_hex;
use crate::spec::result::IpConfig;
use crate::spec::{Attachment, CniError, Code};

/// The most bytes that a link's alias may have (`IFALIASZ` of linux/if.h less its NUL).
const ALIAS_BYTES: usize = 255;

/// A veth pair of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Veth {
    /// Whose it is; names the link for people by its alias, and tells it from others.
    pub attachment: Attachment,
    /// Name of the host end.
    pub host_name: String,
    /// MAC address of the host end.
    pub host_mac: Mac,
    /// The bridge that the host end is a port of, if of any.
    pub bridge: Option<String>,
    /// MAC address of the pod's end; on a CHECK `None` where the result does not tell.
    pub mac: Option<Mac>,
    /// MTU of both ends in bytes; `None` for the kernel's choice.
    pub mtu: Option<u32>,
    /// Whether a packet may go out by the port that it came by.
    pub hairpin: bool,
    /// Whether the port is kept from other isolated ports.
    pub isolated: bool,
}

/// The name of an attachment's link on the host: `veth` and eight hexadecimal digits, the form that the reference's
/// have. Found again by whoever knows the attachment.
pub fn host_name(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    format!("veth{}", sha512_hex(&[network, "/", container_id, "/", ifname], 8))
}

/// The MAC address of an attachment's link on the host.
pub fn host_mac(attachment: &Attachment) -> Mac {
    let Attachment { network, container_id, ifname } = attachment;
    mac_from(&["host", "/", network, "/", container_id, "/", ifname])
}

/// A MAC address made from text; always the same from the same.
pub fn mac_from(parts: &[&str]) -> Mac {
    let digits = sha512_hex(parts, 10);
    let byte = |i: usize| digits.get(2 * i..2 * i + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    Mac::local(std::array::from_fn(|i| byte(i).unwrap_or_default()))
}

/// The pod's MAC if nobody asks for one: made from its first address, so that who gets the address next has the
/// same, and no neighbour is left with a wrong entry. Without addresses it is made from the attachment.
pub fn pod_mac(attachment: &Attachment, ips: &[IpConfig]) -> Mac {
    let Attachment { network, container_id, ifname } = attachment;
    match ips.first().map(|ip| ip.address.address()) {
        Some(IpAddr::V4(a)) => {
            let [a, b, c, d] = a.octets();
            Mac::local([0x58, a, b, c, d])
        }
        Some(IpAddr::V6(a)) => mac_from(&["pod", &a.to_string()]),
        None => mac_from(&["pod", "/", network, "/", container_id, "/", ifname]),
    }
}

/// The alias that names an attachment's link.
pub(super) fn alias(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    let mut text = format!("{network}/{container_id}/{ifname}");
    // Names are ASCII but for the interface's, which is at the end.
    if text.len() > ALIAS_BYTES {
        text = format!("{}/{ifname}", sha512_hex(&[network, "/", container_id], 128));
    }
    text
}

impl Veth {
    /// The pair of an attachment of which nothing else is known, for removing it.
    pub fn of(attachment: &Attachment) -> Self {
        Self {
            attachment: attachment.clone(),
            host_name: host_name(attachment),
            host_mac: host_mac(attachment),
            bridge: None,
            mac: None,
            mtu: None,
            hairpin: false,
            isolated: false,
        }
    }

    /// Makes the pair. What an earlier attempt of the same attachment left is replaced.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let master = match &self.bridge {
            Some(bridge) => Some(world.existing_host_link(bridge)?.index),
            None => None,
        };
        let ifname = &self.attachment.ifname;
        world.pod()?.forget_link();
        for attempt in 0.. {
            let netns = world.pod()?.netns();
            let request = create_veth(&VethPair {
                name: &self.host_name,
                mac: self.host_mac,
                master,
                mtu: self.mtu,
                peer_name: ifname,
                peer_mac: self.mac.unwrap_or_else(|| mac_from(&[&self.host_name])),
                peer_netns: Some(netns),
            });
            match world.host()?.create(request) {
                Ok(born) => {
                    if let Some(index) = born.and_then(|link| link.peer) {
                        world.pod()?.expect_link(ifname, index);
                    }
                    break;
                }
                Err(e) if e.errno == Errno::EEXIST => {
                    let is_left_over = attempt == 0 && self.remove_own(world)?;
                    if !is_left_over {
                        bail!(self.name_is_taken(world)?);
                    }
                }
                Err(e) if e.errno == Errno::EXFULL => {
                    let bridge = self.bridge.as_deref().unwrap_or_default();
                    let msg = format!("bridge {bridge} is full: Linux allows a bridge 1023 ports");
                    bail!(CniError::new(Code::Exhausted, msg));
                }
                Err(e) if e.errno == Errno::EINVAL && self.mtu.is_some() => {
                    let mtu = self.mtu.unwrap_or_default();
                    bail!(CniError::config(format!("mtu: the kernel refuses {mtu} for a veth pair: {e}")));
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.finish(world)?;
        Ok(Ensured::Created)
    }

    fn finish(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        world.host()?.execute_one(link::set_alias(&self.host_name, &alias(&self.attachment)))?;
        if self.port() != Port::default() {
            let found = world.existing_host_link(&self.host_name)?;
            world.host()?.execute_one(link::set_port(&found, self.port()))?;
        }
        // A pod must not configure the host's routing by router advertisements.
        let _ = sysctl::set(&format!("ipv6/conf/{}/accept_ra", self.host_name), "0");
        Ok(())
    }

    fn port(&self) -> Port {
        Port { hairpin: self.hairpin, isolated: self.isolated }
    }

    fn name_is_taken(&self, world: &mut World<'_>) -> anyhow::Result<CniError> {
        let conflict = |msg: String| CniError::new(Code::Conflict, msg);
        let ifname = &self.attachment.ifname;
        Ok(match world.host_link(&self.host_name)? {
            Some(_) => conflict(format!(
                "link {} is there already and belongs to something else; it has the name that this attachment's \
                 link must have",
                self.host_name
            )),
            None => conflict(format!("CNI_IFNAME: interface {ifname:?} already exists in the container")),
        })
    }

    /// Tells how the pair is otherwise.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let ifname = &self.attachment.ifname;
        let inside = world.pod()?.rtnl()?.link(ifname)?;
        world.forget_host_link(&self.host_name);
        let outside = world.host_link(&self.host_name)?;
        if let Some(found) = &inside {
            let object = format!("pod interface {ifname}");
            if let (Some(want), Some(have)) = (self.mac, found.mac)
                && want != have
            {
                findings.push(Finding::differs(format!("MAC address of {object}"), want, have));
            }
            self.compare_mtu(found, &object, &mut findings);
        } else {
            findings.push(Finding::missing(format!("pod interface {ifname}")));
        }
        let object = format!("host link {}", self.host_name);
        let Some(found) = outside else {
            findings.push(Finding::missing(object));
            return Ok(findings);
        };
        if found.kind != "veth" {
            findings.push(Finding::differs(&object, "a veth", &found.kind));
        }
        // Who stands in for the pod's interface with another kind of link (kubevirt does) breaks the pair on purpose.
        if let Some(inside) = inside.filter(|l| l.kind == "veth" && l.peer != Some(found.index)) {
            let peer = inside.peer.map_or_else(|| "none".to_owned(), |i| format!("index {i}"));
            findings.push(Finding::differs(format!("peer of pod interface {ifname}"), &object, peer));
        }
        if !found.up {
            findings.push(Finding::differs(&object, "up", "down"));
        }
        self.compare_mtu(&found, &object, &mut findings);
        let Some(bridge) = &self.bridge else { return Ok(findings) };
        let master = world.host_link(bridge)?.map(|l| l.index);
        if found.master.is_none() || found.master != master {
            let have = match found.master {
                None => "none".to_owned(),
                Some(index) => {
                    world.host()?.link_by_index(index)?.map_or_else(|| index.to_string(), |l| l.name)
                }
            };
            findings.push(Finding::differs(format!("bridge of {object}"), bridge, have));
        } else {
            for (flag, want, have) in [
                ("hairpin mode", self.hairpin, found.port.hairpin),
                ("port isolation", self.isolated, found.port.isolated),
            ] {
                if want != have {
                    let word = |on: bool| if on { "on" } else { "off" };
                    findings.push(Finding::differs(format!("{flag} of {object}"), word(want), word(have)));
                }
            }
        }
        Ok(findings)
    }

    fn compare_mtu(&self, found: &Link, object: &str, findings: &mut Vec<Finding>) {
        if let Some(want) = self.mtu.filter(|mtu| *mtu != found.mtu) {
            findings.push(Finding::differs(format!("MTU of {object}"), want, found.mtu));
        }
    }

    /// Deletes the pair and returns when both ends are gone.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        self.remove_own(world).map(|_| ())
    }

    /// Deletes the pair if it is this attachment's; tells whether it was there and was.
    fn remove_own(&self, world: &mut World<'_>) -> anyhow::Result<bool> {
        world.forget_host_link(&self.host_name);
        let Some(found) = world.host_link(&self.host_name)?.filter(|l| l.kind == "veth") else {
            return Ok(false);
        };
        world.forget_host_link(&self.host_name);
        // Without an alias it is one whose ADD was killed before it could name it.
        if !found.alias.is_empty() && found.alias != alias(&self.attachment) {
            return Ok(false);
        }
        world.remove_host_link(&found)?;
        Ok(true)
    }
}

/// Deletes the pairs of attachments to a network that are not kept, of which there is no record: their aliases tell whose
/// they are. What has got its alias by hand has another name.
///
/// An alias that had to be cut tells no network, so such a pair stays for DEL.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Vec<anyhow::Error> {
    match strays(network, kept, world) {
        // As they were found: a link of the same name that has been made since is that of a new attachment.
        Ok(strays) => {
            strays.iter().filter_map(|link| world.remove_host_link(link).err()).map(Into::into).collect()
        }
        Err(e) => vec![e],
    }
}

fn strays(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> anyhow::Result<Vec<Link>> {
    let mut found = world.host()?.veths()?;
    found.retain(|link| owner(link).is_some_and(|attachment| attachment.network == network));
    if !found.is_empty() {
        // Asked for after the links were: what a call makes meanwhile belongs to somebody who is kept.
        let kept = kept()?;
        found.retain(|link| owner(link).is_some_and(|attachment| !kept.contains(&attachment)));
    }
    Ok(found)
}

/// Whose a link is, by its alias, if its name is that of the same attachment.
fn owner(link: &Link) -> Option<Attachment> {
    named_by(&link.alias).filter(|attachment| link.name == host_name(attachment))
}

/// Whom an alias names, if it is one that [`alias`] has made, and whole.
pub(super) fn named_by(alias: &str) -> Option<Attachment> {
    let mut parts = alias.splitn(3, '/').map(str::to_owned);
    Some(Attachment { network: parts.next()?, container_id: parts.next()?, ifname: parts.next()? })
}

/// The pod's interface of an attachment of which there is no record: one made by another suite, whose host end has
/// a name nobody can derive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignVeth {
    /// Whose it is.
    pub attachment: Attachment,
}

impl ForeignVeth {
    /// Deletes the pair by its end in the pod. Without the pod's namespace there is nothing left of it.
    ///
    /// An interface of that name may as well be what an ADD has failed for: one that is no veth, or another
    /// attachment's, which the alias of its end on the host tells. That stays.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let inside = world.pod()?.rtnl()?.link(&self.attachment.ifname)?;
        let Some(inside) = inside.filter(|link| link.kind == "veth") else { return Ok(()) };
        let outside = match inside.peer {
            Some(peer) => world.host()?.link_by_index(peer)?,
            None => None,
        };
        let outside = outside.filter(|link| link.kind == "veth" && link.peer == Some(inside.index));
        match outside.and_then(|link| owner(&link)) {
            Some(another) if another != self.attachment => Ok(()),
            _ => world.remove_pod_link(&inside),
        }
    }
}

/// Tells whether a link of the host has become able to carry packets, waiting for it until the deadline.
pub(super) fn wait_until_operational(
    rtnl: &mut Rtnl,
    name: &str,
    deadline: std::time::Instant,
) -> anyhow::Result<Option<Link>> {
    use crate::net::netlink::Socket;
    let mut found = rtnl.link(name)?;
    if found.as_ref().is_some_and(|l| l.operational) {
        return Ok(found);
    }
    let mut events = Socket::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    events.join(link::RTNLGRP_LINK)?;
    loop {
        // Looked at again after each event, and once after the group was joined: it may have changed in between.
        found = rtnl.link(name)?;
        if found.as_ref().is_none_or(|l| l.operational) {
            return Ok(found);
        }
        if events.next_events(deadline)?.is_none() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests;
