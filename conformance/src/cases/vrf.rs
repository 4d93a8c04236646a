//! The plugin `vrf`: interfaces of a pod that have a routing table of their own.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

const VRF: Need = Need::Plugin("vrf");
const KERNEL: Need = Need::LinkType("vrf");
/// What only this suite does.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "vrf/config" {
        wrong_values_are_named needs [VRF, TOOL];
        a_kernel_without_vrfs_is_told needs [VRF, TOOL];
        del_of_nothing_is_silent needs [VRF, TOOL];
    }
    "vrf/links" {
        the_interface_is_bound_to_a_new_vrf needs [VRF, KERNEL];
        addresses_and_routes_survive needs [VRF, KERNEL, Need::Ipv6];
        packets_find_their_way needs [VRF, KERNEL, Need::Ipv6];
        a_table_can_be_given needs [VRF, KERNEL];
        taken_tables_are_passed_over needs [VRF, KERNEL, TOOL];
        two_interfaces_share_a_vrf needs [VRF, KERNEL];
        two_at_once_have_different_tables needs [VRF, KERNEL, TOOL];
        what_is_in_the_way_is_named needs [VRF, KERNEL, TOOL];
    }
    "vrf/lifecycle" {
        check_finds_what_is_otherwise needs [VRF, KERNEL, TOOL];
        del_removes_the_vrf_with_its_last_member needs [VRF, KERNEL];
        del_works_whatever_is_missing needs [VRF, KERNEL, TOOL];
        del_without_a_record_works needs [VRF, KERNEL, TOOL];
        what_the_reference_made_is_removed needs [VRF, KERNEL, Need::Reference("vrf")];
        a_failed_add_leaves_nothing needs [VRF, KERNEL, TOOL];
        add_again_is_the_same needs [VRF, KERNEL, TOOL];
        gc_is_silent needs [VRF, KERNEL];
    }
}

/// A pod with `eth0` and `net1`, each with a router behind it.
fn pod(host: &Sandbox) -> Result<Pod> {
    let pod = host.pod("p")?;
    for (number, link) in [(1, "eth0"), (2, "net1")] {
        let router = host.pod(&format!("r{number}"))?;
        host.ip_set(&format!("link add {link} netns p type veth peer name port netns r{number}"))?;
        router.ip_set(&format!("addr add 10.{number}.0.1/24 dev port"))?;
        router.ip_set(&format!("-6 addr add fd0{number}::1/64 dev port nodad"))?;
        router.ip_set("link set port up")?;
        router.ip_set("link set lo up")?;
        router.ip_set("addr add 10.99.0.1/32 dev lo")?;
        pod.ip_set(&format!("addr add 10.{number}.0.5/24 dev {link}"))?;
        pod.ip_set(&format!("-6 addr add fd0{number}::5/64 dev {link} nodad"))?;
        pod.ip_set(&format!("link set {link} up"))?;
    }
    pod.ip_set("route add default via 10.1.0.1 dev eth0")?;
    pod.ip_set("route add 10.99.0.0/24 via 10.2.0.1 dev net1")?;
    pod.ip_set("route add default via 10.2.0.1 dev net1 metric 50")?;
    pod.ip_set("-6 route add fd99::/64 via fd02::1 dev net1")?;
    Ok(pod)
}

fn prev(pod: &Pod, link: &str) -> Value {
    let number = if link == "eth0" { 1 } else { 2 };
    json!({
        "cniVersion": USUAL, "interfaces": [{"name": link, "sandbox": pod.netns()}],
        "ips": [{"interface": 0, "address": format!("10.{number}.0.5/24")},
                {"interface": 0, "address": format!("fd0{number}::5/64")}],
    })
}

fn vrf(pod: &Pod, link: &str, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "vrf", "vrfname": "blue", "prevResult": prev(pod, link)});
    Call::new("vrf").id("c1").ifname(link).netns(pod).config(with(config, more))
}

