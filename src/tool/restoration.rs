//! What `bridgehead restore` says.

use crate::plan::restore::Outcome;
use crate::resource::{Finding, Restored};

/// How much is said of what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// `masquerade`
    InAWord,
    /// Each rule, element and sysctl.
    EachObject,
}

/// An account of what was put back.
#[derive(Debug)]
pub(super) struct Restoration {
    detail: Detail,
    attachments: usize,
    restored: usize,
    failed: usize,
}

impl Restoration {
    /// An account of nothing yet.
    pub(super) fn new(detail: Detail) -> Self {
        Self { detail, attachments: 0, restored: 0, failed: 0 }
    }

    /// The lines about an attachment: what was put back, and what could not be. None where nothing was lost.
    pub(super) fn tell(&mut self, outcome: &Outcome) -> (Option<String>, Vec<String>) {
        let attachment = &outcome.attachment;
        let name = format!("{}/{}/{}", attachment.network, attachment.container_id, attachment.ifname);
        self.attachments += 1;
        self.failed += usize::from(!outcome.errors.is_empty());
        let failed = outcome.errors.iter().map(|error| format!("{name}: {error:#}")).collect();
        if outcome.restored.is_empty() {
            return (None, failed);
        }
        self.restored += 1;
        let words: Vec<String> = outcome.restored.iter().map(|it| self.describe(it)).collect();
        (Some(format!("{name}: put back {}\n", words.join(", "))), failed)
    }

    fn describe(&self, restored: &Restored) -> String {
        match self.detail {
            Detail::InAWord => restored.what.to_owned(),
            Detail::EachObject => {
                let lost: Vec<String> = restored.lost.iter().map(Finding::to_string).collect();
                format!("{} ({})", restored.what, lost.join("; "))
            }
        }
    }

    /// The last line.
    pub(super) fn summary(&self) -> String {
        let count = |number: usize| match number {
            1 => "1 attachment".to_owned(),
            number => format!("{number} attachments"),
        };
        let failed = match self.failed {
            0 => String::new(),
            number => format!("; {} could not be restored as a whole", count(number)),
        };
        match (self.attachments, self.restored) {
            (0, _) => "there is no attachment that could have lost anything\n".to_owned(),
            (all, 0) => format!("nothing was missing: {}{failed}\n", count(all)),
            (all, restored) => format!("restored {restored} of {}{failed}\n", count(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Attachment;

    fn outcome(lost: &[&'static str], errors: &[&'static str]) -> Outcome {
        Outcome {
            attachment: Attachment { network: "n".into(), container_id: "c".into(), ifname: "eth0".into() },
            restored: lost
                .iter()
                .map(|what| Restored { what, lost: vec![Finding::missing(format!("rule of {what}"))] })
                .collect(),
            errors: errors.iter().map(|text| anyhow::anyhow!(*text)).collect(),
        }
    }

    #[test]
    fn a_line_for_each_that_lost_something_and_one_for_all() {
        let mut terse = Restoration::new(Detail::InAWord);
        assert_eq!(terse.summary(), "there is no attachment that could have lost anything\n");
        assert_eq!(terse.tell(&outcome(&[], &[])), (None, vec![]));
        assert_eq!(terse.summary(), "nothing was missing: 1 attachment\n");
        let lost = outcome(&["masquerade", "forwarding"], &[]);
        assert_eq!(terse.tell(&lost).0.unwrap(), "n/c/eth0: put back masquerade, forwarding\n");
        assert_eq!(terse.summary(), "restored 1 of 2 attachments\n");
        let (done, failed) = terse.tell(&outcome(&["masquerade"], &["no"]));
        assert_eq!((done.is_some(), failed), (true, vec!["n/c/eth0: no".to_owned()]));
        assert_eq!(
            terse.summary(),
            "restored 2 of 3 attachments; 1 attachment could not be restored as a whole\n"
        );
        assert_eq!(
            Restoration::new(Detail::EachObject).tell(&lost).0.unwrap(),
            "n/c/eth0: put back masquerade (rule of masquerade is missing), forwarding (rule of forwarding is \
             missing)\n"
        );
    }
}
