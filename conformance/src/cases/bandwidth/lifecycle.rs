//! ADD again, DEL in all its forms, GC, and pods of the reference.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{behind, ifbs, last, limits, qdiscs, staged};
use crate::call::Call;
use crate::cases::networks::{Attachment, NEWEST, USUAL, bridge, gateway4, pool, with};
use crate::expect::{equal, holds, same_json, soon, text_at};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn add_again_gives_the_same_result(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    let index = host.need_link(text_at(last(&result)?, "/name")?)?["ifindex"].clone();
    same_json("again", &call.add().run(host)?.result()?, &result)?;
    same_json("ifb", &host.need_link(text_at(last(&result)?, "/name")?)?["ifindex"], &index)?;
    host.run(&["tc", "qdisc", "del", "dev", one.host_link()?, "ingress"])?;
    same_json("after damage", &call.add().run(host)?.result()?, &result)?;
    call.check().prev(&result).run(host)?.silence()
}

pub(super) fn add_again_on_a_new_link_starts_anew(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    one.del(host)?;
    let bridged = one.call.add().run(host)?.result()?;
    let again = call.prev(&bridged).add().run(host)?.result()?;
    same_json("addresses", &again["ips"], &bridged["ips"])?;
    same_json("ifb", last(&again)?, last(&result)?)?;
    equal("ifbs", ifbs(host)?.len(), 1)?;
    equal("disciplines", qdiscs(host, one.host_link()?)?.len(), 2)?;
    let result = again;
    call.check().prev(&result).run(host)?.silence()
}

/// What an ADD leaves that is killed, and of which the record is lost; and what the reference left on the link.
pub(super) fn what_is_left_without_a_record_is_replaced(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    call.add().run(host)?.result()?;
    for other in [16_000_000, 8_000_000] {
        fs::remove_dir_all("/run/bridgehead/attachments/bandwidth").context("forget the record")?;
        let call = behind(&one, "a", limits(other, 800_000));
        let result = call.add().run(host)?.result()?;
        call.check().prev(&result).run(host)?.silence()?;
        equal("ifbs", ifbs(host)?.len(), 1)?;
    }
    Ok(())
}

