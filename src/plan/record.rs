//! Records of attachments: what ADD made, for DEL, CHECK and GC to read.
//!
//! They live on a tmpfs, as long as the kernel objects that they speak of, one file for each attachment and plugin.
//! Nothing depends on them: DEL works without a record, only with less knowledge.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::net::Netns;
use crate::net::netns::Identity;
use crate::resource::{Lease, Resource};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, CniResult, Code, Request};

/// Longest name that a file may have (`NAME_MAX` of linux/limits.h).
const NAME_MAX: usize = 255;

/// What is known of an attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whose.
    pub attachment: Attachment,
    /// Path of the pod's namespace, where a GC looks whether it is still the same.
    pub netns_path: PathBuf,
    /// What tells the pod's namespace from others; none for an IPAM, which does not look at it.
    pub netns: Option<Identity>,
    /// What ADD made or was about to make, oldest first.
    pub resources: Vec<Resource>,
    /// What ADD answered or was about to answer.
    pub result: Option<CniResult>,
}

impl Record {
    /// The record before anything is known but where addresses are to come from.
    pub fn begin(request: &Request, netns: Option<Identity>, lease: Option<Lease>) -> Self {
        Self {
            attachment: request.attachment.clone(),
            netns_path: request.netns.clone().unwrap_or_default(),
            netns,
            resources: lease.map(Resource::Lease).into_iter().collect(),
            result: None,
        }
    }

    /// Whether the pod cannot live: its namespace is gone from where it was.
    pub fn is_provably_dead(&self) -> bool {
        let Some(netns) = self.netns else { return false };
        match Netns::open(&self.netns_path) {
            Ok(found) => found.identity() != netns,
            Err(e) => matches!(e.errno, Errno::ENOENT | Errno::EINVAL),
        }
    }
}

/// The records of one plugin type.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records of a plugin type under a state directory.
    pub fn new(state: &Path, plugin_type: &str) -> Self {
        Self { directory: state.join("attachments").join(plugin_type) }
    }

    /// The records of every plugin type that has some.
    pub fn of_all(state: &Path) -> anyhow::Result<Vec<Self>> {
        let directory = state.join("attachments");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(state_error("list", &directory, &e).into()),
        };
        let directories = entries.map(|entry| entry.map(|it| Self { directory: it.path() }));
        directories.collect::<Result<_, _>>().map_err(|e| state_error("list", &directory, &e).into())
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        let Attachment { network, container_id, ifname } = attachment;
        // Colons are in no container ID, so the name says which is which.
        let mut name = format!("{container_id}:{ifname}");
        if name.len() > NAME_MAX - TEMPORARY.len() {
            name = format!("{}:{ifname}", sha512_hex(&[container_id], 64));
        }
        self.directory.join(network).join(name)
    }

    /// The record of an attachment. One that cannot be understood counts as none; one that cannot be read is an error,
    /// since what it says may be the only trace of what is there.
    pub fn read(&self, attachment: &Attachment) -> anyhow::Result<Option<Record>> {
        let path = self.path(attachment);
        let opened = match open_record(&path) {
            // It is a link, or one of our directories is: it is not where this program has written anything.
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
                self.make_way(&path).map_err(|e| state_error("read", &path, &e))?;
                // Or else a directory above ours is one, as /run on some systems.
                fs::File::open(&path)
            }
            opened => opened,
        };
        Ok(read(&path, opened)?.filter(|record| record.attachment == *attachment))
    }

    /// Writes a record, whole or not at all.
    pub fn write(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(&record.attachment);
        let failed = |e: std::io::Error| state_error("write", &path, &e);
        let bytes = serde_json::to_vec(record)
            .map_err(|e| CniError::new(Code::Internal, format!("encode an attachment's record: {e}")))?;
        let temporary = temporary(&path);
        let write = || write_private(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &path));
        let written = write().or_else(|e| {
            if !is_in_the_way(&e) {
                return Err(e);
            }
            self.make_way(&path)?;
            write()
        });
        written.map_err(|e| {
            // Whether it was there or not, nobody reads it.
            let _ = fs::remove_file(&temporary);
            failed(e).into()
        })
    }

    /// Makes the directories for a record, and removes what stands where they and the record belong and is none.
    fn make_way(&self, path: &Path) -> std::io::Result<()> {
        let network = path.parent().unwrap_or(path);
        for directory in [self.directory.as_path(), network] {
            if fs::symlink_metadata(directory).is_ok_and(|it| !it.is_dir()) {
                warn!("{} is no directory and is removed", directory.display());
                fs::remove_file(directory)?;
            }
        }
        make_private_directory(network)?;
        for path in [temporary(path).as_path(), path] {
            if fs::symlink_metadata(path).is_ok_and(|it| !it.is_file()) {
                warn!("{} is no attachment's record and is removed", path.display());
                remove_whatever(path)?;
            }
        }
        Ok(())
    }

    /// Deletes the record of an attachment; one that is not there is fine.
    pub fn delete(&self, attachment: &Attachment) -> anyhow::Result<()> {
        let path = self.path(attachment);
        // Beside it there may be one that a killed ADD was writing.
        for path in [&temporary(&path), &path] {
            remove_whatever(path).map_err(|e| state_error("delete", path, &e))?;
        }
        Ok(())
    }

    /// The records of a network.
    pub fn list(&self, network: &str) -> anyhow::Result<Vec<Record>> {
        let directory = self.directory.join(network);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(state_error("list", &directory, &e).into()),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| state_error("list", &directory, &e))?.path();
            records.extend(read(&path, open_record(&path))?);
        }
        Ok(records)
    }
}

/// Ending of the name under which a record is written aside.
const TEMPORARY: &str = ":new";

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    name.into()
}

/// Opens a record without following a symbolic link, and without waiting for the other end of a pipe.
fn open_record(path: &Path) -> std::io::Result<fs::File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = loop {
        let opened = match openat2(AT_FDCWD, path, how) {
            // Kernels before 5.6, and filters of system calls that do not know it.
            Err(Errno::ENOSYS | Errno::EPERM) => open(path, flags | OFlag::O_NOFOLLOW, Mode::empty()),
            opened => opened,
        };
        if opened.as_ref().err() != Some(&Errno::EINTR) {
            break opened;
        }
    };
    Ok(opened?.into())
}

/// Reads a record. What stands in its place and is no file counts as none.
fn read(path: &Path, opened: std::io::Result<fs::File>) -> anyhow::Result<Option<Record>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    match opened.and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if is_in_the_way(&e) => {
            warn!("{} is no attachment's record and is passed over: {e}", path.display());
            return Ok(None);
        }
        Err(e) => return Err(state_error("read", path, &e).into()),
    }
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(e) => {
            warn!("{} is no attachment's record and is passed over: {e}", path.display());
            Ok(None)
        }
    }
}

/// Whether an error is one of what is there: something that is not what it should be, or not enough of it.
fn is_in_the_way(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO)
    )
}

/// Removes what a path names, be it a directory; that there is nothing is fine.
fn remove_whatever(path: &Path) -> std::io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    };
    match removed {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(e),
        _ => Ok(()),
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW).open(path)?.write_all(bytes)
}

fn make_private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn state_error(verb: &str, path: &Path, error: &std::io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}
