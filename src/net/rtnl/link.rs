//! Links: network interfaces and how they hang together.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVrf};

use super::sublink::Settings;
use super::{Rtnl, attributes, nested, text_of, u32_of};
use crate::net::netlink::Message;
use crate::net::tun::TunInfo;
use crate::net::{Mac, Result, kernel_file};

/// Length of struct ifinfomsg (linux/rtnetlink.h).
const HEADER: usize = 16;

/// Attributes of a link (linux/if_link.h).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_INET6_CONF: u16 = 2;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_VRF_TABLE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

/// `AF_INET6` of linux/socket.h, and where `disable_ipv6` stands among a link's IPv6 settings
/// (`DEVCONF_DISABLE_IPV6` of linux/ipv6.h).
const AF_INET6: u16 = 10;
const DISABLE_IPV6: usize = 26;

/// Flags of a link (linux/if.h).
const IFF_UP: u32 = 0x1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;

/// Index of `lo`, which is the first link of every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// `IF_OPER_UP` of linux/if.h: the link can carry packets.
const IF_OPER_UP: u8 = 6;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index; unique in its namespace as long as the namespace lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind: `bridge`, `veth`, ...; empty for physical ones.
    pub kind: String,
    /// Its hardware address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its alias, a free text of at most 255 bytes.
    pub alias: String,
    /// The number of the group that it is in; 0 where nobody has put it into one.
    pub group: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether somebody asked by flag that it receives all packets.
    pub promiscuous: bool,
    /// Whether somebody asked by flag that it receives all multicast packets.
    pub all_multicast: bool,
    /// The length of its transmit queue in packets.
    pub tx_queue_len: Option<u32>,
    /// Whether it can carry packets now.
    pub operational: bool,
    /// Index of the bridge (or other master) that it is a port of.
    pub master: Option<u32>,
    /// Index of the link it is bound to, in the namespace of that: for a veth its peer, for a macvlan its master.
    pub peer: Option<u32>,
    /// The routing table of a VRF.
    pub vrf_table: Option<u32>,
    /// Whether it is a bridge that filters VLANs.
    pub vlan_filtering: bool,
    /// What it is told, where it is a macvlan, an ipvlan or a VLAN.
    pub settings: Option<Settings>,
    /// How it is a TUN or TAP device, where it is one and the kernel says so.
    pub tun: Option<TunInfo>,
    /// How it is a port of a bridge, where it is one.
    pub port: Port,
    /// Whether IPv6 is known to be switched on for it: the sysctl `disable_ipv6`, without the way to its file.
    pub has_ipv6: bool,
}

/// Flags of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// A packet may leave by the port by which it came.
    pub hairpin: bool,
    /// No packets to and from other isolated ports.
    pub isolated: bool,
}

impl Link {
    /// A link of which nothing is known but what requests to it need.
    pub fn named(index: u32, name: &str) -> Self {
        Self { index, name: name.to_owned(), ..Self::default() }
    }

