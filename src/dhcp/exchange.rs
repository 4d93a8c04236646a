//! The client's half of the protocol (RFC 2131, section 4.4), by the link of a pod.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::conf::passing;
use super::lease::{Lease, now};
use super::message::{CLIENT_PORT, Kind, Message};
use super::options::{Options, code};
use super::probe::Probe;
use crate::net::packet::BROADCAST;
use crate::net::rtnl::link;
use crate::net::{ArpListener, Link, Mac, Netns, Rtnl, UdpListener};
use crate::spec::{CniError, Code};

/// How many addresses in turn may be somebody else's. To ask again at once is no load for a server if it ends soon.
const MOST_DECLINED: u32 = 4;

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a server to keep its offer, or to answer to a release.
    pub answer: Duration,
    /// Longest time between two messages of the same kind.
    pub resend_max: Duration,
    /// For a lease.
    pub resend_timeout: Duration,
    /// For whoever has the address of a new lease already; nobody is asked if it is zero.
    pub probe: Duration,
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its options: who it is, what it wants to know, and what else the configuration says.
    pub options: Options,
    /// Whether servers are to answer to all.
    pub broadcast: bool,
}

impl Identity {
    /// A client of that name, which servers answer alone; what is provided goes before what it says by itself.
    pub fn new(id: &str, requested: &[u8], provided: &Options) -> Self {
        let mut options = Options::default();
        // Of no kind of hardware.
        options.set(code::CLIENT_ID, [&[0], id.as_bytes()].concat());
        if !requested.is_empty() {
            options.set(code::REQUESTED_OPTIONS, requested);
        }
        options.extend(provided);
        Self { options, broadcast: false }
    }

    fn message(&self, kind: Kind, mac: Mac) -> Message {
        let mut options = self.options.clone();
        options.set(code::MESSAGE_TYPE, [kind as u8]);
        Message {
            xid: random() as u32,
            secs: 0,
            broadcast: self.broadcast,
            client: Ipv4Addr::UNSPECIFIED,
            yours: Ipv4Addr::UNSPECIFIED,
            mac,
            options,
        }
    }
}

/// What a server answers to a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It grants it.
    Granted(Box<Lease>),
    /// It refuses it, in its words.
    Refused(String),
    /// It says nothing.
    Silence,
}

/// Opens what is wanted of a link, which is set up if it is down.
fn open<T>(
    netns: &Netns,
    home: &Netns,
    ifname: &str,
    open: impl FnOnce(&Link, Mac) -> crate::net::Result<T>,
) -> anyhow::Result<T> {
    netns.run(home, || {
        let mut rtnl = Rtnl::open()?;
        let no_link = || {
            let msg = format!("there is no interface {ifname} in {}", netns.path().display());
            CniError::new(Code::Kernel, msg)
        };
        let found = rtnl.link(ifname)?.ok_or_else(no_link)?;
        if !found.up {
            rtnl.execute_one(link::set_up(&found))?;
        }
        let Some(mac) = found.mac else {
            let msg = format!("interface {ifname} has no hardware address, which DHCP needs");
            return Err(CniError::new(Code::Kernel, msg).into());
        };
        Ok(open(&found, mac)?)
    })?
}

fn open_socket(link: &Link, mac: Mac) -> crate::net::Result<(UdpListener, Mac)> {
    Ok((UdpListener::open(link, CLIENT_PORT)?, mac))
}

/// Gives a lease back: one message, to which there is no answer. It need not arrive; the lease ends by itself too.
pub fn release(
    identity: &Identity,
    lease: &Lease,
    netns: &Netns,
    home: &Netns,
    ifname: &str,
) -> anyhow::Result<()> {
    let (socket, mac) = open(netns, home, ifname, open_socket)?;
    Ok(send_release(identity, lease, &socket, mac)?)
}

