//! IPv6 sysctls of the pod's interface, set before it comes up.

use log::debug;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::Link;
use crate::net::{self, sysctl};

/// How the pod's kernel treats an interface that has IPv6 addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSysctls {
    /// The interface.
    pub ifname: String,
    /// Whether the kernel looks for duplicates of its IPv6 addresses (`enabledad`).
    pub detect_duplicates: bool,
}

impl PodSysctls {
    /// Sets them. They live and die with the interface.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let found = pod.existing_link(&self.ifname)?;
        pod.visit(|| self.set(&found))??;
        Ok(Ensured::Present)
    }

    fn set(&self, found: &Link) -> net::Result<()> {
        let ifname = &self.ifname;
        if self.detect_duplicates {
            optional(sysctl::set(&format!("ipv6/conf/{ifname}/enhanced_dad"), "1"));
            optional(sysctl::set(&format!("ipv6/conf/{ifname}/accept_dad"), "1"));
        } else {
            // Also for the link-local address, which the kernel adds by itself.
            optional(sysctl::set(&format!("ipv6/conf/{ifname}/accept_dad"), "0"));
        }
        // Runtimes and node settings may have switched IPv6 off for new namespaces; the pod was given an address. They
        // do so for all links of the namespace, `lo` too.
        if !found.has_ipv6 {
            for link in ["lo", ifname] {
                sysctl::set(&format!("ipv6/conf/{link}/disable_ipv6"), "0")?;
            }
        }
        optional(sysctl::set(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1"));
        // Neighbours may know the addresses from an earlier pod.
        optional(sysctl::set(&format!("ipv6/conf/{ifname}/ndisc_notify"), "1"));
        Ok(())
    }

    /// Tells whether IPv6 is switched off for the interface. The pod may change the rest.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let name = format!("ipv6/conf/{}/disable_ipv6", self.ifname);
        let value = world.pod()?.visit(|| sysctl::read(&name))?;
        Ok(match value {
            Ok(value) if value != "0" => {
                vec![Finding::differs(format!("sysctl net/{name} of the pod"), 0, value)]
            }
            _ => Vec::new(),
        })
    }
}

/// A sysctl that a kernel may lack, or a container forbid, without harm.
fn optional(outcome: net::Result<bool>) {
    if let Err(e) = outcome {
        debug!("{e}");
    }
}
