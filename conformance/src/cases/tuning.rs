//! The plugin `tuning`: attributes of the pod's interface, and sysctls.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, USUAL, gateway4, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

const TUNING: Need = Need::Plugin("tuning");
/// What only this suite does.
const TOOL: Need = Need::Plugin("bridgehead");

/// Where the file is that says what a link was.
pub(super) const BACKUP: &str = "/run/cni/tuning/c1_eth0.json";

cases! {
    "tuning/link" {
        each_attribute_is_set_checked_and_restored needs [TUNING];
        arguments_beat_the_configuration needs [TUNING];
        a_mac_can_be_asked_for_in_four_ways needs [TUNING];
        the_result_has_the_new_mac_and_mtu needs [TUNING, TOOL];
        a_host_link_of_the_same_name_is_not_meant needs [TUNING, TOOL];
        nothing_is_written_without_a_reason needs [TUNING];
        the_backup_is_the_reference_s needs [TUNING];
        another_directory_can_be_chosen needs [TUNING];
        what_the_reference_left_is_restored needs [TUNING, Need::Reference("tuning")];
        the_reference_restores_what_we_left needs [TUNING, Need::Reference("tuning")];
    }
    "tuning/lifecycle" {
        without_a_previous_result_it_is_refused needs [TUNING];
        a_failed_add_leaves_nothing needs [TUNING, TOOL];
        add_again_is_the_same needs [TUNING, TOOL];
        two_entries_of_a_chain_work_both needs [TUNING, TOOL];
        a_failed_second_entry_leaves_the_first needs [TUNING, TOOL];
        del_works_whatever_is_missing needs [TUNING];
        del_deletes_the_backup_of_a_vanished_link needs [TUNING, TOOL];
        wrong_values_are_named needs [TUNING, TOOL];
        status_and_gc_are_silent needs [TUNING];
        it_works_behind_a_bridge needs [TUNING];
        a_whole_chain_added_again_is_the_same needs [TUNING, TOOL];
    }
}

/// A pod with a link as another plugin would have made it.
pub(super) fn pod(host: &Sandbox) -> Result<Pod> {
    let pod = host.pod("p")?;
    host.ip_set("link add hostside type veth peer name eth0 address 02:00:00:00:00:05 netns p")?;
    pod.ip_set("addr add 10.1.0.5/24 dev eth0")?;
    pod.ip_set("link set eth0 up")?;
    Ok(pod)
}

