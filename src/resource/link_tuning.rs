//! What the pod's link is made to be: another MAC address, MTU, queue; receiving more than its own packets.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::link_backup::LinkBackup;
use super::{Ensured, Finding, World};
use crate::net::Error;
use crate::net::netlink::Message;
use crate::net::rtnl::link::{self, Link};
use crate::spec::{Attachment, Command};

pub use super::link_backup::Attributes;

/// How often it is tried to make a link what it was.
const SET_BACK_TRIES: usize = 2;

/// Attributes of a pod's link that others have made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkTuning {
    /// Whose link.
    pub attachment: Attachment,
    /// Where a file keeps what it was.
    pub backups: PathBuf,
    /// What it should be.
    pub wanted: Attributes,
    /// What it was; where nobody knows, the file may.
    pub had: Option<Attributes>,
}

impl LinkTuning {
    /// What can be said of an attachment's without a record.
    pub fn of(attachment: &Attachment, backups: PathBuf) -> Self {
        Self { attachment: attachment.clone(), backups, wanted: Attributes::default(), had: None }
    }

    /// Writes down what the link is, and changes it.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let netns = pod.netns().identity();
        let Some(found) = pod.rtnl()?.link(&self.attachment.ifname)? else {
            bail!("pod interface {} has vanished", self.attachment.ifname)
        };
        if let Some(had) = &self.had {
            self.backup().add(had, netns)?;
        }
        let batch = changes(&found, &self.wanted);
        if !batch.is_empty() {
            pod.forget_link();
            for answer in pod.rtnl()?.execute(batch)? {
                answer.with_context(|| format!("tune the pod's interface {}", found.name))?;
            }
        }
        Ok(Ensured::Created)
    }

    /// Tells which attributes are otherwise.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("pod interface {}", self.attachment.ifname);
        let Some(found) = world.pod()?.rtnl()?.link(&self.attachment.ifname)? else {
            return Ok(vec![Finding::missing(object)]);
        };
        let have = self.wanted.of_link(&found);
        let mut findings = Vec::new();
        if let Some(want) = self.wanted.mac.filter(|_| have.mac != self.wanted.mac) {
            let have = have.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
            findings.push(Finding::differs(format!("MAC address of {object}"), want, have));
        }
        for (what, want, have) in [
            ("MTU", self.wanted.mtu, have.mtu),
            ("transmit queue length", self.wanted.tx_queue_len, have.tx_queue_len),
        ] {
            if let Some(want) = want.filter(|want| have != Some(*want)) {
                let have = have.map_or_else(|| "none".to_owned(), |have| have.to_string());
                findings.push(Finding::differs(format!("{what} of {object}"), want, have));
            }
        }
        for (what, want, have) in [
            ("promiscuous mode", self.wanted.promisc, have.promisc),
            ("all-multicast mode", self.wanted.allmulti, have.allmulti),
        ] {
            if let Some(want) = want.filter(|want| have != Some(*want)) {
                let word = |on: bool| if on { "on" } else { "off" };
                findings.push(Finding::differs(format!("{what} of {object}"), word(want), word(!want)));
            }
        }
        Ok(findings)
    }

    /// Makes the link what it was, if it is there, and deletes the file.
    ///
    /// An attribute that cannot be set back is an error only of an ADD that is rolled back: a DEL comes again until it
    /// succeeds, and what it is about goes with the namespace.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let (backup, is_add) = (self.backup(), world.request.command == Command::Add);
        let mut link = None;
        if world.has_pod()? {
            let pod = world.pod()?;
            pod.forget_link();
            if let Some(found) = pod.rtnl()?.link(&self.attachment.ifname)? {
                link = Some((found, pod.netns().identity()));
            }
        }
        let Some((found, netns)) = link else { return Ok(backup.delete()?) };
        let had = self.had.clone().unwrap_or_else(|| backup.read(netns));
        for error in set_back(&found, &had, world)? {
            if is_add {
                return Err(error).context(format!("make the pod's interface {} what it was", found.name));
            }
            log::warn!("{error}");
        }
        match &self.had {
            // Other entries of the chain may have theirs in the file.
            Some(had) if is_add => backup.subtract(had, netns)?,
            _ => backup.delete()?,
        }
        Ok(())
    }

    fn backup(&self) -> LinkBackup {
        LinkBackup::of(&self.attachment, &self.backups)
    }
}

/// Makes a link be so, and says what could not be done. What somebody else was at (`EBUSY`), or had no memory, is done at
/// the second attempt: nobody comes back for it after a DEL.
fn set_back(found: &Link, had: &Attributes, world: &mut World<'_>) -> anyhow::Result<Vec<Error>> {
    let mut errors = Vec::new();
    let mut found = Some(found.clone());
    for _ in 0..SET_BACK_TRIES {
        let Some(link) = &found else { return Ok(Vec::new()) };
        let batch = changes(link, had);
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let rtnl = world.pod()?.rtnl()?;
        errors = rtnl.execute(batch)?.into_iter().filter_map(Result::err).collect();
        if errors.is_empty() {
            break;
        }
        found = rtnl.link(&link.name)?;
    }
    Ok(errors)
}

/// The requests that make a link be so.
pub(super) fn changes(found: &Link, wanted: &Attributes) -> Vec<Message> {
    let have = wanted.of_link(found);
    let messages = [
        wanted.mac.filter(|mac| have.mac != Some(*mac)).map(|mac| link::set_mac(found, mac)),
        wanted
            .promisc
            .filter(|on| have.promisc != Some(*on))
            .map(|on| if on { link::set_promiscuous(found) } else { link::unset_promiscuous(found) }),
        wanted.mtu.filter(|mtu| have.mtu != Some(*mtu)).map(|mtu| link::set_mtu(found, mtu)),
        wanted
            .allmulti
            .filter(|on| have.allmulti != Some(*on))
            .map(|on| if on { link::set_all_multicast(found) } else { link::unset_all_multicast(found) }),
        wanted
            .tx_queue_len
            .filter(|len| have.tx_queue_len != Some(*len))
            .map(|len| link::set_tx_queue_len(found, len)),
    ];
    messages.into_iter().flatten().collect()
}
