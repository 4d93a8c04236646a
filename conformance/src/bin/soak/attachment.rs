//! An attachment of a pod to a network, and the calls for it.

use std::net::IpAddr;
use std::path::Path;

use conformance::call::Call;
use conformance::pod::Pod;
use conformance::sandbox::Sandbox;
use serde_json::Value;

use crate::network::Network;

/// Container and interface, which is what tells an attachment from others.
pub(crate) type Key = (String, &'static str);

/// One interface of a pod.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// Container and interface.
    pub(crate) key: Key,
    /// What it is on.
    pub(crate) network: &'static Network,
    /// The directory whose plugin adds and checks it, and the one whose plugin deletes it.
    pub(crate) suites: (Suite, Suite),
    /// What ADD answered, if it did.
    pub(crate) result: Option<Value>,
    call: Call,
}

/// Whose plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Those that are judged.
    Ours,
    /// Those beside which ours work.
    Reference,
}

impl Suite {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Reference => "reference",
        }
    }
}

impl Attachment {
    /// An attachment that was not made yet, of a pod whose namespace has that path.
    pub(crate) fn new(
        id: &str,
        ifname: &'static str,
        netns: &str,
        network: &'static Network,
        version: &str,
        suites: (Suite, Suite),
    ) -> Self {
        let call = Call::new(network.plugin)
            .id(id)
            .ifname(ifname)
            .env("CNI_NETNS", netns)
            .args(&format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=soak;K8S_POD_NAME={id}"))
            .config(network.config_of(version, host_port(id)));
        Self { key: (id.to_owned(), ifname), network, suites, result: None, call }
    }

    /// The call for it without a verb, by a plugin of this directory.
    pub(crate) fn call(&self, directory: &Path) -> Call {
        self.call.from(directory)
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.result.as_ref().map(addresses).unwrap_or_default()
    }

    /// The name of the link on the host.
    pub(crate) fn host_link(&self) -> Option<&str> {
        let interfaces = self.result.as_ref()?["interfaces"].as_array()?;
        let of_host = |interface: &&Value| {
            interface["sandbox"].as_str().unwrap_or_default().is_empty()
                && interface["name"] != self.network.bridge
        };
        interfaces.iter().find(of_host)?["name"].as_str()
    }
}

/// A port of the host for a container: no other that lives at the same time has it.
fn host_port(id: &str) -> usize {
    let mut numbers =
        id.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let (worker, number): (usize, usize) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    10_000 + worker * 500 + number % 500
}

/// The addresses of a result.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

/// A pod with its attachments.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// The container.
    pub(crate) id: String,
    /// Its namespace, unless that is deleted.
    pub(crate) pod: Option<Pod>,
    /// Its attachments, oldest first.
    pub(crate) attachments: Vec<Attachment>,
}

impl Tenant {
    /// A pod with a new namespace.
    pub(crate) fn new(id: &str, host: &Sandbox) -> anyhow::Result<Self> {
        Ok(Self { id: id.to_owned(), pod: Some(host.pod(id)?), attachments: Vec::new() })
    }

    /// Deletes the namespace; whether there was one.
    pub(crate) fn vanish(&mut self) -> anyhow::Result<bool> {
        self.pod.take().map_or(Ok(false), |pod| pod.remove().map(|()| true))
    }
}
