//! Configurations that cases start from.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::expect::text_at;
use crate::pod::Pod;
use crate::sandbox::Sandbox;

/// All versions of the protocol, oldest first.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version of a case that is not about versions.
pub const USUAL: &str = "1.0.0";

/// The newest version, for what only it has.
pub const NEWEST: &str = "1.1.0";

/// The plugins that every directory under test must have.
pub const PLUGINS: [&str; 4] = ["bridge", "host-local", "static", "loopback"];

/// `base` with the keys of `more` set, those of the top level only.
pub fn with(base: Value, more: Value) -> Value {
    let mut merged = match base {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    if let Value::Object(map) = more {
        merged.extend(map);
    }
    Value::Object(merged)
}

/// host-local for the container `id`, on a network called `net`, with these keys under `ipam`. No verb is chosen.
pub fn host_local(id: &str, ipam: Value) -> Call {
    let ipam = with(json!({"type": "host-local"}), ipam);
    Call::new("host-local")
        .id(id)
        .ifname("eth0")
        .somewhere()
        .config(json!({"cniVersion": USUAL, "name": "net", "type": "ipvlan", "ipam": ipam}))
}

/// static for one container, with these keys under `ipam`. No verb is chosen.
pub fn fixed(ipam: Value) -> Call {
    let ipam = with(json!({"type": "static"}), ipam);
    Call::new("static")
        .id("c1")
        .ifname("eth0")
        .somewhere()
        .config(json!({"cniVersion": USUAL, "name": "net", "type": "ipvlan", "ipam": ipam}))
}

/// bridge for `eth0` of a pod, on a network called `net` with the bridge `cni0` and these keys more. No verb is chosen.
pub fn bridge(id: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "bridge", "bridge": "cni0"});
    Call::new("bridge").id(id).ifname("eth0").netns(pod).config(with(config, more))
}

/// The usual network: gateway on the bridge, default route, one IPv4 address of 10.20.0.0/24.
pub fn gateway4() -> Value {
    json!({"isDefaultGateway": true, "ipam": pool(&["10.20.0.0/24"])})
}

/// The usual network with an address of each family: 10.20.0.0/24 and fd20::/64.
pub fn gateway46() -> Value {
    json!({"isDefaultGateway": true, "ipam": pool(&["10.20.0.0/24", "fd20::/64"])})
}

/// An `ipam` object: host-local with one address of each subnet.
pub fn pool(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    json!({"type": "host-local", "ranges": ranges})
}

/// A pod that bridge has attached as `eth0`.
#[derive(Debug)]
pub struct Attachment {
    /// The pod.
    pub pod: Pod,
    /// The call that attached it, without a verb.
    pub call: Call,
    /// What ADD answered.
    pub result: Value,
}

impl Attachment {
    /// Makes a pod and attaches it; name and container id are the same.
    pub fn new(host: &Sandbox, id: &str, network: Value) -> Result<Self> {
        let pod = host.pod(id)?;
        let call = bridge(id, &pod, network);
        let result = call.add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
        Ok(Self { pod, call, result })
    }

    /// The name of the host's end of the pair.
    pub fn host_link(&self) -> Result<&str> {
        text_at(&self.result, "/interfaces/1/name")
    }

    /// The first address without its prefix length.
    pub fn address(&self) -> Result<&str> {
        Ok(text_at(&self.result, "/ips/0/address")?.split('/').next().unwrap_or_default())
    }

    /// DEL as a runtime does it: with the result of ADD.
    pub fn del(&self, host: &Sandbox) -> Result<()> {
        self.call.del().prev(&self.result).run(host)?.silence()
    }

    /// CHECK with the result of ADD succeeds.
    pub fn sound(&self, host: &Sandbox) -> Result<()> {
        self.call.check().prev(&self.result).run(host)?.silence()
    }

    /// CHECK with the result of ADD fails; gives the text of the error.
    pub fn damaged(&self, host: &Sandbox) -> Result<String> {
        Ok(self.call.check().prev(&self.result).run(host)?.refusal()?.text())
    }
}
