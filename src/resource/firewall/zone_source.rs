//! The pod's addresses as sources of a zone of firewalld, as the reference plugins have it.
//!
//! firewalld does not know whose a source is, so that is kept aside: a DEL that comes late does not take away what the
//! next owner of the address has.

use std::net::IpAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::super::owner::Owner;
use super::super::share::{self, Turn};
use super::super::{Ensured, Finding, Kept, World, or_undo};
use crate::net::firewalld::Firewalld;
use crate::spec::{Attachment, CniError, Code, Prefix};

/// What the names of shared sources begin with; zone and address follow.
const SHARED: &str = "source_";

/// Addresses in a zone.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ZoneSource {
    /// Whose they are.
    pub attachment: Attachment,
    /// The zone.
    pub zone: String,
    /// The addresses. For [`remove`](Self::remove), none means that nobody knows them: they are looked for.
    pub addresses: Vec<IpAddr>,
}

impl ZoneSource {
    /// Puts the addresses into the zone, those that are not there.
    ///
    /// # Errors
    ///
    /// Code 106 if firewalld does not run; else what it says, and the errors of a [`Turn`].
    pub fn ensure(&self, world: &mut World<'_>) -> Result<Ensured> {
        let turn = Turn::take(world)?;
        let mut firewalld = running()?;
        let mut ensured = Ensured::Present;
        let outcome = self.addresses.iter().try_for_each(|address| {
            let joined = turn.join(&self.thing(*address), &self.attachment)?;
            let source = source(*address);
            let is_there = firewalld.has_source(&self.zone, &source)?;
            if joined == Ensured::Created || !is_there {
                ensured = Ensured::Created;
            }
            if is_there { Ok(()) } else { Ok(firewalld.add_source(&self.zone, &source)?) }
        });
        or_undo(outcome, || self.leave(&turn))?;
        Ok(ensured)
    }

    /// Tells what is missing.
    ///
    /// # Errors
    ///
    /// If firewalld does not answer.
    pub fn observe(&self, _: &mut World<'_>) -> Result<Vec<Finding>> {
        let missing = |address: &IpAddr| {
            Finding::missing(format!("source {} of zone {} of firewalld", source(*address), self.zone))
        };
        let Some(mut firewalld) = Firewalld::find()? else {
            return Ok(self.addresses.iter().map(missing).collect());
        };
        let mut findings = Vec::new();
        for address in &self.addresses {
            if !firewalld.has_source(&self.zone, &source(*address))? {
                findings.push(missing(address));
            }
        }
        Ok(findings)
    }

    /// Takes the addresses out of the zone, unless somebody else has them by now. A firewalld that does not run has
    /// none.
    ///
    /// # Errors
    ///
    /// What firewalld says, and the errors of a [`Turn`].
    pub fn remove(&self, world: &mut World<'_>) -> Result<()> {
        let turn = Turn::take(world)?;
        if !self.addresses.is_empty() {
            return self.leave(&turn);
        }
        for other in shared(&self.attachment.network, world)? {
            if other.attachment == self.attachment {
                other.leave(&turn)?;
            }
        }
        Ok(())
    }

    fn leave(&self, turn: &Turn) -> Result<()> {
        let mut free = Vec::new();
        for address in &self.addresses {
            if turn.leave(&self.thing(*address), &self.attachment)? {
                free.push(source(*address));
            }
        }
        if free.is_empty() {
            return Ok(());
        }
        let Some(mut firewalld) = Firewalld::find()? else { return Ok(()) };
        for source in free {
            firewalld.remove_source(&self.zone, &source)?;
        }
        Ok(())
    }

    fn thing(&self, address: IpAddr) -> String {
        format!("{SHARED}{} {address}", self.zone)
    }
}

/// An address as firewalld has it: with its length.
fn source(address: IpAddr) -> String {
    Prefix::host(address).to_string()
}

fn running() -> Result<Firewalld> {
    Firewalld::find()?.ok_or_else(|| {
        CniError::new(Code::Delegate, "backend: firewalld does not run (nobody has its name on D-Bus)").into()
    })
}

/// The sources of a network's attachments, one in each.
fn shared(network: &str, world: &World<'_>) -> Result<Vec<ZoneSource>> {
    let source = |(thing, attachment): (String, Attachment)| {
        let (zone, address) = thing.strip_prefix(SHARED)?.split_once(' ')?;
        let addresses = vec![address.parse().ok()?];
        Some(ZoneSource { attachment, zone: zone.to_owned(), addresses })
    };
    Ok(share::sharers(network, &world.state)?.into_iter().filter_map(source).collect())
}

/// Removes the sources of a network's attachments that are not kept.
pub(in super::super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    let found = shared(network, world)?;
    if found.is_empty() {
        return Ok(());
    }
    let kept: Vec<Owner> = kept()?.iter().map(Owner::new).collect();
    for source in found.iter().filter(|it| !kept.contains(&Owner::new(&it.attachment))) {
        source.remove(world)?;
    }
    Ok(())
}
