//! DEL and GC, and pods of the reference.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Attached, full, one_family, ptp, two_families};
use crate::cases::networks::{NEWEST, with};
use crate::expect::{equal, holds, lacks, text_at};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

/// What stays on a host that has had a pod: forwarding, base chains.
fn tidy(host: &Sandbox, network: &Value) -> Result<Snapshot> {
    let first = Attached::new(host, "first", network.clone())?;
    first.del(host)?;
    first.pod.remove()?;
    Snapshot::take(host, &[])
}

fn back_ends() -> [Value; 2] {
    [json!({"ipMasqBackend": "iptables"}), json!({"ipMasqBackend": "nftables"})]
}

pub(super) fn del_restores_everything(host: &Sandbox) -> Result<()> {
    for (index, back_end) in back_ends().into_iter().enumerate() {
        let network = with(full(), back_end);
        let before = tidy(host, &network)?;
        let one = Attached::new(host, &format!("a{index}"), network)?;
        one.del(host)?;
        before.restored(host, &[])?;
        equal("links in the pod", one.pod.link_names()?, ["lo"])?;
    }
    Ok(())
}

pub(super) fn del_twice_and_of_what_was_never_added(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", one_family())?;
    one.del(host)?;
    one.del(host)?;
    let pod = host.pod("b")?;
    ptp("b", &pod, one_family()).del().run(host)?.silence()?;
    ptp("b", &pod, full()).del().run(host)?.silence()
}

pub(super) fn del_without_previous_result(host: &Sandbox) -> Result<()> {
    let before = tidy(host, &full())?;
    let one = Attached::new(host, "a", full())?;
    one.call.del().run(host)?.silence()?;
    before.restored(host, &[])
}

pub(super) fn del_without_namespace(host: &Sandbox) -> Result<()> {
    for (index, back_end) in back_ends().into_iter().enumerate() {
        let network = with(full(), back_end);
        let before = tidy(host, &network)?;
        let one = Attached::new(host, &format!("a{index}"), network)?;
        one.call.without("CNI_NETNS").del().run(host)?.silence()?;
        before.restored(host, &[])?;
    }
    Ok(())
}

pub(super) fn del_with_a_dangling_namespace(host: &Sandbox) -> Result<()> {
    let before = tidy(host, &full())?;
    let one = Attached::new(host, "a", full())?;
    one.pod.remove()?;
    one.call.del().run(host)?.silence()?;
    before.restored(host, &[])
}

pub(super) fn gc_removes_who_is_not_valid(host: &Sandbox) -> Result<()> {
    let network = with(full(), json!({"cniVersion": NEWEST}));
    let one = Attached::new(host, "a", network.clone())?;
    let two = Attached::new(host, "b", network)?;
    let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
    let gc = one.call.set("cni.dev/valid-attachments", valid).gc();
    gc.run(host)?.silence()?;
    holds(host.link(one.host_link()?)?.is_none(), "the link of the first is there")?;
    equal("addresses", host.leases("net")?, ["10.20.0.3", "fd20::3"])?;
    lacks("rules", &host.run(&["nft", "-s", "list", "ruleset"])?, "10.20.0.2")?;
    two.sound(host)?;
    // Without its record it is known by its alias.
    host.run(&["rm", "-rf", "/run/bridgehead/attachments"])?;
    two.call.set("cni.dev/valid-attachments", json!([])).gc().run(host)?.silence()?;
    holds(host.link(two.host_link()?)?.is_none(), "the link of the second is there")?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn forty_at_once_come_and_go(host: &Sandbox) -> Result<()> {
    const PODS: usize = 40;
    let before = tidy(host, &full())?;
    let calls = (0..PODS)
        .map(|n| {
            let pod = host.pod(&format!("x{n}"))?;
            Ok((ptp(&format!("x{n}"), &pod, full()), pod))
        })
        .collect::<Result<Vec<_>>>()?;
    let started = calls.iter().map(|(call, _)| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let results = started.into_iter().map(|it| it.answer(host)?.result()).collect::<Result<Vec<_>>>()?;
    equal("addresses", host.leases("net")?.len(), 2 * PODS)?;
    for ((call, _), result) in calls.iter().zip(&results) {
        call.check().prev(result).run(host)?.silence()?;
    }
    let address = text_at(&results[PODS - 1], "/ips/0/address")?.split('/').next().unwrap_or_default();
    calls[0].1.ping(address)?;
    let started = calls
        .iter()
        .zip(&results)
        .map(|((call, _), result)| call.del().prev(result).start(host))
        .collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    before.restored(host, &[])
}

pub(super) fn we_remove_what_the_reference_added(host: &Sandbox) -> Result<()> {
    let pod = host.pod("warm")?;
    let warm = ptp("warm", &pod, full()).from(REFERENCE);
    let result = warm.add().run(host)?.result()?;
    warm.del().prev(&result).run(host)?.silence()?;
    let before = Snapshot::take(host, &[])?;
    for (id, with_netns) in [("a", true), ("b", false)] {
        let pod = host.pod(id)?;
        let call = ptp(id, &pod, full());
        let result = call.from(REFERENCE).add().run(host)?.result()?;
        let del = if with_netns { call.del().prev(&result) } else { call.del().without("CNI_NETNS") };
        del.run(host)?.silence()?;
        if !with_netns {
            // The kernel takes the link when the namespace goes; the rest is ours to find.
            pod.ip_set("link del eth0")?;
        }
        before.restored(host, &[])?;
    }
    Ok(())
}

pub(super) fn the_reference_removes_what_we_added(host: &Sandbox) -> Result<()> {
    let network = with(full(), json!({"ipMasqBackend": "iptables"}));
    tidy(host, &network)?;
    let before = host.run(&["iptables", "-w", "-t", "nat", "-S"])?;
    let one = Attached::new(host, "a", network)?;
    one.call.from(REFERENCE).del().prev(&one.result).run(host)?.silence()?;
    holds(host.link(one.host_link()?)?.is_none(), "the link is there")?;
    equal("rules", host.run(&["iptables", "-w", "-t", "nat", "-S"])?, before)?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn both_find_the_others_pods_sound(host: &Sandbox) -> Result<()> {
    let ours = Attached::new(host, "a", two_families())?;
    ours.call.from(REFERENCE).check().prev(&ours.result).run(host)?.silence()?;
    let pod = host.pod("b")?;
    let call = ptp("b", &pod, two_families());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()
}
