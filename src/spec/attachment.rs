//! The key of everything: which container's which interface on which network.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An attachment of a container to a network (specification section 1: container, network, interface).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Name of the network, `name` of the configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} interface {} on network {}", self.container_id, self.ifname, self.network)
    }
}
