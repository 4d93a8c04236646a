//! What resources act on.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use super::FileLock;
use super::StateDirectory;
use super::aftermath::{Aftermath, Announcing, Closing, time_to_free, wait_for_deletions};
use super::bridge_use::BridgeUse;
use crate::ipam::flock::Mode;
use crate::net::nft::Nft;
use crate::net::rtnl::Address;
use crate::net::rtnl::removal::{self, Afterwards};
use crate::net::{self, Frame, Link, Netns, Rtnl, conntrack};
use crate::spec::{CniError, Code, Request};

/// The host's namespace, the pod's, the tables of the host, and the call itself.
///
/// Sockets are opened when they are first needed: a DEL of a pod without NAT never opens nf_tables.
#[derive(Debug)]
pub struct World<'a> {
    /// The request that is being served: delegated IPAM plugins get its environment and its configuration.
    pub request: &'a Request,
    /// Where state lives that belongs to this boot only, on a tmpfs.
    pub state: PathBuf,
    home: Option<Rc<Netns>>,
    host: Option<Rtnl>,
    pod: Option<Pod>,
    nft: Option<Nft>,
    links: Vec<Link>,
    /// The addresses of a link, by its index.
    addresses: Option<(u32, Vec<Address>)>,
    /// Addresses whose connections are to be forgotten once their pod's link is gone.
    connections: Vec<IpAddr>,
    /// What is to be announced in the pod at the end, by the index of its link.
    announcements: Option<(u32, Vec<Frame>)>,
    bridge_use: Option<BridgeUse>,
    /// Whether a child that outlives this program holds the connection to nf_tables too.
    child_has_nft: bool,
    is_of_another_suite: bool,
}

/// The pod's namespace.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    home: Rc<Netns>,
    rtnl: Option<Rtnl>,
    /// The interface that is being configured, once it was looked up.
    link: Option<Link>,
    /// Its name and index, once they are known.
    target: Option<(String, u32)>,
    lock: Option<FileLock>,
}

impl<'a> World<'a> {
    /// The world of a request.
    pub fn new(request: &'a Request, state: PathBuf) -> Self {
        Self {
            request,
            state,
            home: None,
            host: None,
            pod: None,
            nft: None,
            links: Vec::new(),
            addresses: None,
            connections: Vec::new(),
            announcements: None,
            bridge_use: None,
            child_has_nft: false,
            is_of_another_suite: false,
        }
    }

    /// From now on, what is looked at was made by another suite's plugins.
    pub fn expect_another_suites(&mut self) {
        self.is_of_another_suite = true;
    }

    /// Whether what is looked at was made by another suite's plugins, which is then right as that suite makes it: there
    /// is a result, and no record.
    pub fn is_of_another_suite(&self) -> bool {
        self.is_of_another_suite
    }

    /// rtnetlink of the host.
    pub fn host(&mut self) -> net::Result<&mut Rtnl> {
        match &mut self.host {
            Some(host) => Ok(host),
            empty => Ok(empty.insert(Rtnl::open()?)),
        }
    }

    /// nf_tables of the host.
    pub fn nft(&mut self) -> net::Result<&mut Nft> {
        match &mut self.nft {
            Some(nft) => Ok(nft),
            empty => Ok(empty.insert(Nft::open()?)),
        }
    }

    /// Whether this call has made the first of what attachments share in nf_tables: either there are no others, or
    /// somebody flushed theirs.
    pub fn has_begun_anew(&self) -> bool {
        self.nft.as_ref().is_some_and(Nft::has_begun_anew)
    }

    /// The host's namespace: the one that this program was started in, and comes back to from a pod's.
    pub fn home(&mut self) -> net::Result<Rc<Netns>> {
        let home = match self.home.take() {
            Some(home) => home,
            None => Rc::new(Netns::of_own_socket(self.host()?.as_fd())?),
        };
        Ok(Rc::clone(self.home.insert(home)))
    }

    /// The pod's namespace; an error of code 8 where there is none.
    pub fn pod(&mut self) -> anyhow::Result<&mut Pod> {
        let home = self.home()?;
        match &mut self.pod {
            Some(pod) => Ok(pod),
            empty => {
                let path = self.request.netns.as_deref();
                let path = path.ok_or_else(|| invalid_netns("is not given".to_owned()))?;
                let netns = Netns::open(path).map_err(|e| invalid_netns(e.to_string()))?;
                Ok(empty.insert(Pod::new(netns, home)))
            }
        }
    }

    /// Whether the pod has a namespace. An error of code 8 where that cannot be told: what is in it may still be there.
    pub fn has_pod(&mut self) -> anyhow::Result<bool> {
        if self.pod.is_some() {
            return Ok(true);
        }
        let Some(path) = self.request.netns.as_deref() else { return Ok(false) };
        let Some(netns) = Netns::find(path).map_err(|e| invalid_netns(e.to_string()))? else {
            return Ok(false);
        };
        let home = self.home()?;
        self.pod = Some(Pod::new(netns, home));
        Ok(true)
    }

