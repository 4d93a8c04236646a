//! bridge: ADD that fails, ADD again, DEL in all its forms, many at once, and pods of the reference.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, bridge, gateway4, gateway46, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json, soon, text_at};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

cases! {
    "bridge/add" {
        a_taken_interface_name_is_an_error_and_nothing_changes;
        a_late_failure_leaves_nothing_on_a_new_host;
        a_late_failure_leaves_nothing_beside_other_pods;
        a_failing_masquerade_leaves_nothing;
        an_exhausted_range_leaves_nothing;
        an_answer_that_cannot_be_written_is_undone;
        add_again_gives_the_same_result;
        add_again_in_a_new_namespace_starts_anew;
        a_failed_add_does_not_burn_addresses;
    }
    "bridge/del" {
        del_restores_everything;
        del_restores_everything_with_nftables needs [Need::Nftables];
        del_without_previous_result;
        del_without_namespace;
        del_with_a_dangling_namespace;
        del_with_a_file_that_is_no_namespace;
        del_twice;
        del_of_what_was_never_added;
        del_leaves_the_interface_that_was_in_the_way needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        del_when_the_interface_is_gone;
        del_leaves_bridge_and_other_pods;
        del_when_the_bridge_is_gone;
        names_can_be_used_again_at_once;
        no_process_stays_behind;
    }
    "bridge/concurrency" {
        twenty_at_once_on_a_new_bridge;
        twenty_at_once_go_away;
        come_and_go_at_once;
    }
    "bridge/exchange" {
        we_remove_what_the_reference_added needs [Need::Reference("bridge"), Need::Reference("host-local")];
        we_remove_it_without_namespace needs [Need::Reference("bridge"), Need::Reference("host-local")];
        the_reference_removes_what_we_added needs [Need::Reference("bridge"), Need::Reference("host-local")];
        we_find_pods_of_the_reference_sound needs [Need::Reference("bridge"), Need::Reference("host-local")];
        the_reference_finds_our_pods_sound needs [Need::Reference("bridge"), Need::Reference("host-local")];
        both_work_on_one_bridge needs [Need::Reference("bridge"), Need::Reference("host-local")];
    }
}

/// The usual network in both families with masquerade.
fn full() -> Value {
    with(gateway46(), json!({"ipMasq": true}))
}

/// A pod that is there before, so that bridge, tables and base chains are no news.
fn warm(host: &Sandbox) -> Result<Attachment> {
    Attachment::new(host, "warm", full())
}