pub(super) fn forty_at_once(host: &Sandbox) -> Result<()> {
    let ids: Vec<String> = (0..40).map(|i| format!("p{i}")).collect();
    let mut pods = Vec::new();
    for id in &ids {
        pods.push(staged(host, id, limits(8_000_000, 800_000))?);
    }
    let started = pods.iter().map(|(_, call)| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let mut results = Vec::new();
    for call in started {
        results.push(call.answer(host)?.result()?);
    }
    equal("ifbs", ifbs(host)?.len(), 40)?;
    for ((one, call), result) in pods.iter().zip(&results) {
        call.check().prev(result).run(host)?.silence()?;
        equal("disciplines", qdiscs(host, one.host_link()?)?.len(), 2)?;
    }
    let started = pods.iter().zip(&results).map(|((_, call), result)| call.del().prev(result).start(host));
    for call in started.collect::<Result<Vec<_>>>()? {
        call.answer(host)?.silence()?;
    }
    equal("ifbs", ifbs(host)?.len(), 0)
}

pub(super) fn del_leaves_nothing(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let before = Snapshot::take(host, &[&one.pod])?;
    let result = call.add().run(host)?.result()?;
    call.del().prev(&result).run(host)?.silence()?;
    before.restored(host, &[&one.pod])?;
    call.del().prev(&result).run(host)?.silence().context("again")?;
    one.del(host)?;
    equal("ifbs", ifbs(host)?.len(), 0)
}

pub(super) fn del_gives_the_link_back(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("disciplines", qdiscs(host, one.host_link()?)?, Vec::<String>::new())?;
    one.pod.ping("10.20.0.1")
}

pub(super) fn del_in_all_ways(host: &Sandbox) -> Result<()> {
    for (id, way) in
        [("a", "usual"), ("b", "no namespace"), ("c", "no result"), ("d", "neither"), ("e", "gone")]
    {
        let (one, call) = staged(host, id, limits(8_000_000, 800_000))?;
        let result = call.add().run(host)?.result()?;
        let mut config = call.prev(&result);
        if matches!(way, "no result" | "neither" | "gone") {
            config = config.config(with(
                json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth"}),
                limits(8_000_000, 800_000),
            ));
        }
        if matches!(way, "no namespace" | "neither") {
            config = config.without("CNI_NETNS");
        }
        if way == "gone" {
            one.pod.remove()?;
        }
        config.del().run(host)?.silence().with_context(|| way.to_owned())?;
        equal(format!("ifbs after DEL: {way}"), ifbs(host)?.len(), 0)?;
        config.del().run(host)?.silence().with_context(|| format!("{way}, again"))?;
    }
    Ok(())
}

pub(super) fn del_with_any_configuration(host: &Sandbox) -> Result<()> {
    for (id, keys) in [
        ("a", json!({})),
        ("b", json!({"ingressRate": 8000})),
        ("c", json!({"ingressRate": "fast", "runtimeConfig": 5})),
    ] {
        let (_, call) = staged(host, id, limits(8_000_000, 800_000))?;
        call.add().run(host)?.result()?;
        if id == "c" {
            fs::remove_dir_all("/run/bridgehead/attachments/bandwidth").context("forget the record")?;
        }
        let config = with(json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth"}), keys.clone());
        call.config(config).del().run(host)?.silence().with_context(|| keys.to_string())?;
        equal("ifbs", ifbs(host)?.len(), 0)?;
    }
    Ok(())
}

pub(super) fn del_without_a_record(host: &Sandbox) -> Result<()> {
    let (one, first) = staged(host, "a", limits(8_000_000, 800_000))?;
    let one_result = first.add().run(host)?.result()?;
    let bridged = one.call.ifname("net1").set("isDefaultGateway", json!(false)).add().run(host)?.result()?;
    let second = first.ifname("net1").prev(&bridged);
    let two_result = second.add().run(host)?.result()?;
    fs::remove_dir_all("/run/bridgehead/attachments/bandwidth").context("forget the records")?;
    second.del().prev(&two_result).run(host)?.silence()?;
    let name = text_at(last(&one_result)?, "/name")?;
    equal("ifbs", ifbs(host)?, BTreeSet::from([name.to_owned()]))?;
    first.without("CNI_NETNS").del().run(host)?.silence()?;
    equal("ifbs", ifbs(host)?.len(), 0)
}

pub(super) fn del_of_what_was_never_added(host: &Sandbox) -> Result<()> {
    let (_, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    call.id("never").del().run(host)?.silence()?;
    call.id("never").without("CNI_NETNS").del().run(host)?.silence()
}

/// With the bursts of containerd and CRI-O, of which the reference keeps what 32 bits hold. A limit that somebody changed is
/// found nevertheless.
pub(super) fn we_find_right_what_the_reference_added(host: &Sandbox) -> Result<()> {
    for (id, burst) in [("a", u64::from(u32::MAX)), ("b", u64::from(u32::MAX) * 8 - 1)] {
        for rate in [8_000_000, 1_000_000_000] {
            let (_, call) = staged(host, &format!("{id}{rate}"), limits(rate, burst))?;
            let result = call.from(REFERENCE).add().run(host)?.result()?;
            call.check().prev(&result).run(host)?.silence()?;
            let name = text_at(last(&result)?, "/name")?;
            host.run(&[
                "tc", "qdisc", "replace", "dev", name, "root", "handle", "1:", "tbf", "rate", "4mbit",
                "burst", "100kb", "latency", "25ms",
            ])?;
            call.check().prev(&result).run(host)?.refused_with(103)?;
            call.del().prev(&result).run(host)?.silence()?;
        }
    }
    Ok(())
}

pub(super) fn we_remove_what_the_reference_added(host: &Sandbox) -> Result<()> {
    for (id, has_result) in [("a", true), ("b", false)] {
        let (_, call) = staged(host, id, limits(8_000_000, 800_000))?;
        let result = call.from(REFERENCE).add().run(host)?.result()?;
        call.check().prev(&result).run(host)?.silence()?;
        let del = if has_result { call.prev(&result) } else { call.set("prevResult", Value::Null) };
        del.del().run(host)?.silence()?;
        equal("ifbs", ifbs(host)?.len(), 0)?;
    }
    Ok(())
}

pub(super) fn the_reference_removes_what_we_added(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).check().prev(&result).run(host)?.silence()?;
    call.from(REFERENCE).del().prev(&result).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?.len(), 0)?;
    call.del().prev(&result).run(host)?.silence()?;
    one.del(host)
}

fn gc(call: &Call, valid: &[&str]) -> Call {
    let list: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    call.gc().set("cniVersion", json!(NEWEST)).set("cni.dev/valid-attachments", json!(list))
}

pub(super) fn gc_removes_what_is_not_valid(host: &Sandbox) -> Result<()> {
    let pods =
        [staged(host, "a", limits(8_000_000, 800_000))?, staged(host, "b", limits(8_000_000, 800_000))?];
    let mut results = Vec::new();
    for (_, call) in &pods {
        results.push(call.add().run(host)?.result()?);
    }
    let kept = text_at(last(&results[1])?, "/name")?;
    gc(&pods[0].1, &["b"]).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?, BTreeSet::from([kept.to_owned()]))?;
    equal("disciplines", qdiscs(host, pods[0].0.host_link()?)?.len(), 0)?;
    pods[1].1.check().prev(&results[1]).run(host)?.silence()
}

