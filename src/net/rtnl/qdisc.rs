//! Queueing disciplines: how a link sends its packets.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::link::{LOOPBACK, Link};
use super::{Rtnl, attributes, nested, text_of, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// Length of struct tcmsg (linux/rtnetlink.h).
pub(super) const HEADER: usize = 20;

/// Attributes of a queueing discipline (linux/rtnetlink.h).
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;

/// Attributes of a token bucket filter (linux/pkt_sched.h).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;

/// Length of struct tc_tbf_qopt: two struct tc_ratespec, limit, buffer and mtu.
const TBF_PARMS: usize = 36;
/// Where the rate, in its struct tc_ratespec, stands in it; and limit and buffer.
const RATE: usize = 8;
const LIMIT: usize = 24;
const BUFFER: usize = 28;

/// `1:`, which the reference calls the token bucket filters that it makes.
const BUCKET: TcHandle = TcHandle { major: 1, minor: 0 };

/// `ffff:`, the only handle that a discipline for what a link receives may have.
pub(super) const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// A token bucket filter: packets leave at a rate, but for those that tokens were saved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// How long the link must have been silent until the bucket is full, in ticks of 64 ns (`PSCHED_SHIFT`,
    /// net/pkt_sched.h).
    pub buffer: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

/// A queueing discipline as it is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qdisc {
    /// Its kind: `tbf`, `ingress`, `fq_codel`, ...
    pub kind: String,
    /// Its handle; 0 for one that the kernel gives every link.
    pub handle: u32,
    /// What a token bucket filter is set to.
    pub bucket: Option<Bucket>,
}

impl Qdisc {
    fn parse(body: &[u8]) -> Self {
        let mut found =
            Self { handle: body.get(8..).and_then(u32_of).unwrap_or_default(), ..Self::default() };
        for (kind, value) in attributes(body, HEADER) {
            match kind {
                TCA_KIND => found.kind = text_of(value),
                TCA_OPTIONS if found.kind == "tbf" => found.bucket = Bucket::parse(value),
                _ => {}
            }
        }
        found
    }

    /// Whether it is one that this suite or the reference may have made.
    pub fn is_bucket(&self) -> bool {
        self.kind == "tbf" && self.handle == u32::from(BUCKET)
    }
}

impl Bucket {
    fn parse(options: &[u8]) -> Option<Self> {
        let mut found = None;
        let mut rate64 = None;
        for (kind, value) in nested(options) {
            match kind {
                TCA_TBF_PARMS => {
                    let number = |at: usize| value.get(at..).and_then(u32_of);
                    found = number(RATE).zip(number(LIMIT)).zip(number(BUFFER));
                }
                TCA_TBF_RATE64 => rate64 = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        let ((rate, limit), buffer) = found?;
        Some(Self { rate: rate64.unwrap_or(rate.into()), buffer, limit })
    }

    fn options(&self) -> Vec<TcOption> {
        let mut parms = vec![0; TBF_PARMS];
        let (narrow, wide) = match u32::try_from(self.rate) {
            Ok(rate) => (rate, None),
            // The kernel takes the greater of both.
            Err(_) => (u32::MAX, Some(self.rate)),
        };
        for (at, number) in [(RATE, narrow), (LIMIT, self.limit), (BUFFER, self.buffer)] {
            parms[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        let mut options = vec![TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parms))];
        options.extend(
            wide.map(|rate| TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()))),
        );
        options
    }
}

/// What is done to a queueing discipline that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// It stays, and the request is refused (EEXIST). The one that the kernel gives every link does not count.
    Kept,
    /// It is replaced.
    Replaced,
}

/// A message about the discipline or the filters of a link.
pub(super) fn about(link: &Link, handle: TcHandle, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(link.index.cast_signed());
    (message.header.handle, message.header.parent) = (handle, parent);
    message
}

/// The request for a token bucket filter over all that a link sends.
pub fn create_bucket(link: &Link, bucket: &Bucket, present: Present) -> Message {
    let mut message = about(link, BUCKET, TcHandle::ROOT);
    message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(bucket.options())];
    let flags = match present {
        Present::Kept => NLM_F_CREATE | NLM_F_EXCL,
        Present::Replaced => NLM_F_CREATE | NLM_F_REPLACE,
    };
    let deed = format!("limit the rate of link {} (tbf)", link.name);
    Message::new(deed, flags, RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// The request for the discipline that filters of what a link receives hang on.
pub fn create_ingress(link: &Link) -> Message {
    let mut message = about(link, INGRESS, TcHandle::INGRESS);
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    let deed = format!("have what link {} receives filtered (ingress)", link.name);
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// The request that gives a link back what it sends by of itself.
pub fn delete_bucket(link: &Link) -> Message {
    let deed = format!("remove the limit of link {} (tbf)", link.name);
    let message = about(link, BUCKET, TcHandle::ROOT);
    Message::new(deed, 0, RouteNetlinkMessage::DelQueueDiscipline(message))
}

/// The request that removes what hangs on what a link receives, filters included.
pub fn delete_ingress(link: &Link) -> Message {
    let deed = format!("remove the filters of what link {} receives (ingress)", link.name);
    let message = about(link, INGRESS, TcHandle::INGRESS);
    Message::new(deed, 0, RouteNetlinkMessage::DelQueueDiscipline(message))
}

impl Rtnl {
    /// What a link sends by; `None` where it has nothing but what the kernel gives every such link, or is not there.
    pub fn root_qdisc(&mut self, link: &Link) -> Result<Option<Qdisc>> {
        self.qdisc(link, TcHandle::ROOT)
    }

    /// What is done to all that a link receives: `ingress`, `clsact`, or nothing.
    pub fn ingress_qdisc(&mut self, link: &Link) -> Result<Option<Qdisc>> {
        self.qdisc(link, TcHandle::INGRESS)
    }

    fn qdisc(&mut self, link: &Link, parent: TcHandle) -> Result<Option<Qdisc>> {
        let message = about(link, TcHandle::UNSPEC, parent);
        let deed = format!("look up the queueing discipline of link {}", link.name);
        // Kernels of before 6.10 tell it to who listens for events, and to the one who asks only for an echo.
        let message = Message::new(deed, NLM_F_ECHO, RouteNetlinkMessage::GetQueueDiscipline(message));
        // Of one that is built into the link nothing is told but that the question was fine.
        Ok(self.socket.ask(message)?.map(|body| Qdisc::parse(&body)))
    }

    /// Whether the kernel has a queueing discipline, or can load it.
    ///
    /// It is asked to give `lo` one without options, which no token bucket filter can do without (EINVAL); one that it
    /// does not know it has to refuse first (ENOENT).
    pub fn has_buckets(&mut self) -> Result<bool> {
        let lo = Link { index: LOOPBACK, name: "lo".to_owned(), ..Link::default() };
        let mut message = about(&lo, BUCKET, TcHandle::ROOT);
        message.attributes = vec![TcAttribute::Kind("tbf".to_owned())];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        match self.execute_one(Message::new("look for tbf", NLM_F_CREATE | NLM_F_EXCL, message)) {
            Ok(()) => Ok(true),
            Err(e) => Ok(!matches!(e.errno, Errno::ENOENT | Errno::EOPNOTSUPP)),
        }
    }
}
