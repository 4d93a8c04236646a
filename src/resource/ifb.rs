//! The link that a pod's packets are sent by on their way in, so that they can be delayed.

use anyhow::bail;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::veth::{alias, mac_from, named_by};
use super::{Ensured, Finding, Kept, World};
use crate::net::Mac;
use crate::net::rtnl::filter::Deed;
use crate::net::rtnl::link::{self, Link};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};

/// An intermediate functional block of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ifb {
    /// Whose it is; names the link for people by its alias, and tells it from others.
    pub attachment: Attachment,
    /// Its name; see [`names`].
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The names that the link of an attachment may have.
///
/// The first is the reference's, which its DEL looks for. It is the same for all interfaces that a container has on a
/// network; those that come when it is taken have the second.
pub fn names(attachment: &Attachment) -> [String; 2] {
    let Attachment { network, container_id, ifname } = attachment;
    [
        format!("bwp{}", sha512_hex(&[network, container_id], 12)),
        format!("bwp{}", sha512_hex(&[network, "/", container_id, "/", ifname], 12)),
    ]
}

/// Whether the link of some attachment, of this suite or the reference, has such a name.
pub fn is_name(name: &str) -> bool {
    let digits = name.strip_prefix("bwp").unwrap_or_default();
    digits.len() == 12 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The MAC address of an attachment's link.
pub fn mac(attachment: &Attachment) -> Mac {
    let Attachment { network, container_id, ifname } = attachment;
    mac_from(&["ifb", "/", network, "/", container_id, "/", ifname])
}

/// The name that the link of an attachment is to have, whose link on the host is `host_link`.
pub fn choose_name(
    attachment: &Attachment,
    host_link: &Link,
    world: &mut World<'_>,
) -> anyhow::Result<String> {
    let [usual, own] = names(attachment);
    let Some(found) = world.host_link(&usual)? else { return Ok(usual) };
    let is_own = if found.alias.is_empty() {
        // The reference names no owner; but this interface's packets go there, or they do not.
        found.mac == Some(mac(attachment))
            || world.host()?.deeds(host_link)?.contains(&Deed::Redirect(found.index))
    } else {
        found.alias == alias(attachment)
    };
    Ok(if is_own { usual } else { own })
}

impl Ifb {
    /// The link of an attachment of which nothing else is known, by one of its names, for removing it.
    pub fn of(attachment: &Attachment, name: String) -> Self {
        Self { attachment: attachment.clone(), name, mac: mac(attachment), mtu: 0 }
    }

    /// Makes the link. What an earlier attempt of the same attachment left is replaced.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        for attempt in 0.. {
            let outcome = world.host()?.execute_one(link::create_ifb(&self.name, self.mac, self.mtu));
            world.forget_host_link(&self.name);
            match outcome {
                Ok(()) => break,
                Err(e) if e.errno == Errno::EEXIST => {
                    if attempt > 0 || !self.remove_predecessor(world)? {
                        let msg = format!(
                            "link {} is there already and belongs to something else; it has the name that this \
                             attachment's link must have",
                            self.name
                        );
                        bail!(CniError::new(Code::Conflict, msg));
                    }
                }
                Err(e) if e.errno == Errno::EOPNOTSUPP => {
                    let msg = format!("this kernel has no links of kind ifb (module ifb, CONFIG_IFB): {e}");
                    bail!(CniError::new(Code::MissingFeature, msg));
                }
                Err(e) => return Err(e.into()),
            }
        }
        // Who is killed before this leaves a link that is known by its MAC address.
        world.host()?.execute_one(link::set_alias(&self.name, &alias(&self.attachment)))?;
        Ok(Ensured::Created)
    }

    /// Tells how the link is otherwise.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        world.forget_host_link(&self.name);
        let object = format!("host link {}", self.name);
        let Some(found) = world.host_link(&self.name)? else { return Ok(vec![Finding::missing(object)]) };
        let mut findings = Vec::new();
        if found.kind != "ifb" {
            findings.push(Finding::differs(&object, "an ifb", &found.kind));
        }
        if !found.up {
            findings.push(Finding::differs(&object, "up", "down"));
        }
        // Larger packets than these are lost.
        if found.mtu < self.mtu {
            findings.push(Finding::differs(format!("MTU of {object}"), self.mtu, found.mtu));
        }
        Ok(findings)
    }

    /// Deletes the link if it is this attachment's, and returns when it is gone.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        self.remove_if(world, |found| found.alias == alias(&self.attachment) || self.is_unnamed(found))?;
        Ok(())
    }

    /// Deletes what has the link's name if it can be of nobody else; tells whether it did. Whoever has chosen this name
    /// has seen that what the reference has left there, without an alias, is of this attachment.
    fn remove_predecessor(&self, world: &mut World<'_>) -> anyhow::Result<bool> {
        self.remove_if(world, |found| found.alias == alias(&self.attachment) || found.alias.is_empty())
    }

    /// Whether it is this attachment's, though it does not say so: its ADD was killed before.
    fn is_unnamed(&self, found: &Link) -> bool {
        found.alias.is_empty() && found.mac == Some(self.mac)
    }

    fn remove_if(&self, world: &mut World<'_>, is_own: impl Fn(&Link) -> bool) -> anyhow::Result<bool> {
        world.forget_host_link(&self.name);
        match world.host_link(&self.name)?.filter(|found| found.kind == "ifb" && is_own(found)) {
            Some(found) => world.remove_host_link(&found).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }
}

