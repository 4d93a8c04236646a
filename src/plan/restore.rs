//! Restore: puts back what a flush of the tables or the restart of a firewall has taken from pods that live.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::record::Record;
use super::records::{Place, Records};
use crate::resource::{Restored, World};
use crate::spec::request::Environment;
use crate::spec::{Attachment, Command, Request, version};

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
    let mut errors = Vec::new();
    let mut collected = |outcome: anyhow::Result<Vec<Place>>| match outcome {
        Ok(places) => places,
        Err(e) => {
            errors.push(e);
            Vec::new()
        }
    };
    let mut places = Vec::new();
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
        places.extend(collected(of_type));
    }
    errors.extend(all.err());
    for place in places.iter().filter(|place| !place.is_draft()) {
        match restore_one(place, state) {
            Ok(Some(outcome)) => tell(&outcome),
            Ok(None) => {}
            Err(e) => errors.push(e.context(place.path().display().to_string())),
        }
    }
    errors
}

/// `None` where there is nothing that could be lost.
fn restore_one(place: &Place, state: &Path) -> anyhow::Result<Option<Outcome>> {
    let Some(claim) = place.claim()? else { return Ok(None) };
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

/// The request that an attachment could be asked about with; there is no caller who has made one.
fn request_of(record: &Record) -> anyhow::Result<Request> {
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
