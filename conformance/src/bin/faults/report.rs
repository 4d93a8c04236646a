//! The account.

use std::fmt::Write;

use crate::fault::Fault;
use crate::verdict::{Kept, Verb};
use crate::worker::Trial;

/// The trials of one verb on one network.
pub(crate) struct Run {
    /// Name of the network.
    pub(crate) scenario: &'static str,
    /// The verb.
    pub(crate) verb: Verb,
    /// What was tried, in order.
    pub(crate) trials: Vec<Trial>,
    /// Why nothing was tried.
    pub(crate) obstacle: Option<String>,
}

impl Run {
    /// How many trials showed a fault of the plugin.
    pub(crate) fn broken(&self) -> usize {
        self.trials.iter().filter(|trial| trial.outcome.is_err()).count()
    }
}

/// A table of counts.
pub(crate) fn table(title: &str, runs: &[Run]) -> String {
    let mut text = format!("\n{title}\n");
    let head = ["points", "missed", "tolerated", "refused", "recovered", "broken"];
    let _ = write!(text, "{:<17} {:<7} {:<20}", "network", "verb", "fault");
    for column in head {
        let _ = write!(text, " {column:>9}");
    }
    text.push('\n');
    let mut sums = [0; 6];
    for run in runs {
        if let Some(why) = &run.obstacle {
            let _ = writeln!(text, "{:<17} {:<7} not tried: {why}", run.scenario, run.verb.name());
        }
        for fault in Fault::ALL {
            let trials: Vec<&Trial> = run.trials.iter().filter(|trial| trial.fault == fault).collect();
            let count = |kept: Kept| trials.iter().filter(|trial| trial.outcome == Ok(kept)).count();
            let broken = trials.iter().filter(|trial| trial.outcome.is_err()).count();
            if trials.is_empty() {
                continue;
            }
            let [missed, tolerated, refused, recovered] =
                [Kept::Missed, Kept::Tolerated, Kept::Refused, Kept::Recovered].map(count);
            let row = [trials.len(), missed, tolerated, refused, recovered, broken];
            line(&mut text, run.scenario, run.verb.name(), fault.name(), row);
            for (sum, one) in sums.iter_mut().zip(row) {
                *sum += one;
            }
        }
    }
    line(&mut text, "all", "", "", sums);
    text
}

fn line(text: &mut String, network: &str, verb: &str, fault: &str, row: [usize; 6]) {
    let _ = write!(text, "{network:<17} {verb:<7} {fault:<20}");
    for number in row {
        let _ = write!(text, " {number:>9}");
    }
    text.push('\n');
}
