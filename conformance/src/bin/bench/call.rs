//! One execution of one plugin, as a runtime would do it, with its price.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use std::fs;
use std::io::{PipeReader, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// What a pipe holds without a reader (pipe(7)); a configuration must fit, for it is written before the start.
const PIPE_CAPACITY: usize = 65536;

/// Everything that one execution of a plugin is given.
pub(crate) struct Call {
    /// The executable.
    pub(crate) program: PathBuf,
    /// The whole environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The network configuration, for stdin.
    pub(crate) config: String,
}

/// What the plugin answered.
pub(crate) struct Answer {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its whole stdout.
    pub(crate) stdout: String,
    /// Its whole stderr.
    pub(crate) stderr: String,
}

/// What one call, or a chain of them, cost.
#[derive(Clone, Copy, Default)]
pub(crate) struct Price {
    /// From just before the start until the process was reaped and its pipes were closed.
    pub(crate) wall: Duration,
    /// User and system time, of the plugin and of all that it waited for.
    pub(crate) cpu: Duration,
}

impl std::iter::Sum for Price {
    fn sum<I: Iterator<Item = Self>>(prices: I) -> Self {
        prices.fold(Self::default(), |sum, price| Self {
            wall: sum.wall + price.wall,
            cpu: sum.cpu + price.cpu,
        })
    }
}

impl Call {
    /// Runs the plugin and takes the time.
    pub(crate) fn timed(&self) -> Result<(Price, Answer)> {
        let (price, answer) = self.start(Command::new(&self.program))?.finish()?;
        Ok((price, answer))
    }

    /// Runs the plugin and samples its resident memory; the result is the peak in KiB, of the plugin alone.
    ///
    /// The `ru_maxrss` of wait4(2) is of no use here: execve(2) folds the peak of the address space it leaves into
    /// the process's, so it never falls below what the parent has resident. The high-water mark in
    /// /proc/PID/status belongs to the new address space, but has to be read while that is there.
    pub(crate) fn sampled(&self) -> Result<(u64, Answer)> {
        let running = self.start(Command::new(&self.program))?;
        let path = format!("/proc/{}/status", running.pid);
        let mut peak = 0;
        while let Some(mark) = fs::read_to_string(&path).ok().as_deref().and_then(high_water_mark) {
            peak = peak.max(mark);
        }
        let (_, answer) = running.finish()?;
        Ok((peak, answer))
    }

    /// Starts the plugin through `command`: either the plugin itself, or a tracer that is told to start it.
    pub(crate) fn start(&self, mut command: Command) -> Result<Running> {
        if self.config.len() > PIPE_CAPACITY {
            bail!("the configuration for {} has {} bytes", self.program.display(), self.config.len());
        }
        let (stdin, mut config) = pipe().context("pipe for stdin")?;
        config.write_all(self.config.as_bytes()).context("write the configuration")?;
        drop(config);
        let (stdout, to_stdout) = pipe().context("pipe for stdout")?;
        let (stderr, to_stderr) = pipe().context("pipe for stderr")?;
        command.env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(stdin).stdout(to_stdout).stderr(to_stderr);
        let begin = Instant::now();
        // std takes posix_spawn(3) here, for the program is a path and there is nothing to run in the child: the C
        // library then clones with CLONE_VM | CLONE_VFORK, and spawn() returns when the new program is in place.
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        // The command owns our copies of the pipes' far ends.
        drop(command);
        let pid = i32::try_from(child.id()).context("process id")?;
        Ok(Running { pid, begin, stdout, stderr })
    }
}

/// A plugin that was started and is not yet reaped.
pub(crate) struct Running {
    pid: i32,
    begin: Instant,
    stdout: PipeReader,
    stderr: PipeReader,
}

impl Running {
    /// Reads the answer and reaps the process. The time includes the end of both pipes, because a runtime waits for
    /// it too: whoever leaves a process behind that holds them gains nothing.
    pub(crate) fn finish(mut self) -> Result<(Price, Answer)> {
        // One after the other is enough: a plugin would have to write 64 KiB to stderr to be blocked here.
        let (mut stdout, mut stderr) = (Vec::with_capacity(4096), Vec::new());
        self.stdout.read_to_end(&mut stdout).context("read stdout")?;
        self.stderr.read_to_end(&mut stderr).context("read stderr")?;
        let (status, cpu) = reap(self.pid)?;
        let wall = self.begin.elapsed();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((Price { wall, cpu }, Answer { status, stdout: text(stdout), stderr: text(stderr) }))
    }
}

/// Waits for this child; returns how it ended and its user and system time with that of all it waited for.
fn reap(pid: i32) -> Result<(ExitStatus, Duration)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live, writable values of the types that wait4(2) asks for.
        let reaped = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        if reaped == pid {
            break;
        }
        let errno = Errno::last();
        if errno != Errno::EINTR {
            bail!("wait4 for process {pid}: {errno}");
        }
    }
    // SAFETY: all zeroes is a valid rusage, and the kernel has filled it in since.
    let usage = unsafe { usage.assume_init() };
    Ok((ExitStatus::from_raw(status), duration(usage.ru_utime) + duration(usage.ru_stime)))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
}

/// The peak of resident memory in KiB from the text of /proc/PID/status; `None` for a process that has no address
/// space any more.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn high_water_mark_of_living_and_dead() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1234));
        assert_eq!(high_water_mark("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
