//! The lock on a network's directory: flock(2) on its file `lock`, as the Go host-local takes it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::directory::{Directory, state_error};
use crate::spec::{CniError, Code};

/// Name of the file that is locked.
const NAME: &str = "lock";

/// How a try to take the lock ended, other than by an error.
pub(super) enum Taken {
    /// It is held until this is dropped.
    Held(Flock<File>),
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
    let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => held,
        Err((file, Errno::EWOULDBLOCK)) => wait(file, &directory.path().join(NAME), deadline)?,
        Err((_, errno)) => return Err(directory.error("lock", NAME, errno)),
    };
    let linked = held.metadata().is_ok_and(|it| it.nlink() > 0);
    Ok(if linked { Taken::Held(held) } else { Taken::Stale })
}

/// Waits for a lock that somebody holds.
///
/// flock(2) knows no timeout, and polling would be slow and let others pass. So a thread blocks in it; the kernel
/// wakes it. If we give up before, the lock is released the moment that the thread gets it, for then nobody is left
/// to receive it.
fn wait(file: File, path: &Path, deadline: Instant) -> Result<Flock<File>, CniError> {
    let began = Instant::now();
    let id = file.metadata().map(|it| (it.dev(), it.ino())).ok();
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::Builder::new().name("lock".to_owned()).spawn(move || {
        let mut file = file;
        let result = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Err((again, Errno::EINTR)) => file = again,
                other => break other.map_err(|(_, errno)| errno),
            }
        };
        // An error means that the receiver gave up; the lock is dropped with the message.
        let _ = sender.send(result);
    });
    let failed = |errno| state_error("lock", path, errno);
    let waiter = waiter.map_err(|error| failed(super::directory::errno_of(&error)))?;
    match receiver.recv_timeout(deadline.saturating_duration_since(began)) {
        Ok(result) => {
            // Ends at once. The process is single-threaded again when the caller goes on, and may fork.
            let _ = waiter.join();
            result.map_err(failed)
        }
        Err(RecvTimeoutError::Timeout) => {
            let holder = id.and_then(|(dev, ino)| holder(dev, ino));
            Err(held_by(path, holder.as_deref(), began.elapsed()))
        }
        Err(RecvTimeoutError::Disconnected) => Err(failed(Errno::EIO)),
    }
}

fn held_by(path: &Path, holder: Option<&str>, waited: Duration) -> CniError {
    let holder = holder.unwrap_or("a process that cannot be seen from here");
    CniError::new(
        Code::TryAgainLater,
        format!(
            "the lock {} is held by {holder}; waited {:.1} s for it",
            path.display(),
            waited.as_secs_f32()
        ),
    )
}

/// The process that holds a flock(2) lock on an inode, with its command, as far as /proc tells.
fn holder(dev: u64, ino: u64) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holder_in(&locks, dev, ino)?;
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return Some(format!("a child of process {pid}, which has ended and left it its open file"));
    };
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command: String = command.trim().chars().take(200).collect();
    Some(if command.is_empty() { format!("process {pid}") } else { format!("process {pid} ({command})") })
}

/// The process id in a text like /proc/locks (Documentation/filesystems/locks.rst), whose lines read
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, and with `->` for those who wait.
fn holder_in(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let mut same_inode = None;
    for line in locks.lines() {
        let mut fields = line.split_whitespace().skip(1);
        if fields.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(place)) = (fields.nth(2), fields.next()) else { continue };
        let (Ok(pid), Some((on, inode))) = (pid.parse::<u32>(), place.rsplit_once(':')) else { continue };
        if pid == 0 || inode.parse() != Ok(ino) {
            continue;
        }
        if on == device {
            return Some(pid);
        }
        // btrfs and overlay show another device here than to stat(2).
        same_inode = Some(pid);
    }
    same_inode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 10 fe:01:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n";
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0xfe, 0), 77), Some(12));
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(3, 0), 77), Some(12));
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0xfe, 0), 78), None);
    }
}
