//! netavark's plugin interface: networks and containers.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::dhcp::server::{self, Daemon, Server};
use super::networks::with;
use crate::call::{Answer, Call};
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, soon, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

/// What is beyond the reference.
pub(super) const WHOLE: Need = Need::Plugin("bridgehead");

cases! {
    "netavark/network" {
        info_tells_the_versions needs [WHOLE];
        create_keeps_what_is_there needs [WHOLE];
        create_chooses_what_is_missing needs [WHOLE];
        create_gives_no_network_what_another_has needs [WHOLE];
        create_names_what_is_wrong needs [WHOLE];
    }
    "netavark/container" {
        it_gets_what_podman_has_chosen needs [WHOLE, Need::Nftables];
        without_a_choice_it_gets_an_address_of_the_range needs [WHOLE, Need::Nftables];
        it_has_addresses_of_both_families needs [WHOLE, Need::Nftables, Need::Ipv6];
        it_can_be_without_addresses needs [WHOLE];
        ports_that_lead_nowhere_are_told needs [WHOLE, Need::Nftables];
        it_can_have_its_address_of_a_server needs [WHOLE];
        it_can_be_on_a_vlan needs [WHOLE, Need::Nftables, Need::VlanFiltering];
        it_is_on_two_networks needs [WHOLE, Need::Nftables];
        options_of_the_network_count needs [WHOLE, Need::Nftables];
        setup_again_answers_the_same needs [WHOLE, Need::Nftables];
        forty_come_and_go_at_once needs [WHOLE, Need::Nftables];
    }
}

/// A network's ID.
const ID: &str = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9";

/// The bridge of [`network`].
pub(super) const BRIDGE: &str = "nv0";

/// 10.80.0.0/24 as netavark describes a network.
pub fn network() -> Value {
    json!({
        "dns_enabled": false, "driver": "bridgehead", "id": ID, "internal": false, "ipv6_enabled": false, "name": "n1",
        "network_interface": BRIDGE, "options": null, "ipam_options": null,
        "subnets": [{"gateway": "10.80.0.1", "lease_range": null, "subnet": "10.80.0.0/24"}],
        "routes": null, "network_dns_servers": null,
    })
}

/// 10.81.0.0/24, on a bridge of its own.
pub(super) fn other_network() -> Value {
    let subnets = json!([{"gateway": "10.81.0.1", "lease_range": null, "subnet": "10.81.0.0/24"}]);
    with(network(), json!({"name": "n2", "network_interface": "nv1", "subnets": subnets}))
}

/// A container, and what it wants of a network.
#[derive(Clone, Debug)]
pub struct Container {
    netns: String,
    driver: &'static str,
    pub(super) input: Value,
}

impl Container {
    /// A container with `eth0` on a network, and no more wishes.
    pub fn new(id: &str, pod: &Pod, network: Value) -> Self {
        let input = json!({
            "container_id": id, "container_name": id, "port_mappings": null, "network": network,
            "network_options": {
                "aliases": [id], "interface_name": "eth0", "static_ips": null, "static_mac": null, "options": null,
            },
        });
        Self { netns: pod.netns().to_owned(), driver: "nftables", input }
    }

    /// The same with another value, by JSON pointer.
    pub(super) fn set(&self, pointer: &str, value: Value) -> Self {
        let mut container = self.clone();
        if let Some(place) = container.input.pointer_mut(pointer) {
            *place = value;
        }
        container
    }

    /// The same with an address that podman has chosen.
    pub fn address(&self, address: &str) -> Self {
        self.set("/network_options/static_ips", json!([address]))
    }

    /// The same with a published port.
    pub fn port(&self, host_port: u16, container_port: u16, protocol: &str) -> Self {
        self.set(
            "/port_mappings",
            json!([{"container_port": container_port, "host_ip": "", "host_port": host_port, "protocol": protocol, "range": 1}]),
        )
    }

    /// The same under another firewall driver of podman's.
    pub(super) fn driver(&self, driver: &'static str) -> Self {
        Self { driver, ..self.clone() }
    }

    /// The same with another path of its namespace.
    pub(super) fn netns(&self, path: &str) -> Self {
        Self { netns: path.to_owned(), ..self.clone() }
    }

