//! What is refused, with nothing changed.

use anyhow::{Context, Result};
use serde_json::json;

use super::{behind, ifbs, limits, qdiscs, staged};
use crate::cases::networks::{USUAL, with};
use crate::expect::{contains, equal, lacks};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

pub(super) fn wrong_numbers_are_refused(host: &Sandbox) -> Result<()> {
    let (one, _) = staged(host, "a", json!({}))?;
    let before = Snapshot::take(host, &[&one.pod])?;
    for keys in [
        json!({"ingressRate": 8000}),
        json!({"ingressBurst": 8000}),
        json!({"egressRate": 8000}),
        json!({"egressBurst": 8000}),
        json!({"ingressRate": 7, "ingressBurst": 8000}),
        json!({"ingressRate": -8, "ingressBurst": 8000}),
        json!({"ingressRate": "8M", "ingressBurst": 8000}),
        json!({"ingressRate": 8000.5, "ingressBurst": 8000}),
        json!({"ingressRate": {}, "ingressBurst": 8000}),
        json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8000}}}),
        json!({"runtimeConfig": {"bandwidth": []}}),
    ] {
        let call = behind(&one, "a", keys.clone());
        call.add().run(host)?.refusal().with_context(|| keys.to_string())?;
        before.unchanged_since(&Snapshot::take(host, &[&one.pod])?).with_context(|| keys.to_string())?;
        equal("disciplines", qdiscs(host, one.host_link()?)?.len(), 0)?;
    }
    Ok(())
}

pub(super) fn errors_name_the_key(host: &Sandbox) -> Result<()> {
    let (one, _) = staged(host, "a", json!({}))?;
    for (keys, code, text) in [
        (json!({"ingressRate": 8000}), 7, "ingressBurst: missing or 0, and ingressRate is 8000"),
        (json!({"egressBurst": 8000}), 7, "egressRate: missing or 0, and egressBurst is 8000"),
        (json!({"egressRate": 7, "egressBurst": 8000}), 7, "egressRate: 7 is less than a byte"),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": "8M"}}}),
            6,
            "runtimeConfig.bandwidth.egressRate: ",
        ),
        (json!({"ingressRate": -1}), 6, "ingressRate: the value -1 is wrong; wanted is a whole number"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let call = behind(&one, "a", keys.clone()).command(verb);
            let refusal = call.run(host)?.refused_with(code).with_context(|| keys.to_string())?;
            contains(verb, &refusal.msg, text)?;
        }
    }
    Ok(())
}

pub(super) fn it_must_be_chained(host: &Sandbox) -> Result<()> {
    let (_, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    for keys in [limits(8_000_000, 800_000), limits(0, 0)] {
        let config = with(json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth"}), keys);
        for verb in ["ADD", "CHECK"] {
            let refusal = call.config(config.clone()).command(verb).run(host)?.refused_with(7)?;
            contains(verb, &refusal.msg, "prevResult")?;
        }
        call.config(config).del().run(host)?.silence()?;
    }
    equal("ifbs", ifbs(host)?.len(), 0)
}

pub(super) fn there_must_be_a_pair(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let before = Snapshot::take(host, &[&one.pod])?;
    let mut without = one.result.clone();
    without["interfaces"] = json!([one.result["interfaces"][2]]);
    without["ips"] = json!([]);
    call.prev(&without).add().run(host)?.refusal().context("the link is not in the result")?;
    call.ifname("net1").add().run(host)?.refusal().context("no such interface")?;
    // A link without any other end, though the host has one with every index.
    one.pod.ip_set("link add lonely type bridge")?;
    let lonely = call.ifname("lonely");
    let mut prev = one.result.clone();
    prev["interfaces"][2]["name"] = json!("lonely");
    lonely.prev(&prev).add().run(host)?.refusal().context("no pair")?;
    one.pod.ip_set("link del lonely")?;
    equal("disciplines", qdiscs(host, one.host_link()?)?.len(), 0)?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)
}

pub(super) fn what_others_have_put_there_stays(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let link = one.host_link()?;
    for (words, object) in [
        (["root", "handle", "7:", "pfifo", "limit", "10"].as_slice(), "pfifo 7:"),
        (&["handle", "ffff:", "clsact"], "filters"),
    ] {
        host.run(&[&["tc", "qdisc", "add", "dev", link], words].concat())?;
        let before = qdiscs(host, link)?;
        let refusal = call.add().run(host)?.refused_with(102)?;
        contains("message", &refusal.msg, link)?;
        contains("message", &refusal.msg, object)?;
        equal("disciplines", qdiscs(host, link)?, before)?;
        equal("ifbs", ifbs(host)?.len(), 0)?;
        let kind = if object == "filters" { "clsact" } else { "root" };
        host.run(&["tc", "qdisc", "del", "dev", link, kind])?;
    }
    host.run(&["tc", "qdisc", "add", "dev", link, "ingress"])?;
    host.run(&[
        "tc", "filter", "add", "dev", link, "ingress", "protocol", "ip", "prio", "5", "u32", "match", "u32",
        "0", "0", "flowid", "1:1",
    ])?;
    contains("message", &call.add().run(host)?.refused_with(102)?.msg, "filters of others")?;
    let found = host.run(&["tc", "filter", "show", "dev", link, "ingress"])?;
    contains("filters", &found, "pref 5")?;
    lacks("filters", &found, "mirred")?;
    equal("ifbs", ifbs(host)?.len(), 0)
}
