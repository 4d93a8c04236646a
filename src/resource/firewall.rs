//! What lets packets of pods through the host, and what keeps them from other pods.

pub mod admission;
pub mod fence;
pub mod isolation;
pub mod obstacle;
pub mod passage;
mod places;
pub mod zone_source;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::net::iptables::{Protocol, Variant, installed};

pub use admission::Admission;
pub use fence::Fence;
pub use isolation::Isolation;
pub use obstacle::{Obstacle, obstacles};
pub use passage::Passage;
pub use zone_source::ZoneSource;

/// Where the rules are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The `filter` tables of iptables, with chains named and commented as the reference plugins do.
    Iptables,
    /// A table of our own in nf_tables, in which a pod is an element of a set.
    Nftables,
    /// A zone of firewalld, which has the pods' addresses as sources.
    Firewalld,
}

/// From where a pod can be reached: `ingressPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// From everywhere.
    Open,
    /// Of the pods of networks that have a policy, from those on its own bridge.
    SameBridge,
    /// Of the pods of networks that have a policy, from none.
    Isolated,
}

impl Policy {
    /// As it is configured.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}

/// The addresses of a protocol.
fn of_protocol(addresses: &[IpAddr], protocol: Protocol) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| address.is_ipv4() == (protocol == Protocol::Ipv4))
}

/// The variant to write to: that of the system's command. Without one, nobody will look with it either.
fn variant(protocol: Protocol) -> Variant {
    installed(protocol).unwrap_or(Variant::Nft)
}

/// Both, since which one the command stands for may have been changed since something was written.
const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];
