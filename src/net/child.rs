//! Short-lived children that wait in this program's stead.
//!
//! The kernel makes its callers wait for things that are of no use to them: for RCU after a link is gone, for memory
//! that a transaction of nf_tables set free. A child takes such a wait over, and the runtime has its answer meanwhile.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

use super::error::uninterrupted;
use super::{Error, Result};

/// Forks a child that does one thing and ends; this program goes on at once.
///
/// The child has let go of all that the caller may wait for: session, working directory, and descriptors, the
/// standard ones and any other that this program inherited. This program's own stay open in it, whatever they are.
pub fn start(deed: impl FnOnce() -> i32) -> Result<()> {
    // SAFETY: the path of a CNI call has one thread, so the child may go on as any program does after fork.
    match unsafe { fork() }.map_err(|e| Error::new("fork", e))? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            // The frames above are the parent's: no panic may come to them.
            let deed = AssertUnwindSafe(|| leave_the_caller().map_or(1, |()| deed()));
            let status = catch_unwind(deed).unwrap_or(1);
            // SAFETY: _exit runs nothing of the parent's: no destructor of its journal, no flush of its output.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

fn leave_the_caller() -> nix::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = uninterrupted(|| open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()))?;
    uninterrupted(|| dup2_stdin(null.as_fd()))?;
    uninterrupted(|| dup2_stdout(null.as_fd()))?;
    uninterrupted(|| dup2_stderr(null.as_fd()))?;
    for fd in inherited_descriptors() {
        // SAFETY: nothing here knows of the descriptor, since it came with exec and is none of the standard ones.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Descriptors that survived exec: those without the flag by which this program's own would not.
fn inherited_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd: &RawFd| fd > 2)
        .filter(|&fd| {
            // SAFETY: only asks for flags; a descriptor that is not open gives EBADF.
            let flags = Errno::result(unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) });
            flags.is_ok_and(|flags| flags & nix::libc::FD_CLOEXEC == 0)
        })
        .collect()
}