/// The name of a link's master.
fn master(pod: &Pod, link: &str) -> Result<Value> {
    Ok(pod.need_link(link)?["master"].clone())
}

fn table(pod: &Pod, name: &str) -> Result<u64> {
    let link = pod.need_link(name)?;
    link.pointer("/linkinfo/info_data/table").and_then(Value::as_u64).context("it is no VRF")
}

/// The destinations of the routes by a link in a table, but the kernel's for it.
fn destinations(pod: &Pod, link: &str, table: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        for route in pod.routes(family, table)? {
            let dst = route["dst"].as_str().unwrap_or_default().to_owned();
            let is_kernels = ["fe80", "ff00", "anycast", "multicast", "local", "broadcast"];
            let kind = route["type"].as_str().unwrap_or_default();
            if route["dev"] == link && !is_kernels.iter().any(|it| dst.starts_with(it) || kind == *it) {
                found.push(dst);
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

const ROUTES: [&str; 5] = ["10.2.0.0/24", "10.99.0.0/24", "default", "fd02::/64", "fd99::/64"];

fn the_interface_is_bound_to_a_new_vrf(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({}));
    let result = call.add().run(host)?.result()?;
    same_json("result", &result, &prev(&pod, "net1"))?;
    same_json("master", &master(&pod, "net1")?, &json!("blue"))?;
    equal("table", table(&pod, "blue")?, 1)?;
    same_json("master of eth0", &master(&pod, "eth0")?, &Value::Null)?;
    call.check().prev(&result).run(host)?.silence()
}

fn addresses_and_routes_survive(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = pod.addresses("net1")?;
    vrf(&pod, "net1", json!({"table": 77})).add().run(host)?.result()?;
    equal("addresses", pod.addresses("net1")?, before)?;
    equal("routes of the table", destinations(&pod, "net1", "77")?, ROUTES)?;
    equal("routes of the main table", destinations(&pod, "net1", "main")?, Vec::<String>::new())?;
    let found = pod.run(&["ip", "route", "show", "default"])?;
    contains("the pod's default route", &found, "via 10.1.0.1 dev eth0")
}

fn packets_find_their_way(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    vrf(&pod, "net1", json!({})).add().run(host)?.result()?;
    for address in ["10.2.0.1", "10.99.0.1", "fd02::1"] {
        let answers = || pod.try_run(&["ping", "-n", "-c", "1", "-W", "2", "-I", "blue", address]);
        let first = answers()?;
        // The first packets wait for neighbours.
        let finished = if first.status.success() { first } else { answers()? };
        holds(finished.status.success(), format!("{address}: {}{}", finished.stdout, finished.stderr))?;
    }
    pod.ping("10.1.0.1")
}

fn a_table_can_be_given(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "vrf", "table": 1001, "vrfName": "red"});
    let call = vrf(&pod, "net1", json!({})).config(config).prev(&prev(&pod, "net1"));
    call.add().run(host)?.result()?;
    equal("table", table(&pod, "red")?, 1001)?;
    // The same table for another VRF is the user's affair; another table for the same VRF is not.
    vrf(&pod, "eth0", json!({"table": 1002, "vrfname": "red"})).add().run(host)?.refusal()?;
    same_json("master of eth0", &master(&pod, "eth0")?, &Value::Null)?;
    vrf(&pod, "eth0", json!({"table": 1001, "vrfname": "green"})).add().run(host)?.result()?;
    equal("table", table(&pod, "green")?, 1001)
}

fn taken_tables_are_passed_over(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    pod.ip_set("link add other type vrf table 1")?;
    pod.ip_set("rule add from 192.0.2.1 lookup 2")?;
    pod.ip_set("route add 192.0.2.0/24 dev eth0 table 3")?;
    vrf(&pod, "net1", json!({})).add().run(host)?.result()?;
    equal("table", table(&pod, "blue")?, 4)
}

