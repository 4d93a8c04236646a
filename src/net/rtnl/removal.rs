//! Removing a link without waiting for what the kernel does after it is gone.
//!
//! Deleting a veth takes the kernel about half a millisecond until both ends are gone from every list and their names
//! are free. Then `netdev_run_todo` (net/core/dev.c) keeps the caller in `rcu_barrier` for another 15 to 20 ms, with
//! nothing left to be done for us. So a short-lived child sends the request and waits that out; the parent, which
//! listens for link events since before, goes on once the link is announced gone, and never before.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{
    ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, read, setsid, write,
};

use super::Rtnl;
use super::link::{Event, Link, RTNLGRP_LINK, delete, event};
use crate::net::netlink::Socket;
use crate::net::{Error, Result};

/// Longest wait for a link to be gone. RTNL, the kernel's lock over all links, may be held by others for a while.
const DEADLINE: Duration = Duration::from_secs(30);

/// Deletes a link of the thread's namespace and returns as soon as it is gone. One that is not there is fine.
pub fn remove(link: &Link) -> Result<()> {
    let deed = || format!("delete link {}", link.name);
    let failed = |e: Errno| Error::new(deed(), e);
    let mut events = Socket::open(NETLINK_ROUTE)?;
    events.join(RTNLGRP_LINK)?;
    let mut rtnl = Rtnl::open()?;
    let (failure, report) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    // SAFETY: this program has one thread, so the child may go on as any program does after fork.
    match unsafe { fork() }.map_err(failed)? {
        ForkResult::Child => {
            drop(failure);
            let code = match leave_the_caller().and_then(|()| rtnl.execute_one(delete(link))) {
                Ok(()) => 0,
                Err(e) => {
                    // The parent reads the errno. If it is gone, nobody needs to know.
                    let _ = write(&report, &(e.errno as i32).to_ne_bytes());
                    1
                }
            };
            // SAFETY: _exit runs nothing of ours: no destructor of the parent's journal, no flush of its output.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { .. } => {
            drop(report);
            wait_until_gone(link, &mut events, &failure)
        }
    }
}

/// The child lets go of all that the caller may wait for: session, working directory, and descriptors, the standard
/// ones and any other that this program inherited.
///
/// This program's own stay open. An nf_tables socket is among them on purpose: who closes the last descriptor of one
/// after a transaction that deleted something waits for the kernel to free it (`nft_rcv_nl_event`), which takes
/// another 10 ms. So it is the child that waits.
fn leave_the_caller() -> Result<()> {
    let failed = |e: Errno| Error::new("detach from the caller", e);
    setsid().map_err(failed)?;
    chdir("/").map_err(failed)?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    dup2_stdin(null.as_fd()).map_err(failed)?;
    dup2_stdout(null.as_fd()).map_err(failed)?;
    dup2_stderr(null.as_fd()).map_err(failed)?;
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
            let flags = unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) };
            flags >= 0 && flags & nix::libc::FD_CLOEXEC == 0
        })
        .collect()
}

fn wait_until_gone(link: &Link, events: &mut Socket, failure: &OwnedFd) -> Result<()> {
    let deed = || format!("delete link {}", link.name);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds =
            [PollFd::new(events.as_fd(), PollFlags::POLLIN), PollFd::new(failure.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Err(Error::new(deed(), Errno::ETIMEDOUT)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::new(deed(), e)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let (has_event, has_ended) = (ready(&fds[0]), ready(&fds[1]));
        if has_event {
            match events.next_events(deadline) {
                Ok(found) => {
                    let gone =
                        |(kind, body): &(u16, Vec<u8>)| event(*kind, body) == Some((Event::Gone, link.index));
                    if found.iter().flatten().any(gone) {
                        return Ok(());
                    }
                }
                // Events were lost in a flood of them: look for the link itself, which waits for RTNL but is sure.
                Err(e) if e.errno == Errno::ENOBUFS => {
                    if Rtnl::open()?.link_by_index(link.index)?.is_none() {
                        return Ok(());
                    }
                }
                Err(e) => return Err(e),
            }
        } else if has_ended {
            let mut errno = [0; 4];
            return match read(failure, &mut errno) {
                Ok(4) => match Errno::from_raw(i32::from_ne_bytes(errno)) {
                    Errno::ENODEV => Ok(()),
                    errno => Err(Error::new(deed(), errno)),
                },
                // It ended well, so the link is gone, whatever became of the event.
                _ => Ok(()),
            };
        }
    }
}
