//! What the host's kernel remembers of a pod's connections.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};

/// The host's memory of the flows of a pod's addresses. The kernel fills it by itself where it tracks connections, as
/// for NAT; DEL has it forget, so that no packet to or from whoever gets an address next is taken for one of the old
/// pod's, and translated like it.
///
/// It is removed after the pod's link, when no packet can fill it any more, and when the caller has its answer: a walk
/// through a large table takes longer than all else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Connections {
    /// Nothing to do: the kernel tracks by itself.
    pub fn ensure(&self, _: &mut World<'_>) -> anyhow::Result<Ensured> {
        Ok(Ensured::Created)
    }

    /// Nothing can be wrong.
    pub fn observe(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// Has the kernel forget all of them.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        world.forget_connections_later(&self.addresses);
        Ok(())
    }
}