fn two_interfaces_share_a_vrf(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    for link in ["net1", "eth0"] {
        let result = vrf(&pod, link, json!({})).add().run(host)?.result()?;
        vrf(&pod, link, json!({})).check().prev(&result).run(host)?.silence()?;
    }
    same_json("master of net1", &master(&pod, "net1")?, &json!("blue"))?;
    same_json("master of eth0", &master(&pod, "eth0")?, &json!("blue"))
}

fn two_at_once_have_different_tables(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let calls = [vrf(&pod, "net1", json!({})), vrf(&pod, "eth0", json!({"vrfname": "red"}))];
    let started: Vec<_> = calls.iter().map(|call| call.add().start(host)).collect::<Result<_>>()?;
    for one in started {
        one.answer(host)?.result()?;
    }
    let mut tables = [table(&pod, "blue")?, table(&pod, "red")?];
    tables.sort();
    equal("tables", tables, [1, 2])
}

fn what_is_in_the_way_is_named(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    pod.ip_set("link add other type vrf table 9")?;
    pod.ip_set("link set net1 master other")?;
    pod.ip_set("link add red type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    for (link, keys, word) in [
        ("net1", json!({}), "other"),
        ("eth0", json!({"vrfname": "red"}), "red"),
        ("eth0", json!({"vrfname": "other", "table": 8}), "9"),
    ] {
        let call = vrf(&pod, link, keys.clone());
        let refusal = call.add().run(host)?.refused_with(102).with_context(|| keys.to_string())?;
        contains("message", &refusal.text(), word)?;
        before.restored(host, &[&pod])?;
    }
    vrf(&pod, "eth9", json!({})).prev(&prev(&pod, "eth9")).add().run(host)?.refused_with(100)?;
    before.restored(host, &[&pod])
}

fn check_finds_what_is_otherwise(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({"table": 5}));
    let result = call.add().run(host)?.result()?;
    let check = call.check().prev(&result);
    check.run(host)?.silence()?;
    for (spoil, word, mend) in [
        ("link set blue down", "down", "link set blue up"),
        ("-6 addr del fd02::5/64 dev net1", "fd02::5", "-6 addr add fd02::5/64 dev net1 nodad"),
        ("link set net1 nomaster", "net1", "link set net1 master blue"),
    ] {
        pod.ip_set(spoil)?;
        contains("message", &check.run(host)?.refused_with(103)?.text(), word)?;
        pod.ip_set(mend)?;
        if !pod.addresses("net1")?.iter().any(|address| address.starts_with("fd02")) {
            pod.ip_set("-6 addr add fd02::5/64 dev net1 nodad")?;
        }
        check.run(host)?.silence().with_context(|| format!("after {mend}"))?;
    }
    call.set("table", json!(6)).check().prev(&result).run(host)?.refused_with(103)?;
    pod.ip_set("link del blue")?;
    contains("message", &check.run(host)?.refused_with(103)?.text(), "blue")
}

fn del_removes_the_vrf_with_its_last_member(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let calls = [vrf(&pod, "net1", json!({})), vrf(&pod, "eth0", json!({}))];
    for call in &calls {
        call.add().run(host)?.result()?;
    }
    calls[0].del().run(host)?.silence()?;
    same_json("master of net1", &master(&pod, "net1")?, &Value::Null)?;
    same_json("master of eth0", &master(&pod, "eth0")?, &json!("blue"))?;
    calls[1].del().run(host)?.silence()?;
    same_json("blue", &pod.link("blue")?.unwrap_or_default(), &Value::Null)?;
    calls[1].del().run(host)?.silence().context("again")
}

fn del_works_whatever_is_missing(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = vrf(&pod, "net1", json!({}));
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    before.restored(host, &[&pod])?;
    call.add().run(host)?.result()?;
    pod.ip_set("link del blue")?;
    call.del().run(host)?.silence().context("without the VRF")?;
    call.add().run(host)?.result()?;
    pod.ip_set("link del net1")?;
    call.del().run(host)?.silence().context("without the interface")?;
    same_json("blue", &pod.link("blue")?.unwrap_or_default(), &Value::Null)?;
    call.without("CNI_NETNS").del().run(host)?.silence().context("without CNI_NETNS")?;
    pod.remove()?;
    call.del().run(host)?.silence().context("without the namespace")
}

