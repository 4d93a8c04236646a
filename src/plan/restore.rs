//! Restore: puts back what a flush of the tables or the restart of a firewall has taken from pods that live.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::Context;
use log::{info, warn};
use serde_json::json;

use super::record::Record;
use super::records::{Claim, Place, Records};
use crate::resource::{Resource, Restored, World};
use crate::spec::request::Environment;
use crate::spec::{Attachment, CniError, Code, Command, Request, version};

/// What came of an attachment.
#[derive(Debug)]
pub struct Outcome {
    /// Whose.
    pub attachment: Attachment,
    /// What was lost and is back.
    pub restored: Vec<Restored>,
    /// What could not be put back.
    pub errors: Vec<anyhow::Error>,
}

/// Looks at all attachments that are recorded under a state directory, or those to one network, and tells of each that
/// has anything to be put back, and lives, what came of it. Goes on past errors; those that are of no attachment stand
/// apart.
///
/// Each is held while it is looked at: what its DEL has removed, or is about to remove, is not made again.
pub fn restore(state: &Path, network: Option<&str>, mut tell: impl FnMut(&Outcome)) -> Vec<anyhow::Error> {
    let (places, mut errors) = places(state, network);
    for place in &places {
        let outcome = place.claim().and_then(|claim| claim.map_or(Ok(None), |it| restore_one(&it, state)));
        match outcome {
            Ok(Some(outcome)) => tell(&outcome),
            Ok(None) => {}
            Err(e) => errors.push(e.context(place.path().display().to_string())),
        }
    }
    errors
}

/// The same of all but one attachment, for an ADD that has succeeded: it is told by the log, and who is worked on by
/// another call is passed over, since that one may wait for this.
pub fn restore_others(than: &Attachment, state: &Path) {
    // Its caller has its answer already, and there can be no other: the standard library panics where a directory
    // cannot be closed.
    if catch_unwind(AssertUnwindSafe(|| try_to_restore_others(than, state))).is_err() {
        log::error!("a fault in bridgehead: not all that was flushed could be put back");
    }
}

fn try_to_restore_others(than: &Attachment, state: &Path) {
    let (places, errors) = places(state, None);
    errors.iter().for_each(|error| warn!("{error:#}"));
    for place in places.iter().filter(|place| !place.is_of_network(&than.network) || !place.is_of(than)) {
        let outcome =
            place.try_to_claim().and_then(|claim| claim.map_or(Ok(None), |it| restore_one(&it, state)));
        match outcome {
            Ok(Some(Outcome { attachment, restored, errors })) => {
                for Restored { what, .. } in &restored {
                    info!("{attachment}: put back {what}, which was flushed");
                }
                errors.iter().for_each(|error| warn!("{attachment}: {error:#}"));
            }
            Ok(None) => {}
            Err(e) => warn!("{}: {e:#}", place.path().display()),
        }
    }
}

/// Other attachments of a container that are to have the host ports that one gives back: runtimes send a container's ports
/// to each of its networks.
pub(super) fn heirs(record: &Record, world: &World<'_>) -> Vec<Attachment> {
    let mappings = record.resources.iter().filter_map(|resource| match resource {
        Resource::PortMappings(mappings) => Some(mappings),
        _ => None,
    });
    mappings.flat_map(|mappings| mappings.heirs(world).unwrap_or_default()).collect()
}

/// Has attachments have the host ports that they ask for and that another interface of their container has had. For a DEL
/// that has succeeded: it is told by the log. Who is worked on by another call is passed over.
pub(super) fn hand_over_ports(heirs: &[Attachment], state: &Path) {
    for attachment in heirs {
        for records in Records::of_all(state).unwrap_or_default() {
            let claim = records.try_to_claim(attachment).unwrap_or_else(|e| {
                warn!("{attachment}: {e:#}");
                None
            });
            let outcome = claim.map_or(Ok(()), |claim| restore_ports(&claim, state));
            outcome.unwrap_or_else(|e| warn!("{attachment}: ports of another interface: {e:#}"));
        }
    }
}

