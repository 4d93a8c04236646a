//! The host's end of a link that has only a pod at its other end.

use std::net::IpAddr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::address::{self, DuplicateDetection};
use crate::net::rtnl::route::{self, SCOPE_HOST};
use crate::net::rtnl::{Link, Route};
use crate::net::sysctl;
use crate::spec::Prefix;

/// The gateways' addresses on a link of the host, and its routes to the pod's addresses by it. They go with the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoutes {
    /// The link.
    pub link: String,
    /// What the pod has as its gateways; other links of the host may have the same.
    pub gateways: Vec<IpAddr>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl PodRoutes {
    /// Adds the addresses and the routes. A route that another link has to the same address stays, behind this one.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            // Before the pod's end comes up: the host asks for pods by its link-local address, and would stay silent for as
            // long as it looked for duplicates of it.
            let _ = sysctl::set(&format!("ipv6/conf/{}/accept_dad", self.link), "0");
        }
        world.forget_host_link(&self.link);
        let found = world.existing_host_link(&self.link)?;
        let addresses = self.gateways.iter().map(|gateway| {
            let len = Prefix::host(*gateway).prefix_len();
            address::add(&found, *gateway, len, DuplicateDetection::Off)
        });
        let batch = addresses.chain(self.routes().map(|it| route::add(&found, &it))).collect();
        for answer in world.host()?.execute(batch)? {
            answer.with_context(|| format!("configure host link {}", self.link))?;
        }
        Ok(Ensured::Created)
    }

    /// Tells which of them are missing.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        // That it is missing is the finding of whoever made it.
        let Some(found) = world.host_link(&self.link)? else { return Ok(Vec::new()) };
        let mut findings = self.missing_gateways(&found, world)?;
        let routes = world.host()?.routes(&found)?;
        for want in self.routes().filter(|want| !routes.iter().any(|have| want.is_served_by(have))) {
            findings.push(Finding::missing(format!("route {want} by host link {}", self.link)));
        }
        Ok(findings)
    }

    fn missing_gateways(&self, found: &Link, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let addresses = world.host()?.addresses(found)?;
        let is_missing = |gateway: &&IpAddr| !addresses.iter().any(|a| a.address == **gateway);
        let finding = |gateway| {
            Finding::missing(format!("gateway address {} on host link {}", Prefix::host(gateway), self.link))
        };
        Ok(self.gateways.iter().filter(is_missing).copied().map(finding).collect())
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        self.addresses.iter().map(|address| Route {
            dst: *address,
            dst_len: Prefix::host(*address).prefix_len(),
            gateway: None,
            source: None,
            table: None,
            priority: None,
            // The reference's choice; with it there can be no next hop behind the pod.
            scope: Some(SCOPE_HOST),
            mtu: None,
            advmss: None,
        })
    }
}
