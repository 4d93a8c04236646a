//! What makes the pod's interface usable: its addresses, being up, its routes. One batch of requests.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netlink_sys::protocols::NETLINK_ROUTE;
use serde::{Deserialize, Serialize};

use super::world::Pod;
use super::{Ensured, Finding, World};
use crate::net::netlink::{Message, Socket};
use crate::net::rtnl::address::{self, DuplicateDetection};
use crate::net::rtnl::{self, link, route};
use crate::spec::{self, CniError, Code, Prefix};

/// Longest wait for the kernel to have looked for duplicates of IPv6 addresses.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// Multicast group of changes to IPv6 addresses (linux/rtnetlink.h).
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// Addresses and routes of a pod's interface. They go with the interface, so there is nothing to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressing {
    /// The interface.
    pub ifname: String,
    /// Its addresses with their networks' prefix lengths.
    pub addresses: Vec<Prefix>,
    /// Routes by it, next hops decided.
    pub routes: Vec<spec::result::Route>,
    /// Whether the kernel looks for duplicates of its IPv6 addresses (`enabledad`).
    pub detect_duplicates: bool,
}

impl Addressing {
    /// Adds the addresses, sets the interface up, adds the routes, in this order: routes need both.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let found = pod.target(&self.ifname)?;
        let detection = if self.detect_duplicates { DuplicateDetection::On } else { DuplicateDetection::Off };
        let mut batch: Vec<_> = self
            .addresses
            .iter()
            .map(|a| address::add(&found, a.address(), a.prefix_len(), detection))
            .collect();
        batch.push(link::set_up(&found));
        // Routes may depend on addresses that are tentative while duplicates are looked for.
        let settles = detection == DuplicateDetection::On && self.addresses.iter().any(|a| a.is_ipv6());
        let routes = self.routes.iter().map(|r| route::add(&found, &kernel_route(r)));
        if settles {
            run(pod.rtnl()?, batch)?;
            self.settle(pod, &found)?;
            run(pod.rtnl()?, routes.collect())?;
        } else {
            batch.extend(routes);
            run(pod.rtnl()?, batch)?;
        }
        Ok(Ensured::Created)
    }

    /// Waits until the kernel has looked for duplicates of all addresses.
    fn settle(&self, pod: &mut Pod, found: &link::Link) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        let mut events = pod.visit(|| Socket::open(NETLINK_ROUTE))??;
        events.join(RTNLGRP_IPV6_IFADDR)?;
        loop {
            let addresses = pod.rtnl()?.addresses(found)?;
            if let Some(duplicate) = addresses.iter().find(|a| a.duplicate) {
                let msg = format!("address {} is in use by somebody else on the network", duplicate.address);
                bail!(CniError::new(Code::Conflict, msg));
            }
            if !addresses.iter().any(|a| a.tentative) {
                return Ok(());
            }
            if events.next_events(deadline)?.is_none() {
                let seconds = SETTLE_DEADLINE.as_secs();
                let msg = format!("IPv6 addresses of {} are still tentative after {seconds} s", self.ifname);
                bail!(CniError::new(Code::Kernel, msg));
            }
        }
    }

    /// Its routes as the kernel knows them.
    pub(super) fn kernel_routes(&self) -> impl Iterator<Item = rtnl::Route> {
        self.routes.iter().map(kernel_route)
    }

    /// Tells which addresses and routes are missing, and whether the interface is down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        self.observe_with(&[], world)
    }

    /// The same with routes beside its own.
    pub(super) fn observe_with(
        &self,
        others: &[rtnl::Route],
        world: &mut World<'_>,
    ) -> anyhow::Result<Vec<Finding>> {
        let ifname = &self.ifname;
        let pod = world.pod()?;
        // That it is missing is the finding of whoever made it.
        let Some(found) = pod.rtnl()?.link(ifname)? else { return Ok(Vec::new()) };
        let mut findings = Vec::new();
        if !found.up {
            findings.push(Finding::differs(format!("pod interface {ifname}"), "up", "down"));
        }
        let addresses = pod.rtnl()?.addresses(&found)?;
        for want in &self.addresses {
            if !addresses.iter().any(|a| a.address == want.address() && a.prefix_len == want.prefix_len()) {
                findings.push(Finding::missing(format!("address {want} on pod interface {ifname}")));
            }
        }
        let wanted: Vec<_> = others.iter().cloned().chain(self.kernel_routes()).collect();
        if !wanted.is_empty() {
            let routes = pod.rtnl()?.routes(&found)?;
            for want in wanted {
                if !routes.iter().any(|have| want.is_served_by(have)) {
                    findings.push(Finding::missing(format!("route {want} by pod interface {ifname}")));
                }
            }
        }
        Ok(findings)
    }
}

/// Sends the requests that configure an interface.
pub(super) fn run(rtnl: &mut rtnl::Rtnl, batch: Vec<Message>) -> anyhow::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    for answer in rtnl.execute(batch)? {
        answer.context("configure the container's interface")?;
    }
    Ok(())
}

/// A route of a result as the kernel knows it. In which table it is, is left open where the result does not say:
/// later plugins of the chain (sbr, vrf) move routes.
fn kernel_route(route: &spec::result::Route) -> rtnl::Route {
    let dst = route.dst.network();
    rtnl::Route {
        dst: dst.address(),
        dst_len: dst.prefix_len(),
        gateway: route.gw,
        source: None,
        table: route.table,
        priority: route.priority,
        scope: route.scope,
        mtu: route.mtu,
        advmss: route.advmss,
    }
}

/// The routes of a result with their next hops decided, each once: the route's own, else the gateway of the first
/// address of its family, else none. A number of 0 is the kernel's word for none, and it tells none of it.
pub fn decide_next_hops(result: &spec::CniResult) -> Vec<spec::result::Route> {
    let gateway_for = |dst: Prefix| -> Option<IpAddr> {
        result.ips.iter().filter(|ip| ip.address.is_ipv4() == dst.is_ipv4()).find_map(|ip| ip.gateway)
    };
    let mut routes: Vec<spec::result::Route> = Vec::new();
    for route in &result.routes {
        let on_link = route.scope.is_some_and(|scope| scope >= 253);
        let gw = route.gw.or_else(|| if on_link { None } else { gateway_for(route.dst) });
        // The IPAM dhcp of the reference says so that there is none.
        let gw = gw.filter(|gw| !gw.is_unspecified());
        let given = |number: Option<u32>| number.filter(|number| *number != 0);
        // From the main table later plugins may move it, also if the result names it.
        let table = given(route.table).filter(|table| *table != route::TABLE_MAIN);
        let route = spec::result::Route {
            dst: route.dst.network(),
            gw,
            mtu: given(route.mtu),
            advmss: given(route.advmss),
            priority: given(route.priority),
            table,
            scope: route.scope,
        };
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    routes
}
