//! A process that goes through all points of one verb on one network. Each trial has a host of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, bail};
use conformance::sandbox::Sandbox;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe2};
use serde_json::{Value, json};

use crate::calls::Watched;
use crate::fault::{Fault, Injection};
use crate::point::Point;
use crate::scenario::Scenario;
use crate::verdict::{Baseline, Kept, Verb, judge, learn};

/// How often a trial is repeated that did not come to its point.
const TRIES: usize = 4;

/// The account of one trial.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// What was done.
    pub(crate) fault: Fault,
    /// Where, with what was injected.
    pub(crate) place: String,
    /// How the plugin took it; an error says what is wrong.
    pub(crate) outcome: Result<Kept, String>,
}

impl Trial {
    fn encode(&self) -> String {
        let (kept, why) = match &self.outcome {
            Ok(kept) => (kept_name(*kept), ""),
            Err(why) => ("broken", why.as_str()),
        };
        json!([self.fault.name(), self.place, kept, why]).to_string()
    }

    /// From a line that a worker printed.
    pub(crate) fn decode(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let text = |i: usize| value[i].as_str().with_context(|| format!("no trial: {line}"));
        let fault = Fault::by_name(text(0)?).with_context(|| format!("no fault: {line}"))?;
        let outcome = kept_by_name(text(2)?).ok_or(text(3)?.to_owned());
        Ok(Self { fault, place: text(1)?.to_owned(), outcome })
    }
}

const KEPT: [(Kept, &str); 4] = [
    (Kept::Tolerated, "tolerated"),
    (Kept::Refused, "refused"),
    (Kept::Recovered, "recovered"),
    (Kept::Missed, "missed"),
];

fn kept_name(kept: Kept) -> &'static str {
    KEPT.iter().find(|(known, _)| *known == kept).map_or("", |(_, name)| name)
}

fn kept_by_name(name: &str) -> Option<Kept> {
    KEPT.iter().find(|(_, known)| *known == name).map(|(kept, _)| *kept)
}

/// The whole life of a worker. It prints a line for each trial.
pub(crate) fn run(scenario: &Scenario, verb: Verb, faults: &[Fault], plugins: &Path) -> Result<()> {
    apart(|| {
        let host = Sandbox::enter(plugins)?;
        let baseline = learn(&host, scenario, verb)
            .map_err(|error| error.context(format!("{}\n", host.transcript())))?;
        for &fault in faults {
            for point in &baseline.points {
                let injection = Watched::by_name(&point.call).and_then(|call| fault.injection(call));
                let Some(injection) = injection else { continue };
                let trial = attempt(scenario, verb, (fault, point, injection), &baseline, plugins);
                writeln!(std::io::stdout(), "{}", trial.encode())?;
            }
        }
        Ok(String::new())
    })?;
    Ok(())
}

fn attempt(
    scenario: &Scenario,
    verb: Verb,
    what: (Fault, &Point, Injection),
    baseline: &Baseline,
    plugins: &Path,
) -> Trial {
    let (fault, point, injection) = what;
    let once = || {
        apart(|| {
            let host = Sandbox::enter(plugins)?;
            let kept = judge(&host, scenario, verb, what, baseline)?;
            Ok(kept_name(kept).to_owned())
        })
    };
    // How many events the kernel puts into one answer is chance, and so is whether a run comes by a point again.
    let mut outcomes = (0..TRIES).map(|_| once());
    let missed =
        |outcome: &Result<String>| outcome.as_ref().is_ok_and(|name| name == kept_name(Kept::Missed));
    let outcome = outcomes.find(|outcome| !missed(outcome)).unwrap_or(Ok(kept_name(Kept::Missed).to_owned()));
    let outcome = match outcome {
        Ok(name) => kept_by_name(&name).ok_or(format!("the trial said {name:?}")),
        Err(error) => Err(format!("{error:#}")),
    };
    Trial { fault, place: format!("{injection} at {point}"), outcome }
}

/// Runs something as the first process of a process namespace of its own: whatever it starts, ends with it. The
/// calling process must be single-threaded.
fn apart(work: impl FnOnce() -> Result<String>) -> Result<String> {
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
        None => bail!("the trial ended with {end:?}"),
    }
}

fn namespaced(work: impl FnOnce() -> Result<String>, mut writer: File) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: as above.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => bail!("{other:?}"),
        },
        ForkResult::Child => {
            let outcome = set_pdeathsig(Signal::SIGKILL).map_err(Into::into).and_then(|()| {
                catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| bail!("the trial panicked"))
            });
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
