//! Neighbours: which MAC address the kernel knows for an IP address on a link.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Link;
use crate::net::netlink::Message;

/// The request that has the kernel forget a neighbour: `ip neighbour delete <address> dev <link>`. `ENOENT` where it
/// knows none.
pub fn delete(link: &Link, address: IpAddr) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link.index;
    let destination = match address {
        IpAddr::V4(a) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(a)
        }
        IpAddr::V6(a) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(a)
        }
    };
    message.attributes.push(NeighbourAttribute::Destination(destination));
    let deed = format!("forget neighbour {address} on link {}", link.name);
    Message::new(deed, 0, RouteNetlinkMessage::DelNeighbour(message))
}
