//! Locks on files, by flock(2), with a limit to waiting and the name of who holds one.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::directory::{errno_of, state_error};
use crate::spec::names::{check_identifier, check_ifname};
use crate::spec::{CniError, Code, Command};

/// With whom a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With all who share it too.
    Shared,
    /// With nobody.
    Exclusive,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Takes the lock of a file, waiting until `deadline` at most. `path` is for messages.
    ///
    /// Errors: code 11 naming the holder if it was not to be had in time; code 105 if the file cannot be locked.
    pub fn take(file: File, path: &Path, mode: Mode, deadline: Instant) -> Result<Self, CniError> {
        match try_lock(&file, mode) {
            Ok(true) => Ok(Self(file)),
            Ok(false) => wait(file, path, mode, deadline),
            Err(errno) => Err(state_error("lock", path, errno)),
        }
    }

    /// Takes the lock of a file if nobody has it in a way that forbids it; `None` if somebody does.
    ///
    /// Errors: the kernel's, if the file cannot be locked.
    pub fn try_take(file: File, mode: Mode) -> Result<Option<Self>, Errno> {
        Ok(try_lock(&file, mode)?.then_some(Self(file)))
    }

    /// Has the lock to itself from now on, if nobody else shares it; else whether it is still shared is not certain.
    ///
    /// Errors: code 105 if the file cannot be locked.
    pub fn try_to_be_alone(&self, path: &Path) -> Result<bool, CniError> {
        try_lock(&self.0, Mode::Exclusive).map_err(|errno| state_error("lock", path, errno))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing the file is not enough where a child of this program has it too. If it fails, closing must do.
        if let Err(error) = self.0.unlock() {
            log::debug!("could not give a lock back: {error}");
        }
    }
}

fn try_lock(file: &File, mode: Mode) -> Result<bool, Errno> {
    loop {
        let outcome = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Exclusive => file.try_lock(),
        };
        match outcome {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
            Err(TryLockError::Error(error)) => return Err(errno_of(&error)),
        }
    }
}

/// Takes the lock, waiting for it as long as it takes.
fn lock(file: &File, mode: Mode) -> io::Result<()> {
    loop {
        let outcome = match mode {
            Mode::Shared => file.lock_shared(),
            Mode::Exclusive => file.lock(),
        };
        match outcome {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Waits for a lock that somebody holds.
///
/// flock(2) knows no timeout, and polling would be slow and let others pass. So a thread blocks in it; the kernel
/// wakes it. If we give up before, the lock is released the moment that the thread gets it, for then nobody is left
/// to receive it.
fn wait(file: File, path: &Path, mode: Mode, deadline: Instant) -> Result<Held, CniError> {
    let began = Instant::now();
    let id = file.metadata().map(|it| (it.dev(), it.ino())).ok();
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::Builder::new().name("lock".to_owned()).spawn(move || {
        // An error means that the receiver gave up; the lock is dropped with the message.
        let _ = sender.send(lock(&file, mode).map(|()| Held(file)));
    });
    let failed = |errno| state_error("lock", path, errno);
    let waiter = waiter.map_err(|error| failed(errno_of(&error)))?;
    match receiver.recv_timeout(deadline.saturating_duration_since(began)) {
        Ok(result) => {
            // Ends at once. The process is single-threaded again when the caller goes on, and may fork.
            let _ = waiter.join();
            result.map_err(|error| failed(errno_of(&error)))
        }
        Err(RecvTimeoutError::Timeout) => {
            let holder = id.and_then(|(dev, ino)| holder(dev, ino));
            Err(held_by(path, holder.as_deref(), began.elapsed()))
        }
        Err(RecvTimeoutError::Disconnected) => Err(failed(Errno::EIO)),
    }
}

fn held_by(path: &Path, holder: Option<&str>, waited: Duration) -> CniError {
    let holder = holder.unwrap_or("a process that cannot be seen from here");
    CniError::new(
        Code::TryAgainLater,
        format!(
            "the lock {} is held by {holder}; waited {:.1} s for it",
            path.display(),
            waited.as_secs_f32()
        ),
    )
}

/// The process that holds a flock(2) lock on an inode, with its command, as far as /proc tells.
fn holder(dev: u64, ino: u64) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holder_in(&locks, dev, ino)?;
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return Some(format!("a child of process {pid}, which has ended and left it its open file"));
    };
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command: String = command.trim().chars().take(200).collect();
    let process =
        if command.is_empty() { format!("process {pid}") } else { format!("process {pid} ({command})") };
    let call = std::fs::read(format!("/proc/{pid}/environ")).ok().and_then(|environ| call_of(&environ));
    Some(call.map_or_else(|| process.clone(), |call| format!("{process}, {call}")))
}

/// What a plugin was called for, by its environment (proc_pid_environ(5)); `None` for other programs.
fn call_of(environ: &[u8]) -> Option<String> {
    let variable = |name: &str| {
        let mut entries = environ.split(|byte| *byte == 0);
        let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        std::str::from_utf8(value).ok()
    };
    let verb = Command::parse(variable("CNI_COMMAND")?)?.as_str();
    // What is printed is what a plugin accepts, and nothing else that a process may have there.
    let id = variable("CNI_CONTAINERID").filter(|id| check_identifier(id).is_ok());
    let ifname = variable("CNI_IFNAME").filter(|name| check_ifname(name).is_ok());
    Some(match (id, ifname) {
        (Some(id), Some(ifname)) => format!("{verb} of container {id} interface {ifname}"),
        _ => verb.to_owned(),
    })
}

/// The process id in a text like /proc/locks (Documentation/filesystems/locks.rst), whose lines read
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, and with `->` for those who wait.
fn holder_in(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let mut same_inode = None;
    for line in locks.lines() {
        let mut fields = line.split_whitespace().skip(1);
        if fields.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(place)) = (fields.nth(2), fields.next()) else { continue };
        let (Ok(pid), Some((on, inode))) = (pid.parse::<u32>(), place.rsplit_once(':')) else { continue };
        if pid == 0 || inode.parse() != Ok(ino) {
            continue;
        }
        if on == device {
            return Some(pid);
        }
        // btrfs and overlay show another device here than to stat(2).
        same_inode = Some(pid);
    }
    same_inode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_is_a_plugin_tells_what_it_does() {
        let call = |text: &str| call_of(text.replace(' ', "\0").as_bytes());
        assert_eq!(
            call("PATH=/bin CNI_COMMAND=ADD CNI_IFNAME=eth0 CNI_CONTAINERID=a1 "),
            Some("ADD of container a1 interface eth0".to_owned())
        );
        assert_eq!(call("CNI_COMMAND=GC"), Some("GC".to_owned()));
        assert_eq!(call("CNI_COMMAND=ADD CNI_CONTAINERID=a/b CNI_IFNAME=e"), Some("ADD".to_owned()));
        for other in ["", "PATH=/bin", "CNI_COMMAND=", "CNI_COMMAND=RM", "XCNI_COMMAND=ADD"] {
            assert_eq!(call(other), None, "{other}");
        }
    }

    #[test]
    fn the_holder_is_found_among_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 10 fe:01:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n";
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0xfe, 0), 77), Some(12));
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(3, 0), 77), Some(12));
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0xfe, 0), 78), None);
    }
}
