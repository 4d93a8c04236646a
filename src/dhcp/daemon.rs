//! The daemon: answers to calls, each connection and each lease a task of one thread.

mod connection;
mod places;

use std::ffi::OsString;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::conf::DhcpConf;
use super::exchange::{Exchange, Identity, Timing};
use super::flags::{Flags, USAGE};
use super::gob::{Struct, Value};
use super::keeper;
use super::lease::encode;
use super::listener::Listener;
use super::rpc::{ATTACHMENTS, RESULT, UNKNOWN_METHOD, method};
use super::store::{Record, Store};
use crate::net::Netns;
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, CniResult, Code, NetConf};
use connection::serve;
pub use places::Held;
use places::Places;

/// How long a caller may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest name of a client that goes into option 61 beside the byte before it.
const LONGEST_ID: usize = 254;

/// What the daemon has.
#[derive(Debug)]
pub struct Daemon {
    flags: Flags,
    home: Netns,
    store: Store,
    places: Places,
}

/// Runs the daemon with the arguments after `daemon`, until it is told to end. What it knows is kept below `state`.
pub fn run(arguments: impl IntoIterator<Item = OsString>, state: &Path) -> ExitCode {
    let flags = match Flags::parse(arguments) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            let _ = std::io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            let _ = std::io::stderr().write_all(format!("dhcp daemon: {why}\n{USAGE}").as_bytes());
            return ExitCode::from(2);
        }
    };
    if std::env::var_os("BRIDGEHEAD_LOG").is_none() {
        log::set_max_level(log::LevelFilter::Info);
    }
    match start(flags, state) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("dhcp daemon: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The file with the process id, which goes with the daemon.
struct Pidfile(PathBuf);

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn start(flags: Flags, state: &Path) -> anyhow::Result<()> {
    // Before there is anything to be removed at the end.
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let listener = Listener::open(&flags.on_host(&flags.socket)).map_err(anyhow::Error::msg)?;
    let _pidfile = match &flags.pidfile {
        Some(path) => {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
            Some(Pidfile(path.clone()))
        }
        None => None,
    };
    let store = Store::new(&flags.on_host(state), &flags.socket);
    let daemon = Rc::new(Daemon { flags, home: Netns::own()?, store, places: Places::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        daemon.resume()?;
        // SAFETY: it owns its descriptor, which stays the same until it is dropped.
        let signals = unsafe { AsyncFd::register(signals) }.map_err(std::io::Error::from)?;
        listener.socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(listener.socket.try_clone()?)?;
        log::info!("listening on {}", daemon.flags.socket.display());
        // What is under way when it is told to end is dropped; the leases stay, in their files.
        let _ = first(accept(&daemon, &socket), signals.readable()).await;
        log::info!("ending; the leases stay");
        Ok(())
    })
}

async fn accept(daemon: &Rc<Daemon>, socket: &UnixListener) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let daemon = Rc::clone(daemon);
                drop(spawn_local(async move {
                    if let Err(e) = serve(&daemon, stream).await {
                        log::warn!("a call: {e:#}");
                    }
                }));
            }
            Err(e) => {
                // Out of descriptors, most likely: some are closed soon.
                log::warn!("cannot accept a call: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The outcome of whichever is ready first; the other is dropped.
async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> Result<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
        Poll::Pending => other.as_mut().poll(cx).map(Err),
    })
    .await
}

/// A call as far as it is about an attachment.
struct Call {
    attachment: Attachment,
    netns_path: PathBuf,
    args: String,
    config: NetConf,
}

impl Call {
    fn parse(arguments: &Value) -> Result<Self, CniError> {
        let config = NetConf::parse(arguments.bytes("StdinData"))?;
        let attachment = Attachment {
            network: config.name.clone(),
            container_id: arguments.string("ContainerID"),
            ifname: arguments.string("IfName"),
        };
        let netns_path = PathBuf::from(arguments.string("Netns"));
        Ok(Self { attachment, netns_path, args: arguments.string("Args"), config })
    }
}

type Outcome = Result<Answer, CniError>;

/// What a call is answered.
pub struct Answer {
    /// The form of the answer.
    of: &'static Struct,
    body: Value,
    /// The lease that was got for it, if one was.
    gain: Option<Gain>,
}

/// A lease that was got for a call: which attachment's, and how many calls had got it by then.
pub struct Gain {
    attachment: Attachment,
    times_got: u64,
}

impl Answer {
    fn new(of: &'static Struct, body: Value) -> Self {
        Self { of, body, gain: None }
    }
}

