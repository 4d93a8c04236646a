//! `faults --plugins DIR`: disturbs CNI plugins at every system call by which they touch anything, with errors and
//! with SIGKILL, and says what they leave behind.
//!
//! * [`scenario`]: the networks
//! * [`calls`], [`fault`], [`point`]: where what can go wrong
//! * [`tracer`], [`registers`], [`memory`]: a program that runs another and disturbs it
//! * [`request`]: what is asked of the kernel by netlink, and how it answers
//! * [`verdict`]: what must hold afterwards
//! * [`worker`], [`report`]: going through all points, each in namespaces of its own, and the account

mod calls;
mod fault;
mod memory;
mod point;
mod registers;
mod report;
mod request;
mod scenario;
mod tracer;
mod verdict;
mod worker;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use fault::Fault;
use lexopt::prelude::*;
use report::Run;
use scenario::Scenario;
use verdict::Verb;
use worker::Trial;

const USAGE: &str = "\
usage: faults --plugins DIR [--only TEXT] [--verb add|del|gc|restore] [--fault TEXT] [--reference DIR] [--jobs N] [--verbose]

Runs ADD, DEL and GC of plugins, and the tool's restore, again and again, each time with a fault at another system call,
and looks for what is left behind. Everything happens in namespaces of its own. Needs root.

  --plugins DIR    the directory to judge
  --only TEXT      only networks whose name contains TEXT
  --verb VERB      only faults in add, in del, in gc, or in restore
  --fault TEXT     only kinds of faults whose name contains TEXT
  --reference DIR  also disturbs the plugins in DIR and counts, which does not change the exit status
  --jobs N         networks at a time; the number of processors if not given
  --verbose        prints every point, and not only those where something is wrong
";

/// The word after which the command line says what a worker is to do.
const WORKER: &str = "--run-worker";

struct Options {
    plugins: Option<PathBuf>,
    reference: Option<PathBuf>,
    only: String,
    verbs: Vec<Verb>,
    fault: String,
    jobs: usize,
    verbose: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            // Without a reader there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<ExitCode> {
    if std::env::var_os(tracer::PROGRAM).is_some() {
        let status = tracer::run()?;
        return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
    }
    if std::env::args_os().nth(1).is_some_and(|first| first == WORKER) {
        return work();
    }
    let Some(options) = parse()? else {
        write!(std::io::stdout(), "{USAGE}")?;
        return Ok(ExitCode::SUCCESS);
    };
    let Some(plugins) = &options.plugins else { bail!("--plugins DIR is missing\n{USAGE}") };
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces and plugins need root");
    }
    let runs = run_all(plugins, &options, show)?;
    let table = report::table(&plugins.to_string_lossy(), &runs);
    if let Some(reference) = &options.reference {
        let others = run_all(reference, &options, |_, _, _, _| ())?;
        write!(std::io::stdout(), "{}", report::table(&reference.to_string_lossy(), &others))?;
    }
    write!(std::io::stdout(), "{table}")?;
    let is_sound = runs.iter().all(|run| run.broken() == 0);
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A worker's command line: network, verb, part of the faults' names, directory.
fn work() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [name, verb, fault, plugins] = arguments.as_slice() else { bail!("a worker has four arguments") };
    let scenario = scenario::ALL.iter().find(|it| it.name == name).context("no such network")?;
    let verb = Verb::ALL.into_iter().find(|it| it.name() == verb).context("no such verb")?;
    worker::run(scenario, verb, &faults(fault), Path::new(plugins))?;
    Ok(ExitCode::SUCCESS)
}

fn faults(part: &str) -> Vec<Fault> {
    Fault::ALL.into_iter().filter(|fault| fault.name().contains(part)).collect()
}

type Seen = fn(&Options, &Scenario, Verb, &Trial);

/// Runs all verbs on all networks, some of them side by side.
fn run_all(plugins: &Path, options: &Options, seen: Seen) -> Result<Vec<Run>> {
    let plugins = plugins.canonicalize().with_context(|| format!("no directory {}", plugins.display()))?;
    let tasks: Vec<(&Scenario, Verb)> = scenario::ALL
        .iter()
        .filter(|scenario| scenario.name.contains(&options.only))
        .flat_map(|scenario| options.verbs.iter().map(move |verb| (scenario, *verb)))
        .filter(|(scenario, verb)| scenario.has(*verb, &plugins))
        .collect();
    if tasks.is_empty() {
        bail!("no network contains {:?}", options.only);
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Run>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, verb)) = tasks.get(index) else { return };
                    let run = run_one(&plugins, options, scenario, *verb, seen);
                    done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, run));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, run)| run).collect()
}

fn run_one(plugins: &Path, options: &Options, scenario: &Scenario, verb: Verb, seen: Seen) -> Result<Run> {
    let mut command = Command::new("/proc/self/exe");
    command.args([WORKER, scenario.name, verb.name(), &options.fault]).arg(plugins);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start a worker")?;
    let (mut trials, mut obstacle) = (Vec::new(), None);
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        let line = line?;
        if let Some(why) = worker::obstacle(&line) {
            obstacle = Some(why);
            continue;
        }
        let trial = Trial::decode(&line)?;
        seen(options, scenario, verb, &trial);
        trials.push(trial);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} of {} could not be tried to the end: {status}", verb.name(), scenario.name);
    }
    Ok(Run { scenario: scenario.name, verb, trials, obstacle })
}

/// One line for each trial that is worth one.
fn show(options: &Options, scenario: &Scenario, verb: Verb, trial: &Trial) {
    let (word, why) = match &trial.outcome {
        Ok(_) if !options.verbose => return,
        Ok(kept) => (format!("{kept:?}").to_lowercase(), ""),
        Err(why) => ("BROKEN".to_owned(), why.as_str()),
    };
    let mut text =
        format!("{word} {} {} {}: {}\n", scenario.name, verb.name(), trial.fault.name(), trial.place);
    for line in why.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    // Without a reader there is nobody to tell.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn parse() -> Result<Option<Options>> {
    let mut options = Options {
        plugins: None,
        reference: None,
        only: String::new(),
        verbs: Verb::ALL.to_vec(),
        fault: String::new(),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        verbose: false,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("plugins") => options.plugins = Some(parser.value()?.into()),
            Long("reference") => options.reference = Some(parser.value()?.into()),
            Long("only") => options.only = parser.value()?.string()?,
            Long("fault") => options.fault = parser.value()?.string()?,
            Long("jobs") => options.jobs = parser.value()?.parse()?,
            Long("verbose") => options.verbose = true,
            Long("verb") => {
                let text = parser.value()?.string()?.to_uppercase();
                options.verbs = Verb::ALL.into_iter().filter(|verb| verb.name() == text).collect();
            }
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}
