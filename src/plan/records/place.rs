//! Where a record is.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::found::{Found, find, is_ours, open, read, state_error};
use super::{Claim, PATIENCE, file_name, hash_of, is_draft};
use crate::plan::record::Record;
use crate::resource::FileLock;
use crate::spec::Attachment;

/// After this time a draft that nobody holds is one that nobody will finish.
const ABANDONED: Duration = Duration::from_secs(60);

/// Where a record is, or was a moment ago, or something else is.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) path: PathBuf,
}

impl Place {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a record of this attachment would be here.
    pub fn is_of(&self, attachment: &Attachment) -> bool {
        self.path.file_name() == Some(file_name(attachment).as_ref())
    }

    /// Whether a record of any interface of an attachment's container would be here.
    pub(super) fn is_of_container(&self, attachment: &Attachment) -> bool {
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else { return false };
        let Some((container, _)) = name.split_once(':') else { return false };
        container == attachment.container_id || container == hash_of(&attachment.container_id)
    }

    /// Whether it is among the records of a network.
    pub fn is_of_network(&self, network: &str) -> bool {
        self.path.parent().and_then(Path::file_name) == Some(network.as_ref())
    }

    /// Whether this is a record that an ADD writes aside.
    pub fn is_draft(&self) -> bool {
        self.path.file_name().is_some_and(is_draft)
    }

    /// Whether this is a draft whose writer is gone. What it says has not begun.
    pub fn is_abandoned_draft(&self) -> bool {
        let age = fs::symlink_metadata(&self.path).and_then(|it| it.modified()).map(|time| time.elapsed());
        self.is_draft() && matches!(age, Ok(Ok(age)) if age > ABANDONED)
    }

    /// The record that is here, whoever works on it; `None` also for one that is under another's name.
    pub(in crate::plan) fn read(&self) -> anyhow::Result<Option<Record>> {
        let file = match open(&self.path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(state_error("open", &self.path, &e).into()),
        };
        let metadata = file.metadata().map_err(|e| state_error("look at", &self.path, &e))?;
        let record = if is_ours(&metadata) { read(&self.path, &file, &metadata)? } else { None };
        Ok(record.filter(|record| self.is_of(&record.attachment)))
    }

    /// The record that is here, held with others who only look, if no call works on it.
    pub(super) fn share(&self) -> anyhow::Result<Option<Claim>> {
        let failed = |e: std::io::Error| state_error("read", &self.path, &e);
        let Some(file) = open(&self.path).map_err(failed)? else { return Ok(None) };
        let Some(lock) = FileLock::share_now(file).map_err(failed)? else { return Ok(None) };
        let metadata = lock.file().metadata().map_err(failed)?;
        if !is_ours(&metadata) || metadata.nlink() == 0 {
            return Ok(None);
        }
        let record = read(&self.path, lock.file(), &metadata)?;
        let record = record.filter(|record| self.is_of(&record.attachment));
        Ok(Some(Claim { record, path: Some(self.path.clone()), lock: Some(lock), is_own: false }))
    }

    /// Claims what is here, unless another call works on it or it is gone.
    pub fn try_to_claim(&self) -> anyhow::Result<Option<Claim>> {
        self.claim_as(find(&self.path, None)?, None)
    }

    /// Claims what is here, and waits for a call that works on it. `None` if it is gone then.
    ///
    /// Errors: as for [`super::Records::claim`].
    pub fn claim(&self) -> anyhow::Result<Option<Claim>> {
        self.claim_as(find(&self.path, Some(PATIENCE))?, None)
    }

    pub(super) fn claim_as(&self, found: Found, nothing: Option<Claim>) -> anyhow::Result<Option<Claim>> {
        let path = Some(self.path.clone());
        Ok(match found {
            Found::Nothing => nothing,
            Found::Busy => None,
            Found::Alien => Some(Claim { path, ..Claim::none() }),
            Found::File(file) => {
                // One under another's name says nothing of whose name it is under.
                let record = file.read(&self.path)?.filter(|record| self.is_of(&record.attachment));
                Some(Claim { record, path, lock: Some(file.lock), is_own: false })
            }
        })
    }
}