impl Daemon {
    /// How long is waited for what.
    pub fn timing(&self) -> Timing {
        self.flags.timing()
    }

    /// The namespace of the daemon.
    pub fn home(&self) -> &Netns {
        &self.home
    }

    /// The pod's namespace, if it is still the same.
    pub fn open_netns(&self, record: &Record) -> anyhow::Result<Option<Netns>> {
        record.open_netns(&self.flags.on_host(&record.netns_path))
    }

    /// Tells the server that a lease is not needed any more.
    pub fn release(&self, record: &Record) -> anyhow::Result<()> {
        record.release(&self.flags.on_host(&record.netns_path), &self.home)
    }

    /// Keeps what is known of a lease.
    pub fn hold(&self, held: &Held, record: Record) {
        if let Err(e) = self.store.write(&record) {
            // It is kept as long as this daemon lives.
            log::error!("{}: {e}", record.attachment);
        }
        held.record.replace(Some(record));
    }

    /// Forgets a lease.
    pub fn drop_lease(&self, held: &Held) {
        let Some(record) = held.record.take() else { return };
        if let Err(e) = self.store.remove(&record.attachment) {
            log::error!("{}: {e}", record.attachment);
        }
        self.places.remove(&record.attachment);
    }

    /// Goes on with the leases that another daemon has left.
    fn resume(self: &Rc<Self>) -> Result<(), CniError> {
        for record in self.store.all()? {
            log::info!("{}: {} is kept on", record.attachment, record.lease.address);
            let held = self.places.place(&record.attachment);
            let is_lost = record.lost.is_some();
            held.record.replace(Some(record));
            if !is_lost {
                self.keep(&held);
            }
        }
        Ok(())
    }

    fn keep(self: &Rc<Self>, held: &Rc<Held>) {
        let keeper = spawn_local(keeper::keep(Rc::clone(self), Rc::clone(held)));
        held.keeper.replace(Some(keeper));
    }

    async fn call(self: &Rc<Self>, name: &str, arguments: &Value) -> Outcome {
        match name {
            method::ALLOCATE => self.allocate(Call::parse(arguments)?).await,
            method::RELEASE => self.give_back(&Call::parse(arguments)?.attachment).await,
            method::LOOK => self.look(&Call::parse(arguments)?),
            method::LIST => self.list(&Call::parse(arguments)?.attachment.network),
            _ => Err(CniError::new(Code::Internal, format!("{UNKNOWN_METHOD}{name}"))),
        }
    }

    async fn allocate(self: &Rc<Self>, call: Call) -> Outcome {
        let conf = DhcpConf::parse(&call.config, &call.args)?;
        let get = async |held: &Rc<Held>| {
            let acquiring = self.acquire(&call, &conf, held);
            let (result, is_new) = match first(acquiring, held.unwanted.notified()).await {
                Ok(acquired) => acquired?,
                Err(()) => {
                    let msg = "DEL was called before a server had answered";
                    return Err(CniError::new(Code::TryAgainLater, msg));
                }
            };
            let times_got = held.times_got.get() + 1;
            held.times_got.set(times_got);
            let gain = is_new.then(|| Gain { attachment: call.attachment.clone(), times_got });
            Ok(Answer { gain, ..Answer::new(&RESULT, encode(&result)) })
        };
        let outcome = self.places.in_turn(&call.attachment, get).await;
        self.places.tidy(&call.attachment);
        outcome
    }

