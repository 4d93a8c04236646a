//! Routes that are moved from table to table as they are, with whatever the kernel knows of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::route::{self, HEADER, RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_OIF, RTA_TABLE, TABLE_MAIN};
use super::{Link, Route, Rtnl, attributes, ip_of, nested, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// Attributes of a route (linux/rtnetlink.h).
const RTA_PREFSRC: u16 = 7;
const RTA_CACHEINFO: u16 = 12;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTN_UNICAST: u8 = 1;
/// The only flag of a next hop that is asked for; the others tell of its state.
const RTNH_F_ONLINK: u8 = 4;
const RTPROT_KERNEL: u8 = 2;

/// A unicast route by one link, as the kernel has told of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RawRoute {
    header: [u8; HEADER],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl RawRoute {
    /// A route that is to be.
    pub fn new(link: &Link, route: &Route) -> Self {
        let message = route::message(link, route);
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        Self::split(&body)
    }

    /// The route in an answer (RTM_NEWROUTE), if it is a unicast one.
    pub fn parse(body: &[u8]) -> Option<Self> {
        (body.len() >= HEADER && body.get(7) == Some(&RTN_UNICAST)).then(|| Self::split(body))
    }

    fn split(body: &[u8]) -> Self {
        let mut header = [0; HEADER];
        header.iter_mut().zip(body).for_each(|(to, from)| *to = *from);
        // struct rtmsg ends with the flags.
        header[8] &= RTNH_F_ONLINK;
        header[9..].fill(0);
        let kept = attributes(body, HEADER)
            .filter(|(kind, _)| ![RTA_CACHEINFO, RTA_NH_ID].contains(kind))
            .map(|(kind, value)| {
                (kind, if kind == RTA_MULTIPATH { without_state(value) } else { value.to_vec() })
            });
        Self { header, attributes: kept.collect() }
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(own, _)| *own == kind).map(|(_, value)| value.as_slice())
    }

    fn set(&mut self, kind: u16, value: Vec<u8>) {
        self.attributes.retain(|(own, _)| *own != kind);
        self.attributes.push((kind, value));
    }

    /// Whether it is IPv4; otherwise it is IPv6.
    pub fn is_ipv4(&self) -> bool {
        i32::from(self.header[0]) == nix::libc::AF_INET
    }

    /// The destination.
    pub fn dst(&self) -> IpAddr {
        let anywhere: IpAddr =
            if self.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.attribute(RTA_DST).and_then(ip_of).unwrap_or(anywhere)
    }

    /// Length of the destination's prefix.
    pub fn dst_len(&self) -> u8 {
        self.header[1]
    }

    /// The table.
    pub fn table(&self) -> u32 {
        self.attribute(RTA_TABLE).and_then(u32_of).unwrap_or(u32::from(self.header[4]))
    }

    /// Whether the kernel has made it, for an address.
    pub fn is_kernels(&self) -> bool {
        self.header[5] == RTPROT_KERNEL
    }

    /// Whether it leads to neighbours of a link or to groups, which each link has of its own.
    pub fn is_local_to_link(&self) -> bool {
        match self.dst() {
            IpAddr::V4(dst) => dst.is_multicast(),
            IpAddr::V6(dst) => dst.is_multicast() || dst.is_unicast_link_local(),
        }
    }

    /// The next hops; none of a route without.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let own = self.attribute(RTA_GATEWAY).and_then(ip_of);
        let hops = self.hops().filter_map(|hop| {
            let gateway = nested(hop.get(8..)?).find(|(kind, _)| *kind == RTA_GATEWAY)?;
            ip_of(gateway.1)
        });
        own.into_iter().chain(hops).collect()
    }

    /// Whether it has next hops, of whatever kind.
    pub fn has_gateway(&self) -> bool {
        !self.gateways().is_empty() || self.attribute(RTA_VIA).is_some()
    }

    /// The address that packets by it are sent from, if they have none.
    pub fn source(&self) -> Option<IpAddr> {
        self.attribute(RTA_PREFSRC).and_then(ip_of)
    }

    /// Whether it leaves by a link, and by no other.
    pub fn is_by(&self, link: &Link) -> bool {
        let mut hops = self.hops().map(|hop| hop.get(4..).and_then(u32_of)).peekable();
        match self.attribute(RTA_OIF).and_then(u32_of) {
            Some(oif) => oif == link.index,
            None => hops.peek().is_some() && hops.all(|oif| oif == Some(link.index)),
        }
    }

    fn hops(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.attribute(RTA_MULTIPATH).unwrap_or_default();
        std::iter::from_fn(move || {
            let len = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
            let hop = rest.get(..len.max(8))?;
            rest = rest.get(len.max(8).next_multiple_of(4)..).unwrap_or_default();
            Some(hop)
        })
    }

    /// Whether it leads to the same destination by the same next hops, in the same table.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.dst(), self.dst_len(), self.table()) == (other.dst(), other.dst_len(), other.table())
            && self.gateways() == other.gateways()
    }

    /// The same route in another table.
    pub fn in_table(&self, table: u32) -> Self {
        let mut route = self.clone();
        route.header[4] = u8::try_from(table).unwrap_or_default();
        route.set(RTA_TABLE, table.to_ne_bytes().to_vec());
        route
    }

    /// The same route with another address to send from.
    pub fn with_source(&self, source: IpAddr) -> Self {
        let mut route = self.clone();
        let bytes = match source {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        route.set(RTA_PREFSRC, bytes);
        route
    }

    /// The request that adds it; `EEXIST` where it is there.
    pub fn add(&self) -> Message {
        self.request("add", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The request that adds it in the place of one with the same destination and metric.
    pub fn replace(&self) -> Message {
        self.request("set", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The request that deletes it; `ESRCH` where it is not there.
    pub fn delete(&self) -> Message {
        self.request("delete", RTM_DELROUTE, 0)
    }

    fn request(&self, verb: &str, kind: u16, flags: u16) -> Message {
        Message::new(format!("{verb} route {self}"), flags, Request { kind, body: self.body() })
    }

    fn body(&self) -> Vec<u8> {
        let mut body = self.header.to_vec();
        for (kind, value) in &self.attributes {
            let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
            body.extend(len.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }
}

/// The next hops of a route without the flags that tell of their state.
fn without_state(hops: &[u8]) -> Vec<u8> {
    let mut hops = hops.to_vec();
    let mut at = 0;
    // struct rtnexthop: length, flags, ...
    while let (Some(&[a, b]), Some(flags)) =
        (hops.get(at..at + 2).map(|it| [it[0], it[1]]).as_ref(), hops.get_mut(at + 2))
    {
        *flags &= RTNH_F_ONLINK;
        at += usize::from(u16::from_ne_bytes([a, b])).max(8).next_multiple_of(4);
    }
    hops
}

/// A request whose body is there already.
#[derive(Clone)]
struct Request {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl fmt::Display for RawRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dst_len() {
            0 => f.write_str("default")?,
            len => write!(f, "{}/{len}", self.dst())?,
        }
        for gateway in self.gateways() {
            write!(f, " via {gateway}")?;
        }
        match self.table() {
            TABLE_MAIN => f.write_str(" in the main table"),
            table => write!(f, " in table {table}"),
        }
    }
}

impl fmt::Debug for RawRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RawRoute {
    /// As hexadecimal digits.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let text: String = self.body().iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for RawRoute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let pairs = text
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
        let body: Option<Vec<u8>> = pairs.collect();
        body.and_then(|body| Self::parse(&body))
            .ok_or_else(|| serde::de::Error::custom("a route is not the digits of a unicast route"))
    }
}

impl Rtnl {
    /// The unicast routes of the namespace, of all tables and links.
    pub fn raw_routes(&mut self) -> Result<Vec<RawRoute>> {
        let found = self.dump("list the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(found.iter().filter_map(|body| RawRoute::parse(body)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> RawRoute {
        let link = Link { index: 7, ..Link::default() };
        let route = Route {
            dst: "0.0.0.0".parse().unwrap(),
            dst_len: 0,
            gateway: "10.1.0.1".parse().ok(),
            source: None,
            table: Some(TABLE_MAIN),
            priority: Some(5),
            scope: None,
            mtu: Some(1400),
            advmss: None,
        };
        RawRoute::new(&link, &route)
    }

    #[test]
    fn a_route_keeps_all_but_its_table() {
        let moved = route().in_table(1000).with_source("10.1.0.5".parse().unwrap());
        assert_eq!((moved.table(), moved.header[4]), (1000, 0));
        assert_eq!(moved.source(), "10.1.0.5".parse().ok());
        let (oif, parsed) = route::parse(&moved.body()).remove(0);
        assert_eq!((oif, parsed.table, parsed.priority, parsed.mtu), (7, Some(1000), Some(5), Some(1400)));
        assert_eq!(moved.gateways(), ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(moved.to_string(), "default via 10.1.0.1 in table 1000");
    }

    #[test]
    fn it_survives_the_record() {
        let text = serde_json::to_string(&route()).unwrap();
        assert_eq!(serde_json::from_str::<RawRoute>(&text).unwrap(), route());
        for bad in ["\"\"", "\"0\"", "\"zz\"", "\"é\"", "5"] {
            assert!(serde_json::from_str::<RawRoute>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn several_hops_by_one_link_are_by_that_link() {
        let hop = |index: u32| {
            let mut bytes = vec![16, 0, 0x11, 0];
            bytes.extend(index.to_ne_bytes());
            bytes.extend([8, 0, 5, 0, 10, 1, 0, index as u8]);
            bytes
        };
        let mut route = route();
        route.attributes.retain(|(kind, _)| ![RTA_OIF, RTA_GATEWAY].contains(kind));
        route.set(RTA_MULTIPATH, [hop(7), hop(7)].concat());
        let parsed = RawRoute::parse(&route.body()).unwrap();
        assert!(parsed.is_by(&Link { index: 7, ..Link::default() }));
        assert_eq!(parsed.gateways().len(), 2);
        assert!(parsed.hops().all(|hop| hop[2] == 0));
        route.set(RTA_MULTIPATH, [hop(7), hop(8)].concat());
        assert!(!route.is_by(&Link { index: 7, ..Link::default() }));
    }
}
