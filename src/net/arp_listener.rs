//! ARP by a link that has no address yet: whether somebody else has the one that it is to get.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::SockFlag;

use super::packet::bpf::{JUMP_IF_EQUAL, LOAD_WORD, RETURN, step};
use super::packet::{BROADCAST, Destination, PacketSocket};
use super::{Error, Link, Mac, Result};

const ETH_P_ARP: u16 = libc::ETH_P_ARP as u16;

/// Hardware and protocol of ARP for IPv4 on Ethernet, and the lengths of their addresses (RFC 826).
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];

/// Where a packet has the address in IPv4 of its sender.
const SENDER: u32 = 14;

/// Longest packet of ARP for IPv4 on Ethernet.
const LEN: usize = 28;

/// A socket that takes the packets of ARP that come by one link and are from whoever has an address; it never blocks.
/// It belongs to the namespace in which it was opened, and holds that.
#[derive(Debug)]
pub struct ArpListener {
    socket: PacketSocket,
    link: u32,
    name: String,
    own: Mac,
}

impl ArpListener {
    /// Opens a socket on a link of the calling thread's namespace that has this MAC address. It hears nothing yet.
    pub fn open(link: &Link, own: Mac) -> Result<Self> {
        let open = || -> nix::Result<Self> {
            let socket = PacketSocket::open(SockFlag::SOCK_NONBLOCK)?;
            // Else others' packets would take the room before it is known which to take.
            socket.attach_filter(&mut [step(RETURN, 0, 0, 0)])?;
            socket.bind(link.index, ETH_P_ARP)?;
            Ok(Self { socket, link: link.index, name: link.name.clone(), own })
        };
        open().map_err(|e| Error::new(format!("open a packet socket for ARP on link {}", link.name), e))
    }

    /// Has it hear who has an address.
    pub fn listen(&self, address: Ipv4Addr) -> Result<()> {
        let mut filter = [
            step(LOAD_WORD, 0, 0, SENDER),
            step(JUMP_IF_EQUAL, 0, 1, address.to_bits()),
            step(RETURN, 0, 0, u32::MAX),
            step(RETURN, 0, 0, 0),
        ];
        let attached = self.socket.attach_filter(&mut filter);
        attached.map_err(|e| Error::new(format!("listen to ARP on link {}", self.name), e))
    }

    /// Asks who has an address, without telling anybody that it is here (RFC 5227, section 1.1: a probe).
    pub fn ask(&self, address: Ipv4Addr) -> Result<()> {
        let to = Destination { link: self.link, mac: BROADCAST, protocol: ETH_P_ARP };
        let sent = self.socket.send(&probe(self.own, address), to);
        sent.map_err(|e| Error::new(format!("send a probe of {address} by link {}", self.name), e))
    }

    /// Who else has the address, as a packet that has come tells; `None` where it tells nothing of that. `EAGAIN` where
    /// none has come.
    pub fn receive(&self, address: Ipv4Addr) -> nix::Result<Option<Mac>> {
        let mut packet = [0; LEN];
        let (len, _) = self.socket.receive(&mut packet)?;
        // One that has come for the address before may wait still.
        let is_meant = |(mac, of): &(Mac, Ipv4Addr)| *mac != self.own && *of == address;
        Ok(packet.get(..len).and_then(sender).filter(is_meant).map(|(mac, _)| mac))
    }
}

impl AsRawFd for ArpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn probe(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    [&ETHERNET_AND_IPV4[..], &REQUEST, &own.0, &[0; 4], &[0; 6], &address.octets()].concat()
}

/// The addresses of the sender.
fn sender(packet: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let (head, addresses) = packet.split_at_checked(ETHERNET_AND_IPV4.len() + REQUEST.len())?;
    let (mac, rest) = addresses.split_first_chunk()?;
    let address: &[u8; 4] = rest.first_chunk()?;
    (packet.len() == LEN && head.starts_with(&ETHERNET_AND_IPV4)).then_some((Mac(*mac), (*address).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_says_of_its_sender_only_the_link() {
        let own = Mac([2, 0, 0, 0, 0, 7]);
        let packet = probe(own, [10, 1, 0, 7].into());
        let wanted = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 1, 0, 7];
        assert_eq!(packet, wanted);
        assert_eq!(sender(&packet), Some((own, Ipv4Addr::UNSPECIFIED)));
    }

    #[test]
    fn what_is_not_of_ethernet_and_ipv4_is_nobodys() {
        let mut packet = probe(Mac([2; 6]), [10, 1, 0, 7].into());
        assert_eq!(sender(&packet[..27]), None);
        packet[1] = 6;
        assert_eq!(sender(&packet), None);
    }
}
