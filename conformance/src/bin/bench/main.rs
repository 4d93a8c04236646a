//! Times a directory of CNI plugins, alone or against a reference directory, in a private host of its own.
//!
//! Every figure is what a runtime sees of one call: from just before the plugin is started until it is reaped and
//! its pipes are closed. Both directories are measured in the same run, in turns, so that drift of the machine hits
//! both. Nothing of the machine's own network is touched: each batch of calls gets a new network and mount
//! namespace, which vanish with it.

mod attachment;
mod batch;
mod call;
mod figures;
mod floor;
mod host;
mod machine;
mod netlink;
mod report;
mod scenario;
mod suite;
mod trace;

use anyhow::{Context, Result, bail};
use batch::{Batch, Deletion, Outcome};
use floor::Floor;
use lexopt::{Arg, Parser, ValueExt};
use report::{Measured, Report};
use scenario::Scenario;
use std::path::PathBuf;
use std::process::ExitCode;
use suite::Suite;

const USAGE: &str = "\
usage: bench --plugins DIR [--reference DIR] [--pods N] [--rounds R] [--only SUBSTR] [--json FILE]

  --plugins DIR    the plugins to measure
  --reference DIR  the plugins to compare with, measured in turns with the first
  --pods N         pods per batch (default 100)
  --rounds R       batches per scenario and directory (default 3)
  --only SUBSTR    only the scenarios whose name has this in it
  --json FILE      write every single sample there

usage: bench --nothing

  Ends at once: the empty program, whose start is the floor under that of every plugin.
";

/// What the command line asks for.
struct Options {
    plugins: PathBuf,
    reference: Option<PathBuf>,
    pods: usize,
    rounds: usize,
    only: String,
    json: Option<PathBuf>,
}

/// Reads the command line; `None` if it only asks for the usage text.
fn parse(mut parser: Parser) -> Result<Option<Options>> {
    let (mut plugins, mut reference, mut json) = (None, None, None);
    let (mut pods, mut rounds, mut only) = (100, 3, String::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("plugins") => plugins = Some(parser.value()?.into()),
            Arg::Long("reference") => reference = Some(parser.value()?.into()),
            Arg::Long("pods") => pods = parser.value()?.parse()?,
            Arg::Long("rounds") => rounds = parser.value()?.parse()?,
            Arg::Long("only") => only = parser.value()?.parse()?,
            Arg::Long("json") => json = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    let plugins = plugins.context("--plugins is missing")?;
    if pods == 0 || rounds == 0 {
        bail!("--pods and --rounds must be at least 1");
    }
    if pods > scenario::MAX_PODS {
        bail!("--pods {pods}: at most {}", scenario::MAX_PODS);
    }
    Ok(Some(Options { plugins, reference, pods, rounds, only, json }))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == floor::NOTHING) && arguments.next().is_none() {
        return ExitCode::SUCCESS;
    }
    let outcome = match parse(Parser::from_env()) {
        Ok(Some(options)) => bench(&options),
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bench: {error:#}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all scenarios and prints the report. Fails at the first call that fails; the exit code also tells if
/// the directory under measurement could not do a scenario.
fn bench(options: &Options) -> Result<ExitCode> {
    machine::adopt_orphans()?;
    let mut suites = vec![Suite::open("ours", &options.plugins)?];
    if let Some(reference) = &options.reference {
        suites.push(Suite::open("reference", reference)?);
    }
    let scenarios: Vec<_> =
        scenario::all().into_iter().filter(|scenario| scenario.name.contains(&options.only)).collect();
    let floors: Vec<_> =
        Floor::ALL.into_iter().filter(|floor| floor.name().contains(&options.only)).collect();
    if scenarios.is_empty() && floors.is_empty() {
        bail!("no scenario has {:?} in its name", options.only);
    }
    let mut report = Report::new(machine::describe()?, &suites, options.pods, options.rounds);
    for floor in floors {
        measure_floor(floor, suites.len(), options, &mut report)?;
    }
    for scenario in &scenarios {
        measure(scenario, &suites, options, &mut report)?;
    }
    print!("{report}");
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report.to_json()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures a part of the floor. It is nobody's; in the report it stands with the figures of the first suite.
fn measure_floor(floor: Floor, suites: usize, options: &Options, report: &mut Report) -> Result<()> {
    let mut batches: Vec<Vec<Batch>> = vec![Vec::new(); suites];
    for round in 1..=options.rounds {
        eprintln!("{}, round {round}", floor.name());
        batches[0].push(floor.run(options.pods)?);
    }
    report.push(Measured { scenario: floor.name(), verbs: floor.verbs(), at_once: 1, batches });
    Ok(())
}

/// Measures one scenario on all suites, in turns.
fn measure(scenario: &Scenario, suites: &[Suite], options: &Options, report: &mut Report) -> Result<()> {
    let mut unable: Vec<Option<String>> = vec![None; suites.len()];
    let mut absent: Vec<Option<String>> = vec![None; suites.len()];
    let mut deletions = vec![Deletion::Works; suites.len()];
    for &at_once in scenario.at_once {
        let mut batches: Vec<Vec<Batch>> = vec![Vec::new(); suites.len()];
        for round in 1..=options.rounds {
            for (index, suite) in suites.iter().enumerate() {
                if unable[index].is_some() || absent[index].is_some() {
                    continue;
                }
                eprintln!("{}, {at_once} at once, round {round}: {}", scenario.name, suite.label);
                match batch::run(suite, scenario, options.pods.min(scenario.most_pods), at_once)? {
                    Outcome::Done(batch) => {
                        deletions[index] = batch.deletion.clone();
                        batches[index].push(batch);
                    }
                    Outcome::Absent(plugin) => absent[index] = Some(plugin),
                    Outcome::Unable(reason) => unable[index] = Some(reason),
                }
            }
        }
        report.push(Measured { scenario: scenario.name, verbs: scenario.workload.verbs(), at_once, batches });
    }
    let mut probes = Vec::with_capacity(suites.len());
    for (index, (suite, (unable, deletion))) in
        suites.iter().zip(unable.into_iter().zip(deletions)).enumerate()
    {
        if let Some(plugin) = &absent[index] {
            probes.push(None);
            report.remark(suite.label, format!("has no {plugin}, and so no {}", scenario.name));
            continue;
        }
        match unable {
            None => probes.push(Some(batch::probe(suite, scenario, &deletion)?)),
            Some(reason) => {
                probes.push(None);
                report.shortcoming(suite.label, format!("cannot do {}: {reason}", scenario.name));
            }
        }
        if let Deletion::Fails(reason) = deletion {
            report.shortcoming(suite.label, format!("cannot do DEL of {}: {reason}", scenario.name));
        }
    }
    report.push_probes(scenario.name, probes);
    Ok(())
}
