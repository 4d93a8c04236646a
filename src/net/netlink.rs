//! A netlink socket for a short-lived program: synchronous, batching, with every answer matched to its request.
//!
//! Kernel facts that the code relies on:
//! * Requests sent together are executed in order and each is acknowledged on its own; a failed one does not stop
//!   those after it. A batch is no transaction (nf_tables, which has its own, apart).
//! * With `NETLINK_CAP_ACK` an error does not repeat the request, so the attributes of the extended acknowledgement
//!   (`NLMSGERR_ATTR_MSG`, linux/netlink.h) stand right behind the header.
//! * A dump during which the dumped table changed carries `NLM_F_DUMP_INTR`: it may lack entries, and is asked for
//!   again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Error, Result};

/// Longest wait for one answer. The kernel answers in microseconds; only a lock held elsewhere (RTNL) delays it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Room for one datagram at first. It grows to what the kernel has to say (a link with many virtual functions can be
/// larger than a page); beginning small matters, since each page that is touched costs a fault at start-up.
const BUFFER_BYTES: usize = 2 << 10;

/// The most that the kernel tells in one datagram, but for an object that is larger by itself (`NLMSG_GOODSIZE`,
/// linux/netlink.h).
const NEWS_BYTES: usize = 8 << 10;

/// How many questions are asked before the answers are read. They must have room in the socket, of which each takes a
/// kilobyte or two; there is room for 200.
const QUESTIONS: usize = 50;

/// Most bytes that a socket sends at once without being asked for room: a quarter of what it has by default
/// (`net.core.wmem_default`).
const SEND_BYTES: usize = 48 << 10;

/// How often an interrupted dump is asked for again.
const DUMP_TRIES: usize = 10;

/// How many datagrams of a dump are read away after a failure. Each has at least a page of a list.
const ABANDON_TRIES: usize = 10_000;

/// Length of struct nlmsghdr.
const HEADER: usize = 16;

/// Flags of message headers and attributes that netlink-packet-core does not name (linux/netlink.h).
const NLM_F_ECHO: u16 = 0x08;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One request, ready to be sent but for its sequence number.
#[derive(Clone, Debug)]
pub struct Message {
    deed: String,
    bytes: Vec<u8>,
    acknowledged: bool,
}

impl Message {
    /// A request that the kernel acknowledges. `deed` completes "cannot ..."; `flags` are those of linux/netlink.h
    /// beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub fn new<T: NetlinkSerializable>(deed: impl Into<String>, flags: u16, payload: T) -> Self {
        Self {
            deed: deed.into(),
            bytes: encode(NLM_F_REQUEST | NLM_F_ACK | flags, payload),
            acknowledged: true,
        }
    }

    /// A request that the kernel does not acknowledge: the brackets of an nf_tables batch.
    pub fn unacknowledged<T: NetlinkSerializable>(deed: impl Into<String>, flags: u16, payload: T) -> Self {
        Self { deed: deed.into(), bytes: encode(NLM_F_REQUEST | flags, payload), acknowledged: false }
    }

    /// The same request, on which the kernel tells of the object as it has become.
    #[must_use]
    pub fn echoed(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | NLM_F_ECHO;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }
}

fn encode<T: NetlinkSerializable>(flags: u16, payload: T) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // Messages of a batch stand at multiples of four bytes (NLMSG_ALIGN).
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Messages of a multicast group: their types and their bodies.
pub type Events = Vec<(u16, Vec<u8>)>;

/// What the kernel said about one request of a batch.
pub type Answer = std::result::Result<(), Error>;

