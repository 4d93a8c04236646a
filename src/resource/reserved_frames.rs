//! Frames that a bridge keeps for itself, and gives to the host past the hooks where a guard could see them.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::port;
use crate::spec::{CniError, Code};

/// A port whose frames to 01:80:c2:00:00:0X go the way of all others.
///
/// LLDP and, with STP, its frames would go around every hook of the bridge (`br_handle_frame`, net/bridge/br_input.c):
/// the host would take an IP packet in such a frame for one that came by the port, whoever it says it is from, and the
/// bridge would learn from it that another's MAC address is at this port. So a [`SpoofGuard`](super::SpoofGuard) needs
/// this. It goes with the port, so there is nothing to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedFrames {
    /// The link on the host.
    pub link: String,
}

impl ReservedFrames {
    /// Sets the port's mask.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let found = world.existing_host_link(&self.link)?;
        match world.host()?.execute_one(port::set_forwarded_groups(&found, port::ALL_BUT_PAUSE)) {
            Ok(()) => Ok(Ensured::Created),
            Err(e) if matches!(e.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => {
                let msg = "spoofGuard: this kernel's bridge ports have no group_fwd_mask (Linux 4.15 has)";
                Err(CniError::new(Code::MissingFeature, msg).with_details(e.to_string()).into())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Tells whether the port's mask is another.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        // That the link is missing is the veth's finding.
        let Some(found) = world.host_link(&self.link)? else { return Ok(Vec::new()) };
        let object = || format!("group_fwd_mask of bridge port {}", self.link);
        Ok(match world.host()?.forwarded_groups(&found)? {
            Some(port::ALL_BUT_PAUSE) => Vec::new(),
            Some(mask) => {
                let want = format!("{:#x}", port::ALL_BUT_PAUSE);
                vec![Finding::differs(object(), want, format!("{mask:#x}"))]
            }
            None => vec![Finding::missing(object())],
        })
    }
}
