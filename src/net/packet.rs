//! Packets by a link that need no address of IP (packet(7)).

use std::mem::size_of_val;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Mac;
use super::error::uninterrupted;

/// The destination of what all on a link are to receive.
pub const BROADCAST: Mac = Mac([0xff; 6]);

/// A socket that sends packets by links of the namespace in which it was opened, and hears nothing. Their links'
/// header is the kernel's.
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
}

impl Destination {
    /// The same as the kernel has it.
    pub(super) fn address(self) -> libc::sockaddr_ll {
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
