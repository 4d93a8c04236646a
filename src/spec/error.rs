//! The CNI error object and its codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Error codes. 1 to 99 belong to the specification (section 5, "Error"); 100 and up are this suite's own and are
/// listed in README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's CNI version is not supported, or does not have the verb.
    IncompatibleVersion = 1,
    /// A field of the configuration asks for something that this plugin does not do.
    UnsupportedField = 2,
    /// A necessary environment variable is missing or invalid.
    InvalidEnvironment = 4,
    /// Input could not be read or output not written.
    Io = 5,
    /// The configuration is not what it should be as JSON.
    Decoding = 6,
    /// The network configuration is invalid.
    InvalidConfig = 7,
    /// The network namespace is not one a container can have (the plugin's own, or none at all).
    InvalidNetns = 8,
    /// A passing state: the caller should try again later.
    TryAgainLater = 11,
    /// STATUS: an ADD could not be served now.
    Unavailable = 50,
    /// STATUS: an ADD could not be served now, and running containers may suffer.
    Degraded = 51,
    /// The kernel refused a change.
    Kernel = 100,
    /// No address is left, or the one that was asked for cannot be had.
    Exhausted = 101,
    /// Something that is in the way: a link of that name, another address on the bridge.
    Conflict = 102,
    /// CHECK found differences.
    Drift = 103,
    /// The kernel lacks a feature that the configuration needs.
    MissingFeature = 104,
    /// A file of the address store or of the records could not be read or written.
    State = 105,
    /// Another program (a delegated plugin, iptables-restore) could not be run or gave no usable answer.
    Delegate = 106,
    /// A fault in this program.
    Internal = 109,
}

/// An error as a plugin reports it on stdout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// Version of the configuration, where it was understood.
    #[serde(rename = "cniVersion", default, skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// See [`Code`]; a number, since the errors of other plugins are passed on unchanged.
    pub code: u32,
    /// One sentence for people.
    pub msg: String,
    /// What more there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error with a message and no details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { cni_version: None, code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error with others in its details, such as what went wrong while undoing what led to it. Code and
    /// message stay.
    pub fn also<'a>(mut self, others: impl IntoIterator<Item = &'a str>) -> Self {
        for other in others {
            let semicolon = if self.details.is_empty() { "" } else { "; " };
            self.details = format!("{}{semicolon}{other}", self.details);
        }
        self
    }

    /// What an error of any kind is to the caller: the object in it, or else one with its whole chain of causes.
    ///
    /// Context that was added on the way comes first in the message; the object's code and details stay.
    pub fn from_chain(error: &anyhow::Error, otherwise: Code) -> Self {
        let Some(inner) = error.downcast_ref::<Self>() else {
            return Self::new(otherwise, format!("{error:#}"));
        };
        let mut outer: Vec<String> = error.chain().map(ToString::to_string).collect();
        // The object prints with its details, which are kept apart here.
        let position = outer.iter().position(|text| *text == inner.to_string()).unwrap_or_default();
        outer.truncate(position);
        outer.push(inner.msg.clone());
        Self { msg: outer.join(": "), ..inner.clone() }
    }

    /// An error of [`Code::InvalidConfig`].
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, msg)
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for CniError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_fields_of_the_specification() {
        let error = CniError::config("bad").with_details("why");
        assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"code":7,"msg":"bad","details":"why"}"#);
    }

    #[test]
    fn others_are_added_to_the_details() {
        let error = CniError::config("bad").also(["worse"]).also(["and", "worse"]);
        assert_eq!((error.code, error.msg.as_str(), error.details.as_str()), (7, "bad", "worse; and; worse"));
    }

    #[test]
    fn a_foreign_error_keeps_its_code() {
        let error: CniError =
            serde_json::from_str(r#"{"cniVersion":"1.0.0","code":123,"msg":"no"}"#).unwrap();
        assert_eq!((error.code, error.details.as_str()), (123, ""));
    }
}
