//! The kernel: namespaces, netlink, nf_tables, iptables, sysctl. Knows nothing of CNI.

pub mod error;
pub mod netlink;
pub mod nft;

pub use error::{Error, Result};
