//! Finding a plugin and executing it (specification section 4; libcni's `pkg/invoke`).

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use serde_json::Value;

use crate::spec::request::Environment;
use crate::spec::{Attachment, CniError, Code, Command, Request, json};

/// How long a plugin may take unless its caller says otherwise. The kubelet gives a pod's sandbox four minutes.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Most bytes of a result. Real ones have a few hundred.
const MAX_STDOUT: usize = 4 << 20;

/// Bytes of a plugin's log that are kept; what comes after them is read and dropped, so that the plugin goes on.
const MAX_STDERR: usize = 1 << 20;

/// Most bytes that an error quotes of what a plugin printed.
const MAX_QUOTE: usize = 4096;

/// How long the execution of a file is tried that somebody has open for writing: a plugin that is being replaced.
const BUSY_DEADLINE: Duration = Duration::from_secs(6);

/// How long a killed plugin is waited for. One that the kernel holds longer than this is left to the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// The file of a plugin: the first regular file of that name in the directories, as libcni looks it up.
///
/// Whether it can be executed is not asked, so that a plugin without its permission is an error and not a reason to
/// take another of that name. Errors: code 7 for a type that cannot be a file name, 106 if there is no such file.
pub fn find(plugin_type: &str, directories: &[PathBuf]) -> Result<PathBuf, CniError> {
    if plugin_type.is_empty() {
        return Err(CniError::config("type: the name of the plugin is empty"));
    }
    if plugin_type.contains('/') {
        return Err(CniError::config(format!("type: the plugin name {plugin_type:?} is a path")));
    }
    if directories.is_empty() {
        let msg = format!("cannot find plugin {plugin_type:?}: CNI_PATH names no directory");
        return Err(CniError::new(Code::Delegate, msg));
    }
    directories.iter().map(|d| d.join(plugin_type)).find(|file| file.is_file()).ok_or_else(|| {
        let list: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
        CniError::new(Code::Delegate, format!("cannot find plugin {plugin_type:?} in [{}]", list.join(" ")))
    })
}

/// Executes another plugin on behalf of the one that runs: same configuration, same environment, the given verb. Where
/// the one that runs is asked about none (GC), a DEL is about `attachment`.
pub fn delegate(
    plugin_type: &str,
    command: Command,
    attachment: &Attachment,
    request: &Request,
    deadline: Duration,
) -> Result<Option<Value>, CniError> {
    let mut environment = Environment {
        command: command.as_str().to_owned(),
        ..Environment::read(|name| std::env::var(name).ok())
    };
    if command == Command::Del && environment.container_id.is_empty() {
        environment.container_id.clone_from(&attachment.container_id);
        environment.ifname.clone_from(&attachment.ifname);
    }
    let program = find(plugin_type, &request.path)?;
    Invocation { program: &program, environment: &environment, stdin: &request.stdin, deadline }.run()
}

/// One execution of a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Invocation<'a> {
    /// The plugin's file.
    pub program: &'a Path,
    /// The `CNI_*` variables; they replace those that this process inherited, all else is handed down.
    pub environment: &'a Environment,
    /// The configuration.
    pub stdin: &'a [u8],
    /// How long the plugin may take before it is killed.
    pub deadline: Duration,
}

