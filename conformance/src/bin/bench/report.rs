//! The report: Markdown tables for people, JSON for programs.

use crate::batch::{Batch, Observed, Probe};
use crate::call::Price;
use crate::figures::{Figures, figures, median, milliseconds};
use crate::floor::Floor;
use crate::machine::Load;
use crate::scenario::{BARE_ATTACHMENT, Verb};
use crate::suite::Suite;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// All batches of one scenario with one degree of concurrency.
pub(crate) struct Measured {
    /// The scenario's name.
    pub(crate) scenario: &'static str,
    /// What was timed.
    pub(crate) verbs: &'static [Verb],
    /// How many calls were under way at the same time.
    pub(crate) at_once: usize,
    /// The batches of each suite; none for a suite that cannot do the scenario.
    pub(crate) batches: Vec<Vec<Batch>>,
}

/// Everything that was measured.
pub(crate) struct Report {
    machine: String,
    suites: Vec<(&'static str, String, String)>,
    pods: usize,
    rounds: usize,
    measured: Vec<Measured>,
    probes: Vec<(&'static str, Vec<Option<Probe>>)>,
    shortcomings: Vec<(&'static str, String)>,
    remarks: Vec<(&'static str, String)>,
}

impl Report {
    /// An empty report on these suites.
    pub(crate) fn new(machine: String, suites: &[Suite], pods: usize, rounds: usize) -> Self {
        let suites = suites
            .iter()
            .map(|suite| (suite.label, suite.dir.display().to_string(), suite.banner.clone()))
            .collect();
        Self {
            machine,
            suites,
            pods,
            rounds,
            measured: Vec::new(),
            probes: Vec::new(),
            shortcomings: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Adds the batches of a scenario.
    pub(crate) fn push(&mut self, measured: Measured) {
        self.measured.push(measured);
    }

    /// Adds what was observed of a scenario, for each suite.
    pub(crate) fn push_probes(&mut self, scenario: &'static str, probes: Vec<Option<Probe>>) {
        self.probes.push((scenario, probes));
    }

    /// Adds what this suite could not do.
    pub(crate) fn shortcoming(&mut self, label: &'static str, text: String) {
        self.shortcomings.push((label, text));
    }

    /// Adds what is to be known about this suite and is no fault of it.
    pub(crate) fn remark(&mut self, label: &'static str, text: String) {
        self.remarks.push((label, text));
    }

    /// Whether the first suite, the one under measurement, did everything.
    pub(crate) fn is_complete(&self) -> bool {
        let first = self.suites.first().map(|(label, ..)| *label);
        self.shortcomings.iter().all(|&(label, _)| Some(label) != first)
    }

    /// Every single sample, in milliseconds.
    pub(crate) fn to_json(&self) -> Value {
        let suites: Vec<_> = self
            .suites
            .iter()
            .map(|(label, dir, banner)| json!({"label": label, "directory": dir, "banner": banner}))
            .collect();
        let measured: Vec<_> = self
            .measured
            .iter()
            .map(|measured| {
                let batches = |all: &Vec<Batch>| all.iter().map(batch_json).collect::<Vec<_>>();
                let suites: Vec<_> = measured.batches.iter().map(batches).collect();
                json!({"scenario": measured.scenario, "atOnce": measured.at_once, "batchesPerSuite": suites})
            })
            .collect();
        let probes: Vec<_> = self
            .probes
            .iter()
            .map(|(scenario, probes)| {
                let probe = |probe: &Option<Probe>| {
                    let Some(probe) = probe else { return Value::Null };
                    json!({"add": observed_json(&probe.add), "del": probe.del.as_ref().map(observed_json)})
                };
                json!({"scenario": scenario, "perSuite": probes.iter().map(probe).collect::<Vec<_>>()})
            })
            .collect();
        json!({
            "machine": self.machine, "suites": suites, "pods": self.pods, "rounds": self.rounds,
            "measured": measured, "observed": probes, "shortcomings": self.shortcomings,
            "floor": self.floor_json(),
        })
    }

    /// The median of the first suite in a scenario without concurrency, in milliseconds.
    fn median(&self, scenario: &str, verb: Verb) -> Option<f64> {
        let serial = |measured: &&Measured| measured.scenario == scenario && measured.at_once == 1;
        let batches = self.measured.iter().find(serial)?.batches.first()?;
        Some(verb.figures(batches)?.median)
    }

    /// The least that ADD or DEL of an attachment can cost, in milliseconds.
    fn floor(&self, verb: Verb) -> Option<f64> {
        let start = self.median(Floor::Start.name(), Verb::Start)?;
        Some(start + self.median(Floor::Netlink.name(), verb)?)
    }

    /// What ADD or DEL of the first suite costs, without NAT, as a multiple of the floor.
    fn multiple(&self, verb: Verb) -> Option<f64> {
        Some(self.median(BARE_ATTACHMENT, verb)? / self.floor(verb)?)
    }

    /// The floor and the multiples of it; null for what was not measured.
    fn floor_json(&self) -> Value {
        json!({
            "startMs": self.median(Floor::Start.name(), Verb::Start),
            "netlinkAddMs": self.median(Floor::Netlink.name(), Verb::Add),
            "netlinkDelMs": self.median(Floor::Netlink.name(), Verb::Del),
            "addMultiple": self.multiple(Verb::Add),
            "delMultiple": self.multiple(Verb::Del),
        })
    }

    /// The sentence that judges the first suite by the floor, unless `--only` left out what it needs.
    fn judgement(&self) -> Option<String> {
        let judge = |verb: Verb| {
            let (multiple, floor) = (self.multiple(verb)?, self.floor(verb)?);
            Some(format!("{} {multiple:.1} times the floor of {floor:.2} ms", verb.name()))
        };
        let (label, ..) = self.suites.first()?;
        let (add, del) = (judge(Verb::Add)?, judge(Verb::Del)?);
        Some(format!("{label}, {BARE_ATTACHMENT}: {add}, {del} (start and netlink requests together)."))
    }

    /// The table of times.
    fn times(&self) -> Table {
        let mut head = vec!["ms per call".to_owned(), "at once".to_owned(), "verb".to_owned()];
        for (label, ..) in &self.suites {
            head.extend(["median", "p90", "first / last tenth"].map(|column| format!("{label} {column}")));
        }
        head.extend(self.ratio(&[]).is_some().then(|| "ratio".to_owned()));
        let mut table = Table { rows: vec![head] };
        for measured in &self.measured {
            for &verb in measured.verbs {
                let all: Vec<_> = measured.batches.iter().map(|batches| verb.figures(batches)).collect();
                let mut row =
                    vec![measured.scenario.to_owned(), measured.at_once.to_string(), verb.name().to_owned()];
                for figures in &all {
                    // With several at once, the last calls have the machine to themselves: that is no growth.
                    let growth = figures.filter(|_| measured.at_once == 1);
                    let texts = [
                        figures.map(|it| format!("{:.2}", it.median)),
                        figures.map(|it| format!("{:.2}", it.p90)),
                        growth.map(|it| format!("{:.2} / {:.2}", it.first, it.last)),
                    ];
                    row.extend(texts.map(or_dash));
                }
                row.extend(self.ratio(&all));
                table.rows.push(row);
            }
        }
        table
    }

    /// How many times faster the first suite is than the second, if there are two; `-` where one has no figures.
    fn ratio(&self, all: &[Option<Figures>]) -> Option<String> {
        (self.suites.len() == 2).then(|| match all {
            [Some(ours), Some(reference)] => format!("{:.1}", reference.median / ours.median),
            _ => "-".to_owned(),
        })
    }

    /// The table of everything but time.
    fn costs(&self) -> Table {
        let mut head = vec!["per call".to_owned(), "verb".to_owned()];
        for (label, ..) in &self.suites {
            let columns = ["processes", "programs", "peak RSS KiB", "CPU ms", "linger ms"];
            head.extend(columns.map(|column| format!("{label} {column}")));
        }
        let mut table = Table { rows: vec![head] };
        let serial = |scenario| {
            self.measured.iter().find(move |measured| measured.scenario == scenario && measured.at_once == 1)
        };
        for (scenario, probes) in &self.probes {
            let Some(measured) = serial(*scenario) else { continue };
            for &verb in measured.verbs {
                let mut row = vec![(*scenario).to_owned(), verb.name().to_owned()];
                for (batches, probe) in measured.batches.iter().zip(probes) {
                    let observed = probe.as_ref().and_then(|probe| verb.observed(probe));
                    let started = observed.and_then(|observed| observed.started);
                    let cpu =
                        median(batches.iter().flat_map(|batch| verb.prices(batch)).map(|price| price.cpu));
                    let linger = verb.linger(batches);
                    let texts = [
                        started.map(|started| started.processes.to_string()),
                        started.map(|started| started.programs.to_string()),
                        observed.map(|observed| observed.resident.to_string()),
                        cpu.map(|ms| format!("{ms:.2}")),
                        linger.map(|ms| format!("{ms:.2}")),
                    ];
                    row.extend(texts.map(or_dash));
                }
                table.rows.push(row);
            }
        }
        table
    }
}

impl Verb {
    fn prices(self, batch: &Batch) -> &[Price] {
        match self {
            Self::Start | Self::Version | Self::Status | Self::Add => &batch.add,
            Self::Del => &batch.del,
        }
    }

    fn figures(self, batches: &[Batch]) -> Option<Figures> {
        let walls = |batch| self.prices(batch).iter().map(|price| price.wall).collect();
        figures(&batches.iter().map(walls).collect::<Vec<Vec<Duration>>>())
    }

    fn observed(self, probe: &Probe) -> Option<&Observed> {
        match self {
            Self::Start | Self::Version | Self::Status | Self::Add => Some(&probe.add),
            Self::Del => probe.del.as_ref(),
        }
    }

    /// Median over the batches of how long processes went on after the last DEL, in milliseconds.
    fn linger(self, batches: &[Batch]) -> Option<f64> {
        match self {
            Self::Start | Self::Version | Self::Status | Self::Add => None,
            Self::Del => {
                median(batches.iter().filter(|batch| !batch.del.is_empty()).map(|batch| batch.linger))
            }
        }
    }
}

fn batch_json(batch: &Batch) -> Value {
    let prices = |prices: &[Price]| {
        json!({
            "wallMs": prices.iter().map(|price| milliseconds(price.wall)).collect::<Vec<_>>(),
            "cpuMs": prices.iter().map(|price| milliseconds(price.cpu)).collect::<Vec<_>>(),
        })
    };
    let quiet = batch.load == Load::Quiet;
    json!({
        "add": prices(&batch.add), "del": prices(&batch.del),
        "lingerMs": milliseconds(batch.linger), "machineWasQuiet": quiet,
    })
}

fn observed_json(observed: &Observed) -> Value {
    json!({
        "processes": observed.started.map(|started| started.processes),
        "programs": observed.started.map(|started| started.programs),
        "peakResidentKiB": observed.resident,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {} pods, {} rounds\n", self.machine, self.pods, self.rounds)?;
        for (label, dir, banner) in &self.suites {
            writeln!(f, "- {label}: {dir} ({banner})")?;
        }
        writeln!(f, "\n{}\n{}", self.times(), self.costs())?;
        if let Some(judgement) = self.judgement() {
            writeln!(f, "- {judgement}")?;
        }
        writeln!(f, "- A call ends when the process is reaped and its pipes are closed.")?;
        writeln!(f, "- Ratio: median of the reference by median of ours.")?;
        writeln!(
            f,
            "- Processes and programs (successful execve) count the plugins themselves, but no threads."
        )?;
        writeln!(f, "- RSS is the plugin's own, sampled; CPU is with all children that it waits for.")?;
        writeln!(f, "- Linger: how long processes go on after the last DEL of a batch has returned.")?;
        let all = || self.measured.iter().flat_map(|measured| measured.batches.iter().flatten());
        let busy = all().filter(|batch| batch.load == Load::Busy).count();
        if busy > 0 {
            let count = all().count();
            writeln!(f, "- {busy} of {count} batches began while something else ran on the machine.")?;
        }
        for (label, text) in self.remarks.iter().chain(&self.shortcomings) {
            // Further lines are indented, so that they stay in this item of the list.
            writeln!(f, "- {label} {}", text.trim_end().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

/// What is not known is a dash in the tables.
fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Rows of text, the first being the head.
struct Table {
    rows: Vec<Vec<String>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate();
            // Names to the left, numbers to the right.
            let padded = cells.map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            writeln!(f, "| {} |", padded.collect::<Vec<_>>().join(" | "))?;
            if index == 0 {
                let rule = widths.iter().enumerate().map(|(column, &width)| match column {
                    0 => "-".repeat(width),
                    _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
                });
                writeln!(f, "| {} |", rule.collect::<Vec<_>>().join(" | "))?;
            }
        }
        Ok(())
    }
}
