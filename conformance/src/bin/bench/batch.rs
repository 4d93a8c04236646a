//! One batch: a scenario on one suite in a new host, all pods attached and then detached again.

use crate::attachment::{Chain, check_status, check_version, version};
use crate::call::{Call, Price};
use crate::host::{Host, Pod};
use crate::machine::{Load, reap_orphans, settle};
use crate::scenario::{NETWORK, Nat, SUBNET, Scenario, Workload};
use crate::suite::Suite;
use crate::trace::{Started, Strace, strace};
use anyhow::{Context, Error, Result, anyhow, bail};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The prices of one batch, in the order of the pods.
#[derive(Clone)]
pub(crate) struct Batch {
    /// Of ADD, or of VERSION.
    pub(crate) add: Vec<Price>,
    /// Of DEL; empty for VERSION.
    pub(crate) del: Vec<Price>,
    /// How long processes went on after the last DEL had returned.
    pub(crate) linger: Duration,
    /// Whether something else ran on the machine when it began.
    pub(crate) load: Load,
    /// Whether DEL was measured.
    pub(crate) deletion: Deletion,
}

impl Batch {
    /// A batch of calls that leave nothing to be undone.
    pub(crate) fn of(prices: Vec<Price>, load: Load) -> Self {
        Self { add: prices, del: Vec::new(), linger: Duration::ZERO, load, deletion: Deletion::Works }
    }
}

/// Whether a suite can undo what it did. Not all can: the nftables DEL of some reference builds depends on how the
/// machine's iptables words its errors.
#[derive(Clone)]
pub(crate) enum Deletion {
    /// DEL works, or the workload has none.
    Works,
    /// DEL fails for the first pod already; here is how. None was measured.
    Fails(String),
}

/// How a batch ended.
pub(crate) enum Outcome {
    /// All calls succeeded.
    Done(Batch),
    /// The suite does not have this plugin of the scenario, which is no fault of those that it has.
    Absent(String),
    /// The suite cannot do what the scenario asks for, for this reason.
    Unable(String),
}

/// What cannot be had while taking the time; of one more ADD and DEL.
#[derive(Clone)]
pub(crate) struct Probe {
    /// Of ADD, or of VERSION.
    pub(crate) add: Observed,
    /// Of DEL; absent for VERSION.
    pub(crate) del: Option<Observed>,
}

/// What was observed of one call, or of a chain of them.
#[derive(Clone)]
pub(crate) struct Observed {
    /// Processes started; absent where there is no strace.
    pub(crate) started: Option<Started>,
    /// Peak of resident memory in KiB, of the plugin that has most, without its children.
    pub(crate) resident: u64,
}

/// Measures one batch. Fails if a call fails. But on the first pod, which is not counted, a failure only means that
/// the suite is unable to do the scenario, or its DEL.
pub(crate) fn run(suite: &Suite, scenario: &Scenario, pods: usize, at_once: usize) -> Result<Outcome> {
    let load = settle()?;
    match &scenario.workload {
        Workload::Startup(plugin) => {
            let program = suite.program(plugin);
            if !program.is_file() {
                return Ok(Outcome::Absent(plugin.to_string()));
            }
            let call = version(&program);
            let add = (0..pods).map(|_| startup(&call)).collect::<Result<_>>()?;
            Ok(Outcome::Done(Batch::of(add, load)))
        }
        Workload::Question(plugin) => {
            let plugins = std::slice::from_ref(plugin);
            let chain = Chain { suite, plugins, ports: 0 };
            if let Some(plugin) = chain.missing() {
                return Ok(Outcome::Absent(plugin.to_string()));
            }
            Host::within(1, |host| {
                let [pod] = &host.pods[..] else { bail!("no pod") };
                chain.add(pod, Call::timed)?;
                let call = chain.status(plugin, pod)?;
                let ask = || {
                    let (price, answer) = call.timed()?;
                    check_status(&call, &answer).map(|()| price)
                };
                match ask() {
                    Ok(_) => {
                        Ok(Outcome::Done(Batch::of((0..pods).map(|_| ask()).collect::<Result<_>>()?, load)))
                    }
                    Err(reason) => Ok(Outcome::Unable(short(&reason))),
                }
            })
        }
        Workload::Attachments { chain, nat, reservations, ports } => {
            let chain = Chain { suite, plugins: chain, ports: *ports };
            if let Some(plugin) = chain.missing() {
                return Ok(Outcome::Absent(plugin.to_string()));
            }
            Host::within(pods + 1, |host| {
                host.reserve(NETWORK, SUBNET, *reservations)?;
                let Some((first, rest)) = host.pods.split_first() else { bail!("no pods") };
                let deletion = match attempt(&chain, first, *nat) {
                    Ok(deletion) => deletion,
                    Err(reason) => return Ok(Outcome::Unable(short(&reason))),
                };
                attach_all(host, &chain, rest, at_once, (load, deletion)).map(Outcome::Done)
            })
        }
    }
}

/// A failure that does not end the benchmark: all of it for whoever watches, the cause of it for the report.
fn short(reason: &Error) -> String {
    eprintln!("{reason:#}");
    reason.root_cause().to_string()
}

/// Attaches the pod that makes the bridge and the tables, and sees that the work is really done. Unless its DEL
/// fails, the pod has been detached and attached again.
fn attempt(chain: &Chain, pod: &Pod, nat: Nat) -> Result<Deletion> {
    let (_, result) = chain.add(pod, Call::timed)?;
    nat.verify()?;
    if let Err(reason) = chain.del(pod, &result, Call::timed) {
        return Ok(Deletion::Fails(short(&reason)));
    }
    reap_orphans()?;
    chain.add(pod, Call::timed)?;
    Ok(Deletion::Works)
}

