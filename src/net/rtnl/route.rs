//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{Link, Rtnl, attributes, ip_of, nested, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// Length of struct rtmsg (linux/rtnetlink.h).
pub(super) const HEADER: usize = 12;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
pub(super) const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// Length of struct rtnexthop.
const NEXT_HOP: usize = 8;

/// How far away a destination is (`RT_SCOPE_*` of linux/rtnetlink.h): on the link, in the host.
pub const SCOPE_LINK: u8 = 253;
/// See [`SCOPE_LINK`].
pub const SCOPE_HOST: u8 = 254;

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// A unicast route. Where a field is `None`, the kernel decides when the route is made, and anything will do when one
/// is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination's address; its family is the route's.
    pub dst: IpAddr,
    /// Length of the destination's prefix.
    pub dst_len: u8,
    /// Next hop; on-link without one.
    pub gateway: Option<IpAddr>,
    /// Address that packets by it have as their source if nobody says.
    pub source: Option<IpAddr>,
    /// Routing table; the main one without.
    pub table: Option<u32>,
    /// Metric, lower first.
    pub priority: Option<u32>,
    /// Scope: 0 universe, 253 link, 254 host.
    pub scope: Option<u8>,
    /// MTU along the route in bytes.
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise in bytes.
    pub advmss: Option<u32>,
}

impl Route {
    /// Whether a route that is there serves for this one.
    pub fn is_served_by(&self, other: &Self) -> bool {
        fn fits<T: PartialEq>(wanted: &Option<T>, had: &Option<T>) -> bool {
            wanted.is_none() || wanted == had
        }
        self.dst == other.dst
            && self.dst_len == other.dst_len
            && fits(&self.gateway, &other.gateway)
            && fits(&self.source, &other.source)
            && fits(&self.table, &other.table)
            && fits(&self.priority, &other.priority)
            && (self.dst.is_ipv6() || fits(&self.scope, &other.scope))
            && fits(&self.mtu, &other.mtu)
            && fits(&self.advmss, &other.advmss)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dst_len {
            0 => write!(f, "default")?,
            len => write!(f, "{}/{len}", self.dst)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        let numbers =
            [("table", self.table), ("metric", self.priority), ("mtu", self.mtu), ("advmss", self.advmss)];
        for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            write!(f, " {name} {value}")?;
        }
        if let Some(scope) = self.scope {
            write!(f, " scope {scope}")?;
        }
        Ok(())
    }
}

/// The request for a route by a link. Beside other routes to the same destination it is one more (ECMP); the very
/// same route twice is `EEXIST`.
pub fn add(link: &Link, route: &Route) -> Message {
    let deed = format!("add route {route} by link {}", link.name);
    Message::new(deed, NLM_F_CREATE, RouteNetlinkMessage::NewRoute(message(link, route)))
}

/// The request that takes a route by a link away; `ESRCH` where it is not there.
pub fn delete(link: &Link, route: &Route) -> Message {
    let deed = format!("delete route {route} by link {}", link.name);
    Message::new(deed, 0, RouteNetlinkMessage::DelRoute(message(link, route)))
}

