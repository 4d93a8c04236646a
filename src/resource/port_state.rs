//! The wait until the bridge port carries packets and the pod takes them, so that a pod whose ADD has ended can use its
//! network.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::bail;
use netlink_sys::protocols::NETLINK_ROUTE;
use serde::{Deserialize, Serialize};

use super::veth::wait_until_operational;
use super::world::Pod;
use super::{Ensured, Finding, World};
use crate::net::netlink::Socket;
use crate::spec::{CniError, Code};

/// Longest wait. It takes the kernel some microseconds once both ends are up.
const DEADLINE: Duration = Duration::from_secs(5);

/// Multicast group of changes to IPv6 routes (linux/rtnetlink.h).
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// A bridge port that must carry packets, to a pod that has addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The link on the host.
    pub link: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl PortState {
    /// Waits until the port carries packets, and until the pod's kernel is done with its IPv6 addresses: it adds them,
    /// joins their solicited-node groups, and so answers for them, some time after the request is acknowledged
    /// (`addrconf_dad_work`, net/ipv6/addrconf.c).
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let deadline = Instant::now() + DEADLINE;
        match wait_until_operational(world.host()?, &self.link, deadline)? {
            Some(found) if found.operational => {}
            Some(_) => {
                let msg = format!("link {} does not come up within {} s", self.link, DEADLINE.as_secs());
                bail!(CniError::new(Code::Kernel, msg))
            }
            None => bail!(CniError::new(Code::Kernel, format!("link {} has vanished", self.link))),
        }
        for address in &self.addresses {
            if let IpAddr::V6(address) = address
                && !wait_until_delivered(world.pod()?, *address, deadline)?
            {
                let seconds = DEADLINE.as_secs();
                let msg = format!("the pod takes no packets for its address {address} within {seconds} s");
                bail!(CniError::new(Code::Kernel, msg));
            }
        }
        Ok(Ensured::Present)
    }

    /// Tells whether the port carries no packets.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        Ok(match world.host()?.link(&self.link)? {
            Some(found) if !found.operational => {
                vec![Finding::differs(format!("host link {}", self.link), "carrying packets", "not")]
            }
            // That the link is missing is the veth's finding.
            _ => Vec::new(),
        })
    }
}

/// Tells whether the pod has come to take packets for an address, waiting for it until the deadline.
fn wait_until_delivered(pod: &mut Pod, address: Ipv6Addr, deadline: Instant) -> anyhow::Result<bool> {
    if pod.rtnl()?.is_delivered_here(address)? {
        return Ok(true);
    }
    let mut events = pod.visit(|| Socket::open(NETLINK_ROUTE))??;
    events.join(RTNLGRP_IPV6_ROUTE)?;
    loop {
        // Looked at again after each event, and once after the group was joined: it may have changed in between.
        if pod.rtnl()?.is_delivered_here(address)? {
            return Ok(true);
        }
        if events.next_events(deadline)?.is_none() {
            return Ok(false);
        }
    }
}
