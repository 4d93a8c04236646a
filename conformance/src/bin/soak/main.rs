//! `soak --plugins DIR`: many workers at once attach, check and detach pods, while plugins are killed and namespaces
//! deleted at random, and at every pause everything is looked at.
//!
//! * [`scenario`]: what is soaked; [`network`]: on which networks
//! * [`churn`], [`first_pods`]: the scenarios; [`worker`], [`collection`]: who calls what
//! * [`attachment`], [`ledger`]: what the runtime knows
//! * [`invariants`], [`reach`]: what must hold whenever no call runs
//! * [`random`]: random numbers from a seed

mod attachment;
mod churn;
mod collection;
mod first_pods;
mod invariants;
mod ledger;
mod network;
mod random;
mod reach;
mod scenario;
mod worker;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use ledger::Counts;
use lexopt::prelude::*;
use scenario::{Limits, Scenario};

const USAGE: &str = "\
usage: soak --plugins DIR [--reference DIR] [--workers N] [--calls N] [--seconds T] [--seed S] [--only TEXT]

Workers call bridge with host-local, and bridgehead, on networks that all share: ADD, CHECK, DEL and GC. Some calls are
killed, some pods lose their namespace meanwhile. At every pause nothing may be left of pods that are gone, and
nothing missing of those that are there. Everything happens in namespaces of its own. Needs root.

  --plugins DIR    the directory to judge
  --reference DIR  plugins that work beside them on the same networks; what these alone leave is told apart
  --workers N      workers at a time (default 16)
  --calls N        calls per scenario at most
  --seconds T      for all scenarios together (default 110); pauses and the end come on top
  --seed S         the same seed gives each worker the same choices (default: by the clock)
  --only TEXT      only scenarios whose name contains TEXT
";

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            // Without a reader there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<ExitCode> {
    let Some((limits, only)) = parse()? else {
        say(USAGE);
        return Ok(ExitCode::SUCCESS);
    };
    let scenarios: Vec<&Scenario> = scenario::ALL.iter().filter(|it| it.name.contains(&only)).collect();
    if scenarios.is_empty() {
        bail!("no scenario contains {only:?}");
    }
    let ours = scenario::common_version(&[&limits.plugins])?;
    let both = match &limits.reference {
        Some(reference) => scenario::common_version(&[&limits.plugins, reference])?,
        None => ours,
    };
    say(&format!("seed {}, {} workers\n", limits.seed, limits.workers));
    let mut table = format!(
        "\n{:<20} {:>8} {:>8} {:>10} {:>8} {:>11}\n",
        "scenario", "calls", "killed", "namespaces", "broken", "reference's"
    );
    let shares: u64 = scenarios.iter().map(|scenario| u64::from(scenario.share)).sum();
    let mut is_sound = true;
    for scenario in scenarios {
        let seconds = limits.seconds * u64::from(scenario.share) / shares;
        let version = if scenario.has_reference { both } else { ours };
        let gc_version = Some(ours).filter(|version| *version == scenario::WITH_GC);
        let mut limits = Limits { version, gc_version, seconds, ..limits.clone() };
        if !scenario.has_reference {
            limits.reference = None;
        }
        if let Some(why) = scenario.obstacle(&limits) {
            let _ = writeln!(table, "{:<20} {why}", scenario.name);
            continue;
        }
        let Counts { calls, kills, vanished, broken, reference } = scenario.run(&limits)?;
        let _ = writeln!(
            table,
            "{:<20} {calls:>8} {kills:>8} {vanished:>10} {broken:>8} {reference:>11}",
            scenario.name
        );
        is_sound &= broken == 0;
    }
    say(&table);
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints at once and whole. Without a reader there is nobody to tell.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn parse() -> Result<Option<(Limits, String)>> {
    let mut only = String::new();
    let (mut plugins, mut reference): (Option<PathBuf>, Option<PathBuf>) = (None, None);
    let (mut workers, mut calls, mut seconds) = (16, usize::MAX, 110);
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("plugins") => plugins = Some(parser.value()?.into()),
            Long("reference") => reference = Some(parser.value()?.into()),
            Long("workers") => workers = parser.value()?.parse()?,
            Long("calls") => calls = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("seed") => seed = parser.value()?.parse()?,
            Long("only") => only = parser.value()?.string()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(plugins) = plugins else { bail!("--plugins DIR is missing\n{USAGE}") };
    if !(1..=96).contains(&workers) {
        bail!("--workers {workers}: there can be 1 to 96");
    }
    let directory =
        |path: &Path| path.canonicalize().with_context(|| format!("no directory {}", path.display()));
    let limits = Limits {
        plugins: directory(&plugins)?,
        reference: reference.as_deref().map(directory).transpose()?,
        workers,
        calls,
        seed,
        seconds,
        version: "",
        gc_version: None,
    };
    Ok(Some((limits, only)))
}
