//! `sbr`: what a pod sends from an address of this interface leaves by this interface, whatever the main table says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::PluginType;
use super::conf::not_chained;
use crate::net::rtnl::raw_route::RawRoute;
use crate::net::rtnl::{Link, Route};
use crate::plan::{Plan, Plugin};
use crate::resource::source_routing::{SourceRule, free_table, main_routes, serves};
use crate::resource::{ForeignSourceRouting, Lease, Resource, SourceRouting, World};
use crate::spec::result::IpConfig;
use crate::spec::{CniError, CniResult, Code, Prefix, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "sbr",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse,
    leftovers,
    lease: |_| None,
    status: |request, _| Ok(Sbr::parse(request).map(drop)?),
};

/// The first table that is chosen.
const FIRST_TABLE: u32 = 100;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    table: Option<i64>,
    gateways: Vec<String>,
    add_source_hints: bool,
    keep_main_routes: bool,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
struct Sbr {
    ifname: String,
    table: Option<u32>,
    gateways: Vec<IpAddr>,
    adds_source_hints: bool,
    keeps_main_routes: bool,
    patience: Duration,
}

struct Chained {
    sbr: Sbr,
    prev_result: CniResult,
}

impl Sbr {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        let table = conf.table.map(|table| {
            u32::try_from(table).ok().filter(|table| *table > 0).ok_or_else(|| {
                let max = u32::MAX;
                CniError::config(format!("table: {table} is wrong; wanted is a number from 1 to {max}"))
            })
        });
        let mut gateways: Vec<IpAddr> = Vec::new();
        for text in &conf.gateways {
            let gateway = text
                .parse::<IpAddr>()
                .map(|gateway| gateway.to_canonical())
                .map_err(|_| CniError::config(format!("gateways: {text:?} is no IP address")))?;
            if let Some(other) = gateways.iter().find(|it| it.is_ipv4() == gateway.is_ipv4()) {
                let family = if gateway.is_ipv4() { "IPv4" } else { "IPv6" };
                let msg = format!(
                    "gateways: {other} and {gateway} are both {family}; wanted is one of each family"
                );
                return Err(CniError::config(msg));
            }
            gateways.push(gateway);
        }
        Ok(Self {
            ifname: request.attachment.ifname.clone(),
            table: table.transpose()?,
            gateways,
            adds_source_hints: conf.add_source_hints,
            keeps_main_routes: conf.keep_main_routes,
            patience: request.config.lock_timeout()?,
        })
    }

    /// The addresses of the interface with their gateways.
    fn addresses(&self, prev: &CniResult) -> Result<Vec<(Prefix, Option<IpAddr>)>, CniError> {
        let is_own = |ip: &&IpConfig| match ip.interface.and_then(|index| prev.interfaces.get(index)) {
            Some(interface) => interface.name == self.ifname,
            None => true,
        };
        let gateway_of = |ip: &IpConfig| {
            let is_family = |it: &&IpAddr| it.is_ipv4() == ip.address.is_ipv4();
            self.gateways.iter().find(is_family).copied().or(ip.gateway)
        };
        let found: Vec<_> = prev.ips.iter().filter(is_own).map(|ip| (ip.address, gateway_of(ip))).collect();
        if found.is_empty() {
            let msg = format!(
                "prevResult: interface {:?} has no address there that could be routed by",
                self.ifname
            );
            return Err(CniError::config(msg));
        }
        Ok(found)
    }
}

fn parse(request: &Request) -> Result<Box<dyn Plugin>, CniError> {
    let sbr = Sbr::parse(request)?;
    let prev_result = request.config.prev_result()?;
    let prev_result = prev_result.ok_or_else(|| not_chained("sbr", "makes the interface"))?;
    Ok(Box::new(Chained { sbr, prev_result }))
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let ifname = request.attachment.ifname.clone();
    let prev = request.config.prev_result().ok().flatten().unwrap_or_default();
    let names_it = |ip: &&IpConfig| {
        ip.interface.and_then(|index| prev.interfaces.get(index)).is_some_and(|it| it.name == ifname)
    };
    let addresses = prev.ips.iter().filter(names_it).map(|ip| ip.address.address()).collect();
    let table = request.config.get("table").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    vec![Resource::ForeignSourceRouting(ForeignSourceRouting { ifname, table, addresses })]
}

