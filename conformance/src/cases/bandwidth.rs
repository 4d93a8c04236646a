//! The plugin `bandwidth`: what it makes of its keys, and what becomes of that.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, USUAL, gateway4, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::sandbox::{REFERENCE, Sandbox};

mod classifier;
mod drift;
mod errors;
mod lifecycle;
mod rate;

use classifier::*;
use drift::*;
use errors::*;
use lifecycle::*;

/// What every case needs, besides a program to look with.
const PLUGIN: Need = Need::Plugin("bandwidth");
const TC: Need = Need::Program("tc");
const IFB: Need = Need::LinkType("ifb");
/// What the reference does not do.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "bandwidth/limits" {
        both_directions needs [PLUGIN, TC, IFB];
        one_direction needs [PLUGIN, TC, IFB];
        nothing_to_limit needs [PLUGIN, TC];
        runtimes_ask_in_their_own_spelling needs [PLUGIN, TC, IFB];
        the_network_beats_the_runtime needs [PLUGIN, TC, IFB];
        numbers_are_those_of_the_reference needs [PLUGIN, TC, IFB, Need::Reference("bandwidth")];
        rates_of_more_than_32_bits needs [PLUGIN, TC, IFB];
        bursts_that_overflow needs [TOOL, PLUGIN, TC, IFB];
        results_of_all_versions needs [PLUGIN, TC, IFB];
    }
    "bandwidth/traffic" {
        a_pod_receives_at_its_rate needs [PLUGIN, TC];
        a_pod_sends_at_its_rate needs [PLUGIN, TC, IFB];
        other_pods_are_as_fast_as_ever needs [PLUGIN, TC, IFB];
    }
    "bandwidth/classifier" {
        it_is_matchall_where_there_is_one needs [TOOL, PLUGIN, TC, IFB];
        it_is_u32_where_nothing_tells_of_matchall needs [TOOL, PLUGIN, TC, IFB];
        what_files_tell_need_not_be_true needs [TOOL, PLUGIN, TC, IFB];
    }
    "bandwidth/interfaces" {
        the_link_is_that_of_this_interface needs [PLUGIN, TC, IFB];
        two_interfaces_of_a_container needs [TOOL, PLUGIN, TC, IFB];
        containers_whose_names_run_together needs [TOOL, PLUGIN, TC, IFB];
    }
    "bandwidth/errors" {
        wrong_numbers_are_refused needs [PLUGIN, TC];
        errors_name_the_key needs [TOOL, PLUGIN];
        it_must_be_chained needs [TOOL, PLUGIN, TC];
        there_must_be_a_pair needs [PLUGIN, TC];
        what_others_have_put_there_stays needs [TOOL, PLUGIN, TC, IFB];
    }
    "bandwidth/check" {
        a_sound_one needs [PLUGIN, TC, IFB];
        drift_that_the_reference_finds_too needs [PLUGIN, TC, IFB];
        drift_of_all_kinds needs [TOOL, PLUGIN, TC, IFB];
    }
    "bandwidth/add" {
        add_again_gives_the_same_result needs [TOOL, PLUGIN, TC, IFB];
        add_again_on_a_new_link_starts_anew needs [TOOL, PLUGIN, TC, IFB];
        what_is_left_without_a_record_is_replaced needs [TOOL, PLUGIN, TC, IFB];
        forty_at_once needs [PLUGIN, TC, IFB];
    }
    "bandwidth/del" {
        del_leaves_nothing needs [PLUGIN, TC, IFB];
        del_gives_the_link_back needs [TOOL, PLUGIN, TC, IFB];
        del_in_all_ways needs [PLUGIN, TC, IFB];
        del_with_any_configuration needs [TOOL, PLUGIN, TC, IFB];
        del_without_a_record needs [TOOL, PLUGIN, TC, IFB];
        del_of_what_was_never_added needs [PLUGIN];
        we_find_right_what_the_reference_added needs [TOOL, PLUGIN, TC, IFB, Need::Reference("bandwidth")];
        we_remove_what_the_reference_added needs [PLUGIN, TC, IFB, Need::Reference("bandwidth")];
        the_reference_removes_what_we_added needs [PLUGIN, TC, IFB, Need::Reference("bandwidth")];
    }
    "bandwidth/gc" {
        gc_removes_what_is_not_valid needs [TOOL, PLUGIN, TC, IFB];
        gc_removes_links_of_nobody needs [TOOL, PLUGIN, TC, IFB];
        a_dead_pod_is_reclaimed_with_its_limits needs [TOOL, PLUGIN, TC, IFB];
        status_is_silent needs [PLUGIN];
    }
}

