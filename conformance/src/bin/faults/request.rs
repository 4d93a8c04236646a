//! Requests to the kernel by netlink, and disturbing how the kernel answers them.
//!
//! strace(1) and what else works on system calls cannot do that: `sendto` succeeds, and what became of each request
//! stands in the answers. So a request is changed on its way into one that the kernel is sure to refuse, and in the
//! kernel's refusal stands another errno then. Both the kernel and the program are the real ones, and what the answer
//! says is true: the request was not done.

use std::fs;

use anyhow::Result;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::memory;

/// Length of struct nlmsghdr, and flags and types of it (linux/netlink.h).
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;

/// The brackets of a batch (linux/netfilter/nfnetlink.h). rtnetlink has other messages with these numbers.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Which of those that are sent together, from 0.
    pub(crate) index: usize,
    /// `nlmsg_type`
    pub(crate) kind: u16,
    /// `nlmsg_flags`
    pub(crate) flags: u16,
    /// Whether it goes to netfilter.
    pub(crate) is_netfilter: bool,
}

impl Request {
    /// Whether it asks for a list.
    pub(crate) fn is_dump(&self) -> bool {
        self.is_question() && self.flags & NLM_F_DUMP == NLM_F_DUMP
    }

    /// Whether it changes something, and the kernel says that it did.
    pub(crate) fn is_acknowledged_change(&self) -> bool {
        !self.is_question() && self.flags & NLM_F_ACK != 0
    }

    /// Whether there is an answer if all is well. Of the messages of a batch mostly the last is acknowledged.
    pub(crate) fn is_answered(&self) -> bool {
        self.is_question() || self.flags & NLM_F_ACK != 0
    }

    /// Whether it only asks: each object of rtnetlink has NEW, DEL, GET, SET; of netfilter NEW, GET, DEL.
    fn is_question(&self) -> bool {
        if self.is_netfilter { self.kind >= 0x100 && self.kind % 0x100 % 3 == 1 } else { self.kind % 4 == 2 }
    }

    /// Its name, as in linux/rtnetlink.h and linux/netfilter/nf_tables.h.
    pub(crate) fn name(&self) -> String {
        const OF_ROUTE: [&str; 8] = ["LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER"];
        const OF_TABLES: [&str; 5] = ["TABLE", "CHAIN", "RULE", "SET", "SETELEM"];
        let compose = |number: u16, verbs: &[&str], names: &[&str]| {
            let verb = verbs.get(usize::from(number) % verbs.len())?;
            let name = names.get(usize::from(number) / verbs.len())?;
            Some(format!("{verb}{name}"))
        };
        let known = match (self.is_netfilter, self.kind) {
            (true, BATCH_BEGIN) => Some("BATCH_BEGIN".to_owned()),
            (true, BATCH_END) => Some("BATCH_END".to_owned()),
            (true, 0x0a00..) => compose(self.kind & 0xff, &["NEW", "GET", "DEL"], &OF_TABLES),
            (true, 0x0100..0x0200) => compose(self.kind & 0xff, &["NEW", "GET", "DEL"], &["CONNTRACK"]),
            (false, 16..) => compose(self.kind - 16, &["NEW", "DEL", "GET", "SET"], &OF_ROUTE),
            _ => None,
        };
        known.unwrap_or_else(|| format!("{:#x}", self.kind))
    }
}

/// A request that is about to be sent.
pub(crate) struct Sent {
    pub(crate) request: Request,
    /// Where its header is.
    address: u64,
    /// `nlmsg_seq`, by which the answer is known.
    sequence: u32,
}

/// The requests in the buffers of a call, which may be something else than netlink; then there are none.
pub(crate) fn sent(pid: Pid, call: &str, arguments: &[u64; 6]) -> Vec<Sent> {
    let mut found = Vec::new();
    if !call.starts_with("send") {
        return found;
    }
    for (address, len) in memory::buffers(pid, call, arguments) {
        let bytes = memory::read(pid, address, len);
        let mut end = 0;
        for (at, header) in headers(&bytes) {
            let request =
                Request { index: found.len(), kind: header.kind, flags: header.flags, is_netfilter: false };
            found.push(Sent { request, address: address + at as u64, sequence: header.sequence });
            end = (at + header.len).next_multiple_of(4);
        }
        if end < bytes.len() {
            return Vec::new();
        }
    }
    if found.iter().any(|sent| sent.request.flags & NLM_F_REQUEST == 0) {
        return Vec::new();
    }
    let is_netfilter = found.iter().any(|sent| sent.request.kind >= 0x100);
    for sent in &mut found {
        sent.request.is_netfilter = is_netfilter;
    }
    // The end of a batch is answered by nobody.
    found.retain(|sent| !(is_netfilter && sent.request.kind == BATCH_END));
    found
}

