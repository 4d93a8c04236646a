//! `CNI_ARGS`: pairs `KEY=VALUE` separated by semicolons.

use super::{CniError, Code};

/// The keys that CONVENTIONS.md of the CNI project defines. All plugins of this suite know all of them: one that is
/// meant for the IPAM is no reason for the plugin before it to refuse the call, nor the other way round.
pub const CONVENTIONAL: [&str; 3] = ["IP", "GATEWAY", "MAC"];

/// The pairs of `CNI_ARGS`, checked against the keys that a plugin knows.
///
/// Read as libcni's `types.LoadArgs` reads them: keys are case sensitive; an unknown key is an error unless
/// `IgnoreUnknown` is `1` or `true`, so that a misspelt key is not silently lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pairs: Vec<(String, String)>,
    ignore_unknown: bool,
}

impl Args {
    /// Splits the text of the variable. Whether its keys are known is asked later, by [`Args::check_known`].
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let invalid = |msg: String| CniError::new(Code::InvalidEnvironment, msg);
        let mut args = Self::default();
        for pair in text.split(';').filter(|p| !p.is_empty()) {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') || value.starts_with('{') => (key, value),
                _ => return Err(invalid(format!("CNI_ARGS: invalid pair {pair:?}: want KEY=VALUE"))),
            };
            if key == "IgnoreUnknown" {
                args.ignore_unknown = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => {
                        let msg = format!("CNI_ARGS: IgnoreUnknown={value:?} is neither true nor false");
                        return Err(invalid(msg));
                    }
                };
            } else {
                args.pairs.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(args)
    }

    /// The value of a key; the last one counts. An empty value counts as none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// An error of code 4 naming the keys that are not among `known`, unless the caller said `IgnoreUnknown`.
    pub fn check_known(&self, known: &[&str]) -> Result<(), CniError> {
        if self.ignore_unknown {
            return Ok(());
        }
        let unknown: Vec<&str> =
            self.pairs.iter().map(|(k, _)| k.as_str()).filter(|k| !known.contains(k)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(CniError::new(
            Code::InvalidEnvironment,
            format!("CNI_ARGS: unknown keys [{}]; known here are [{}]", unknown.join(" "), known.join(" ")),
        )
        .with_details("IgnoreUnknown=1 in CNI_ARGS makes a plugin pass over keys that it does not know"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read() {
        let args = Args::parse("IgnoreUnknown=1;IP=10.0.0.5;K8S_POD_NAME=x").unwrap();
        assert_eq!(args.get("IP"), Some("10.0.0.5"));
        assert_eq!(args.get("ip"), None);
        args.check_known(&["IP"]).unwrap();
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = Args::parse("IP=10.0.0.5;FOO=1").unwrap().check_known(&["IP"]).unwrap_err();
        assert_eq!(error.code, 4);
        assert!(error.msg.contains("[FOO]"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["IP", "IP=1=2", "IgnoreUnknown=perhaps"] {
            assert!(Args::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }
}
