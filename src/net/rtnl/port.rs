//! Ports of a bridge, and the frames that a bridge keeps for itself.

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{LinkBridgePort, LinkUnspec};

use super::{Link, Rtnl, attributes, nested};
use crate::net::Result;
use crate::net::netlink::Message;

/// Length of struct ifinfomsg (linux/rtnetlink.h).
const HEADER: usize = 16;

/// Attributes of a link (linux/if_link.h).
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_GROUP_FWD_MASK: u16 = 31;

/// A bit for each of the addresses 01:80:c2:00:00:00 to 0f that a bridge may treat like others: all but that of pause
/// frames (`BR_GROUPFWD_MACPAUSE`, net/bridge/br_private.h).
pub const ALL_BUT_PAUSE: u16 = 0xfffd;

/// The request that says which frames to these addresses go the way of all others if they come by this port, and are
/// not given to the host past all hooks.
pub fn set_forwarded_groups(port: &Link, mask: u16) -> Message {
    let message = LinkBridgePort::new(port.index).group_fwd_mask(mask).build();
    let deed = format!("set bridge port group_fwd_mask of link {}", port.name);
    Message::new(deed, 0, RouteNetlinkMessage::NewLink(message))
}

impl Rtnl {
    /// Which frames to reserved addresses go the way of all others if they come by this link. `None` where the link is
    /// not there, or is no port.
    pub fn forwarded_groups(&mut self, port: &Link) -> Result<Option<u16>> {
        let message = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(port.index).build());
        let found = self.get(format!("look up bridge port {}", port.name), message)?;
        Ok(found.and_then(|body| {
            let (_, info) = attributes(&body, HEADER).find(|(kind, _)| *kind == IFLA_LINKINFO)?;
            let (_, data) = nested(info).find(|(kind, _)| *kind == IFLA_INFO_SLAVE_DATA)?;
            let (_, mask) = nested(data).find(|(kind, _)| *kind == IFLA_BRPORT_GROUP_FWD_MASK)?;
            mask.try_into().ok().map(u16::from_ne_bytes)
        }))
    }
}
