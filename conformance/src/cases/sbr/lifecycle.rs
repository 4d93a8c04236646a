//! CHECK and DEL in all their forms, and pods of the reference.

use anyhow::{Context, Result};
use serde_json::json;

use super::{Net, ONE, THREE, net, routes, rules, sbr};
use crate::cases::networks::{NEWEST, USUAL};
use crate::expect::{contains, equal, holds, same_json};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn check_finds_what_is_missing(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    let result = call.add().run(host)?.result()?;
    let check = call.check().prev(&result);
    check.run(host)?.silence()?;
    for (spoil, word, mend) in [
        ("rule del from 10.2.1.5 lookup 101", "rule from 10.2.1.5", "rule add from 10.2.1.5 lookup 101"),
        ("-6 rule del from fd02::5 lookup 102", "rule from fd02::5", "-6 rule add from fd02::5 lookup 102"),
        ("route del default table 100", "table 100", "route add default via 10.2.0.1 dev net1 table 100"),
        (
            "route add default via 10.2.0.1 dev net1 metric 9 onlink",
            "main table",
            "route del default via 10.2.0.1 dev net1 metric 9 onlink",
        ),
    ] {
        pod.ip_set(spoil)?;
        contains("message", &check.run(host)?.refused_with(103)?.text(), word)?;
        pod.ip_set(mend)?;
        check.run(host)?.silence().with_context(|| format!("after {mend}"))?;
    }
    pod.ip_set("link del net1")?;
    contains("message", &check.run(host)?.refused_with(103)?.text(), "net1")
}

fn forget() -> Result<()> {
    Ok(std::fs::remove_dir_all("/run/bridgehead")?)
}

pub(super) fn check_goes_by_the_rules_alone(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, ONE, json!({}));
    let result = call.add().run(host)?.result()?;
    forget()?;
    call.check().prev(&result).run(host)?.silence()
}

pub(super) fn del_removes_the_rules(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = sbr(&pod, THREE, json!({}));
    let result = call.add().run(host)?.result()?;
    pod.ip_set("rule add from 10.1.0.5 lookup 55")?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, ["10.1.0.5 55"])?;
    call.del().prev(&result).run(host)?.silence().context("again")?;
    before.restored(host, &[&pod])
}

pub(super) fn del_works_whatever_is_missing(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    call.del().run(host)?.silence().context("before any ADD")?;
    call.add().run(host)?.result()?;
    pod.ip_set("rule del from 10.2.1.5 lookup 101")?;
    pod.ip_set("route del default table 100")?;
    call.del().run(host)?.silence().context("with a part missing")?;
    equal("rules", rules(&pod)?, Vec::<String>::new())?;
    call.add().run(host)?.result()?;
    pod.ip_set("link del net1")?;
    call.del().run(host)?.silence().context("without the link")?;
    equal("rules", rules(&pod)?, Vec::<String>::new())?;
    call.without("CNI_NETNS").del().run(host)?.silence().context("without CNI_NETNS")?;
    let path = pod.netns().to_owned();
    pod.remove()?;
    call.del().run(host)?.silence().context("without the namespace")?;
    holds(!std::path::Path::new(&path).exists(), "DEL made a file in the place of the namespace")
}

pub(super) fn del_without_a_record_goes_by_the_addresses(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let plain = json!({"cniVersion": USUAL, "name": "net", "type": "sbr"});
    let call = sbr(&pod, THREE, json!({}));
    call.add().run(host)?.result()?;
    forget()?;
    pod.ip_set("rule add from 10.1.0.5 lookup 55")?;
    call.config(plain.clone()).del().run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, ["10.1.0.5 55"])?;
    // Where the addresses are gone, the result knows them.
    for route in ["10.2.0.0/24", "10.2.1.0/24"] {
        pod.ip_set(&format!("route add {route} dev net1"))?;
    }
    pod.ip_set("-6 route add fd02::/64 dev net1")?;
    call.add().run(host)?.result()?;
    forget()?;
    pod.ip_set("link del net1")?;
    call.del().run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, ["10.1.0.5 55"])
}

pub(super) fn what_the_reference_made_is_removed(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    equal("rules", rules(&pod)?.len(), 3)?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, Vec::<String>::new())
}

