//! Requests for veth pairs.

use std::os::fd::AsRawFd;

use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::link;
use crate::net::netlink::Message;
use crate::net::{Mac, Netns};

/// Both ends of a veth pair, as they are to be born.
#[derive(Clone, Debug)]
pub struct VethPair<'a> {
    /// Name of the end in the namespace of the socket.
    pub name: &'a str,
    /// Hardware address of that end.
    pub mac: Mac,
    /// Index of the bridge that it becomes a port of, if of any.
    pub master: Option<u32>,
    /// MTU of both ends in bytes; `None` for the kernel's choice.
    pub mtu: Option<u32>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Hardware address of the other end.
    pub peer_mac: Mac,
    /// Namespace of the other end; `None` for the socket's own.
    pub peer_netns: Option<&'a Netns>,
}

/// The request for a veth pair, both ends in their final namespaces with their final names: moving an end later
/// costs a wait for RCU, and renaming races with udev. The first end is born up; the kernel refuses that of the
/// second (ENOTCONN: the two are not linked yet).
pub fn create_veth(pair: &VethPair<'_>) -> Message {
    let mut peer = one_queue(LinkUnspec::new_with_name(pair.peer_name)).address(pair.peer_mac.0.to_vec());
    let mut builder = one_queue(LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth))
        .name(pair.name)
        .address(pair.mac.0.to_vec())
        .up();
    if let Some(master) = pair.master {
        builder = builder.controller(master);
    }
    if let Some(netns) = pair.peer_netns {
        peer = peer.setns_by_fd(netns.as_raw_fd());
    }
    if let Some(mtu) = pair.mtu {
        peer = peer.mtu(mtu);
        builder = builder.mtu(mtu);
    }
    let message = builder.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    link::create(format!("create veth pair {} and {}", pair.name, pair.peer_name), message)
}

/// One queue each way, which is what a veth uses. Left to itself, the kernel makes one for each processor, puts all but
/// the first out of use (`veth_init_queues`, drivers/net/veth.c), and waits for RCU over it with RTNL held, for both
/// ends.
fn one_queue(builder: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    builder
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
}
