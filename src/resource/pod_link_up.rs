//! The pod's interface, up before it has an address: for an IPAM that asks for one over it.

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::link;

/// An interface of the pod that must be up. It goes with whatever makes the link, so there is nothing to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLinkUp {
    /// The interface.
    pub ifname: String,
}

impl PodLinkUp {
    /// Sets the interface up.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let found = pod.existing_link(&self.ifname)?;
        pod.rtnl()?.execute_one(link::set_up(&found))?;
        Ok(Ensured::Present)
    }

    /// Tells whether it is down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let ifname = &self.ifname;
        Ok(match world.pod()?.rtnl()?.link(ifname)? {
            Some(found) if !found.up => {
                vec![Finding::differs(format!("pod interface {ifname}"), "up", "down")]
            }
            // That it is missing is the finding of whoever made it.
            _ => Vec::new(),
        })
    }
}
