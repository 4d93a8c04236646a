//! The memory of a traced process, which its tracer reads and writes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// So many bytes from an address on, or fewer where there are no more.
pub(crate) fn read(pid: Pid, address: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = File::open(format!("/proc/{pid}/mem")).and_then(|file| file.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or_default());
    bytes
}

/// Replaces bytes.
pub(crate) fn write(pid: Pid, address: u64, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
    file.and_then(|file| file.write_all_at(bytes, address))
        .with_context(|| format!("write {address:#x} of process {pid}"))
}

/// A C string.
pub(crate) fn text(pid: Pid, address: u64) -> String {
    let bytes = read(pid, address, 256);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number of eight bytes; 0 where there is none.
fn word(pid: Pid, address: u64) -> u64 {
    read(pid, address, 8).try_into().map_or(0, u64::from_ne_bytes)
}

/// The buffers, as (address, length), of a call that sends or receives: `sendto` and `recvfrom` have one, the struct
/// msghdr of `sendmsg` and `recvmsg` (64 bits) has several.
pub(crate) fn buffers(pid: Pid, call: &str, arguments: &[u64; 6]) -> Vec<(u64, u64)> {
    match call {
        "sendto" | "recvfrom" => vec![(arguments[1], arguments[2])],
        "sendmsg" | "recvmsg" => {
            let (vector, count) = (word(pid, arguments[1] + 16), word(pid, arguments[1] + 24));
            let part = |i: u64| (word(pid, vector + 16 * i), word(pid, vector + 16 * i + 8));
            (0..count.min(1024)).map(part).collect()
        }
        _ => Vec::new(),
    }
}