    /// A link of the host, which is looked up once per call: its index, kind and MAC do not change meanwhile.
    pub fn host_link(&mut self, name: &str) -> anyhow::Result<Option<Link>> {
        if let Some(link) = self.links.iter().find(|l| l.name == name) {
            return Ok(Some(link.clone()));
        }
        let found = self.host()?.link(name)?;
        self.links.extend(found.clone());
        Ok(found)
    }

    /// A link of the host that must be there.
    pub fn existing_host_link(&mut self, name: &str) -> anyhow::Result<Link> {
        self.host_link(name)?.with_context(|| format!("link {name} has vanished"))
    }

    /// The addresses of a link of the host, which are looked up once until they are changed.
    pub fn host_addresses(&mut self, link: &Link) -> net::Result<Vec<Address>> {
        if let Some((_, addresses)) = self.addresses.as_ref().filter(|(index, _)| *index == link.index) {
            return Ok(addresses.clone());
        }
        let found = self.host()?.addresses(link)?;
        self.addresses = Some((link.index, found.clone()));
        Ok(found)
    }

    /// Forgets what is known of a link of the host, after a change to it.
    pub fn forget_host_link(&mut self, name: &str) {
        self.links.retain(|l| l.name != name);
        self.addresses = None;
    }
}

impl World<'_> {
    /// Keeps other calls from removing a bridge, as long as this one runs; or from using it, if it is to be alone.
    pub fn use_bridge(&mut self, name: &str, mode: Mode) -> anyhow::Result<()> {
        let patience = self.request.config.lock_timeout()?;
        self.bridge_use = Some(BridgeUse::begin(name, &self.state, mode, patience)?);
        Ok(())
    }

    /// Forgets a bridge that this call has removed, which nobody else uses.
    pub fn end_bridge_use(&mut self) {
        if let Some(bridge_use) = self.bridge_use.take() {
            bridge_use.end_with_bridge();
        }
    }

    /// Whether what belongs to the bridge of this call may be undone: it has no port but the one with this name, and
    /// no other call is about to add one.
    pub fn is_bridge_unused(&mut self, except: &str) -> anyhow::Result<bool> {
        let Some(bridge_use) = &self.bridge_use else { return Ok(false) };
        let name = bridge_use.bridge().to_owned();
        if !bridge_use.is_the_only_one()? {
            return Ok(false);
        }
        let Some(bridge) = self.host_link(&name)? else { return Ok(true) };
        Ok(self.host()?.ports(&bridge)?.iter().all(|port| port.name == except))
    }

    /// Deletes a link of the host, and with a veth its peer; see [`removal`].
    pub fn remove_host_link(&mut self, link: &Link) -> net::Result<()> {
        self.forget_host_link(&link.name);
        let (nft, mark) = self.lend_nft();
        let addresses = &self.connections;
        let afterwards = removal::remove(link, nft, || {
            let connection = forget_connections(addresses);
            if nft.is_some() || connection.is_some() {
                wait_for_deletions(&mark);
            }
        })?;
        // Without a child this call does it in the end.
        if afterwards == Afterwards::ByChild {
            self.child_has_nft = nft.is_some();
            self.connections.clear();
        }
        Ok(())
    }

    /// Has the kernel forget the connections of addresses, some time after their pod's link is gone, in the child that
    /// outlives this call. It takes the kernel a walk through its whole table for each.
    pub fn forget_connections_later(&mut self, addresses: &[IpAddr]) {
        self.connections.extend(addresses);
    }

    /// Has frames sent by a link of the pod when all else is done and the caller has its answer.
    pub fn announce_later(&mut self, link: u32, frames: Vec<Frame>) {
        self.announcements = Some((link, frames)).filter(|(_, frames)| !frames.is_empty());
    }

    /// What is left to be done when the caller has the answer of this call, which has succeeded.
    pub fn take_aftermath(&mut self) -> Option<Aftermath> {
        let aftermath = Aftermath { announcing: self.take_announcing(), closing: self.take_closing() };
        (aftermath.announcing.is_some() || aftermath.closing.is_some()).then_some(aftermath)
    }

    fn take_announcing(&mut self) -> Option<Announcing> {
        let (link, frames) = self.announcements.take()?;
        let Pod { netns, home, .. } = self.pod.take()?;
        Some(Announcing { netns, home, link, frames })
    }

    /// The connection to nf_tables, if it must not be closed at once.
    fn take_closing(&mut self) -> Option<Closing> {
        // Where there was no link to be removed.
        if let Some(nft) = forget_connections(&std::mem::take(&mut self.connections)) {
            self.nft.get_or_insert(nft);
        }
        let nft = self.nft.take()?;
        let mark = self.deletion_mark();
        if nft.has_deleted() {
            self.mark_deletion();
        }
        let holds_up = nft.has_deleted() || !time_to_free(&mark).is_zero();
        (holds_up && !self.child_has_nft).then_some(Closing { nft, mark })
    }

    /// Deletes a link of the pod.
    pub fn remove_pod_link(&mut self, link: &Link) -> anyhow::Result<()> {
        let (nft, mark) = self.lend_nft();
        let wait = || {
            if nft.is_some() {
                wait_for_deletions(&mark);
            }
        };
        let afterwards = self.pod()?.visit(|| removal::remove(link, nft, wait))??;
        self.child_has_nft |= nft.is_some() && afterwards == Afterwards::ByChild;
        Ok(())
    }

    /// Deletes a link of another namespace than that of the call's pod; see [`removal`].
    pub fn remove_link_in(&mut self, netns: &Netns, link: &Link) -> net::Result<()> {
        let home = self.home()?;
        netns.run(&home, || removal::remove(link, None, || {}))?.map(|_| ())
    }

    /// What a child is to keep and to wait for, so that nobody waits for the connection to nf_tables to be closed; see
    /// [`Nft::close_later`].
    fn lend_nft(&self) -> (Option<RawFd>, PathBuf) {
        let nft = self.nft.as_ref().map(|nft| nft.as_fd().as_raw_fd());
        (nft, self.deletion_mark())
    }

    /// A file whose time says when something was last deleted from nf_tables.
    fn deletion_mark(&self) -> PathBuf {
        self.state.join("nft-deletion")
    }

    /// Tells other calls that something was deleted from nf_tables just now.
    fn mark_deletion(&self) {
        if StateDirectory::is_usable(&self.state) {
            // A hint that cannot be given costs somebody some milliseconds.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
            let _ = options.open(self.deletion_mark());
        }
    }
}

