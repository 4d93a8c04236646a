//! A hundred pods that come at once to a bridge that is not there, and go at once.

use std::sync::{Barrier, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use conformance::expect::soon;
use conformance::sandbox::Sandbox;
use conformance::snapshot::Snapshot;
use serde_json::Value;

use crate::churn::at_once;
use crate::invariants::{examine, report};
use crate::ledger::{Counts, Fault, Ledger};
use crate::network;
use crate::random::Random;
use crate::scenario::{Limits, Scenario};
use crate::worker::{Habits, Setting, Worker};

/// How many.
const PODS: usize = 100;

/// Runs rounds on one network after the other until the time is over, one at least. In every second one, some are
/// killed or lose their namespace: a bridge that one undoes may be another's first.
pub(crate) fn run(
    scenario: &Scenario,
    limits: &Limits,
    host: &Sandbox,
    settled: &Snapshot,
) -> Result<Counts> {
    let before = Snapshot::take(host, &[])?;
    let ledger = Ledger::new(scenario.name, limits.seed);
    let mut random = Random::new(limits.seed, scenario.name);
    let share = Duration::from_secs(limits.seconds);
    let random_of = |place: usize| Random::new(limits.seed, &format!("{} {place}", scenario.name));
    let mut workers: Vec<Worker> = (0..PODS).map(|place| Worker::new(place, random_of(place))).collect();
    for round in 0.. {
        if round > 0 && (ledger.elapsed() > share || ledger.counts().calls > limits.calls) {
            break;
        }
        let networks = network::served_by(host.plugins());
        let Some(network) = networks.get(round / 2 % networks.len().max(1)) else { break };
        let calm = Habits { kills: 0, vanishes: 0, ..scenario.habits };
        let setting = Setting {
            host,
            ledger: &ledger,
            reference: None,
            version: limits.version,
            gc_version: limits.gc_version,
            habits: if round % 2 == 0 { calm } else { scenario.habits },
            pods: 1,
            collecting: Mutex::new(()),
        };
        if host.link(network.bridge)?.is_some() {
            host.ip_set(&format!("link delete {}", network.bridge))?;
        }
        let start = Barrier::new(PODS);
        at_once(&mut workers, |worker| {
            let tenant = worker.new_tenant(&setting);
            start.wait();
            worker.attach_all(&setting, tenant?, &[("eth0", network)])
        })?;
        agree(&ledger, &workers);
        let summary = examine(&setting, &workers, &mut random)?;
        report(&ledger, &format!("{} on {}", scenario.name, network.name), summary);
        let start = Barrier::new(PODS);
        at_once(&mut workers, |worker| {
            start.wait();
            worker.finish(&setting)
        })?;
        examine(&setting, &workers, &mut random)?;
        let veths = || match host.ip("link show type veth")?.len() {
            0 => Ok(()),
            some => bail!("{some} links are left"),
        };
        let emptied = soon(veths).and_then(|()| Snapshot::take(host, &[])?.nothing_beyond(&before, settled));
        if let Err(error) = emptied {
            ledger.broken(Fault::Ours, None, &format!("{error:#}"));
        }
    }
    Ok(ledger.counts())
}

/// All results tell of the same bridge and the same gateways.
fn agree(ledger: &Ledger, workers: &[Worker]) {
    let mut first: Option<(Value, Value)> = None;
    for attachment in workers.iter().flat_map(|it| &it.tenants).flat_map(|it| &it.attachments) {
        let Some(result) = &attachment.result else { continue };
        let bridge = result["interfaces"][0].clone();
        let gateways: Value =
            result["ips"].as_array().into_iter().flatten().map(|ip| ip["gateway"].clone()).collect();
        match &first {
            None => first = Some((bridge, gateways)),
            Some(same) if (&same.0, &same.1) == (&bridge, &gateways) => {}
            Some((other, others)) => {
                let what =
                    format!("has the bridge {bridge} and gateways {gateways}, others {other} and {others}");
                ledger.broken(Fault::Ours, Some(&attachment.key.0), &what);
            }
        }
    }
}
