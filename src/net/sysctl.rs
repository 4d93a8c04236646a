//! Sysctls under /proc/sys/net, of the network namespace that the calling thread is in.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::{Error, Result};

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

/// Gives a sysctl a value; tells whether it had another.
///
/// It is read first: writing a value that is there wakes up whoever listens, and fails where /proc/sys is read-only
/// although nothing is wrong.
pub fn set(name: &str, value: &str) -> Result<bool> {
    if read(name)? == value {
        return Ok(false);
    }
    let failed = |e: std::io::Error| Error::from_io(format!("set sysctl net/{name} to {value}"), &e);
    let mut file = fs::OpenOptions::new().write(true).open(path(name)).map_err(failed)?;
    file.write_all(value.as_bytes()).map_err(failed)?;
    Ok(true)
}