/// How often it is tried to have the kernel forget connections.
const TRIES_TO_FORGET: usize = 2;

/// The connection to netfilter that this was done by, which is not to be closed at a bad moment.
fn forget_connections(addresses: &[IpAddr]) -> Option<Nft> {
    if addresses.is_empty() || !conntrack::is_in_use() || !conntrack::is_at_hand() {
        return None;
    }
    // Nobody is there any more who could be told that it failed, or who would try again.
    for _ in 0..TRIES_TO_FORGET {
        let forgotten = Nft::open().and_then(|mut nft| conntrack::forget(&mut nft, addresses).map(|()| nft));
        match forgotten {
            Ok(nft) => return Some(nft),
            Err(e) => log::warn!("{e}"),
        }
    }
    None
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if let Some(closing) = self.take_closing() {
            closing.later();
        }
    }
}

fn invalid_netns(why: String) -> CniError {
    CniError::new(Code::InvalidNetns, format!("CNI_NETNS: {why}"))
}

impl Pod {
    fn new(netns: Netns, home: Rc<Netns>) -> Self {
        Self { netns, home, rtnl: None, link: None, target: None, lock: None }
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Keeps other calls, also those of the reference, from choosing tables in this namespace until this call ends: as the
    /// reference does, by a lock on the namespace's own file.
    ///
    /// Errors: code 11 names who has it and does not come to an end.
    pub fn lock(&mut self, patience: Duration) -> anyhow::Result<()> {
        if self.lock.is_none() {
            let lock = FileLock::take(self.netns.file()?, self.netns.path(), patience)?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    /// rtnetlink of the pod.
    pub fn rtnl(&mut self) -> net::Result<&mut Rtnl> {
        match &mut self.rtnl {
            Some(rtnl) => Ok(rtnl),
            empty => Ok(empty.insert(self.netns.run(&self.home, Rtnl::open)??)),
        }
    }

    /// Runs a closure inside the namespace. The socket is opened on the same visit, if it is not open yet.
    pub fn visit<T>(&mut self, inside: impl FnOnce() -> T) -> net::Result<T> {
        let open = self.rtnl.is_none();
        let (rtnl, answer) = self.netns.run(&self.home, || (open.then(Rtnl::open), inside()))?;
        if let Some(rtnl) = rtnl {
            self.rtnl = Some(rtnl?);
        }
        Ok(answer)
    }

    /// A link of the pod that must be there. It is looked up once.
    pub fn existing_link(&mut self, name: &str) -> anyhow::Result<Link> {
        if let Some(link) = self.link.as_ref().filter(|link| link.name == name) {
            return Ok(link.clone());
        }
        let found = self.rtnl()?.link(name)?;
        let found = found.with_context(|| format!("link {name} has vanished from the pod"))?;
        Ok(self.link.insert(found).clone())
    }

    /// A link of the pod that must be there, as far as requests to it need it.
    pub fn target(&mut self, name: &str) -> anyhow::Result<Link> {
        match &self.target {
            Some((known, index)) if known == name => Ok(Link::named(*index, name)),
            _ => self.existing_link(name),
        }
    }

    /// Has it that a link of the pod has this index.
    pub fn expect_link(&mut self, name: &str, index: u32) {
        self.target = Some((name.to_owned(), index));
    }

    /// Forgets what is known of a link, since it is to be another.
    pub fn forget_link(&mut self) {
        self.link = None;
        self.target = None;
    }
}