    /// The call of a verb, as netavark makes it.
    pub fn call(&self, verb: &str, host: &Sandbox) -> Call {
        if let Some(id) =
            self.input["container_id"].as_str().filter(|id| id.starts_with(char::is_alphanumeric))
        {
            host.remember(id);
        }
        Call::new("bridgehead")
            .arguments(&[verb, &self.netns])
            .without_path()
            .env("NETAVARK_FW", self.driver)
            .env("RUST_LOG", "netavark=warn")
            .config(self.input.clone())
    }

    /// What `setup` answers.
    pub(super) fn setup(&self, host: &Sandbox) -> Result<Value> {
        self.call("setup", host).run(host)?.result()
    }

    /// The error of `setup`.
    pub(super) fn refused(&self, host: &Sandbox) -> Result<String> {
        error_of(&self.call("setup", host).run(host)?)
    }

    /// `teardown`, which has nothing to say.
    pub(super) fn teardown(&self, host: &Sandbox) -> Result<()> {
        self.call("teardown", host).run(host)?.silence()
    }
}

fn create(network: &Value, host: &Sandbox) -> Result<Answer> {
    Call::new("bridgehead").arguments(&["create"]).without_path().config(network.clone()).run(host)
}

/// What podman shows: the only key of an object, and exit status 1.
pub fn error_of(answer: &Answer) -> Result<String> {
    equal("exit status", answer.status(), Some(1))?;
    let error = answer.json().cloned().unwrap_or_default();
    let keys: Vec<&String> = error.as_object().into_iter().flatten().map(|(key, _)| key).collect();
    equal("keys of the error", keys, vec!["error"])?;
    Ok(text_at(&error, "/error")?.to_owned())
}

fn info_tells_the_versions(host: &Sandbox) -> Result<()> {
    let answer = Call::new("bridgehead").arguments(&["info"]).without_path().run(host)?.result()?;
    equal("api_version", text_at(&answer, "/api_version")?, "1.0.0")?;
    text_at(&answer, "/version").map(drop)
}

/// What podman writes to `create`.
fn wish() -> Value {
    json!({
        "name": "n1", "id": ID, "driver": "bridgehead", "created": "0001-01-01T00:00:00Z",
        "subnets": [{"subnet": "10.80.0.0/24"}], "ipv6_enabled": false, "internal": false, "dns_enabled": true,
        "labels": {"x": "y"}, "options": {"mtu": "1400"},
    })
}

fn create_keeps_what_is_there(host: &Sandbox) -> Result<()> {
    let before = Snapshot::take(host, &[])?;
    let created = create(&wish(), host)?.result()?;
    for key in ["name", "id", "driver", "created", "internal", "labels", "options"] {
        same_json(key, &created[key], &wish()[key])?;
    }
    same_json("subnets", &created["subnets"], &json!([{"subnet": "10.80.0.0/24", "gateway": "10.80.0.1"}]))?;
    same_json("created a second time", &create(&created, host)?.result()?, &created)?;
    before.restored(host, &[])?;
    // What it has made of it is what setup takes.
    let pod = host.pod("a")?;
    Container::new("c1", &pod, created).address("10.80.0.9").setup(host)?;
    equal("MTU", pod.need_link("eth0")?["mtu"].as_u64(), Some(1400))
}

fn create_chooses_what_is_missing(host: &Sandbox) -> Result<()> {
    let free = with(wish(), json!({"subnets": null, "ipv6_enabled": true}));
    let created = create(&free, host)?.result()?;
    holds(!text_at(&created, "/network_interface")?.is_empty(), "it has no bridge")?;
    equal("number of subnets", list_at(&created, "/subnets")?.len(), 2)?;
    let pod = host.pod("a")?;
    let container = Container::new("c1", &pod, created);
    equal("addresses", list_at(&container.setup(host)?, "/interfaces/eth0/subnets")?.len(), 2)
}

