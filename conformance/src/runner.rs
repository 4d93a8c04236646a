//! Runs cases side by side, each in a process and in namespaces of its own.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::case::Case;
use crate::exec::Running;
use crate::sandbox::Sandbox;

/// The word after which the command line names the case that this process is to run.
pub const SINGLE: &str = "--run-single-case";

const PASSED: i32 = 0;
const FAILED: i32 = 1;
const SKIPPED: i32 = 3;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was asserted holds.
    Passed,
    /// Something does not; the text says what, with the last calls.
    Failed(String),
    /// Something that the case needs is not here.
    Skipped(String),
}

/// A case that has been run.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The case.
    pub case: Case,
    /// What became of it.
    pub verdict: Verdict,
    /// How long it took, namespaces included.
    pub took: Duration,
}

/// How many cases run at a time, and how long each may take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Cases at a time.
    pub jobs: usize,
    /// After this time a case has failed.
    pub patience: Duration,
}

/// Runs all cases on a directory, and calls `seen` for each as it ends. The order is that of `cases`.
pub fn run(cases: &[Case], plugins: &Path, pace: Pace, seen: impl Fn(&Judged) + Sync) -> Vec<Judged> {
    let next = AtomicUsize::new(0);
    let judged: Mutex<Vec<(usize, Judged)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..pace.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    let started = Instant::now();
                    let verdict = apart(case, plugins, pace.patience)
                        .unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
                    let one = Judged { case: *case, verdict, took: started.elapsed() };
                    seen(&one);
                    judged.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, one));
                }
            });
        }
    });
    let mut judged = judged.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    judged.sort_by_key(|(index, _)| *index);
    judged.into_iter().map(|(_, one)| one).collect()
}

/// Runs one case in a process of its own.
fn apart(case: &Case, plugins: &Path, patience: Duration) -> Result<Verdict> {
    let mut command = Command::new("/proc/self/exe");
    // Of the two minutes that a case has by default, any program may take 20 seconds.
    let of_program = (patience / 6).as_secs().max(1);
    command.arg(SINGLE).arg(case.title()).arg(plugins).arg(of_program.to_string());
    // SAFETY: prctl is one system call, so it may be called between fork and exec.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)) };
    let finished = Running::start(command, b"")?.finish_within(patience)?;
    let text = finished.stdout.trim_end().to_owned();
    Ok(match finished.status.code() {
        Some(PASSED) => Verdict::Passed,
        Some(SKIPPED) => Verdict::Skipped(text),
        Some(FAILED) if finished.stderr.is_empty() => Verdict::Failed(text),
        _ => Verdict::Failed(format!("{} {text}\n{}", finished.outcome(), finished.stderr.trim_end())),
    })
}

/// The whole life of a process that runs one case; gives its exit status. The process must be single-threaded.
pub fn run_single(case: &Case, plugins: PathBuf) -> Result<i32> {
    // Everything that is still there when the first process of the new namespace ends, the kernel kills.
    unshare(CloneFlags::CLONE_NEWPID).context("unshare processes (are you root?)")?;
    // SAFETY: the process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, status) => Ok(status),
            other => bail!("the case ended with {other:?}"),
        },
        ForkResult::Child => {
            let status = set_pdeathsig(Signal::SIGKILL)
                .map_err(anyhow::Error::from)
                .and_then(|()| first_process(case, &plugins))
                .unwrap_or_else(|error| report(FAILED, &format!("{error:#}")));
            std::process::exit(status)
        }
    }
}

fn first_process(case: &Case, plugins: &Path) -> Result<i32> {
    let host = Sandbox::enter(plugins)?;
    for need in case.needs {
        if let Some(reason) = need.unmet(&host) {
            return Ok(report(SKIPPED, &reason));
        }
    }
    Ok(match catch_unwind(AssertUnwindSafe(|| (case.run)(&host))) {
        Ok(Ok(())) => PASSED,
        Ok(Err(error)) => report(FAILED, &format!("{error:#}\n{}", host.transcript())),
        Err(_) => report(FAILED, &format!("the case panicked\n{}", host.transcript())),
    })
}

fn report(status: i32, text: &str) -> i32 {
    // Without a reader there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
    status
}