fn a_taken_interface_name_is_an_error_and_nothing_changes(host: &Sandbox) -> Result<()> {
    let _warm = warm(host)?;
    let pod = host.pod("a")?;
    // A bridge, because every kernel that can run the plugin can make one.
    pod.ip_set("link add eth0 type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = bridge("a", &pod, full()).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    before.restored(host, &[&pod])
}

/// A network on which ADD fails when the route is installed, after everything else.
fn failing_late() -> Value {
    let ipam = with(
        pool(&["10.20.0.0/24", "fd20::/64"]),
        json!({"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]}),
    );
    with(full(), json!({"ipam": ipam}))
}

fn fails_and_leaves_nothing(host: &Sandbox, call: &Call, pod: &Pod) -> Result<()> {
    let before = Snapshot::take(host, &[pod])?;
    call.add().run(host)?.refusal()?;
    before.restored(host, &[pod])
}

fn a_late_failure_leaves_nothing_on_a_new_host(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    fails_and_leaves_nothing(host, &bridge("a", &pod, with(failing_late(), json!({"ipMasq": false}))), &pod)
}

fn a_late_failure_leaves_nothing_beside_other_pods(host: &Sandbox) -> Result<()> {
    let warm = warm(host)?;
    let pod = host.pod("a")?;
    fails_and_leaves_nothing(host, &bridge("a", &pod, failing_late()), &pod)?;
    warm.sound(host).context("the other pod")
}

fn a_failing_masquerade_leaves_nothing(host: &Sandbox) -> Result<()> {
    let _warm = warm(host)?;
    let pod = host.pod("a")?;
    host.scratch("bin/nothing", "")?;
    let call = bridge("a", &pod, with(full(), json!({"ipMasqBackend": "iptables"})));
    let call = call.env("PATH", "/run/scratch/bin");
    let before = Snapshot::take(host, &[&pod])?;
    let answer = call.add().run(host)?;
    if answer.status() == Some(0) {
        // It needs no program for its rules, so there was nothing to fail.
        call.del().run(host)?.silence()?;
    } else {
        contains("the error", &answer.refusal()?.text(), "iptables")?;
    }
    before.restored(host, &[&pod])
}

fn an_exhausted_range_leaves_nothing(host: &Sandbox) -> Result<()> {
    let network = with(full(), json!({"ipam": pool(&["10.20.0.0/30"])}));
    Attachment::new(host, "a", network.clone())?;
    let pod = host.pod("b")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = bridge("b", &pod, network).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "no IP addresses available in range set: 10.20.0.1-10.20.0.2")?;
    before.restored(host, &[&pod])
}

fn an_answer_that_cannot_be_written_is_undone(host: &Sandbox) -> Result<()> {
    let _warm = warm(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let script = "CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_IFNAME=eth0 CNI_NETNS=\"$1\" CNI_PATH=\"$2\" exec \"$0\" >/dev/full";
    let config =
        with(full(), json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "cni0"}));
    let plugin = host.plugins().join("bridge");
    let argv =
        ["sh", "-c", script, &plugin.to_string_lossy(), pod.netns(), &host.plugins().to_string_lossy()];
    let finished = host.run_with_input(&argv, config.to_string().as_bytes())?;
    if finished.status.success() {
        bail!("ADD succeeds although its result cannot be written");
    }
    before.restored(host, &[&pod])
}

fn add_again_gives_the_same_result(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    let again = one.call.add().run(host)?.result()?;
    same_json("result", &again, &one.result)?;
    before.restored(host, &[&one.pod])?;
    one.sound(host)
}

fn add_again_in_a_new_namespace_starts_anew(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    one.pod.remove()?;
    let pod = host.pod("b")?;
    let call = one.call.netns(&pod);
    let result = call.add().run(host)?.result()?;
    equal("leases", host.leases("net")?.len(), 2)?;
    soon(|| equal("ports", host.ip("link show master cni0")?.len(), 1))?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn a_failed_add_does_not_burn_addresses(host: &Sandbox) -> Result<()> {
    let network = with(failing_late(), json!({"ipMasq": false}));
    for number in 0..3 {
        let pod = host.pod(&format!("p{number}"))?;
        bridge(&format!("box{number}"), &pod, network.clone()).add().run(host)?.refusal()?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

/// ADD, then DEL as the closure calls it; everything must be as before, the pod included if it is still there.
fn restored_by(
    host: &Sandbox,
    network: Value,
    del: impl FnOnce(&Sandbox, Attachment) -> Result<Option<Pod>>,
) -> Result<()> {
    let _warm = Attachment::new(host, "warm", network.clone())?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let without_pod = Snapshot::take(host, &[])?;
    let call = bridge("a", &pod, network);
    let result = call.add().run(host)?.result()?;
    match del(host, Attachment { pod, call, result })? {
        Some(pod) => before.restored(host, &[&pod]),
        None => without_pod.restored(host, &[]),
    }
}

fn del_restores_everything(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| one.del(host).map(|()| Some(one.pod)))
}

fn del_restores_everything_with_nftables(host: &Sandbox) -> Result<()> {
    let network = with(full(), json!({"ipMasqBackend": "nftables"}));
    restored_by(host, network, |host, one| one.del(host).map(|()| Some(one.pod)))
}

fn del_without_previous_result(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| {
        one.call.del().run(host)?.silence()?;
        Ok(Some(one.pod))
    })
}

fn del_without_namespace(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| {
        one.call.without("CNI_NETNS").del().run(host)?.silence()?;
        Ok(Some(one.pod))
    })
}

fn del_with_a_dangling_namespace(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| {
        one.pod.remove()?;
        one.call.del().run(host)?.silence()?;
        Ok(None)
    })
}

fn del_with_a_file_that_is_no_namespace(host: &Sandbox) -> Result<()> {
    // What a crash leaves: the mount is gone, the file is still there.
    restored_by(host, full(), |host, one| {
        let path = one.pod.path().to_owned();
        one.pod.remove()?;
        fs::write(&path, "")?;
        let outcome = one.call.del().run(host)?.silence();
        fs::remove_file(&path)?;
        outcome.map(|()| None)
    })
}

fn del_twice(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| {
        one.del(host)?;
        one.del(host).context("second DEL")?;
        one.call.without("CNI_NETNS").del().run(host)?.silence().context("third DEL")?;
        Ok(Some(one.pod))
    })
}

fn del_of_what_was_never_added(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    bridge("a", &pod, full()).del().run(host)?.silence()?;
    before.restored(host, &[&pod])
}

