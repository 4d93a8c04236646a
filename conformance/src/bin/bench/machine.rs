//! The machine that the figures are from: what it is, when it is quiet, and who is left running on it.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::env::consts::ARCH;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Where plugins find `iptables` and `nft`.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a process may go on after the call that started it.
const LINGER_LIMIT: Duration = Duration::from_secs(5);
/// How long a batch waits for the machine to be quiet.
const QUIET_LIMIT: Duration = Duration::from_secs(3);
/// Over what time the load is judged; /proc/stat counts in 10 ms.
const QUIET_WINDOW: Duration = Duration::from_millis(100);

/// One line: processors, kernel, and the commands that plugins may run.
pub(crate) fn describe() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let cores = thread::available_parallelism().context("number of processors")?;
    let (iptables, nft) = (version("iptables"), version("nft"));
    Ok(format!("{cores} cores, Linux {} {ARCH}, {iptables}, {nft}", release.trim()))
}

/// What a command says of its version, in one line.
fn version(command: &str) -> String {
    let output = Command::new(command).arg("--version").env("PATH", PATH).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| format!("no {command}"))
}

/// From now on, a process that a plugin leaves behind becomes a child of this one, so that it can be waited for.
pub(crate) fn adopt_orphans() -> Result<()> {
    prctl::set_child_subreaper(true).context("become the reaper of orphans")
}

/// Waits until all that the calls left running has ended, and returns how long that took. Must not be called while
/// calls are under way.
pub(crate) fn reap_orphans() -> Result<Duration> {
    let begin = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(begin.elapsed()),
            Err(errno) => bail!("wait for orphans: {errno}"),
            Ok(WaitStatus::StillAlive) if begin.elapsed() > LINGER_LIMIT => {
                bail!("a process that a plugin left behind still runs after {LINGER_LIMIT:?}")
            }
            Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_micros(200)),
            Ok(_) => {}
        }
    }
}

/// Whether the machine was quiet when a batch began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// At least nine tenths idle.
    Quiet,
    /// Something else ran, and went on running.
    Busy,
}

/// Waits until the machine is quiet, for a limited time. The kernel takes namespaces apart in the background, long
/// after the last process of an earlier batch has ended; only its use of the processors tells.
pub(crate) fn settle() -> Result<Load> {
    let begin = Instant::now();
    let mut before = ticks()?;
    while begin.elapsed() < QUIET_LIMIT {
        thread::sleep(QUIET_WINDOW);
        let now = ticks()?;
        if (now.idle - before.idle) * 10 >= (now.total - before.total) * 9 {
            return Ok(Load::Quiet);
        }
        before = now;
    }
    Ok(Load::Busy)
}

/// Processor time since boot, in ticks, over all processors.
struct Ticks {
    total: u64,
    idle: u64,
}

/// Reads the first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal, and
/// guest times that are contained in the first two.
fn ticks() -> Result<Ticks> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).take(8).map_while(|field| field.parse().ok()).collect();
    match fields[..] {
        [_, _, _, idle, iowait, ..] => Ok(Ticks { total: fields.iter().sum(), idle: idle + iowait }),
        _ => bail!("/proc/stat begins with {line:?}"),
    }
}