fn create_gives_no_network_what_another_has(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    Container::new("c1", &pod, network()).address("10.80.0.9").setup(host)?;
    host.ip_set("link add busy type veth peer name busy1")?;
    pod.ping("10.80.0.1")?;
    for (keys, named) in [
        (json!({}), "10.80.0.0/24 has addresses in common with"),
        (json!({"subnets": [{"subnet": "10.80.0.128/25"}]}), "subnets[0].subnet: 10.80.0.128/25"),
        (json!({"subnets": null, "network_interface": "busy"}), "network_interface: \"busy\""),
    ] {
        contains("the error", &error_of(&create(&with(wish(), keys), host)?)?, named)?;
    }
    // A bridge that nobody uses is in nobody's way, though netavark has called no teardown.
    pod.remove()?;
    soon(|| create(&wish(), host)?.result().map(drop))?;
    equal("the bridge is there", host.link(BRIDGE)?.is_some(), false)
}

fn create_names_what_is_wrong(host: &Sandbox) -> Result<()> {
    for (keys, named) in [
        (json!({"options": {"vrf": "red"}}), "options.vrf: there is no such option"),
        (json!({"options": {"mtu": "much"}}), "options.mtu: the value \"much\" is wrong"),
        (json!({"options": {"isolate": "strict"}}), "options.isolate: \"strict\""),
        (
            json!({"subnets": [{"subnet": "10.80.0.0/24", "gateway": "10.81.0.1"}]}),
            "subnets[0].gateway: 10.81.0.1",
        ),
        (json!({"network_dns_servers": ["192.0.2.9"]}), "network_dns_servers: "),
        (json!({"ipam_options": {"driver": "magic"}}), "ipam_options.driver: \"magic\""),
        (json!({"name": "a/b"}), "name: "),
    ] {
        contains("the error", &error_of(&create(&with(wish(), keys), host)?)?, named)?;
    }
    let empty = Call::new("bridgehead").arguments(&["create"]).without_path();
    contains("the error", &error_of(&empty.run(host)?)?, "not JSON")?;
    contains("the error", &error_of(&empty.stdin(b"[]").run(host)?)?, "not a JSON object")
}

fn it_gets_what_podman_has_chosen(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let mac = "02:00:00:00:00:99";
    let container = Container::new("c1", &pod, network())
        .address("10.80.0.50")
        .set("/network_options/static_mac", json!(mac))
        .set("/network_options/interface_name", json!("net0"));
    let answer = container.setup(host)?;
    same_json(
        "answer",
        &answer,
        &json!({"dns_search_domains": [], "dns_server_ips": [], "interfaces": {"net0": {
            "mac_address": mac, "subnets": [{"gateway": "10.80.0.1", "ipnet": "10.80.0.50/24"}],
        }}}),
    )?;
    equal("MAC address", text_at(&pod.need_link("net0")?, "/address")?, mac)?;
    equal("addresses", pod.addresses("net0")?, vec!["10.80.0.50/24"])?;
    equal("addresses of the bridge", host.addresses(BRIDGE)?, vec!["10.80.0.1/24"])?;
    let routes = pod.routes("-4", "main")?;
    let default = routes.iter().find(|it| it["dst"] == "default").context("there is no default route")?;
    equal("gateway", text_at(default, "/gateway")?, "10.80.0.1")?;
    // podman keeps addresses itself.
    equal("reservations", host.leases("n1")?, Vec::<String>::new())?;
    pod.ping("10.80.0.1")
}

fn without_a_choice_it_gets_an_address_of_the_range(host: &Sandbox) -> Result<()> {
    let range = json!({"start_ip": "10.80.0.100", "end_ip": "10.80.0.101"});
    let subnets = json!([{"gateway": "10.80.0.7", "lease_range": range, "subnet": "10.80.0.0/24"}]);
    let network = with(network(), json!({ "subnets": subnets }));
    let pods = [host.pod("a")?, host.pod("b")?, host.pod("c")?];
    let mut last = None;
    for (pod, (id, wanted)) in pods.iter().zip([("c1", "10.80.0.100/24"), ("c2", "10.80.0.101/24")]) {
        let container = Container::new(id, pod, network.clone());
        equal("address", text_at(&container.setup(host)?, "/interfaces/eth0/subnets/0/ipnet")?, wanted)?;
        last = Some(container);
    }
    let third = Container::new("c3", &pods[2], network);
    contains("the error", &third.refused(host)?, "10.80.0.100")?;
    last.context("nobody came")?.teardown(host)?;
    equal("reservations", host.leases("n1")?, vec!["10.80.0.100"])?;
    third.setup(host).map(drop)
}

