//! Where the records of attachments are kept: on a tmpfs, as long as the kernel objects that they speak of, one file
//! for each attachment and plugin type.
//!
//! Nothing depends on them: DEL works without a record, only with less knowledge. So whatever stands in the place of
//! one and is none (an empty file, a directory, a symbolic link, a file of somebody else) counts as no record. It is
//! never followed; ADD replaces it, and DEL removes it.
//!
//! Who works on an attachment has a lock on its record's file, from before its first change to after its last. So a
//! GC or a restore beside it neither removes what an ADD has just made nor puts back what a DEL has just removed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{debug, warn};
use nix::libc;

use super::record::Record;
use crate::resource::FileLock;
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};

/// Longest name that a file may have (`NAME_MAX` of linux/limits.h).
const NAME_MAX: usize = 255;

/// Most bytes that are read of a record. Those of real attachments have a few thousand.
const MAX_BYTES: u64 = 4 << 20;

/// Longest wait for another call about the same attachment. Runtimes make none at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ending of the name under which a record is written aside.
const DRAFT: &str = ":new";

/// After this time a draft that nobody holds is one that nobody will finish.
const ABANDONED: Duration = Duration::from_secs(60);

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
}

/// What was there at one moment, and nobody worked on; a GC may judge of nothing else.
#[derive(Debug, Default)]
pub struct Resting(BTreeSet<(PathBuf, Option<u64>)>);

impl Resting {
    /// Whether a claim is of what was there.
    pub fn has(&self, claim: &Claim) -> bool {
        let inode = claim.lock.as_ref().map(|lock| lock.file().metadata().map(|it| it.ino()));
        match (&claim.path, inode.transpose()) {
            (Some(path), Ok(inode)) => self.0.contains(&(path.clone(), inode)),
            _ => false,
        }
    }
}

/// What was found where a record may be.
enum Found {
    Nothing,
    /// Something that is no file, or not ours, and means nothing.
    Alien,
    /// Another call holds it.
    Busy,
    File(LockedFile),
}

/// A file that nobody else works on.
struct LockedFile {
    lock: FileLock,
    metadata: fs::Metadata,
}

impl LockedFile {
    fn read(&self, path: &Path) -> anyhow::Result<Option<Record>> {
        read(path, self.lock.file(), &self.metadata)
    }
}

impl Records {
    /// The records of a plugin type under a state directory.
    pub fn new(state: &Path, plugin_type: &str) -> Self {
        Self { state: state.to_owned(), plugin_type: plugin_type.to_owned() }
    }

    /// The records of all plugin types of which there are any.
    pub fn of_all(state: &Path) -> anyhow::Result<Vec<Self>> {
        let types = names_in(&state.join(ATTACHMENTS))?;
        Ok(types.iter().filter_map(|name| Some(Self::new(state, name.to_str()?))).collect())
    }