fn del_leaves_the_interface_that_was_in_the_way(host: &Sandbox) -> Result<()> {
    // A runtime follows the ADD that failed by a DEL.
    let one = Attachment::new(host, "a", full())?;
    one.pod.ip_set("link add br0 type bridge")?;
    let before = Snapshot::take(host, &[&one.pod])?;
    for plugin in ["bridge", "ptp"] {
        for name in ["eth0", "br0", "lo"] {
            let config = json!({"cniVersion": "1.0.0", "name": "second", "type": plugin, "ipam": pool(&["10.66.0.0/24"])});
            let second = Call::new(plugin).id("a").ifname(name).netns(&one.pod).config(config);
            let refusal = second.add().run(host)?.refusal()?;
            contains(format!("ADD of {plugin}"), &refusal.text(), name)?;
            second.del().run(host)?.silence().with_context(|| format!("DEL of {plugin}, {name}"))?;
            before.restored(host, &[&one.pod]).with_context(|| format!("{plugin}, {name}"))?;
        }
    }
    one.sound(host)?;
    // Without records, the other end of the pair says whose it is.
    host.run(&["rm", "-r", "/run/bridgehead"])?;
    let before = Snapshot::take(host, &[&one.pod])?;
    for plugin in ["bridge", "ptp"] {
        let config =
            json!({"cniVersion": "1.0.0", "name": "second", "type": plugin, "ipam": pool(&["10.66.0.0/24"])});
        let second = Call::new(plugin).id("a").ifname("eth0").netns(&one.pod).config(config);
        second.del().run(host)?.silence()?;
        before.restored(host, &[&one.pod]).with_context(|| format!("DEL of {plugin} without records"))?;
    }
    one.sound(host)
}

fn del_when_the_interface_is_gone(host: &Sandbox) -> Result<()> {
    restored_by(host, full(), |host, one| {
        one.pod.ip_set("link del eth0")?;
        one.del(host)?;
        Ok(Some(one.pod))
    })
}

fn del_leaves_bridge_and_other_pods(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    let two = Attachment::new(host, "b", full())?;
    one.del(host)?;
    host.need_link("cni0")?;
    two.sound(host)?;
    two.pod.ping("10.20.0.1")
}

