//! Sysctls under /proc/sys/net, of the network namespace that the calling thread is in.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd;

use super::error::uninterrupted;
use super::{Error, Result, kernel_file};

/// Room for a value; those that this program sets are numbers.
const VALUE_BYTES: usize = 64;

/// Path of a sysctl given with slashes: `ipv4/ip_forward`. Interface names may hold dots, so dots are left alone.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// The value of a sysctl, without white space around it.
pub fn read(name: &str) -> Result<String> {
    kernel_file::read(&path(name)).map_err(|e| Error::new(format!("read sysctl net/{name}"), e))
}

/// What tells this boot of the kernel from all others: a random UUID.
pub fn boot_id() -> Result<String> {
    kernel_file::read("/proc/sys/kernel/random/boot_id").map_err(|e| Error::new("read the boot ID", e))
}

/// Gives a sysctl a value that cannot be read: one that is a command (`ipv4/route/flush`).
pub fn write(name: &str, value: &str) -> Result<()> {
    fs::write(path(name), value).map_err(|e| Error::from_io(format!("set sysctl net/{name} to {value}"), &e))
}

/// Gives a sysctl a value; tells whether it had another.
///
/// It is read first: writing a value that is there wakes up whoever listens, and fails where /proc/sys is read-only
/// although nothing is wrong. Opening is what costs (the kernel looks up each part of the path anew), so once serves
/// for both.
pub fn set(name: &str, value: &str) -> Result<bool> {
    let failed = |e: std::io::Error| Error::from_io(format!("set sysctl net/{name} to {value}"), &e);
    let file = match kernel_file::open(&path(name), OFlag::O_RDWR) {
        Ok(file) => file,
        Err(e @ Errno::ENOENT) => return Err(failed(e.into())),
        // It cannot be written, which matters only if it must be.
        Err(e) => return if read(name)? == value { Ok(false) } else { Err(failed(e.into())) },
    };
    let mut had = [0; VALUE_BYTES];
    let len = uninterrupted(|| unistd::read(&file, &mut had)).map_err(|e| failed(e.into()))?;
    if had[..len].trim_ascii() == value.as_bytes() {
        return Ok(false);
    }
    // The kernel takes a write for a new value only at the beginning of the file.
    file.write_all_at(value.as_bytes(), 0).map_err(failed)?;
    Ok(true)
}
