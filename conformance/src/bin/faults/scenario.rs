//! The networks whose attachments are disturbed.

use std::fs;
use std::path::Path;

use anyhow::Result;
use conformance::call::Call;
use conformance::cases::dhcp::server::{Daemon, Server};
use conformance::cases::networks::{NEWEST, USUAL, bridge, fixed, host_local, pool, with};
use conformance::pod::Pod;
use conformance::sandbox::{SCRATCH, Sandbox};
use serde_json::{Value, json};

use crate::verdict::Verb;

/// What is attached to what.
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: &'static str,
    /// Which plugin is disturbed.
    pub(crate) plugin: Plugin,
    /// Subnets that the pod gets an address of.
    subnets: &'static [&'static str],
    /// Other keys of the configuration, as JSON.
    keys: &'static str,
    /// Whether another pod is on the network already, so that the bridge and the rules that all share are there.
    pub(crate) has_neighbour: bool,
    /// Whether somebody has flushed all rules before the ADD.
    pub(crate) is_flushed: bool,
    /// The verbs that are disturbed, beside ADD and DEL.
    more: &'static [Verb],
}

/// Which plugin is disturbed, and how it comes by addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    /// `bridge`, with the `host-local` that is beside it.
    Bridge,
    /// `bridge`, with a `host-local` that is another file and has to be executed.
    BridgeOfForeignIpam,
    /// `bridgehead`, which does what a chain does: whatever a part of it leaves shows here.
    Whole,
    /// `ptp`
    Ptp,
    /// `host-local` by itself.
    HostLocal,
    /// `static` by itself.
    Static,
    /// `loopback`
    Loopback,
    /// `bridge`, with addresses of a DHCP server.
    BridgeOfDhcp,
    /// `macvlan`
    Macvlan,
    /// `tap`
    Tap,
    /// `host-device`
    HostDevice,
}

/// What must be on a host before anything can be attached, for as long as it is held.
#[derive(Debug)]
pub(crate) enum Surroundings {
    /// Nothing.
    None,
    /// Links that stay with the namespace, and the namespace of those who are at the other end.
    Links { _far: Option<Pod> },
    /// A server of DHCP on the bridge, and the daemon that asks it.
    Dhcp { _daemon: Daemon, _server: Server },
}

const IPV4: &[&str] = &["10.20.0.0/24"];
const DUAL: &[&str] = &["10.20.0.0/24", "fd20::/64"];

/// The keys of all parts of a chain, in each back end.
const CHAIN_IPTABLES: &str = r#"{
    "ipMasq": true, "ipMasqBackend": "iptables", "backend": "iptables", "ingressPolicy": "same-bridge",
    "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000, "txQLen": 77,
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}
}"#;
const CHAIN_NFTABLES: &str = r#"{
    "ipMasq": true, "ipMasqBackend": "nftables", "backend": "nftables", "ingressPolicy": "same-bridge",
    "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000, "txQLen": 77,
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}
}"#;