impl Plugin for Chained {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        true
    }

    /// Nobody else chooses tables in the pod until this call ends.
    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let addresses = self.sbr.addresses(&self.prev_result)?;
        let pod = world.pod()?;
        pod.lock(self.sbr.patience)?;
        let rtnl = pod.rtnl()?;
        let ifname = &self.sbr.ifname;
        let link = rtnl.link(ifname)?.ok_or_else(|| {
            CniError::new(Code::Kernel, format!("the pod has no interface {ifname} that could be routed by"))
        })?;
        let routing = match self.sbr.table {
            Some(table) => SourceRouting {
                ifname: ifname.clone(),
                rules: rules(&addresses, |_| Some(table)),
                ..SourceRouting::default()
            },
            None => {
                let (rules, routes) = (rtnl.rules()?, rtnl.raw_routes()?);
                let mut tables = Vec::new();
                for _ in &addresses {
                    tables.push(free_table(FIRST_TABLE, &rules, &routes, &tables));
                }
                self.sbr.distribute(&link, &addresses, &tables, &main_routes(&link, &routes))
            }
        };
        Ok(Plan { resources: vec![Resource::SourceRouting(routing)], result: self.prev_result.clone() })
    }

    /// Which tables were chosen is said by the rules.
    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let addresses = self.sbr.addresses(prev)?;
        let rtnl = world.pod()?.rtnl()?;
        let found = rtnl.rules()?;
        let table_of = |source: IpAddr| {
            self.sbr.table.or_else(|| {
                found.iter().find(|it| it.source == Some(source) && serves(it)).map(|it| it.table)
            })
        };
        let mut routing = SourceRouting {
            ifname: self.sbr.ifname.clone(),
            rules: rules(&addresses, table_of),
            ..SourceRouting::default()
        };
        if let (None, Some(link)) = (self.sbr.table, rtnl.link(&self.sbr.ifname)?) {
            for (address, gateway) in &addresses {
                let Some(gateway) = gateway else { continue };
                let default = default_route(&link, *gateway);
                routing.added.extend(table_of(address.address()).map(|table| default.in_table(table)));
                routing.removed.extend((!self.sbr.keeps_main_routes).then_some(default));
            }
        }
        Ok(vec![Resource::SourceRouting(routing)])
    }
}

fn rules(
    addresses: &[(Prefix, Option<IpAddr>)],
    table_of: impl Fn(IpAddr) -> Option<u32>,
) -> Vec<SourceRule> {
    let rule = |source: IpAddr| SourceRule { source, table: table_of(source) };
    addresses.iter().map(|(address, _)| rule(address.address())).collect()
}

fn default_route(link: &Link, gateway: IpAddr) -> RawRoute {
    let dst: IpAddr =
        if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let route = Route {
        dst,
        dst_len: 0,
        gateway: Some(gateway),
        source: None,
        table: Some(crate::net::rtnl::route::TABLE_MAIN),
        priority: None,
        scope: None,
        mtu: None,
        advmss: None,
    };
    RawRoute::new(link, &route)
}

impl Sbr {
    /// Which routes of the main table belong into which other. `addresses` and `tables` stand side by side.
    fn distribute(
        &self,
        link: &Link,
        addresses: &[(Prefix, Option<IpAddr>)],
        tables: &[u32],
        main: &[RawRoute],
    ) -> SourceRouting {
        let mut routing = SourceRouting { ifname: self.ifname.clone(), ..SourceRouting::default() };
        for ((address, gateway), table) in addresses.iter().zip(tables) {
            routing.rules.push(SourceRule { source: address.address(), table: Some(*table) });
            let related = main.iter().filter(|route| {
                let is_default = route.dst_len() == 0;
                route.is_ipv4() == address.is_ipv4()
                    && is_related(route, *address)
                    // Only the gateway that is wanted, if one is.
                    && !(is_default && gateway.is_some_and(|gateway| route.gateways() != [gateway]))
            });
            let first = routing.added.len();
            routing.added.extend(related.map(|route| route.in_table(*table)));
            if let Some(gateway) = gateway
                && !routing.added.iter().skip(first).any(|route| route.dst_len() == 0)
            {
                routing.added.push(default_route(link, *gateway).in_table(*table));
            }
        }
        for route in main.iter().filter(|_| !self.keeps_main_routes) {
            let mut of_family =
                addresses.iter().filter(|(address, _)| address.is_ipv4() == route.is_ipv4()).peekable();
            if of_family.peek().is_none() {
                continue;
            }
            if !self.adds_source_hints || route.has_gateway() {
                routing.removed.push(route.clone());
                continue;
            }
            let hint = of_family.map(|(address, _)| *address).find(|address| {
                let subnet = Prefix::new(route.dst(), route.dst_len());
                subnet.is_some_and(|subnet| subnet.contains(address.address()))
            });
            if let Some(hint) = hint.filter(|hint| route.source() != Some(hint.address())) {
                routing.replaced.push((route.clone(), route.with_source(hint.address())));
            }
        }
        routing
    }
}

