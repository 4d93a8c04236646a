//! As much of rtnetlink as the floor needs: an encoder of requests, and a socket that sends them.
//!
//! It is written out here, without a crate, so that what is timed is the kernel's work and next to nothing else.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::{
    AF_INET, AF_NETLINK, AF_UNSPEC, IFA_LOCAL, IFF_UP, IFLA_ADDRESS, IFLA_EXT_MASK, IFLA_IFNAME,
    IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_NET_NS_FD, IFLA_NUM_RX_QUEUES,
    IFLA_NUM_TX_QUEUES, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_ROUTE, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REQUEST, NLMSG_ERROR, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_GATEWAY, RTA_OIF,
    RTEXT_FILTER_SKIP_STATS, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTMGRP_LINK,
    RTN_UNICAST, RTPROT_BOOT, SO_RCVTIMEO, SOCK_CLOEXEC, SOCK_RAW, SOL_NETLINK, SOL_SOCKET,
};
use nix::libc::{bind, sa_family_t, setsockopt, sockaddr_nl, socket, socklen_t, timeval};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Length of `struct nlmsghdr` (linux/netlink.h): length u32, type u16, flags u16, sequence u32, port u32.
const MESSAGE_HEADER: usize = 16;
/// Length of `struct nlattr` (linux/netlink.h): length u16, type u16.
const ATTRIBUTE_HEADER: usize = 4;
/// Messages and attributes begin at multiples of it (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`; linux/netlink.h).
const ALIGNMENT: usize = 4;
/// The attribute with the message of the peer in the data of a veth (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// The attribute of an acknowledgement with the kernel's own words (`enum nlmsgerr_attrs`, linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Where the attributes of an acknowledgement begin: after the header, the error and the header of the request, which
/// is all that `NETLINK_CAP_ACK` leaves of it (netlink(7)).
const ACK_ATTRIBUTES: usize = 2 * MESSAGE_HEADER + 4;
/// No datagram of the kernel is larger (`NLMSG_GOODSIZE` is a page, dumps take up to 32 KiB; net/netlink/af_netlink.c).
const BUFFER_BYTES: usize = 32 * 1024;
/// How long the kernel may take to answer, in seconds.
const DEADLINE_SECONDS: i64 = 5;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// One end of a veth pair.
pub(crate) struct End<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its hardware address.
    pub(crate) mac: Mac,
}

/// A message of rtnetlink, without the sequence number that it gets when it is sent.
pub(crate) struct Message {
    bytes: Vec<u8>,
    deed: &'static str,
}

