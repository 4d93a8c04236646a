//! The record of an attachment: what ADD made, for DEL, CHECK, GC and restore to read.

use std::path::PathBuf;

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
    /// What ADD made or was about to make, oldest first; that of all entries of this type in the chain.
    pub resources: Vec<Resource>,
    /// What ADD answered or was about to answer; none where it came to nothing.
    pub result: Option<CniResult>,
    /// What the last ADD was asked; not known of the records that earlier versions have written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
    /// The entries before, where a chain has several of this type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Entry>,
}

/// What an ADD was asked. A type may stand in a chain more than once, and each time it is called with another
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    configuration: String,
    prev_result: Option<String>,
    /// Of what the runtime asks for by `runtimeConfig`, `args` and `CNI_ARGS`; `None` in a record of an earlier version.
    #[serde(default)]
    wishes: Option<String>,
}

impl Cause {
    /// What this request asks.
    pub fn of(request: &Request) -> Self {
        let config = &request.config;
        Self {
            configuration: config.digest(),
            prev_result: config.prev_result_digest(),
            wishes: Some(request.wishes_digest()),
        }
    }
}

/// What one entry of a chain has made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    cause: Option<Cause>,
    /// How many of the record's resources, in their order.
    len: usize,
    /// What its ADD answered.
    pub result: Option<CniResult>,
}

impl Entry {
    /// Whether its ADD was asked just this; of one that is not known it is assumed.
    pub fn answers(&self, cause: &Cause) -> bool {
        self.cause.as_ref().is_none_or(|own| {
            let is_asked_alike = own.wishes.is_none() || own.wishes == cause.wishes;
            is_asked_alike
                && (&own.configuration, &own.prev_result) == (&cause.configuration, &cause.prev_result)
        })
    }

    /// Whether its ADD was called with this configuration.
    fn is_of(&self, cause: &Cause) -> bool {
        self.cause.as_ref().is_none_or(|own| own.configuration == cause.configuration)
    }
}

impl Record {
    /// The record before anything is known but where addresses are to come from, and what earlier entries of the chain
    /// have made.
    pub fn begin(
        request: &Request,
        netns: Option<Identity>,
        cause: Cause,
        lease: Option<Lease>,
        others: Option<Self>,
    ) -> Self {
        let (mut resources, mut earlier) = (Vec::new(), Vec::new());
        if let Some(others) = others {
            earlier = others.entries();
            resources = others.resources;
        }
        resources.extend(lease.map(Resource::Lease));
        Self {
            attachment: request.attachment.clone(),
            netns_path: request.netns.clone().unwrap_or_default(),
            netns,
            resources,
            result: None,
            cause: Some(cause),
            earlier,
        }
    }

    /// The entry that a configuration has made, and its resources.
    pub fn entry_of(&self, cause: &Cause) -> Option<(Entry, &[Resource])> {
        let mut rest = self.resources.as_slice();
        self.entries().into_iter().find_map(|entry| {
            let (own, others) = rest.split_at_checked(entry.len).unwrap_or((rest, &[]));
            rest = others;
            entry.is_of(cause).then_some((entry, own))
        })
    }

    /// The record without the entry that a configuration has made; `None` where nothing is left.
    pub fn without(mut self, cause: &Cause) -> Option<Self> {
        let mut entries = self.entries();
        let position = entries.iter().position(|entry| entry.is_of(cause))?;
        let first = entries.iter().take(position).map(|entry| entry.len).sum();
        let gone = entries.remove(position);
        self.resources = self
            .resources
            .into_iter()
            .enumerate()
            .filter(|(i, _)| !(first..first + gone.len).contains(i))
            .map(|(_, resource)| resource)
            .collect();
        let last = entries.pop()?;
        Some(Self { cause: last.cause, result: last.result, earlier: entries, ..self })
    }

    /// What this ADD has made or is about to make, and what it answers once it has made all.
    pub fn set(&mut self, resources: Vec<Resource>, result: Option<CniResult>) {
        let others = self.earlier.iter().map(|entry| entry.len).sum();
        self.resources.truncate(others);
        self.resources.extend(resources);
        self.result = result;
    }

    /// All entries, oldest first.
    fn entries(&self) -> Vec<Entry> {
        let others: usize = self.earlier.iter().map(|entry| entry.len).sum();
        let len = self.resources.len().saturating_sub(others);
        let last = Entry { cause: self.cause.clone(), len, result: self.result.clone() };
        self.earlier.iter().cloned().chain([last]).collect()
    }

