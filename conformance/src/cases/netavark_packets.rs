//! netavark's plugin interface: what becomes of packets.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::netavark::{BRIDGE, Container, WHOLE, network, other_network};
use super::networks::with;
use super::portmap_packets::{exchanged, is_closed, listen, seen, udp};
use crate::case::Need;
use crate::expect::{contains, equal, holds};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "netavark/packets" {
        the_outside_reaches_a_published_port needs [WHOLE, Need::Nftables, Need::Iptables];
        ranges_and_lists_of_protocols_are_ports needs [WHOLE, Need::Nftables];
        a_port_of_one_address_is_not_one_of_another needs [WHOLE, Need::Nftables];
        a_container_reaches_its_own_port needs [WHOLE, Need::Nftables];
        a_port_works_by_either_of_two_networks needs [WHOLE, Need::Nftables];
        what_goes_out_has_the_hosts_address needs [WHOLE, Need::Nftables, Need::Iptables];
        without_a_firewall_driver_nothing_is_translated needs [WHOLE, Need::Nftables];
        isolated_networks_do_not_reach_each_other needs [WHOLE, Need::Nftables, Need::Iptables];
        an_internal_network_leads_nowhere needs [WHOLE, Need::Nftables, Need::Iptables];
        containers_send_as_themselves needs [WHOLE, Need::Nftables];
        containers_are_kept_apart_if_asked_for needs [WHOLE, Need::Nftables];
        a_bridge_of_somebody_else_is_only_joined needs [WHOLE, Need::Nftables];
    }
}

/// The firewall drivers that translate addresses.
const DRIVERS: [&str; 3] = ["nftables", "iptables", ""];

/// Has the namespace behind the host a way back: so what comes from there is not for want of one.
fn know_the_way(outside: &Pod) -> Result<()> {
    outside.ip_set("route add 10.0.0.0/8 via 192.0.2.1")
}

fn the_outside_reaches_a_published_port(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    for (number, driver) in DRIVERS.into_iter().enumerate() {
        let pod = host.pod(&format!("p{number}"))?;
        let container =
            Container::new(&format!("c{number}"), &pod, network()).address("10.80.0.9").driver(driver);
        let container = container.port(8080, 80, "tcp");
        container.setup(host)?;
        let server = listen(&pod, "0.0.0.0:80")?;
        let client =
            seen(&outside, "192.0.2.1:8080", &server).with_context(|| format!("driver {driver:?}"))?;
        equal("the client that the container sees", client.as_str(), "192.0.2.2")?;
        seen(host, "127.0.0.1:8080", &server)?;
        container.teardown(host)?;
        is_closed(&outside, "192.0.2.1:8080")?;
    }
    Ok(())
}

fn ranges_and_lists_of_protocols_are_ports(host: &Sandbox) -> Result<()> {
    let (outside, pod) = (host.outside()?, host.pod("p")?);
    let list =
        json!([{"container_port": 90, "host_ip": "", "host_port": 8090, "protocol": "tcp,udp", "range": 3}]);
    Container::new("c1", &pod, network()).address("10.80.0.9").set("/port_mappings", list).setup(host)?;
    for number in 0..3 {
        let (inside, here) = (format!("0.0.0.0:{}", 90 + number), format!("192.0.2.1:{}", 8090 + number));
        seen(&outside, &here, &listen(&pod, &inside)?)?;
        exchanged(&udp(&outside, "192.0.2.2:0")?, &here, &udp(&pod, &inside)?)?;
    }
    listen(&pod, "0.0.0.0:93").and_then(|_server| is_closed(&outside, "192.0.2.1:8093"))
}

fn a_port_of_one_address_is_not_one_of_another(host: &Sandbox) -> Result<()> {
    let (outside, pod) = (host.outside()?, host.pod("p")?);
    host.ip_set("addr add 192.0.2.10/24 dev up0")?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
    container.set("/port_mappings/0/host_ip", json!("192.0.2.10")).setup(host)?;
    seen(&outside, "192.0.2.10:8080", &listen(&pod, "0.0.0.0:80")?)?;
    is_closed(&outside, "192.0.2.1:8080")
}

