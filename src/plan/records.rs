//! Where the records of attachments are kept: on a tmpfs, as long as the kernel objects that they speak of, one file
//! for each attachment and plugin type.
//!
//! Nothing depends on them: DEL works without a record, only with less knowledge. So whatever stands in the place of
//! one and is none (an empty file, a directory, a symbolic link, a file of somebody else) counts as no record. It is
//! never followed; ADD replaces it, and DEL removes it.
//!
//! Who works on an attachment has a lock on its record's file, from before its first change to after its last. So a
//! GC or a restore beside it neither removes what an ADD has just made nor puts back what a DEL has just removed.

mod found;
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use nix::unistd::geteuid;

use super::record::Record;
use crate::private_file::{self, DRAFT, draft_of, remove_whatever};
use crate::resource::{FileLock, StateDirectory};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};
use found::{Found, close_to_others, find, names_in, state_error};
pub use place::Place;

/// Longest name that a file may have (`NAME_MAX` of linux/limits.h).
const NAME_MAX: usize = 255;

/// Longest wait for another call about the same attachment. Runtimes make none at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// The directory of all records, in the state directory.
const ATTACHMENTS: &str = "attachments";

/// The records of one plugin type.
#[derive(Clone, Debug)]
pub struct Records {
    state: PathBuf,
    plugin_type: String,
}

/// An attachment that nobody else works on, as long as this lives.
#[derive(Debug)]
pub struct Claim {
    /// Its record, where there is one.
    pub record: Option<Record>,
    /// Where it is or would be; none as long as nobody has made the directory.
    path: Option<PathBuf>,
    /// None as long as there is no file.
    lock: Option<FileLock>,
    /// Whether the file is one that this call has written, so that it can go on in it.
    is_own: bool,
}

/// What was there at one moment, and nobody worked on; a GC may judge of nothing else.
#[derive(Debug, Default)]
pub struct Resting(BTreeSet<(PathBuf, Option<u64>)>);

impl Resting {
    /// Whether a claim is of what was there.
    ///
    /// Errors: code 105 if its file cannot be looked at.
    pub fn has(&self, claim: &Claim) -> Result<bool, CniError> {
        let Some(path) = &claim.path else { return Ok(false) };
        let inode = claim.lock.as_ref().map(|lock| lock.file().metadata().map(|it| it.ino()));
        let inode = inode.transpose().map_err(|e| state_error("look at", path, &e))?;
        Ok(self.0.contains(&(path.clone(), inode)))
    }
}

impl Records {
    /// The records of a plugin type under a state directory.
    pub fn new(state: &Path, plugin_type: &str) -> Self {
        Self { state: state.to_owned(), plugin_type: plugin_type.to_owned() }
    }

    /// The error of code 105 that names what stands in the place of the state directory, if it is none. An ADD needs
    /// it; all else works without.
    pub fn check_place(state: &Path) -> Result<(), CniError> {
        match StateDirectory::look(state).map_err(|e| state_error("look at", state, &e))? {
            StateDirectory::There(_) | StateDirectory::NotThere => Ok(()),
            StateDirectory::Obstructed(what) => {
                let advice = match geteuid().is_root() {
                    true => "; it must be a directory of root's, or not be there",
                    false => "",
                };
                let msg = format!("{} is {what}{advice}", state.display());
                Err(CniError::new(Code::State, msg))
            }
        }
    }

    /// The records of all plugin types of which there are any.
    ///
    /// Errors: code 105 for what cannot be read, or is in the way.
    pub fn of_all(state: &Path) -> anyhow::Result<Vec<Self>> {
        Self::check_place(state)?;
        let types = names_in(&state.join(ATTACHMENTS))?;
        Ok(types.iter().filter_map(|name| Some(Self::new(state, name.to_str()?))).collect())
    }

