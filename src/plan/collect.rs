//! GC: removes the attachments that are not valid, and what is left of those that nobody remembers.

use std::collections::BTreeSet;

use super::records::{Place, Records, Resting};
use super::remove;
use crate::resource::{Lease, Resource, World};
use crate::spec::Attachment;
use crate::spec::config::{ValidAttachment, ValidAttachments};

/// Removes what belongs to no valid attachment; without a list, the attachments whose namespace is gone.
///
/// `leftovers` are what an attachment of this plugin type may leave without a record, `lease` is where its addresses
/// come from. `resting` is what was there before the list was read: an ADD that has ended since then is one that the
/// caller may not have known of. For the same reason, an attachment that another call works on is left alone, as is
/// everything that has a record when it is looked for. Goes on past errors, and reports all of them.
pub fn collect(
    resting: anyhow::Result<Resting>,
    valid: &ValidAttachments,
    leftovers: &[Resource],
    lease: Option<&Lease>,
    records: &Records,
    world: &mut World<'_>,
) -> anyhow::Result<()> {
    let network = &world.request.config.name;
    let list = match valid {
        ValidAttachments::NotGiven => None,
        ValidAttachments::Only(list) => {
            Some(list.iter().map(|it| attachment(network, it)).collect::<BTreeSet<Attachment>>())
        }
    };
    let mut errors = Vec::new();
    let resting = resting.unwrap_or_else(|e| {
        errors.push(e);
        Resting::default()
    });
    match records.places(network) {
        Ok(places) => {
            for place in places {
                let outcome = collect_one(&place, &resting, list.as_ref(), world);
                errors.extend(outcome.err().map(|e| e.context(place.path().display().to_string())));
            }
        }
        Err(e) => errors.push(e),
    }
    let kept = || {
        let mut kept = records.attachments(network)?;
        kept.extend(list.iter().flatten().cloned());
        Ok(kept)
    };
    let (over_links, others): (Vec<&Lease>, _) = lease.into_iter().partition(|lease| lease.needs_link());
    for lease in over_links {
        errors.extend(lease.collect(valid, &kept, world).err());
    }
    // Of what nobody remembers, nobody can tell without a list whether its pod lives.
    if list.is_some() {
        // As in DEL, a link goes before what guards it.
        for resource in leftovers.iter().rev() {
            errors.extend(resource.collect(network, &kept, world));
        }
    }
    for lease in others {
        errors.extend(lease.collect(valid, &kept, world).err());
    }
    super::join(errors)
}

fn attachment(network: &str, valid: &ValidAttachment) -> Attachment {
    let ValidAttachment { container_id, ifname } = valid.clone();
    Attachment { network: network.to_owned(), container_id, ifname }
}

fn collect_one(
    place: &Place,
    resting: &Resting,
    valid: Option<&BTreeSet<Attachment>>,
    world: &mut World<'_>,
) -> anyhow::Result<()> {
    if place.is_draft() && !place.is_abandoned_draft() {
        return Ok(());
    }
    let Some(claim) = place.try_to_claim()? else { return Ok(()) };
    let is_dead = match (&claim.record, valid) {
        _ if place.is_draft() => return claim.delete(),
        _ if !resting.has(&claim)? => false,
        (Some(record), Some(valid)) => !valid.contains(&record.attachment),
        (Some(record), None) => record.is_provably_dead(),
        // What cannot be understood is somebody's as long as somebody of that name is valid.
        (None, Some(valid)) => !valid.iter().any(|attachment| place.is_of(attachment)),
        (None, None) => false,
    };
    if !is_dead {
        return Ok(());
    }
    if let Some(record) = &claim.record {
        remove(&record.resources, world)?;
    }
    claim.delete()
}
