//! What is left of attachments that are provably dead, whatever network they are to: for people, who then need not name
//! it, nor have its file any more.
//!
//! Safe beside running calls for the same reason as [`reclaim`](mod@super::reclaim): nobody else works on what is claimed
//! here, and nothing is judged but by the records.

use std::collections::BTreeSet;
use std::path::Path;

use super::reclaim::{Found, are_proof_of_death, have_foreign_lease};
use super::{Record, join, remove, restore};
use crate::resource::World;
use crate::spec::{Attachment, CniError, Code, Command};

/// Removes all that the records under a state directory have of dead attachments, and tells of each whether it could.
/// Gives back what could not be looked at. How many are left, since they live or it cannot be told, comes first.
pub fn reap(
    state: &Path,
    mut tell: impl FnMut(&Attachment, anyhow::Result<()>),
) -> (usize, Vec<anyhow::Error>) {
    let (places, mut errors) = restore::places(state, None);
    let mut attachments = BTreeSet::new();
    for place in places {
        match place.read() {
            Ok(record) => attachments.extend(record.map(|record| record.attachment)),
            Err(e) => errors.push(e),
        }
    }
    let mut left = 0;
    for attachment in attachments {
        match Found::claim(&attachment, state) {
            Ok(Some(found)) if are_proof_of_death(&found.records()) => {
                tell(&attachment, reap_one(found, state));
            }
            Ok(_) => left += 1,
            Err(e) => errors.push(e.context(attachment.to_string())),
        }
    }
    (left, errors)
}

fn reap_one(found: Found, state: &Path) -> anyhow::Result<()> {
    let records = found.records();
    if have_foreign_lease(&records)
        && let Some(record) = records.first()
    {
        let network = &record.attachment.network;
        let msg = format!(
            "its addresses are another program's, which needs the network's configuration: `bridgehead gc {network}`"
        );
        return Err(CniError::new(Code::Delegate, msg).into());
    }
    let mut errors = Vec::new();
    for record in records.into_iter().rev() {
        errors.extend(remove_one(record, state).err());
    }
    join(errors)?;
    found.delete()
}

fn remove_one(record: &Record, state: &Path) -> anyhow::Result<()> {
    let mut request = restore::request_of(record)?;
    // What has its name by now is not its namespace.
    (request.command, request.netns) = (Command::Gc, None);
    remove(&record.resources, &mut World::new(&request, state.to_owned()))
}
