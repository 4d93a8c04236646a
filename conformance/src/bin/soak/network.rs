//! The networks that all workers share.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

/// Where a network's rules for masquerading are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `ipMasqBackend` iptables, which is also the default where its command is there.
    Iptables,
    /// `ipMasqBackend` nftables
    Nftables,
}

/// A network: a bridge, a range of each family that is small enough to be used up by what leaks, and rules.
#[derive(Debug)]
pub(crate) struct Network {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its bridge.
    pub(crate) bridge: &'static str,
    subnets: &'static [&'static str],
    masquerade: Option<Backend>,
    /// Whether pods are kept from sending as somebody else.
    pub(crate) guards: bool,
    is_default: bool,
    /// The plugin that is called.
    pub(crate) plugin: &'static str,
    /// Other keys of its configuration, as JSON.
    more: &'static str,
    /// Whether a port of the host leads to each pod.
    maps_ports: bool,
}

const fn network(name: &'static str, bridge: &'static str, subnets: &'static [&'static str]) -> Network {
    Network {
        name,
        bridge,
        subnets,
        masquerade: None,
        guards: false,
        is_default: true,
        plugin: "bridge",
        more: r#"{"macspoofchk": false}"#,
        maps_ports: false,
    }
}

/// A key that only this suite has.
const SPOOF_GUARD: &str = r#"{"spoofGuard": true}"#;

/// What a chain does, in one entry.
const CHAIN: &str = r#"{
    "backend": "nftables", "firewall": true, "ingressPolicy": "same-bridge", "txQLen": 77,
    "ingressRate": 80000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000
}"#;

/// Those that a pod's `eth0` is on. Of the first two, both suites keep the same rules.
pub(crate) static NETWORKS: [Network; 6] = [
    network("plain", "soak0", &["10.40.0.0/25"]),
    Network {
        masquerade: Some(Backend::Iptables),
        ..network("iptables", "soak1", &["10.41.0.0/25", "fd41::/121"])
    },
    Network {
        masquerade: Some(Backend::Nftables),
        ..network("nftables", "soak2", &["10.42.0.0/25", "fd42::/121"])
    },
    Network {
        masquerade: Some(Backend::Nftables),
        guards: true,
        more: r#"{"macspoofchk": true}"#,
        ..network("guarded", "soak3", &["10.43.0.0/25", "fd43::/121"])
    },
    Network {
        guards: true,
        more: SPOOF_GUARD,
        ..network("filtered", "soak5", &["10.45.0.0/25", "fd45::/121"])
    },
    Network {
        masquerade: Some(Backend::Nftables),
        plugin: "bridgehead",
        more: CHAIN,
        maps_ports: true,
        ..network("whole", "soak6", &["10.46.0.0/25", "fd46::/121"])
    },
];

/// The one that some pods' `net1` is on.
pub(crate) static SECOND: Network =
    Network { is_default: false, ..network("second", "soak4", &["10.44.0.0/25", "fd44::/121"]) };

/// Those of them that a directory of plugins can serve: what only this suite has comes last.
pub(crate) fn served_by(plugins: &Path) -> &'static [Network] {
    let served = NETWORKS.iter().take_while(|network| {
        plugins.join(network.plugin).exists()
            && (network.more != SPOOF_GUARD || plugins.join("bridgehead").exists())
    });
    NETWORKS.split_at(served.count()).0
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Network> {
    NETWORKS.iter().chain([&SECOND])
}

/// Those where both suites keep the same rules: what one makes, the other can remove.
pub(crate) fn known_to_both() -> impl Iterator<Item = &'static Network> {
    all().filter(|network| network.masquerade != Some(Backend::Nftables) && !network.guards)
}

impl Network {
    /// Its configuration.
    pub(crate) fn config(&self, version: &str) -> Value {
        let ranges: Vec<Value> = self.subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let mut config = json!({
            "cniVersion": version,
            "name": self.name,
            "type": self.plugin,
            "bridge": self.bridge,
            "isGateway": true,
            "isDefaultGateway": self.is_default,
            "ipam": {"type": "host-local", "ranges": ranges},
        });
        let more: Value = serde_json::from_str(self.more).unwrap_or_default();
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        if let Some(backend) = self.masquerade {
            config["ipMasq"] = json!(true);
            config["ipMasqBackend"] = match backend {
                Backend::Iptables => json!("iptables"),
                Backend::Nftables => json!("nftables"),
            };
        }
        config
    }

    /// Its configuration for a pod: with a port of the host that no other pod has, if it maps any.
    pub(crate) fn config_of(&self, version: &str, host_port: usize) -> Value {
        let mut config = self.config(version);
        if self.maps_ports {
            let port = json!({"hostPort": host_port, "containerPort": 80, "protocol": "udp"});
            config["runtimeConfig"] = json!({"portMappings": [port]});
        }
        config
    }

    /// Whether the rules of a pod name its address more than once.
    pub(crate) fn has_many_rules(&self) -> bool {
        self.maps_ports
    }

    /// How many addresses a pod gets.
    pub(crate) fn families(&self) -> usize {
        self.subnets.len()
    }

    /// Whether there is a rule for each pod.
    pub(crate) fn masquerades(&self) -> bool {
        self.masquerade.is_some()
    }

    /// Whether an address is one that a pod of it may have: not the subnet's own, and not the gateway's.
    pub(crate) fn gives(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| {
            let Some((base, _)) = subnet.split_once('/') else { return false };
            match (base.parse::<IpAddr>(), address) {
                (Ok(IpAddr::V4(base)), IpAddr::V4(address)) => {
                    let (base, address) = (u32::from(base), u32::from(address));
                    (2..128).contains(&address.wrapping_sub(base))
                }
                (Ok(IpAddr::V6(base)), IpAddr::V6(address)) => {
                    let (base, address) = (u128::from(base), u128::from(address));
                    (2..128).contains(&address.wrapping_sub(base))
                }
                _ => false,
            }
        })
    }
}