    /// The networks of which there may be records.
    pub fn networks(&self) -> anyhow::Result<Vec<String>> {
        let found = StateDirectory::look(&self.state).map_err(|e| state_error("look at", &self.state, &e))?;
        if !matches!(found, StateDirectory::There(_)) {
            return Ok(Vec::new());
        }
        let names = names_in(&self.state.join(ATTACHMENTS).join(&self.plugin_type))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The directory of a network's records; `None` where it is not there or something else is. What another version
    /// of this program left too open is closed.
    fn directory(&self, network: &str) -> anyhow::Result<Option<PathBuf>> {
        let mut path = self.state.clone();
        match StateDirectory::look(&path).map_err(|e| state_error("look at", &path, &e))? {
            StateDirectory::There(found) => close_to_others(&path, &found),
            StateDirectory::NotThere => return Ok(None),
            StateDirectory::Obstructed(what) => {
                warn!("{} is {what}, so there are no records", path.display());
                return Ok(None);
            }
        }
        for part in [ATTACHMENTS, &self.plugin_type, network] {
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => close_to_others(&path, &found),
                Ok(_) => {
                    warn!("{} is no directory and is passed over", path.display());
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(state_error("look at", &path, &e).into()),
            }
        }
        Ok(Some(path))
    }

    /// The same, but made where it is not there, in place of whatever else is.
    fn make_directory(&self, network: &str) -> io::Result<PathBuf> {
        let builder = || {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700);
            builder
        };
        builder().recursive(true).create(&self.state)?;
        let mut path = self.state.clone();
        for part in [ATTACHMENTS, &self.plugin_type, network] {
            path.push(part);
            match builder().create(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    if !fs::symlink_metadata(&path)?.is_dir() {
                        fs::remove_file(&path)?;
                        builder().create(&path)?;
                    }
                }
                outcome => outcome?,
            }
        }
        Ok(path)
    }

    /// Claims an attachment, and reads its record. Waits for another call that works on it.
    ///
    /// A record that cannot be understood counts as none; one that the kernel does not let us read is an error, since
    /// what it says may be the only trace of what is there.
    ///
    /// Errors: code 11 names the call that does not come to an end; code 105 the file.
    pub fn claim(&self, attachment: &Attachment) -> anyhow::Result<Claim> {
        let path =
            self.directory(&attachment.network)?.map(|directory| directory.join(file_name(attachment)));
        let mut claim = Claim { path, ..Claim::none() };
        if let Some(path) = &claim.path
            && let Found::File(file) = find(path, Some(PATIENCE))?
        {
            claim.record = file.read(path)?.filter(|record| record.attachment == *attachment);
            claim.lock = Some(file.lock);
        }
        Ok(claim)
    }

    /// The same, unless another call works on the attachment at the moment.
    pub fn try_to_claim(&self, attachment: &Attachment) -> anyhow::Result<Option<Claim>> {
        let Some(place) = self.place(attachment)? else { return Ok(Some(Claim::none())) };
        place.claim_as(find(&place.path, None)?, Some(Claim::none()))
    }

    /// Reads the record of an attachment, whoever works on it.
    pub fn read(&self, attachment: &Attachment) -> anyhow::Result<Option<Record>> {
        match self.place(attachment)? {
            Some(place) => place.read(),
            None => Ok(None),
        }
    }

    fn place(&self, attachment: &Attachment) -> anyhow::Result<Option<Place>> {
        let directory = self.directory(&attachment.network)?;
        Ok(directory.map(|directory| Place { path: directory.join(file_name(attachment)) }))
    }

    /// Writes a record, whole or not at all, and holds it for the claim. What this call wrote before stays above it, and
    /// does not count any more.
    pub fn write(&self, record: &Record, claim: &mut Claim) -> anyhow::Result<()> {
        if claim.path.is_none() {
            Self::check_place(&self.state)?;
        }
        let mut bytes = serde_json::to_vec(record)
            .map_err(|e| CniError::new(Code::Internal, format!("encode an attachment's record: {e}")))?;
        bytes.push(b'\n');
        if let (true, Some(lock), Some(path)) = (claim.is_own, &claim.lock, &claim.path) {
            let outcome = lock.file().write_all(&bytes).map_err(|e| state_error("write", path, &e));
            // A line that was begun would swallow the next.
            claim.is_own = outcome.is_ok();
            return Ok(outcome?);
        }
        let path = match claim.path.take() {
            Some(path) => path,
            None => self
                .make_directory(&record.attachment.network)
                .map_err(|e| state_error("make a directory of records in", &self.state, &e))?
                .join(file_name(&record.attachment)),
        };
        let draft = draft_of(&path);
        let written = private_file::create(&draft, &bytes).and_then(|file| {
            // Nobody else knows of it, so it can be had at once.
            let lock = FileLock::take_now(file)?;
            private_file::put_into_place(&draft, &path)?;
            Ok(lock)
        });
        // Whether it is there or not: a rename that failed may have been done.
        claim.path = Some(path.clone());
        match written {
            Ok(lock) => {
                claim.is_own = lock.is_some();
                claim.lock = lock;
                Ok(())
            }
            Err(e) => {
                // Whether it was there or not, nobody reads it.
                let _ = remove_whatever(&draft);
                Err(state_error("write", &path, &e).into())
            }
        }
    }

    /// What is there of all networks and nobody works on. A record that is replaced later is another file.
    pub fn resting(&self) -> anyhow::Result<Resting> {
        let mut resting = Resting::default();
        for network in self.networks()? {
            for Place { path } in self.places(&network)? {
                let inode = match find(&path, None)? {
                    Found::Nothing | Found::Busy => continue,
                    Found::Alien => None,
                    Found::File(file) => Some(file.metadata.ino()),
                };
                resting.0.insert((path, inode));
            }
        }
        Ok(resting)
    }

    /// A few attachments to a network that no call works on, nor will as long as these live; whichever they are, and
    /// those only whose records can be read. Changes nothing.
    pub fn some_at_rest(&self, network: &str, few: usize) -> Vec<Claim> {
        if !StateDirectory::is_usable(&self.state) {
            return Vec::new();
        }
        let directory = self.state.join(ATTACHMENTS).join(&self.plugin_type).join(network);
        let names = private_file::names_in(&directory).unwrap_or_default();
        let places = names.into_iter().map(|name| Place { path: directory.join(name) });
        let places = places.filter(|place| !place.is_draft());
        let shared = places.filter_map(|place| place.share().ok().flatten());
        shared.filter(|claim| claim.record.is_some()).take(few).collect()
    }

    /// The attachments to a network that have a record, without holding any.
    pub fn attachments(&self, network: &str) -> anyhow::Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for place in self.places(network)?.iter().filter(|place| !place.is_draft()) {
            attachments.extend(place.read()?.map(|record| record.attachment));
        }
        Ok(attachments)
    }

    /// What any plugin type has on record of the container's interface of that name on other networks. A record that
    /// cannot be read tells nothing.
    pub fn of_other_networks(own: &Attachment, state: &Path) -> Vec<Record> {
        let mut found = Vec::new();
        for records in Self::of_all(state).unwrap_or_default() {
            let networks = records.networks().unwrap_or_default();
            for network in networks.into_iter().filter(|network| *network != own.network) {
                let other = Attachment { network, ..own.clone() };
                found.extend(records.read(&other).ok().flatten());
            }
        }
        found
    }

    /// Whether another interface of the container has a record on the same network.
    pub fn has_sibling(&self, attachment: &Attachment) -> anyhow::Result<bool> {
        for place in self.places(&attachment.network)? {
            // Few are read: most are not even of the container.
            if place.is_of_container(attachment) && !place.is_of(attachment) && place.read()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The places of a network's records, in the order of their names.
    pub fn places(&self, network: &str) -> anyhow::Result<Vec<Place>> {
        let Some(directory) = self.directory(network)? else { return Ok(Vec::new()) };
        let mut names = names_in(&directory)?;
        names.sort();
        Ok(names.into_iter().map(|name| Place { path: directory.join(name) }).collect())
    }
}

impl Claim {
    /// The claim of what is not there.
    fn none() -> Self {
        Self { record: None, path: None, lock: None, is_own: false }
    }

    /// Deletes the record, or whatever stands in its place; nothing there is fine.
    pub fn delete(self) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        // Beside it there may be one that a killed ADD was writing.
        for path in [&draft_of(path), path] {
            remove_whatever(path).map_err(|e| state_error("delete", path, &e))?;
        }
        Ok(())
    }
}

/// The name of a record's file. Colons are in no container ID, so it says which part is which.
fn file_name(attachment: &Attachment) -> String {
    let Attachment { container_id, ifname, .. } = attachment;
    let name = format!("{container_id}:{ifname}");
    if name.len() > NAME_MAX - DRAFT.len() {
        return format!("{}:{ifname}", hash_of(container_id));
    }
    name
}

/// What stands for the ID of a container that is too long for the name of a file.
fn hash_of(container_id: &str) -> String {
    sha512_hex(&[container_id], 64)
}

fn is_draft(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().ends_with(DRAFT.as_bytes())
}
