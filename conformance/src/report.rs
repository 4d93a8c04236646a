//! The account at the end.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::runner::{Judged, Verdict};

/// The first line of a failure: its reason.
pub fn reason(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What was skipped and why, how each group fared, and the closing line `N passed, N failed, N skipped`.
pub fn summary(judged: &[Judged]) -> String {
    let mut text = String::new();
    let mut groups: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut total = [0; 3];
    for one in judged {
        let column = match &one.verdict {
            Verdict::Passed => 0,
            Verdict::Failed(_) => 1,
            Verdict::Skipped(why) => {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "skipped {}: {why}", one.case.title());
                2
            }
        };
        groups.entry(one.case.group).or_default()[column] += 1;
        total[column] += 1;
    }
    let width = groups.keys().map(|group| group.len()).max().unwrap_or(0);
    for (group, [passed, failed, skipped]) in groups {
        let _ = writeln!(text, "{group:width$}  {passed:3} passed {failed:3} failed {skipped:3} skipped");
    }
    let [passed, failed, skipped] = total;
    let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
    text
}

/// The failures on a second directory, by name with the reason in one line.
pub fn comparison(directory: &str, judged: &[Judged]) -> String {
    let mut text = String::new();
    let mut failures = 0;
    let mut passes = 0;
    for one in judged {
        match &one.verdict {
            Verdict::Failed(why) => {
                failures += 1;
                let _ = writeln!(text, "  {}: {}", one.case.title(), reason(why));
            }
            Verdict::Passed => passes += 1,
            Verdict::Skipped(_) => {}
        }
    }
    format!("for comparison, {directory} passes {passes} and fails {failures}:\n{text}")
}
