//! What is soaked, and for how long.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use conformance::apart::apart;
use conformance::call::Call;
use conformance::expect::soon;
use conformance::sandbox::Sandbox;
use conformance::snapshot::Snapshot;

use crate::attachment::{Attachment, Suite};
use crate::ledger::Counts;
use crate::network::{self, Network};
use crate::worker::Habits;
use crate::{churn, first_pods};

/// A way to wear plugins out, in namespaces of its own.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: &'static str,
    /// How much of the time it takes, in percent.
    pub(crate) share: u32,
    /// What its workers do how often.
    pub(crate) habits: Habits,
    /// Whether the reference works beside.
    pub(crate) has_reference: bool,
    run: fn(&Self, &Limits, &Sandbox, &Snapshot) -> Result<Counts>,
}

/// All of them. A GC hides what a DEL leaves, so there is one without any.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "churn",
        share: 40,
        habits: Habits { kills: 15, vanishes: 5, collections: 0 },
        has_reference: false,
        run: churn::run,
    },
    Scenario {
        name: "collect",
        share: 25,
        habits: Habits { kills: 15, vanishes: 5, collections: 4 },
        has_reference: false,
        run: churn::run,
    },
    Scenario {
        name: "first-pods",
        share: 20,
        habits: Habits { kills: 15, vanishes: 5, collections: 0 },
        has_reference: false,
        run: first_pods::run,
    },
    Scenario {
        name: "beside-reference",
        share: 15,
        habits: Habits { kills: 10, vanishes: 3, collections: 0 },
        has_reference: true,
        run: churn::run,
    },
];

/// What the command line allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The directory to judge.
    pub(crate) plugins: PathBuf,
    /// The directory to work beside.
    pub(crate) reference: Option<PathBuf>,
    /// Threads of the runtime.
    pub(crate) workers: usize,
    /// Calls per scenario at most.
    pub(crate) calls: usize,
    /// Where the random numbers come from.
    pub(crate) seed: u64,
    /// For all scenarios together, or for the one that it is given to.
    pub(crate) seconds: u64,
    /// The newest version of the protocol that all plugins have.
    pub(crate) version: &'static str,
    /// The version for a GC, if the plugins to judge have one.
    pub(crate) gc_version: Option<&'static str>,
}

impl Scenario {
    /// Whether it can be run at all with these plugins; else why not.
    pub(crate) fn obstacle(&self, limits: &Limits) -> Option<&'static str> {
        if self.has_reference && limits.reference.is_none() {
            return Some("needs --reference");
        }
        (self.habits.collections > 0 && limits.gc_version.is_none()).then_some("needs a plugin with GC")
    }

    /// Runs it. The calling process must be single-threaded.
    pub(crate) fn run(&self, limits: &Limits) -> Result<Counts> {
        let text = apart(|| {
            let settled = learn(&Sandbox::enter(&limits.plugins)?, limits)?;
            apart(|| Ok((self.run)(self, limits, &Sandbox::enter(&limits.plugins)?, &settled)?.encode()))
        })?;
        Counts::decode(&text).with_context(|| format!("the account of {} is {text:?}", self.name))
    }
}

/// What stays after ADD and DEL on each network, because all pods share it.
fn learn(host: &Sandbox, limits: &Limits) -> Result<Snapshot> {
    for network in network::served_by(host.plugins()).iter().chain([&network::SECOND]) {
        learn_one(host, network, limits.version, host.plugins())?;
    }
    // What the reference keeps in nftables is not soaked; its DEL of that fails in some releases.
    for network in network::known_to_both() {
        if let Some(reference) = &limits.reference {
            learn_one(host, network, limits.version, reference)?;
        }
    }
    soon(|| match host.ip("link show type veth")?.len() {
        0 => Ok(()),
        some => bail!("{some} links are left of undisturbed calls"),
    })?;
    Snapshot::take(host, &[])
}

fn learn_one(host: &Sandbox, network: &'static Network, version: &str, directory: &Path) -> Result<()> {
    let pod = host.pod("learner")?;
    let suites = (Suite::Ours, Suite::Ours);
    let call = Attachment::new("learner", "eth0", pod.netns(), network, version, suites).call(directory);
    let result = call.add().run(host)?.result().with_context(|| format!("ADD on {}", network.name))?;
    let del = call.del().prev(&result);
    del.run(host)?.silence().with_context(|| format!("DEL on {}", network.name))?;
    pod.remove()
}

/// The version since which there is GC.
pub(crate) const WITH_GC: &str = "1.1.0";

/// The newest version that plugins of all these directories support, of those that matter here.
pub(crate) fn common_version(directories: &[&Path]) -> Result<&'static str> {
    let text = apart(|| {
        let first = directories.first().context("no plugins")?;
        let host = Sandbox::enter(first)?;
        let mut newest = WITH_GC;
        for directory in directories {
            let answer = Call::new("bridge").from(*directory).command("VERSION").run(&host)?.result()?;
            let versions = answer["supportedVersions"].as_array().cloned().unwrap_or_default();
            if !versions.iter().any(|version| version == WITH_GC) {
                newest = "1.0.0";
            }
        }
        Ok(newest.to_owned())
    })?;
    Ok(if text == WITH_GC { WITH_GC } else { "1.0.0" })
}