fn send_release(
    identity: &Identity,
    lease: &Lease,
    socket: &UdpListener,
    mac: Mac,
) -> crate::net::Result<()> {
    let mut message = identity.message(Kind::Release, mac);
    (message.client, message.broadcast) = (lease.address, false);
    message.options.set(code::SERVER, lease.server.octets());
    socket.send(&message.to_packet(lease.server), lease.server_mac)
}

/// A lease that is given back if nobody waits any more to hear whether it can be used.
struct Doubtful<'a> {
    exchange: &'a Exchange<'a>,
    lease: &'a Lease,
    is_settled: bool,
}

impl Drop for Doubtful<'_> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let Exchange { identity, mac, socket, .. } = self.exchange;
        if let Err(e) = send_release(identity, self.lease, socket.get_ref(), *mac) {
            log::warn!("cannot give {} back: {e}", self.lease.address);
        }
    }
}

/// A pod's link, over which a client speaks.
#[derive(Debug)]
pub struct Exchange<'a> {
    socket: AsyncFd<UdpListener>,
    mac: Mac,
    identity: &'a Identity,
    timing: Timing,
    probe: Option<Probe>,
}

impl<'a> Exchange<'a> {
    /// Opens the link of that name in a namespace, to speak of an address that it has.
    pub fn open(
        identity: &'a Identity,
        timing: Timing,
        netns: &Netns,
        home: &Netns,
        ifname: &str,
    ) -> anyhow::Result<Self> {
        let socket = open(netns, home, ifname, open_socket)?;
        Self::over(socket, None, identity, timing)
    }

    /// Opens the link of that name in a namespace, to get an address for it that nobody else has.
    pub fn open_without_address(
        identity: &'a Identity,
        timing: Timing,
        netns: &Netns,
        home: &Netns,
        ifname: &str,
    ) -> anyhow::Result<Self> {
        if timing.probe.is_zero() {
            return Self::open(identity, timing, netns, home, ifname);
        }
        let (socket, arp) = open(netns, home, ifname, |link, mac| {
            Ok((open_socket(link, mac)?, ArpListener::open(link, mac)?))
        })?;
        Self::over(socket, Some(Probe::new(arp, timing.probe)?), identity, timing)
    }

    fn over(
        (socket, mac): (UdpListener, Mac),
        probe: Option<Probe>,
        identity: &'a Identity,
        timing: Timing,
    ) -> anyhow::Result<Self> {
        // SAFETY: it owns its descriptor, which stays the same until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(std::io::Error::from)?;
        Ok(Self { socket, mac, identity, timing, probe })
    }

    /// Gets a lease from any server; of the address that is wanted, if a server has no other idea.
    ///
    /// Errors: code 11 if no server has granted one in time, or only such as others have.
    pub async fn acquire(&self, wanted: Option<Ipv4Addr>) -> anyhow::Result<Lease> {
        let begin = Instant::now();
        let end = begin + self.timing.resend_timeout;
        let mut pauses = Pauses::new(self.timing.resend_max);
        let mut last = "no server has answered".to_owned();
        let mut declined = 0;
        while Instant::now() < end {
            let mut discover = self.identity.message(Kind::Discover, self.mac);
            discover.secs = begin.elapsed().as_secs().try_into().unwrap_or(u16::MAX);
            if let Some(address) = wanted {
                discover.options.set(code::REQUESTED_ADDRESS, address.octets());
            }
            self.send(&discover, Ipv4Addr::BROADCAST, BROADCAST)?;
            let until = (Instant::now() + pauses.next()).min(end);
            let offer = self.wait(discover.xid, until, |it, _| {
                (it.kind() == Some(Kind::Offer) && it.server().is_some()).then_some(it)
            });
            let Some(offer) = offer.await else { continue };
            let server = offer.server().unwrap_or(Ipv4Addr::UNSPECIFIED);
            let request = Message { options: self.request(&offer, server), ..discover };
            let patience = (Instant::now() + self.timing.answer).min(end);
            match self.ask(request, Ipv4Addr::BROADCAST, BROADCAST, patience).await? {
                Answer::Granted(lease) => match self.settle(*lease).await? {
                    Ok(lease) => return Ok(lease),
                    Err(why) => {
                        declined += 1;
                        if declined == MOST_DECLINED {
                            let msg = format!(
                                "no DHCP lease of an address that is free, at {declined} attempts: {why}"
                            );
                            return Err(passing(msg).into());
                        }
                        last = why;
                        continue;
                    }
                },
                Answer::Refused(why) => {
                    last = format!("the server {server} offered {} and then: {why}", offer.yours)
                }
                Answer::Silence => {
                    last = format!("the server {server} offered {} and said no more", offer.yours)
                }
            }
            sleep_until(until).await;
        }
        let seconds = self.timing.resend_timeout.as_secs_f32();
        Err(passing(format!("no DHCP lease within {seconds} s: {last}")).into())
    }

