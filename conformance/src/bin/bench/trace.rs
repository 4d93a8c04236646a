//! Counts the processes that a call starts, with strace(1).

use crate::call::{Answer, Call};
use crate::machine::PATH;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where strace writes; private to the host, and gone with it.
const TRACE_FILE: &str = "/run/bench.trace";
/// The calls that make processes, and the one that makes programs of them.
const TRACED: &str = "trace=execve,clone,clone3,fork,vfork";

/// The strace of this machine.
pub(crate) struct Strace(PathBuf);

/// Processes and programs that a call, or a chain of them, started. The plugins themselves count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Started {
    /// Processes, threads left out.
    pub(crate) processes: usize,
    /// Programs executed: fewer than the processes where some only forked, more where one executed several.
    pub(crate) programs: usize,
}

impl std::iter::Sum for Started {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            processes: sum.processes + one.processes,
            programs: sum.programs + one.programs,
        })
    }
}

/// Finds strace; it may not be installed.
pub(crate) fn strace() -> Option<Strace> {
    PATH.split(':')
        .map(|directory| PathBuf::from(directory).join("strace"))
        .find(|path| path.is_file())
        .map(Strace)
}

impl Strace {
    /// Runs the call under strace.
    pub(crate) fn run(&self, call: &Call) -> Result<(Started, Answer)> {
        let mut command = Command::new(&self.0);
        command.args(["-f", "-qq", "-e", TRACED, "-e", "signal=none", "-o", TRACE_FILE]).arg(&call.program);
        let (_, answer) = call.start(command)?.finish()?;
        let trace = fs::read_to_string(TRACE_FILE).with_context(|| format!("read {TRACE_FILE}"))?;
        Ok((count(&trace), answer))
    }
}

/// Counts in the text of a trace. A line is `PID call(arguments) = result`; if others came in between, it is cut into
/// `PID call(arguments <unfinished ...>` and `PID <... call resumed>arguments) = result`.
fn count(trace: &str) -> Started {
    // The process that strace itself starts is not in the trace.
    let mut started = Started { processes: 1, programs: 0 };
    let mut unfinished = HashMap::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, begun);
            continue;
        }
        let begun = if rest.starts_with("<...") { unfinished.remove(pid).unwrap_or_default() } else { "" };
        let Some((end, result)) = rest.rsplit_once(" = ") else { continue };
        if result.starts_with('-') || result.starts_with('?') {
            continue;
        }
        let name = if begun.is_empty() { rest } else { begun };
        if name.starts_with("execve(") {
            started.programs += 1;
        } else if !begun.contains("CLONE_THREAD") && !end.contains("CLONE_THREAD") {
            started.processes += 1;
        }
    }
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_processes_without_threads_and_failures() {
        let trace = "\
10 execve(\"/plugins/bridge\", [\"/plugins/bridge\"], 0x7ffe /* 7 vars */) = 0
10 clone(child_stack=0xc000, flags=CLONE_VM|CLONE_THREAD|CLONE_SETTLS, tls=0xc0) = 11
10 clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD <unfinished ...>
12 execve(\"/usr/sbin/nft\", [\"nft\"], 0xc000 /* 7 vars */ <unfinished ...>
10 <... clone resumed>)                    = 12
12 <... execve resumed>)                   = 0
11 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f} <unfinished ...>
11 <... clone3 resumed> => {parent_tid=[13]}, 88) = 13
12 execve(\"/missing\", [\"x\"], 0x55 /* 7 vars */) = -1 ENOENT (No such file or directory)
10 fork() = 14
";
        assert_eq!(count(trace), Started { processes: 3, programs: 2 });
    }
}
