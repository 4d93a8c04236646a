//! What the kernel can do with links, found out without making one.

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::link::{LOOPBACK, Link};
use super::{Rtnl, u32_of};
use crate::net::{Result, module};

/// `RTM_GETVLAN` (linux/rtnetlink.h), and the first release that has it.
const RTM_GETVLAN: u16 = 114;
const VLANS_SINCE: (u32, u32) = (5, 6);

/// A question for the VLANs of a bridge or of its port: struct br_vlan_msg (linux/if_bridge.h).
#[derive(Clone, Copy)]
struct VlansOf {
    index: u32,
}

impl NetlinkSerializable for VlansOf {
    fn message_type(&self) -> u16 {
        RTM_GETVLAN
    }

    fn buffer_len(&self) -> usize {
        8
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        if let (Some(family), Ok(af_bridge)) = (buffer.first_mut(), u8::try_from(nix::libc::AF_BRIDGE)) {
            *family = af_bridge;
        }
        if let Some(index) = buffer.get_mut(4..8) {
            index.copy_from_slice(&self.index.to_ne_bytes());
        }
    }
}

impl Rtnl {
    /// Whether the kernel makes links of a kind now, without loading a module.
    ///
    /// It is asked for a list of that kind only. A kind that it does not know it cannot look for, and it lists all
    /// links (`linkinfo_to_kind_ops`, net/core/rtnetlink.c): then `lo` is among them. Costs a list of the links of the
    /// kind.
    pub fn has_kind(&mut self, kind: &str) -> Result<bool> {
        let deed = format!("look for links of kind {kind}");
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(
                kind.to_owned(),
            ))]))
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let found = self.dump(&deed, RouteNetlinkMessage::GetLink(message))?;
        Ok(!found.iter().any(|body| body.get(4..).and_then(u32_of) == Some(LOOPBACK)))
    }

    /// Whether bridges filter VLANs; meaningful only where bridges are at work. Kernels before 5.6 cannot be asked, and
    /// count as if they did.
    ///
    /// It is asked for the VLANs of `lo`, which is no bridge: that is an error (EINVAL) where there are VLANs, and
    /// another (EOPNOTSUPP) where nobody answers for them.
    pub fn filters_vlans(&mut self) -> Result<bool> {
        if module::release() < VLANS_SINCE {
            return Ok(true);
        }
        match self.socket.dump("look for VLANs of bridges", VlansOf { index: LOOPBACK }) {
            Err(e) if e.errno == Errno::EOPNOTSUPP => Ok(false),
            Ok(_) => Ok(true),
            Err(e) if matches!(e.errno, Errno::EINVAL | Errno::ENODEV) => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Whether any link is a port of a master.
    pub fn has_ports(&mut self, master: &Link) -> Result<bool> {
        Ok(!self.ports(master)?.is_empty())
    }
}
