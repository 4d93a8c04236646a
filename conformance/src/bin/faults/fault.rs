//! What can go wrong at a system call.

use nix::errno::Errno;

use crate::calls::{Effect, Watched};
use crate::point::Point;
use crate::request::Reply;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An error that will not go away.
    Hard,
    /// An error for want of something.
    Scarce,
    /// An interruption by a signal.
    Interruption,
    /// The process is killed, and the runtime removes what it does not know to be there.
    Kill,
    /// The process is killed, and the runtime removes it with the result that it should have had.
    KillThenPrevResult,
    /// The kernel refuses a request, since somebody else is at it.
    Busy,
    /// The kernel refuses a request for want of buffers.
    NoBuffers,
    /// The kernel refuses a request for want of memory.
    NoMemory,
    /// The kernel refuses a request because of who asks.
    Forbidden,
    /// The kernel does what was requested, and its answer is lost.
    LostAnswer,
    /// The kernel does what was requested and says that it did not. That is a lie; what is left then is left by the
    /// kernel's word.
    Lie,
    /// The kernel says that a list changed while it was read.
    ChangedList,
}

impl Fault {
    /// All kinds.
    pub(crate) const ALL: [Self; 12] = [
        Self::Hard,
        Self::Scarce,
        Self::Interruption,
        Self::Kill,
        Self::KillThenPrevResult,
        Self::Busy,
        Self::NoBuffers,
        Self::NoMemory,
        Self::Forbidden,
        Self::LostAnswer,
        Self::Lie,
        Self::ChangedList,
    ];

    /// Its name in the account.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard error",
            Self::Scarce => "scarcity",
            Self::Interruption => "EINTR",
            Self::Kill => "SIGKILL",
            Self::KillThenPrevResult => "SIGKILL, prevResult",
            Self::Busy => "answer EBUSY",
            Self::NoBuffers => "answer ENOBUFS",
            Self::NoMemory => "answer ENOMEM",
            Self::Forbidden => "answer EPERM",
            Self::LostAnswer => "answer lost",
            Self::Lie => "answer EBUSY (a lie)",
            Self::ChangedList => "answer interrupted",
        }
    }

    /// The fault with this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Whether it must not be seen: what it asks for is to try again.
    pub(crate) fn is_to_be_tolerated(self) -> bool {
        matches!(self, Self::Interruption | Self::ChangedList)
    }

    /// What is done at a point; nothing where that cannot be.
    pub(crate) fn injection(self, point: &Point) -> Option<Injection> {
        let reply = match self {
            Self::Busy => Reply::Refused(Errno::EBUSY),
            Self::NoBuffers => Reply::Refused(Errno::ENOBUFS),
            Self::NoMemory => Reply::Refused(Errno::ENOMEM),
            Self::Forbidden => Reply::Refused(Errno::EPERM),
            Self::LostAnswer => Reply::Lost,
            Self::Lie => Reply::Denied(Errno::EBUSY),
            Self::ChangedList => Reply::Interrupted,
            _ => return self.injection_at_call(point),
        };
        let request = point.request?;
        let can_be = match reply {
            Reply::Refused(_) => true,
            Reply::Lost => request.is_answered(),
            Reply::Denied(_) => request.is_acknowledged_change(),
            Reply::Interrupted => request.is_dump(),
        };
        can_be.then_some(Injection::Reply(reply))
    }

    fn injection_at_call(self, point: &Point) -> Option<Injection> {
        let call = Watched::by_name(&point.call).filter(|_| point.request.is_none())?;
        let errno = match self {
            Self::Hard => call.hard?,
            Self::Scarce => call.scarce?,
            Self::Interruption => call.interruptible.then_some(Errno::EINTR)?,
            _ => return Some(Injection::Kill),
        };
        Some(Injection::Error(errno, call.effect))
    }
}

/// What is done to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Injection {
    /// It ends with this error.
    Error(Errno, Effect),
    /// The process is killed before it.
    Kill,
    /// It succeeds, but one of the requests that it sends is answered so.
    Reply(Reply),
}

impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(errno, _) => write!(f, "{errno:?}"),
            Self::Kill => f.write_str("SIGKILL"),
            Self::Reply(Reply::Refused(errno)) => write!(f, "the answer {errno:?}"),
            Self::Reply(Reply::Denied(errno)) => write!(f, "the false answer {errno:?}"),
            Self::Reply(Reply::Lost) => f.write_str("a lost answer"),
            Self::Reply(Reply::Interrupted) => f.write_str("an interrupted answer"),
        }
    }
}