fn restore_ports(claim: &Claim, state: &Path) -> anyhow::Result<()> {
    let Some(record) = claim.record.as_ref().filter(|it| it.result.is_some() && !it.is_provably_dead())
    else {
        return Ok(());
    };
    let request = request_of(record)?;
    let mut world = World::new(&request, state.to_owned());
    for resource in record.resources.iter().filter(|it| matches!(it, Resource::PortMappings(_))) {
        resource.restore(&mut world)?;
    }
    Ok(())
}

/// The places of all records, or those of one network; and what could not be listed.
pub(super) fn places(state: &Path, network: Option<&str>) -> (Vec<Place>, Vec<anyhow::Error>) {
    let (mut places, mut errors) = (Vec::new(), Vec::new());
    let all = Records::of_all(state);
    for records in all.as_deref().unwrap_or_default() {
        let networks = match network {
            Some(network) => Ok(vec![network.to_owned()]),
            None => records.networks(),
        };
        let of_type = networks.and_then(|networks| {
            let places = networks.iter().map(|network| records.places(network));
            Ok(places.collect::<anyhow::Result<Vec<_>>>()?.concat())
        });
        match of_type {
            Ok(found) => places.extend(found.into_iter().filter(|place| !place.is_draft())),
            Err(e) => errors.push(e),
        }
    }
    errors.extend(all.err());
    (places, errors)
}

/// `None` where there is nothing that could be lost.
fn restore_one(claim: &Claim, state: &Path) -> anyhow::Result<Option<Outcome>> {
    // Without a result, its ADD has not come so far, or came to nothing.
    let Some(record) = claim.record.as_ref().filter(|it| it.result.is_some() && !it.is_provably_dead())
    else {
        return Ok(None);
    };
    let request = request_of(record)?;
    let mut world = World::new(&request, state.to_owned());
    let (mut restored, mut errors, mut is_concerned) = (Vec::new(), Vec::new(), false);
    for resource in &record.resources {
        match resource.restore(&mut world) {
            Ok(None) => {}
            Ok(Some(found)) => {
                is_concerned = true;
                if !found.lost.is_empty() {
                    restored.push(found);
                }
            }
            Err(e) => {
                is_concerned = true;
                errors.push(e);
            }
        }
    }
    let outcome = Outcome { attachment: record.attachment.clone(), restored, errors };
    Ok(is_concerned.then_some(outcome))
}

/// How many attachments are looked at to learn whether any have lost something. A flush takes from all.
const FEW: usize = 2;

/// The error of code 51 if attachments to a network have lost what a flush of the tables takes away, judged by a few
/// of them: it costs the same however many there are. Those that a call works on are not looked at.
pub fn look_for_losses(records: &Records, network: &str, state: &Path) -> anyhow::Result<()> {
    for claim in records.some_at_rest(network, FEW) {
        let Some(record) = &claim.record else { continue };
        if record.result.is_none() || record.is_provably_dead() {
            continue;
        }
        let request = request_of(record)?;
        let mut world = World::new(&request, state.to_owned());
        for resource in record.resources.iter().filter(|resource| resource.volatile().is_some()) {
            if let Some(lost) = resource.observe(&mut world)?.first() {
                let msg = format!("pods suffer, among them {}: {lost}", record.attachment);
                let advice = "\"bridgehead restore\" puts back what was flushed";
                return Err(CniError::new(Code::Degraded, msg).with_details(advice).into());
            }
        }
    }
    Ok(())
}

/// The request that an attachment could be asked about with; there is no caller who has made one.
pub(super) fn request_of(record: &Record) -> anyhow::Result<Request> {
    let Attachment { network, container_id, ifname } = record.attachment.clone();
    let netns = record.netns_path.to_string_lossy().into_owned();
    let command = Command::Check;
    let environment = Environment {
        command: command.as_str().to_owned(),
        container_id,
        netns,
        ifname,
        ..Environment::default()
    };
    let config = json!({ "cniVersion": version::CURRENT.as_str(), "name": network });
    Request::parse(command, &environment, config.to_string().into_bytes()).context("read the record")
}
