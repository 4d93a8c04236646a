//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::{Link, Rtnl, attributes, ip_of, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// Length of struct ifaddrmsg (linux/if_addr.h).
const HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// `IFA_F_DADFAILED` and `IFA_F_TENTATIVE` (linux/if_addr.h).
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
    /// IPv6 only: whether the kernel is still looking for duplicates, and so does not use it.
    pub tentative: bool,
    /// IPv6 only: whether somebody else on the link has it.
    pub duplicate: bool,
}

/// What the kernel does about duplicates of a new IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// Looks for them; the address cannot be used for a second or two.
    On,
    /// Does not; the address can be used at once.
    Off,
}

/// The request for an address that lives until it is deleted.
pub fn add(link: &Link, address: IpAddr, prefix_len: u8, detection: DuplicateDetection) -> Message {
    let mut message = message(link, address, prefix_len);
    if address.is_ipv6() && detection == DuplicateDetection::Off {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let deed = format!("add address {address}/{prefix_len} to link {}", link.name);
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddress(message))
}

/// The request for an address that makes no route to its subnet (`noprefixroute`), and for which no duplicates are
/// looked for: nobody of the subnet is on the link.
pub fn add_without_route(link: &Link, address: IpAddr, prefix_len: u8) -> Message {
    let mut message = message(link, address, prefix_len);
    let mut flags = AddressFlags::Noprefixroute;
    if address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    let deed = format!("add address {address}/{prefix_len} to link {}", link.name);
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddress(message))
}

/// The request that deletes an address.
pub fn delete(link: &Link, address: IpAddr, prefix_len: u8) -> Message {
    let deed = format!("delete address {address}/{prefix_len} of link {}", link.name);
    Message::new(deed, 0, RouteNetlinkMessage::DelAddress(message(link, address, prefix_len)))
}

fn message(link: &Link, address: IpAddr, prefix_len: u8) -> AddressMessage {
    match address {
        IpAddr::V4(a) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(a, prefix_len).build()
        }
        IpAddr::V6(a) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(link.index).address(a, prefix_len).build()
        }
    }
}

impl Rtnl {
    /// The addresses of a link, of both families.
    pub fn addresses(&mut self, link: &Link) -> Result<Vec<Address>> {
        let mut request = AddressMessage::default();
        request.header.index = link.index;
        let found = self.dump(
            &format!("list the addresses of link {}", link.name),
            RouteNetlinkMessage::GetAddress(request),
        )?;
        // Kernels without strict filters list the addresses of all links.
        let of_link = |body: &&Vec<u8>| body.get(4..).and_then(u32_of) == Some(link.index);
        Ok(found.iter().filter(of_link).filter_map(|body| parse(body)).collect())
    }
}

/// Reads an answer (RTM_NEWADDR); `None` where there is no address in it.
pub fn parse(body: &[u8]) -> Option<Address> {
    let mut flags = u32::from(*body.get(2)?);
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(body, HEADER) {
        match kind {
            IFA_ADDRESS => address = ip_of(value),
            IFA_LOCAL => local = ip_of(value),
            IFA_FLAGS => flags = u32_of(value)?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other side's.
    local.or(address).map(|address| Address {
        address,
        prefix_len: body[1],
        tentative: flags & IFA_F_TENTATIVE != 0,
        duplicate: flags & IFA_F_DADFAILED != 0,
    })
}
