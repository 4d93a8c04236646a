//! Which sysctls the host's administrator allows: a file with a regular expression on each line.
//!
//! An expression must match the whole key, as it stands in the configuration. That of the reference may match any part,
//! so that `net.ipv4.conf.IFNAME.forwarding` allows `net.ipv4.conf.IFNAME.forwarding_and_more` as well.

use std::fs;
use std::io::ErrorKind;

use regex_lite::Regex;

use crate::spec::{CniError, Code};

/// Where it is. Where there is none, all sysctls are allowed.
const PATH: &str = "/etc/cni/tuning/allowlist.conf";

/// The lines and their expressions; `None` where there is no file.
#[derive(Debug)]
pub(super) struct Allowlist(Option<Vec<(String, Regex)>>);

impl Allowlist {
    /// Reads the file.
    ///
    /// Errors: code 7 for a line that is no regular expression; code 105 if there is a file that cannot be read: what
    /// it says is not known, and so nothing is allowed.
    pub(super) fn read() -> Result<Self, CniError> {
        match fs::read_to_string(PATH) {
            Ok(text) => Self::parse(&text).map(|lines| Self(Some(lines))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self(None)),
            Err(e) => Err(CniError::new(Code::State, format!("cannot read {PATH}: {e}"))),
        }
    }

    fn parse(text: &str) -> Result<Vec<(String, Regex)>, CniError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                // By itself first: `a)(b` is none, although it would be one between parentheses.
                Regex::new(line)
                    .and_then(|_| Regex::new(&format!("^(?:{line})$")))
                    .map(|regex| (line.to_owned(), regex))
                    .map_err(|e| CniError::config(format!("{PATH}: {line:?} is no regular expression: {e}")))
            })
            .collect()
    }

    /// The error of code 7 for the first key that is not allowed.
    pub(super) fn check<'a>(&self, mut keys: impl Iterator<Item = &'a str>) -> Result<(), CniError> {
        let Some(allowed) = &self.0 else { return Ok(()) };
        match keys.find(|key| !allowed.iter().any(|(_, regex)| regex.is_match(key))) {
            None => Ok(()),
            Some(key) => {
                let lines: Vec<String> = allowed.iter().map(|(line, _)| format!("{line:?}")).collect();
                let msg =
                    format!("sysctl: {key:?} is not allowed on this host: no line of {PATH} matches it");
                Err(CniError::config(msg).with_details(format!("allowed is {}", lines.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str, key: &str) -> bool {
        Allowlist(Some(Allowlist::parse(text).unwrap())).check([key].into_iter()).is_ok()
    }

    #[test]
    fn a_line_matches_the_whole_key() {
        let text = "\n  net.core.somaxconn  \n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\nnet.a|net.b\n";
        for key in ["net.core.somaxconn", "net.ipv4.conf.IFNAME.arp_filter", "net.a", "net.b"] {
            assert!(allows(text, key), "{key}");
        }
        for key in
            ["net.core.somaxconn2", "x.net.core.somaxconn", "net.ipv4.conf.all.arp_filter", "net.a2", ""]
        {
            assert!(!allows(text, key), "{key}");
        }
    }

    #[test]
    fn the_error_has_the_lines_as_they_were_written() {
        let list = Allowlist(Some(Allowlist::parse("net.a\n^net.b$").unwrap()));
        let error = list.check(["net.c"].into_iter()).unwrap_err();
        assert_eq!(error.details, r#"allowed is "net.a", "^net.b$""#);
    }

    #[test]
    fn an_empty_file_allows_nothing_and_no_file_everything() {
        assert!(!allows("", "net.core.somaxconn"));
        Allowlist(None).check(["net.core.somaxconn"].into_iter()).unwrap();
    }

    #[test]
    fn what_is_no_expression_is_named() {
        for line in ["net.(", "a)(b", "["] {
            let error = Allowlist::parse(line).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(line), "{error}");
        }
    }
}