impl Invocation<'_> {
    /// Executes the plugin and waits for it.
    ///
    /// The value is what ADD or VERSION printed: `None` if that was nothing, `{}` if it was `null`. What other verbs
    /// print is ignored. An error object of the plugin is returned as it is; any other failure has code 106.
    /// What the plugin wrote to stderr goes to ours, unless it becomes part of the error.
    pub fn run(&self) -> Result<Option<Value>, CniError> {
        let output = self.execute()?;
        if !output.status.success() {
            return Err(self.refusal(&output));
        }
        self.pass_on(&output.stderr);
        match Command::parse(&self.environment.command) {
            Some(Command::Add | Command::Version) => self.decode(&output.stdout),
            _ => Ok(None),
        }
    }

    fn decode(&self, stdout: &[u8]) -> Result<Option<Value>, CniError> {
        if stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        match serde_json::from_slice(stdout) {
            Ok(Value::Null) => Ok(Some(Value::Object(serde_json::Map::new()))),
            Ok(value @ Value::Object(_)) => Ok(Some(value)),
            Ok(_) => Err(self.failed(format!("printed no JSON object: {}", quote(stdout)))),
            Err(error) => Err(self.failed(format!("printed no JSON ({error}): {}", quote(stdout)))),
        }
    }

    /// What a plugin that ended with failure has to say for itself.
    fn refusal(&self, output: &Output) -> CniError {
        if output.stdout.is_empty() {
            return if output.stderr.iter().all(u8::is_ascii_whitespace) {
                self.failed(format!("failed with {} and said nothing", output.status))
            } else {
                self.failed(format!("failed with {}: {}", output.status, quote(&output.stderr)))
            };
        }
        self.pass_on(&output.stderr);
        match serde_json::from_slice(&output.stdout).map(|value: Value| json::decode::<ErrorObject>(&value)) {
            // A plugin that is killed after it has printed its result has said nothing of an error.
            Ok(Ok(object)) if object.code != 0 || !object.msg.is_empty() => CniError {
                cni_version: object.cni_version,
                // 0 is no error's (specification section 5, "Error").
                code: if object.code == 0 { Code::Delegate as u32 } else { object.code },
                msg: object.msg,
                details: object.details,
            },
            _ => self.failed(format!(
                "failed with {}, and what it printed is no error object: {}",
                output.status,
                quote(&output.stdout)
            )),
        }
    }

    fn failed(&self, what: String) -> CniError {
        CniError::new(Code::Delegate, format!("plugin {} {what}", self.program.display()))
    }

    fn pass_on(&self, stderr: &[u8]) {
        // A log that cannot be written must not turn a success into a failure.
        let _ = std::io::stderr().write_all(stderr);
    }

    fn execute(&self) -> Result<Output, CniError> {
        let end = Instant::now() + self.deadline;
        let mut child = self.spawn(end)?;
        let exit = match pidfd_open(&child) {
            Ok(fd) => fd,
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(self.failed(format!("cannot be waited for: {errno}")));
            }
        };
        let talked = self.talk(&mut child, &exit, end);
        if talked.is_err() {
            let _ = child.kill();
            let mut fds = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, timeout_until(Instant::now() + KILL_DEADLINE));
            let _ = child.try_wait();
        }
        let (stdout, stderr) = talked?;
        let status = child.wait().map_err(|e| self.failed(format!("cannot be waited for: {e}")))?;
        Ok(Output { status, stdout, stderr })
    }

    fn spawn(&self, end: Instant) -> Result<Child, CniError> {
        let mut command = std::process::Command::new(self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let e = self.environment;
        for (name, value) in [
            ("CNI_COMMAND", &e.command),
            ("CNI_CONTAINERID", &e.container_id),
            ("CNI_NETNS", &e.netns),
            ("CNI_IFNAME", &e.ifname),
            ("CNI_ARGS", &e.args),
            ("CNI_PATH", &e.path),
        ] {
            command.env(name, value);
        }
        if e.netns_override.is_empty() {
            command.env_remove("CNI_NETNS_OVERRIDE");
        } else {
            command.env("CNI_NETNS_OVERRIDE", &e.netns_override);
        }

        let busy_end = end.min(Instant::now() + BUSY_DEADLINE);
        let mut pause = Duration::from_millis(5);
        loop {
            match command.spawn() {
                Ok(child) => return Ok(child),
                // dup2(2) in the child, which the C library does not repeat.
                Err(error) if error.kind() == ErrorKind::Interrupted && Instant::now() < end => {}
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < busy_end => {
                    // The kernel tells nobody when the last writer is gone.
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(self.failed(format!("cannot be executed: {error}"))),
            }
        }
    }

    /// Writes the configuration and reads both outputs, all at once, until the plugin has ended.
    ///
    /// Its end counts, not that of the pipes: a process that it left behind may hold those open for ever.
    fn talk(&self, child: &mut Child, exit: &OwnedFd, end: Instant) -> Result<(Vec<u8>, Vec<u8>), CniError> {
        let lost = |what: &str, error: std::io::Error| self.failed(format!("{what}: {error}"));
        let (mut stdin, mut stdout, mut stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for fd in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(|e| lost("cannot be talked to", e.into()))?;
        }
        let mut unwritten = self.stdin;
        let (mut result, mut log) = (Vec::new(), Vec::new());
        loop {
            if Instant::now() >= end {
                let msg = format!("did not end within {} s and was killed", self.deadline.as_secs_f32());
                let error = self.failed(msg);
                return Err(if log.is_empty() { error } else { error.with_details(quote(&log)) });
            }
            let mut fds = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
            fds.extend(stdin.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLOUT)));
            fds.extend(stdout.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
            fds.extend(stderr.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout_until(end)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(lost("cannot be waited for", errno.into())),
            }
            // Asked before reading: what the plugin wrote before it ended is then in the pipes.
            let ended = fds.first().and_then(PollFd::any).unwrap_or(false);

            if write_some(&mut stdin, &mut unwritten).map_err(|e| lost("cannot be written to", e))? {
                stdin = None;
            }
            if read_some(&mut stdout, &mut result, MAX_STDOUT + 1)
                .map_err(|e| lost("cannot be read from", e))?
            {
                stdout = None;
            }
            if result.len() > MAX_STDOUT {
                return Err(self.failed(format!("printed more than {MAX_STDOUT} bytes and was killed")));
            }
            if read_some(&mut stderr, &mut log, MAX_STDERR).map_err(|e| lost("cannot be read from", e))? {
                stderr = None;
            }
            if ended {
                return Ok((result, log));
            }
        }
    }
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Like [`CniError`], but everything may be missing, as in libcni: some plugins print a message alone.
#[derive(Deserialize)]
struct ErrorObject {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Writes as much as the pipe takes; true when there is nothing more to be done.
fn write_some(pipe: &mut Option<impl Write>, bytes: &mut &[u8]) -> std::io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(true) };
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(count) => *bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Ok(false),
                // A plugin need not read its configuration: VERSION does not.
                ErrorKind::BrokenPipe => return Ok(true),
                _ => return Err(error),
            },
        }
    }
    Ok(true)
}

/// Reads what the pipe has, and keeps it up to `limit` bytes in all; true at its end.
fn read_some(pipe: &mut Option<impl Read>, bytes: &mut Vec<u8>, limit: usize) -> std::io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(true) };
    let mut chunk = [0; 8192];
    // Bounded, since a plugin that prints without end must not keep the deadline from being looked at; but by more
    // than any pipe holds, since after the plugin's end nothing may be left in it.
    for _ in 0..256 {
        match pipe.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(count) => {
                let kept = count.min(limit.saturating_sub(bytes.len()));
                bytes.extend_from_slice(chunk.get(..kept).unwrap_or_default());
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Ok(false),
                _ => return Err(error),
            },
        }
    }
    Ok(false)
}

/// A descriptor that can be polled for the child's end.
fn pidfd_open(child: &Child) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The time until then, rounded up so that a wait never ends a little early and spins.
fn timeout_until(end: Instant) -> PollTimeout {
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// What a plugin printed, as part of a sentence.
fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    match text.char_indices().find(|(at, _)| *at >= MAX_QUOTE) {
        Some((at, _)) => format!("{:?}...", text.get(..at).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests;
