//! Packets by a link that need no address of IP (packet(7)).

use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Mac;
use super::error::uninterrupted;

/// The destination of what all on a link are to receive.
pub const BROADCAST: Mac = Mac([0xff; 6]);

/// Instructions of the filters of sockets, classic BPF (linux/filter.h, linux/bpf_common.h), as far as they are used.
pub(super) mod bpf {
    pub(in crate::net) const LOAD_WORD: u16 = 0x20;
    pub(in crate::net) const LOAD_HALF: u16 = 0x28;
    pub(in crate::net) const LOAD_BYTE: u16 = 0x30;
    pub(in crate::net) const LOAD_HALF_INDEXED: u16 = 0x48;
    pub(in crate::net) const LOAD_HEADER_LEN: u16 = 0xb1;
    pub(in crate::net) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(in crate::net) const JUMP_IF_ANY_BIT: u16 = 0x45;
    pub(in crate::net) const RETURN: u16 = 0x06;

    /// One instruction: where it is a jump, over how many it goes if it is so, and if it is not.
    pub(in crate::net) fn step(code: u16, jt: u8, jf: u8, k: u32) -> nix::libc::sock_filter {
        nix::libc::sock_filter { code, jt, jf, k }
    }
}

/// A socket that sends packets by links of the namespace in which it was opened, and hears nothing unless it is bound.
/// Their links' header is the kernel's.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// Where a packet goes, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Index of the link by which it leaves.
    pub link: u32,
    /// The neighbour.
    pub mac: Mac,
    /// `ETH_P_*` (linux/if_ether.h).
    pub protocol: u16,
}

impl PacketSocket {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// To close it takes some milliseconds, in which the kernel waits for RCU.
    pub fn open(flags: SockFlag) -> nix::Result<Self> {
        // Without a protocol it receives nothing.
        socket(AddressFamily::Packet, SockType::Datagram, flags | SockFlag::SOCK_CLOEXEC, None).map(Self)
    }

    /// Sends a packet.
    pub fn send(&self, packet: &[u8], to: Destination) -> nix::Result<()> {
        let address = to.address();
        uninterrupted(|| {
            // SAFETY: packet and address live as long as the call, and are as long as it says.
            let sent = unsafe {
                libc::sendto(
                    self.0.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    0,
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                )
            };
            Errno::result(sent).map(drop)
        })
    }

    /// Has it take only what a filter lets pass, in place of the filter before.
    pub(super) fn attach_filter(&self, filter: &mut [libc::sock_filter]) -> nix::Result<()> {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: program and filter live as long as the call, which copies them.
        let attached = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        Errno::result(attached).map(drop)
    }

    /// Has it hear the packets of a protocol that come by a link.
    pub(super) fn bind(&self, link: u32, protocol: u16) -> nix::Result<()> {
        let address = Destination { link, mac: Mac([0; 6]), protocol }.address();
        // SAFETY: the address lives as long as the call, and is as long as it says.
        let bound = unsafe {
            libc::bind(
                self.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(bound).map(drop)
    }

    /// The length of a packet that has come, and the neighbour that sent it. `EAGAIN` where there is none.
    pub(super) fn receive(&self, into: &mut [u8]) -> nix::Result<(usize, Mac)> {
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

impl Destination {
    /// The same as the kernel has it.
    fn address(self) -> libc::sockaddr_ll {
        let [a, b, c, d, e, f] = self.mac.0;
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: self.protocol.to_be(),
            sll_ifindex: self.link.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [a, b, c, d, e, f, 0, 0],
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