    /// The lease, if nobody else has its address; otherwise its server is told, and the error says so.
    async fn settle(&self, lease: Lease) -> anyhow::Result<Result<Lease, String>> {
        let Some(probe) = &self.probe else { return Ok(Ok(lease)) };
        let address = lease.address;
        let mut doubtful = Doubtful { exchange: self, lease: &lease, is_settled: false };
        let holder = probe.holder_of(address).await?;
        doubtful.is_settled = true;
        drop(doubtful);
        let Some(holder) = holder else { return Ok(Ok(lease)) };
        let why = format!("the server {} gave {address}, which {holder} has already", lease.server);
        log::warn!("{why}");
        self.send(&self.decline(&lease, &format!("{holder} has it")), Ipv4Addr::BROADCAST, BROADCAST)?;
        Ok(Err(why))
    }

    /// Tells that somebody else has an address (RFC 2131, table 5: it has no other options).
    fn decline(&self, lease: &Lease, why: &str) -> Message {
        let mut message = self.identity.message(Kind::Decline, self.mac);
        let mut options = Options::default();
        options.set(code::MESSAGE_TYPE, [Kind::Decline as u8]);
        if let Some(id) = self.identity.options.get(code::CLIENT_ID) {
            options.set(code::CLIENT_ID, id);
        }
        options.set(code::REQUESTED_ADDRESS, lease.address.octets());
        options.set(code::SERVER, lease.server.octets());
        options.set(code::MESSAGE, why);
        (message.options, message.broadcast) = (options, false);
        message
    }

    fn request(&self, offer: &Message, server: Ipv4Addr) -> Options {
        let mut options = self.identity.options.clone();
        options.set(code::MESSAGE_TYPE, [Kind::Request as u8]);
        options.set(code::REQUESTED_ADDRESS, offer.yours.octets());
        options.set(code::SERVER, server.octets());
        options
    }

    /// Asks the server of a lease for more time.
    pub async fn renew(&self, lease: &Lease, end: Instant) -> anyhow::Result<Answer> {
        self.extend(lease, lease.server, lease.server_mac, end).await
    }

    /// Asks all servers for more time.
    pub async fn rebind(&self, lease: &Lease, end: Instant) -> anyhow::Result<Answer> {
        self.extend(lease, Ipv4Addr::BROADCAST, BROADCAST, end).await
    }

    async fn extend(&self, lease: &Lease, to: Ipv4Addr, mac: Mac, end: Instant) -> anyhow::Result<Answer> {
        let mut request = self.identity.message(Kind::Request, self.mac);
        request.client = lease.address;
        Ok(match self.ask(request, to, mac, end).await? {
            Answer::Granted(other) if other.address != lease.address => {
                Answer::Refused(format!("it grants another address, {}", other.address))
            }
            answer => answer,
        })
    }

