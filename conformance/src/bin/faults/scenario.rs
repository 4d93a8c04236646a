//! The networks whose attachments are disturbed.

use std::fs;
use std::path::Path;

use anyhow::Result;
use conformance::call::{Answer, Call};
use conformance::case::Need;
use conformance::cases::dhcp::server::{Daemon, Server};
use conformance::cases::netavark::{self, Container};
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
    /// What the kernel must have.
    needs: &'static [Need],
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
    /// `vlan`
    Vlan,
    /// `ipvlan`
    Ipvlan,
    /// `dummy`
    Dummy,
    /// A plugin of that name, behind a `bridge` that is not disturbed.
    Chained(&'static str),
    /// `bridgehead` as podman executes it by netavark: `setup` is ADD, and `teardown` is DEL.
    Netavark,
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

/// What each of those behind a bridge is asked for.
const TUNING: &str = r#"{
    "mac": "02:00:00:00:00:77", "mtu": 1400, "txQLen": 77, "promisc": true, "allmulti": true,
    "sysctl": {"net.core.somaxconn": "512", "net.ipv4.conf.IFNAME.arp_notify": "1"}
}"#;
const BANDWIDTH: &str = r#"{
    "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000
}"#;
const PORTS_IPTABLES: &str = r#"{"backend": "iptables", "snat": true, "runtimeConfig": {"portMappings": [
    {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}, {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"}
]}}"#;
const PORTS_NFTABLES: &str = r#"{"backend": "nftables", "snat": true, "runtimeConfig": {"portMappings": [
    {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}, {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"}
]}}"#;