    /// Whether the pod cannot live: its namespace is gone from where it was.
    ///
    /// A path of /proc is one of a process, and says of the namespace only that this process has ended: others may be
    /// in it. That the namespace is gone shows there by the link to it being gone.
    pub fn is_provably_dead(&self) -> bool {
        self.is_netns_gone() == Some(true) && (!self.netns_path.starts_with("/proc") || self.is_link_gone())
    }

    /// Whether it does not contradict others that say that the pod is dead. Not each of them has a link to tell it by.
    pub fn may_be_dead(&self) -> bool {
        self.is_netns_gone() != Some(false)
    }

    /// Whether the pod's namespace is not any more where it was; `None` where it cannot be told.
    fn is_netns_gone(&self) -> Option<bool> {
        let netns = self.netns?;
        let found = Netns::find(&self.netns_path).ok()?;
        Some(found.is_none_or(|found| found.identity() != netns))
    }

    /// Whether there was a link to the pod, and is none.
    fn is_link_gone(&self) -> bool {
        let name = self.resources.iter().find_map(|resource| match resource {
            Resource::Veth(veth) => Some(&veth.host_name),
            Resource::TrafficShape(shape) => Some(&shape.link),
            _ => None,
        });
        name.is_some_and(|name| {
            Rtnl::open().and_then(|mut rtnl| rtnl.link(name)).is_ok_and(|found| found.is_none())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::Forwarding;
    use crate::spec::Command;
    use crate::spec::request::Environment;

    fn request(config: Value) -> Request {
        let mut document = json!({"cniVersion": "1.0.0", "name": "n", "type": "tuning"});
        document.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let environment =
            Environment { container_id: "c".into(), ifname: "eth0".into(), ..Environment::default() };
        Request::parse(Command::Add, &environment, document.to_string().into_bytes()).unwrap()
    }

    fn cause(mtu: u32) -> Cause {
        Cause::of(&request(json!({"mtu": mtu})))
    }

    fn record(mtu: u32, resources: &[Forwarding], others: Option<Record>) -> Record {
        let request = request(json!({"mtu": mtu}));
        let mut record = Record::begin(&request, None, cause(mtu), None, others);
        let resources = resources.iter().map(|it| Resource::Forwarding(*it)).collect();
        record.set(resources, Some(CniResult::default()));
        record
    }

    #[test]
    fn entries_are_found_and_taken_out_one_by_one() {
        let (v4, v6) = (Forwarding::Ipv4, Forwarding::Ipv6);
        let two = record(2, &[v6], Some(record(1, &[v4, v6], None)));
        let all = record(3, &[v4], Some(two));
        let bytes = serde_json::to_vec(&all).unwrap();
        let all: Record = serde_json::from_slice(&bytes).unwrap();
        let lens: Vec<_> =
            (1..5).map(|mtu| all.entry_of(&cause(mtu)).map(|(_, resources)| resources.len())).collect();
        assert_eq!(lens, [Some(2), Some(1), Some(1), None]);
        let rest = all.without(&cause(1)).unwrap();
        assert_eq!(rest.resources.len(), 2);
        assert!(rest.entry_of(&cause(1)).is_none());
        let rest = rest.without(&cause(3)).unwrap();
        assert_eq!(rest.resources, [Resource::Forwarding(Forwarding::Ipv6)]);
        assert!(rest.result.is_some());
        assert!(rest.without(&cause(2)).is_none());
    }

    #[test]
    fn what_runtimes_inject_makes_no_other_configuration() {
        let plain = Cause::of(&request(json!({"mtu": 1})));
        let injected = Cause::of(&request(json!({
            "mtu": 1, "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "args": {"cni": {}}, "cni.dev/x": 1,
            "prevResult": {"cniVersion": "1.0.0"},
        })));
        assert_eq!(plain.configuration, injected.configuration);
        assert_ne!(plain, injected);
        assert_ne!(plain.configuration, cause(2).configuration);
    }

    #[test]
    fn a_record_of_an_earlier_version_is_that_of_any_configuration() {
        let old = json!({
            "attachment": {"network": "n", "containerId": "c", "ifname": "eth0"},
            "netns_path": "/n", "netns": null, "resources": [{"forwarding": "ipv4"}],
            "result": {"ips": [{"address": "10.0.0.2/24"}]},
        });
        let old: Record = serde_json::from_value(old).unwrap();
        let (entry, resources) = old.entry_of(&cause(1)).unwrap();
        assert_eq!((entry.answers(&cause(1)), resources.len()), (true, 1));
        assert_eq!(entry.result.unwrap().ips.len(), 1);
        assert!(old.without(&cause(1)).is_none());
    }
}
