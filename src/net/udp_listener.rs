//! UDP over IPv4 by a link that has no address yet, as a DHCP client needs it.

use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockFlag;

use super::error::uninterrupted;
use super::packet::{Destination, PacketSocket};
use super::{Error, Link, Mac, Result};

/// Instructions of classic BPF (linux/filter.h, linux/bpf_common.h), as far as they are used here.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_HALF_INDEXED: u16 = 0x48;
const LOAD_HEADER_LEN: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

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
            attach_filter(&socket, port)?;
            let listener = Self { socket, link: link.index, name: link.name.clone() };
            let address = listener.neighbour(Mac([0; 6])).address();
            // SAFETY: the address lives as long as the call, and is as long as it says.
            let bound = unsafe {
                libc::bind(
                    listener.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            Errno::result(bound).map(|_| listener)
        };
        open().map_err(|e| Error::new(format!("open a packet socket on link {}", link.name), e))
    }

    fn neighbour(&self, mac: Mac) -> Destination {
        Destination { link: self.link, mac, protocol: libc::ETH_P_IP as u16 }
    }

    /// Sends a packet, which begins with its IPv4 header, to a neighbour.
    pub fn send(&self, packet: &[u8], to: Mac) -> Result<()> {
        let sent = self.socket.send(packet, self.neighbour(to));
        sent.map_err(|e| Error::new(format!("send a packet by link {}", self.name), e))
    }

    /// The length of a packet that has come, and the neighbour that sent it. `EAGAIN` where there is none.
    pub fn receive(&self, into: &mut [u8]) -> nix::Result<(usize, Mac)> {
        // SAFETY: all of it are numbers, for which zero is a value.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let received = uninterrupted(|| {
            // SAFETY: buffer and address live as long as the call, and are as long as it says.
            let received = unsafe {
                libc::recvfrom(
                    self.as_raw_fd(),
                    into.as_mut_ptr().cast(),
                    into.len(),
                    0,
                    (&raw mut from).cast(),
                    &mut len,
                )
            };
            Errno::result(received)
        })?;
        let mut mac = Mac([0; 6]);
        mac.0.copy_from_slice(&from.sll_addr[..6]);
        Ok((usize::try_from(received).unwrap_or_default(), mac))
    }
}

impl AsRawFd for UdpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Has a socket take only first fragments of UDP to a port, so that a pod's traffic wakes nobody.
fn attach_filter(socket: &PacketSocket, port: u16) -> nix::Result<()> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
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
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: program and filter live as long as the call, which copies them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(attached).map(drop)
}
