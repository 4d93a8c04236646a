//! Links that share another link, their master, with the host: macvlan, ipvlan and VLANs; and dummies, which have no
//! master, but are made in the same way: alone, in the namespace that they are for.

use std::fmt;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, IpVlanMode,
    LinkAttribute, MacVlanMode,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::{nested, u32_of};
use crate::net::netlink::Message;
use crate::net::{Mac, Netns};

/// Attributes of the kinds (linux/if_link.h).
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;

/// What such a link is, and what its kind can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settings {
    /// A link with a MAC address of its own.
    Macvlan {
        /// How it talks to others of the same master.
        mode: MacvlanMode,
        /// Broadcasts that may wait to be received, in packets; `None` for the kernel's choice.
        broadcast_queue: Option<u32>,
    },
    /// A link with its master's MAC address, told from others by its IP addresses.
    Ipvlan {
        /// Which layer it works on. The kernel has one mode for all ipvlan links of a master.
        mode: IpvlanMode,
    },
    /// A VLAN of its master (802.1Q). The kernel has each only once for a master, in whichever namespace.
    Vlan {
        /// Its ID.
        id: u16,
    },
    /// A link that swallows what is sent.
    Dummy,
}

/// Modes of macvlan (`MACVLAN_MODE_*` of linux/if_link.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvlanMode {
    /// Links of one master reach each other directly.
    Bridge,
    /// They do not reach each other.
    Private,
    /// They reach each other if the switch outside sends their packets back.
    Vepa,
    /// The only link of its master, whose MAC address it has.
    Passthru,
}

/// Modes of ipvlan (`IPVLAN_MODE_*` of linux/if_link.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpvlanMode {
    /// As a switch: with ARP and broadcasts.
    L2,
    /// As a router: without.
    L3,
    /// As a router that passes the host's netfilter.
    L3s,
}

impl MacvlanMode {
    /// All of them, the usual one first.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    /// Its name as iproute2 has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Private => 1,
            Self::Vepa => 2,
            Self::Bridge => 4,
            Self::Passthru => 8,
        }
    }
}

impl IpvlanMode {
    /// All of them, the usual one first.
    pub const ALL: [Self; 3] = [Self::L2, Self::L3, Self::L3s];

    /// Its name as iproute2 has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        }
    }

    const fn number(self) -> u16 {
        match self {
            Self::L2 => 0,
            Self::L3 => 1,
            Self::L3s => 2,
        }
    }
}

impl Settings {
    /// The name of the kind.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Dummy => "dummy",
        }
    }

    /// The kernel's module that has it, as /sys/module names it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Vlan { .. } => "8021q",
            other => other.kind(),
        }
    }

    /// The option by which a kernel is built with it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Macvlan { .. } => "CONFIG_MACVLAN",
            Self::Ipvlan { .. } => "CONFIG_IPVLAN",
            Self::Vlan { .. } => "CONFIG_VLAN_8021Q",
            Self::Dummy => "CONFIG_DUMMY",
        }
    }

    /// Whether a link that is set so is as these want it.
    pub fn is_met_by(self, have: Self) -> bool {
        match (self, have) {
            (
                Self::Macvlan { mode: wanted, broadcast_queue: None },
                Self::Macvlan { mode: found, broadcast_queue: _ },
            ) => wanted == found,
            _ => self == have,
        }
    }

    /// Reads the data of a link's kind; `None` where it is of another kind, or set to what this program never sets.
    pub(super) fn parse(kind: &str, data: &[u8]) -> Option<Self> {
        let value = |wanted: u16| nested(data).find(|(key, _)| *key == wanted).map(|(_, value)| value);
        let u16_of = |value: &[u8]| value.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        match kind {
            "macvlan" => {
                let number = value(IFLA_MACVLAN_MODE).and_then(u32_of)?;
                let mode = MacvlanMode::ALL.into_iter().find(|mode| mode.number() == number)?;
                let broadcast_queue = value(IFLA_MACVLAN_BC_QUEUE_LEN).and_then(u32_of);
                Some(Self::Macvlan { mode, broadcast_queue })
            }
            "ipvlan" => {
                let number = value(IFLA_IPVLAN_MODE).and_then(u16_of)?;
                let mode = IpvlanMode::ALL.into_iter().find(|mode| mode.number() == number)?;
                Some(Self::Ipvlan { mode })
            }
            "vlan" => value(IFLA_VLAN_ID).and_then(u16_of).map(|id| Self::Vlan { id }),
            _ => None,
        }
    }

    fn data(self) -> Option<InfoData> {
        match self {
            Self::Macvlan { mode, broadcast_queue } => {
                let mode = InfoMacVlan::Mode(MacVlanMode::from(mode.number()));
                let queue = broadcast_queue.map(InfoMacVlan::BcQueueLen);
                Some(InfoData::MacVlan([mode].into_iter().chain(queue).collect()))
            }
            Self::Ipvlan { mode } => {
                Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::from(mode.number()))]))
            }
            Self::Vlan { id } => Some(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            Self::Dummy => None,
        }
    }

    fn info_kind(self) -> InfoKind {
        match self {
            Self::Macvlan { .. } => InfoKind::MacVlan,
            Self::Ipvlan { .. } => InfoKind::IpVlan,
            Self::Vlan { .. } => InfoKind::Vlan,
            Self::Dummy => InfoKind::Dummy,
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Macvlan { mode, broadcast_queue } => {
                write!(f, "macvlan in mode {}", mode.as_str())?;
                broadcast_queue.map_or(Ok(()), |queue| write!(f, ", bcqueuelen {queue}"))
            }
            Self::Ipvlan { mode } => write!(f, "ipvlan in mode {}", mode.as_str()),
            Self::Vlan { id } => write!(f, "VLAN {id}"),
            Self::Dummy => f.write_str("dummy"),
        }
    }
}

