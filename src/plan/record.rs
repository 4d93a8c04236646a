//! The record of an attachment: what ADD made, for DEL, CHECK, GC and restore to read.

use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::net::netns::Identity;
use crate::net::{Netns, Rtnl};
use crate::resource::{Lease, Resource};
use crate::spec::{Attachment, CniResult, Request};

/// What is known of an attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whose.
    pub attachment: Attachment,
    /// Path of the pod's namespace, where a GC looks whether it is still the same.
    pub netns_path: PathBuf,
    /// What tells the pod's namespace from others; none where an IPAM was not told of it.
    pub netns: Option<Identity>,
    /// What ADD made or was about to make, oldest first.
    pub resources: Vec<Resource>,
    /// What ADD answered or was about to answer; none where it came to nothing.
    pub result: Option<CniResult>,
}

impl Record {
    /// The record before anything is known but where addresses are to come from.
    pub fn begin(request: &Request, netns: Option<Identity>, lease: Option<Lease>) -> Self {
        Self {
            attachment: request.attachment.clone(),
            netns_path: request.netns.clone().unwrap_or_default(),
            netns,
            resources: lease.map(Resource::Lease).into_iter().collect(),
            result: None,
        }
    }

    /// Whether the pod cannot live: its namespace is gone from where it was.
    ///
    /// A path of /proc is one of a process, and says of the namespace only that this process has ended: others may be
    /// in it. That the namespace is gone shows there by the link to it being gone.
    pub fn is_provably_dead(&self) -> bool {
        let Some(netns) = self.netns else { return false };
        let is_gone = match Netns::open(&self.netns_path) {
            Ok(found) => found.identity() != netns,
            Err(e) => matches!(e.errno, Errno::ENOENT | Errno::EINVAL),
        };
        is_gone && (!self.netns_path.starts_with("/proc") || self.is_link_gone())
    }

    /// Whether there was a link to the pod, and is none.
    fn is_link_gone(&self) -> bool {
        let veth = self.resources.iter().find_map(|resource| match resource {
            Resource::Veth(veth) => Some(veth),
            _ => None,
        });
        veth.is_some_and(|veth| {
            Rtnl::open().and_then(|mut rtnl| rtnl.link(&veth.host_name)).is_ok_and(|found| found.is_none())
        })
    }
}
