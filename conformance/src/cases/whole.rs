//! The plugin `bridgehead`: a chain as one entry of a list.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{USUAL, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

const WHOLE: Need = Need::Plugin("bridgehead");

cases! {
    "bridgehead/plugin" {
        it_makes_what_the_chain_makes needs [WHOLE];
        check_names_what_is_wrong_with_any_part needs [WHOLE];
        add_again_is_the_same needs [WHOLE];
        a_part_that_fails_takes_all_with_it needs [WHOLE];
        a_mistake_in_any_part_is_found_before_anything_is_made needs [WHOLE];
        del_needs_neither_namespace_nor_result needs [WHOLE];
        without_a_runtime_it_is_the_tool needs [WHOLE];
    }
}

/// The bridge, with the address that is asked for: the same for whoever attaches.
fn bridge() -> Value {
    json!({
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
        "ipam": pool(&["10.20.0.0/24"]), "runtimeConfig": {"ips": ["10.20.0.9"]},
    })
}

/// What follows it.
fn rest() -> Vec<Value> {
    vec![
        json!({"type": "portmap", "backend": "iptables", "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ]}}),
        json!({"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"}),
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000}),
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "txQLen": 77}),
    ]
}

fn whole() -> Value {
    let mut one = rest().into_iter().fold(bridge(), with);
    one["runtimeConfig"]["ips"] = bridge()["runtimeConfig"]["ips"].clone();
    with(one, json!({"type": "bridgehead"}))
}

/// What another pod has, so that all parts have something that pods share.
fn other_port() -> Value {
    json!({"portMappings": [{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]})
}

fn call(config: Value, pod: &Pod) -> Call {
    let plugin = config["type"].as_str().unwrap_or_default().to_owned();
    let common = json!({"cniVersion": USUAL, "name": "net"});
    Call::new(&plugin).id("c1").ifname("eth0").netns(pod).config(with(common, config))
}

fn one(pod: &Pod) -> Call {
    call(whole(), pod)
}

/// What can be seen of the pod's interface from inside.
fn inside(pod: &Pod) -> Result<Value> {
    let mut link = pod.need_link("eth0")?;
    if let Some(link) = link.as_object_mut() {
        link.retain(|key, _| ["address", "mtu", "txqlen", "flags", "operstate"].contains(&key.as_str()));
    }
    Ok(json!({
        "link": link, "addresses": pod.addresses("eth0")?, "routes": pod.routes("-4", "main")?,
        "arp_filter": pod.sysctl("ipv4/conf/eth0/arp_filter")?,
    }))
}

fn it_makes_what_the_chain_makes(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let mut calls: Vec<Call> = Vec::new();
    let mut result = Value::Null;
    for config in [vec![bridge()], rest()].concat() {
        let entry = call(config, &pod);
        let add = if result.is_null() { entry.add() } else { entry.add().prev(&result) };
        result = add.run(host)?.result().context("an ADD of the chain")?;
        calls.push(entry);
    }
    let (seen, all) = (inside(&pod)?, Snapshot::take(host, &[&pod])?);
    for entry in calls.iter().rev() {
        entry.del().prev(&result).run(host)?.silence().context("a DEL of the chain")?;
    }
    let at_once = one(&pod).add().run(host)?.result()?;
    same_json("result", &at_once, &result)?;
    same_json("the pod's interface", &inside(&pod)?, &seen)?;
    all.restored(host, &[&pod])?;
    one(&pod).check().prev(&at_once).run(host)?.silence()
}

fn check_names_what_is_wrong_with_any_part(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let result = one(&pod).add().run(host)?.result()?;
    pod.set_sysctl("ipv4/conf/eth0/arp_filter", "0")?;
    pod.ip_set("route del default")?;
    let text = one(&pod).check().prev(&result).run(host)?.refusal()?.text();
    contains("CHECK", &text, "arp_filter")?;
    contains("CHECK", &text, "route default")
}

fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let first = one(&pod).add().run(host)?.result()?;
    let before = Snapshot::take(host, &[&pod])?;
    same_json("result", &one(&pod).add().run(host)?.result()?, &first)?;
    before.restored(host, &[&pod])
}

fn a_part_that_fails_takes_all_with_it(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    // So that what pods share stays.
    let other = host.pod("other")?;
    one(&other).id("c0").set("runtimeConfig", other_port()).add().run(host)?.result()?;
    let before = Snapshot::take(host, &[&pod])?;
    let keys = json!({"sysctl": {"net.ipv4.conf.IFNAME.there_is_no_such": "1"}});
    let answer = call(with(whole(), keys), &pod).add().run(host)?;
    contains("the error", &answer.refusal()?.text(), "there_is_no_such")?;
    before.restored(host, &[&pod])
}

fn a_mistake_in_any_part_is_found_before_anything_is_made(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    for (keys, named) in [
        (json!({"mtu": "large"}), "mtu"),
        (json!({"txQLen": "long"}), "txQLen"),
        (json!({"sysctl": {"kernel.pid_max": "1"}}), "kernel.pid_max"),
    ] {
        let refusal = call(with(whole(), keys), &pod).add().run(host)?.refusal()?;
        contains("the error", &refusal.text(), named)?;
        before.restored(host, &[&pod])?;
    }
    Ok(())
}

fn del_needs_neither_namespace_nor_result(host: &Sandbox) -> Result<()> {
    let other = host.pod("other")?;
    one(&other).id("c0").set("runtimeConfig", other_port()).add().run(host)?.result()?;
    let before = Snapshot::take(host, &[])?;
    let pod = host.pod("p")?;
    one(&pod).add().run(host)?.result()?;
    let del = one(&pod).del().without("CNI_NETNS");
    pod.remove()?;
    for _ in 0..2 {
        del.run(host)?.silence()?;
        before.restored(host, &[])?;
    }
    Ok(())
}

fn without_a_runtime_it_is_the_tool(host: &Sandbox) -> Result<()> {
    let version = Call::new("bridgehead").command("VERSION").run(host)?;
    let answer = version.json().cloned().unwrap_or_default();
    holds(answer["supportedVersions"].is_array(), format!("VERSION answers {}", version.stdout()))?;
    let tool = host.plugins().join("bridgehead");
    let help = host.try_run(&[&tool.to_string_lossy(), "--help"])?;
    equal("status of --help", help.status.code(), Some(0))?;
    let with_variable = host.try_run(&["env", "CNI_COMMAND=VERSION", &tool.to_string_lossy(), "--help"])?;
    equal("what --help says where CNI_COMMAND is set", with_variable.stdout, help.stdout)
}
