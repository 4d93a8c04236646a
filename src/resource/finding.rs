//! What CHECK and restore find, and the sentences for it.

use std::fmt;

/// A difference between what should be and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object, e.g. `link veth0a1b2c3d`, `MTU of link veth0a1b2c3d`.
    pub object: String,
    /// What is wrong with it.
    pub drift: Drift,
}

/// How an object is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// It is not there.
    Missing,
    /// It is shared by attachments, and is not as this program makes it.
    Spoiled,
    /// Somebody else looked and says so, in a sentence that names the object.
    Told,
    /// It is otherwise.
    Differs {
        /// What it should be.
        want: String,
        /// What it is.
        have: String,
    },
}

impl Finding {
    /// An object that is not there.
    pub fn missing(object: impl Into<String>) -> Self {
        Self { object: object.into(), drift: Drift::Missing }
    }

    /// An object that all attachments share, and that somebody changed.
    pub fn spoiled(object: impl Into<String>) -> Self {
        Self { object: object.into(), drift: Drift::Spoiled }
    }

    /// Whether it says that somebody else has what the attachment should have.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.drift, Drift::Differs { .. } | Drift::Told)
    }

    /// What somebody else found, in his words.
    pub fn told(sentence: String) -> Self {
        Self { object: sentence, drift: Drift::Told }
    }

    /// An object that is otherwise than it should be.
    pub fn differs(object: impl Into<String>, want: impl fmt::Display, have: impl fmt::Display) -> Self {
        let drift = Drift::Differs { want: want.to_string(), have: have.to_string() };
        Self { object: object.into(), drift }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.drift {
            Drift::Missing => write!(f, "{} is missing", self.object),
            Drift::Spoiled => write!(f, "{} was changed by somebody", self.object),
            Drift::Told => f.write_str(&self.object),
            Drift::Differs { want, have } => write!(f, "{} should be {want} and is {have}", self.object),
        }
    }
}
