//! A process that goes through all points of one verb on one network. Each trial has a host of its own.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use conformance::apart::apart;
use conformance::sandbox::Sandbox;
use serde_json::{Value, json};

use crate::fault::{Fault, Injection};
use crate::point::Point;
use crate::scenario::Scenario;
use crate::verdict::{Baseline, Kept, Verb, judge, learn};

/// How often a trial is repeated that did not come to its point.
const TRIES: usize = 4;

/// The account of one trial.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// What was done.
    pub(crate) fault: Fault,
    /// Where, with what was injected.
    pub(crate) place: String,
    /// How the plugin took it; an error says what is wrong.
    pub(crate) outcome: Result<Kept, String>,
}

impl Trial {
    fn encode(&self) -> String {
        let (kept, why) = match &self.outcome {
            Ok(kept) => (kept_name(*kept), ""),
            Err(why) => ("broken", why.as_str()),
        };
        json!([self.fault.name(), self.place, kept, why]).to_string()
    }

    /// From a line that a worker printed.
    pub(crate) fn decode(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let text = |i: usize| value[i].as_str().with_context(|| format!("no trial: {line}"));
        let fault = Fault::by_name(text(0)?).with_context(|| format!("no fault: {line}"))?;
        let outcome = kept_by_name(text(2)?).ok_or(text(3)?.to_owned());
        Ok(Self { fault, place: text(1)?.to_owned(), outcome })
    }
}

/// The key under which a worker says why it tries nothing.
const OBSTACLE: &str = "obstacle";

/// What a worker says why it tries nothing, if it does so in this line.
pub(crate) fn obstacle(line: &str) -> Option<String> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get(OBSTACLE)?.as_str().map(str::to_owned)
}

const KEPT: [(Kept, &str); 4] = [
    (Kept::Tolerated, "tolerated"),
    (Kept::Refused, "refused"),
    (Kept::Recovered, "recovered"),
    (Kept::Missed, "missed"),
];

fn kept_name(kept: Kept) -> &'static str {
    KEPT.iter().find(|(known, _)| *known == kept).map_or("", |(_, name)| name)
}

fn kept_by_name(name: &str) -> Option<Kept> {
    KEPT.iter().find(|(_, known)| *known == name).map(|(kept, _)| *kept)
}

/// The whole life of a worker. It prints a line for each trial.
pub(crate) fn run(scenario: &Scenario, verb: Verb, faults: &[Fault], plugins: &Path) -> Result<()> {
    apart(|| {
        let host = Sandbox::enter(plugins)?;
        if let Some(obstacle) = scenario.obstacle(&host) {
            writeln!(std::io::stdout(), "{}", json!({OBSTACLE: obstacle}))?;
            return Ok(String::new());
        }
        let baseline = learn(&host, scenario, verb)
            .map_err(|error| error.context(format!("{}\n", host.transcript())))?;
        for &fault in faults {
            for point in &baseline.points {
                let Some(injection) = fault.injection(point) else { continue };
                let trial = attempt(scenario, verb, (fault, point, injection), &baseline, plugins);
                writeln!(std::io::stdout(), "{}", trial.encode())?;
            }
        }
        Ok(String::new())
    })?;
    Ok(())
}

fn attempt(
    scenario: &Scenario,
    verb: Verb,
    what: (Fault, &Point, Injection),
    baseline: &Baseline,
    plugins: &Path,
) -> Trial {
    let (fault, point, injection) = what;
    let once = || {
        apart(|| {
            let host = Sandbox::enter(plugins)?;
            let kept = judge(&host, scenario, verb, what, baseline)?;
            Ok(kept_name(kept).to_owned())
        })
    };
    // How many events the kernel puts into one answer is chance, and so is whether a run comes by a point again.
    let mut outcomes = (0..TRIES).map(|_| once());
    let missed =
        |outcome: &Result<String>| outcome.as_ref().is_ok_and(|name| name == kept_name(Kept::Missed));
    let outcome = outcomes.find(|outcome| !missed(outcome)).unwrap_or(Ok(kept_name(Kept::Missed).to_owned()));
    let outcome = match outcome {
        Ok(name) => kept_by_name(&name).ok_or(format!("the trial said {name:?}")),
        Err(error) => Err(format!("{error:#}")),
    };
    Trial { fault, place: format!("{injection} at {point}"), outcome }
}