    /// The result, and whether the lease is new.
    async fn acquire(
        self: &Rc<Self>,
        call: &Call,
        conf: &DhcpConf,
        held: &Rc<Held>,
    ) -> Result<(CniResult, bool), CniError> {
        let kernel = |e: anyhow::Error| CniError::from_chain(&e, Code::Kernel);
        let invalid = |e: crate::net::Error| CniError::new(Code::InvalidNetns, format!("CNI_NETNS: {e}"));
        let netns = Netns::open(&self.flags.on_host(&call.netns_path)).map_err(invalid)?;
        if let Some(record) = held.record() {
            let is_same = record.netns == netns.identity();
            if is_same && record.lost.is_none() && self.is_usable(&record, &netns) {
                return Ok((record.lease.result(conf.priority), false));
            }
            held.stop();
            if let Err(e) = self.release(&record) {
                log::warn!("{}: {e:#}", record.attachment);
            }
            self.store.remove(&record.attachment)?;
            held.record.replace(None);
        }
        let identity = Identity {
            broadcast: self.flags.broadcast,
            ..Identity::new(&client_id(&call.attachment), &conf.requested, &conf.provided)
        };
        let ifname = &call.attachment.ifname;
        let lease = {
            let exchange =
                Exchange::open_without_address(&identity, self.timing(), &netns, &self.home, ifname)
                    .map_err(kernel)?;
            let of = netns.identity();
            // From here on nothing holds the namespace but the socket: if it goes, there is nobody to answer for.
            drop(netns);
            (exchange.acquire(None).await.map_err(kernel)?, of)
        };
        let (lease, of) = lease;
        let record = Record::new(call.attachment.clone(), call.netns_path.clone(), of, identity, lease)
            .map_err(kernel)?;
        let result = record.lease.result(conf.priority);
        log::info!("{}: {} from {}", record.attachment, record.lease.address, record.lease.server);
        if let Err(error) = self.store.write(&record) {
            // Nobody would know of it after this daemon.
            if let Err(e) = self.release(&record) {
                log::warn!("{}: {e:#}", record.attachment);
            }
            return Err(error);
        }
        held.record.replace(Some(record));
        self.keep(held);
        Ok((result, true))
    }

    /// Whether the link that a lease was got by is there: of another one of that name, the server knows nothing.
    fn is_usable(&self, record: &Record, netns: &Netns) -> bool {
        let found = netns.run(&self.home, || {
            crate::net::Rtnl::open().and_then(|mut rtnl| rtnl.link(&record.attachment.ifname))
        });
        matches!(found, Ok(Ok(Some(_))))
    }

    async fn give_back(&self, attachment: &Attachment) -> Outcome {
        let held = self.places.find(attachment);
        if let Some(held) = held {
            held.unwanted.notify_waiters();
            let _turn = held.turn.lock().await;
            self.end(attachment, &held);
        }
        self.places.tidy(attachment);
        Ok(Answer::new(&RESULT, Value::Struct(Vec::new())))
    }

    /// Gives a lease back whose caller went without reading that he has it: he will not use it. If another has come and
    /// got it since, it is his.
    async fn take_back(&self, gain: &Gain) {
        let attachment = &gain.attachment;
        let held = self.places.find(attachment);
        if let Some(held) = held {
            let _turn = held.turn.lock().await;
            if held.times_got.get() == gain.times_got {
                self.end(attachment, &held);
            }
        }
        self.places.tidy(attachment);
    }

    /// Ends a lease, if there is one.
    fn end(&self, attachment: &Attachment, held: &Held) {
        held.stop();
        if let Some(record) = held.record() {
            match self.release(&record) {
                Ok(()) => log::info!("{attachment}: {} is given back", record.lease.address),
                // Best effort, as the server frees it some day by itself.
                Err(e) => log::warn!("{attachment}: cannot give {} back: {e:#}", record.lease.address),
            }
        }
        self.drop_lease(held);
    }

    fn look(&self, call: &Call) -> Outcome {
        let conf = DhcpConf::parse(&call.config, &call.args)?;
        let missing = |why: String| CniError::new(Code::Drift, why);
        let held = self.places.find(&call.attachment).and_then(|held| held.record());
        let record = held.ok_or_else(|| missing("the DHCP daemon has no lease of it".to_owned()))?;
        if let Some(why) = &record.lost {
            return Err(missing(format!("the DHCP lease of {} is lost: {why}", record.lease.address)));
        }
        Ok(Answer::new(&RESULT, encode(&record.lease.result(conf.priority))))
    }

    fn list(&self, network: &str) -> Outcome {
        let list = self.places.of_network(network).into_iter().map(|it| {
            Value::of([("ContainerID", Value::text(&it.container_id)), ("IfName", Value::text(&it.ifname))])
        });
        Ok(Answer::new(&ATTACHMENTS, Value::of([("All", Value::List(list.collect()))])))
    }
}

/// The name of a client to servers: the reference's, or a hash where that is too long to tell it from others.
fn client_id(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    let id = format!("{container_id}/{network}/{ifname}");
    if id.len() <= LONGEST_ID { id } else { sha512_hex(&[&id], 128) }
}

/// Whether an error of connecting says that there is no daemon.
pub fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_names_that_differ() {
        let of = |id: &str| {
            client_id(&Attachment { network: "net".into(), container_id: id.into(), ifname: "eth0".into() })
        };
        assert_eq!(of("pod1"), "pod1/net/eth0");
        let (a, b) = (of(&"a".repeat(300)), of(&"a".repeat(301)));
        assert!(a.len() <= LONGEST_ID && a != b);
    }
}
