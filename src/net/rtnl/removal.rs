//! Removing a link without waiting for what the kernel does after it is gone.
//!
//! Deleting a veth takes the kernel about half a millisecond until both ends are gone from every list and their names
//! are free. Then `netdev_run_todo` (net/core/dev.c) keeps the caller in `rcu_barrier` for another 15 to 20 ms, with
//! nothing left to be done for us. So a short-lived child sends the request and waits that out; the parent, which
//! listens for link events since before, goes on once the link is announced gone, and never before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};

use super::Rtnl;
use super::link::{Event, Link, RTNLGRP_LINK, delete, event};
use crate::net::error::uninterrupted;
use crate::net::netlink::Socket;
use crate::net::{Error, Result, child};

/// Longest wait for a link to be gone. RTNL, the kernel's lock over all links, may be held by others for a while.
const DEADLINE: Duration = Duration::from_secs(30);

/// Deletes a link of the thread's namespace and returns as soon as it is gone. One that is not there is fine.
///
/// The child does not end before `afterwards` has; it keeps the descriptor `keep` as long. The answer tells whether there
/// is such a child.
pub fn remove(link: &Link, keep: Option<RawFd>, afterwards: impl FnOnce()) -> Result<Afterwards> {
    let deed = || format!("delete link {}", link.name);
    let failed = |e: Errno| Error::new(deed(), e);
    let mut events = Socket::open(NETLINK_ROUTE)?;
    events.join(RTNLGRP_LINK)?;
    let mut rtnl = Rtnl::open()?;
    let (outcome, report) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    let own = [rtnl.as_fd().as_raw_fd(), report.as_raw_fd()];
    let keep: Vec<RawFd> = keep.into_iter().chain(own).collect();
    let started = child::start(&keep, || {
        let errno = rtnl.execute_one(delete(link)).map_or_else(|e| e.errno as i32, |()| 0);
        // If nobody reads it, nobody needs to know.
        let _ = write(&report, &errno.to_ne_bytes());
        afterwards();
        0
    });
    drop(report);
    if started.is_err() {
        return remove_in_person(link).map(|()| Afterwards::Undone);
    }
    wait_until_gone(link, &mut events, &outcome)
}

/// Who does what is to be done after a link is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// A child that goes on.
    ByChild,
    /// Nobody yet: no child could be made, or it has died.
    Undone,
}

/// Deletes a link and waits for all that the kernel does after it: where there is no child to wait.
fn remove_in_person(link: &Link) -> Result<()> {
    match Rtnl::open()?.execute_one(delete(link)) {
        Err(e) if e.errno == Errno::ENODEV => Ok(()),
        outcome => outcome,
    }
}

/// `outcome` is the pipe to which the child writes the errno of its request, 0 if it succeeded.
fn wait_until_gone(link: &Link, events: &mut Socket, outcome: &OwnedFd) -> Result<Afterwards> {
    let deed = || format!("delete link {}", link.name);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds =
            [PollFd::new(events.as_fd(), PollFlags::POLLIN), PollFd::new(outcome.as_fd(), PollFlags::POLLIN)];
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
                        return Ok(Afterwards::ByChild);
                    }
                }
                // Events were lost in a flood of them: look for the link itself, which waits for RTNL but is sure.
                Err(e) if e.errno == Errno::ENOBUFS => {
                    if Rtnl::open()?.link_by_index(link.index)?.is_none() {
                        return Ok(Afterwards::ByChild);
                    }
                }
                Err(e) => return Err(e),
            }
        } else if has_ended {
            let mut errno = [0; 4];
            return match (uninterrupted(|| read(outcome, &mut errno)), i32::from_ne_bytes(errno)) {
                // The link is gone, whatever became of the event.
                (Ok(4), 0 | nix::libc::ENODEV) => Ok(Afterwards::ByChild),
                (Ok(4), errno) => Err(Error::new(deed(), Errno::from_raw(errno))),
                // The child has died over it, and nobody knows how far it came.
                _ => remove_in_person(link).map(|()| Afterwards::Undone),
            };
        }
    }
}