    /// The networks of which there may be records.
    pub fn networks(&self) -> anyhow::Result<Vec<String>> {
        let names = names_in(&self.state.join(ATTACHMENTS).join(&self.plugin_type))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The directory of a network's records; `None` where it is not there or something else is. What another version
    /// of this program left too open is closed.
    fn directory(&self, network: &str) -> anyhow::Result<Option<PathBuf>> {
        let mut path = self.state.clone();
        if let Ok(found) = fs::metadata(&path) {
            close_to_others(&path, &found);
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

    /// Writes a record, whole or not at all, and holds it for the claim.
    pub fn write(&self, record: &Record, claim: &mut Claim) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(record)
            .map_err(|e| CniError::new(Code::Internal, format!("encode an attachment's record: {e}")))?;
        let path = match claim.path.take() {
            Some(path) => path,
            None => self
                .make_directory(&record.attachment.network)
                .map_err(|e| state_error("make a directory of records in", &self.state, &e))?
                .join(file_name(&record.attachment)),
        };
        let draft = draft_of(&path);
        let written = write_private(&draft, &bytes).and_then(|file| {
            // Nobody else knows of it, so it can be had at once.
            let lock = FileLock::take_now(file)?;
            match fs::rename(&draft, &path) {
                Err(e) if e.kind() == ErrorKind::IsADirectory => {
                    remove_whatever(&path)?;
                    fs::rename(&draft, &path)?;
                }
                outcome => outcome?,
            }
            Ok(lock)
        });
        // Whether it is there or not: a rename that failed may have been done.
        claim.path = Some(path.clone());
        match written {
            Ok(lock) => {
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

    /// The attachments to a network that have a record, without holding any.
    pub fn attachments(&self, network: &str) -> anyhow::Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for place in self.places(network)?.iter().filter(|place| !place.is_draft()) {
            attachments.extend(place.read()?.map(|record| record.attachment));
        }
        Ok(attachments)
    }

    /// The places of a network's records, in the order of their names.
    pub fn places(&self, network: &str) -> anyhow::Result<Vec<Place>> {
        let Some(directory) = self.directory(network)? else { return Ok(Vec::new()) };
        let mut names = names_in(&directory)?;
        names.sort();
        Ok(names.into_iter().map(|name| Place { path: directory.join(name) }).collect())
    }
}

/// Where a record is, or was a moment ago, or something else is.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
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
    fn read(&self) -> anyhow::Result<Option<Record>> {
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

    /// Claims what is here, unless another call works on it or it is gone.
    pub fn try_to_claim(&self) -> anyhow::Result<Option<Claim>> {
        self.claim_as(find(&self.path, None)?, None)
    }

    /// Claims what is here, and waits for a call that works on it. `None` if it is gone then.
    ///
    /// Errors: as for [`Records::claim`].
    pub fn claim(&self) -> anyhow::Result<Option<Claim>> {
        self.claim_as(find(&self.path, Some(PATIENCE))?, None)
    }

    fn claim_as(&self, found: Found, nothing: Option<Claim>) -> anyhow::Result<Option<Claim>> {
        let path = Some(self.path.clone());
        Ok(match found {
            Found::Nothing => nothing,
            Found::Busy => None,
            Found::Alien => Some(Claim { path, ..Claim::none() }),
            Found::File(file) => {
                // One under another's name says nothing of whose name it is under.
                let record = file.read(&self.path)?.filter(|record| self.is_of(&record.attachment));
                Some(Claim { record, path, lock: Some(file.lock) })
            }
        })
    }
}

impl Claim {
    /// The claim of what is not there.
    fn none() -> Self {
        Self { record: None, path: None, lock: None }
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
        return format!("{}:{ifname}", sha512_hex(&[container_id], 64));
    }
    name
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(DRAFT);
    name.into()
}

fn is_draft(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().ends_with(DRAFT.as_bytes())
}

/// The names in a directory; none where it is not there, or something else is.
fn names_in(directory: &Path) -> anyhow::Result<Vec<OsString>> {
    let list = || -> io::Result<Vec<OsString>> {
        if !fs::symlink_metadata(directory)?.is_dir() {
            return Ok(Vec::new());
        }
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    match list() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map_err(|e| state_error("list", directory, &e).into()),
    }
}

/// Opens a file, never through a symbolic link and never waiting for the other end of a FIFO; `None` for a link.
fn open(path: &Path) -> io::Result<Option<File>> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.open(path) {
        // A symbolic link; a socket.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Opens and locks what is at a path. Without patience, whoever holds it is not waited for.
fn find(path: &Path, patience: Option<Duration>) -> anyhow::Result<Found> {
    let alien = || {
        warn!("{} is no file of ours and so no attachment's record", path.display());
        Ok(Found::Alien)
    };
    loop {
        let file = match open(path) {
            Ok(Some(file)) => file,
            Ok(None) => return alien(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(state_error("open", path, &e).into()),
        };
        let lock = match patience {
            Some(patience) => Some(FileLock::take(file, path, patience)?),
            None => FileLock::take_now(file).map_err(|e| state_error("lock", path, &e))?,
        };
        let Some(lock) = lock else { return Ok(Found::Busy) };
        let metadata = lock.file().metadata().map_err(|e| state_error("look at", path, &e))?;
        if !is_ours(&metadata) {
            return alien();
        }
        // Who held it before may have replaced or deleted it.
        if metadata.nlink() > 0 {
            close_to_others(path, &metadata);
            return Ok(Found::File(LockedFile { lock, metadata }));
        }
    }
}

/// Whether this is a file, and nobody else's.
fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// The record in a file; `None` where it has none.
fn read(path: &Path, file: &File, metadata: &fs::Metadata) -> anyhow::Result<Option<Record>> {
    let mut bytes =
        Vec::with_capacity(usize::try_from(metadata.len().min(MAX_BYTES)).unwrap_or_default() + 1);
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| state_error("read", path, &e))?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(e) => {
            warn!("{} is no attachment's record and is passed over: {e}", path.display());
            Ok(None)
        }
    }
}

/// Writes a file that is not there yet, in place of whatever is.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = match options.open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            remove_whatever(path)?;
            options.open(path)?
        }
        outcome => outcome?,
    };
    file.write_all(bytes)?;
    Ok(file)
}

/// Removes a file, a symbolic link itself, or a directory with all that is in it; nothing there is fine.
fn remove_whatever(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path),
        outcome => outcome,
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Takes away what a mode allows others than root. It tells them addresses of pods, and an earlier version may have
/// run with another mask.
fn close_to_others(path: &Path, found: &fs::Metadata) {
    let mode = found.permissions().mode();
    if mode & 0o077 == 0 {
        return;
    }
    if let Err(e) = fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700)) {
        debug!("{} is open to others, and stays so: {e}", path.display());
    }
}

fn state_error(verb: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}
