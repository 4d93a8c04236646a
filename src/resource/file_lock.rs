//! The lock on an attachment's record: who holds it is the only call that works on the attachment.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ipam::flock::{Held, Mode};
use crate::spec::CniError;

/// A file that nobody else has locked, until this is dropped.
#[derive(Debug)]
pub struct FileLock(Held);

impl FileLock {
    /// Takes the lock, waiting for it if need be. `path` is for messages.
    ///
    /// Errors: code 11 naming the holder if it was not to be had in time; code 105 if the file cannot be locked.
    pub fn take(file: File, path: &Path, patience: Duration) -> Result<Self, CniError> {
        Held::take(file, path, Mode::Exclusive, Instant::now() + patience).map(Self)
    }

    /// Takes the lock if it is free, and `None` if it is not.
    pub fn take_now(file: File) -> io::Result<Option<Self>> {
        Ok(Held::try_take(file, Mode::Exclusive)?.map(Self))
    }

    /// Shares the lock with others who only read, if nobody has it for himself; `None` if somebody does.
    pub fn share_now(file: File) -> io::Result<Option<Self>> {
        Ok(Held::try_take(file, Mode::Shared)?.map(Self))
    }

    /// The file.
    pub fn file(&self) -> &File {
        self.0.file()
    }
}