/// How the kernel answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It did not do it, and says why.
    Refused(Errno),
    /// It did it and says that it did not. No kernel does so with a whole request, but some do a part of one before they
    /// fail.
    Denied(Errno),
    /// It did it, and had no memory to say so, or the socket had no room: the answer never comes, and reading says ENOBUFS.
    Lost,
    /// It did it, and says that the list changed meanwhile.
    Interrupted,
}

impl Reply {
    /// As the text of a variable.
    pub(crate) fn encode(self) -> String {
        match self {
            Self::Refused(errno) => format!("refused {}", errno as i32),
            Self::Denied(errno) => format!("denied {}", errno as i32),
            Self::Lost => "lost 0".to_owned(),
            Self::Interrupted => "interrupted 0".to_owned(),
        }
    }

    /// From its word and its number.
    pub(crate) fn decode(word: &str, errno: i32) -> Option<Self> {
        let errno = Errno::from_raw(errno);
        Some(match word {
            "refused" => Self::Refused(errno),
            "denied" => Self::Denied(errno),
            "lost" => Self::Lost,
            "interrupted" => Self::Interrupted,
            _ => return None,
        })
    }
}

/// A request that was sent, and whose answer is to be another.
pub(crate) struct Disturbed {
    reply: Reply,
    socket: String,
    sequence: u32,
    kind: u16,
    /// What was replaced in the memory of the process, and stands there again once it is sent.
    replaced: Option<(u64, [u8; 2])>,
}

impl Disturbed {
    /// Sees to it that a request, which is about to be sent by that descriptor, is answered so.
    pub(crate) fn send(pid: Pid, descriptor: u64, sent: &Sent, reply: Reply) -> Result<Self> {
        let (kind, mut replaced) = (sent.request.kind, None);
        if let Reply::Refused(_) = reply {
            // Each is refused before anything is done: a batch for no part of netfilter, a message of nf_tables or of
            // conntrack that is none, and for all else a type beyond the last.
            let (address, refused) = match (sent.request.is_netfilter, kind) {
                (true, BATCH_BEGIN) => (sent.address + HEADER as u64 + 2, [0xff, 0xff]),
                (true, _) => (sent.address + 4, (kind | 0xff).to_ne_bytes()),
                (false, _) => (sent.address + 4, 0xff00_u16.to_ne_bytes()),
            };
            let before = memory::read(pid, address, 2);
            if let [first, second] = before.as_slice() {
                replaced = Some((address, [*first, *second]));
            }
            memory::write(pid, address, &refused)?;
        }
        Ok(Self { reply, socket: socket(pid, descriptor), sequence: sent.sequence, kind, replaced })
    }

    /// Undoes the change once it is sent: the program may look at what it has sent, or send it again.
    pub(crate) fn is_sent(&mut self, pid: Pid) -> Result<()> {
        self.replaced.take().map_or(Ok(()), |(address, bytes)| memory::write(pid, address, &bytes))
    }

