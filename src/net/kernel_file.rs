//! Small files in which the kernel tells something, of /proc and /sys.

use std::fs::File;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd;

use super::error::uninterrupted;

/// How much is read at once. Nearly all are names and numbers.
const BYTES: usize = 256;

/// Opens a file. With openat(2), for which musl makes one system call; after open(2) it makes a second, for kernels
/// before Linux 2.6.23. Whatever else is at the path, a FIFO for one, is not waited for.
pub(super) fn open<P: NixPath + ?Sized>(path: &P, flags: OFlag) -> nix::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    uninterrupted(|| openat(AT_FDCWD, path, flags, Mode::empty())).map(File::from)
}

/// What a file says, without white space around it.
pub(super) fn read<P: NixPath + ?Sized>(path: &P) -> nix::Result<String> {
    let file = open(path, OFlag::O_RDONLY)?;
    let mut text = Vec::new();
    loop {
        let mut bytes = [0; BYTES];
        let len = uninterrupted(|| unistd::read(&file, &mut bytes))?;
        text.extend_from_slice(&bytes[..len]);
        // The kernel gives as much as there is room for, so there is no more where it gave less.
        if len < BYTES {
            break;
        }
    }
    let text = String::from_utf8(text).map_err(|_| Errno::EILSEQ)?;
    Ok(text.trim().to_owned())
}
