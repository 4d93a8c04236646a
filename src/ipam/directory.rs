//! An open directory: its files are reached relative to it, so a path is resolved once and cannot change meanwhile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::spec::{CniError, Code};

/// Most bytes that are read of a file. No container id is longer: execve(2) takes no variable beyond 128 KiB.
pub(super) const MAX_READ: usize = 1 << 18;

/// An open directory, and its path for messages.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory; symbolic links on the way to it are followed.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: uninterrupted(|| open(path, flags, Mode::empty()))?, path: path.to_owned() })
    }

    /// Opens a directory that is this program's own: it is none if a symbolic link stands in its place.
    pub(super) fn open_own(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { fd: uninterrupted(|| open(path, flags, Mode::empty()))?, path: path.to_owned() })
    }

    /// Where it was when it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Opens a file in it, never through a symbolic link and never waiting for the other end of a FIFO.
    pub(super) fn open_file(&self, name: &str, flags: OFlag, mode: u32) -> Result<File, Errno> {
        let safe = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        if name.contains('/') {
            // A directory of its own in it may have been replaced by a link, too.
            let how = OpenHow::new()
                .flags(flags | safe)
                .mode(mode)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            match uninterrupted(|| openat2(&self.fd, name, how)) {
                // Kernels before 5.6, and filters of system calls that do not know it.
                Err(Errno::ENOSYS | Errno::EPERM) => {}
                outcome => return outcome.map(File::from),
            }
        }
        uninterrupted(|| openat(&self.fd, name, flags | safe, mode)).map(File::from)
    }

    /// The content of a file, up to [`MAX_READ`] bytes.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        read_all(&mut self.open_file(name, OFlag::O_RDONLY, 0)?)
    }

    /// Removes the name of a file; one that is not there is an error (ENOENT).
    pub(super) fn unlink(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes a directory in it; one that is not empty is an error (ENOTEMPTY).
    pub(super) fn remove_directory(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)
    }

    /// What lstat(2) says of a name in it.
    pub(super) fn stat_of(&self, name: &str) -> Result<FileStat, Errno> {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// What stat(2) says of the directory itself.
    pub(super) fn stat(&self) -> Result<FileStat, Errno> {
        fstat(&self.fd)
    }

    /// All names in it that are UTF-8, and what they are; without `.` and `..`.
    pub(super) fn entries(&self) -> Result<Vec<(String, Option<Type>)>, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = Vec::new();
        for entry in uninterrupted(|| Dir::openat(&self.fd, ".", flags, Mode::empty()))?.iter() {
            let entry = entry?;
            // A name that is not UTF-8 is none that this program or the reference has given.
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                entries.push((name.to_owned(), entry.file_type()));
            }
        }
        Ok(entries)
    }

    /// The error of code 105 for a failure with one of its files.
    pub(super) fn error(&self, doing: &str, name: &str, errno: Errno) -> CniError {
        state_error(doing, &self.path.join(name), errno)
    }
}

/// The error of code 105 that names what could not be done, the path, and the kernel's reason.
pub(super) fn state_error(doing: &str, path: &Path, errno: Errno) -> CniError {
    CniError::new(Code::State, format!("could not {doing} {}: {} ({errno:?})", path.display(), errno.desc()))
}

/// Makes a system call again as long as signals interrupt it.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

/// The errno of an error of std; EIO where there is none.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The rest of a file, up to [`MAX_READ`] bytes. Most files here fit into the first read.
pub(super) fn read_all(file: &mut File) -> Result<Vec<u8>, Errno> {
    let mut content = Vec::new();
    let mut buffer = [0; 4096];
    while content.len() < MAX_READ {
        match file.read(&mut buffer) {
            Ok(len) => {
                content.extend_from_slice(buffer.get(..len).unwrap_or_default());
                // A short read of a regular file means its end; this saves asking again.
                if len < buffer.len() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(&error)),
        }
    }
    Ok(content)
}