    /// Reads an answer (RTM_NEWLINK) as far as it goes: what is missing or odd in it stays as by default.
    pub fn parse(body: &[u8]) -> Self {
        let flags = body.get(8..).and_then(u32_of).unwrap_or_default();
        let mut link = Self {
            index: body.get(4..).and_then(u32_of).unwrap_or_default(),
            up: flags & IFF_UP != 0,
            promiscuous: flags & IFF_PROMISC != 0,
            all_multicast: flags & IFF_ALLMULTI != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(body, HEADER) {
            match kind {
                IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                IFLA_IFNAME => link.name = text_of(value),
                IFLA_MTU => link.mtu = u32_of(value).unwrap_or_default(),
                IFLA_LINK => link.peer = u32_of(value),
                IFLA_TXQLEN => link.tx_queue_len = u32_of(value),
                IFLA_MASTER => link.master = u32_of(value),
                IFLA_OPERSTATE => link.operational = value.first() == Some(&IF_OPER_UP),
                IFLA_IFALIAS => link.alias = text_of(value),
                IFLA_GROUP => link.group = u32_of(value).unwrap_or_default(),
                IFLA_LINKINFO => link.read_info(value),
                IFLA_AF_SPEC => link.has_ipv6 = has_ipv6(value).unwrap_or_default(),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, info: &[u8]) {
        // IFLA_INFO_KIND stands before the data whose meaning it decides.
        for (kind, value) in nested(info) {
            match kind {
                IFLA_INFO_KIND => self.kind = text_of(value),
                IFLA_INFO_DATA if self.kind == "vrf" => {
                    let mut data = nested(value);
                    self.vrf_table =
                        data.find(|(key, _)| *key == IFLA_VRF_TABLE).and_then(|(_, v)| u32_of(v));
                }
                IFLA_INFO_DATA if self.kind == "bridge" => {
                    self.vlan_filtering =
                        nested(value).any(|(k, v)| k == IFLA_BR_VLAN_FILTERING && v.first() == Some(&1));
                }
                IFLA_INFO_DATA if self.kind == "tun" => self.tun = Some(TunInfo::parse(value)),
                IFLA_INFO_DATA => self.settings = Settings::parse(&self.kind, value),
                IFLA_INFO_SLAVE_DATA => {
                    for (key, value) in nested(value) {
                        match key {
                            IFLA_BRPORT_MODE => self.port.hairpin = value.first() == Some(&1),
                            IFLA_BRPORT_ISOLATED => self.port.isolated = value.first() == Some(&1),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// What the settings of a link's address families say of IPv6; `None` where it is not among them.
fn has_ipv6(families: &[u8]) -> Option<bool> {
    let (_, inet6) = nested(families).find(|(family, _)| *family == AF_INET6)?;
    let (_, settings) = nested(inet6).find(|(kind, _)| *kind == IFLA_INET6_CONF)?;
    settings.get(4 * DISABLE_IPV6..).and_then(u32_of).map(|disabled| disabled == 0)
}

/// The request for a bridge, which is born up. The MAC is its own: without one, the bridge would take the lowest of its
/// ports', and change it as pods come and go.
pub fn create_bridge(name: &str, mac: Mac, mtu: Option<u32>) -> Message {
    create(format!("create bridge {name}"), bridge(name, mac, mtu).build())
}

/// The same for a bridge that filters by VLAN.
pub fn create_filtering_bridge(name: &str, mac: Mac, mtu: Option<u32>) -> Message {
    create(format!("create bridge {name}"), bridge(name, mac, mtu).vlan_filtering(true).build())
}

fn bridge(name: &str, mac: Mac, mtu: Option<u32>) -> LinkMessageBuilder<LinkBridge> {
    let builder = LinkBridge::new(name).address(mac.0.to_vec());
    match mtu {
        Some(mtu) => builder.mtu(mtu),
        None => builder,
    }
}

/// The request for a link that gives the host back what is sent by it, as if it had been received: where packets go that
/// are to be delayed on their way in. It is born up, and without a queue, as the reference makes it.
pub fn create_ifb(name: &str, mac: Mac, mtu: u32) -> Message {
    let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
        .name(name)
        .address(mac.0.to_vec())
        .mtu(mtu)
        .append_extra_attribute(LinkAttribute::TxQueueLen(0))
        .up()
        .build();
    create(format!("create link {name} (ifb)"), message)
}

pub(super) fn create(deed: String, link: LinkMessage) -> Message {
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(link))
}

/// The request that sets a link up.
pub fn set_up(link: &Link) -> Message {
    change(format!("set link {} up", link.name), LinkUnspec::new_with_index(link.index).up().build())
}

/// The request that sets a link down.
pub fn set_down(link: &Link) -> Message {
    change(format!("set link {} down", link.name), LinkUnspec::new_with_index(link.index).down().build())
}

/// The request that makes a link receive all packets.
pub fn set_promiscuous(link: &Link) -> Message {
    change(
        format!("set link {} promiscuous", link.name),
        LinkUnspec::new_with_index(link.index).promiscuous(true).build(),
    )
}

/// The request that makes a link receive only its own packets again.
pub fn unset_promiscuous(link: &Link) -> Message {
    change(
        format!("set link {} not promiscuous", link.name),
        LinkUnspec::new_with_index(link.index).promiscuous(false).build(),
    )
}

/// The request for a VRF with a routing table, which is born up.
pub fn create_vrf(name: &str, table: u32) -> Message {
    create(format!("create VRF {name} with table {table}"), LinkVrf::new(name, table).up().build())
}

/// The request that binds a link to a VRF.
pub fn set_master(link: &Link, master: &Link) -> Message {
    change(
        format!("bind link {} to {}", link.name, master.name),
        LinkUnspec::new_with_index(link.index).controller(master.index).build(),
    )
}

/// The request that makes a link nobody's port.
pub fn unset_master(link: &Link) -> Message {
    change(
        format!("take link {} from its master", link.name),
        LinkUnspec::new_with_index(link.index).nocontroller().build(),
    )
}

/// The request that makes a link receive all multicast packets.
pub fn set_all_multicast(link: &Link) -> Message {
    change(
        format!("have link {} receive all multicast packets", link.name),
        LinkUnspec::new_with_index(link.index).allmulticast(true).build(),
    )
}

/// The request that makes a link receive only those multicast packets that somebody listens for.
pub fn unset_all_multicast(link: &Link) -> Message {
    change(
        format!("have link {} receive not all multicast packets", link.name),
        LinkUnspec::new_with_index(link.index).allmulticast(false).build(),
    )
}

/// The request that gives a link its MTU in bytes.
pub fn set_mtu(link: &Link, mtu: u32) -> Message {
    change(
        format!("set MTU of link {} to {mtu}", link.name),
        LinkUnspec::new_with_index(link.index).mtu(mtu).build(),
    )
}

/// The request that gives a link the length of its transmit queue in packets.
pub fn set_tx_queue_len(link: &Link, len: u32) -> Message {
    change(
        format!("set transmit queue length of link {} to {len}", link.name),
        LinkUnspec::new_with_index(link.index).txqueuelen(len).build(),
    )
}

/// The request that makes a bridge filter VLANs. It has no name in it: older kernels (6.1) refuse one on a link that
/// is up (EBUSY), even its own.
pub fn set_vlan_filtering(bridge: &Link) -> Message {
    let message = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
        .index(bridge.index)
        .vlan_filtering(true)
        .build();
    change(format!("make bridge {} filter VLANs", bridge.name), message)
}

/// The request that gives the link of a name its alias. By its name, since looking up the index of a new veth first
/// would wait for the kernel to settle its carrier (`linkwatch_sync_dev`, net/core/link_watch.c).
pub fn set_alias(name: &str, alias: &str) -> Message {
    change(format!("set alias of link {name}"), LinkUnspec::new_with_name(name).alias(alias).build())
}

/// The request that gives a link that is down what it is known by and works with: an alias, its hardware address, its MTU in
/// bytes, and the bridge that it becomes a port of, as far as they are given.
pub fn dress(name: &str, alias: &str, mac: Option<Mac>, mtu: Option<u32>, bridge: Option<&Link>) -> Message {
    let mut builder = LinkUnspec::new_with_name(name).alias(alias);
    if let Some(mac) = mac {
        builder = builder.address(mac.0.to_vec());
    }
    if let Some(mtu) = mtu {
        builder = builder.mtu(mtu);
    }
    if let Some(bridge) = bridge {
        builder = builder.controller(bridge.index);
    }
    change(format!("configure link {name}"), builder.build())
}

/// The request that gives a link its hardware address; for a bridge it also pins it.
pub fn set_mac(link: &Link, mac: Mac) -> Message {
    change(
        format!("set MAC address of link {}", link.name),
        LinkUnspec::new_with_index(link.index).address(mac.0.to_vec()).build(),
    )
}

/// Whether somebody has given a link of the host its MAC address (`NET_ADDR_SET` of linux/netdevice.h). rtnetlink does
/// not tell; where /sys does not either, the answer is no.
pub fn has_mac_of_its_own(link: &Link) -> bool {
    let path = format!("/sys/class/net/{}/addr_assign_type", link.name);
    kernel_file::read(path.as_str()).is_ok_and(|text| text == "3")
}

/// The request that sets the flags of a bridge port.
pub fn set_port(link: &Link, port: Port) -> Message {
    change(
        format!("set bridge port flags of link {}", link.name),
        LinkBridgePort::new(link.index).hairpin(port.hairpin).isolated(port.isolated).build(),
    )
}

/// The request that deletes a link, and with a veth its peer.
pub fn delete(link: &Link) -> Message {
    let message = LinkUnspec::new_with_index(link.index).build();
    Message::new(format!("delete link {}", link.name), 0, RouteNetlinkMessage::DelLink(message))
}

/// RTM_NEWLINK on a link that is there changes it; unlike RTM_SETLINK it also takes the data of a bridge port.
fn change(deed: String, link: LinkMessage) -> Message {
    Message::new(deed, 0, RouteNetlinkMessage::NewLink(link))
}

impl Rtnl {
    /// The link of a name. `None` also where no link can have it: the kernel does not look then, and says `ERANGE`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        if name.len() >= nix::libc::IFNAMSIZ {
            return Ok(None);
        }
        self.query_link(format!("look up link {name}"), LinkUnspec::new_with_name(name))
    }

    /// Makes a link; gives it as it was born, if the kernel tells (since Linux 6.2).
    pub fn create(&mut self, request: Message) -> Result<Option<Link>> {
        Ok(self.socket.execute_with_echo(request)?.map(|body| Link::parse(&body)))
    }

    /// The link of an index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.query_link(format!("look up the link of index {index}"), LinkUnspec::new_with_index(index))
    }

    fn query_link(&mut self, deed: String, builder: LinkMessageBuilder<LinkUnspec>) -> Result<Option<Link>> {
        // Statistics would be half of the answer.
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let message = RouteNetlinkMessage::GetLink(builder.append_extra_attribute(mask).build());
        Ok(self.get(deed, message)?.map(|body| Link::parse(&body)))
    }

    /// All links that are ports of a master.
    pub fn ports(&mut self, master: &Link) -> Result<Vec<Link>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .controller(master.index)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let found =
            self.dump(&format!("list the ports of {}", master.name), RouteNetlinkMessage::GetLink(message))?;
        // Kernels without strict filters list all links.
        Ok(found.iter().map(|body| Link::parse(body)).filter(|l| l.master == Some(master.index)).collect())
    }

    /// All VRFs.
    pub fn vrfs(&mut self) -> Result<Vec<Link>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Vrf)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let found = self.dump("list the links of kind vrf", RouteNetlinkMessage::GetLink(message))?;
        // Kernels that do not know the kind list all links.
        Ok(found.iter().map(|body| Link::parse(body)).filter(|l| l.kind == "vrf").collect())
    }

    /// All ends of veth pairs.
    pub fn veths(&mut self) -> Result<Vec<Link>> {
        self.links_of_kind("veth", InfoKind::Veth)
    }

    /// All links of the kind `ifb`.
    pub fn ifbs(&mut self) -> Result<Vec<Link>> {
        self.links_of_kind("ifb", InfoKind::Ifb)
    }

    fn links_of_kind(&mut self, name: &str, kind: InfoKind) -> Result<Vec<Link>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let found =
            self.dump(&format!("list the links of kind {name}"), RouteNetlinkMessage::GetLink(message))?;
        // Kernels without strict filters, or without that kind, list all links.
        Ok(found.iter().map(|body| Link::parse(body)).filter(|l| l.kind == name).collect())
    }
}

/// The index and the message type of a link event, for waiting until a link is gone or up.
pub fn event(kind: u16, body: &[u8]) -> Option<(Event, u32)> {
    let family = body.first().copied()?;
    let index = body.get(4..).and_then(u32_of)?;
    match (kind, family) {
        (RTM_NEWLINK, AF_UNSPEC) => Some((Event::Changed, index)),
        // A bridge announces with its own family that a port left it; the link itself goes later.
        (RTM_DELLINK, AF_UNSPEC) => Some((Event::Gone, index)),
        _ => None,
    }
}

/// What happened to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new or otherwise than before.
    Changed,
    /// It is gone from its namespace.
    Gone,
}

/// Multicast group of link events (linux/rtnetlink.h).
pub const RTNLGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const AF_UNSPEC: u8 = 0;
