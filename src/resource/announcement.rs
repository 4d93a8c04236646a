//! The announcement of a pod's addresses to its neighbours.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::{Frame, Mac};

/// A pod that tells its neighbours that it has its addresses now: by gratuitous ARP, and by unsolicited neighbour
/// advertisements. It comes last, when the bridge port carries packets.
///
/// A bridge carries it to every pod, and all of them hear it before the sender is done; so that an ADD does not take the
/// longer the more pods there are, it is sent when the caller has its answer. The kernel could announce by itself as a
/// link comes up, but the bridge port is often not ready then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The pod's interface.
    pub ifname: String,
    /// The MAC address that it has.
    pub mac: Mac,
    /// The addresses; not those that the kernel has yet to look for duplicates of, which it announces by itself.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl Announcement {
    /// Has the addresses announced at the end of the call, if it succeeds.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let link = world.pod()?.target(&self.ifname)?.index;
        let frames = self.addresses.iter().map(|address| Frame::announcement(self.mac, *address)).collect();
        world.announce_later(link, frames);
        Ok(Ensured::Present)
    }

    /// Nothing is left of it that could be otherwise.
    pub fn observe(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}
