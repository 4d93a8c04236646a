//! portmap: what becomes of packets of SCTP. Many kernels have no sockets for it, so its packets are made here: what
//! opens an association, and the answer. They are right to the last bit, or connection tracking would not look at them.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use serde_json::json;

use super::cases;
use super::networks::{gateway4, gateway46};
use super::portmap_packets::Both;
use crate::case::Need;
use crate::expect::{PATIENCE, equal};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

const PORTMAP: Need = Need::Plugin("portmap");

cases! {
    "portmap/sctp" {
        the_outside_reaches_a_pod_over_sctp needs [PORTMAP, Need::Iptables, Need::Nftables];
        the_outside_reaches_a_pod_over_sctp_and_ipv6 needs [PORTMAP, Need::Ipv6, Need::Iptables, Need::Nftables];
    }
}

/// Types of chunks (RFC 9260, section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// The side that opens the association is known by this tag, the other one by the second.
const TAGS: [u32; 2] = [0x1234_5678, 0x8765_4321];

/// The port of the client.
const CLIENT: u16 = 40000;

/// A packet with one chunk, which is `INIT` or `INIT_ACK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    chunk: u8,
}

impl Packet {
    fn encode(self) -> Vec<u8> {
        // What opens an association cannot know the other's tag yet.
        let (to, own) = if self.chunk == INIT { (0, TAGS[0]) } else { (TAGS[0], TAGS[1]) };
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(to.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 0, 0, 20]);
        bytes.extend(own.to_be_bytes());
        // The window, a stream for each direction, and the first number.
        bytes.extend(65536_u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(1_u32.to_be_bytes());
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    /// Nothing where the sum is wrong: who has translated a port must have changed it.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, chunk) = bytes.split_first_chunk::<12>()?;
        let mut summed = bytes.to_vec();
        summed[8..12].fill(0);
        let is_right = crc32c(&summed).to_le_bytes() == header[8..12];
        is_right.then_some(Self {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            chunk: *chunk.first()?,
        })
    }
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// A socket for packets of SCTP. It sends and receives as one of UDP does, whole packets instead of their content.
fn open(pod: &Pod, example: SocketAddr) -> Result<UdpSocket> {
    let family = if example.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let fd = pod.inside(|| {
        // SAFETY: socket(2) takes three integers and touches no memory of ours.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(fd) }
    })?;
    // SAFETY: the kernel has just opened it, and nobody else knows it.
    let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd.context("no raw socket")?) });
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// The next packet and who has sent it.
fn receive(socket: &UdpSocket) -> Option<(Packet, SocketAddr)> {
    let mut buffer = [0; 256];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    let bytes = buffer.get(..len)?;
    // With IPv4, its header is before it, whose length is told in words.
    let header = if from.is_ipv4() { usize::from(bytes.first()? & 0xf) * 4 } else { 0 };
    Some((Packet::decode(bytes.get(header..)?)?, from))
}

/// The port of an address does not matter to a raw socket; to some kernels it must be none.
fn bare(address: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, 0))
}

/// Opens an association through a host port and has it answered; gives the client that the pod sees.
fn associated(client: &Pod, host: &str, port: u16, pod: &Pod) -> Result<String> {
    let host = bare(host)?;
    let (client, server) = (open(client, host)?, open(pod, host)?);
    let question = Packet { source: CLIENT, destination: port, chunk: INIT };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        client.send_to(&question.encode(), host)?;
        let Some((packet, from)) = receive(&server) else { continue };
        equal("what the pod gets", packet, Packet { destination: 80, ..question })?;
        let answer = Packet { source: 80, destination: CLIENT, chunk: INIT_ACK };
        server.send_to(&answer.encode(), SocketAddr::new(from.ip(), 0))?;
        let Some((packet, of)) = receive(&client) else { continue };
        equal("what the client gets", packet, Packet { source: port, ..answer })?;
        equal("where the answer comes from", of.ip(), host.ip())?;
        return Ok(from.ip().to_string());
    }
    bail!("an association with {host}, port {port}, does not reach the pod, or its answer does not come back")
}

fn the_outside_reaches_a_pod_over_sctp(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "sctp", json!({}))?;
    for (one, id, port) in &both.pods {
        let seen = associated(&both.outside, "192.0.2.1", *port, &one.pod).with_context(|| id.clone())?;
        equal(id, seen, "192.0.2.2")?;
    }
    Ok(())
}

fn the_outside_reaches_a_pod_over_sctp_and_ipv6(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway46(), "SCTP", json!({}))?;
    for (one, id, port) in &both.pods {
        let seen =
            associated(&both.outside, "2001:db8:ffff::1", *port, &one.pod).with_context(|| id.clone())?;
        equal(id, seen, "2001:db8:ffff::2")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_read_back() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let packet = Packet { source: 1, destination: 2, chunk: INIT };
        let mut bytes = packet.encode();
        assert_eq!(Packet::decode(&bytes), Some(packet));
        bytes[0] = 1;
        assert_eq!(Packet::decode(&bytes), None);
    }
}