pub(super) fn prev(pod: &Pod) -> Value {
    json!({
        "cniVersion": USUAL,
        "interfaces": [
            {"name": "hostside", "mac": "02:00:00:00:00:04"},
            {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": pod.netns()},
        ],
        "ips": [{"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
    })
}

pub(super) fn tuning(pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "tuning", "prevResult": prev(pod)});
    Call::new("tuning").id("c1").ifname("eth0").netns(pod).config(with(config, more))
}

/// The attributes that can be tuned.
fn state(pod: &Pod) -> Result<Value> {
    let link = pod.need_link("eth0")?;
    let has = |flag: &str| link["flags"].as_array().is_some_and(|flags| flags.iter().any(|it| it == flag));
    Ok(json!({
        "mac": link["address"], "mtu": link["mtu"], "txqlen": link["txqlen"],
        "promisc": has("PROMISC"), "allmulti": has("ALLMULTI"), "up": has("UP"),
    }))
}

fn each_attribute_is_set_checked_and_restored(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    for (keys, attribute, wanted, spoil) in [
        (json!({"mac": "02:00:00:00:00:09"}), "mac", json!("02:00:00:00:00:09"), "address 02:00:00:00:00:0a"),
        (json!({"mtu": 1400}), "mtu", json!(1400), "mtu 1399"),
        (json!({"promisc": true}), "promisc", json!(true), "promisc off"),
        (json!({"allmulti": true}), "allmulti", json!(true), "allmulticast off"),
        (json!({"txQLen": 77}), "txqlen", json!(77), "txqueuelen 78"),
        (json!({"txQLen": 0}), "txqlen", Value::Null, "txqueuelen 79"),
    ] {
        let call = tuning(&pod, keys.clone());
        let result = call.add().run(host)?.result().with_context(|| format!("ADD with {keys}"))?;
        let mut changed = before.clone();
        changed[attribute] = wanted;
        let found = state(&pod)?;
        if attribute != "txqlen" || changed[attribute] != Value::Null {
            same_json(format!("the link with {keys}"), &found, &changed)?;
        }
        call.check().prev(&result).run(host)?.silence().with_context(|| format!("CHECK with {keys}"))?;
        pod.ip_set(&format!("link set eth0 {spoil}"))?;
        let text = call.check().prev(&result).run(host)?.refusal()?.text();
        contains("CHECK", &text, "eth0").or_else(|_| contains("CHECK", &text, "rror"))?;
        call.del().prev(&result).run(host)?.silence()?;
        same_json(format!("the link after DEL with {keys}"), &state(&pod)?, &before)?;
    }
    Ok(())
}

fn arguments_beat_the_configuration(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let cni = json!({"mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 44});
    let keys = json!({"mtu": 1400, "promisc": false, "allmulti": false, "txQLen": 33, "args": {"cni": cni}});
    let call = tuning(&pod, keys);
    let result = call.add().run(host)?.result()?;
    let found = state(&pod)?;
    for (attribute, wanted) in
        [("mtu", json!(1300)), ("txqlen", json!(44)), ("promisc", json!(true)), ("allmulti", json!(true))]
    {
        same_json(attribute, &found[attribute], &wanted)?;
    }
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)
}

fn a_mac_can_be_asked_for_in_four_ways(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let mac = "02:00:00:00:00:aa";
    for call in [
        tuning(&pod, json!({"mac": mac})),
        tuning(&pod, json!({"mac": "02:00:00:00:00:01"})).args(&format!("IgnoreUnknown=1;MAC={mac}")),
        tuning(&pod, json!({"mac": "02:00:00:00:00:01", "args": {"cni": {"mac": mac}}}))
            .args("MAC=02:00:00:00:00:02"),
        tuning(&pod, json!({"mac": "02:00:00:00:00:01", "runtimeConfig": {"mac": mac}}))
            .args("MAC=02:00:00:00:00:02"),
    ] {
        let result = call.add().run(host)?.result()?;
        same_json("MAC address", &state(&pod)?["mac"], &json!(mac))?;
        equal("MAC address of the result", text_at(&result, "/interfaces/1/mac")?, mac)?;
        call.del().prev(&result).run(host)?.silence()?;
        same_json("MAC address after DEL", &state(&pod)?["mac"], &json!("02:00:00:00:00:05"))?;
    }
    Ok(())
}

fn the_result_has_the_new_mac_and_mtu(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let keys = json!({"mac": "02:00:00:00:00:09", "mtu": 1400});
    let mut wanted = prev(&pod);
    wanted["interfaces"][1]["mac"] = json!("02:00:00:00:00:09");
    let call = tuning(&pod, keys);
    same_json("result of 1.0.0", &call.add().run(host)?.result()?, &wanted)?;
    wanted["cniVersion"] = json!(NEWEST);
    wanted["interfaces"][1]["mtu"] = json!(1400);
    let newest = call.set("cniVersion", json!(NEWEST)).id("c2");
    let result = newest.add().run(host)?.result()?;
    same_json("result of 1.1.0", &result, &wanted)?;
    // A later plugin may have changed them again, and says so in its result.
    pod.ip_set("link set eth0 mtu 1350 address 02:00:00:00:00:0b")?;
    wanted["interfaces"][1]["mtu"] = json!(1350);
    wanted["interfaces"][1]["mac"] = json!("02:00:00:00:00:0b");
    newest.check().prev(&wanted).run(host)?.silence()
}

fn a_host_link_of_the_same_name_is_not_meant(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let mut before = prev(&pod);
    before["interfaces"][0] = json!({"name": "eth0", "mac": "02:00:00:00:00:04"});
    let result = tuning(&pod, json!({"mac": "02:00:00:00:00:09"})).prev(&before).add().run(host)?.result()?;
    equal("MAC of the host's link", text_at(&result, "/interfaces/0/mac")?, "02:00:00:00:00:04")?;
    equal("MAC of the pod's link", text_at(&result, "/interfaces/1/mac")?, "02:00:00:00:00:09")
}

fn nothing_is_written_without_a_reason(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let call = tuning(&pod, json!({"promisc": false, "mtu": 0, "mac": ""}));
    let result = call.add().run(host)?.result()?;
    same_json("result", &result, &prev(&pod))?;
    same_json("the link", &state(&pod)?, &before)?;
    holds(!Path::new(BACKUP).exists(), "there is a backup of nothing")?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()
}

fn the_backup_is_the_reference_s(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call =
        tuning(&pod, json!({"mac": "02:00:00:00:00:09", "mtu": 1400, "promisc": true, "allmulti": true}));
    call.add().run(host)?.result()?;
    let backup: Value = serde_json::from_str(&fs::read_to_string(BACKUP)?)?;
    for (key, wanted) in [
        ("mac", json!("02:00:00:00:00:05")),
        ("mtu", json!(1500)),
        ("promisc", json!(false)),
        ("allmulti", json!(false)),
        ("txQLen", Value::Null),
    ] {
        same_json(key, &backup[key], &wanted)?;
    }
    call.del().run(host)?.silence()?;
    holds(!Path::new(BACKUP).exists(), "the backup is there after DEL")
}

fn another_directory_can_be_chosen(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let call = tuning(&pod, json!({"mtu": 1400, "dataDir": "/run/elsewhere/deep"}));
    call.add().run(host)?.result()?;
    let backup = Path::new("/run/elsewhere/deep/c1_eth0.json");
    holds(backup.exists(), "there is no backup in dataDir")?;
    holds(!Path::new(BACKUP).exists(), "there is a backup where none was asked for")?;
    call.del().run(host)?.silence()?;
    holds(!backup.exists(), "the backup is there after DEL")?;
    same_json("the link after DEL", &state(&pod)?, &before)
}

fn everything() -> Value {
    json!({"mac": "02:00:00:00:00:09", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 5})
}

fn what_the_reference_left_is_restored(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    // Debian 12's does not restore the queue.
    let call = tuning(&pod, with(everything(), json!({"txQLen": null})));
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.del().prev(&result).run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)?;
    holds(!Path::new(BACKUP).exists(), "the backup is there after DEL")
}

fn the_reference_restores_what_we_left(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    // Debian 12's does not restore the queue.
    let call = tuning(&pod, with(everything(), json!({"txQLen": null})));
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).del().prev(&result).run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)?;
    holds(!Path::new(BACKUP).exists(), "the backup is there after DEL")?;
    call.del().prev(&result).run(host)?.silence()?;
    same_json("the link after both", &state(&pod)?, &before)
}

