//! What an attachment is made of: one file per resource, each with `ensure`, `observe` and `remove`.
//!
//! Nothing else in this program acts on the kernel or on the address store. A resource is a plain value: it says
//! what should exist, and it can be written into the attachment's record and read back, so that DEL and GC remove
//! what ADD made and not what somebody thinks it made.

use std::fmt;

use crate::net;

/// What `ensure` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was not there and is now; a roll-back removes it again.
    Created,
    /// It was there; a roll-back leaves it.
    Present,
}

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
            Drift::Differs { want, have } => write!(f, "{} should be {want} and is {have}", self.object),
        }
    }
}

/// What resources act on: the host's namespace, the pod's, and the tables of the host.
///
/// Sockets are opened when they are first needed: a DEL of a pod without NAT never opens nf_tables.
#[derive(Debug)]
pub struct World {
    nft: Option<net::nft::Nft>,
}

impl World {
    /// nf_tables of the host's namespace.
    pub fn nft(&mut self) -> net::Result<&mut net::nft::Nft> {
        match &mut self.nft {
            Some(nft) => Ok(nft),
            empty => Ok(empty.insert(net::nft::Nft::open()?)),
        }
    }
}