/// A netlink socket. It belongs to the network namespace in which it was opened, whichever the thread is in later.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a protocol (`NETLINK_ROUTE`, `NETLINK_NETFILTER`; linux/netlink.h) in the thread's namespace.
    pub fn open(protocol: isize) -> Result<Self> {
        let failed = |e: std::io::Error| Error::from_io("open a netlink socket", &e);
        let inner = netlink_sys::Socket::new(protocol).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        inner.set_ext_ack(true).map_err(failed)?;
        // Without it the kernel ignores the filters of a dump; kernels before 4.20 do not know it and dump all.
        let _ = inner.set_netlink_get_strict_chk(true);
        let timeout = TimeVal::new(DEADLINE.as_secs() as i64, 0);
        let failed = |e: Errno| Error::new("open a netlink socket", e);
        setsockopt(&inner, sockopt::ReceiveTimeout, &timeout).map_err(failed)?;
        Ok(Self { inner, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Joins a multicast group (`RTNLGRP_*`, linux/rtnetlink.h).
    pub fn join(&mut self, group: u32) -> Result<()> {
        let failed = |e: std::io::Error| Error::from_io(format!("join netlink group {group}"), &e);
        // Events must not be lost to a small buffer; being root, we may ask for more than the system's limit.
        setsockopt(&self.inner, sockopt::RcvBufForce, &(1 << 20))
            .map_err(|e| Error::new("enlarge a netlink buffer", e))?;
        // Sending would bind the socket by itself. One that has no address yet is taken for the kernel's own, which
        // hears no events of the kernel.
        self.inner.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        self.inner.add_membership(group).map_err(failed)
    }

    /// Sends requests together and waits for every acknowledgement. The answers stand in the order of the requests.
    pub fn execute(&mut self, batch: Vec<Message>) -> Result<Vec<Answer>> {
        self.execute_all(batch, |_, _| {})
    }

    /// The same; `hear` gets the type and the body of all that the kernel tells on account of [`Message::echoed`].
    pub fn execute_and_hear(
        &mut self,
        batch: Vec<Message>,
        hear: impl FnMut(u16, &[u8]),
    ) -> Result<Vec<Answer>> {
        self.buffer.resize(self.buffer.len().max(NEWS_BYTES), 0);
        self.execute_all(batch, hear)
    }

    fn execute_all(&mut self, batch: Vec<Message>, mut hear: impl FnMut(u16, &[u8])) -> Result<Vec<Answer>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(batch.iter().map(|m| m.bytes.len()).sum());
        for message in &batch {
            self.sequence = self.sequence.wrapping_add(1);
            let start = bytes.len();
            bytes.extend_from_slice(&message.bytes);
            bytes[start + 8..start + 12].copy_from_slice(&self.sequence.to_ne_bytes());
        }
        let deed = || batch.first().map_or_else(String::new, |m| m.deed.clone());
        self.send(&bytes, deed)?;
        let mut answers: Vec<Option<Answer>> =
            batch.iter().map(|m| if m.acknowledged { None } else { Some(Ok(())) }).collect();
        while answers.iter().any(Option::is_none) {
            // An acknowledgement has no more than a header and a sentence.
            let (datagram, _) = self.receive_short(deed)?;
            for (header, body) in messages(datagram) {
                let index = header.sequence.wrapping_sub(first) as usize;
                let (Some(answer), Some(message)) = (answers.get_mut(index), batch.get(index)) else {
                    continue;
                };
                if header.kind != NLMSG_ERROR {
                    hear(header.kind, body);
                    continue;
                }
                let refusal = parse_error(&message.deed, &header, body);
                // nf_tables answers twice for a request that fails: with its error, and with that of the batch.
                match answer {
                    Some(Err(_)) => {}
                    _ => *answer = Some(refusal.map_or(Ok(()), Err)),
                }
                // A batch that is refused as a whole is answered once, for its opening bracket.
                if !message.acknowledged && matches!(answer, Some(Err(_))) {
                    for open in answers.iter_mut().filter(|a| a.is_none()) {
                        *open = Some(Ok(()));
                    }
                }
            }
        }
        Ok(answers.into_iter().map(|a| a.unwrap_or(Ok(()))).collect())
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn execute_one(&mut self, message: Message) -> Result<()> {
        self.execute(vec![message])?.into_iter().collect()
    }

    /// Sends one request and waits for its acknowledgement; gives what the kernel tells of the object as it has become,
    /// which saves asking for it. `None` where it tells nothing: for links, before Linux 6.2.
    pub fn execute_with_echo(&mut self, message: Message) -> Result<Option<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut message = message.echoed();
        message.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        let deed = || message.deed.clone();
        self.send(&message.bytes, deed)?;
        let mut echo = None;
        loop {
            let (datagram, _) = self.receive_short(deed)?;
            for (header, body) in messages(datagram).filter(|(header, _)| header.sequence == sequence) {
                if header.kind == NLMSG_ERROR {
                    return parse_error(&message.deed, &header, body).map_or(Ok(echo), Err);
                }
                echo = Some(body.to_vec());
            }
        }
    }

    /// Asks for one object, which is the answer: an acknowledgement on top of it would be one datagram more to read.
    /// `None` where there is none (`ENOENT`, `ENODEV`, `ESRCH`).
    pub fn get(&mut self, mut message: Message) -> Result<Option<Vec<u8>>> {
        message.bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        loop {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            message.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            let deed = || message.deed.clone();
            self.send(&message.bytes, deed)?;
            loop {
                let (datagram, missing) = self.receive_short(deed)?;
                let found = messages(datagram).find(|(header, _)| header.sequence == sequence);
                let Some((header, body)) = found else {
                    if missing == 0 {
                        continue;
                    }
                    // Now there is room for it.
                    let room = self.buffer.len() + missing;
                    self.buffer.resize(room, 0);
                    break;
                };
                if header.kind != NLMSG_ERROR {
                    return Ok(Some(body.to_vec()));
                }
                return match parse_error(&message.deed, &header, body) {
                    Some(e) if matches!(e.errno, Errno::ENOENT | Errno::ENODEV | Errno::ESRCH) => Ok(None),
                    Some(e) => Err(e),
                    None => Ok(None),
                };
            }
        }
    }

    /// Asks for many objects, some at a time. The answers stand in the order of the requests; `None` where there is none,
    /// as for [`get`](Self::get).
    pub fn get_many(&mut self, mut requests: Vec<Message>) -> Result<Vec<Option<Vec<u8>>>> {
        let mut found = Vec::with_capacity(requests.len());
        for part in requests.chunks_mut(QUESTIONS) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for message in part.iter_mut() {
                self.sequence = self.sequence.wrapping_add(1);
                message.bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
                message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
                bytes.extend_from_slice(&message.bytes);
            }
            let deed = || part.first().map_or_else(String::new, |m| m.deed.clone());
            self.send(&bytes, deed)?;
            let mut answers: Vec<Option<Result<Option<Vec<u8>>>>> = part.iter().map(|_| None).collect();
            while answers.iter().any(Option::is_none) {
                for (header, body) in messages(self.receive(deed)?) {
                    let index = header.sequence.wrapping_sub(first) as usize;
                    let (Some(answer), Some(message)) = (answers.get_mut(index), part.get(index)) else {
                        continue;
                    };
                    *answer = Some(match header.kind {
                        NLMSG_ERROR => match parse_error(&message.deed, &header, body) {
                            Some(e) if !matches!(e.errno, Errno::ENOENT | Errno::ENODEV | Errno::ESRCH) => {
                                Err(e)
                            }
                            _ => Ok(None),
                        },
                        _ => Ok(Some(body.to_vec())),
                    });
                }
            }
            for answer in answers {
                found.push(answer.unwrap_or(Ok(None))?);
            }
        }
        Ok(found)
    }

    /// Asks for one object of a kind that the kernel may pass over in silence, so that the acknowledgement has to tell
    /// the end. `None` where there is none (`ENOENT`, `ENODEV`, `ESRCH`), or it was passed over.
    pub fn ask(&mut self, message: Message) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        match self.converse(message, |body| found = Some(body.to_vec())) {
            Ok(_) => Ok(found),
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENODEV | Errno::ESRCH) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Asks for a list, and again if the kernel says that it changed meanwhile. `flags` beside `NLM_F_DUMP`.
    pub fn dump<T: NetlinkSerializable + Clone>(&mut self, deed: &str, payload: T) -> Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            // A dump ends with NLMSG_DONE; an acknowledgement on top of it would be one too many.
            let message = Message::unacknowledged(deed, NLM_F_DUMP, payload.clone());
            if !self.converse(message, |body| found.push(body.to_vec()))? {
                return Ok(found);
            }
        }
        Err(Error::new(format!("{deed}: the list changed each time it was read"), Errno::EINTR))
    }

    /// The messages of the next datagram of a multicast group, as (type, body) pairs; `None` once the deadline is over.
    pub fn next_events(&mut self, deadline: Instant) -> Result<Option<Events>> {
        let deed = || "wait for a netlink event".to_owned();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.inner.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::new(deed(), e)),
            }
        }
        let datagram = self.receive(deed)?;
        Ok(Some(messages(datagram).map(|(header, body)| (header.kind, body.to_vec())).collect()))
    }

    /// One request and all of its answers; tells whether the kernel interrupted a dump.
    fn converse(&mut self, message: Message, each: impl FnMut(&[u8])) -> Result<bool> {
        let outcome = self.try_to_converse(message, each);
        if outcome.is_err() {
            self.abandon();
        }
        outcome
    }

    /// Reads away what a dump has left to say. Until it has said all, the kernel begins no other on this socket
    /// (EBUSY).
    fn abandon(&mut self) {
        for _ in 0..ABANDON_TRIES {
            let read = recv(self.inner.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT);
            // The kernel goes on with a dump whenever some of it has been read, so nothing to read is its end.
            if read == Err(Errno::EAGAIN) {
                return;
            }
        }
    }

    fn try_to_converse(&mut self, message: Message, mut each: impl FnMut(&[u8])) -> Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = message.bytes;
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        let deed = || message.deed.clone();
        self.send(&bytes, deed)?;
        let mut interrupted = false;
        loop {
            let datagram = self.receive(deed)?;
            for (header, body) in messages(datagram).filter(|(header, _)| header.sequence == sequence) {
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_ERROR => {
                        return parse_error(&message.deed, &header, body).map_or(Ok(interrupted), Err);
                    }
                    NLMSG_DONE => {
                        return parse_error(&message.deed, &header, body).map_or(Ok(interrupted), Err);
                    }
                    _ => each(body),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8], deed: impl Fn() -> String) -> Result<()> {
        let kernel = SocketAddr::new(0, 0);
        if bytes.len() > SEND_BYTES {
            // A batch goes in one piece or not at all; being root, we may ask for more than the system's limit.
            setsockopt(&self.inner, sockopt::SndBufForce, &(2 * bytes.len()))
                .map_err(|e| Error::new(deed(), e))?;
        }
        loop {
            match self.inner.send_to(bytes, &kernel, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_io(deed(), &e)),
            }
        }
    }

    /// One datagram, whole, however long it is.
    fn receive(&mut self, deed: impl Fn() -> String) -> Result<&[u8]> {
        let len = self.read(0, MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC, &deed)?;
        if len > self.buffer.len() {
            self.buffer.resize(len, 0);
        }
        let len = self.read(self.buffer.len(), MsgFlags::empty(), &deed)?;
        Ok(&self.buffer[..len])
    }

    /// One datagram as far as there is room for it, and how many bytes of it are lost: one system call instead of two,
    /// for those that are rarely long.
    fn receive_short(&mut self, deed: impl Fn() -> String) -> Result<(&[u8], usize)> {
        let room = self.buffer.len();
        let len = self.read(room, MsgFlags::MSG_TRUNC, &deed)?;
        Ok((&self.buffer[..len.min(room)], len.saturating_sub(room)))
    }

    /// Receives into so much of the buffer; the socket's own timeout bounds the wait.
    fn read(&mut self, room: usize, flags: MsgFlags, deed: &impl Fn() -> String) -> Result<usize> {
        loop {
            match recv(self.inner.as_raw_fd(), &mut self.buffer[..room], flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Error::new(deed(), Errno::ETIMEDOUT)),
                answer => return answer.map_err(|e| Error::new(deed(), e)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// The fields of struct nlmsghdr that matter here (linux/netlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `nlmsg_type`
    pub kind: u16,
    /// `nlmsg_flags`
    pub flags: u16,
    /// `nlmsg_seq`: which request is answered.
    pub sequence: u32,
}

/// The messages of a datagram with their bodies; ends at the first that is cut off.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let field = |at: usize| rest.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let len = field(0)? as usize;
        let kind_and_flags = field(4)?.to_ne_bytes();
        let header = Header {
            kind: u16::from_ne_bytes([kind_and_flags[0], kind_and_flags[1]]),
            flags: u16::from_ne_bytes([kind_and_flags[2], kind_and_flags[3]]),
            sequence: field(8)?,
        };
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

/// The error in an NLMSG_ERROR or at the end of a dump; `None` where all went well. `deed` completes "cannot ...".
pub fn parse_error(deed: &str, header: &Header, body: &[u8]) -> Option<Error> {
    // An NLMSG_ERROR repeats the request's header before the attributes.
    let attributes = if header.kind == NLMSG_ERROR { 4 + HEADER } else { 4 };
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(-(Errno::EIO as i32), i32::from_ne_bytes);
    if code == 0 {
        return None;
    }
    let mut error = Error::new(deed, Errno::from_raw(code.wrapping_neg()));
    if header.flags & NLM_F_ACK_TLVS != 0 {
        for attribute in
            NlasIterator::new(body.get(attributes..).unwrap_or_default()).map_while(std::result::Result::ok)
        {
            if attribute.kind() == NLMSGERR_ATTR_MSG {
                let text = attribute.value();
                error.text = String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned();
            }
        }
    }
    Some(error)
}
