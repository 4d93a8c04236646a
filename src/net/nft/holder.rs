//! Closing a connection without waiting for what the kernel does afterwards.
//!
//! What a transaction deletes is freed by the kernel later, once no packet can see it any more, which takes 8 to 20 ms.
//! Whoever closes a netfilter socket of the namespace before that, waits for it, and meanwhile holds the lock that every
//! other transaction needs (`nft_rcv_nl_event` calls `nf_tables_trans_destroy_flush_work`,
//! net/netfilter/nf_tables_api.c). It shows as an exit that takes that long: of a DEL, but also of an ADD or of a second
//! DEL right after it, even if those change nothing.
//!
//! So a child holds the socket too: what this program closes is not the last reference. The child closes it when there
//! is nothing left to be freed, so that nobody waits at all. Making the child costs a tenth of a millisecond.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, read, setsid};

/// How long the child keeps the socket once this program has closed it, in milliseconds. The kernel tells nobody that
/// it has freed what was deleted; if it takes longer, the child waits for it after all.
const LINGER: u16 = 60;

/// A child that holds a socket a little longer than this program. It ends when this value is gone, however that
/// comes about; so the value must be dropped after the socket.
///
/// Nobody waits for the child: it is meant for programs that soon end themselves.
#[derive(Debug)]
pub(super) struct Holder {
    /// The child reads from the other end, and finds it closed.
    _alive: OwnedFd,
}

impl Holder {
    /// `None` where no child can be made: closing takes longer then, that is all.
    pub(super) fn start(socket: BorrowedFd) -> Option<Self> {
        let (ended, alive) = pipe2(OFlag::O_CLOEXEC).ok()?;
        // SAFETY: between fork and _exit the child makes system calls only: it allocates nothing and takes no lock, so
        // it does not matter what other threads were doing.
        match unsafe { fork() }.ok()? {
            ForkResult::Child => {
                drop(alive);
                // One that cannot let go of the caller's descriptors must not stay.
                if leave_the_caller([socket.as_raw_fd(), ended.as_raw_fd()]).is_ok() {
                    while read(&ended, &mut [0]) == Err(Errno::EINTR) {}
                    let _ = poll(&mut [], PollTimeout::from(LINGER));
                }
                // SAFETY: _exit runs nothing of the parent's: no destructors, no flush of its output.
                unsafe { nix::libc::_exit(0) }
            }
            ForkResult::Parent { .. } => Some(Self { _alive: alive }),
        }
    }
}

/// Lets go of all that the caller may wait for: session, working directory, and all descriptors but two.
fn leave_the_caller(kept: [RawFd; 2]) -> nix::Result<()> {
    setsid()?;
    chdir(c"/")?;
    let null = open(c"/dev/null", OFlag::O_RDWR, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let [low, high] = [kept[0].min(kept[1]) as u32, kept[0].max(kept[1]) as u32];
    for (first, last) in [(3, low.saturating_sub(1)), (low + 1, high.saturating_sub(1)), (high + 1, u32::MAX)]
    {
        if first <= last {
            // SAFETY: closes descriptors of this child that nothing in it uses afterwards; it ends without destructors.
            // Kernels before 5.9 do not have the call; the descriptors live on for some milliseconds there.
            unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, last, 0) };
        }
    }
    Ok(())
}
