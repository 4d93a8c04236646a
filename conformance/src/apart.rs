//! Processes in namespaces of their own.

use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// Runs something in a process namespace of its own: whatever it starts, ends with it. Its first process only buries
/// orphans, the second does the work. The calling process must be single-threaded.
pub fn apart(work: impl FnOnce() -> Result<String>) -> Result<String> {
    // Plugins must not inherit it: they close what they do not know.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread, so the child may do anything.
    let child = match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(reader);
            let status = namespaced(work, File::from(writer)).map_or(1, |()| 0);
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { nix::libc::_exit(status) }
        }
    };
    drop(writer);
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text)?;
    let end = waitpid(child, None)?;
    match text.split_at_checked(1) {
        Some(("+", answer)) => Ok(answer.to_owned()),
        Some((_, why)) => bail!("{why}"),
        None => bail!("it ended with {end:?}"),
    }
}

fn namespaced(work: impl FnOnce() -> Result<String>, writer: File) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: the process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            is_success(waitpid(child, None)?)
        }
        ForkResult::Child => {
            let status = first(work, writer).map_or(1, |()| 0);
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// The life of the first process of the namespace.
fn first(work: impl FnOnce() -> Result<String>, mut writer: File) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // SAFETY: the process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            bury_until(child)
        }
        ForkResult::Child => {
            let outcome = set_pdeathsig(Signal::SIGKILL)
                .map_err(Into::into)
                .and_then(|()| catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| bail!("panic")));
            let text = match outcome {
                Ok(answer) => format!("+{answer}"),
                Err(error) => format!("-{error:#}"),
            };
            let status = i32::from(writer.write_all(text.as_bytes()).is_err());
            // SAFETY: _exit runs nothing of the parent's.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

fn bury_until(child: Pid) -> Result<()> {
    loop {
        match wait() {
            Ok(end) if end.pid() == Some(child) => return is_success(end),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_success(end: WaitStatus) -> Result<()> {
    match end {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => bail!("{other:?}"),
    }
}
