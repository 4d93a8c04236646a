//! What the runtime knows: which attachments there are, what was called for them, and what was found wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attachment::{Key, Suite};

/// Where an attachment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// ADD runs, as this process once it has been started.
    Adding(Option<u32>),
    /// ADD has succeeded, and no DEL was called.
    Attached,
    /// ADD was killed, has failed, or a DEL was called.
    Leaving,
}

/// Whose fault something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The plugins' that are judged.
    Ours,
    /// The reference's: it made the attachment and removed it, or refused by itself.
    Reference,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Executions of a plugin.
    pub(crate) calls: usize,
    /// Of these, killed ones.
    pub(crate) kills: usize,
    /// Namespaces deleted before or during a call.
    pub(crate) vanished: usize,
    /// Broken invariants.
    pub(crate) broken: usize,
    /// Broken invariants that are the reference's fault.
    pub(crate) reference: usize,
}

impl Counts {
    /// As one line for a parent process.
    pub(crate) fn encode(&self) -> String {
        json!([self.calls, self.kills, self.vanished, self.broken, self.reference]).to_string()
    }

    /// From such a line.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |i: usize| value[i].as_u64().and_then(|number| usize::try_from(number).ok());
        Some(Self {
            calls: number(0)?,
            kills: number(1)?,
            vanished: number(2)?,
            broken: number(3)?,
            reference: number(4)?,
        })
    }
}

/// Shared by all workers of a scenario.
#[derive(Debug)]
pub(crate) struct Ledger {
    scenario: &'static str,
    seed: u64,
    began: Instant,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    counts: Counts,
    phases: BTreeMap<Key, Phase>,
    holders: BTreeMap<IpAddr, Key>,
    histories: BTreeMap<String, Vec<String>>,
    collections: VecDeque<String>,
    suites: BTreeMap<String, (Suite, Suite)>,
    vanished: BTreeSet<String>,
    traces: BTreeMap<String, String>,
    said: BTreeSet<String>,
}

impl Ledger {
    /// Nothing has happened yet.
    pub(crate) fn new(scenario: &'static str, seed: u64) -> Self {
        Self { scenario, seed, began: Instant::now(), pages: Mutex::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the scenario began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What was counted until now.
    pub(crate) fn counts(&self) -> Counts {
        self.pages().counts
    }

    /// Changes the counts.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.pages().counts);
    }

    /// Adds a line to what happened to a pod.
    pub(crate) fn note(&self, id: &str, text: &str) {
        let line = format!("{:>11.6} {text}", self.elapsed().as_secs_f64());
        self.pages().histories.entry(id.to_owned()).or_default().push(line);
    }

    /// Adds a line to what happened to all.
    pub(crate) fn note_collection(&self, text: &str) {
        const KEPT: usize = 30;
        let line = format!("{:>11.6} {text}", self.elapsed().as_secs_f64());
        let mut pages = self.pages();
        pages.collections.push_back(line);
        if pages.collections.len() > KEPT {
            pages.collections.pop_front();
        }
    }

    /// Remembers whose plugins make and remove a pod's attachments.
    pub(crate) fn assign(&self, id: &str, suites: (Suite, Suite)) {
        self.pages().suites.insert(id.to_owned(), suites);
    }

    /// Whose plugins make and remove a pod's attachments.
    pub(crate) fn suites(&self, id: &str) -> Option<(Suite, Suite)> {
        self.pages().suites.get(id).copied()
    }

    /// Remembers that a pod has lost its namespace before its attachments were removed.
    pub(crate) fn vanish(&self, id: &str) {
        let mut pages = self.pages();
        pages.counts.vanished += 1;
        pages.vanished.insert(id.to_owned());
    }

    /// Whether it has.
    pub(crate) fn has_vanished(&self, id: &str) -> bool {
        self.pages().vanished.contains(id)
    }

    /// Remembers by what else than its ID a pod can be told: an address, the name of a link.
    pub(crate) fn trace(&self, word: &str, id: &str) {
        self.pages().traces.insert(word.to_owned(), id.to_owned());
    }

    /// The pod that had this last.
    pub(crate) fn traced(&self, word: &str) -> Option<String> {
        self.pages().traces.get(word).cloned()
    }

    /// An attachment comes to another part of its life. When it leaves, its addresses may be another's.
    pub(crate) fn enter(&self, key: &Key, phase: Phase) {
        let mut pages = self.pages();
        pages.phases.insert(key.clone(), phase);
        if phase == Phase::Leaving {
            pages.holders.retain(|_, holder| holder != key);
        }
    }

    /// Its addresses may be another's: its pod cannot be alive.
    pub(crate) fn release(&self, key: &Key) {
        self.pages().holders.retain(|_, holder| holder != key);
    }

    /// Of an attachment nothing should be left.
    pub(crate) fn gone(&self, key: &Key) {
        self.pages().phases.remove(key);
    }

    /// All attachments with the part of life that they are in.
    pub(crate) fn phases(&self) -> BTreeMap<Key, Phase> {
        self.pages().phases.clone()
    }

    /// An ADD has given an address; says who has it already.
    pub(crate) fn hold(&self, address: IpAddr, key: &Key) -> Option<Key> {
        let mut pages = self.pages();
        let other = pages.holders.insert(address, key.clone());
        other.filter(|other| other != key)
    }

    /// Whether that was said already; it may stay for ever.
    pub(crate) fn is_known(&self, id: Option<&str>, what: &str) -> bool {
        self.pages().said.contains(&saying(id, what))
    }

    /// Something is wrong. Said once, with all that is known of the pod.
    pub(crate) fn broken(&self, fault: Fault, id: Option<&str>, what: &str) {
        let mut pages = self.pages();
        if !pages.said.insert(saying(id, what)) {
            return;
        }
        let word = match fault {
            Fault::Ours => {
                pages.counts.broken += 1;
                "BROKEN"
            }
            Fault::Reference => {
                pages.counts.reference += 1;
                "reference"
            }
        };
        let mut text =
            format!("{word} {} (seed {}, at {:.1?}): {what}\n", self.scenario, self.seed, self.elapsed());
        for line in id.and_then(|id| pages.histories.get(id)).into_iter().flatten() {
            let _ = writeln!(text, "    {line}");
        }
        for line in &pages.collections {
            let _ = writeln!(text, "    {line}");
        }
        crate::say(&text);
    }
}

fn saying(id: Option<&str>, what: &str) -> String {
    format!("{} {what}", id.unwrap_or_default())
}