/// Whether a route is one for packets from an address: by its source, its next hop, or because it names neither.
fn is_related(route: &RawRoute, address: Prefix) -> bool {
    let is_near = |hop: IpAddr| match hop {
        IpAddr::V6(hop) if hop.is_unicast_link_local() => true,
        hop => address.contains(hop),
    };
    let gateways = route.gateways();
    match route.source() {
        Some(source) if address.contains(source) => true,
        None if gateways.is_empty() => true,
        _ => gateways.into_iter().any(is_near),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link { index: 7, name: "eth0".into(), ..Link::default() }
    }

    fn route(dst: &str, gateway: Option<&str>) -> RawRoute {
        let dst: Prefix = dst.parse().unwrap();
        let route = Route {
            dst: dst.address(),
            dst_len: dst.prefix_len(),
            gateway: gateway.map(|it| it.parse().unwrap()),
            source: None,
            table: Some(254),
            priority: None,
            scope: None,
            mtu: None,
            advmss: None,
        };
        RawRoute::new(&link(), &route)
    }

    fn sbr(hints: bool) -> Sbr {
        Sbr {
            ifname: "eth0".into(),
            table: None,
            gateways: Vec::new(),
            adds_source_hints: hints,
            keeps_main_routes: false,
            patience: Duration::ZERO,
        }
    }

    fn texts(routes: &[RawRoute]) -> Vec<String> {
        routes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_address_has_its_routes_in_its_table() {
        let addresses = [
            ("10.1.0.5/24".parse().unwrap(), "10.1.0.1".parse().ok()),
            ("10.2.0.5/24".parse().unwrap(), "10.2.0.1".parse().ok()),
            ("fd00::5/64".parse().unwrap(), None),
        ];
        let main = [
            route("10.1.0.0/24", None),
            route("fd00::/64", None),
            route("0.0.0.0/0", Some("10.1.0.1")),
            route("192.0.2.0/24", Some("10.2.0.9")),
            route("::/0", Some("fe80::1")),
        ];
        let routing = sbr(false).distribute(&link(), &addresses, &[100, 101, 102], &main);
        assert_eq!(
            texts(&routing.added),
            [
                "10.1.0.0/24 in table 100",
                "default via 10.1.0.1 in table 100",
                "10.1.0.0/24 in table 101",
                "192.0.2.0/24 via 10.2.0.9 in table 101",
                "default via 10.2.0.1 in table 101",
                "fd00::/64 in table 102",
                "default via fe80::1 in table 102",
            ]
        );
        assert_eq!(routing.removed, main);
        let tables: Vec<_> = routing.rules.iter().map(|rule| rule.table).collect();
        assert_eq!(tables, [Some(100), Some(101), Some(102)]);
    }

    #[test]
    fn the_main_table_may_stay_as_it_is() {
        let addresses = [("10.1.0.5/24".parse().unwrap(), "10.1.0.1".parse().ok())];
        let main = [route("10.1.0.0/24", None), route("0.0.0.0/0", Some("10.1.0.1"))];
        let keeping = Sbr { keeps_main_routes: true, ..sbr(true) };
        let routing = keeping.distribute(&link(), &addresses, &[100], &main);
        assert_eq!((routing.added.len(), routing.removed.len(), routing.replaced.len()), (2, 0, 0));
    }

    #[test]
    fn families_without_an_address_are_left_alone_and_hints_are_given() {
        let addresses = [("10.1.0.5/24".parse().unwrap(), "10.1.0.1".parse().ok())];
        let main =
            [route("10.1.0.0/24", None), route("fd00::/64", None), route("0.0.0.0/0", Some("10.1.0.1"))];
        let routing = sbr(true).distribute(&link(), &addresses, &[100], &main);
        assert_eq!(texts(&routing.removed), ["default via 10.1.0.1 in the main table"]);
        assert_eq!(routing.replaced.len(), 1);
        assert_eq!(routing.replaced[0].1.source(), "10.1.0.5".parse().ok());
    }
}
