//! The lock on a network's directory: flock(2) on its file `lock`, as the Go host-local takes it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use super::directory::{Directory, errno_of};
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
    let file = match open(directory) {
        // Neither can be opened as a file.
        Err(Errno::ELOOP | Errno::ENXIO) => {
            repair(directory, deadline)?;
            open(directory)
        }
        outcome => outcome,
    };
    let file = match file {
        Ok(file) => file,
        // No file can be created in a directory that has been removed.
        Err(Errno::ENOENT) => return Ok(Taken::Stale),
        Err(errno) => return Err(directory.error("open", NAME, errno)),
    };
    let held = Held::take(file, &directory.path().join(NAME), Mode::Exclusive, deadline)?;
    let linked = held.file().metadata().is_ok_and(|it| it.nlink() > 0);
    Ok(if linked { Taken::Held(held) } else { Taken::Stale })
}

/// Opens what is locked: a file, created read-only and 0750, as the reference does, so that whoever may open it there
/// may open it here. A directory in its place can be locked as well.
fn open(directory: &Directory) -> Result<File, Errno> {
    match directory.open_file(NAME, OFlag::O_RDONLY | OFlag::O_CREAT, 0o750) {
        Err(Errno::EISDIR) => directory.open_file(NAME, OFlag::O_RDONLY, 0),
        outcome => outcome,
    }
}

/// Removes a symbolic link or a socket that somebody has put in the place of the lock's file. A link is not followed:
/// it may lead anywhere. Only one process at a time does so, and looks again before; else the second would remove the
/// file that the first has made and locked.
fn repair(directory: &Directory, deadline: Instant) -> Result<(), CniError> {
    let failed = |errno| directory.error("remove", NAME, errno);
    let whole = File::from(directory.fd().try_clone().map_err(|error| failed(errno_of(&error)))?);
    let _alone = Held::take(whole, directory.path(), Mode::Exclusive, deadline)?;
    let kind = match directory.stat_of(NAME) {
        Ok(stat) => SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    if kind == SFlag::S_IFLNK || kind == SFlag::S_IFSOCK {
        log::warn!("removed {}: it was no file", directory.path().join(NAME).display());
        directory.unlink(NAME).map_err(failed)?;
    }
    Ok(())
}