const fn scenario(name: &'static str, subnets: &'static [&'static str], keys: &'static str) -> Scenario {
    Scenario {
        name,
        plugin: Plugin::Bridge,
        subnets,
        keys,
        has_neighbour: false,
        is_flushed: false,
        more: &[],
        needs: &[],
    }
}

impl Scenario {
    const fn of(self, plugin: Plugin) -> Self {
        Self { plugin, ..self }
    }

    const fn and(self, more: &'static [Verb]) -> Self {
        Self { more, ..self }
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
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
    scenario("vlan", DUAL, r#"{"vlanId": 7}"#)
        .of(Plugin::Vlan)
        .and(&[Verb::Gc])
        .needs(&[Need::LinkType("vlan")]),
    scenario("ipvlan", DUAL, "{}").of(Plugin::Ipvlan).and(&[Verb::Gc]).needs(&[Need::LinkType("ipvlan")]),
    scenario("dummy", DUAL, "{}").of(Plugin::Dummy).and(&[Verb::Gc]).needs(&[Need::LinkType("dummy")]),
    scenario("sbr", DUAL, "{}").of(Plugin::Chained("sbr")),
    scenario("vrf", DUAL, r#"{"vrfname": "blue"}"#)
        .of(Plugin::Chained("vrf"))
        .needs(&[Need::LinkType("vrf")]),
    scenario("tuning", DUAL, TUNING).of(Plugin::Chained("tuning")),
    scenario("bandwidth", DUAL, BANDWIDTH).of(Plugin::Chained("bandwidth")).and(&[Verb::Gc]),
    scenario("portmap/iptables", DUAL, PORTS_IPTABLES)
        .of(Plugin::Chained("portmap"))
        .and(&[Verb::Gc, Verb::Restore]),
    scenario("portmap/nftables", DUAL, PORTS_NFTABLES)
        .of(Plugin::Chained("portmap"))
        .and(&[Verb::Gc, Verb::Restore]),
    scenario("firewall/iptables", DUAL, r#"{"backend": "iptables", "ingressPolicy": "same-bridge"}"#)
        .of(Plugin::Chained("firewall"))
        .and(&[Verb::Gc, Verb::Restore]),
    scenario("firewall/nftables", DUAL, r#"{"backend": "nftables", "ingressPolicy": "isolated"}"#)
        .of(Plugin::Chained("firewall"))
        .and(&[Verb::Gc, Verb::Restore]),
    scenario("netavark", &[], "{}").of(Plugin::Netavark).and(&[Verb::Restore]),
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
    /// Whether a verb is to be disturbed. The reference has no tool, no GC that does anything, and knows no netavark.
    pub(crate) fn has(&self, verb: Verb, plugins: &Path) -> bool {
        if self.plugin == Plugin::Netavark && !plugins.join("bridgehead").exists() {
            return false;
        }
        verb.is_of_cni_0_4() || self.more.contains(&verb) && plugins.join("bridgehead").exists()
    }

    /// What is missing for it here, if anything is.
    pub(crate) fn obstacle(&self, host: &Sandbox) -> Option<String> {
        self.needs.iter().find_map(|need| need.unmet(host))
    }

    /// The keys of the network's configuration, beside those that every bridge has.
    fn network(&self) -> Value {
        with(json!({"isDefaultGateway": true, "ipam": pool(self.subnets)}), self.own_keys())
    }

    fn own_keys(&self) -> Value {
        serde_json::from_str(self.keys).unwrap_or_default()
    }

    /// The file name of the plugin.
    pub(crate) fn file_name(&self) -> &'static str {
        match self.plugin {
            Plugin::Bridge | Plugin::BridgeOfForeignIpam | Plugin::BridgeOfDhcp => "bridge",
            Plugin::Whole | Plugin::Netavark => "bridgehead",
            Plugin::Ptp => "ptp",
            Plugin::HostLocal => "host-local",
            Plugin::Static => "static",
            Plugin::Loopback => "loopback",
            Plugin::Macvlan => "macvlan",
            Plugin::Tap => "tap",
            Plugin::HostDevice => "host-device",
            Plugin::Vlan => "vlan",
            Plugin::Ipvlan => "ipvlan",
            Plugin::Dummy => "dummy",
            Plugin::Chained(name) => name,
        }
    }

    /// Makes what a network of this kind needs.
    pub(crate) fn surround(&self, host: &Sandbox) -> Result<Surroundings> {
        match self.plugin {
            Plugin::BridgeOfDhcp => {
                let server = Server::start(host, [600, 900, 1200], &[])?;
                let daemon = Daemon::start(host, &["-resendmax", "300ms", "-probe", "0s"])?;
                Ok(Surroundings::Dhcp { _daemon: daemon, _server: server })
            }
            Plugin::Macvlan | Plugin::Vlan | Plugin::Ipvlan => {
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

    /// The call for a container, without a verb; what it is chained behind has been called.
    pub(crate) fn call(&self, host: &Sandbox, id: &str, pod: &Pod) -> Result<Call> {
        let call = match self.plugin {
            Plugin::Netavark => {
                let container = Container::new(id, pod, netavark::network()).address("10.80.0.9");
                return Ok(container.port(8080, 80, "udp").call("setup", host));
            }
            Plugin::Chained(name) => {
                let gateway = json!({"isDefaultGateway": true, "ipam": pool(self.subnets)});
                let before = bridge(id, pod, gateway).add().run(host)?.result()?;
                let config = json!({"cniVersion": USUAL, "name": "net", "type": name});
                Call::new(name)
                    .id(id)
                    .ifname("eth0")
                    .netns(pod)
                    .config(with(config, self.own_keys()))
                    .prev(&before)
            }
            Plugin::Bridge | Plugin::BridgeOfForeignIpam => bridge(id, pod, self.network()),
            Plugin::Whole | Plugin::Ptp => {
                let config = json!({"cniVersion": NEWEST, "name": "net", "type": self.file_name()});
                let network = with(config, self.network());
                Call::new(self.file_name()).id(id).ifname("eth0").netns(pod).config(network)
            }
            Plugin::BridgeOfDhcp => bridge(id, pod, json!({"ipam": {"type": "dhcp"}})),
            Plugin::Macvlan
            | Plugin::Tap
            | Plugin::HostDevice
            | Plugin::Vlan
            | Plugin::Ipvlan
            | Plugin::Dummy => {
                let name = self.file_name();
                let config =
                    json!({"cniVersion": USUAL, "name": "net", "type": name, "ipam": pool(self.subnets)});
                let place = match self.plugin {
                    Plugin::Macvlan | Plugin::Vlan | Plugin::Ipvlan => json!({"master": MASTER}),
                    Plugin::HostDevice => json!({"device": DEVICE}),
                    _ => json!({}),
                };
                let config = with(with(config, place), self.own_keys());
                Call::new(name).id(id).ifname("eth0").netns(pod).config(config)
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
        use Plugin::{Bridge, BridgeOfDhcp, BridgeOfForeignIpam, Chained, Netavark, Ptp, Whole};
        matches!(
            self.plugin,
            Bridge | BridgeOfForeignIpam | BridgeOfDhcp | Whole | Ptp | Chained(_) | Netavark
        )
    }

    /// Whether hosts differ from each other before anything is attached, since a pod is there or links are.
    pub(crate) fn differs(&self) -> bool {
        self.has_neighbour || matches!(self.plugin, Plugin::Chained(_))
    }

    /// The call by which a pod is attached.
    pub(crate) fn add(&self, call: &Call) -> Call {
        if self.plugin == Plugin::Netavark { call.clone() } else { call.add() }
    }

    /// The call by which a pod is removed, with what ADD has answered if that is known.
    pub(crate) fn del(&self, call: &Call, result: Option<&Value>) -> Call {
        match result {
            _ if self.plugin == Plugin::Netavark => call.verb("teardown"),
            Some(result) => call.del().prev(result),
            None => call.del(),
        }
    }

    /// The call by which a pod is looked at, if there is one.
    pub(crate) fn check(&self, call: &Call, result: &Value) -> Option<Call> {
        (self.plugin != Plugin::Netavark).then(|| call.check().prev(result))
    }

    /// What a call that failed has said, which must be an error as the caller knows them.
    pub(crate) fn refusal(&self, answer: &Answer) -> Result<String> {
        match self.plugin {
            Plugin::Netavark => netavark::error_of(answer),
            _ => Ok(answer.refusal()?.text()),
        }
    }

    /// The addresses of a result, without their prefix lengths.
    pub(crate) fn addresses<'a>(&self, result: &'a Value) -> Vec<&'a str> {
        let (list, key) = match self.plugin {
            Plugin::Netavark => (&result["interfaces"]["eth0"]["subnets"], "ipnet"),
            _ => (&result["ips"], "address"),
        };
        let texts = list.as_array().into_iter().flatten().filter_map(|ip| ip[key].as_str());
        texts.filter_map(|text| text.split('/').next()).collect()
    }
}