pub(super) fn the_reference_removes_what_we_made(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).del().prev(&result).run(host)?.silence()?;
    equal("rules after DEL", rules(&pod)?, Vec::<String>::new())
}

pub(super) fn a_failed_add_leaves_nothing(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    // The second gateway cannot be reached, which shows when the first address has its table.
    let bad = [THREE[0], ("10.2.1.5/24", Some("192.0.2.99"))];
    let refusal = sbr(&pod, &bad, json!({})).add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "192.0.2.99")?;
    equal("rules", rules(&pod)?, Vec::<String>::new())?;
    before.restored(host, &[&pod])?;
    sbr(&pod, THREE, json!({}))
        .ifname("net9")
        .prev(&json!({
            "cniVersion": USUAL, "ips": [{"address": "10.2.0.5/24"}],
        }))
        .add()
        .run(host)?
        .refused_with(100)?;
    before.restored(host, &[&pod])
}

pub(super) fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    let first = call.add().run(host)?.result()?;
    let (had_rules, had_routes) = (rules(&pod)?, routes(&pod, "100")?);
    same_json("second result", &call.add().run(host)?.result()?, &first)?;
    pod.ip_set("rule del from 10.2.1.5 lookup 101")?;
    pod.ip_set("route del 10.77.0.0/16 table 100")?;
    same_json("third result", &call.add().run(host)?.result()?, &first)?;
    equal("rules", rules(&pod)?, had_rules)?;
    equal("routes", routes(&pod, "100")?, had_routes)
}

pub(super) fn a_new_pod_of_the_same_name_is_none_of_the_old(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, THREE, json!({}));
    call.add().run(host)?.result()?;
    pod.remove()?;
    let pod = host.pod("p")?;
    // The same indices, and none of the old addresses.
    host.ip_set("link add eth0 netns p type veth peer name old1")?;
    host.ip_set("link add net1 netns p type veth peer name old2")?;
    pod.ip_set("addr add 10.7.0.5/24 dev net1")?;
    pod.ip_set("link set net1 up")?;
    pod.ip_set("link set eth0 up")?;
    let new = sbr(&pod, &[("10.7.0.5/24", None)], json!({}));
    let before = Snapshot::take(host, &[&pod])?;
    call.del().run(host)?.silence().context("DEL for the old one")?;
    before.restored(host, &[&pod])?;
    new.add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["10.7.0.5 100"])?;
    pod.remove()?;
    let pod = host.pod("p")?;
    host.ip_set("link add eth0 netns p type veth peer name new1")?;
    host.ip_set("link add net1 netns p type veth peer name new2")?;
    pod.ip_set("addr add 10.8.0.5/24 dev net1")?;
    pod.ip_set("link set net1 up")?;
    sbr(&pod, &[("10.8.0.5/24", None)], json!({})).add().run(host)?.result()?;
    equal("rules", rules(&pod)?, ["10.8.0.5 100"])?;
    equal("routes", routes(&pod, "100")?, ["10.8.0.0/24"])
}

pub(super) fn wrong_values_are_named(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    for (keys, code, word) in [
        (json!({"table": 0}), 7, "table"),
        (json!({"table": -7}), 7, "-7"),
        (json!({"table": "main"}), 6, "table"),
        (json!({"gateways": ["10.2.0.1", "10.2.0.2"]}), 7, "gateways"),
        (json!({"gateways": ["10.2.0"]}), 7, "10.2.0"),
        (json!({"addSourceHints": "yes"}), 6, "addSourceHints"),
        (json!({"prevResult": null}), 7, "prevResult"),
        (json!({"prevResult": {"cniVersion": USUAL}}), 7, "prevResult"),
    ] {
        let call = sbr(&pod, THREE, keys.clone());
        let refusal = call.add().run(host)?.refused_with(code).with_context(|| keys.to_string())?;
        contains("message", &refusal.text(), word)?;
        before.restored(host, &[&pod])?;
        call.del().run(host)?.silence().with_context(|| format!("DEL with {keys}"))?;
    }
    Ok(())
}

pub(super) fn status_and_gc_are_silent(host: &Sandbox) -> Result<()> {
    let Net { pod, .. } = net(host)?;
    let call = sbr(&pod, ONE, json!({"cniVersion": NEWEST}));
    call.status().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    equal("rules", rules(&pod)?, ["10.2.0.5 100"])?;
    call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()
}
