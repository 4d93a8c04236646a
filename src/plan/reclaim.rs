//! Addresses of dead attachments, for an ADD that finds none: not every runtime asks for a GC.
//!
//! An attachment is dead if its record says that its namespace was one that is gone. A reservation without a record
//! is never judged here: another suite's, or one that a plugin made that did not know the namespace. (The store judges
//! by itself what was reserved before this boot.)
//!
//! This is safe beside running ADDs, because an ADD writes its record, with the new namespace, before it takes the lock
//! on the reservations, and makes nothing before it has had that lock. Records are read here under the lock. So an
//! ADD for the same attachment is either seen to live, or it waits until nothing of the dead one is left.

use std::path::Path;

use super::{Claim, Record, Records, join};
use crate::resource::lease::Source;
use crate::resource::{Lease, Resource, Scope, World};
use crate::spec::{Attachment, Command};

/// Removes dead attachments and gives their addresses back; tells whether any address is free now that was not.
///
/// Goes on past errors, and reports them only if nothing could be reclaimed: they are not those of the ADD.
pub fn reclaim(lease: &Lease, world: &mut World<'_>) -> anyhow::Result<bool> {
    // The pod of this call is not that of the dead.
    let mut request = world.request.clone();
    (request.command, request.netns) = (Command::Gc, None);
    let mut elsewhere = World::new(&request, world.state.clone());
    let mut errors = Vec::new();
    let is_any_free = lease.reclaim(&mut elsewhere, |attachment, world, release| {
        let found = match Found::claim(attachment, &world.state) {
            Ok(Some(found)) => found,
            // Who is worked on lives, or has just been removed.
            Ok(None) => return,
            Err(error) => return errors.push(error),
        };
        if is_dead_by(&found.records()) {
            log::info!("{attachment}: its namespace is gone, and so is all else of it");
            let outcome = found.remove(world).and_then(|()| Ok(release()?)).and_then(|()| found.delete());
            errors.extend(outcome.err().map(|e| e.context(format!("reclaim addresses of {attachment}"))));
        }
    })?;
    if !is_any_free {
        join(errors)?;
    } else {
        errors.iter().for_each(|error| log::warn!("{error:#}"));
    }
    Ok(is_any_free)
}

/// Whether [`reclaim`] would give back the addresses of an attachment.
pub fn is_dead(attachment: &Attachment, state: &Path) -> bool {
    let read = || -> anyhow::Result<Vec<Record>> {
        let mut found = Vec::new();
        for records in Records::of_all(state)? {
            found.extend(records.read(attachment)?);
        }
        Ok(found)
    };
    read().is_ok_and(|found| is_dead_by(&found.iter().collect::<Vec<_>>()))
}

/// Gives ports of the host back that dead attachments have; tells whether any of these was dead. Their records stay, for
/// whoever removes the rest.
///
/// Safe beside running ADDs as above: nobody else works on what is claimed here.
pub fn reclaim_ports(owners: &[Attachment], world: &mut World<'_>) -> anyhow::Result<bool> {
    let mut request = world.request.clone();
    (request.command, request.netns) = (Command::Gc, None);
    let mut elsewhere = World::new(&request, world.state.clone());
    let mut is_any_dead = false;
    for owner in owners {
        let Some(found) = Found::claim(owner, &elsewhere.state)? else { continue };
        let records = found.records();
        if !are_proof_of_death(&records) {
            continue;
        }
        log::info!("{owner}: its namespace is gone, and so are its ports");
        for resource in records.iter().flat_map(|record| &record.resources) {
            if matches!(resource, Resource::PortMappings(_)) {
                resource.remove(&mut elsewhere)?;
            }
        }
        is_any_dead = true;
    }
    Ok(is_any_dead)
}

/// Whether an attachment is dead by its records, and its addresses are ours to give back.
fn is_dead_by(records: &[&Record]) -> bool {
    are_proof_of_death(records) && !have_foreign_lease(records)
}

/// Whether another program has given addresses, which only a call with the configuration of then gives back.
pub(super) fn have_foreign_lease(records: &[&Record]) -> bool {
    let is_foreign = |resource: &Resource| {
        matches!(resource, Resource::Lease(Lease { source: Source::Delegated { .. }, .. }))
    };
    records.iter().any(|record| record.resources.iter().any(is_foreign))
}

/// Whether one record of an attachment proves that it is dead, and none says otherwise.
pub(super) fn are_proof_of_death(records: &[&Record]) -> bool {
    records.iter().any(|record| record.is_provably_dead())
        && records.iter().all(|record| record.may_be_dead())
}

/// What there is of an attachment: its record of each plugin in a chain that has one. Nobody else works on it.
pub(super) struct Found(Vec<Claim>);

impl Found {
    /// `None` if another call works on the attachment. It is not waited for: it may wait for us.
    pub(super) fn claim(attachment: &Attachment, state: &Path) -> anyhow::Result<Option<Self>> {
        let mut claims = Vec::new();
        for records in Records::of_all(state)? {
            match records.try_to_claim(attachment)? {
                Some(claim) => claims.push(claim),
                None => return Ok(None),
            }
        }
        Ok(Some(Self(claims)))
    }

    /// Its records.
    pub(super) fn records(&self) -> Vec<&Record> {
        self.0.iter().filter_map(|claim| claim.record.as_ref()).collect()
    }

    /// Removes all but the reservations, whose lock is held.
    fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let mut errors = Vec::new();
        for record in self.records().into_iter().rev() {
            for resource in record.resources.iter().rev() {
                if resource.scope() == Scope::Attachment && !matches!(resource, Resource::Lease(_)) {
                    errors.extend(resource.remove(world).err());
                }
            }
        }
        join(errors)
    }

    /// Deletes its records.
    pub(super) fn delete(self) -> anyhow::Result<()> {
        self.0.into_iter().try_for_each(Claim::delete)
    }
}
