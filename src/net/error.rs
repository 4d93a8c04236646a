//! What the kernel says when it refuses.

use std::fmt;

use nix::errno::Errno;

/// A change or a question that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was being done, naming the object: `create link veth0a1b2c3d`.
    pub deed: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The kernel's own words (extended acknowledgement), empty where it gave none.
    pub text: String,
}

impl Error {
    /// An error without words of the kernel.
    pub fn new(deed: impl Into<String>, errno: Errno) -> Self {
        Self { deed: deed.into(), errno, text: String::new() }
    }

    /// The error of a system call that std made.
    pub fn from_io(deed: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(deed, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {} ({:?})", self.deed, self.errno.desc(), self.errno)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

impl std::error::Error for Error {}

/// Makes a system call again as long as signals interrupt it.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// Result of a call to the kernel.
pub type Result<T> = std::result::Result<T, Error>;
