//! netavark's plugin interface: what is left, by `teardown` and by errors.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cases;
use super::netavark::{BRIDGE, Container, WHOLE, error_of, network, other_network};
use super::networks::with;
use crate::case::Need;
use crate::expect::{contains, equal, holds};
use crate::pod::Pod;
use crate::sandbox::{SCRATCH, Sandbox};
use crate::snapshot::Snapshot;

cases! {
    "netavark/teardown" {
        it_leaves_nothing needs [WHOLE, Need::Nftables, Need::Iptables];
        it_can_be_repeated_and_needs_no_namespace needs [WHOLE, Need::Nftables];
        it_needs_no_record needs [WHOLE, Need::Nftables];
        it_needs_no_network_that_is_right needs [WHOLE, Need::Nftables];
        the_last_one_takes_the_bridge_along needs [WHOLE, Need::Nftables];
        a_bridge_of_somebody_else_stays needs [WHOLE, Need::Nftables];
        it_removes_what_the_dead_have_left needs [WHOLE, Need::Nftables];
        what_a_first_setup_that_fails_has_made_goes_with_it needs [WHOLE, Need::Nftables];
        no_path_is_made_of_what_a_bridge_cannot_be_called needs [WHOLE];
    }
    "netavark/errors" {
        they_have_one_key_and_change_nothing needs [WHOLE, Need::Nftables];
        a_port_has_one_owner needs [WHOLE, Need::Nftables];
    }
}

fn it_leaves_nothing(host: &Sandbox) -> Result<()> {
    for driver in ["nftables", "iptables", "none", ""] {
        // What containers share comes with the first.
        let other = host.pod(&format!("other-{driver}"))?;
        let kept = Container::new(&format!("o{driver}"), &other, network())
            .address("10.80.0.8")
            .port(9090, 80, "tcp,udp");
        kept.driver(driver).setup(host)?;
        let pod = host.pod(&format!("pod-{driver}"))?;
        let before = Snapshot::take(host, &[&pod])?;
        let container = Container::new(&format!("c{driver}"), &pod, network())
            .address("10.80.0.9")
            .port(8080, 80, "tcp,udp")
            .driver(driver);
        container.setup(host).with_context(|| format!("driver {driver:?}"))?;
        container.teardown(host)?;
        before.restored(host, &[&pod]).with_context(|| format!("driver {driver:?}"))?;
        kept.teardown(host)?;
    }
    Ok(())
}

fn it_can_be_repeated_and_needs_no_namespace(host: &Sandbox) -> Result<()> {
    let other = host.pod("other")?;
    Container::new("c0", &other, network()).address("10.80.0.8").port(9090, 80, "tcp").setup(host)?;
    let before = Snapshot::take(host, &[])?;
    let pod = host.pod("a")?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
    container.setup(host)?;
    pod.remove()?;
    for _ in 0..2 {
        container.teardown(host)?;
        before.restored(host, &[])?;
    }
    // Nor has there ever to have been anything.
    let never = host.pod("never")?;
    Container::new("c2", &never, other_network()).address("10.81.0.9").teardown(host)?;
    before.restored(host, &[])
}

fn it_needs_no_record(host: &Sandbox) -> Result<()> {
    let other = host.pod("other")?;
    Container::new("c0", &other, network()).port(9090, 80, "tcp").setup(host)?;
    let before = Snapshot::take(host, &[])?;
    let pod = host.pod("a")?;
    let container = Container::new("c1", &pod, network()).port(8080, 80, "tcp");
    container.setup(host)?;
    for entry in fs::read_dir("/run/bridgehead/attachments/bridgehead/n1")? {
        let path = entry?.path();
        if path.to_string_lossy().contains("c1") {
            fs::remove_file(path)?;
        }
    }
    container.teardown(host)?;
    before.restored(host, &[])
}