impl Message {
    /// A message of this type with a fixed header; `flags` beside `NLM_F_REQUEST`. `deed` is for errors.
    fn new(deed: &'static str, kind: u16, flags: i32, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        // The length is known in the end.
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        // The flags of linux/netlink.h are 16 bits wide, whatever type libc gives them.
        bytes.extend(((NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Self { bytes, deed }.closed(0)
    }

    /// Appends an attribute.
    fn attribute(self, kind: u16, payload: &[u8]) -> Self {
        self.nested(kind, |mut inner| {
            inner.bytes.extend(payload);
            inner
        })
    }

    /// Appends an attribute with a text that ends with a zero.
    fn text(self, kind: u16, text: &str) -> Self {
        self.nested(kind, |mut inner| {
            inner.bytes.extend(text.as_bytes());
            inner.bytes.push(0);
            inner
        })
    }

    /// Appends an attribute that contains what `content` appends.
    fn nested(mut self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        let mut message = content(self);
        // The padding does not count, but for the attributes around this one.
        let length = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message.bytes.resize(message.bytes.len().next_multiple_of(ALIGNMENT), 0);
        message.closed(0)
    }

    /// Fills in the length and the sequence number.
    fn closed(mut self, sequence: u32) -> Self {
        let length = (self.bytes.len() as u32).to_ne_bytes();
        self.bytes[..4].copy_from_slice(&length);
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self
    }

    /// `ip link add NAME address MAC up type bridge`
    pub(crate) fn new_bridge(name: &str, mac: Mac) -> Self {
        let header = link_header(0, IFF_UP);
        Self::new("create the bridge", RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &header)
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_ADDRESS, &mac)
            .nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"))
    }

    /// `ip link add HOST address MAC numtxqueues 1 numrxqueues 1 master BRIDGE up type veth peer POD address MAC
    /// numtxqueues 1 numrxqueues 1 netns POD`, with the namespace as an open file. The peer cannot be created up: a
    /// veth without its other end refuses (ENOTCONN; `veth_open`, drivers/net/veth.c). One queue, because the kernel
    /// makes one for each processor otherwise, and waits for RCU with RTNL held to put all but the first out of use.
    pub(crate) fn new_veth(host: &End, bridge: u32, pod: &End, netns: BorrowedFd) -> Self {
        let one = 1u32.to_ne_bytes();
        let queues = |to: Self| to.attribute(IFLA_NUM_TX_QUEUES, &one).attribute(IFLA_NUM_RX_QUEUES, &one);
        let peer = |mut data: Self| {
            data.bytes.extend(link_header(0, 0));
            let named = data.text(IFLA_IFNAME, pod.name).attribute(IFLA_ADDRESS, &pod.mac);
            queues(named).attribute(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes())
        };
        let veth = |info: Self| {
            let kind = info.text(IFLA_INFO_KIND, "veth");
            kind.nested(IFLA_INFO_DATA, |data| data.nested(VETH_INFO_PEER, peer))
        };
        let header = link_header(0, IFF_UP);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let named = Self::new("create the veth pair", RTM_NEWLINK, flags, &header)
            .text(IFLA_IFNAME, host.name)
            .attribute(IFLA_ADDRESS, &host.mac)
            .attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        queues(named).nested(IFLA_LINKINFO, veth)
    }

    /// `ip address add ADDRESS/PREFIX dev LINK`
    pub(crate) fn new_address(link: u32, address: Ipv4Addr, prefix: u8) -> Self {
        // struct ifaddrmsg (linux/if_addr.h): family, prefix length, flags, scope; index.
        let mut header = [AF_INET as u8, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
        header[4..].copy_from_slice(&link.to_ne_bytes());
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        Self::new("add the address", RTM_NEWADDR, flags, &header).attribute(IFA_LOCAL, &address.octets())
    }

    /// `ip link set LINK up`
    pub(crate) fn set_up(link: u32) -> Self {
        Self::new("set the link up", RTM_NEWLINK, NLM_F_ACK, &link_header(link, IFF_UP))
    }

    /// `ip route add default via GATEWAY dev LINK`
    pub(crate) fn new_default_route(link: u32, gateway: Ipv4Addr) -> Self {
        // struct rtmsg (linux/rtnetlink.h): family, destination's prefix length, source's, TOS, table, protocol,
        // scope, type; flags.
        let of_boot = [RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
        let header = [&[AF_INET as u8, 0, 0, 0], &of_boot[..], &[0; 4]].concat();
        Self::new("add the default route", RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &header)
            .attribute(RTA_GATEWAY, &gateway.octets())
            .attribute(RTA_OIF, &link.to_ne_bytes())
    }

    /// `ip link show NAME`, without statistics. The link itself is the answer, so none is asked for on top of it.
    pub(crate) fn get_link(name: &str) -> Self {
        Self::new("look the link up", RTM_GETLINK, 0, &link_header(0, 0))
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
    }

    /// `ip link delete LINK`
    pub(crate) fn delete_link(link: u32) -> Self {
        Self::new("delete the link", RTM_DELLINK, NLM_F_ACK, &link_header(link, 0))
    }
}

/// `struct ifinfomsg` (linux/rtnetlink.h): family u8, padding, type u16, index, flags and the mask of flags to change.
fn link_header(link: u32, up: i32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..].copy_from_slice(&up.to_ne_bytes());
    header
}

/// A message as it was received.
struct Received<'a> {
    kind: u16,
    sequence: u32,
    /// With the header.
    bytes: &'a [u8],
}

/// Takes a datagram apart; ends at what is no whole message.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = number(datagram, 0)? as usize;
        let bytes = datagram.get(..length).filter(|bytes| bytes.len() >= MESSAGE_HEADER)?;
        datagram = datagram.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        Some(Received { kind, sequence: number(bytes, 8)?, bytes })
    })
}

/// The number of 32 bits at this place.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl Received<'_> {
    /// What an acknowledgement (netlink(7)) says. `Err` has the errno and the kernel's own words, if there are any.
    fn acknowledged(&self, deed: &str) -> Result<()> {
        let code = number(self.bytes, MESSAGE_HEADER).context("an acknowledgement without a code")?;
        if code == 0 {
            return Ok(());
        }
        let errno = Errno::from_raw((code as i32).wrapping_neg());
        let mut attributes = self.bytes.get(ACK_ATTRIBUTES..).unwrap_or_default();
        while let [low, high, kind_low, kind_high, ..] = *attributes {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let Some(text) = attributes.get(ATTRIBUTE_HEADER..length) else { break };
            if u16::from_ne_bytes([kind_low, kind_high]) == NLMSGERR_ATTR_MSG {
                let text = String::from_utf8_lossy(text);
                bail!("{deed}: {errno}: {}", text.trim_end_matches('\0'));
            }
            attributes = attributes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        bail!("{deed}: {errno}")
    }
}

