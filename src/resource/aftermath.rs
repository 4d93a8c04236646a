//! What a call leaves to be done when its caller has the answer.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::net::nft::{self, Nft};
use crate::net::{Frame, Netns, child};

/// What a call leaves to be done when its caller has the answer, by a child that nobody waits for.
#[derive(Debug)]
pub struct Aftermath {
    pub(super) announcing: Option<Announcing>,
    pub(super) closing: Option<Closing>,
}

/// Frames that a pod sends to its neighbours. Those that do not hear them find out by themselves within seconds, so a
/// failure is passed over.
#[derive(Debug)]
pub(super) struct Announcing {
    pub(super) netns: Netns,
    pub(super) home: Rc<Netns>,
    /// The index of the pod's link.
    pub(super) link: u32,
    pub(super) frames: Vec<Frame>,
}

/// A connection to nf_tables that is not to be closed before the kernel has freed what was deleted; see
/// [`Nft::close_later`].
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) nft: Nft,
    /// A file whose time says when something was last deleted from nf_tables, by anyone.
    pub(super) mark: PathBuf,
}

impl Aftermath {
    /// Ends this program, which has succeeded, and leaves a child that sees to it.
    pub fn end(self) -> ! {
        let Self { announcing, closing } = self;
        let netns = announcing.iter().flat_map(|it| [it.netns.as_raw_fd(), it.home.as_raw_fd()]);
        let nft = closing.iter().map(|it| it.nft.as_fd().as_raw_fd());
        let keep: Vec<_> = netns.chain(nft).collect();
        child::end(0, &keep, || {
            // Nothing of the pod's is held while the child waits.
            if let Some(announcing) = announcing {
                announcing.send();
            }
            if let Some(closing) = closing {
                wait_for_deletions(&closing.mark);
            }
        })
    }
}

impl Announcing {
    fn send(self) {
        let _ = self.netns.run(&self.home, || Frame::send_all(&self.frames, self.link));
    }
}

impl Closing {
    /// Closes it in a child, while this program goes on.
    pub(super) fn later(self) {
        let Self { nft, mark } = self;
        nft.close_later(|| wait_for_deletions(&mark));
    }
}

/// How long the kernel may still have to free what was deleted from nf_tables.
pub(super) fn time_to_free(mark: &Path) -> Duration {
    let age = std::fs::metadata(mark).and_then(|m| m.modified()).map(|time| time.elapsed());
    // A time that lies ahead of the clock says nothing.
    age.ok().and_then(Result::ok).map_or(Duration::ZERO, |age| nft::FREED.saturating_sub(age))
}

/// Longest wait of a child until nobody deletes anything from nf_tables.
const QUIET_DEADLINE: Duration = Duration::from_secs(1);

/// Waits until nothing is left to be freed: neither of this call nor of those that follow closely, who would be held up.
pub(super) fn wait_for_deletions(mark: &Path) {
    let deadline = Instant::now() + QUIET_DEADLINE;
    // The mark of this call may not be there yet.
    std::thread::sleep(nft::FREED);
    loop {
        let left = time_to_free(mark).min(deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left);
    }
}