fn it_needs_no_network_that_is_right(host: &Sandbox) -> Result<()> {
    let other = host.pod("other")?;
    Container::new("c0", &other, network()).address("10.80.0.8").setup(host)?;
    let before = Snapshot::take(host, &[])?;
    let pod = host.pod("a")?;
    for (pointer, value) in [
        ("/network/options", json!({"nobody": "knows"})),
        ("/network/subnets", json!([{"subnet": "10.99.0.0/24", "gateway": "1.1.1.1"}])),
        ("/network/subnets", Value::Null),
        ("/network/ipam_options", json!({"driver": "magic"})),
        (
            "/port_mappings",
            json!([{"host_port": 0, "container_port": 0, "protocol": "x", "host_ip": "y", "range": 0}]),
        ),
    ] {
        let container = Container::new("c1", &pod, network()).address("10.80.0.9");
        container.setup(host)?;
        container.set(pointer, value).teardown(host)?;
        before.restored(host, &[])?;
    }
    Ok(())
}

fn the_last_one_takes_the_bridge_along(host: &Sandbox) -> Result<()> {
    let pods: Vec<Pod> = (0..12).map(|number| host.pod(&format!("p{number}"))).collect::<Result<_>>()?;
    let containers: Vec<Container> =
        pods.iter().enumerate().map(|(n, pod)| Container::new(&format!("c{n}"), pod, network())).collect();
    for _ in 0..3 {
        for verb in ["setup", "teardown"] {
            let started: Vec<_> =
                containers.iter().map(|it| it.call(verb, host).start(host)).collect::<Result<_>>()?;
            for one in started {
                equal(verb, one.answer(host)?.status(), Some(0))?;
            }
            equal("the bridge is there", host.link(BRIDGE)?.is_some(), verb == "setup")?;
            let has_set = host.run(&["nft", "list", "ruleset"])?.contains("10.80.0.0/24");
            equal("rules for the subnet are there", has_set, verb == "setup")?;
        }
    }
    // Coming and going at once: who has come is there, and who stays, stays.
    containers.iter().take(6).try_for_each(|it| it.setup(host).map(drop))?;
    let leaving = containers.iter().take(6).map(|it| it.call("teardown", host).start(host));
    let coming = containers.iter().skip(6).map(|it| it.call("setup", host).start(host));
    for one in leaving.chain(coming).collect::<Result<Vec<_>>>()? {
        equal("status", one.answer(host)?.status(), Some(0))?;
    }
    pods.iter().skip(6).try_for_each(|pod| pod.ping("10.80.0.1"))
}

fn a_bridge_of_somebody_else_stays(host: &Sandbox) -> Result<()> {
    host.ip_set(&format!("link add {BRIDGE} type bridge"))?;
    let pod = host.pod("a")?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9");
    container.setup(host)?;
    container.teardown(host)?;
    host.need_link(BRIDGE).map(drop)
}

fn it_removes_what_the_dead_have_left(host: &Sandbox) -> Result<()> {
    let other = host.pod("other")?;
    Container::new("c0", &other, network()).address("10.80.0.8").port(9090, 80, "tcp").setup(host)?;
    let before = Snapshot::take(host, &[])?;
    let (dead, pod) = (host.pod("dead")?, host.pod("a")?);
    Container::new("c1", &dead, network()).address("10.80.0.9").port(8080, 80, "tcp").setup(host)?;
    // netavark has no teardown for this.
    dead.remove()?;
    let container = Container::new("c2", &pod, network()).address("10.80.0.10");
    container.setup(host)?;
    container.teardown(host)?;
    before.restored(host, &[])
}

fn what_a_first_setup_that_fails_has_made_goes_with_it(host: &Sandbox) -> Result<()> {
    // All that containers share is there, and what is of one network goes with the last.
    let other = Container::new("c0", &host.pod("other")?, other_network()).port(9090, 80, "udp");
    other.setup(host)?;
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type veth peer name in-the-way")?;
    let before = Snapshot::take(host, &[&pod])?;
    let container = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "udp");
    contains("the error", &container.refused(host)?, "eth0")?;
    before.restored(host, &[&pod])?;
    // A network that has a container keeps what that needs.
    let kept = Container::new("c2", &host.pod("b")?, network()).address("10.80.0.8").port(8081, 80, "udp");
    kept.setup(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    container.refused(host)?;
    before.restored(host, &[&pod])
}

