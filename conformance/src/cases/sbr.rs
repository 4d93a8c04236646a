//! The plugin `sbr`: routing by source.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::networks::{USUAL, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

mod lifecycle;

use lifecycle::*;

const SBR: Need = Need::Plugin("sbr");
/// What only this suite does.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "sbr/tables" {
        routes_move_into_a_table_of_their_own needs [SBR];
        each_address_has_a_table needs [SBR];
        both_families_are_routed needs [SBR, Need::Ipv6];
        link_local_routes_stay needs [SBR, TOOL, Need::Ipv6];
        taken_tables_are_passed_over needs [SBR];
        a_table_can_be_given needs [SBR];
        a_table_of_the_kernel_can_be_given needs [SBR];
        gateways_can_be_given needs [SBR, TOOL];
        source_hints_keep_the_subnet needs [SBR, TOOL];
        only_its_own_addresses_count needs [SBR];
        answers_leave_by_the_interface_that_was_asked needs [SBR];
        two_at_once_have_different_tables needs [SBR, TOOL];
    }
    "sbr/lifecycle" {
        check_finds_what_is_missing needs [SBR, TOOL];
        check_goes_by_the_rules_alone needs [SBR, TOOL];
        del_removes_the_rules needs [SBR, TOOL];
        del_works_whatever_is_missing needs [SBR, TOOL];
        del_without_a_record_goes_by_the_addresses needs [SBR, TOOL];
        what_the_reference_made_is_removed needs [SBR, Need::Reference("sbr")];
        the_reference_removes_what_we_made needs [SBR, Need::Reference("sbr")];
        a_failed_add_leaves_nothing needs [SBR, TOOL];
        add_again_is_the_same needs [SBR, TOOL];
        a_new_pod_of_the_same_name_is_none_of_the_old needs [SBR, TOOL];
        wrong_values_are_named needs [SBR, TOOL];
        status_and_gc_are_silent needs [SBR];
    }
}

/// A pod with `eth0` (10.1.0.5) and `net1` (10.2.0.5, 10.2.1.5, fd02::5), each with a default route, and behind both a
/// router of its own.
struct Net {
    pod: Pod,
    /// Behind `net1`: 10.2.0.1, 10.2.1.1, fd02::1, and 10.99.0.1 beyond.
    behind: Pod,
}

fn net(host: &Sandbox) -> Result<Net> {
    let (pod, front, behind) = (host.pod("p")?, host.pod("front")?, host.pod("behind")?);
    pod.ip_set("link set lo up")?;
    for (link, router, addresses, gateways) in [
        ("eth0", &front, &["10.1.0.5/24", "fd01::5/64"][..], &["10.1.0.1/24", "fd01::1/64"][..]),
        (
            "net1",
            &behind,
            &["10.2.0.5/24", "10.2.1.5/24", "fd02::5/64"][..],
            &["10.2.0.1/24", "10.2.1.1/24", "fd02::1/64", "10.99.0.1/32"][..],
        ),
    ] {
        let name = if link == "eth0" { "front" } else { "behind" };
        host.ip_set(&format!("link add {link} netns p type veth peer name port netns {name}"))?;
        for address in addresses {
            pod.ip_set(&format!("addr add {address} dev {link} nodad"))?;
        }
        for address in gateways {
            router.ip_set(&format!("addr add {address} dev port nodad"))?;
        }
        router.ip_set("link set port up")?;
        pod.ip_set(&format!("link set {link} up"))?;
    }
    pod.ip_set("route add default via 10.1.0.1 dev eth0")?;
    pod.ip_set("-6 route add default via fd01::1 dev eth0")?;
    pod.ip_set("route add default via 10.2.0.1 dev net1 metric 50")?;
    pod.ip_set("route add 10.77.0.0/16 via 10.2.0.9 dev net1")?;
    Ok(Net { pod, behind })
}

fn prev(pod: &Pod, addresses: &[(&str, Option<&str>)]) -> Value {
    let ips: Vec<Value> = addresses
        .iter()
        .map(|(address, gateway)| match gateway {
            Some(gateway) => json!({"interface": 0, "address": address, "gateway": gateway}),
            None => json!({"interface": 0, "address": address}),
        })
        .collect();
    json!({"cniVersion": USUAL, "interfaces": [{"name": "net1", "sandbox": pod.netns()}], "ips": ips})
}

const ONE: &[(&str, Option<&str>)] = &[("10.2.0.5/24", Some("10.2.0.1"))];
const THREE: &[(&str, Option<&str>)] =
    &[("10.2.0.5/24", Some("10.2.0.1")), ("10.2.1.5/24", Some("10.2.1.1")), ("fd02::5/64", Some("fd02::1"))];

