//! The networks whose attachments are disturbed.

use conformance::cases::networks::{pool, with};
use serde_json::{Value, json};

/// What is attached to what.
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: &'static str,
    /// Subnets that the pod gets an address of.
    subnets: &'static [&'static str],
    /// Other keys of the configuration, as JSON.
    keys: &'static str,
    /// Whether another pod is on the network already, so that the bridge and the rules that all share are there.
    pub(crate) has_neighbour: bool,
}

const IPV4: &[&str] = &["10.20.0.0/24"];
const DUAL: &[&str] = &["10.20.0.0/24", "fd20::/64"];

const fn scenario(name: &'static str, subnets: &'static [&'static str], keys: &'static str) -> Scenario {
    Scenario { name, subnets, keys, has_neighbour: false }
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    scenario("plain/ipv4", IPV4, "{}"),
    scenario("plain/dual", DUAL, "{}"),
    scenario("iptables/ipv4", IPV4, r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#),
    scenario("iptables/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#),
    scenario("nftables/ipv4", IPV4, r#"{"ipMasq": true, "ipMasqBackend": "nftables"}"#),
    scenario("nftables/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "nftables"}"#),
    scenario("macspoofchk/ipv4", IPV4, r#"{"macspoofchk": true}"#),
    scenario("spoofguard/dual", DUAL, r#"{"spoofGuard": true}"#),
    Scenario {
        has_neighbour: true,
        ..scenario(
            "neighbour/dual",
            DUAL,
            r#"{"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true}"#,
        )
    },
];

impl Scenario {
    /// The keys of the network's configuration, beside those that every bridge has.
    pub(crate) fn network(&self) -> Value {
        let more = serde_json::from_str(self.keys).unwrap_or_default();
        with(json!({"isDefaultGateway": true, "ipam": pool(self.subnets)}), more)
    }
}
