//! The caller's half of the protocol: conflists, chains, the result cache, executing plugins.
//!
//! The plugins use [`invoke`] alone, for delegated IPAM. The rest is what a container runtime does with libcni, for the
//! tool; files and environment are the same as libcni's, so that both can be used on the same attachments.

pub mod invoke;
#[cfg(test)]
pub(crate) mod scratch;

pub use invoke::Invocation;
