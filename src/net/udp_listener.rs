//! UDP over IPv4 by a link that has no address yet, as a DHCP client needs it.

use std::os::fd::{AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::SockFlag;

use super::packet::bpf::{
    JUMP_IF_ANY_BIT, JUMP_IF_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_HALF_INDEXED, LOAD_HEADER_LEN, RETURN, step,
};
use super::packet::{Destination, PacketSocket};
use super::{Error, Link, Mac, Result};

const ETH_P_IP: u16 = libc::ETH_P_IP as u16;

/// A socket that takes the UDP packets over IPv4 that come by one link to one port, with their IPv4 header, whomever
/// they are addressed to; it never blocks. It belongs to the namespace in which it was opened, and holds that.
#[derive(Debug)]
pub struct UdpListener {
    socket: PacketSocket,
    link: u32,
    name: String,
}

impl UdpListener {
    /// Opens a socket on a link of the calling thread's namespace.
    pub fn open(link: &Link, port: u16) -> Result<Self> {
        let open = || -> nix::Result<Self> {
            let socket = PacketSocket::open(SockFlag::SOCK_NONBLOCK)?;
            // Before it receives anything.
            socket.attach_filter(&mut filter(port))?;
            socket.bind(link.index, ETH_P_IP)?;
            Ok(Self { socket, link: link.index, name: link.name.clone() })
        };
        open().map_err(|e| Error::new(format!("open a packet socket on link {}", link.name), e))
    }

    /// Sends a packet, which begins with its IPv4 header, to a neighbour.
    pub fn send(&self, packet: &[u8], to: Mac) -> Result<()> {
        let sent = self.socket.send(packet, Destination { link: self.link, mac: to, protocol: ETH_P_IP });
        sent.map_err(|e| Error::new(format!("send a packet by link {}", self.name), e))
    }

    /// The length of a packet that has come, and the neighbour that sent it. `EAGAIN` where there is none.
    pub fn receive(&self, into: &mut [u8]) -> nix::Result<(usize, Mac)> {
        self.socket.receive(into)
    }
}

impl AsRawFd for UdpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Only first fragments of UDP to a port, so that a pod's traffic wakes nobody.
fn filter(port: u16) -> [libc::sock_filter; 9] {
    [
        // Protocol of the IPv4 header.
        step(LOAD_BYTE, 0, 0, 9),
        step(JUMP_IF_EQUAL, 0, 6, libc::IPPROTO_UDP as u32),
        // Offset of the fragment.
        step(LOAD_HALF, 0, 0, 6),
        step(JUMP_IF_ANY_BIT, 4, 0, 0x1fff),
        // Port of destination, behind as long a header as it says.
        step(LOAD_HEADER_LEN, 0, 0, 0),
        step(LOAD_HALF_INDEXED, 0, 0, 2),
        step(JUMP_IF_EQUAL, 0, 1, u32::from(port)),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}
