//! Configurations that cases start from.

use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::pod::Pod;

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
        .env("CNI_NETNS", "/some/where")
        .config(json!({"cniVersion": USUAL, "name": "net", "type": "ipvlan", "ipam": ipam}))
}

/// static for one container, with these keys under `ipam`. No verb is chosen.
pub fn fixed(ipam: Value) -> Call {
    let ipam = with(json!({"type": "static"}), ipam);
    Call::new("static")
        .id("c1")
        .ifname("eth0")
        .env("CNI_NETNS", "/some/where")
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