fn del_without_a_record_works(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({}));
    for config in [
        json!({"cniVersion": USUAL, "name": "net", "type": "vrf", "vrfname": "blue"}),
        json!({"cniVersion": USUAL, "name": "net", "type": "vrf", "vrfName": "blue", "table": "wrong"}),
    ] {
        call.add().run(host)?.result()?;
        std::fs::remove_dir_all("/run/bridgehead")?;
        call.config(config).del().run(host)?.silence()?;
        same_json("master", &master(&pod, "net1")?, &Value::Null)?;
        same_json("blue", &pod.link("blue")?.unwrap_or_default(), &Value::Null)?;
    }
    Ok(())
}

fn what_the_reference_made_is_removed(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({}));
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    same_json("master", &master(&pod, "net1")?, &Value::Null)?;
    same_json("blue", &pod.link("blue")?.unwrap_or_default(), &Value::Null)
}

fn a_failed_add_leaves_nothing(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    // A link of its own kind that no VRF takes: it is one itself, as the kernel finds out when the rest is done.
    pod.ip_set("link add net9 type vrf table 99")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal =
        vrf(&pod, "net9", json!({})).prev(&prev(&pod, "net9")).add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "net9")?;
    before.restored(host, &[&pod])
}

fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({}));
    let first = call.add().run(host)?.result()?;
    same_json("second result", &call.add().run(host)?.result()?, &first)?;
    pod.ip_set("link set net1 nomaster")?;
    pod.ip_set("-6 addr replace fd02::5/64 dev net1 nodad")?;
    same_json("third result", &call.add().run(host)?.result()?, &first)?;
    same_json("master", &master(&pod, "net1")?, &json!("blue"))?;
    equal("table", table(&pod, "blue")?, 1)
}

fn gc_is_silent(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({"cniVersion": NEWEST}));
    call.status().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    same_json("master", &master(&pod, "net1")?, &json!("blue"))
}

fn wrong_values_are_named(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    for (keys, code, word) in [
        (json!({"vrfname": ""}), 7, "vrfname"),
        (json!({"vrfname": null}), 7, "vrfname"),
        (json!({"vrfname": "a name that is too long"}), 7, "vrfname"),
        (json!({"vrfname": "net1"}), 7, "vrfname"),
        (json!({"table": -1}), 7, "table"),
        (json!({"table": 4294967296u64}), 7, "table"),
        (json!({"table": "x"}), 6, "table"),
        (json!({"prevResult": null}), 7, "prevResult"),
    ] {
        let call = vrf(&pod, "net1", keys.clone());
        let refusal = call.add().run(host)?.refused_with(code).with_context(|| keys.to_string())?;
        contains("message", &refusal.text(), word)?;
        before.restored(host, &[&pod])?;
        call.del().run(host)?.silence().with_context(|| format!("DEL with {keys}"))?;
    }
    Ok(())
}

fn a_kernel_without_vrfs_is_told(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    if KERNEL.unmet(host).is_none() {
        return Ok(());
    }
    let before = Snapshot::take(host, &[&pod])?;
    let call = vrf(&pod, "net1", json!({"cniVersion": NEWEST}));
    contains("STATUS", &call.status().run(host)?.refused_with(50)?.text(), "CONFIG_NET_VRF")?;
    contains("ADD", &call.add().run(host)?.refused_with(104)?.text(), "CONFIG_NET_VRF")?;
    before.restored(host, &[&pod])
}

fn del_of_nothing_is_silent(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = vrf(&pod, "net1", json!({}));
    call.del().run(host)?.silence()?;
    call.without("CNI_NETNS").del().run(host)?.silence()?;
    pod.remove()?;
    call.del().run(host)?.silence()
}
