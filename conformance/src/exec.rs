//! Running a program with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long any single program may take, unless [`allow`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(20);

static ALLOWED: OnceLock<Duration> = OnceLock::new();

/// Has any single program of this process take so long, on a machine that is slow. Only the first call counts.
pub fn allow(deadline: Duration) {
    // Whoever was first has said it.
    let _ = ALLOWED.set(deadline);
}

/// The search path that programs and plugins get.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program left when it had ended and all holders of its output had closed it.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// The end of the program in words.
    pub fn outcome(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "no exit status".to_owned(),
        }
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    started: Instant,
}

impl Running {
    /// Starts a program with `input` on its stdin.
    ///
    /// Input that fits into a pipe is written at once, so that several programs started one after the other run
    /// side by side.
    pub fn start(mut command: Command, input: &[u8]) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot execute {name}"))?;
        let stdin = child.stdin.take();
        let mut running = Self { name, child, stdin, input: input.to_vec(), started };
        if let Some(stdin) = &running.stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        running.feed();
        Ok(running)
    }

    /// Its process id, which stays its own until it has been waited for.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program has ended and its output is closed; kills it after 20 seconds, or what [`allow`] says.
    pub fn finish(self) -> Result<Finished> {
        self.finish_within(*ALLOWED.get().unwrap_or(&DEADLINE))
    }

    /// As [`finish`](Self::finish) with a limit of the caller's, counted from the start of the program.
    pub fn finish_within(mut self, limit: Duration) -> Result<Finished> {
        let outcome = self.collect(limit);
        if outcome.is_err() {
            // Already gone is as good as killed.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        outcome
    }

    fn collect(&mut self, limit: Duration) -> Result<Finished> {
        let deadline = self.started + limit;
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        if let Some(pipe) = &stdout {
            set_nonblocking(pipe.as_fd())?;
        }
        if let Some(pipe) = &stderr {
            set_nonblocking(pipe.as_fd())?;
        }
        while stdout.is_some() || stderr.is_some() || self.stdin.is_some() {
            let mut fds = Vec::new();
            if let Some(pipe) = &stdout {
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
            if let Some(pipe) = &stderr {
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
            if let Some(pipe) = &self.stdin {
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("{} did not end or did not close its output within {limit:?}", self.name);
            };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => bail!("poll: {errno}"),
            }
            drain(&mut stdout, &mut out);
            drain(&mut stderr, &mut err);
            self.feed();
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("{} closed its output but did not end within {limit:?}", self.name);
            }
            // Closing the output and ending are microseconds apart; there is no event for it that needs no signal.
            std::thread::sleep(Duration::from_micros(100));
        };
        Ok(Finished {
            status,
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).into_owned(),
            took: self.started.elapsed(),
        })
    }

    /// Writes as much input as the pipe takes, and closes it after the last byte or when nobody reads any more.
    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        while !self.input.is_empty() {
            match stdin.write(&self.input) {
                Ok(written) => {
                    self.input.drain(..written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.stdin = None;
    }
}

fn drain<R: Read>(pipe: &mut Option<R>, into: &mut Vec<u8>) {
    let Some(reader) = pipe else { return };
    let mut chunk = [0; 16 * 1024];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => into.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *pipe = None;
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
