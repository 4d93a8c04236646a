//! The security context of SELinux that the kernel gives to what this thread makes.

use std::fs;
use std::path::Path;

use super::{Error, Result};

/// The thread's own context; what it makes inherits it.
const CURRENT: &str = "/proc/thread-self/attr/current";

/// Whether the kernel runs with SELinux.
pub fn is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Runs a closure with the thread in a context, and brings it back to its own.
///
/// If the way back fails, that is an error, too: what is made from then on would have the wrong context.
pub fn run<T>(context: &str, inside: impl FnOnce() -> T) -> Result<T> {
    let failed = |deed: String| move |e: std::io::Error| Error::from_io(deed, &e);
    let own = fs::read(CURRENT).map_err(failed(format!("read {CURRENT}")))?;
    fs::write(CURRENT, context).map_err(failed(format!("take the SELinux context {context:?}")))?;
    let answer = inside();
    fs::write(CURRENT, own).map_err(failed("come back from a SELinux context".to_owned()))?;
    Ok(answer)
}
