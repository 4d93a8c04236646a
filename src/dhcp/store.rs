//! The leases that a daemon keeps, in files: one each, below a directory for each socket.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::exchange::{self, Identity};
use super::lease::Lease;
use crate::net::netns::Identity as NetnsIdentity;
use crate::net::{Netns, sysctl};
use crate::private_file::{self, draft_of, remove_whatever};
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};

/// A lease of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whose.
    pub attachment: Attachment,
    /// Path of the pod's namespace on the host.
    pub netns_path: PathBuf,
    /// What tells the namespace from others.
    pub netns: NetnsIdentity,
    /// How the client names itself.
    pub identity: Identity,
    /// The lease.
    pub lease: Lease,
    /// Why it was given up, if it was.
    pub lost: Option<String>,
    /// The boot in which it was made; namespaces of another are gone.
    pub boot: String,
}

impl Record {
    /// A new one.
    pub fn new(
        attachment: Attachment,
        netns_path: PathBuf,
        netns: NetnsIdentity,
        identity: Identity,
        lease: Lease,
    ) -> anyhow::Result<Self> {
        Ok(Self { attachment, netns_path, netns, identity, lease, lost: None, boot: sysctl::boot_id()? })
    }

    /// The pod's namespace, if it is still the same. An error if that cannot be told.
    pub fn open_netns(&self, path: &Path) -> anyhow::Result<Option<Netns>> {
        Ok(Netns::find(path)?.filter(|it| it.identity() == self.netns))
    }

    /// Tells the server that the lease is not needed any more, if the pod's link is there to do it by.
    pub fn release(&self, path: &Path, home: &Netns) -> anyhow::Result<()> {
        if self.lost.is_some() {
            return Ok(());
        }
        let Some(netns) = self.open_netns(path)? else { return Ok(()) };
        exchange::release(&self.identity, &self.lease, &netns, home, &self.attachment.ifname)
    }
}

/// The files of one daemon.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {doing} {}: {error}", path.display()))
}

impl Store {
    /// The files, below a state directory, of the daemon that listens on a socket of the host.
    pub fn new(state: &Path, socket: &Path) -> Self {
        Self { directory: state.join("dhcp").join(sha512_hex(&[&socket.to_string_lossy()], 16)) }
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        let Attachment { network, container_id, ifname } = attachment;
        let name = sha512_hex(&[network, "/", container_id, "/", ifname], 40);
        self.directory.join(format!("{name}.json"))
    }

    /// Writes a record: aside, then in place of the one that was there.
    pub fn write(&self, record: &Record) -> Result<(), CniError> {
        let path = self.path(&record.attachment);
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            private_file::replace(&path, &serde_json::to_vec(record)?)
        };
        write().map_err(|e| failed("write", &path, &e))
    }

    /// The record of an attachment. None where there is none, or one that nobody understands.
    pub fn read(&self, attachment: &Attachment) -> Option<Record> {
        read(&self.path(attachment)).filter(|record| record.attachment == *attachment)
    }

    /// All records. What cannot be understood, or is of another boot, is removed.
    pub fn all(&self) -> Result<Vec<Record>, CniError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("read", &self.directory, &e)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| failed("read", &self.directory, &e))?.path();
            match read(&path).filter(|record| self.path(&record.attachment) == path) {
                Some(record) => records.push(record),
                None => {
                    log::warn!("{}: no lease of this boot, and removed", path.display());
                    remove_whatever(&path).map_err(|e| failed("remove", &path, &e))?;
                }
            }
        }
        Ok(records)
    }

    /// Removes a record; that it is not there is fine.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), CniError> {
        let path = self.path(attachment);
        // Beside it there may be one that a killed daemon was writing.
        for path in [&draft_of(&path), &path] {
            match remove_whatever(path) {
                Err(e) if e.kind() != ErrorKind::NotADirectory => return Err(failed("remove", path, &e)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Option<Record> {
    let file = private_file::open(path).ok()?;
    let record: Record = serde_json::from_reader(std::io::BufReader::new(file)).ok()?;
    (sysctl::boot_id().ok()? == record.boot).then_some(record)
}
