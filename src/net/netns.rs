//! Network namespaces.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use super::error::uninterrupted;
use super::{Error, Result, kernel_file};

/// Magic number of nsfs (linux/magic.h). Namespaces opened through /proc were on proc before Linux 3.19.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Gives the network namespace of a socket (linux/sockios.h); with `CAP_NET_ADMIN`, since Linux 4.9.
const SIOCGSKNS: nix::libc::Ioctl = 0x894C;

/// Gives the flag of clone(2) that makes a namespace of the same kind (linux/nsfs.h); since Linux 4.11.
const NS_GET_NSTYPE: nix::libc::Ioctl = 0xB703;

/// What opening a path ends with at which no namespace is, and none will be by itself. Other errors say nothing of it.
const NOTHING_THERE: [Errno; 5] =
    [Errno::ENOENT, Errno::ENOTDIR, Errno::EINVAL, Errno::ELOOP, Errno::ENAMETOOLONG];

/// The namespace that the calling thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    identity: Identity,
}

/// What tells one namespace from another while both live: device and inode of its nsfs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device of nsfs.
    pub device: u64,
    /// Inode there.
    pub inode: u64,
}

impl Netns {
    /// Opens a namespace by its path. An error of `ENOENT` where there is nothing, of `EINVAL` where there is
    /// something else.
    pub fn open(path: &Path) -> Result<Self> {
        let deed = || format!("open network namespace {}", path.display());
        let file = kernel_file::open(path, OFlag::O_RDONLY).map_err(|e| Error::new(deed(), e))?;
        let kind = uninterrupted(|| fstatfs(&file)).map_err(|e| Error::new(deed(), e))?.filesystem_type();
        let is_one = kind == NSFS_MAGIC && is_of_network(&file) || kind == PROC_SUPER_MAGIC;
        if !is_one {
            let mut error = Error::new(deed(), Errno::EINVAL);
            error.text = "it is not a network namespace".to_owned();
            return Err(error);
        }
        let stat = fstat(&file).map_err(|e| Error::new(deed(), e))?;
        let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { path: path.to_owned(), file, identity })
    }

    /// The namespace of a path; `None` where nothing is there any more, or something else. An error where it cannot be told.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        match Self::open(path) {
            Ok(found) => Ok(Some(found)),
            Err(e) if NOTHING_THERE.contains(&e.errno) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The namespace that the calling thread is in.
    pub fn own() -> Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// The namespace that a socket was opened in by the calling thread, which is still there. The kernel has it at hand,
    /// and must first make what is to be found under /proc.
    pub fn of_own_socket(socket: BorrowedFd<'_>) -> Result<Self> {
        // SAFETY: the request takes no argument and gives a new descriptor, closed on exec, that nobody else has.
        let file = unsafe {
            let fd = nix::libc::ioctl(socket.as_raw_fd(), SIOCGSKNS);
            if fd < 0 {
                return Self::own();
            }
            File::from_raw_fd(fd)
        };
        let deed = "look at the own network namespace";
        let stat = fstat(&file).map_err(|e| Error::new(deed, e))?;
        let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { path: PathBuf::from(OWN), file, identity })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from other namespaces.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Moves the thread into the namespace for good.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::new(format!("enter network namespace {}", self.path.display()), e))
    }

    /// The file once more, to be locked: whoever locks the file of a namespace, by whatever path, has locked the namespace.
    pub fn file(&self) -> Result<File> {
        let failed = |e| Error::from_io(format!("open network namespace {} again", self.path.display()), &e);
        self.file.try_clone().map_err(failed)
    }

    /// Runs a closure with the thread inside the namespace, and brings it back to `home`, where it is now.
    ///
    /// If the way back fails, the process ends: code that believes itself on the host and is not would do damage. Where
    /// the way in fails, the thread has not moved, and whoever may not enter may not enter his own namespace either.
    pub fn run<T>(&self, home: &Self, inside: impl FnOnce() -> T) -> Result<T> {
        self.enter()?;
        let back = WayBack(home);
        let answer = inside();
        drop(back);
        Ok(answer)
    }
}

/// Whether a file of nsfs is that of a network namespace, and not of a mount namespace, say. A kernel that cannot tell
/// says so when the namespace is entered.
fn is_of_network(file: &File) -> bool {
    // SAFETY: the request takes no argument and gives a number.
    let kind = unsafe { nix::libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    kind < 0 || kind == CloneFlags::CLONE_NEWNET.bits()
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// How often the way back is tried: setns(2) allocates memory, and may lack it for a moment.
const WAY_BACK_TRIES: usize = 10;

/// Returns the thread to its namespace when dropped, also when the closure panics.
struct WayBack<'a>(&'a Netns);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        let mut tries = (0..WAY_BACK_TRIES).map(|_| setns(&self.0.file, CloneFlags::CLONE_NEWNET));
        if !tries.any(|outcome| outcome.is_ok()) {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What setns(2) refuses to anybody: it is asked for a network namespace, and this is none.
    fn impassable() -> Netns {
        let own = Netns::own().unwrap();
        Netns { file: File::open("/proc/self/ns/uts").unwrap(), ..own }
    }

    #[test]
    fn who_cannot_enter_is_told_so_and_lives() {
        let error = impassable().run(&impassable(), || unreachable!()).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL);
        assert!(error.to_string().contains("enter network namespace"), "{error}");
    }
}
