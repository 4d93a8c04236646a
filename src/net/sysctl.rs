//! Sysctls under /proc/sys/net, of the network namespace that the calling thread is in.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::unistd;

use super::error::uninterrupted;
use super::{Error, Result};

/// Room for a value; those that this program sets are numbers.
const VALUE_BYTES: usize = 64;

/// Path of a sysctl given with slashes: `ipv4/ip_forward`. Interface names may hold dots, so dots are left alone.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// The value of a sysctl, without white space around it.
pub fn read(name: &str) -> Result<String> {
    fs::read_to_string(path(name))
        .map(|text| text.trim().to_owned())
        .map_err(|e| Error::from_io(format!("read sysctl net/{name}"), &e))
}

/// What tells this boot of the kernel from all others: a random UUID.
pub fn boot_id() -> Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .map_err(|e| Error::from_io("read the boot ID", &e))
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
    let file = match fs::OpenOptions::new().read(true).write(true).open(path(name)) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(failed(e)),
        // It cannot be written, which matters only if it must be.
        Err(e) => return if read(name)? == value { Ok(false) } else { Err(failed(e)) },
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
