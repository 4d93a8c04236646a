//! What the host's kernel knows of a pod as a neighbour.

use std::net::IpAddr;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::neighbour;

/// The host's knowledge which MAC address has a pod's addresses. The kernel learns it by itself; DEL has it forget, so
/// that whoever gets the address next is asked for his.
///
/// It is removed before the pod's link: while the kernel frees a link, it would keep these requests waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbours {
    /// The link on which the host reaches the pod.
    pub link: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Neighbours {
    /// Nothing to do: the kernel learns by itself.
    pub fn ensure(&self, _: &mut World<'_>) -> anyhow::Result<Ensured> {
        Ok(Ensured::Created)
    }

    /// Nothing can be wrong.
    pub fn observe(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// Has the kernel forget all of them, in one batch.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let Some(link) = world.host_link(&self.link)? else { return Ok(()) };
        let requests = self.addresses.iter().map(|address| neighbour::delete(&link, *address)).collect();
        for answer in world.host()?.execute(requests)? {
            match answer {
                Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENODEV) => {}
                answer => answer?,
            }
        }
        Ok(())
    }
}
