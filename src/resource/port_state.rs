//! The wait until the bridge port carries packets, so that a pod whose ADD has ended can use its network.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::veth::wait_until_operational;
use super::{Ensured, Finding, World};
use crate::spec::{CniError, Code};

/// Longest wait. It takes the kernel some microseconds once both ends are up.
const DEADLINE: Duration = Duration::from_secs(5);

/// A bridge port that must carry packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The link on the host.
    pub link: String,
}

impl PortState {
    /// Waits until the port carries packets.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        match wait_until_operational(world.host()?, &self.link, Instant::now() + DEADLINE)? {
            Some(found) if found.operational => Ok(Ensured::Present),
            Some(_) => {
                let msg =
                    format!("bridge port {} does not come up within {} s", self.link, DEADLINE.as_secs());
                bail!(CniError::new(Code::Kernel, msg))
            }
            None => bail!(CniError::new(Code::Kernel, format!("bridge port {} has vanished", self.link))),
        }
    }

    /// Tells whether the port carries no packets.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(match world.host()?.link(&self.link)? {
            Some(found) if !found.operational => {
                vec![Finding::differs(format!("bridge port {}", self.link), "carrying packets", "not")]
            }
            // That the link is missing is the veth's finding.
            _ => Vec::new(),
        })
    }
}
