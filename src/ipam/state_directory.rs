//! The directory on a tmpfs in which everything is kept that belongs to this boot.
//!
//! It is made where it is not there. What else stands in its place is left alone: nobody knows whose it is, and a
//! symbolic link could lead to a directory whose mode is of use to others. Then an ADD, which must write there, is an
//! error; all else works without it.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

/// What is in the place of the state directory.
#[derive(Debug)]
pub enum StateDirectory {
    /// The directory.
    There(Metadata),
    /// Nothing.
    NotThere,
    /// Something that is not used, and what it is.
    Obstructed(&'static str),
}

impl StateDirectory {
    /// Looks what is there.
    ///
    /// Errors: lstat(2)'s, but for that nothing is there.
    pub fn look(path: &Path) -> io::Result<Self> {
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::NotThere),
            Err(e) => return Err(e),
        };
        Ok(if found.is_symlink() {
            Self::Obstructed("a symbolic link, which is not followed")
        } else if !found.is_dir() {
            Self::Obstructed("a file")
        } else if found.uid() != geteuid().as_raw() && found.uid() == 0 {
            Self::Obstructed("root's, and this program does not run as root")
        } else if found.uid() != geteuid().as_raw() {
            Self::Obstructed("another user's directory")
        } else {
            Self::There(found)
        })
    }

    /// Whether something may be kept there, once it is made if need be.
    pub fn is_usable(path: &Path) -> bool {
        matches!(Self::look(path), Ok(Self::There(_) | Self::NotThere))
    }
}