/// Rate and burst of both directions, in bits.
fn limits(rate: u64, burst: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

/// bandwidth behind bridge, with these keys. No verb is chosen.
fn behind(one: &Attachment, id: &str, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth"});
    Call::new("bandwidth").id(id).ifname("eth0").netns(&one.pod).config(with(config, more)).prev(&one.result)
}

/// A pod that is attached by bridge, and the call that limits it.
fn staged(host: &Sandbox, id: &str, more: Value) -> Result<(Attachment, Call)> {
    let one = Attachment::new(host, id, gateway4())?;
    let call = behind(&one, id, more);
    Ok((one, call))
}

/// The queueing disciplines of a link as tc prints them, with the kernel's own numbers, and without what a veth has by
/// itself.
fn qdiscs(host: &Sandbox, link: &str) -> Result<Vec<String>> {
    let text = host.run(&["tc", "-r", "-d", "qdisc", "show", "dev", link])?;
    let lines = text.lines().filter(|line| !line.contains("noqueue"));
    // How often a link is referred to is nobody's business.
    let without_count = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "refcnt").unwrap_or(words.len());
        words
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != at && *i != at + 1)
            .map(|(_, word)| *word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    Ok(lines.map(without_count).collect())
}

/// The link that what a link receives is redirected to, if it is.
fn redirected(host: &Sandbox, link: &str) -> Result<Option<String>> {
    let text = host.run(&["tc", "-j", "filter", "show", "dev", link, "ingress"])?;
    let list: Value = serde_json::from_str(text.trim()).unwrap_or_default();
    let actions = list.as_array().into_iter().flatten().filter_map(|it| it.pointer("/options/actions/0"));
    let mut targets = actions.filter_map(|it| it["to_dev"].as_str());
    Ok(targets.next().map(str::to_owned))
}

/// The links that limit what pods send.
fn ifbs(host: &Sandbox) -> Result<BTreeSet<String>> {
    let links = host.ip("link show type ifb")?;
    Ok(links.iter().filter_map(|it| it["ifname"].as_str()).map(str::to_owned).collect())
}

/// The result's last interface, which is the link that limits what the pod sends.
fn last(result: &Value) -> Result<&Value> {
    list_at(result, "/interfaces")?.last().context("the result has no interfaces")
}

fn both_directions(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway4(), json!({"mtu": 1400})))?;
    let result = behind(&one, "a", limits(8_000_000, 800_000)).add().run(host)?.result()?;
    let link = one.host_link()?;
    for (what, lines) in
        [("host link", qdiscs(host, link)?), ("ifb", qdiscs(host, text_at(last(&result)?, "/name")?)?)]
    {
        let text = lines.join("\n");
        contains(what, &text, "qdisc tbf 1:[00010000] root rate 8Mbit")?;
        contains(what, &text, "burst 100000b/1 mpu 0b [0017d784] lat 25ms limit 125000b")?;
    }
    contains("host link", &qdiscs(host, link)?.join("\n"), "qdisc ingress ffff:")?;
    equal("interfaces", list_at(&result, "/interfaces")?.len(), 4)?;
    for i in 0..3 {
        same_json("interface", &result["interfaces"][i], &one.result["interfaces"][i])?;
    }
    let name = text_at(last(&result)?, "/name")?;
    // sha512 of "neta".
    equal("name", name, "bwpc3a99edf74e2")?;
    equal("redirected to", redirected(host, link)?.as_deref(), Some(name))?;
    let ifb = host.need_link(name)?;
    same_json("mac", &last(&result)?["mac"], &ifb["address"])?;
    holds(last(&result)?.get("sandbox").is_none_or(|it| it == ""), "the ifb has a sandbox")?;
    equal("mtu", ifb["mtu"].as_u64(), Some(1400))?;
    equal("up", super::bridge_links::is_up(&ifb), true)?;
    for key in ["ips", "routes", "dns"] {
        same_json(key, &result[key], &one.result[key])?;
    }
    one.pod.ping("10.20.0.1")
}

