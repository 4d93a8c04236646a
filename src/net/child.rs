//! Short-lived children that wait in this program's stead.
//!
//! The kernel makes its callers wait for things that are of no use to them: for RCU after a link is gone, for memory
//! that a transaction of nf_tables set free. A child takes such a wait over, and the runtime has its answer meanwhile.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::unistd::{ForkResult, chdir, fork, setsid};

use super::{Error, Result};

/// Forks a child that does one thing and ends; this program goes on at once.
///
/// The child has let go of all that the caller may wait for: its session, its working directory, and every descriptor,
/// the standard ones too, but for those that it is to keep.
pub fn start(keep: &[RawFd], deed: impl FnOnce() -> i32) -> Result<()> {
    // SAFETY: the path of a CNI call has one thread, so the child may go on as any program does after fork.
    match unsafe { fork() }.map_err(|e| Error::new("fork", e))? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            // The frames above are the parent's: no panic may come to them.
            let deed = AssertUnwindSafe(|| leave_the_caller(keep).map_or(1, |()| deed()));
            let status = catch_unwind(deed).unwrap_or(1);
            // SAFETY: _exit runs nothing of the parent's: no destructor of its journal, no flush of its output.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// Memory for the stack of a child that this program ends with, in bytes. Only the pages that are used cost anything.
const STACK: usize = 256 << 10;

/// Ends this program with a status, and leaves a child that does one thing more.
///
/// The child takes over the memory of this program as it is, which is quicker than to copy the tables of it. It has let
/// go of the caller as others have; see [`start`]. This program lets go of all descriptors first: a caller reads to the
/// end of the output, and would else wait for the child to be given a processor. Where no child can be made, this
/// program does it before it ends.
pub fn end<D: FnOnce()>(status: u8, keep: &[RawFd], deed: D) -> ! {
    if close_all_but(keep).is_err() {
        // The caller has its answer, and must not wait for what is to be done.
        // SAFETY: _exit runs nothing of this program, not even what owns the descriptors that are closed.
        unsafe { nix::libc::_exit(status.into()) }
    }
    let mut last = Last(Some(deed));
    let mut stack: Vec<MaybeUninit<u8>> = Vec::with_capacity(STACK);
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    // SAFETY: what both have is the memory, and from here on this program only ends, so the child alone uses it. Nothing
    // of it is freed: neither this frame nor the stack, since nobody returns from here.
    let child = unsafe {
        // As functions of C expect it.
        let top = top.byte_sub(top.addr() % 16).cast();
        nix::libc::clone(act::<D>, top, nix::libc::CLONE_VM, (&raw mut last).cast())
    };
    if child < 0 {
        last.act();
    }
    // SAFETY: _exit runs nothing that the child may be using.
    unsafe { nix::libc::_exit(status.into()) }
}

/// What is left to be done when a program ends.
struct Last<D>(Option<D>);

impl<D: FnOnce()> Last<D> {
    fn act(&mut self) {
        if let Some(deed) = self.0.take() {
            // The frames above are not made for panics.
            let _ = catch_unwind(AssertUnwindSafe(deed));
        }
    }
}

/// Where the child of [`end`] begins.
extern "C" fn act<D: FnOnce()>(last: *mut c_void) -> c_int {
    // SAFETY: `end` has made it, and has left it to this child.
    let last = unsafe { &mut *last.cast::<Last<D>>() };
    if leave_its_session().is_ok() {
        last.act();
    }
    // SAFETY: there is nothing to be flushed.
    unsafe { nix::libc::_exit(0) }
}

fn leave_the_caller(keep: &[RawFd]) -> nix::Result<()> {
    leave_its_session()?;
    close_all_but(keep)
}

fn leave_its_session() -> nix::Result<()> {
    setsid()?;
    chdir("/")
}

fn close_all_but(keep: &[RawFd]) -> nix::Result<()> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    // The parent waits for what the child is to do, so this must be quick: a few calls, however many are open.
    let mut first = 0;
    for &fd in &keep {
        if fd > first && !close_range(first, fd - 1) {
            return close_each_but(&keep);
        }
        first = fd + 1;
    }
    if close_range(first, RawFd::MAX) { Ok(()) } else { close_each_but(&keep) }
}

/// Closes descriptors, both ends included; false where the kernel (before 5.9) or a filter of system calls does not
/// let it.
fn close_range(first: RawFd, last: RawFd) -> bool {
    // SAFETY: what owns them is never dropped where this is called, in a child or in a program that only ends by _exit.
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, last, 0) };
    closed == 0
}

fn close_each_but(keep: &[RawFd]) -> nix::Result<()> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|_| Errno::EBADF)?;
    let open: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| !keep.contains(fd)) {
        // SAFETY: as above. That of the directory itself is closed already, and gives EBADF.
        unsafe { nix::libc::close(fd) };
    }
    Ok(())
}
