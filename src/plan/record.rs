//! Records of attachments: what ADD made, for DEL, CHECK and GC to read.
//!
//! They live on a tmpfs, as long as the kernel objects that they speak of, one file for each attachment and plugin.
//! Nothing depends on them: DEL works without a record, only with less knowledge.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
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
        Ok(read(&self.path(attachment))?.filter(|record| record.attachment == *attachment))
    }

    /// Writes a record, whole or not at all.
    pub fn write(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(&record.attachment);
        let failed = |e: std::io::Error| state_error("write", &path, &e);
        let bytes = serde_json::to_vec(record)
            .map_err(|e| CniError::new(Code::Internal, format!("encode an attachment's record: {e}")))?;
        let temporary = temporary(&path);
        let written = match write_private(&temporary, &bytes) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make_private_directory(path.parent().unwrap_or(&path))
                    .and_then(|()| write_private(&temporary, &bytes))
            }
            outcome => outcome,
        };
        written.and_then(|()| fs::rename(&temporary, &path)).map_err(|e| {
            // Whether it was there or not, nobody reads it.
            let _ = fs::remove_file(&temporary);
            failed(e).into()
        })
    }

    /// Deletes the record of an attachment; one that is not there is fine.
    pub fn delete(&self, attachment: &Attachment) -> anyhow::Result<()> {
        let path = self.path(attachment);
        // Beside it there may be one that a killed ADD was writing.
        for path in [&temporary(&path), &path] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(state_error("delete", path, &e).into());
                }
                _ => {}
            }
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
            records.extend(read(&path)?);
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

fn read(path: &Path) -> anyhow::Result<Option<Record>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(state_error("read", path, &e).into()),
    };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(e) => {
            warn!("{} is no attachment's record and is passed over: {e}", path.display());
            Ok(None)
        }
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
