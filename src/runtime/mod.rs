//! The caller's half of the protocol: conflists, chains, the result cache, executing plugins.
//!
//! Plugins use [`invoke`] alone, for delegated IPAM. The rest is what a container runtime does with libcni, for the
//! tool; files and environment are the same as libcni's, so that both can be used on the same attachments.

#[cfg(test)]
mod bad_input_tests;
mod base64;
mod bounded_read;
pub mod cache;
pub mod chain;
pub mod conflist;
pub mod invoke;
pub mod parameters;
#[cfg(test)]
pub(crate) mod recorder;
#[cfg(test)]
pub(crate) mod scratch;

pub use cache::ResultCache;
pub use chain::{Chain, Failure};
pub use conflist::NetworkList;
pub use invoke::Invocation;
pub use parameters::Parameters;
