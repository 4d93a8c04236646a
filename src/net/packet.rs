//! Packets of IPv4 by a link that has no address yet, as a DHCP client needs them (packet(7)).

use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use super::error::uninterrupted;
use super::{Error, Link, Mac, Result};

/// The destination of what all on a link are to receive.
pub const BROADCAST: Mac = Mac([0xff; 6]);

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
pub struct PacketSocket {
    fd: OwnedFd,
    index: i32,
    name: String,
}

impl PacketSocket {
    /// Opens a socket on a link of the calling thread's namespace.
    pub fn open(link: &Link, port: u16) -> Result<Self> {
        let deed = || format!("open a packet socket on link {}", link.name);
        let failed = |_| Error::new(deed(), Errno::last());
        // Without a protocol it receives nothing before the filter is there.
        // SAFETY: socket takes no pointers.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        let fd = Errno::result(fd).map_err(failed)?;
        // SAFETY: it was opened just now, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        attach_filter(&fd, port).map_err(failed)?;
        let index = i32::try_from(link.index).map_err(|_| Error::new(deed(), Errno::ENODEV))?;
        let socket = Self { fd, index, name: link.name.clone() };
        let address = socket.address(Mac([0; 6]));
        // SAFETY: the address lives as long as the call, and is as long as it says.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(bound).map_err(failed)?;
        Ok(socket)
    }

    fn address(&self, to: Mac) -> libc::sockaddr_ll {
        // SAFETY: all of it are numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = self.index;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to.0);
        address
    }

    /// Sends a packet, which begins with its IPv4 header, to a neighbour.
    pub fn send(&self, packet: &[u8], to: Mac) -> Result<()> {
        let address = self.address(to);
        uninterrupted(|| {
            // SAFETY: packet and address live as long as the call, and are as long as it says.
            let sent = unsafe {
                libc::sendto(
                    self.fd.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    0,
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            Errno::result(sent).map(drop)
        })
        .map_err(|e| Error::new(format!("send a packet by link {}", self.name), e))
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
                    self.fd.as_raw_fd(),
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

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Has a socket take only first fragments of UDP to a port, so that a pod's traffic wakes nobody.
fn attach_filter(fd: &OwnedFd, port: u16) -> nix::Result<()> {
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
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(attached).map(drop)
}
