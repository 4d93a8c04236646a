//! The announcement of a pod's addresses to its neighbours.

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::Mac;
use crate::net::rtnl::link;

/// A pod that tells its neighbours that it has its addresses now: by gratuitous ARP, and by unsolicited neighbour
/// advertisements. It comes last, when the bridge port carries packets.
///
/// The kernel announces addresses by itself as a link comes up, if it is told to. But the bridge port is often not ready
/// then, so it is told to only here: it does it again when a link is given a MAC address, even the one that it has
/// (`NETDEV_CHANGEADDR`; net/ipv4/devinet.c, net/ipv6/ndisc.c). That costs less than a socket of `AF_PACKET`, whose
/// closing waits for RCU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The pod's interface.
    pub ifname: String,
    /// The MAC address that it has.
    pub mac: Mac,
}

impl Announcement {
    /// Announces.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        for answer in world.pod()?.rtnl()?.execute(link::announce(&self.ifname, self.mac))? {
            answer?;
        }
        Ok(Ensured::Present)
    }

    /// Nothing is left of it that could be otherwise.
    pub fn observe(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}