fn sbr(pod: &Pod, addresses: &[(&str, Option<&str>)], more: Value) -> Call {
    let config =
        json!({"cniVersion": USUAL, "name": "net", "type": "sbr", "prevResult": prev(pod, addresses)});
    Call::new("sbr").id("c1").ifname("net1").netns(pod).config(with(config, more))
}

/// The rules beside the kernel's, as `from lookup`.
fn rules(pod: &Pod) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let text = pod.run(&["ip", "-j", family, "rule", "show"])?;
        let list: Vec<Value> = serde_json::from_str(&text)?;
        found.extend(list.iter().filter(|rule| rule["src"] != "all").map(|rule| {
            let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("src"), text("table"))
        }));
    }
    found.sort();
    Ok(found)
}

/// The routes of a table by `net1`, as `dst via`, without those of the kernel for its link.
fn routes(pod: &Pod, table: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        for route in pod.routes(family, table)? {
            let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
            if route["dev"] == "net1" && !text("dst").starts_with("fe80") && !text("dst").starts_with("ff00")
            {
                found.push(format!("{} {}", text("dst"), text("gateway")).trim_end().to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn routes_move_into_a_table_of_their_own(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, ONE, json!({}));
    same_json("result", &call.add().run(host)?.result()?, &prev(&pod, ONE))?;
    equal("rules", rules(&pod)?, ["10.2.0.5 100"])?;
    let found = routes(&pod, "100")?;
    for wanted in ["10.2.0.0/24", "10.77.0.0/16 10.2.0.9", "default 10.2.0.1"] {
        holds(found.iter().any(|it| it == wanted), format!("{wanted} is not in table 100: {found:?}"))?;
    }
    let left = routes(&pod, "main")?;
    holds(!left.iter().any(|it| it.contains("10.2.0.") || it.starts_with("default")), format!("{left:?}"))?;
    let eth0 = pod.run(&["ip", "route", "show", "dev", "eth0"])?;
    contains("routes by eth0", &eth0, "default via 10.1.0.1")
}

fn each_address_has_a_table(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    sbr(&pod, THREE, json!({})).add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["10.2.0.5 100", "10.2.1.5 101", "fd02::5 102"])?;
    for (table, gateway) in [("100", "10.2.0.1"), ("101", "10.2.1.1"), ("102", "fd02::1")] {
        let found = routes(&pod, table)?;
        let wanted = format!("default {gateway}");
        holds(found.contains(&wanted), format!("table {table} has no {wanted}: {found:?}"))?;
    }
    Ok(())
}

fn both_families_are_routed(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, &[("fd02::5/64", None)], json!({}));
    pod.ip_set("-6 route add default via fd02::1 dev net1 metric 50")?;
    call.add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["fd02::5 100"])?;
    let found = routes(&pod, "100")?;
    for wanted in ["default fd02::1", "fd02::/64"] {
        holds(found.iter().any(|it| it == wanted), format!("{wanted} is not in table 100: {found:?}"))?;
    }
    Ok(())
}

fn link_local_routes_stay(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    sbr(&pod, THREE, json!({})).add().run(host)?.result()?;
    let found = pod.run(&["ip", "-6", "route", "show", "dev", "net1"])?;
    contains("routes of the main table", &found, "fe80::/64")
}

fn taken_tables_are_passed_over(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    pod.ip_set("rule add from 192.0.2.1 lookup 100")?;
    pod.ip_set("-6 rule add from 2001:db8::1 lookup 102")?;
    sbr(&pod, THREE, json!({})).add().run(host)?.result()?;
    let found = rules(&pod)?;
    for wanted in ["10.2.0.5 101", "10.2.1.5 103"] {
        holds(found.iter().any(|it| it == wanted), format!("no rule {wanted}: {found:?}"))?;
    }
    Ok(())
}

fn a_table_can_be_given(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let before = routes(&pod, "main")?;
    let call = sbr(&pod, THREE, json!({"table": 5000}));
    let result = call.add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["10.2.0.5 5000", "10.2.1.5 5000", "fd02::5 5000"])?;
    equal("routes of the main table", routes(&pod, "main")?, before)?;
    call.check().prev(&result).run(host)?.silence()?;
    pod.ip_set("rule add from 10.2.0.5 lookup 5001")?;
    call.del().run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, ["10.2.0.5 5001"])
}

fn a_table_of_the_kernel_can_be_given(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({"table": 254}));
    for is_recorded in [true, false] {
        let result = call.add().run(host)?.result()?;
        equal("rules", rules(&pod)?, ["10.2.0.5 main", "10.2.1.5 main", "fd02::5 main"])?;
        call.check().prev(&result).run(host)?.silence()?;
        if !is_recorded {
            host.run(&["rm", "-rf", "/run/bridgehead"])?;
        }
        call.del().run(host)?.silence()?;
        equal("rules after DEL", rules(&pod)?, [] as [&str; 0])?;
    }
    Ok(())
}