/// ADD for all pods, then DEL for all, in the same order.
fn attach_all(
    host: &Host,
    chain: &Chain,
    pods: &[Pod],
    at_once: usize,
    (load, deletion): (Load, Deletion),
) -> Result<Batch> {
    let links = host.links()?;
    let added = each(pods, at_once, |_, pod| {
        let (prices, result) = chain.add(pod, Call::timed)?;
        Ok((prices.into_iter().sum::<Price>(), result))
    })?;
    let (add, results): (Vec<Price>, Vec<Value>) = added.into_iter().unzip();
    reap_orphans()?;
    if matches!(deletion, Deletion::Fails(_)) {
        return Ok(Batch { add, del: Vec::new(), linger: Duration::ZERO, load, deletion });
    }
    let del = each(pods, at_once, |index, pod| {
        let result = results.get(index).context("no result of ADD")?;
        Ok(chain.del(pod, result, Call::timed)?.into_iter().sum())
    })?;
    let linger = reap_orphans()?;
    match host.links()? {
        left if left == links => Ok(Batch { add, del, linger, load, deletion }),
        left => bail!(
            "{}: {links} links in the host before all ADD, {left} after all DEL",
            chain.suite.dir.display()
        ),
    }
}

/// Does the work for every pod, for this many of them at the same time, and returns the results in the pods' order.
/// After a failure nothing new is begun.
fn each<T: Send>(
    pods: &[Pod],
    at_once: usize,
    work: impl Fn(usize, &Pod) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<(usize, T)>> {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(pod) = pods.get(index) else { return Ok(done) };
            match work(index, pod) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    next.store(pods.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let mut done = Vec::with_capacity(pods.len());
        for worker in workers {
            done.extend(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok::<_, anyhow::Error>(done)
    })?;
    done.sort_unstable_by_key(|&(index, _)| index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn startup(call: &Call) -> Result<Price> {
    let (price, answer) = call.timed()?;
    check_version(call, &answer)?;
    Ok(price)
}

/// Calls in which memory is sampled: the sampling misses the peak where the sampler has to wait for a processor.
const SAMPLED_CALLS: usize = 5;

/// Observes some more ADD and DEL, with the bridge and one pod there already. The pod that is traced is not one of
/// those that are sampled: a traced process is not the same size.
pub(crate) fn probe(suite: &Suite, scenario: &Scenario, deletion: &Deletion) -> Result<Probe> {
    let (chain, reservations) = match &scenario.workload {
        Workload::Startup(plugin) => {
            let call = version(&suite.program(plugin));
            let sample = || call.sampled().map(|(mark, _)| mark);
            let marks = (0..SAMPLED_CALLS).map(|_| sample()).collect::<Result<_>>()?;
            return Ok(Probe { add: Observed::new(None, marks), del: None });
        }
        Workload::Question(plugin) => {
            let chain = Chain { suite, plugins: std::slice::from_ref(plugin), ports: 0 };
            return Host::within(1, |host| {
                let [pod] = &host.pods[..] else { bail!("no pod") };
                chain.add(pod, Call::timed)?;
                let call = chain.status(plugin, pod)?;
                let sample = || call.sampled().map(|(mark, _)| mark);
                let marks = (0..SAMPLED_CALLS).map(|_| sample()).collect::<Result<_>>()?;
                let started = strace().map(|strace| strace.run(&call)).transpose()?.map(|(it, _)| vec![it]);
                Ok(Probe { add: Observed::new(started, marks), del: None })
            });
        }
        Workload::Attachments { chain, reservations, ports, .. } => {
            (Chain { suite, plugins: chain, ports: *ports }, *reservations)
        }
    };
    let strace = strace();
    settle()?;
    Host::within(SAMPLED_CALLS + 2, |host| {
        host.reserve(NETWORK, SUBNET, reservations)?;
        let [first, traced, sampled @ ..] = &host.pods[..] else { bail!("no pods") };
        chain.add(first, Call::timed)?;
        let added: Vec<_> = sampled.iter().map(|pod| chain.add(pod, Call::sampled)).collect::<Result<_>>()?;
        let (marks, results): (Vec<_>, Vec<_>) = added.into_iter().unzip();
        let trace = |strace: &Strace| chain.add(traced, |call| strace.run(call));
        let (started, traced_result) = strace.as_ref().map(trace).transpose()?.unzip();
        let add = Observed::new(started, marks.concat());
        let del = match deletion {
            Deletion::Fails(_) => None,
            Deletion::Works => {
                let sample = |(pod, result)| chain.del(pod, result, Call::sampled);
                let marks: Vec<_> = sampled.iter().zip(&results).map(sample).collect::<Result<_>>()?;
                let trace =
                    |(strace, result): (&Strace, &Value)| chain.del(traced, result, |call| strace.run(call));
                let started = strace.as_ref().zip(traced_result.as_ref()).map(trace).transpose()?;
                Some(Observed::new(started, marks.concat()))
            }
        };
        reap_orphans()?;
        Ok(Probe { add, del })
    })
}

impl Observed {
    /// All plugins of a chain together: all that they start, and the memory of the largest.
    fn new(started: Option<Vec<Started>>, marks: Vec<u64>) -> Self {
        let started = started.map(|all| all.into_iter().sum());
        Self { started, resident: marks.into_iter().max().unwrap_or(0) }
    }
}
