//! What is found where a record may be, and what is done to files there: never through a symbolic link.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use log::{debug, warn};
use nix::libc;

use crate::plan::record::Record;
use crate::private_file;
use crate::resource::FileLock;
use crate::spec::{CniError, Code};

/// Most bytes that are read of a record. Those of real attachments have a few thousand.
const MAX_BYTES: u64 = 4 << 20;

/// What was found where a record may be.
pub(super) enum Found {
    Nothing,
    /// Something that is no file, or not ours, and means nothing.
    Alien,
    /// Another call holds it.
    Busy,
    File(LockedFile),
}

/// A file that nobody else works on.
pub(super) struct LockedFile {
    pub(super) lock: FileLock,
    pub(super) metadata: fs::Metadata,
}

impl LockedFile {
    pub(super) fn read(&self, path: &Path) -> anyhow::Result<Option<Record>> {
        read(path, self.lock.file(), &self.metadata)
    }
}

/// The names in a directory; none where it is not there, or something else is.
pub(super) fn names_in(directory: &Path) -> anyhow::Result<Vec<OsString>> {
    private_file::names_in(directory).map_err(|e| state_error("list", directory, &e).into())
}

/// Opens a file, never through a symbolic link and never waiting for the other end of a FIFO; `None` for a link.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    match private_file::open(path) {
        // A symbolic link; a socket.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Opens and locks what is at a path. Without patience, whoever holds it is not waited for.
pub(super) fn find(path: &Path, patience: Option<Duration>) -> anyhow::Result<Found> {
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
pub(super) fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// The record in a file; `None` where it has none.
pub(super) fn read(path: &Path, file: &File, metadata: &fs::Metadata) -> anyhow::Result<Option<Record>> {
    let mut bytes =
        Vec::with_capacity(usize::try_from(metadata.len().min(MAX_BYTES)).unwrap_or_default() + 1);
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| state_error("read", path, &e))?;
    match serde_json::from_slice(last_line(&bytes)) {
        Ok(record) => Ok(Some(record)),
        Err(e) => {
            warn!("{} is no attachment's record and is passed over: {e}", path.display());
            Ok(None)
        }
    }
}

/// Takes away what a mode allows others than root. It tells them addresses of pods, and an earlier version may have
/// run with another mask.
pub(super) fn close_to_others(path: &Path, found: &fs::Metadata) {
    let mode = found.permissions().mode();
    if mode & 0o077 == 0 {
        return;
    }
    if let Err(e) = fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700)) {
        debug!("{} is open to others, and stays so: {e}", path.display());
    }
}

pub(super) fn state_error(verb: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}

/// The last line that has an end: one without has been cut off by the death of its writer. A file of an earlier version is
/// a single line that has none.
fn last_line(bytes: &[u8]) -> &[u8] {
    match bytes.iter().rposition(|&byte| byte == b'\n') {
        None => bytes,
        Some(end) => {
            let whole = bytes.get(..end).unwrap_or_default();
            whole.rsplit(|&byte| byte == b'\n').next().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        for (file, line) in [
            ("", ""),
            ("{old}", "{old}"),
            ("{1}\n", "{1}"),
            ("{1}\n{2}\n", "{2}"),
            ("{1}\n{2}\n{3", "{2}"),
            ("{1}\n{", "{1}"),
        ] {
            assert_eq!(last_line(file.as_bytes()), line.as_bytes(), "{file:?}");
        }
    }
}
