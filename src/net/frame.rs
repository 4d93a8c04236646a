//! Frames by which an interface tells its neighbours of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::sys::socket::SockFlag;

use super::checksum::checksum;
use super::packet::{BROADCAST, Destination, PacketSocket};
use super::{Error, Mac, Result};

/// `ETH_P_ARP` and `ETH_P_IPV6` (linux/if_ether.h).
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// Where all that speak IPv6 hear: `ff02::1`, and its multicast address in Ethernet (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// What stands before a neighbour advertisement: a whole IPv6 header (RFC 8200, section 3).
const IPV6_HEADER: usize = 40;
const NEXT_HEADER_ICMPV6: u8 = 58;
/// No router has forwarded it (RFC 4861, section 7.1.2).
const HOP_LIMIT: u8 = 255;

/// What an Ethernet frame is sent with; its own address is put in by the link that sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    protocol: u16,
    destination: Mac,
    payload: Vec<u8>,
}

impl Frame {
    /// The announcement that an address is to be found at a MAC address from now on: by ARP (RFC 5227, section 3) or by
    /// an unsolicited neighbour advertisement (RFC 4861, section 7.2.6).
    pub fn announcement(mac: Mac, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                Self { protocol: ETH_P_ARP, destination: BROADCAST, payload: arp_announcement(mac, address) }
            }
            IpAddr::V6(address) => Self {
                protocol: ETH_P_IPV6,
                destination: ALL_NODES_MAC,
                payload: neighbour_advertisement(mac, address),
            },
        }
    }

    /// Sends frames by a link of the thread's namespace.
    pub fn send_all(frames: &[Self], link: u32) -> Result<()> {
        let failed = |deed: &str, e: Errno| Error::new(format!("{deed} by link {link}"), e);
        let socket =
            PacketSocket::open(SockFlag::empty()).map_err(|e| failed("open a packet socket to send", e))?;
        for Self { protocol, destination, payload } in frames {
            let to = Destination { link, mac: *destination, protocol: *protocol };
            socket.send(payload, to).map_err(|e| failed("send an announcement", e))?;
        }
        Ok(())
    }
}

/// A request for an address by who has it (RFC 826; RFC 5227, section 1.1).
fn arp_announcement(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let address = address.octets();
    let ethernet_and_ipv4 = [0, 1, 8, 0, 6, 4];
    let request = [0, 1];
    [&ethernet_and_ipv4[..], &request, &mac.0, &address, &[0; 6], &address].concat()
}

/// A neighbour advertisement that overrides what neighbours know (RFC 4861, section 4.4), in its IPv6 packet.
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let own = address.octets();
    let option = [&[TARGET_LINK_LAYER_ADDRESS, 1][..], &mac.0].concat();
    let mut message = [&[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &own, &option].concat();
    let length = (message.len() as u16).to_be_bytes();
    let everybody = ALL_NODES.octets();
    let pseudo_header = [&own[..], &everybody, &[0, 0], &length, &[0, 0, 0, NEXT_HEADER_ICMPV6]].concat();
    let sum = checksum(&[&pseudo_header, &message]);
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = Vec::with_capacity(IPV6_HEADER + message.len());
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(length);
    packet.extend([NEXT_HEADER_ICMPV6, HOP_LIMIT]);
    packet.extend(own);
    packet.extend(everybody);
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn arp_announces_sender_and_target_alike() {
        let frame = Frame::announcement(MAC, "10.1.0.7".parse().unwrap());
        assert_eq!((frame.protocol, frame.destination), (0x0806, BROADCAST));
        let wanted = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 10, 1, 0, 7, 0, 0, 0, 0, 0, 0, 10, 1, 0, 7];
        assert_eq!(frame.payload, wanted);
    }

    #[test]
    fn an_advertisement_has_the_checksum_that_receivers_compute() {
        let frame = Frame::announcement(MAC, "fd00::7".parse().unwrap());
        let packet = &frame.payload;
        assert_eq!(packet.len(), IPV6_HEADER + 32);
        assert_eq!((packet[6], packet[7], packet[40]), (58, 255, 136));
        // Over the pseudo-header and the message with its checksum, the sum is all ones.
        let length = [packet[4], packet[5]];
        let pseudo = [&packet[8..40], &[0, 0], &length, &[0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[40..]]), 0);
        assert_eq!(&packet[66..], &MAC.0);
    }
}
