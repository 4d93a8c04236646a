//! Many workers on networks that all share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use conformance::sandbox::Sandbox;
use conformance::snapshot::Snapshot;

use crate::collection;
use crate::invariants::{examine, report};
use crate::ledger::{Counts, Fault, Ledger};
use crate::random::Random;
use crate::scenario::{Limits, Scenario};
use crate::worker::{Setting, Worker};

/// How many steps are done from one pause to the next.
const STEPS: usize = 400;

/// How many pods there are at most, all workers' together: fewer than a range has addresses.
const PODS: usize = 96;

/// Runs the workers with pauses until the limits are reached, and then removes everything.
pub(crate) fn run(
    scenario: &Scenario,
    limits: &Limits,
    host: &Sandbox,
    settled: &Snapshot,
) -> Result<Counts> {
    let before = Snapshot::take(host, &[])?;
    let ledger = Ledger::new(scenario.name, limits.seed);
    let setting = Setting {
        host,
        ledger: &ledger,
        reference: limits.reference.clone().filter(|_| scenario.has_reference),
        version: limits.version,
        gc_version: limits.gc_version,
        habits: scenario.habits,
        pods: (PODS / limits.workers).max(1),
        collecting: Mutex::new(()),
    };
    let random = |place: usize| Random::new(limits.seed, &format!("{} {place}", scenario.name));
    let mut workers: Vec<Worker> =
        (0..limits.workers).map(|place| Worker::new(place, random(place))).collect();
    let mut random = random(workers.len());
    let share = Duration::from_secs(limits.seconds);
    while ledger.elapsed() < share && ledger.counts().calls < limits.calls {
        let left = AtomicUsize::new(STEPS);
        let take =
            || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        at_once(&mut workers, |worker| {
            while ledger.elapsed() < share && take() {
                worker.step(&setting)?;
            }
            Ok(())
        })?;
        report(&ledger, scenario.name, examine(&setting, &workers, &mut random)?);
    }
    at_once(&mut workers, |worker| worker.finish(&setting))?;
    if setting.reference.is_some() {
        // What of ours the reference does not know, and so does not remove.
        collection::collect_all(&setting)?;
    }
    report(&ledger, scenario.name, examine(&setting, &workers, &mut random)?);
    if let Err(error) = Snapshot::take(host, &[])?.nothing_beyond(&before, settled) {
        // Nobody can tell whose rules these are, but the reference has left some before.
        let fault = if ledger.counts().reference > 0 { Fault::Reference } else { Fault::Ours };
        ledger.broken(fault, None, &format!("{error:#}"));
    }
    Ok(ledger.counts())
}

/// Has all workers do something side by side, and waits for them.
pub(crate) fn at_once(workers: &mut [Worker], work: impl Fn(&mut Worker) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(move || work(worker))).collect();
        let mut outcome = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(ended) => outcome = outcome.and(ended),
                Err(_) => bail!("a worker panicked"),
            }
        }
        outcome
    })
}
