//! The socket that the daemon listens on: its own, or one that it was started for.

use std::fs::{self, DirBuilder};
use std::io::{Error, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{Mode, umask};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// A listening socket; the file of one that was made here goes with it.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: UnixListener,
    own: Option<PathBuf>,
}

impl Listener {
    /// Takes the socket that this process was started for, else makes one. What a dead daemon has left is replaced.
    ///
    /// An error is a sentence.
    pub fn open(path: &Path) -> Result<Self, String> {
        if let Some(socket) = passed()? {
            return Ok(Self { socket, own: None });
        }
        let failed = |e: Error| format!("cannot listen on {}: {e}", path.display());
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        }
        if fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket()) {
            match UnixStream::connect(path) {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?
                }
                Err(e) => return Err(failed(e)),
                Ok(_) => return Err(format!("another daemon listens on {}", path.display())),
            }
        }
        // Only root is to ask: whoever may, configures links of any namespace.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        Ok(Self { socket: bound.map_err(failed)?, own: Some(path.to_owned()) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

/// The socket that was passed, if one was; an error for more than one, as in the reference.
fn passed() -> Result<Option<UnixListener>, String> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            // SAFETY: whoever started this process has opened it and passed it on; nobody here has taken it.
            let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .map_err(|e| format!("LISTEN_FDS: descriptor {FIRST}: {}", e.desc()))?;
            Ok(Some(UnixListener::from(fd)))
        }
        Some(count) => Err(format!("LISTEN_FDS: {count} sockets were passed; wanted is one")),
    }
}