fn without_a_previous_result_it_is_refused(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "tuning", "mtu": 1400});
    let call = tuning(&pod, json!({})).config(config);
    for call in [call.add(), call.check()] {
        contains("message", &call.run(host)?.refusal()?.text(), "prevResult")?;
    }
    same_json("MTU", &state(&pod)?["mtu"], &json!(1500))?;
    call.del().run(host)?.silence()
}

fn a_failed_add_leaves_nothing(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = Snapshot::take(host, &[&pod])?;
    let was = state(&pod)?;
    let sysctls = json!({"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.arp_ignore": "1"});
    // More than a veth can have, found out by the kernel when the rest is done.
    let call = tuning(&pod, with(everything(), json!({"mtu": 65536, "sysctl": sysctls})));
    let refusal = call.add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "MTU")?;
    same_json("the link", &state(&pod)?, &was)?;
    for key in ["arp_filter", "arp_ignore"] {
        equal(key, pod.sysctl(&format!("ipv4/conf/eth0/{key}"))?, "0")?;
    }
    before.restored(host, &[&pod])?;
    // A value that the kernel refuses, after one that it took.
    let sysctls = json!({"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.arp_ignore": "many"});
    let refusal =
        tuning(&pod, with(everything(), json!({"sysctl": sysctls}))).add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "arp_ignore")?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "0")?;
    let missing = tuning(&pod, with(everything(), json!({"sysctl": {"net.ipv4.nothing": "1"}})));
    contains("message", &missing.add().run(host)?.refused_with(100)?.text(), "net.ipv4.nothing")?;
    before.restored(host, &[&pod])?;
    // A link that is not there.
    let refusal = call.ifname("eth9").add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "eth9")?;
    before.restored(host, &[&pod])
}

fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let call = tuning(&pod, everything());
    let first = call.add().run(host)?.result()?;
    let tuned = state(&pod)?;
    same_json("second result", &call.add().run(host)?.result()?, &first)?;
    pod.ip_set("link set eth0 mtu 1450")?;
    same_json("third result", &call.add().run(host)?.result()?, &first)?;
    same_json("the link", &state(&pod)?, &tuned)?;
    call.del().prev(&first).run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)
}

fn two_entries_of_a_chain_work_both(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let (clean, before) = (Snapshot::take(host, &[&pod])?, state(&pod)?);
    let (one, two) = (
        tuning(&pod, json!({"mtu": 1400, "txQLen": 7})),
        tuning(&pod, json!({"mtu": 1300, "promisc": true})),
    );
    for _ in 0..2 {
        let first = one.add().run(host)?.result()?;
        let second = two.add().prev(&first).run(host)?.result()?;
        let found = state(&pod)?;
        same_json("MTU", &found["mtu"], &json!(1300))?;
        same_json("queue", &found["txqlen"], &json!(7))?;
        same_json("promiscuous", &found["promisc"], &json!(true))?;
        two.check().prev(&second).run(host)?.silence()?;
    }
    let backup: Value = serde_json::from_str(&fs::read_to_string(BACKUP)?)?;
    same_json("MTU of the backup", &backup["mtu"], &json!(1500))?;
    two.del().run(host)?.silence()?;
    one.del().run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)?;
    clean.restored(host, &[&pod])
}

fn a_failed_second_entry_leaves_the_first(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let one = tuning(&pod, json!({"mtu": 1400, "txQLen": 7}));
    let first = one.add().run(host)?.result()?;
    let (tuned, backup) = (state(&pod)?, fs::read_to_string(BACKUP)?);
    let two = tuning(&pod, json!({"mtu": 65536, "promisc": true})).prev(&first);
    two.add().run(host)?.refused_with(100)?;
    same_json("the link", &state(&pod)?, &tuned)?;
    equal("the backup", fs::read_to_string(BACKUP)?, backup)?;
    two.del().run(host)?.silence()?;
    one.del().run(host)?.silence()?;
    same_json("the link after DEL", &state(&pod)?, &before)
}

fn del_works_whatever_is_missing(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    let call = tuning(&pod, everything());
    call.del().run(host)?.silence().context("before any ADD")?;
    call.add().run(host)?.result()?;
    let plain = json!({"cniVersion": USUAL, "name": "net", "type": "tuning"});
    call.config(plain).del().run(host)?.silence().context("without prevResult")?;
    same_json("the link after DEL", &state(&pod)?, &before)?;
    call.del().run(host)?.silence().context("again")?;
    call.add().run(host)?.result()?;
    call.without("CNI_NETNS").del().run(host)?.silence().context("without CNI_NETNS")?;
    pod.ip_set("link del eth0")?;
    call.del().run(host)?.silence().context("without the link")?;
    pod.remove()?;
    call.del().run(host)?.silence().context("without the namespace")
}

fn del_deletes_the_backup_of_a_vanished_link(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = tuning(&pod, everything());
    for way in 0..3 {
        if way > 0 {
            host.ip_set("link add hostside type veth peer name eth0 netns p")?;
        }
        call.add().run(host)?.result()?;
        holds(Path::new(BACKUP).exists(), "there is no backup")?;
        pod.ip_set("link del eth0")?;
        match way {
            0 => {}
            // Nobody remembers it, as after an ADD of the reference.
            1 => fs::remove_dir_all("/run/bridgehead")?,
            _ => drop(fs::write(BACKUP, "garbage")),
        }
        call.del().run(host)?.silence()?;
        holds(!Path::new(BACKUP).exists(), "the backup is there after DEL")?;
    }
    Ok(())
}

