//! VLANs of bridge ports (linux/if_bridge.h).

use std::ops::RangeInclusive;

use netlink_packet_route::link::{BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkBridgeVlan, LinkMessageBuilder, LinkUnspec};

use super::{Link, Rtnl, attributes, nested, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

const HEADER: usize = 16;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;

/// How a bridge port carries a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Membership {
    /// With tags.
    Tagged,
    /// Without: untagged packets that come in belong to it, and its packets go out untagged.
    Native,
}

/// The request that makes a port carry VLANs.
pub fn add(port: &Link, vlans: &[(RangeInclusive<u16>, Membership)]) -> Message {
    let mut builder = LinkBridgeVlan::new(port.index);
    for (range, membership) in vlans {
        let flags = match membership {
            Membership::Tagged => BridgeVlanInfoFlags::empty(),
            Membership::Native => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        };
        builder = append(builder, range, flags);
    }
    Message::new(
        format!("add VLANs to bridge port {}", port.name),
        0,
        RouteNetlinkMessage::SetLink(builder.build()),
    )
}

/// The request that makes a port carry VLANs no longer.
pub fn delete(port: &Link, vlans: &[RangeInclusive<u16>]) -> Message {
    let mut builder = LinkBridgeVlan::new(port.index);
    for range in vlans {
        builder = append(builder, range, BridgeVlanInfoFlags::empty());
    }
    let deed = format!("delete VLANs of bridge port {}", port.name);
    Message::new(deed, 0, RouteNetlinkMessage::DelLink(builder.build()))
}

fn append(
    builder: LinkMessageBuilder<LinkBridgeVlan>,
    range: &RangeInclusive<u16>,
    flags: BridgeVlanInfoFlags,
) -> LinkMessageBuilder<LinkBridgeVlan> {
    if range.start() == range.end() {
        builder.vlan(*range.start(), flags)
    } else {
        builder.vlan_range_start(*range.start(), flags).vlan_range_end(*range.end(), flags)
    }
}

impl Rtnl {
    /// The VLANs that a bridge port carries, in ascending order.
    pub fn port_vlans(&mut self, port: &Link) -> Result<Vec<(u16, Membership)>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .interface_family(AddressFamily::Bridge)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]))
            .build();
        let found = self.dump("list the VLANs of bridge ports", RouteNetlinkMessage::GetLink(message))?;
        let mut vlans: Vec<(u16, Membership)> = found
            .iter()
            .filter(|body| body.get(4..).and_then(u32_of) == Some(port.index))
            .flat_map(|body| parse(body))
            .collect();
        vlans.sort_unstable();
        Ok(vlans)
    }
}

/// The VLANs in an answer (RTM_NEWLINK of the family of bridges).
pub fn parse(body: &[u8]) -> impl Iterator<Item = (u16, Membership)> {
    attributes(body, HEADER)
        .filter(|(kind, _)| *kind == IFLA_AF_SPEC)
        .flat_map(|(_, value)| nested(value))
        .filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO)
        .filter_map(|(_, value)| {
            let flags = u16::from_ne_bytes([*value.first()?, *value.get(1)?]);
            let vid = u16::from_ne_bytes([*value.get(2)?, *value.get(3)?]);
            let native = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED;
            Some((vid, if flags & native == native { Membership::Native } else { Membership::Tagged }))
        })
}