fn it_has_addresses_of_both_families(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let subnets = json!([
        {"gateway": "10.80.0.1", "subnet": "10.80.0.0/24"}, {"gateway": "fd80::1", "subnet": "fd80::/64"},
    ]);
    let container =
        Container::new("c1", &pod, with(network(), json!({"subnets": subnets, "ipv6_enabled": true})))
            .set("/network_options/static_ips", json!(["10.80.0.50", "fd80::50"]));
    let answer = container.setup(host)?;
    same_json(
        "addresses in the answer",
        &answer["interfaces"]["eth0"]["subnets"],
        &json!([
            {"gateway": "10.80.0.1", "ipnet": "10.80.0.50/24"}, {"gateway": "fd80::1", "ipnet": "fd80::50/64"},
        ]),
    )?;
    pod.ping("10.80.0.1")?;
    pod.ping("fd80::1")
}

fn it_can_be_without_addresses(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let network = with(network(), json!({"subnets": null, "ipam_options": {"driver": "none"}}));
    let container = Container::new("c1", &pod, network);
    let answer = container.setup(host)?;
    same_json("addresses in the answer", &answer["interfaces"]["eth0"]["subnets"], &json!([]))?;
    pod.need_link("eth0")?;
    container.teardown(host)
}

fn ports_that_lead_nowhere_are_told(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for (keys, reason) in [
        (json!({"internal": true}), "is internal"),
        (json!({"subnets": null, "ipam_options": {"driver": "none"}}), "IPAM driver none"),
        (json!({"options": {"backend": "none"}}), "back end none"),
    ] {
        let container = Container::new("c1", &pod, with(network(), keys)).port(8080, 80, "tcp");
        let answer = container.call("setup", host).run(host)?;
        contains("what podman shows", answer.stderr(), "port_mappings: ")?;
        contains("what podman shows", answer.stderr(), reason)?;
        answer.result()?;
        container.teardown(host)?;
    }
    let container = Container::new("c1", &pod, network()).port(8080, 80, "tcp");
    let answer = container.call("setup", host).run(host)?;
    equal("what podman shows where ports are published", answer.stderr(), "")?;
    answer.result()?;
    container.teardown(host)
}

fn it_can_have_its_address_of_a_server(host: &Sandbox) -> Result<()> {
    // A router, and a name server.
    let server = Server::start(host, [100, 150, 200], &[3, 4, 10, 88, 0, 1, 6, 4, 9, 9, 9, 9])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("a")?;
    let of_server =
        json!({"network_interface": server::BRIDGE, "subnets": null, "ipam_options": {"driver": "dhcp"}});
    let container = Container::new("c1", &pod, with(network(), of_server));
    let answer = container.setup(host)?;
    let address = text_at(&answer, "/interfaces/eth0/subnets/0/ipnet")?;
    equal("addresses", pod.addresses("eth0")?, vec![address])?;
    same_json("name servers", &answer["dns_server_ips"], &json!(["9.9.9.9"]))?;
    let routes = pod.run(&["ip", "-4", "route", "show"])?;
    contains("routes", &routes, "default via 10.88.0.1 dev eth0 metric 100")?;
    container.teardown(host)?;
    soon(|| equal("addresses given back", server.heard(7).len(), 1))?;
    host.need_link(server::BRIDGE).map(drop)
}

fn it_can_be_on_a_vlan(host: &Sandbox) -> Result<()> {
    let (one, two, other) = (host.pod("a")?, host.pod("b")?, host.pod("c")?);
    let vlan = |network: Value, vlan: &str| {
        with(network, json!({"network_interface": BRIDGE, "options": {"vlan": vlan}}))
    };
    let containers = [
        Container::new("c1", &one, vlan(network(), "5")).address("10.80.0.9"),
        Container::new("c2", &two, vlan(network(), "5")).address("10.80.0.10"),
        Container::new("c3", &other, vlan(other_network(), "6")).address("10.81.0.9"),
    ];
    for container in &containers {
        container.setup(host)?;
    }
    one.ping("10.80.0.10")?;
    one.ping("10.80.0.1")?;
    equal("addresses of the gateway's link", host.addresses(&format!("{BRIDGE}.6"))?, vec!["10.81.0.1/24"])?;
    for container in &containers {
        host.need_link(BRIDGE)?;
        container.teardown(host)?;
    }
    let left: Vec<String> = host.link_names()?.into_iter().filter(|name| name != "lo").collect();
    equal("links that are left", left, Vec::<String>::new())
}

