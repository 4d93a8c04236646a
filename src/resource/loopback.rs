//! The pod's loopback interface.

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::link;

/// Name of the loopback interface in every namespace.
pub const NAME: &str = "lo";

/// The pod's loopback interface being up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loopback {}

impl Loopback {
    /// Sets it up.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let found = pod.existing_link(NAME)?;
        if found.up {
            return Ok(Ensured::Present);
        }
        pod.rtnl()?.execute_one(link::set_up(&found))?;
        Ok(Ensured::Created)
    }

    /// Tells whether it is down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let found = world.pod()?.existing_link(NAME)?;
        let object = format!("pod interface {NAME}");
        Ok(if found.up { Vec::new() } else { vec![Finding::differs(object, "up", "down")] })
    }

    /// Sets it down, as the reference does. Without the pod's namespace there is nothing to set.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if world.has_pod()? {
            let pod = world.pod()?;
            let found = pod.existing_link(NAME)?;
            pod.rtnl()?.execute_one(link::set_down(&found))?;
        }
        Ok(())
    }
}