    /// Looks at what a process has received, and changes it if it is the answer.
    pub(crate) fn received(&self, pid: Pid, call: &str, arguments: &[u64; 6], len: i64) -> Result<Seen> {
        let room = memory::buffers(pid, call, arguments).first().copied();
        let (Some((address, room)), Ok(len)) = (room, u64::try_from(len)) else { return Ok(Seen::Other) };
        if socket(pid, arguments[0]) != self.socket {
            return Ok(Seen::Other);
        }
        let bytes = memory::read(pid, address, len.min(room));
        let mut seen = Seen::Other;
        for (at, header) in headers(&bytes).filter(|(_, header)| header.sequence == self.sequence) {
            let at = address + at as u64;
            let is_error = header.kind == NLMSG_ERROR;
            match self.reply {
                Reply::Refused(errno) | Reply::Denied(errno) if is_error => {
                    memory::write(pid, at + HEADER as u64, &(-(errno as i32)).to_ne_bytes())?;
                    // The request stands behind it, unless the socket does not want that.
                    if header.len >= HEADER + 4 + HEADER {
                        memory::write(pid, at + HEADER as u64 + 8, &self.kind.to_ne_bytes())?;
                    }
                    seen = Seen::Answer;
                }
                // Whoever only peeks will find it lost when he reads it.
                Reply::Lost if !is_peeking(call, arguments) => return Ok(Seen::Lost(Errno::ENOBUFS)),
                Reply::Interrupted if !is_error => {
                    memory::write(pid, at + 6, &(header.flags | NLM_F_DUMP_INTR).to_ne_bytes())?;
                    seen = Seen::Answer;
                }
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// What a process has received.
pub(crate) enum Seen {
    /// Something else than the answer.
    Other,
    /// The answer, which is changed now.
    Answer,
    /// The answer, which is to be lost: it gets an error in its place.
    Lost(Errno),
}

fn is_peeking(call: &str, arguments: &[u64; 6]) -> bool {
    let flags = if call == "recvmsg" { arguments[2] } else { arguments[3] };
    flags & u64::from(nix::libc::MSG_PEEK.cast_unsigned()) != 0
}

/// What a socket is called, whichever descriptor it has.
fn socket(pid: Pid, descriptor: u64) -> String {
    let name = fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    name.map_or_else(|_| descriptor.to_string(), |name| name.to_string_lossy().into_owned())
}

/// The fields of struct nlmsghdr.
struct Header {
    len: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The headers in a datagram and where they are, as far as they are whole.
fn headers(bytes: &[u8]) -> impl Iterator<Item = (usize, Header)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let word = |offset: usize| {
            let bytes = bytes.get(at + offset..at + offset + 4)?;
            bytes.try_into().ok().map(u32::from_ne_bytes)
        };
        let half = |offset: usize| {
            let bytes = bytes.get(at + offset..at + offset + 2)?;
            bytes.try_into().ok().map(u16::from_ne_bytes)
        };
        let header = Header { len: word(0)? as usize, kind: half(4)?, flags: half(6)?, sequence: word(8)? };
        if header.len < HEADER || at + header.len > bytes.len() {
            return None;
        }
        let start = at;
        at += header.len.next_multiple_of(4);
        Some((start, header))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: u16, flags: u16, is_netfilter: bool) -> Request {
        Request { index: 0, kind, flags, is_netfilter }
    }

    #[test]
    fn requests_have_the_names_of_the_kernel() {
        for (kind, is_netfilter, name) in [
            (16, false, "NEWLINK"),
            (22, false, "GETADDR"),
            (19, false, "SETLINK"),
            (60, false, "0x3c"),
            (16, true, "BATCH_BEGIN"),
            (0x0a06, true, "NEWRULE"),
            (0x0a0e, true, "DELSETELEM"),
            (0x0102, true, "DELCONNTRACK"),
            (0x0aff, true, "0xaff"),
        ] {
            assert_eq!(request(kind, 0, is_netfilter).name(), name);
        }
    }

    #[test]
    fn questions_are_told_from_changes() {
        let dump = NLM_F_REQUEST | NLM_F_DUMP;
        for (kind, is_netfilter) in
            [(18, false), (22, false), (38, false), (0x0a01, true), (0x0a0d, true), (0x0101, true)]
        {
            let question = request(kind, dump | NLM_F_ACK, is_netfilter);
            assert!(question.is_dump() && !question.is_acknowledged_change(), "{kind}");
        }
        // Flags of a change have the same numbers: NLM_F_REPLACE and NLM_F_EXCL.
        for (kind, is_netfilter) in [(16, false), (25, false), (0x0a00, true), (0x0a0e, true), (0x0102, true)]
        {
            let change = request(kind, dump | NLM_F_ACK, is_netfilter);
            assert!(!change.is_dump() && change.is_acknowledged_change(), "{kind}");
        }
        assert!(!request(16, NLM_F_REQUEST, false).is_acknowledged_change());
        assert!(!request(BATCH_BEGIN, NLM_F_REQUEST, true).is_acknowledged_change());
    }

    #[test]
    fn headers_end_where_a_message_is_cut_off() {
        let mut bytes = Vec::new();
        for (kind, sequence) in [(16_u16, 7_u32), (17, 8)] {
            bytes.extend(18_u32.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(1_u16.to_ne_bytes());
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 8]);
        }
        let found =
            |bytes: &[u8]| headers(bytes).map(|(at, it)| (at, it.kind, it.sequence)).collect::<Vec<_>>();
        assert_eq!(found(&bytes), [(0, 16, 7), (20, 17, 8)]);
        assert_eq!(found(&bytes[..36]), [(0, 16, 7)]);
        assert_eq!(found(&[0; 64]), []);
    }
}
