//! What resources act on.

use std::path::PathBuf;

use anyhow::Context;

use super::bridge_use::BridgeUse;
use crate::net::nft::{self, Nft};
use crate::net::rtnl::removal;
use crate::net::{self, Link, Netns, Rtnl};
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
    host: Option<Rtnl>,
    pod: Option<Pod>,
    nft: Option<Nft>,
    links: Vec<Link>,
    bridge_use: Option<BridgeUse>,
    /// Whether a child that outlives this program holds the connection to nf_tables too.
    child_has_nft: bool,
}

/// The pod's namespace.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    rtnl: Option<Rtnl>,
}

impl<'a> World<'a> {
    /// The world of a request.
    pub fn new(request: &'a Request, state: PathBuf) -> Self {
        Self {
            request,
            state,
            host: None,
            pod: None,
            nft: None,
            links: Vec::new(),
            bridge_use: None,
            child_has_nft: false,
        }
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

    /// The pod's namespace; an error of code 8 where there is none.
    pub fn pod(&mut self) -> anyhow::Result<&mut Pod> {
        match &mut self.pod {
            Some(pod) => Ok(pod),
            empty => {
                let invalid = |msg: String| CniError::new(Code::InvalidNetns, msg);
                let path =
                    self.request.netns.as_deref().ok_or_else(|| invalid("CNI_NETNS is not given".into()))?;
                let netns = Netns::open(path).map_err(|e| invalid(format!("CNI_NETNS: {e}")))?;
                Ok(empty.insert(Pod { netns, rtnl: None }))
            }
        }
    }

    /// Whether the pod's namespace can be opened.
    pub fn has_pod(&mut self) -> bool {
        self.pod().is_ok()
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

    /// Forgets what is known of a link of the host, after a change to it.
    pub fn forget_host_link(&mut self, name: &str) {
        self.links.retain(|l| l.name != name);
    }
}

impl World<'_> {
    /// Keeps other calls from removing a bridge, as long as this one runs.
    pub fn use_bridge(&mut self, name: &str) -> anyhow::Result<()> {
        self.bridge_use = Some(BridgeUse::begin(name, &self.state)?);
        Ok(())
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
        self.child_has_nft = self.nft.is_some();
        removal::remove(link)
    }

    /// Deletes a link of the pod.
    pub fn remove_pod_link(&mut self, link: &Link) -> anyhow::Result<()> {
        self.child_has_nft = self.nft.is_some();
        Ok(self.pod()?.netns.run(|| removal::remove(link))??)
    }

    /// Tells other calls that something was deleted from nf_tables just now, and learns whether they did.
    fn exchange_deletions(&self, has_deleted: bool) -> bool {
        let mark = self.state.join("nft-deletion");
        if has_deleted {
            // A hint that cannot be given costs somebody some milliseconds.
            let _ = std::fs::write(&mark, "");
            return true;
        }
        let age = std::fs::metadata(&mark).and_then(|m| m.modified()).map(|time| time.elapsed());
        matches!(age, Ok(Ok(age)) if age < nft::FREED)
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if let Some(nft) = self.nft.take()
            && self.exchange_deletions(nft.has_deleted())
            && !self.child_has_nft
        {
            nft.close_later();
        }
    }
}

impl Pod {
    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// rtnetlink of the pod.
    pub fn rtnl(&mut self) -> net::Result<&mut Rtnl> {
        match &mut self.rtnl {
            Some(rtnl) => Ok(rtnl),
            empty => Ok(empty.insert(Rtnl::open_in(&self.netns)?)),
        }
    }

    /// Runs a closure inside the namespace. The socket is opened on the same visit, if it is not open yet.
    pub fn visit<T>(&mut self, inside: impl FnOnce() -> T) -> net::Result<T> {
        let open = self.rtnl.is_none();
        let (rtnl, answer) = self.netns.run(|| (open.then(Rtnl::open), inside()))?;
        if let Some(rtnl) = rtnl {
            self.rtnl = Some(rtnl?);
        }
        Ok(answer)
    }

    /// A link of the pod that must be there.
    pub fn existing_link(&mut self, name: &str) -> anyhow::Result<Link> {
        self.rtnl()?.link(name)?.with_context(|| format!("link {name} has vanished from the pod"))
    }
}