fn no_path_is_made_of_what_a_bridge_cannot_be_called(host: &Sandbox) -> Result<()> {
    // The directory that such a path would begin at comes with the first container.
    Container::new("c0", &host.pod("other")?, other_network()).setup(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let path = format!("../../..{SCRATCH}/outside");
    Container::new("c1", &pod, with(network(), json!({"network_interface": path}))).teardown(host)?;
    holds(!Path::new(SCRATCH).join("outside").exists(), "there is a file of that name")?;
    before.restored(host, &[&pod])
}

fn they_have_one_key_and_change_nothing(host: &Sandbox) -> Result<()> {
    let (pod, other) = (host.pod("a")?, host.pod("other")?);
    Container::new("c0", &other, network()).address("10.80.0.8").setup(host)?;
    let right = Container::new("c1", &pod, network()).address("10.80.0.9").port(8080, 80, "tcp");
    let before = Snapshot::take(host, &[&pod])?;
    for (pointer, value, named) in [
        ("/container_id", json!(""), "container_id: \"\" is empty"),
        ("/container_id", json!("../x"), "container_id: \"../x\""),
        ("/network/name", json!("a b"), "network.name: \"a b\""),
        ("/network/options", json!({"vrf": "red"}), "options.vrf: "),
        ("/network/network_interface", json!("lo"), "lo"),
        ("/network/subnets", json!([{"subnet": "10.80.0.0"}]), "network.subnets[0].subnet: "),
        ("/network/subnets", json!("x"), "network.subnets: "),
        (
            "/network_options/interface_name",
            json!("much-too-long-for-linux"),
            "network_options.interface_name: ",
        ),
        ("/network_options/interface_name", json!("lo"), "lo"),
        ("/network_options/static_ips", json!(["10.99.0.1"]), "network_options.static_ips[0]: 10.99.0.1"),
        ("/network_options/static_ips", json!(["10.80.0.1"]), "network_options.static_ips[0]: 10.80.0.1"),
        ("/network_options/static_ips", json!(["x"]), "network_options.static_ips"),
        ("/network_options/static_mac", json!("01:00:00:00:00:01"), "01:00:00:00:00:01"),
        ("/network_options/options", json!({"a": "b"}), "network_options.options.a: "),
        ("/port_mappings/0/host_port", json!(70000), "port_mappings[0].host_port: "),
        ("/port_mappings/0/protocol", json!("icmp"), "port_mappings[0].protocol: "),
        ("/port_mappings/0/range", json!(65535), "port_mappings[0].host_port: "),
    ] {
        contains("the error", &right.set(pointer, value).refused(host)?, named)?;
        before.restored(host, &[&pod])?;
    }
    let gone = right.netns("/run/netns/nobody");
    contains("the error", &gone.refused(host)?, "/run/netns/nobody")?;
    let own = right.netns("/proc/self/ns/net");
    // It has no such variables as CNI has, which could allow it.
    let error = own.refused(host)?;
    contains("the error", &error, "the plugin itself runs in")?;
    ensure!(!error.contains("CNI_NETNS"), "{error}");
    contains("the error", &right.driver("ipfw").refused(host)?, "NETAVARK_FW: unknown back end \"ipfw\"")?;
    for verb in ["setup", "teardown"] {
        let call = right.call(verb, host);
        contains("the error", &error_of(&call.arguments(&[verb]).run(host)?)?, "NETNS: ")?;
        for bytes in [&b""[..], b"[]", b"null", b"{", b"{}", &[0xff, 0xfe]] {
            error_of(&call.stdin(bytes).run(host)?)?;
        }
    }
    before.restored(host, &[&pod])
}

fn a_port_has_one_owner(host: &Sandbox) -> Result<()> {
    let (one, other) = (host.pod("a")?, host.pod("b")?);
    // What containers of a network share comes with the first.
    Container::new("c0", &host.pod("c")?, other_network()).address("10.81.0.8").setup(host)?;
    Container::new("c1", &one, network()).address("10.80.0.9").port(8080, 80, "tcp").setup(host)?;
    let before = Snapshot::take(host, &[&other])?;
    let second = Container::new("c2", &other, other_network()).address("10.81.0.9").port(8080, 81, "tcp");
    let error = second.refused(host)?;
    contains("the error", &error, "8080")?;
    contains("the error", &error, "c1")?;
    before.restored(host, &[&other])
}