    /// Sends a request again and again, until it is answered, or the end.
    async fn ask(&self, request: Message, to: Ipv4Addr, mac: Mac, end: Instant) -> anyhow::Result<Answer> {
        let mut pauses = Pauses::new(self.timing.resend_max);
        while Instant::now() < end {
            let since = now();
            self.send(&request, to, mac)?;
            let until = (Instant::now() + pauses.next()).min(end);
            let answer = self.wait(request.xid, until, |it, from| match it.kind() {
                Some(Kind::Ack) => Some(match Lease::granted(it, from, since) {
                    Ok(lease) => Answer::Granted(Box::new(lease)),
                    Err(why) => Answer::Refused(why),
                }),
                Some(Kind::Nak) => {
                    let why = it.options.text(code::MESSAGE);
                    Some(Answer::Refused(why.unwrap_or_else(|| "it is refused".to_owned())))
                }
                _ => None,
            });
            if let Some(answer) = answer.await {
                return Ok(answer);
            }
        }
        Ok(Answer::Silence)
    }

    fn send(&self, message: &Message, to: Ipv4Addr, mac: Mac) -> anyhow::Result<()> {
        match self.socket.get_ref().send(&message.to_packet(to), mac) {
            // Down for now, or full.
            Err(e) if matches!(e.errno, Errno::ENETDOWN | Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// The first message to this client with that number that is taken; none if it has not come in time.
    async fn wait<T>(
        &self,
        xid: u32,
        until: Instant,
        mut take: impl FnMut(Message, Mac) -> Option<T>,
    ) -> Option<T> {
        let mut packet = [0; 2048];
        let arrival = async {
            loop {
                let Ok(mut ready) = self.socket.readable().await else { return None };
                let (len, from) = match self.socket.get_ref().receive(&mut packet) {
                    Ok(received) => received,
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    // The link was set down, which is said once.
                    Err(_) => continue,
                };
                let message = packet.get(..len).and_then(Message::from_packet);
                let message = message.filter(|it| it.xid == xid && it.mac == self.mac);
                if let Some(taken) = message.and_then(|it| take(it, from)) {
                    return Some(taken);
                }
            }
        };
        timeout_at(until, arrival).await.ok().flatten()
    }
}

/// Times between messages: four of two seconds, then four and doubling, each up to a second more or less, so that pods
/// that began together do not stay together.
struct Pauses {
    count: u32,
    longest: Duration,
}

impl Pauses {
    fn new(longest: Duration) -> Self {
        Self { count: 0, longest }
    }

    fn next(&mut self) -> Duration {
        let seconds = if self.count < 4 { 2 } else { 2u64 << (self.count - 3).min(16) };
        self.count = self.count.saturating_add(1);
        let jitter = random() % 2001;
        Duration::from_millis(seconds * 1000 - 1000 + jitter).min(self.longest).max(Duration::from_millis(10))
    }
}

/// A number that nobody expects. The hash of nothing is one: its key is random (`RandomState`).
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut pauses = Pauses::new(Duration::from_secs(20));
        let times: Vec<u64> = (0..40).map(|_| pauses.next().as_millis() as u64).collect();
        for (time, around) in times.iter().zip([2000, 2000, 2000, 2000, 4000, 8000, 16000]) {
            assert!((around - 1000..=around + 1000).contains(time), "{times:?}");
        }
        assert!(times[8..].iter().all(|time| *time == 20000), "{times:?}");
    }

    #[test]
    fn a_client_names_itself_unless_told_otherwise() {
        let identity = Identity::new("c/n/eth0", &[1, 3], &Options::default());
        assert_eq!(identity.options.get(code::CLIENT_ID), Some(&b"\0c/n/eth0"[..]));
        assert_eq!(identity.options.get(code::REQUESTED_OPTIONS), Some(&[1, 3][..]));
        let mut provided = Options::default();
        provided.set(code::CLIENT_ID, "me");
        let identity = Identity::new("c/n/eth0", &[], &provided);
        assert_eq!(identity.options.get(code::CLIENT_ID), Some(&b"me"[..]));
        assert_eq!(identity.options.get(code::REQUESTED_OPTIONS), None);
    }
}
