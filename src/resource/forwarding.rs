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

    /// Switches it on.
    pub fn ensure(&self, _: &mut World<'_>) -> anyhow::Result<Ensured> {
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