/// A link as it is to be born.
#[derive(Clone, Debug)]
pub struct NewSublink<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub settings: Settings,
    /// Index of its master in the namespace of the socket.
    pub master: Option<u32>,
    /// The namespace that it is born in; `None` for the socket's own.
    pub netns: Option<&'a Netns>,
    /// Its hardware address; `None` for the kernel's choice.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; `None` for the kernel's choice, which is the master's.
    pub mtu: Option<u32>,
    /// The number of a group that it is in (`ip link show group`): what tells whose it is as long as it has no alias.
    pub group: u32,
}

/// The request for a link, in its final namespace with its final name. It is born down.
///
/// Kernels before 6.15 refuse (EEXIST) a name that a link of the *socket's* namespace has (`__rtnl_newlink`,
/// net/core/rtnetlink.c).
pub fn create(new: &NewSublink<'_>) -> Message {
    let kind = new.settings.info_kind();
    let mut builder =
        LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).name(new.name).link_group(new.group);
    if let Some(data) = new.settings.data() {
        builder = builder.set_info_data(data);
    }
    if let Some(master) = new.master {
        builder = builder.link(master);
    }
    if let Some(netns) = new.netns {
        builder = builder.setns_by_fd(netns.as_raw_fd());
    }
    if let Some(mac) = new.mac {
        builder = builder.address(mac.0.to_vec());
    }
    if let Some(mtu) = new.mtu {
        builder = builder.mtu(mtu);
    }
    let deed = format!("create link {} ({})", new.name, new.settings);
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(builder.build()))
}

/// The request that makes a new link what it is to be: with its alias, out of its group, and announcing its IPv4
/// addresses when it comes up (sysctl `arp_notify`).
pub fn complete(name: &str, alias: &str) -> Message {
    complete_by(LinkUnspec::new_with_name(name), name, alias)
}

/// The same for a link that was born under another name. It must be down.
pub fn complete_and_rename(link: &Link, name: &str, alias: &str) -> Message {
    complete_by(LinkUnspec::new_with_index(link.index).name(name), name, alias)
}

fn complete_by(builder: LinkMessageBuilder<LinkUnspec>, name: &str, alias: &str) -> Message {
    let mut conf = InetDevConf::default();
    conf.arp_notify = 1;
    let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
    let message = builder
        .alias(alias)
        .link_group(0)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![inet]))
        .build();
    Message::new(format!("name the owner of link {name}"), 0, RouteNetlinkMessage::NewLink(message))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Nla};

    use super::*;

    fn bytes<T: Nla>(attributes: &[T]) -> Vec<u8> {
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = MacvlanMode::ALL
            .into_iter()
            .map(|mode| Settings::Macvlan { mode, broadcast_queue: Some(1000) })
            .chain(IpvlanMode::ALL.into_iter().map(|mode| Settings::Ipvlan { mode }))
            .chain([0, 100, 4094].map(|id| Settings::Vlan { id }));
        for settings in all {
            let data = match settings.data().unwrap() {
                InfoData::MacVlan(attributes) => bytes(attributes.as_slice()),
                InfoData::IpVlan(attributes) => bytes(attributes.as_slice()),
                InfoData::Vlan(attributes) => bytes(attributes.as_slice()),
                other => panic!("{other:?}"),
            };
            assert_eq!(Settings::parse(settings.kind(), &data), Some(settings));
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn bytes_are_those_of_iproute2() {
        // `ip link add link uplink name eth0 type macvlan mode bridge bcqueuelen 500`, as strace shows it, but for
        // the order: it sends the queue first.
        let settings = Settings::Macvlan { mode: MacvlanMode::Bridge, broadcast_queue: Some(500) };
        let Some(InfoData::MacVlan(attributes)) = settings.data() else { panic!("no data") };
        assert_eq!(bytes(attributes.as_slice()), [8, 0, 1, 0, 4, 0, 0, 0, 8, 0, 7, 0, 0xf4, 1, 0, 0]);
    }

    #[test]
    fn odd_data_is_no_setting() {
        assert_eq!(Settings::parse("macvlan", &[8, 0, 1, 0, 16, 0, 0, 0]), None, "mode source");
        assert_eq!(Settings::parse("ipvlan", &[]), None);
        assert_eq!(Settings::parse("vlan", &[5, 0, 1, 0, 7]), None);
        assert_eq!(Settings::parse("veth", &[8, 0, 1, 0, 4, 0, 0, 0]), None);
    }
}
