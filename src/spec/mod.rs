//! The CNI protocol as types: versions, names, configurations, results and errors.
//!
//! Pure: nothing here does I/O or knows a kernel. The rules are those of the CNI specification 1.1.0; where the
//! specification is silent, what libcni and the reference plugins do decides, because runtimes depend on it.

pub mod args;
pub mod attachment;
#[cfg(test)]
mod bad_input_tests;
pub mod config;
pub mod digest;
pub mod error;
pub mod json;
pub mod names;
pub mod prefix;
pub mod request;
pub mod result;
pub mod version;

pub use args::Args;
pub use attachment::Attachment;
pub use config::NetConf;
pub use error::{CniError, Code};
pub use prefix::Prefix;
pub use request::{Command, Request};
pub use result::CniResult;
pub use version::Version;
