//! Forwarding of packets by the host, without which a gateway is none.

use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::sysctl;

/// Forwarding of one address family, for the whole host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Forwarding {
    fn sysctl(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4/ip_forward",
            Self::Ipv6 => "ipv6/conf/all/forwarding",
        }
    }

    /// Switches it on. For IPv6, uplinks that get their default route from router advertisements go on getting it.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        if sysctl::read(self.sysctl())? == "1" {
            return Ok(Ensured::Present);
        }
        if *self == Self::Ipv6 {
            keep_advertised_routes(world)?;
        }
        Ok(if sysctl::set(self.sysctl(), "1")? { Ensured::Created } else { Ensured::Present })
    }

    /// Tells whether it is off.
    pub fn observe(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let value = sysctl::read(self.sysctl())?;
        let object = format!("sysctl net/{}", self.sysctl());
        Ok(if value == "1" { Vec::new() } else { vec![Finding::differs(object, 1, value)] })
    }

    /// Leaves it on: by now others may rely on it, and nothing tells who they are.
    pub fn remove(&self, _: &mut World<'_>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Has the links that learnt a default route from router advertisements accept them as a router too.
///
/// The kernel takes a host that forwards for a router, whose links with `accept_ra` 1 hear no advertisements any more,
/// and it forgets at once the default routes that they have (`rt6_purge_dflt_routers`, net/ipv6/route.c): the host
/// would lose its network. With 2 they stay. Other values are somebody's decision: with 0 another program hears the
/// advertisements.
fn keep_advertised_routes(world: &mut World<'_>) -> anyhow::Result<()> {
    for index in world.host()?.advertised_default_links()? {
        let Some(link) = world.host()?.link_by_index(index)? else { continue };
        let name = format!("ipv6/conf/{}/accept_ra", link.name);
        if sysctl::read(&name)? == "1" {
            sysctl::set(&name, "2")?;
        }
    }
    Ok(())
}
