//! Messages of DHCP (RFC 2131, figure 1), in UDP over IPv4.

use std::net::Ipv4Addr;

use super::options::{Options, code};
use crate::net::Mac;
use crate::net::checksum::checksum;

/// Port of servers.
const SERVER_PORT: u16 = 67;
/// Port of clients.
pub const CLIENT_PORT: u16 = 68;

/// Length of what comes before the options: the fixed fields and the magic cookie.
const FIXED: usize = 240;
/// Where a message marks its options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shortest message that old relays let pass (RFC 951).
const SHORTEST: usize = 300;
/// Longest message that every server takes is shorter than a frame of Ethernet.
pub const LONGEST: usize = 1400;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// The flag that asks a server to answer to all.
const BROADCAST_FLAG: u16 = 0x8000;

/// Types of messages (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client asks for what it was offered, or for more time.
    Request = 3,
    /// A client refuses what it was granted: somebody else has it.
    Decline = 4,
    /// A server grants it.
    Ack = 5,
    /// A server refuses it.
    Nak = 6,
    /// A client gives an address back.
    Release = 7,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Number by which an answer is known.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// Whether the answer is to be sent to all on the link: to a client whose link takes only what is for its address.
    pub broadcast: bool,
    /// The address that the client has.
    pub client: Ipv4Addr,
    /// The address that the server gives.
    pub yours: Ipv4Addr,
    /// The client's link.
    pub mac: Mac,
    /// All else.
    pub options: Options,
}

impl Message {
    /// The type of the message, if it is one that clients know.
    pub fn kind(&self) -> Option<Kind> {
        let kind = self.options.byte(code::MESSAGE_TYPE)?;
        [Kind::Discover, Kind::Offer, Kind::Request, Kind::Ack, Kind::Nak, Kind::Release]
            .into_iter()
            .find(|known| *known as u8 == kind)
    }

    /// The server that it is from, as it calls itself.
    pub fn server(&self) -> Option<Ipv4Addr> {
        self.options.addresses(code::SERVER).first().copied()
    }

    /// The packet of a message from a client to a server.
    pub fn to_packet(&self, to: Ipv4Addr) -> Vec<u8> {
        let mut message = vec![REQUEST, ETHERNET, 6, 0];
        message.extend(self.xid.to_be_bytes());
        message.extend(self.secs.to_be_bytes());
        message.extend(if self.broadcast { BROADCAST_FLAG } else { 0 }.to_be_bytes());
        message.extend(self.client.octets());
        message.extend([0; 12]);
        message.extend(self.mac.0);
        message.resize(FIXED - COOKIE.len(), 0);
        message.extend(COOKIE);
        self.options.write(&mut message);
        message.resize(message.len().max(SHORTEST), code::PAD);
        in_udp(self.client, to, &message)
    }

    /// Reads the packet of a message from a server to a client; none where it is anything else.
    ///
    /// Its checksum is not looked at: a packet that never left the host need not have one.
    pub fn from_packet(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let udp = packet.get(..total)?.get(header..)?;
        let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
        if header < 20 || packet.get(9) != Some(&17) || port(2) != Some(CLIENT_PORT) {
            return None;
        }
        Self::parse(udp.get(8..usize::from(port(4)?))?)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let at = |at: usize| fixed.get(at..at + 4).and_then(|it| <[u8; 4]>::try_from(it).ok());
        if fixed.get(..3)? != [REPLY, ETHERNET, 6] || at(FIXED - 4) != Some(COOKIE) {
            return None;
        }
        let mut options = Options::default();
        options.read(rest);
        // Where the options have no room, they go on in fields that have another meaning else.
        let overload = options.byte(code::OVERLOAD).unwrap_or_default();
        for (bit, field) in [(1, 108..236), (2, 44..108)] {
            if overload & bit != 0 {
                options.read(fixed.get(field)?);
            }
        }
        Some(Self {
            xid: u32::from_be_bytes(at(4)?),
            secs: 0,
            broadcast: false,
            client: at(12)?.into(),
            yours: at(16)?.into(),
            mac: Mac(fixed.get(28..34)?.try_into().ok()?),
            options,
        })
    }
}

/// A packet from a client's port to a server's.
fn in_udp(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let udp_len = (8 + payload.len()) as u16;
    let mut udp = Vec::with_capacity(8 + payload.len());
    for field in [CLIENT_PORT, SERVER_PORT, udp_len, 0] {
        udp.extend(field.to_be_bytes());
    }
    udp.extend_from_slice(payload);
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_len.to_be_bytes());
    // Zero would say that there is none.
    let sum = match checksum(&[&pseudo, &udp]) {
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    // Version and length, low delay as other clients have it; not to be fragmented; 64 hops.
    let mut packet = vec![0x45, 0x10];
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(udp);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Message {
        let mut options = Options::default();
        options.set(code::MESSAGE_TYPE, [Kind::Request as u8]);
        options.set(code::SERVER, [10, 0, 0, 1]);
        Message {
            xid: 0x0102_0304,
            secs: 5,
            broadcast: true,
            client: [10, 0, 0, 7].into(),
            yours: Ipv4Addr::UNSPECIFIED,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            options,
        }
    }

    #[test]
    fn a_packet_has_right_lengths_and_checksums() {
        let packet = request().to_packet([10, 0, 0, 1].into());
        assert_eq!(packet.len(), 20 + 8 + 300);
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend(&packet[24..26]);
        assert_eq!(checksum(&[&pseudo, &packet[20..]]), 0);
        assert_eq!(packet[28 + 10..28 + 12], [0x80, 0]);
    }

    /// The packet as a server would send it back.
    fn answered(mut packet: Vec<u8>) -> Vec<u8> {
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet[28] = REPLY;
        packet
    }

    #[test]
    fn an_answer_is_read() {
        let packet = answered(request().to_packet([10, 0, 0, 1].into()));
        let message = Message::from_packet(&packet).unwrap();
        assert_eq!((message.xid, message.kind()), (0x0102_0304, Some(Kind::Request)));
        assert_eq!(message.server(), Some([10, 0, 0, 1].into()));
        assert_eq!(message.mac, Mac([2, 0, 0, 0, 0, 1]));
        // A question is none.
        assert_eq!(Message::from_packet(&request().to_packet([10, 0, 0, 1].into())), None);
    }

    #[test]
    fn options_go_on_in_other_fields() {
        let mut packet = answered(request().to_packet([10, 0, 0, 1].into()));
        let message = 28;
        packet[message + FIXED..message + FIXED + 4].copy_from_slice(&[code::OVERLOAD, 1, 1, code::END]);
        packet[message + 108..message + 113].copy_from_slice(&[code::HOST_NAME, 2, b'm', b'e', code::END]);
        let read = Message::from_packet(&packet).unwrap();
        assert_eq!(read.options.text(code::HOST_NAME).as_deref(), Some("me"));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_fatal(mut bytes in prop::collection::vec(any::<u8>(), 0..700), cut in 0usize..700) {
            let _ = Message::from_packet(&bytes);
            let packet = answered(request().to_packet([10, 0, 0, 1].into()));
            bytes.truncate(cut.min(packet.len()));
            let spoilt = [&packet[..packet.len() - bytes.len()], &bytes].concat();
            let _ = Message::from_packet(&spoilt);
        }
    }
}