fn a_container_reaches_its_own_port(host: &Sandbox) -> Result<()> {
    let (_outside, pod) = (host.outside()?, host.pod("p")?);
    Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp").setup(host)?;
    seen(&pod, "192.0.2.1:8080", &listen(&pod, "0.0.0.0:80")?).map(drop)
}

fn a_port_works_by_either_of_two_networks(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    for order in ["first first", "second first"] {
        let id = order.replace(' ', "-");
        let pod = host.pod(&id)?;
        let first = Container::new(&id, &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
        let second = Container::new(&id, &pod, other_network())
            .address("10.81.0.9")
            .port(8080, 80, "tcp")
            .set("/network_options/interface_name", json!("eth1"));
        let mut containers = [first, second];
        if order == "second first" {
            containers.reverse();
        }
        for container in &containers {
            container.setup(host)?;
        }
        let server = listen(&pod, "0.0.0.0:80")?;
        seen(&outside, "192.0.2.1:8080", &server).context(order)?;
        // One network is left, and the port is there by the other.
        containers[0].teardown(host)?;
        seen(&outside, "192.0.2.1:8080", &server).with_context(|| format!("{order}, and gone"))?;
        containers[1].teardown(host)?;
        is_closed(&outside, "192.0.2.1:8080")?;
    }
    Ok(())
}

fn what_goes_out_has_the_hosts_address(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let server = listen(&outside, "192.0.2.2:80")?;
    for (number, driver) in DRIVERS.into_iter().enumerate() {
        let pod = host.pod(&format!("p{number}"))?;
        let container =
            Container::new(&format!("c{number}"), &pod, network()).address("10.80.0.9").driver(driver);
        container.setup(host)?;
        equal(driver, seen(&pod, "192.0.2.2:80", &server)?.as_str(), "192.0.2.1")?;
        container.teardown(host)?;
    }
    Ok(())
}

fn without_a_firewall_driver_nothing_is_translated(host: &Sandbox) -> Result<()> {
    let (outside, pod) = (host.outside()?, host.pod("p")?);
    know_the_way(&outside)?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
    container.driver("none").setup(host)?;
    let _server = listen(&pod, "0.0.0.0:80")?;
    is_closed(&outside, "192.0.2.1:8080")?;
    let server = listen(&outside, "192.0.2.2:80")?;
    equal("the client", seen(&pod, "192.0.2.2:80", &server)?.as_str(), "10.80.0.9")
}

fn isolated_networks_do_not_reach_each_other(host: &Sandbox) -> Result<()> {
    for (number, driver) in ["nftables", "iptables"].into_iter().enumerate() {
        let isolated = json!({"options": {"isolate": "true"}});
        let (one, two, three) = (
            host.pod(&format!("a{number}"))?,
            host.pod(&format!("b{number}"))?,
            host.pod(&format!("c{number}"))?,
        );
        let make = |id: &str, pod: &Pod, network: Value, address: &str| {
            Container::new(&format!("{id}{number}"), pod, network).address(address).driver(driver)
        };
        let containers = [
            make("ca", &one, with(network(), isolated.clone()), "10.80.0.9"),
            make("cb", &two, with(other_network(), isolated), "10.81.0.9"),
            make("cc", &three, with(network(), json!({"options": {"isolate": "true"}})), "10.80.0.10"),
        ];
        for container in &containers {
            container.setup(host)?;
        }
        let server = listen(&two, "0.0.0.0:80")?;
        is_closed(&one, "10.81.0.9:80").with_context(|| format!("driver {driver:?}"))?;
        drop(server);
        seen(&one, "10.80.0.10:80", &listen(&three, "0.0.0.0:80")?)?;
        for container in &containers {
            container.teardown(host)?;
        }
    }
    Ok(())
}

fn an_internal_network_leads_nowhere(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    know_the_way(&outside)?;
    for (number, driver) in DRIVERS.into_iter().enumerate() {
        let (one, two) = (host.pod(&format!("a{number}"))?, host.pod(&format!("b{number}"))?);
        let internal = with(network(), json!({"internal": true}));
        let containers = [
            Container::new(&format!("ca{number}"), &one, internal.clone())
                .address("10.80.0.9")
                .port(8080, 80, "tcp"),
            Container::new(&format!("cb{number}"), &two, internal).address("10.80.0.10"),
        ]
        .map(|it| it.driver(driver));
        for container in &containers {
            container.setup(host).with_context(|| format!("driver {driver:?}"))?;
        }
        holds(one.routes("-4", "main")?.iter().all(|it| it["dst"] != "default"), "there is a default route")?;
        let server = listen(&one, "0.0.0.0:80")?;
        seen(&two, "10.80.0.9:80", &server)?;
        is_closed(&outside, "192.0.2.1:8080")?;
        is_closed(&outside, "10.80.0.9:80")?;
        // Not even if it makes itself a way.
        one.ip_set("route add default via 10.80.0.1")?;
        let beyond = listen(&outside, "192.0.2.2:80")?;
        is_closed(&one, "192.0.2.2:80")?;
        drop(beyond);
        for container in &containers {
            container.teardown(host)?;
        }
    }
    Ok(())
}

fn containers_send_as_themselves(host: &Sandbox) -> Result<()> {
    let (one, two) = (host.pod("a")?, host.pod("b")?);
    Container::new("c1", &one, network()).address("10.80.0.9").setup(host)?;
    Container::new("c2", &two, network()).address("10.80.0.10").setup(host)?;
    one.ping("10.80.0.10")?;
    one.ip_set("addr add 10.80.0.66/24 dev eth0")?;
    let lie = ["ping", "-n", "-c", "1", "-W", "1", "-I", "10.80.0.66", "10.80.0.10"];
    holds(!one.try_run(&lie)?.status.success(), "a container has sent from an address that is not its own")?;
    let free = with(
        network(),
        json!({"name": "n4", "network_interface": "nv4", "options": {"spoof_guard": "false"},
        "subnets": [{"subnet": "10.84.0.0/24"}]}),
    );
    let pod = host.pod("c")?;
    Container::new("c3", &pod, free).address("10.84.0.9").setup(host)?;
    pod.ip_set("addr add 10.84.0.66/24 dev eth0")?;
    pod.run(&["ping", "-n", "-c", "2", "-W", "2", "-I", "10.84.0.66", "10.84.0.1"]).map(drop)
}

fn containers_are_kept_apart_if_asked_for(host: &Sandbox) -> Result<()> {
    let (one, two) = (host.pod("a")?, host.pod("b")?);
    let apart = with(network(), json!({"options": {"port_isolation": "true"}}));
    Container::new("c1", &one, apart.clone()).address("10.80.0.9").setup(host)?;
    Container::new("c2", &two, apart).address("10.80.0.10").setup(host)?;
    one.ping("10.80.0.1")?;
    let _server = listen(&two, "0.0.0.0:80")?;
    is_closed(&one, "10.80.0.10:80")
}

fn a_bridge_of_somebody_else_is_only_joined(host: &Sandbox) -> Result<()> {
    host.ip_set(&format!("link add {BRIDGE} type bridge"))?;
    host.ip_set(&format!("link set {BRIDGE} up"))?;
    host.ip_set(&format!("addr add 10.80.0.3/24 dev {BRIDGE}"))?;
    let pod = host.pod("p")?;
    let container = Container::new("c1", &pod, with(network(), json!({"options": {"mode": "unmanaged"}})));
    container.address("10.80.0.9").port(8080, 80, "tcp").setup(host)?;
    equal("addresses of the bridge", host.addresses(BRIDGE)?, vec!["10.80.0.3/24"])?;
    let way = pod.run(&["ip", "-4", "route", "get", "192.0.2.2"])?;
    contains("the way out", &way, "via 10.80.0.1")?;
    pod.ping("10.80.0.3")?;
    let rules = host.run(&["nft", "list", "ruleset"])?;
    holds(!rules.contains("10.80.0.9"), format!("there are rules: {rules}"))
}
