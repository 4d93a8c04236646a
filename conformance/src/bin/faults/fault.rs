//! What can go wrong at a system call.

use nix::errno::Errno;

use crate::calls::{Effect, Watched};

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
}

impl Fault {
    /// All kinds.
    pub(crate) const ALL: [Self; 5] =
        [Self::Hard, Self::Scarce, Self::Interruption, Self::Kill, Self::KillThenPrevResult];

    /// Its name in the account.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard error",
            Self::Scarce => "scarcity",
            Self::Interruption => "EINTR",
            Self::Kill => "SIGKILL",
            Self::KillThenPrevResult => "SIGKILL, prevResult",
        }
    }

    /// The fault with this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// What is done to a call; nothing where the call cannot suffer that.
    pub(crate) fn injection(self, call: &Watched) -> Option<Injection> {
        let errno = match self {
            Self::Hard => call.hard?,
            Self::Scarce => call.scarce?,
            Self::Interruption => call.interruptible.then_some(Errno::EINTR)?,
            Self::Kill | Self::KillThenPrevResult => return Some(Injection::Kill),
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
}

impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(errno, _) => write!(f, "{errno:?}"),
            Self::Kill => f.write_str("SIGKILL"),
        }
    }
}