fn one_direction(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", json!({"ingressRate": 8_000_000, "ingressBurst": 800_000}))?;
    let result = call.add().run(host)?.result()?;
    same_json("result", &result, &one.result)?;
    equal("disciplines", qdiscs(host, one.host_link()?)?.len(), 1)?;
    equal("ifbs", ifbs(host)?.len(), 0)?;
    call.check().prev(&result).run(host)?.silence()?;
    let (two, call) = staged(host, "b", json!({"egressRate": 8_000_000, "egressBurst": 800_000}))?;
    let result = call.add().run(host)?.result()?;
    equal("interfaces", list_at(&result, "/interfaces")?.len(), 4)?;
    let found = qdiscs(host, two.host_link()?)?;
    holds(found.len() == 1 && found[0].contains("ingress"), format!("{found:?}"))?;
    equal("ifbs", ifbs(host)?.len(), 1)?;
    call.check().prev(&result).run(host)?.silence()
}

fn nothing_to_limit(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    for more in [
        json!({}),
        limits(0, 0),
        json!({"runtimeConfig": {}}),
        json!({"runtimeConfig": {"bandwidth": limits(0, 0)}}),
        json!({"unshapedSubnets": ["10.0.0.0/8"]}),
    ] {
        let call = behind(&one, "a", more.clone());
        let result = call.add().run(host)?.result().with_context(|| more.to_string())?;
        same_json("result", &result, &one.result)?;
        equal("disciplines", qdiscs(host, one.host_link()?)?, Vec::<String>::new())?;
        equal("ifbs", ifbs(host)?.len(), 0)?;
        call.check().prev(&result).run(host)?.silence()?;
        call.del().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn runtimes_ask_in_their_own_spelling(host: &Sandbox) -> Result<()> {
    let go = json!({"IngressRate": 8_000_000, "IngressBurst": 800_000,
        "EgressRate": 8_000_000, "EgressBurst": 800_000});
    for (id, runtime) in [
        ("a", json!({"bandwidth": limits(8_000_000, 800_000)})),
        ("b", json!({"bandwidth": go})),
        ("c", json!({"bandWidth": go})),
    ] {
        let (one, call) = staged(host, id, json!({"runtimeConfig": runtime}))?;
        let result = call.add().run(host)?.result()?;
        let found = qdiscs(host, one.host_link()?)?.join("\n");
        contains("host link", &found, "root rate 8Mbit burst 100000b/1 mpu 0b [0017d784]")?;
        call.check().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn the_network_beats_the_runtime(host: &Sandbox) -> Result<()> {
    let more = json!({"ingressRate": 16_000_000, "ingressBurst": 800_000,
        "runtimeConfig": {"bandwidth": limits(8_000_000, 800_000)}});
    let (one, call) = staged(host, "a", more)?;
    call.add().run(host)?.result()?;
    let found = qdiscs(host, one.host_link()?)?;
    holds(found.len() == 1 && found[0].contains("rate 16Mbit"), format!("{found:?}"))?;
    equal("ifbs", ifbs(host)?.len(), 0)
}

/// Rates and bursts of all magnitudes, as far as the reference gets them right.
fn numbers_are_those_of_the_reference(host: &Sandbox) -> Result<()> {
    let (one, _) = staged(host, "a", json!({}))?;
    for (rate, burst) in [
        (8, 8),
        (64_000, 12_112),
        (1_000_000, 100_000_000),
        (12_345_678, 87_654_321),
        (999_999_999, 1_000_001),
        (1_000_000_000, u64::from(u32::MAX)),
        (40_000_000_000, 4_000_000_000),
        (100_000_000_000, 8_000_000_000),
    ] {
        let mut found = Vec::new();
        for directory in [host.plugins().to_owned(), REFERENCE.into()] {
            let call = behind(&one, "a", limits(rate, burst)).from(directory);
            let result = call.add().run(host)?.result().with_context(|| format!("{rate} {burst}"))?;
            let mut lines = qdiscs(host, one.host_link()?)?;
            lines.extend(qdiscs(host, text_at(last(&result)?, "/name")?)?);
            lines.push(format!("{:?}", redirected(host, one.host_link()?)?));
            found.push(lines);
            call.del().prev(&result).run(host)?.silence()?;
            // The reference leaves what is on the link to whoever deletes the link.
            for what in ["root", "ingress"] {
                host.try_run(&["tc", "qdisc", "del", "dev", one.host_link()?, what])?;
            }
        }
        equal(format!("{rate} {burst}"), &found[0], &found[1])?;
    }
    Ok(())
}

fn rates_of_more_than_32_bits(host: &Sandbox) -> Result<()> {
    // 10 Gbyte/s.
    let (one, call) = staged(host, "a", limits(80_000_000_000, 8_000_000_000))?;
    let result = call.add().run(host)?.result()?;
    let found = qdiscs(host, one.host_link()?)?.join("\n");
    contains("host link", &found, "rate 80Gbit burst 1000000000b")?;
    call.check().prev(&result).run(host)?.silence()
}

/// As containerd and CRI-O send them, and what becomes of the largest number when libcni has read it into a float.
fn bursts_that_overflow(host: &Sandbox) -> Result<()> {
    let (one, _) = staged(host, "a", json!({}))?;
    for burst in ["4294967295", "34359738359", "18446744073709551615", "18446744073709552000"] {
        let keys = format!(
            r#"{{"ingressRate":1000000,"ingressBurst":{burst},"egressRate":1000000,"egressBurst":{burst}}}"#
        );
        let more = json!({"runtimeConfig": {"bandwidth": serde_json::from_str::<Value>(&keys)?}});
        let call = behind(&one, "a", more);
        let result = call.add().run(host)?.result().with_context(|| burst.to_owned())?;
        for link in [one.host_link()?, text_at(last(&result)?, "/name")?] {
            let found = qdiscs(host, link)?.join("\n");
            // As much as a bucket holds: 2^32 ticks of 64 ns.
            contains(
                burst,
                &found,
                "rate 1Mbit burst 34359738b/1 mpu 0b [ffffffff] lat 25ms limit 34362863b",
            )?;
        }
        call.check().prev(&result).run(host)?.silence()?;
        call.del().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn results_of_all_versions(host: &Sandbox) -> Result<()> {
    for (id, version) in [("a", "0.3.0"), ("b", "0.3.1"), ("c", "0.4.0"), ("d", "1.0.0"), ("e", "1.1.0")] {
        let one = Attachment::new(host, id, with(gateway4(), json!({"cniVersion": version})))?;
        let call = behind(&one, id, limits(8_000_000, 800_000)).set("cniVersion", json!(version));
        let result = call.add().run(host)?.result().with_context(|| version.to_owned())?;
        equal("version", text_at(&result, "/cniVersion")?, version)?;
        equal("interfaces", list_at(&result, "/interfaces")?.len(), 4)?;
        call.del().prev(&result).run(host)?.silence()?;
    }
    let (_, call) = staged(host, "f", limits(8_000_000, 800_000))?;
    call.set("cniVersion", json!("0.2.0")).add().run(host)?.refused_with(1).map(drop)
}

fn a_pod_receives_at_its_rate(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", json!({"ingressRate": 8_000_000, "ingressBurst": 80_000}))?;
    call.add().run(host)?.result()?;
    rate::is(8_000_000, || rate::measure(host, &one.pod, one.address()?))
}

fn a_pod_sends_at_its_rate(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", json!({"egressRate": 16_000_000, "egressBurst": 160_000}))?;
    call.add().run(host)?.result()?;
    rate::is(16_000_000, || rate::measure(&one.pod, host, "10.20.0.1"))
}

/// Both limits of one pod, each with its own number, and a pod beside it.
fn other_pods_are_as_fast_as_ever(host: &Sandbox) -> Result<()> {
    let keys = json!({"ingressRate": 10_000_000, "ingressBurst": 100_000,
        "egressRate": 20_000_000, "egressBurst": 200_000});
    let (one, call) = staged(host, "a", keys)?;
    let (other, _) = staged(host, "b", json!({}))?;
    call.add().run(host)?.result()?;
    rate::is(10_000_000, || rate::measure(&other.pod, &one.pod, one.address()?))?;
    rate::is(20_000_000, || rate::measure(&one.pod, &other.pod, other.address()?))?;
    let free = rate::measure(host, &other.pod, other.address()?)?;
    holds(free > 24_000_000.0, format!("the other pod receives {free} bit/s"))
}

/// A pair of the pod that is not the first of the result, among links of the host that are not the pod's.
fn the_link_is_that_of_this_interface(host: &Sandbox) -> Result<()> {
    let (one, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    host.ip_set("link add other0 type veth peer name other1")?;
    let mut prev = one.result.clone();
    let list = prev["interfaces"].as_array_mut().context("interfaces")?;
    list.insert(0, json!({"name": "other0"}));
    list.insert(0, json!({"name": "other1"}));
    list.push(json!({"name": "eth0", "sandbox": "/run/netns/somebody"}));
    let result = call.prev(&prev).add().run(host)?.result()?;
    equal("interfaces", list_at(&result, "/interfaces")?.len(), 7)?;
    equal("disciplines of another", qdiscs(host, "other0")?.len() + qdiscs(host, "other1")?.len(), 0)?;
    equal("disciplines of the bridge", qdiscs(host, "cni0")?.len(), 0)?;
    equal("disciplines of the link", qdiscs(host, one.host_link()?)?.len(), 2)?;
    call.check().prev(&result).run(host)?.silence()
}

fn two_interfaces_of_a_container(host: &Sandbox) -> Result<()> {
    let (one, first) = staged(host, "a", limits(8_000_000, 800_000))?;
    let one_result = first.add().run(host)?.result()?;
    let second = one.call.ifname("net1").set("isDefaultGateway", json!(false));
    let second_bridge = second.add().run(host)?.result()?;
    let call = first.ifname("net1").config(with(
        json!({"cniVersion": USUAL, "name": "net", "type": "bandwidth", "prevResult": second_bridge}),
        limits(16_000_000, 800_000),
    ));
    let two_result = call.add().run(host)?.result()?;
    let (one_ifb, two_ifb) = (text_at(last(&one_result)?, "/name")?, text_at(last(&two_result)?, "/name")?);
    holds(one_ifb != two_ifb, format!("both have the link {one_ifb}"))?;
    let two_link = text_at(&second_bridge, "/interfaces/1/name")?;
    equal("first", redirected(host, one.host_link()?)?.as_deref(), Some(one_ifb))?;
    equal("second", redirected(host, two_link)?.as_deref(), Some(two_ifb))?;
    contains("first", &qdiscs(host, one_ifb)?.join("\n"), "rate 8Mbit")?;
    contains("second", &qdiscs(host, two_ifb)?.join("\n"), "rate 16Mbit")?;
    first.check().prev(&one_result).run(host)?.silence()?;
    call.check().prev(&two_result).run(host)?.silence()?;
    first.del().prev(&one_result).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?, BTreeSet::from([two_ifb.to_owned()]))?;
    call.check().prev(&two_result).run(host)?.silence()?;
    // Now that the usual name is free, the first comes back with it, and each is still found by its own.
    first.add().run(host)?.result()?;
    call.del().prev(&two_result).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?, BTreeSet::from([one_ifb.to_owned()]))?;
    first.check().prev(&one_result).run(host)?.silence()
}

/// The reference's hash has nothing between network and container.
fn containers_whose_names_run_together(host: &Sandbox) -> Result<()> {
    let (_, first) = staged(host, "ab", limits(8_000_000, 800_000))?;
    let second = Attachment::new(
        host,
        "b",
        with(
            gateway4(),
            json!({"name": "neta", "bridge": "cni1",
        "ipam": pool(&["10.21.0.0/24"])}),
        ),
    )?;
    let call = behind(&second, "b", limits(8_000_000, 800_000)).set("name", json!("neta"));
    let results = [first.add().run(host)?.result()?, call.add().run(host)?.result()?];
    equal("ifbs", ifbs(host)?.len(), 2)?;
    call.del().prev(&results[1]).run(host)?.silence()?;
    first.check().prev(&results[0]).run(host)?.silence()?;
    first.del().prev(&results[0]).run(host)?.silence()?;
    equal("ifbs", ifbs(host)?.len(), 0)
}