/// Of which there is no record: the alias tells whose they are. What has none is somebody else's.
pub(super) fn gc_removes_links_of_nobody(host: &Sandbox) -> Result<()> {
    let (_, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let (_, other) = staged(host, "b", limits(8_000_000, 800_000))?;
    call.add().run(host)?.result()?;
    let result = other.add().run(host)?.result()?;
    let kept = text_at(last(&result)?, "/name")?.to_owned();
    fs::remove_dir_all("/run/bridgehead/attachments/bandwidth").context("forget the records")?;
    host.ip_set("link add bwp000000000000 type ifb")?;
    gc(&call.set("name", json!("elsewhere")), &[]).run(host)?.silence()?;
    equal("ifbs after GC of another network", ifbs(host)?.len(), 3)?;
    gc(&call, &["b"]).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?, BTreeSet::from([kept, "bwp000000000000".to_owned()]))?;
    other.check().prev(&result).run(host)?.silence()
}

/// Pods that vanished without a DEL, whose namespaces were named by a process: what a plugin of the chain remembers must
/// not keep them alive, also where it had nothing to do.
pub(super) fn a_dead_pod_is_reclaimed_with_its_limits(host: &Sandbox) -> Result<()> {
    // One address for pods.
    let network = with(gateway4(), json!({"ipam": pool(&["10.20.0.0/30"])}));
    for (i, keys) in [limits(8_000_000, 800_000), json!({})].into_iter().enumerate() {
        let pod = host.pod(&format!("pod{i}"))?;
        let mut process = pod.inside(|| Command::new("/bin/sleep").arg("1000").spawn())??;
        let netns = format!("/proc/{}/ns/net", process.id());
        let bridged = bridge(&format!("id{i}"), &pod, network.clone()).env("CNI_NETNS", &netns);
        let result = bridged.add().run(host)?.result()?;
        let config = with(json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth"}), keys);
        let call = Call::new("bandwidth").id(&format!("id{i}")).ifname("eth0").env("CNI_NETNS", &netns);
        call.config(config).prev(&result).add().run(host)?.result()?;
        process.kill()?;
        process.wait()?;
        pod.remove()?;
        // The kernel takes its links away some time after the namespace.
        soon(|| holds(host.ip("link show type veth")?.is_empty(), "the link of a dead pod"))?;
    }
    Attachment::new(host, "last", network)?;
    equal("ifbs", ifbs(host)?.len(), 0)
}

pub(super) fn status_is_silent(host: &Sandbox) -> Result<()> {
    for keys in [json!({}), limits(8_000_000, 800_000)] {
        let config = with(json!({"cniVersion": NEWEST, "name": "net", "type": "bandwidth"}), keys);
        let call = Call::new("bandwidth").config(config);
        call.status().run(host)?.silence()?;
        call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    }
    Ok(())
}