fn gateways_can_be_given(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, &[THREE[0], THREE[2]], json!({"gateways": ["10.2.0.77", "fd02::77"]}));
    let result = call.add().run(host)?.result()?;
    for (table, gateway) in [("100", "10.2.0.77"), ("101", "fd02::77")] {
        let found = routes(&pod, table)?;
        let defaults: Vec<_> = found.iter().filter(|it| it.starts_with("default")).collect();
        equal(format!("default routes of table {table}"), defaults, [&format!("default {gateway}")])?;
    }
    call.check().prev(&result).run(host)?.silence()
}

fn source_hints_keep_the_subnet(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, &[THREE[0], THREE[2]], json!({"addSourceHints": true}));
    let result = call.add().run(host)?.result()?;
    let found = pod.run(&["ip", "route", "show", "dev", "net1"])?;
    contains("routes of the main table", &found, "10.2.0.0/24 proto kernel scope link src 10.2.0.5")?;
    holds(!found.contains("via"), format!("routes with next hops: {found}"))?;
    let found = pod.run(&["ip", "-6", "route", "show", "dev", "net1"])?;
    contains("routes of the main table", &found, "src fd02::5")?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, Vec::<String>::new())
}

fn only_its_own_addresses_count(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let mut before = prev(&pod, ONE);
    before["interfaces"] = json!([
        {"name": "net1", "sandbox": pod.netns()}, {"name": "eth0", "sandbox": pod.netns()},
    ]);
    before["ips"] = json!([
        {"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"address": "10.2.0.5/24", "gateway": "10.2.0.1"},
        {"interface": 0, "address": "10.2.1.5/24", "gateway": "10.2.1.1"},
    ]);
    sbr(&pod, ONE, json!({})).prev(&before).add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["10.2.0.5 100", "10.2.1.5 101"])?;
    before["ips"] = json!([{"interface": 1, "address": "10.1.0.5/24"}]);
    sbr(&pod, ONE, json!({})).prev(&before).id("c2").add().run(host)?.refusal().map(drop)
}

fn answers_leave_by_the_interface_that_was_asked(host: &Sandbox) -> Result<()> {
    let Net { pod, behind } = net(host)?;
    behind.ip_set("link set lo up")?;
    let ping = |from: &str, to: &str| behind.try_run(&["ping", "-n", "-c", "1", "-W", "1", "-I", from, to]);
    // From beyond its subnet the answer goes to the other router, who does not know the asker.
    pod.ip_set("route del default via 10.2.0.1 dev net1 metric 50")?;
    holds(!ping("10.99.0.1", "10.2.0.5")?.status.success(), "there was an answer before sbr")?;
    sbr(&pod, THREE, json!({})).add().run(host)?.result()?;
    for (from, to) in [("10.99.0.1", "10.2.0.5"), ("10.99.0.1", "10.2.1.5"), ("10.2.0.1", "10.2.0.5")] {
        let finished = ping(from, to)?;
        holds(finished.status.success(), format!("no answer from {to} to {from}: {}", finished.stdout))?;
    }
    // And what the pod itself begins goes by eth0 as before.
    let found = pod.run(&["ip", "route", "get", "192.0.2.1"])?;
    contains("the pod's own way out", &found, "dev eth0")?;
    let found = pod.run(&["ip", "route", "get", "192.0.2.1", "from", "10.2.1.5"])?;
    contains("the way out from net1", &found, "via 10.2.1.1 dev net1")
}

fn two_at_once_have_different_tables(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let mut calls = Vec::new();
    for number in 0..12 {
        let link = format!("n{number}");
        pod.ip_set(&format!("link add {link} type veth peer name m{number}"))?;
        pod.ip_set(&format!("addr add 10.2.{number}.5/24 dev {link}"))?;
        pod.ip_set(&format!("link set {link} up"))?;
        let mut result = prev(&pod, &[]);
        result["interfaces"][0]["name"] = json!(link);
        result["ips"] = json!([{"interface": 0, "address": format!("10.2.{number}.5/24")}]);
        calls.push(sbr(&pod, ONE, json!({})).prev(&result).ifname(&link));
    }
    let started: Vec<_> = calls.iter().map(|call| call.add().start(host)).collect::<Result<_>>()?;
    for one in started {
        one.answer(host)?.result()?;
    }
    let found = rules(&pod)?;
    let mut tables: Vec<&str> = found.iter().filter_map(|rule| rule.split(' ').nth(1)).collect();
    tables.sort();
    let wanted: Vec<String> = (100..112).map(|table| table.to_string()).collect();
    equal("tables", tables, wanted)?;
    let started: Vec<_> = calls.iter().map(|call| call.del().start(host)).collect::<Result<_>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    equal("rules after DEL", rules(&pod)?, Vec::<String>::new())
}