pub(super) fn message(link: &Link, route: &Route) -> RouteMessage {
    let mut message = match route.dst {
        IpAddr::V4(dst) => RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(link.index)
            .protocol(RouteProtocol::Boot)
            .destination_prefix(dst, route.dst_len)
            .build(),
        IpAddr::V6(dst) => RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(link.index)
            .protocol(RouteProtocol::Boot)
            .destination_prefix(dst, route.dst_len)
            .build(),
    };
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    // A route without next hop is of scope link, as iproute2 has it; the kernel would take it for one to a host far
    // away otherwise.
    message.header.scope = match (route.scope, route.gateway) {
        (Some(scope), _) => RouteScope::from(scope),
        (None, Some(_)) => RouteScope::Universe,
        (None, None) => RouteScope::Link,
    };
    if let Some(table) = route.table {
        message.header.table = u8::try_from(table).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    let metrics: Vec<RouteMetric> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

impl Rtnl {
    /// The unicast routes of all tables that leave by a link.
    pub fn routes(&mut self, link: &Link) -> Result<Vec<Route>> {
        let mut request = RouteMessage::default();
        request.attributes.push(RouteAttribute::Oif(link.index));
        let deed = format!("list the routes by link {}", link.name);
        let found = self.dump(&deed, RouteNetlinkMessage::GetRoute(request))?;
        Ok(found
            .iter()
            .flat_map(|body| parse(body))
            .filter(|(oif, _)| *oif == link.index)
            .map(|(_, r)| r)
            .collect())
    }

    /// Index of the link by which packets to an address leave; `None` where no route leads there, or it is this host's.
    pub fn link_towards(&mut self, address: IpAddr) -> Result<Option<u32>> {
        let mut request = RouteMessage::default();
        let (family, len, destination) = match address {
            IpAddr::V4(a) => (AddressFamily::Inet, 32, RouteAddress::Inet(a)),
            IpAddr::V6(a) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(a)),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = len;
        request.attributes.push(RouteAttribute::Destination(destination));
        let found = self.get(format!("look up the way to {address}"), RouteNetlinkMessage::GetRoute(request));
        match found {
            Ok(body) => Ok(body.and_then(|body| parse(&body).first().map(|(index, _)| *index))),
            Err(e) if matches!(e.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether packets to an IPv6 address are delivered in this namespace: the kernel is done with adding it.
    pub fn is_delivered_here(&mut self, address: Ipv6Addr) -> Result<bool> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet6;
        request.header.destination_prefix_length = 128;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(address)));
        let found = self.get(format!("look up the way to {address}"), RouteNetlinkMessage::GetRoute(request));
        match found {
            // `rtm_type` of struct rtmsg.
            Ok(found) => Ok(found.and_then(|body| body.get(7).copied()) == Some(RTN_LOCAL)),
            Err(e) if e.errno == Errno::ENETUNREACH => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Index of the link by which the main table's default route leaves, the one of the lowest metric, IPv4 first.
    pub fn default_route_link(&mut self) -> Result<Option<u32>> {
        let found = self.dump("list the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let defaults = found
            .iter()
            .flat_map(|body| parse(body))
            .filter(|(_, route)| route.dst_len == 0 && route.table == Some(TABLE_MAIN));
        Ok(defaults
            .min_by_key(|(_, r)| (r.dst.is_ipv6(), r.priority.unwrap_or_default()))
            .map(|(oif, _)| oif))
    }
}

impl Rtnl {
    /// Indices of the links by which default routes leave that the kernel learnt from router advertisements
    /// (`proto ra`), each once.
    pub fn advertised_default_links(&mut self) -> Result<Vec<u32>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet6;
        request.header.protocol = RouteProtocol::Ra;
        let deed = "list the routes that routers advertised";
        let found = self.dump(deed, RouteNetlinkMessage::GetRoute(request))?;
        // Kernels without strict filters list all routes.
        let advertised = found.iter().filter(|body| body.get(5) == Some(&u8::from(RouteProtocol::Ra)));
        let defaults = advertised.flat_map(|body| parse(body)).filter(|(_, route)| route.dst_len == 0);
        let mut links: Vec<u32> = defaults.map(|(oif, _)| oif).collect();
        links.sort_unstable();
        links.dedup();
        Ok(links)
    }
}

/// The unicast routes in one answer, with the index of their link: one, or one for each next hop of several.
pub fn parse(body: &[u8]) -> Vec<(u32, Route)> {
    let (Some(&family), Some(&dst_len), Some(&table), Some(&scope), Some(&RTN_UNICAST)) =
        (body.first(), body.get(1), body.get(4), body.get(6), body.get(7))
    else {
        return Vec::new();
    };
    let dst: IpAddr = match i32::from(family) {
        nix::libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        nix::libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Vec::new(),
    };
    let mut route = Route {
        dst,
        dst_len,
        gateway: None,
        source: None,
        table: Some(u32::from(table)),
        priority: None,
        scope: Some(scope),
        mtu: None,
        advmss: None,
    };
    let mut oif = None;
    let mut hops = &[][..];
    for (kind, value) in attributes(body, HEADER) {
        match kind {
            RTA_DST => route.dst = ip_of(value).unwrap_or(dst),
            RTA_OIF => oif = u32_of(value),
            RTA_GATEWAY => route.gateway = ip_of(value),
            RTA_PREFSRC => route.source = ip_of(value),
            RTA_PRIORITY => route.priority = u32_of(value),
            RTA_TABLE => route.table = u32_of(value),
            RTA_MULTIPATH => hops = value,
            RTA_METRICS => {
                for (metric, value) in nested(value) {
                    match metric {
                        RTAX_MTU => route.mtu = u32_of(value),
                        RTAX_ADVMSS => route.advmss = u32_of(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let mut routes: Vec<_> = oif.map(|oif| (oif, route.clone())).into_iter().collect();
    while let (Some(len), Some(oif)) = (hops.get(..2), hops.get(4..).and_then(u32_of)) {
        let len = usize::from(u16::from_ne_bytes([len[0], len[1]]));
        let Some(hop) = hops.get(NEXT_HOP..len) else { break };
        let gateway = nested(hop).find(|(kind, _)| *kind == RTA_GATEWAY).and_then(|(_, value)| ip_of(value));
        routes.push((oif, Route { gateway, ..route.clone() }));
        hops = hops.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    routes
}
