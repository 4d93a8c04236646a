//! `conformance --plugins DIR`: judges any directory of CNI plugin executables from outside.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use conformance::case::Case;
use conformance::runner::{self, Judged, Pace, Verdict};
use conformance::{cases, exec, report};
use lexopt::prelude::*;

const USAGE: &str = "\
usage: conformance --plugins DIR [--filter TEXT] [--jobs N] [--patience SECONDS] [--compare DIR]
       conformance --list [--filter TEXT]

Runs CNI plugins in network namespaces of its own and says what they do wrong. Needs root.

  --plugins DIR   the directory to judge
  --filter TEXT   only cases whose group/name contains TEXT
  --jobs N        cases at a time; the number of processors if not given
  --patience SECONDS
                  after which a case has failed, 120 if not given; a program of a case after a sixth of that
  --compare DIR   also runs the cases on DIR and lists what fails there, which does not change the exit status
  --list          prints the names of the cases
";

/// How long a case may take. The slowest take half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

struct Options {
    plugins: Option<PathBuf>,
    compare: Option<PathBuf>,
    filter: String,
    pace: Pace,
    list: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            // Without a reader there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == runner::SINGLE) {
        let title = arguments.next().context("which case?")?;
        let plugins = arguments.next().context("which directory?")?;
        let deadline = arguments.next().context("how long?")?.string()?.parse()?;
        exec::allow(Duration::from_secs(deadline));
        let case = cases::all().into_iter().find(|case| *case.title() == *title).context("no such case")?;
        let status = runner::run_single(&case, PathBuf::from(plugins))?;
        return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
    }
    let Some(options) = parse()? else {
        write!(std::io::stdout(), "{USAGE}")?;
        return Ok(ExitCode::SUCCESS);
    };
    let selected: Vec<Case> =
        cases::all().into_iter().filter(|case| case.title().contains(&options.filter)).collect();
    if options.list {
        for case in &selected {
            writeln!(std::io::stdout(), "{}", case.title())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(plugins) = options.plugins else { bail!("--plugins DIR is missing\n{USAGE}") };
    if selected.is_empty() {
        bail!("no case contains {:?}", options.filter);
    }
    if !plugins.is_dir() {
        bail!("{} is not a directory", plugins.display());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces and plugins need root");
    }
    let judged = runner::run(&selected, &plugins, options.pace, show);
    if let Some(other) = options.compare {
        let compared = runner::run(&selected, &other, options.pace, |_| ());
        write!(std::io::stdout(), "{}", report::comparison(&other.to_string_lossy(), &compared))?;
    }
    write!(std::io::stdout(), "{}", report::summary(&judged))?;
    let failed = judged.iter().any(|one| matches!(one.verdict, Verdict::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One line for each case as it ends; a failure with all that is known of it.
fn show(one: &Judged) {
    let (word, text) = match &one.verdict {
        Verdict::Passed => ("passed ", ""),
        Verdict::Failed(why) => ("FAILED ", why.as_str()),
        Verdict::Skipped(_) => ("skipped", ""),
    };
    let mut line = format!("{word} {} ({} ms)\n", one.case.title(), one.took.as_millis());
    for detail in text.lines() {
        line.push_str(&format!("    {detail}\n"));
    }
    // Without a reader there is nobody to tell.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

fn parse() -> Result<Option<Options>> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let pace = Pace { jobs, patience: PATIENCE };
    let mut options = Options { plugins: None, compare: None, filter: String::new(), pace, list: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("plugins") => options.plugins = Some(parser.value()?.into()),
            Long("compare") => options.compare = Some(parser.value()?.into()),
            Long("filter") => options.filter = parser.value()?.string()?,
            Long("jobs") => options.pace.jobs = parser.value()?.parse()?,
            Long("patience") => options.pace.patience = Duration::from_secs(parser.value()?.parse()?),
            Long("list") => options.list = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}