fn it_is_on_two_networks(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let first = Container::new("c1", &pod, network()).address("10.80.0.9");
    let second = Container::new("c1", &pod, other_network())
        .address("10.81.0.9")
        .set("/network_options/interface_name", json!("eth1"));
    // In whatever order they come, the first interface has the default route.
    for order in [[&first, &second], [&second, &first]] {
        for container in order {
            container.setup(host)?;
        }
        let chosen = pod.run(&["ip", "-4", "route", "get", "192.0.2.2"])?;
        contains("the way out", &chosen, "dev eth0")?;
        let chosen = pod.run(&["ip", "-4", "route", "get", "192.0.2.2", "from", "10.81.0.9"])?;
        contains("the way out from the second address", &chosen, "dev eth1")?;
        pod.ping("10.81.0.1")?;
        second.teardown(host)?;
        pod.ping("10.80.0.1")?;
        first.teardown(host)?;
    }
    equal("rules of the pod", pod.run(&["ip", "-4", "rule", "show"])?.lines().count(), 3)
}

fn options_of_the_network_count(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let options = json!({"mtu": "1400", "metric": "7"});
    let routes = json!([
        {"destination": "10.99.0.0/16", "gateway": "10.80.0.77"},
        {"destination": "10.98.0.0/16", "gateway": "10.80.0.77", "metric": 5},
    ]);
    let more = json!({"options": options, "routes": routes});
    Container::new("c1", &pod, with(network(), more)).address("10.80.0.9").setup(host)?;
    equal("MTU", pod.need_link("eth0")?["mtu"].as_u64(), Some(1400))?;
    let routes = pod.routes("-4", "main")?;
    for (dst, metric) in [("default", 7), ("10.99.0.0/16", 7), ("10.98.0.0/16", 5)] {
        let found = routes.iter().find(|it| it["dst"] == dst).with_context(|| format!("no route {dst}"))?;
        equal(format!("metric of {dst}"), found["metric"].as_u64(), Some(metric))?;
    }
    let without = json!({"name": "n3", "network_interface": "nv3", "options": {"no_default_route": "true"}});
    let pod = host.pod("b")?;
    let subnets = json!([{"subnet": "10.83.0.0/24"}]);
    let network = with(with(network(), without), json!({ "subnets": subnets }));
    Container::new("c2", &pod, network).address("10.83.0.9").setup(host)?;
    let routes = pod.routes("-4", "main")?;
    holds(!routes.iter().any(|it| it["dst"] == "default"), "there is a default route")
}

fn setup_again_answers_the_same(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
    let first = container.setup(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    same_json("answer", &container.setup(host)?, &first)?;
    before.restored(host, &[&pod])
}

fn forty_come_and_go_at_once(host: &Sandbox) -> Result<()> {
    let warm = host.pod("warm")?;
    let first = Container::new("warm", &warm, network()).address("10.80.0.9").port(7999, 80, "tcp");
    first.setup(host)?;
    let before = Snapshot::take(host, &[])?;
    let pods: Vec<Pod> = (0..40).map(|number| host.pod(&format!("p{number}"))).collect::<Result<_>>()?;
    let containers: Vec<Container> = (pods.iter().zip(0u16..))
        .map(|(pod, number)| {
            Container::new(&format!("c{number}"), pod, network())
                .address(&format!("10.80.0.{}", 100 + number))
                .port(8000 + number, 80, "tcp")
        })
        .collect();
    for verb in ["setup", "teardown"] {
        let started: Vec<_> =
            containers.iter().map(|it| it.call(verb, host).start(host)).collect::<Result<_>>()?;
        for one in started {
            equal(verb, one.answer(host)?.status(), Some(0))?;
        }
        if verb == "setup" {
            pods.iter().step_by(13).try_for_each(|pod| pod.ping("10.80.0.9"))?;
        }
    }
    before.restored(host, &[])
}