fn del_when_the_bridge_is_gone(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    host.ip_set("link del cni0")?;
    one.del(host)?;
    equal("links in the pod", one.pod.link_names()?, ["lo"])?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn names_can_be_used_again_at_once(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    let mut host_link = one.host_link()?.to_owned();
    for round in 0..5 {
        one.call.del().run(host)?.silence()?;
        equal(format!("links in the pod after DEL {round}"), one.pod.link_names()?, ["lo"])?;
        holds(host.link(&host_link)?.is_none(), format!("{host_link} is still there after DEL {round}"))?;
        let result = one.call.add().run(host)?.result().with_context(|| format!("ADD {round}"))?;
        host_link = text_at(&result, "/interfaces/1/name")?.to_owned();
    }
    Ok(())
}

fn no_process_stays_behind(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", full())?;
    soon(|| equal("processes after ADD", host.processes()?, Vec::<String>::new()))?;
    one.del(host)?;
    soon(|| equal("processes after DEL", host.processes()?, Vec::<String>::new()))
}

fn many(host: &Sandbox, count: usize) -> Result<Vec<(Pod, Call)>> {
    (0..count)
        .map(|number| {
            let pod = host.pod(&format!("p{number}"))?;
            let call = bridge(&format!("box{number}"), &pod, full());
            Ok((pod, call))
        })
        .collect()
}

fn twenty_at_once_on_a_new_bridge(host: &Sandbox) -> Result<()> {
    let pods = many(host, 20)?;
    let started = pods.iter().map(|(_, call)| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let mut results = Vec::new();
    for one in started {
        results.push(one.answer(host)?.result()?);
    }
    let mut addresses = Vec::new();
    let mac = host.need_link("cni0")?["address"].clone();
    for ((pod, call), result) in pods.iter().zip(&results) {
        addresses.push(text_at(result, "/ips/0/address")?.to_owned());
        same_json("mac of the bridge", &result["interfaces"][0]["mac"], &mac)?;
        call.check().prev(result).run(host)?.silence().with_context(|| pod.netns().to_owned())?;
    }
    addresses.sort();
    addresses.dedup();
    equal("different addresses", addresses.len(), 20)?;
    let mut gateways = host.addresses("cni0")?;
    gateways.sort();
    equal("gateways", gateways, ["10.20.0.1/24", "fd20::1/64"])?;
    equal("ports", host.ip("link show master cni0")?.len(), 20)?;
    let (first, _) = &pods[0];
    first.ping("10.20.0.1")?;
    first.ping(text_at(&results[19], "/ips/0/address")?.trim_end_matches("/24"))
}

fn twenty_at_once_go_away(host: &Sandbox) -> Result<()> {
    let _warm = warm(host)?;
    let pods = many(host, 20)?;
    let names: Vec<&Pod> = pods.iter().map(|(pod, _)| pod).collect();
    let before = Snapshot::take(host, &names)?;
    for (_, call) in &pods {
        call.add().run(host)?.result()?;
    }
    let started = pods.iter().map(|(_, call)| call.del().start(host)).collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    before.restored(host, &names)
}

fn come_and_go_at_once(host: &Sandbox) -> Result<()> {
    let _warm = warm(host)?;
    let pods = many(host, 8)?;
    let names: Vec<&Pod> = pods.iter().map(|(pod, _)| pod).collect();
    let before = Snapshot::take(host, &names)?;
    let (even, odd): (Vec<_>, Vec<_>) = pods.iter().enumerate().partition(|(index, _)| index % 2 == 0);
    for (_, (_, call)) in &even {
        call.add().run(host)?.result()?;
    }
    for _ in 0..2 {
        for (going, coming) in [(&even, &odd), (&odd, &even)] {
            let mut started = Vec::new();
            for ((_, (_, del)), (_, (_, add))) in going.iter().zip(coming) {
                started.push((false, del.del().start(host)?));
                started.push((true, add.add().start(host)?));
            }
            for (adds, one) in started {
                let answer = one.answer(host)?;
                if adds { answer.result().map(drop)? } else { answer.silence()? }
            }
        }
    }
    for (_, (_, call)) in &even {
        call.del().run(host)?.silence()?;
    }
    before.restored(host, &names)
}

fn by_reference(call: &Call) -> Call {
    call.from(REFERENCE)
}

/// ADD by the first, DEL by the second; gives whether everything is as before.
fn exchanged(host: &Sandbox, add: impl Fn(&Call) -> Call, del: impl Fn(&Call) -> Call) -> Result<()> {
    let pod = host.pod("w")?;
    add(&bridge("warm", &pod, full())).add().run(host)?.result()?;
    for id in ["a", "b"] {
        let pod = host.pod(id)?;
        let before = Snapshot::take(host, &[&pod])?;
        let call = bridge(id, &pod, full());
        let result = add(&call).add().run(host)?.result()?;
        del(&call).del().prev(&result).run(host)?.silence()?;
        before.restored(host, &[&pod])?;
    }
    Ok(())
}

fn we_remove_what_the_reference_added(host: &Sandbox) -> Result<()> {
    exchanged(host, by_reference, Clone::clone)
}

fn we_remove_it_without_namespace(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"ipMasq": true}));
    let pod = host.pod("w")?;
    bridge("warm", &pod, network.clone()).from(REFERENCE).add().run(host)?.result()?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[])?;
    let call = bridge("a", &pod, network);
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    pod.remove()?;
    call.del().prev(&result).run(host)?.silence()?;
    before.restored(host, &[])
}

fn the_reference_removes_what_we_added(host: &Sandbox) -> Result<()> {
    // Files below /run are ours alone; the reference cannot know them, and they end with the next boot.
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, full());
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).del().prev(&result).run(host)?.silence()?;
    equal("links in the pod", pod.link_names()?, ["lo"])?;
    equal("leases", host.leases("net")?, Vec::<String>::new())?;
    let rules = host.run(&["nft", "-s", "list", "ruleset"])?;
    holds(!rules.contains("10.20.0.2") && !rules.contains("fd20::2"), format!("rules are left:\n{rules}"))?;
    // And what is left does not disturb the next.
    let next = Attachment::new(host, "b", full())?;
    next.sound(host)?;
    let again = call.add().run(host)?.result().context("the same attachment again")?;
    call.check().prev(&again).run(host)?.silence()
}

fn we_find_pods_of_the_reference_sound(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, full());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()
}

fn the_reference_finds_our_pods_sound(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, full());
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).check().prev(&result).run(host)?.silence()
}

fn both_work_on_one_bridge(host: &Sandbox) -> Result<()> {
    let (one, two) = (host.pod("a")?, host.pod("b")?);
    let ours = bridge("a", &one, full());
    let theirs = bridge("b", &two, full()).from(REFERENCE);
    ours.add().run(host)?.result()?;
    theirs.add().run(host)?.result()?;
    one.ping("10.20.0.3")?;
    two.ping("fd20::2")?;
    equal("ports", host.ip("link show master cni0")?.len(), 2)
}
