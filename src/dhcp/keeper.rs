//! Keeping a lease: renewing and rebinding it, and giving it up when it cannot be kept.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::daemon::{Daemon, Held};
use super::exchange::{Answer, Exchange};
use super::lease::{Lease, now};
use super::store::Record;
use crate::net::rtnl::link;
use crate::net::{Netns, Rtnl};

/// How often is looked whether the pod is still there. The clock of timers stands still while the machine sleeps, so it
/// is also how late a renewal may be then.
const LOOK: Duration = Duration::from_secs(60);

/// Pause before a way is tried again that has failed on this host.
const PAUSE: Duration = Duration::from_secs(2);

/// What came of waiting, or of asking.
enum Next {
    /// The lease goes on, with what the server has granted.
    Kept(Box<Lease>),
    /// It is to be tried otherwise.
    Open,
    /// The pod's namespace is gone, and with it the need for a lease.
    Gone,
    /// Its address is to be used no more.
    Lost(String),
}

/// Keeps a lease until it is given up, or its pod is gone. Whoever ends it before, aborts it.
pub async fn keep(daemon: Rc<Daemon>, held: Rc<Held>) {
    while let Some(record) = held.record() {
        match keep_once(&daemon, &record).await {
            Next::Kept(lease) => {
                let who = &record.attachment;
                log::info!("{who}: {} renewed for {} s", lease.address, (lease.end() - now()).as_secs());
                daemon.hold(&held, Record { lease: *lease, ..record });
            }
            Next::Open => {}
            Next::Gone => {
                log::info!("{}: its namespace is gone, and so is its lease", record.attachment);
                return daemon.drop_lease(&held);
            }
            Next::Lost(why) => {
                log::error!("{}: {} is lost: {why}", record.attachment, record.lease.address);
                if let Err(e) = set_down(&daemon, &record) {
                    log::error!("{}: {e:#}", record.attachment);
                }
                return daemon.hold(&held, Record { lost: Some(why), ..record });
            }
        }
    }
}

async fn keep_once(daemon: &Daemon, record: &Record) -> Next {
    let lease = &record.lease;
    while let Some(left) = lease.renewal().checked_sub(now()).filter(|left| !left.is_zero()) {
        sleep(left.min(LOOK)).await;
        // What cannot be told now, may be later.
        if matches!(daemon.open_netns(record), Ok(None)) {
            return Next::Gone;
        }
    }
    let netns = match daemon.open_netns(record) {
        Ok(Some(netns)) => netns,
        Ok(None) => return Next::Gone,
        Err(e) => return again(record, &format!("{e:#}")).await,
    };
    match ask(daemon, record, &netns).await {
        Ok(next) => next,
        Err(e) => again(record, &format!("{e:#}")).await,
    }
}

/// After a failure on this host: once more, unless the lease has ended.
async fn again(record: &Record, why: &str) -> Next {
    let Some(left) = record.lease.end().checked_sub(now()).filter(|left| !left.is_zero()) else {
        return Next::Lost(format!("the lease has ended; it could not be renewed: {why}"));
    };
    log::warn!("{}: cannot renew {}: {why}", record.attachment, record.lease.address);
    sleep(left.min(PAUSE)).await;
    Next::Open
}

async fn ask(daemon: &Daemon, record: &Record, netns: &Netns) -> anyhow::Result<Next> {
    let (lease, ifname) = (&record.lease, record.attachment.ifname.as_str());
    let exchange = Exchange::open(&record.identity, daemon.timing(), netns, daemon.home(), ifname)?;
    let until = |end: Duration| Instant::now() + end.saturating_sub(now());
    let mut answer = exchange.renew(lease, until(lease.rebinding())).await?;
    if matches!(answer, Answer::Silence) {
        answer = exchange.rebind(lease, until(lease.end())).await?;
    }
    let refusal = match answer {
        Answer::Granted(lease) => return Ok(Next::Kept(lease)),
        Answer::Silence => return Ok(Next::Lost("the lease has ended; no server has renewed it".to_owned())),
        Answer::Refused(why) => why,
    };
    // A server that has forgotten its leases refuses them too, and may give the same address again. The pod cannot be
    // given another.
    log::warn!("{}: {} is refused: {refusal}", record.attachment, lease.address);
    match exchange.acquire(Some(lease.address)).await {
        Ok(granted) if granted.address == lease.address => Ok(Next::Kept(Box::new(granted))),
        Ok(other) => {
            let told = Record { lease: other, ..record.clone() };
            if let Err(e) = daemon.release(&told) {
                log::warn!("{}: cannot release {}: {e:#}", record.attachment, told.lease.address);
            }
            let other = told.lease.address;
            Ok(Next::Lost(format!("the server refuses it ({refusal}), and has offered {other} instead")))
        }
        Err(e) => Ok(Next::Lost(format!("the server refuses it: {refusal}; {e:#}"))),
    }
}

/// Sets a pod's interface down, whose address may be somebody else's from now on.
fn set_down(daemon: &Daemon, record: &Record) -> anyhow::Result<()> {
    let Some(netns) = daemon.open_netns(record)? else { return Ok(()) };
    netns.run(daemon.home(), || {
        let mut rtnl = Rtnl::open()?;
        if let Some(found) = rtnl.link(&record.attachment.ifname)? {
            rtnl.execute_one(link::set_down(&found))?;
        }
        Ok(())
    })?
}
