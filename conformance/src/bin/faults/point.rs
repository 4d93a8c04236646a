//! A point of a program's run: one system call, or one of the requests in it, and what it is about.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::calls::Watched;
use crate::memory::{self, text};
use crate::request::Request;

/// One system call of one of a program's processes, or a request to the kernel in it.
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
    /// How many such calls that process has made before: a run that goes another way for a while is not lost for good.
    pub(crate) earlier: usize,
    /// Which request of those that it sends; `None` is the call itself.
    pub(crate) request: Option<Request>,
}

/// What calls have in common that are the same in two runs.
pub(crate) type Likeness = (usize, String, String);

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.request {
            None => write!(f, "{}.{} {}({})", self.process, self.number, self.call, self.about),
            Some(it) => {
                write!(f, "{}.{} {}({}, {})", self.process, self.number, self.call, it.name(), it.index + 1)
            }
        }
    }
}

impl Point {
    /// As one line of a log.
    pub(crate) fn encode(&self) -> String {
        let request = self.request.map(|it| json!([it.index, it.kind, it.flags, it.is_netfilter]));
        json!([self.process, self.number, self.call, self.about, self.earlier, request]).to_string()
    }

    /// What it has in common with the same call of another run: numbers of processes and sockets are others then.
    pub(crate) fn likeness(&self) -> Likeness {
        let about = self.about.chars().filter(|c| !c.is_ascii_digit()).collect();
        (self.process, self.call.clone(), about)
    }

    /// From a line of a log.
    pub(crate) fn decode(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let number = |i: usize| value[i].as_u64().and_then(|n| usize::try_from(n).ok());
        let text = |i: usize| value[i].as_str().map(str::to_owned);
        let of_request = |i: usize| value[5][i].as_u64();
        let half = |i: usize| of_request(i).and_then(|n| u16::try_from(n).ok());
        let request = || {
            let index = usize::try_from(of_request(0)?).ok()?;
            Some(Request { index, kind: half(1)?, flags: half(2)?, is_netfilter: value[5][3].as_bool()? })
        };
        let point = || {
            let (process, number, earlier) = (number(0)?, number(1)?, number(4)?);
            Some(Self { process, number, call: text(2)?, about: text(3)?, earlier, request: request() })
        };
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
        "write" | "pwrite64" => {
            let bytes = memory::read(pid, arguments[1], arguments[2].min(24));
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
