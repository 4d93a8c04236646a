//! What a rule wants a packet's destination to be.

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{Cmp, DataAttribute, Expressions, Meta, MetaKey, Operator, Payload};

use super::rule::Rule;

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER` (linux/netfilter/nf_tables.h).
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// The destination of packets that a rule is for; what is `None` does not matter to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The number of the transport protocol.
    pub transport: Option<u8>,
    /// The address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
}

/// Where a part of a packet is from: a header, the part's offset in it, and its length.
type Place = (u32, u32, u32);

impl Rule {
    /// What it compares the destination with, as far as that is one address and one port.
    pub fn destination(&self) -> Destination {
        let mut destination = Destination::default();
        let mut loaded: Option<Place> = None;
        let mut is_transport = false;
        for expression in self.expressions() {
            match expression {
                Expressions::Payload(parts) => (loaded, is_transport) = (place_of(&parts), false),
                Expressions::Meta(parts) => {
                    (loaded, is_transport) = (None, parts.contains(&Meta::Key(MetaKey::L4Proto)));
                }
                Expressions::Cmp(parts) if parts.contains(&Cmp::Op(Operator::Equal)) => {
                    let value = parts.iter().find_map(|part| match part {
                        Cmp::Data(DataAttribute::Value(bytes)) => Some(bytes.as_slice()),
                        _ => None,
                    });
                    destination.read(loaded, is_transport, value.unwrap_or_default());
                }
                // What is masked before it is compared is not one address.
                _ => (loaded, is_transport) = (None, false),
            }
        }
        destination
    }
}

impl Destination {
    fn read(&mut self, loaded: Option<Place>, is_transport: bool, value: &[u8]) {
        match (loaded, value) {
            (None, &[number]) if is_transport => self.transport = Some(number),
            // Offsets in struct iphdr and struct ipv6hdr.
            (Some((NETWORK, 9, 1)), &[number]) => self.transport = Some(number),
            (Some((NETWORK, 16, 4)), &[a, b, c, d]) => self.address = Some(IpAddr::from([a, b, c, d])),
            (Some((NETWORK, 24, 16)), bytes) => {
                self.address = <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
            }
            (Some((TRANSPORT, 2, 2)), &[high, low]) => self.port = Some(u16::from_be_bytes([high, low])),
            _ => {}
        }
    }
}

fn place_of(parts: &[Payload]) -> Option<Place> {
    let (mut base, mut offset, mut len) = (None, None, None);
    for part in parts {
        match part {
            Payload::Base(number) => base = Some(*number),
            Payload::Offset(number) => offset = Some(*number),
            Payload::Len(number) => len = Some(*number),
            _ => {}
        }
    }
    Some((base?, offset?, len?))
}