const fn scenario(name: &'static str, subnets: &'static [&'static str], keys: &'static str) -> Scenario {
    Scenario {
        name,
        plugin: Plugin::Bridge,
        subnets,
        keys,
        has_neighbour: false,
        is_flushed: false,
        more: &[],
    }
}

impl Scenario {
    const fn of(self, plugin: Plugin) -> Self {
        Self { plugin, ..self }
    }

    const fn and(self, more: &'static [Verb]) -> Self {
        Self { more, ..self }
    }

    const fn with_neighbour(self) -> Self {
        Self { has_neighbour: true, ..self }
    }

    const fn flushed(self) -> Self {
        Self { is_flushed: true, ..self }
    }
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    scenario("plain/ipv4", IPV4, "{}").and(&[Verb::Gc]),
    scenario("plain/dual", DUAL, "{}"),
    scenario("iptables/ipv4", IPV4, r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#).and(&[Verb::Gc]),
    scenario("iptables/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#).and(&[Verb::Restore]),
    scenario("nftables/ipv4", IPV4, r#"{"ipMasq": true, "ipMasqBackend": "nftables"}"#),
    scenario("nftables/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "nftables"}"#)
        .and(&[Verb::Gc, Verb::Restore]),
    scenario("macspoofchk/ipv4", IPV4, r#"{"macspoofchk": true}"#).and(&[Verb::Gc, Verb::Restore]),
    scenario("spoofguard/dual", DUAL, r#"{"spoofGuard": true}"#).and(&[Verb::Gc, Verb::Restore]),
    scenario("neighbour/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true}"#)
        .with_neighbour(),
    scenario("flushed/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true}"#)
        .with_neighbour()
        .flushed(),
    scenario("foreign-ipam", DUAL, "{}").of(Plugin::BridgeOfForeignIpam).and(&[Verb::Gc]),
    scenario("chain/iptables", IPV4, CHAIN_IPTABLES).of(Plugin::Whole).and(&[Verb::Gc, Verb::Restore]),
    scenario("chain/nftables", IPV4, CHAIN_NFTABLES).of(Plugin::Whole).and(&[Verb::Gc, Verb::Restore]),
    scenario("ptp/iptables", IPV4, r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#).of(Plugin::Ptp),
    scenario("ptp/dual", DUAL, r#"{"ipMasq": true, "ipMasqBackend": "nftables"}"#).of(Plugin::Ptp),
    scenario("dhcp", &[], "{}").of(Plugin::BridgeOfDhcp).and(&[Verb::Gc]),
    scenario("macvlan", DUAL, "{}").of(Plugin::Macvlan).and(&[Verb::Gc]),
    scenario("tap", DUAL, "{}").of(Plugin::Tap).and(&[Verb::Gc]),
    scenario("host-device", DUAL, "{}").of(Plugin::HostDevice).and(&[Verb::Gc]),
    scenario("host-local", DUAL, "{}").of(Plugin::HostLocal).and(&[Verb::Gc]),
    scenario("static", &[], "{}").of(Plugin::Static),
    scenario("loopback", &[], "{}").of(Plugin::Loopback),
];

/// The link that a macvlan is on, and the device that a pod is given.
const MASTER: &str = "up0";
const DEVICE: &str = "dev0";

/// Where the `host-local` is that belongs to nobody.
const FOREIGN: &str = "foreign";

impl Scenario {
    /// Whether a verb is to be disturbed. The reference has no tool, and no GC that does anything.
    pub(crate) fn has(&self, verb: Verb, plugins: &Path) -> bool {
        verb.is_of_cni_0_4() || self.more.contains(&verb) && plugins.join("bridgehead").exists()
    }

    /// The keys of the network's configuration, beside those that every bridge has.
    fn network(&self) -> Value {
        let more = serde_json::from_str(self.keys).unwrap_or_default();
        with(json!({"isDefaultGateway": true, "ipam": pool(self.subnets)}), more)
    }

    /// The file name of the plugin.
    pub(crate) fn file_name(&self) -> &'static str {
        match self.plugin {
            Plugin::Bridge | Plugin::BridgeOfForeignIpam | Plugin::BridgeOfDhcp => "bridge",
            Plugin::Whole => "bridgehead",
            Plugin::Ptp => "ptp",
            Plugin::HostLocal => "host-local",
            Plugin::Static => "static",
            Plugin::Loopback => "loopback",
            Plugin::Macvlan => "macvlan",
            Plugin::Tap => "tap",
            Plugin::HostDevice => "host-device",
        }
    }

    /// Makes what a network of this kind needs.
    pub(crate) fn surround(&self, host: &Sandbox) -> Result<Surroundings> {
        match self.plugin {
            Plugin::BridgeOfDhcp => {
                let server = Server::start(host, [600, 900, 1200], &[])?;
                let daemon = Daemon::start(host, &["-resendmax", "300ms"])?;
                Ok(Surroundings::Dhcp { _daemon: daemon, _server: server })
            }
            Plugin::Macvlan => {
                host.ip_set(&format!(
                    "link add {MASTER} address 02:00:00:00:aa:01 type veth peer name far0"
                ))?;
                host.ip_set("link set far0 address 02:00:00:00:aa:02")?;
                host.ip_set(&format!("link set {MASTER} up"))?;
                host.ip_set("link set far0 up")?;
                Ok(Surroundings::Links { _far: None })
            }
            Plugin::HostDevice => {
                let far = host.pod("far")?;
                let ends = "address 02:00:00:00:00:d0 mtu 1450 type veth peer name eth0 netns far";
                host.ip_set(&format!("link add {DEVICE} {ends}"))?;
                host.ip_set(&format!("link set {DEVICE} up"))?;
                Ok(Surroundings::Links { _far: Some(far) })
            }
            _ => Ok(Surroundings::None),
        }
    }

    /// Where plugins look for others.
    pub(crate) fn path(&self, host: &Sandbox) -> Result<String> {
        let plugins = host.plugins().to_string_lossy().into_owned();
        if self.plugin != Plugin::BridgeOfForeignIpam {
            return Ok(plugins);
        }
        let directory = Path::new(SCRATCH).join(FOREIGN);
        if !directory.exists() {
            fs::create_dir(&directory)?;
            fs::copy(host.plugins().join("host-local"), directory.join("host-local"))?;
        }
        Ok(format!("{}:{plugins}", directory.display()))
    }

    /// The call for a container, without a verb.
    pub(crate) fn call(&self, host: &Sandbox, id: &str, pod: &Pod) -> Result<Call> {
        let call = match self.plugin {
            Plugin::Bridge | Plugin::BridgeOfForeignIpam => bridge(id, pod, self.network()),
            Plugin::Whole | Plugin::Ptp => {
                let config = json!({"cniVersion": NEWEST, "name": "net", "type": self.file_name()});
                let network = with(config, self.network());
                Call::new(self.file_name()).id(id).ifname("eth0").netns(pod).config(network)
            }
            Plugin::BridgeOfDhcp => bridge(id, pod, json!({"ipam": {"type": "dhcp"}})),
            Plugin::Macvlan | Plugin::Tap | Plugin::HostDevice => {
                let name = self.file_name();
                let config =
                    json!({"cniVersion": USUAL, "name": "net", "type": name, "ipam": pool(self.subnets)});
                let place = match self.plugin {
                    Plugin::Macvlan => json!({"master": MASTER}),
                    Plugin::HostDevice => json!({"device": DEVICE}),
                    _ => json!({}),
                };
                Call::new(name).id(id).ifname("eth0").netns(pod).config(with(config, place))
            }
            Plugin::HostLocal => host_local(id, pool(self.subnets)).netns(pod),
            Plugin::Static => fixed(json!({"addresses": [{"address": "10.20.0.2/24"}]})).id(id).netns(pod),
            Plugin::Loopback => {
                let config = json!({"cniVersion": NEWEST, "name": "lo", "type": "loopback"});
                Call::new("loopback").id(id).ifname("lo").netns(pod).config(config)
            }
        };
        let call = if self.more.contains(&Verb::Gc) { call.set("cniVersion", json!(NEWEST)) } else { call };
        Ok(call.env("CNI_PATH", &self.path(host)?))
    }

    /// Whether a pod can be reached at the addresses of the result.
    pub(crate) fn has_link(&self) -> bool {
        use Plugin::{Bridge, BridgeOfDhcp, BridgeOfForeignIpam, Ptp, Whole};
        matches!(self.plugin, Bridge | BridgeOfForeignIpam | BridgeOfDhcp | Whole | Ptp)
    }
}
