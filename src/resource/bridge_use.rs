//! Who uses a bridge at the moment: what keeps a call that fails from removing the bridge that another has just found.
//!
//! A bridge without ports is nobody's, except for a call that is about to add one. So every ADD shares a lock as long
//! as it runs, and who undoes the creation of a bridge must have the lock alone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ipam::flock::{Held, Mode};
use crate::spec::{CniError, Code};

/// A bridge that this call uses, until this is dropped.
#[derive(Debug)]
pub struct BridgeUse {
    bridge: String,
    path: PathBuf,
    lock: Held,
}

impl BridgeUse {
    /// Says that the bridge is used from now on, together with others or by nobody else. The lock is a file in the state
    /// directory. Who forbids it is waited for as long as `patience`: a call that is about to remove the bridge, which
    /// takes that some milliseconds, or to be alone, all that use it.
    ///
    /// Errors: code 11 if they do not come to an end; code 105 for the file.
    pub fn begin(bridge: &str, state: &Path, mode: Mode, patience: Duration) -> Result<Self, CniError> {
        let directory = state.join("bridges");
        let path = directory.join(bridge);
        let failed =
            |e: io::Error| CniError::new(Code::State, format!("cannot open {}: {e}", path.display()));
        let deadline = Instant::now() + patience;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        loop {
            let file = match options.open(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
                    options.open(&path).map_err(failed)?
                }
                outcome => outcome.map_err(failed)?,
            };
            let lock = Held::take(file, &path, mode, deadline)?;
            // Who has removed the bridge has removed the file with it.
            if lock.file().metadata().map_err(failed)?.nlink() > 0 {
                return Ok(Self { bridge: bridge.to_owned(), path, lock });
            }
        }
    }

    /// Removes the file too: for who has removed the bridge, and has the lock alone.
    pub fn end_with_bridge(self) {
        // Whoever waits for it sees that it is gone; that it stays is no harm.
        if let Err(e) = fs::remove_file(&self.path) {
            log::debug!("cannot remove {}: {e}", self.path.display());
        }
    }

    /// The name of the bridge.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Whether no other call uses the bridge, nor will before this one has ended.
    ///
    /// Errors: code 105 for the file.
    pub fn is_the_only_one(&self) -> Result<bool, CniError> {
        self.lock.try_to_be_alone(&self.path)
    }
}
