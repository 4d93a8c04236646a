//! A point of a program's run: one system call, and what it is about.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::calls::Watched;

/// One system call of one of a program's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Which process: 0 for the program, 1 for the first that it or its children forked, ...
    pub(crate) process: usize,
    /// Which of the watched calls of that process, from 1.
    pub(crate) number: usize,
    /// Name of the call.
    pub(crate) call: String,
    /// What it is about, for people.
    pub(crate) about: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} {}({})", self.process, self.number, self.call, self.about)
    }
}

impl Point {
    /// As one line of a log.
    pub(crate) fn encode(&self) -> String {
        json!([self.process, self.number, self.call, self.about]).to_string()
    }

    /// From a line of a log.
    pub(crate) fn decode(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let number = |i: usize| value[i].as_u64().and_then(|n| usize::try_from(n).ok());
        let text = |i: usize| value[i].as_str().map(str::to_owned);
        let point =
            || Some(Self { process: number(0)?, number: number(1)?, call: text(2)?, about: text(3)? });
        point().with_context(|| format!("no point: {line}"))
    }
}

/// What a call is about, as far as the memory and the descriptors of the process tell.
pub(crate) fn about(pid: Pid, call: &Watched, arguments: &[u64; 6]) -> String {
    let descriptor = |argument: u64| {
        let name = fs::read_link(format!("/proc/{pid}/fd/{argument}"));
        name.map_or_else(|_| argument.to_string(), |path| path.to_string_lossy().into_owned())
    };
    match call.name {
        "open" | "stat" | "lstat" | "access" | "readlink" | "mkdir" | "unlink" | "rmdir" | "execve"
        | "chdir" | "statfs" => text(pid, arguments[0]),
        "rename" | "link" => format!("{} to {}", text(pid, arguments[0]), text(pid, arguments[1])),
        "openat" | "openat2" | "newfstatat" | "statx" | "faccessat" | "faccessat2" | "readlinkat"
        | "mkdirat" | "unlinkat" => text(pid, arguments[1]),
        "linkat" | "renameat" | "renameat2" => {
            format!("{} to {}", text(pid, arguments[1]), text(pid, arguments[3]))
        }
        "sendto" => format!("{}, {}", descriptor(arguments[0]), messages(pid, arguments[1], arguments[2])),
        "write" | "pwrite64" => {
            let bytes = memory(pid, arguments[1], arguments[2].min(24));
            format!("{}, {:?}", descriptor(arguments[0]), String::from_utf8_lossy(&bytes))
        }
        "socket" => format!("family {} protocol {}", arguments[0], arguments[2]),
        "recvfrom" if arguments[2] == 0 => format!("{}, to learn a length", descriptor(arguments[0])),
        "poll" => format!("{} descriptors", arguments[1]),
        "setsockopt" => {
            format!("{}, level {} option {}", descriptor(arguments[0]), arguments[1], arguments[2])
        }
        "fork" | "vfork" | "clone" | "clone3" | "setsid" | "pipe" | "pipe2" | "wait4" | "exit_group" => {
            String::new()
        }
        _ => descriptor(arguments[0]),
    }
}

fn memory(pid: Pid, address: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = fs::File::open(format!("/proc/{pid}/mem")).and_then(|file| file.read_at(&mut bytes, address));
    bytes.truncate(read.unwrap_or_default());
    bytes
}

/// A C string.
fn text(pid: Pid, address: u64) -> String {
    let bytes = memory(pid, address, 256);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The types of the netlink messages in a buffer (struct nlmsghdr, linux/netlink.h).
fn messages(pid: Pid, address: u64, len: u64) -> String {
    let bytes = memory(pid, address, len.min(4096));
    let (mut kinds, mut at) = (Vec::new(), 0);
    while let (Some(len), Some(kind)) = (bytes.get(at..at + 4), bytes.get(at + 4..at + 6)) {
        let len = u32::from_ne_bytes([len[0], len[1], len[2], len[3]]) as usize;
        kinds.push(kind_name(u16::from_ne_bytes([kind[0], kind[1]])));
        if len < 16 {
            break;
        }
        at += len.next_multiple_of(4);
    }
    kinds.join("+")
}

/// Names of linux/rtnetlink.h and linux/netfilter/nf_tables.h.
fn kind_name(kind: u16) -> String {
    let object = |number: u16, names: &[&str], verbs: &[&str], step: u16| {
        let name = names.get(usize::from(number / step))?;
        let verb = verbs.get(usize::from(number % step))?;
        Some(format!("{verb}{name}"))
    };
    let known = match kind {
        16..=31 => object(kind - 16, &["LINK", "ADDR", "ROUTE", "NEIGH"], &["NEW", "DEL", "GET", "SET"], 4),
        0x0a00..=0x0aff => {
            const NAMES: [&str; 15] = [
                "NEWTABLE",
                "GETTABLE",
                "DELTABLE",
                "NEWCHAIN",
                "GETCHAIN",
                "DELCHAIN",
                "NEWRULE",
                "GETRULE",
                "DELRULE",
                "NEWSET",
                "GETSET",
                "DELSET",
                "NEWSETELEM",
                "GETSETELEM",
                "DELSETELEM",
            ];
            NAMES.get(usize::from(kind & 0xff)).map(|name| (*name).to_owned())
        }
        _ => None,
    };
    known.unwrap_or_else(|| format!("{kind:#x}"))
}
