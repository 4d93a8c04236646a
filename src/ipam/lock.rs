//! The lock on a network's directory: flock(2) on its file `lock`, as the Go host-local takes it.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::directory::Directory;
use super::flock::{Held, Mode};
use crate::spec::CniError;

/// Name of the file that is locked.
const NAME: &str = "lock";

/// How a try to take the lock ended, other than by an error.
pub(super) enum Taken {
    /// It is held until this is dropped.
    Held(Held),
    /// The file or its whole directory was removed while we waited: what we hold is not what others lock.
    Stale,
}

/// Takes the lock of a directory, waiting until `deadline` at most.
///
/// Errors: code 11 naming the holder if it was not to be had in time; code 105 if the file cannot be opened.
pub(super) fn take(directory: &Directory, deadline: Instant) -> Result<Taken, CniError> {
    // Read-only and 0750, as the reference creates it: whoever may open it there may open it here.
    let file = match directory.open_file(NAME, OFlag::O_RDONLY | OFlag::O_CREAT, 0o750) {
        Ok(file) => file,
        // No file can be created in a directory that has been removed.
        Err(Errno::ENOENT) => return Ok(Taken::Stale),
        Err(errno) => return Err(directory.error("open", NAME, errno)),
    };
    let held = Held::take(file, &directory.path().join(NAME), Mode::Exclusive, deadline)?;
    let linked = held.file().metadata().is_ok_and(|it| it.nlink() > 0);
    Ok(if linked { Taken::Held(held) } else { Taken::Stale })
}