/// Deletes the links of attachments to a network that are not kept, of which there is no record: their aliases tell
/// whose they are.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Vec<anyhow::Error> {
    let strays = match strays(network, kept, world) {
        Ok(strays) => strays,
        Err(e) => return vec![e],
    };
    strays.iter().filter_map(|stray| stray.remove(world).err()).collect()
}

fn strays(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> anyhow::Result<Vec<Ifb>> {
    let found = world.host()?.ifbs()?;
    let mut strays: Vec<Ifb> = found.iter().filter_map(owned).collect();
    strays.retain(|ifb| ifb.attachment.network == network);
    if !strays.is_empty() {
        // Asked for after the links were: what a call makes meanwhile belongs to somebody who is kept.
        let kept = kept()?;
        strays.retain(|ifb| !kept.contains(&ifb.attachment));
    }
    Ok(strays)
}

/// What a link is, by its alias, if its name is one of the same attachment's.
fn owned(link: &Link) -> Option<Ifb> {
    let attachment = named_by(&link.alias)?;
    names(&attachment).contains(&link.name).then(|| Ifb::of(&attachment, link.name.clone()))
}

/// What the reference has left of an attachment: a link that names no owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignIfb {
    /// Whose.
    pub attachment: Attachment,
}

impl ForeignIfb {
    /// Deletes the link and returns when it is gone.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let [name, _] = names(&self.attachment);
        Ifb::of(&self.attachment, name).remove_if(world, |found| found.alias.is_empty())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment { network: "net".into(), container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn the_first_name_is_the_references() {
        // As the reference 1.9.1 has named it.
        assert_eq!(names(&attachment("abc", "eth0"))[0], "bwp3ce8a0924fde");
        assert_eq!(names(&attachment("abc", "net1"))[0], "bwp3ce8a0924fde");
    }

    #[test]
    fn names_are_known_as_such() {
        for name in names(&attachment("abc", "eth0")) {
            assert!(is_name(&name), "{name}");
        }
        for name in ["bwp", "bwp0", "veth3ce8a0924fde", "bwp3ce8a0924fdg", "vethabcdef01", "cni0"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_second_name_is_that_of_one_interface() {
        let name = |container_id: &str, ifname: &str| names(&attachment(container_id, ifname))[1].clone();
        assert_eq!(name("abc", "eth0").len(), 15);
        assert_ne!(name("abc", "eth0"), name("abc", "net1"));
        assert_ne!(name("abc", "eth0"), name("abd", "eth0"));
    }

    #[test]
    fn a_link_is_of_whom_alias_and_name_agree_on() {
        let one = attachment("abc", "eth0");
        let [usual, own] = names(&one);
        let link =
            |name: &str, alias: &str| Link { name: name.into(), alias: alias.into(), ..Link::default() };
        for name in [&usual, &own] {
            let found = owned(&link(name, &alias(&one))).unwrap();
            assert_eq!((&found.attachment, &found.name, found.mac), (&one, name, mac(&one)));
        }
        for (name, alias) in [(&usual, "net/abd/eth0"), (&own, "net/abc/net1"), (&usual, ""), (&own, "net")] {
            assert_eq!(owned(&link(name, alias)), None, "{name} {alias}");
        }
    }
}