/// A socket of rtnetlink. It belongs to the network namespace in which it was opened.
pub(crate) struct Socket {
    file: File,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket for requests, in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        Self::bound(0)
    }

    /// Opens a socket that hears of every change of a link in the calling thread's network namespace.
    pub(crate) fn subscribed() -> Result<Self> {
        Self::bound(RTMGRP_LINK as u32)
    }

    fn bound(groups: u32) -> Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = Errno::result(unsafe { socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE) })
            .context("open a netlink socket")?;
        // SAFETY: the descriptor is new, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, SOL_NETLINK, NETLINK_CAP_ACK, &1i32)?;
        set(&fd, SOL_NETLINK, NETLINK_EXT_ACK, &1i32)?;
        set(&fd, SOL_SOCKET, SO_RCVTIMEO, &timeval { tv_sec: DEADLINE_SECONDS, tv_usec: 0 })?;
        // SAFETY: a sockaddr_nl is made of integers only, for which zeroes are valid.
        let mut address: sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = AF_NETLINK as sa_family_t;
        address.nl_groups = groups;
        let length = size_of::<sockaddr_nl>() as socklen_t;
        // SAFETY: the pointer is to a live sockaddr_nl, and the length is its.
        Errno::result(unsafe { bind(fd.as_raw_fd(), (&raw const address).cast(), length) })
            .context("bind a netlink socket")?;
        Ok(Self { file: File::from(fd), sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends the requests together and waits for the acknowledgement of each. Fails with the first that was refused.
    pub(crate) fn execute<const N: usize>(&mut self, requests: [Message; N]) -> Result<()> {
        let deeds = requests.each_ref().map(|request| request.deed);
        let first = self.sequence.wrapping_add(1);
        self.send(requests)?;
        let mut pending = N;
        while pending > 0 {
            for message in messages(self.receive()?) {
                let deed = deeds.get(message.sequence.wrapping_sub(first) as usize);
                if let (NLMSG_ERROR, Some(deed)) = (i32::from(message.kind), deed) {
                    message.acknowledged(deed)?;
                    pending -= 1;
                }
            }
        }
        Ok(())
    }

    /// The index of the link of this name. Asking for a link makes the kernel settle its carrier first.
    pub(crate) fn link(&mut self, name: &str) -> Result<u32> {
        let request = Message::get_link(name);
        let deed = request.deed;
        self.send([request])?;
        let sequence = self.sequence;
        loop {
            if let Some(message) = messages(self.receive()?).find(|message| message.sequence == sequence) {
                if message.kind != RTM_NEWLINK {
                    message.acknowledged(deed)?;
                    bail!("{deed}: no link in the answer");
                }
                // After the header, the family and the type.
                return number(message.bytes, MESSAGE_HEADER + 4).context("an answer without a link");
            }
        }
    }

    /// Waits for the event that this link is gone. A bridge tells of the loss of a port with the same type of message,
    /// but of its own family, and earlier.
    pub(crate) fn await_gone(&mut self, link: u32) -> Result<()> {
        loop {
            for message in messages(self.receive()?).filter(|message| message.kind == RTM_DELLINK) {
                let family = message.bytes.get(MESSAGE_HEADER).copied().map(i32::from);
                if family == Some(AF_UNSPEC) && number(message.bytes, MESSAGE_HEADER + 4) == Some(link) {
                    return Ok(());
                }
            }
        }
    }

    fn send<const N: usize>(&mut self, requests: [Message; N]) -> Result<()> {
        let numbered = requests.map(|request| {
            self.sequence = self.sequence.wrapping_add(1);
            request.closed(self.sequence).bytes
        });
        let bytes = numbered.concat();
        // What is written to a netlink socket without an address goes to the kernel (netlink(7)), as one datagram.
        let sent = self.file.write(&bytes).context("send a netlink request")?;
        if sent != bytes.len() {
            bail!("a netlink request was cut after {sent} bytes");
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<&[u8]> {
        let length = self.file.read(&mut self.buffer).context("wait for the kernel's answer")?;
        Ok(&self.buffer[..length])
    }
}

/// Sets an option of a socket.
fn set<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> Result<()> {
    let length = size_of::<T>() as socklen_t;
    // SAFETY: the pointer is to a live value, and the length is its.
    let set = unsafe { setsockopt(fd.as_raw_fd(), level, option, (value as *const T).cast(), length) };
    Errno::result(set).map(drop).context("set an option of a netlink socket")
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    /// What `ip -4 route add default via 10.88.0.1 dev LINK` sends, where LINK has index 2; without the `RTA_DST` of
    /// 0.0.0.0, which says no more than the prefix length of 0 does.
    #[test]
    fn default_route() {
        let expected = [
            &[44, 0, 0, 0, 24, 0, 5, 6, 9, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[8, 0, 5, 0, 10, 88, 0, 1],
            &[8, 0, 4, 0, 2, 0, 0, 0],
        ];
        let route = Message::new_default_route(2, Ipv4Addr::new(10, 88, 0, 1)).closed(9);
        assert_eq!(route.bytes, expected.concat());
    }

    #[test]
    fn address_and_links() {
        let address = Message::new_address(3, Ipv4Addr::new(10, 88, 0, 2), 16).bytes;
        let expected = [
            &[32, 0, 0, 0, 20, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 16, 0, 0, 3, 0, 0, 0],
            &[8, 0, 2, 0, 10, 88, 0, 2],
        ];
        assert_eq!(address, expected.concat());

        let up = [
            &[32, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        ];
        assert_eq!(Message::set_up(3).bytes, up.concat());

        let delete = [
            &[32, 0, 0, 0, 17, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(Message::delete_link(3).bytes, delete.concat());

        // The name has five bytes with its zero, and three of padding that its length leaves out.
        let get = [
            &[52, 0, 0, 0, 18, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0; 16],
            &[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0],
            &[8, 0, 29, 0, 8, 0, 0, 0],
        ];
        assert_eq!(Message::get_link("eth0").bytes, get.concat());
    }

    #[test]
    fn veth_has_its_peer_nested() {
        let netns = File::open("/dev/null").unwrap();
        let fd = netns.as_raw_fd().to_le_bytes();
        let end = |name| End { name, mac: MAC };
        let one = [8, 0, 31, 0, 1, 0, 0, 0, 8, 0, 32, 0, 1, 0, 0, 0];
        let mac = [10, 0, 1, 0, 2, 0, 0, 0, 0, 7, 0, 0];
        let host = [&[8, 0, 3, 0, b'v', b'0', b'0', 0][..], &mac, &[8, 0, 10, 0, 5, 0, 0, 0], &one].concat();
        let pod = [
            &[0; 16][..],
            &[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0],
            &mac,
            &one,
            &[8, 0, 28, 0],
            &fd,
        ]
        .concat();
        // 16 bytes of ifinfomsg, 12 + 12 + 16 + 8 of attributes, and a header of 4.
        let peer = [&[68, 0, 1, 0][..], &pod].concat();
        let data = [&[72, 0, 2, 0][..], &peer].concat();
        let kind = [9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0];
        let info = [&[88, 0, 18, 0][..], &kind, &data].concat();
        let up = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        let header = [164, 0, 0, 0, 16, 0, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0];
        let expected = [&header[..], &up, &host, &info].concat();
        let veth = Message::new_veth(&end("v00"), 5, &end("eth0"), netns.as_fd());
        assert_eq!(veth.bytes, expected);
    }

    #[test]
    fn refusal_has_errno_and_words() {
        let head = [56, 0, 0, 0, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0];
        let refused = [239, 255, 255, 255];
        let words = [14, 0, 1, 0, b'i', b't', b' ', b'i', b's', b' ', b'u', b'p', b'!', 0, 0, 0];
        let request = Message::set_up(3);
        let mut datagram = [&head[..], &refused, &request.bytes[..16], &words, &[0; 4]].concat();
        let text = |datagram: &[u8]| {
            let mut all = messages(datagram);
            let only = all.next().unwrap().acknowledged("set the link up");
            assert!(all.next().is_none());
            only.unwrap_err().to_string()
        };
        assert_eq!(text(&datagram), "set the link up: EEXIST: File exists: it is up!");
        datagram.truncate(36);
        datagram[0] = 36;
        assert_eq!(text(&datagram), "set the link up: EEXIST: File exists");
        datagram[16..20].fill(0);
        assert!(messages(&datagram).next().unwrap().acknowledged("").is_ok());
        // A message that is longer than its datagram is not read.
        datagram[0] = 40;
        assert!(messages(&datagram).next().is_none());
    }
}