fn wrong_values_are_named(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let before = state(&pod)?;
    for (keys, code, word) in [
        (json!({"mac": "no"}), 7, "mac"),
        (json!({"mac": "ff:ff:ff:ff:ff:ff"}), 7, "ff:ff:ff:ff:ff:ff"),
        (json!({"mtu": -5}), 7, "-5"),
        (json!({"mtu": "1400"}), 6, "mtu"),
        (json!({"txQLen": -1}), 7, "txQLen"),
        (json!({"promisc": 1}), 6, "promisc"),
        (json!({"allmulti": "yes"}), 6, "allmulti"),
        (json!({"sysctl": {"net.core.somaxconn": 5}}), 6, "net.core.somaxconn"),
        (json!({"dataDir": "here"}), 7, "dataDir"),
        (json!({"prevResult": {"cniVersion": "0.2.0"}}), 6, "prevResult"),
    ] {
        let call = tuning(&pod, with(json!({"mtu": 1400, "sysctl": {}}), keys.clone()));
        let refusal = call.add().run(host)?.refused_with(code).with_context(|| keys.to_string())?;
        contains("message", &refusal.text(), word)?;
        same_json("the link", &state(&pod)?, &before)?;
        call.del().run(host)?.silence().with_context(|| format!("DEL with {keys}"))?;
    }
    tuning(&pod, json!({})).args("FOO=1").add().run(host)?.refused_with(4).map(drop)
}

fn status_and_gc_are_silent(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = tuning(&pod, with(everything(), json!({"cniVersion": NEWEST})));
    call.status().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    let tuned = state(&pod)?;
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    same_json("the link", &state(&pod)?, &tuned)?;
    call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()
}

fn it_works_behind_a_bridge(host: &Sandbox) -> Result<()> {
    for (id, version, mtu) in [("a", USUAL, 0), ("b", NEWEST, 0), ("c", NEWEST, 1450)] {
        let bridge = Attachment::new(host, id, with(gateway4(), json!({"cniVersion": version, "mtu": mtu})))?;
        let sysctls = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
        let keys = json!({"mac": "02:00:00:00:00:09", "mtu": 1400, "sysctl": sysctls, "cniVersion": version});
        let call = tuning(&bridge.pod, keys).id(id);
        let result = call.add().prev(&bridge.result).run(host)?.result()?;
        bridge.pod.ping("10.20.0.1")?;
        for call in [&bridge.call, &call] {
            call.check().prev(&result).run(host)?.silence().with_context(|| format!("CHECK of {id}"))?;
        }
        bridge.pod.ip_set("link set eth0 mtu 1300")?;
        call.check().prev(&result).run(host)?.refusal()?;
        lacks("MAC address", text_at(&bridge.result, "/interfaces/2/mac")?, "02:00:00:00:00:09")?;
        call.del().prev(&result).run(host)?.silence()?;
        bridge.call.del().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn a_whole_chain_added_again_is_the_same(host: &Sandbox) -> Result<()> {
    for (id, mtu) in [("a", 0), ("b", 1450)] {
        let bridge = Attachment::new(host, id, with(gateway4(), json!({"mtu": mtu})))?;
        let call = tuning(&bridge.pod, everything()).id(id);
        let result = call.add().prev(&bridge.result).run(host)?.result()?;
        let tuned = state(&bridge.pod)?;
        same_json("bridge", &bridge.call.add().run(host)?.result()?, &bridge.result)?;
        same_json("tuning", &call.add().prev(&bridge.result).run(host)?.result()?, &result)?;
        same_json("the link", &state(&bridge.pod)?, &tuned)?;
        bridge.pod.ping("10.20.0.1")?;
        call.del().prev(&result).run(host)?.silence()?;
        bridge.call.del().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}
