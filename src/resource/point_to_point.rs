//! What makes the pod's interface usable on a link that has only the host at its other end.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::addressing::{Addressing, run};
use super::{Ensured, Finding, World};
use crate::net::rtnl::route::SCOPE_LINK;
use crate::net::rtnl::{Route, address, link, route};
use crate::spec::Prefix;

/// Addresses and routes of an interface behind which there is nobody but the host, so that even those of the same subnet
/// are reached by the gateway. They go with the interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointToPoint {
    /// The interface with its addresses, and the routes beside those that follow from the gateways.
    pub addressing: Addressing,
    /// The gateway of each address.
    pub gateways: Vec<Uplink>,
}

/// An address, and the way to its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The pod's address with its subnet's prefix length.
    pub address: Prefix,
    /// The host's address at the other end.
    pub gateway: IpAddr,
}

impl PointToPoint {
    /// Adds the addresses, without the route to the subnet that the kernel makes of its own; sets the interface up; adds
    /// the routes to the gateways, to the subnets by them, and the rest.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let pod = world.pod()?;
        let found = pod.target(&self.addressing.ifname)?;
        let mut batch: Vec<_> = self
            .addressing
            .addresses
            .iter()
            .map(|a| address::add_without_route(&found, a.address(), a.prefix_len()))
            .collect();
        batch.push(link::set_up(&found));
        batch.extend(self.ways().iter().map(|way| route::add(&found, way)));
        let passing = self.passing();
        batch.extend(passing.iter().map(|it| route::add(&found, it)));
        batch.extend(self.addressing.kernel_routes().map(|it| route::add(&found, &it)));
        batch.extend(passing.iter().map(|it| route::delete(&found, it)));
        run(pod.rtnl()?, batch)?;
        Ok(Ensured::Created)
    }

    /// Tells which addresses and routes are missing, and whether the interface is down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        self.addressing.observe_with(&self.ways(), world)
    }

    /// Routes to next hops of the subnets that are no gateways: the host may have them too. The kernel wants them to be on
    /// the link when a route by them is made, and no longer.
    fn passing(&self) -> Vec<Route> {
        let is_in_subnet =
            |hop: &IpAddr| self.addressing.addresses.iter().any(|it| it.network().contains(*hop));
        let is_gateway = |hop: &IpAddr| self.gateways.iter().any(|it| it.gateway == *hop);
        let mut hops: Vec<IpAddr> = self.addressing.kernel_routes().filter_map(|it| it.gateway).collect();
        hops.retain(|hop| is_in_subnet(hop) && !is_gateway(hop));
        hops.sort_unstable();
        hops.dedup();
        let to_hop = |hop: IpAddr| Route {
            dst: hop,
            dst_len: Prefix::host(hop).prefix_len(),
            gateway: None,
            source: None,
            table: None,
            // The last of all, and none that the result asks for.
            priority: Some(u32::MAX),
            scope: Some(SCOPE_LINK),
            mtu: None,
            advmss: None,
        };
        hops.into_iter().map(to_hop).collect()
    }

    /// The routes to the gateways, and by them to the subnets; each once, with the first address that has it.
    ///
    /// ```text
    /// 10.1.0.1 dev eth0 scope link src 10.1.0.2
    /// 10.1.0.0/16 via 10.1.0.1 dev eth0 src 10.1.0.2
    /// ```
    fn ways(&self) -> Vec<Route> {
        let mut ways: Vec<Route> = Vec::new();
        for Uplink { address, gateway } in &self.gateways {
            let subnet = address.network();
            let to_gateway = Route {
                dst: *gateway,
                dst_len: Prefix::host(*gateway).prefix_len(),
                gateway: None,
                source: Some(address.address()),
                table: None,
                priority: None,
                scope: Some(SCOPE_LINK),
                mtu: None,
                advmss: None,
            };
            let to_subnet = Route {
                dst: subnet.address(),
                dst_len: subnet.prefix_len(),
                gateway: Some(*gateway),
                scope: None,
                ..to_gateway.clone()
            };
            for way in [to_gateway, to_subnet] {
                let is_there = ways.iter().any(|have| {
                    (have.dst, have.dst_len, have.gateway) == (way.dst, way.dst_len, way.gateway)
                });
                // An address that is a subnet by itself is the pod's own.
                let is_own = way.gateway.is_some() && way.dst_len == Prefix::host(way.dst).prefix_len();
                if !is_there && !is_own {
                    ways.push(way);
                }
            }
        }
        ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(uplinks: &[(&str, &str)]) -> Vec<String> {
        let gateways = uplinks
            .iter()
            .map(|(address, gateway)| Uplink {
                address: address.parse().unwrap(),
                gateway: gateway.parse().unwrap(),
            })
            .collect();
        let ways = PointToPoint { addressing: Addressing::default(), gateways }.ways();
        ways.iter().map(|it| format!("{it} src {}", it.source.unwrap())).collect()
    }

    #[test]
    fn a_subnet_is_reached_by_its_gateway() {
        assert_eq!(
            ways(&[("10.1.0.2/16", "10.1.0.1"), ("fd00::2/64", "fd00::1")]),
            [
                "10.1.0.1/32 scope 253 src 10.1.0.2",
                "10.1.0.0/16 via 10.1.0.1 src 10.1.0.2",
                "fd00::1/128 scope 253 src fd00::2",
                "fd00::/64 via fd00::1 src fd00::2"
            ]
        );
    }

    #[test]
    fn each_way_is_there_once() {
        assert_eq!(
            ways(&[("fd00::2/64", "fd00::1"), ("fd00::3/64", "fd00::1")]),
            ["fd00::1/128 scope 253 src fd00::2", "fd00::/64 via fd00::1 src fd00::2"]
        );
    }

    #[test]
    fn an_address_without_a_subnet_has_only_its_gateway() {
        assert_eq!(ways(&[("10.1.0.2/32", "169.254.1.1")]), ["169.254.1.1/32 scope 253 src 10.1.0.2"]);
    }
}
