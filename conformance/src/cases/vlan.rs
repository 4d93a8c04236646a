//! vlan: its own keys, and its packets.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, with};
use super::sublinks::master::{self, *};
use super::sublinks::{MASTER, Vlan, addresses, attach, call, uplink};
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "vlan/keys" {
        the_id_is_as_configured needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        an_id_that_cannot_be_is_refused needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        a_master_is_required needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        the_mtu_is_the_masters_or_as_configured of Vlan needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        a_larger_mtu_is_refused_with_both_figures of Vlan needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        the_master_may_be_in_the_container of Vlan needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        there_need_be_no_addresses needs [Need::Plugin("bridgehead"), Need::LinkType("vlan")];
    }
    "vlan/errors" {
        a_vlan_that_is_there_already_is_refused needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        a_master_that_is_down_is_refused needs [Need::Plugin("bridgehead"), Need::LinkType("vlan")];
        a_master_that_cannot_have_vlans_is_refused needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        vlans_are_refused_where_the_kernel_has_none needs [Need::Plugin("bridgehead")];
    }
    "vlan/check" {
        the_id_is_changed needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        the_master_is_another of Vlan needs [Need::Plugin("bridgehead"), Need::LinkType("vlan")];
        another_mac_of_the_master_is_no_damage of Vlan needs [Need::Plugin("bridgehead"), Need::LinkType("vlan")];
    }
    "vlan/packets" {
        pod_and_outside_reach_each_other_with_tags needs [Need::Plugin("vlan"), Need::LinkType("vlan"), Need::Ipv6];
        pods_of_two_vlans_do_not_reach_each_other needs [Need::Plugin("vlan"), Need::LinkType("vlan")];
        neighbours_hear_of_a_new_pod needs [Need::Plugin("vlan"), Need::LinkType("vlan"), Need::Ipv6];
    }
}

fn id_of(pod: &Pod) -> Result<Value> {
    Ok(pod.need_link("eth0")?["linkinfo"]["info_data"]["id"].clone())
}

fn one(host: &Sandbox, id: &str, more: Value) -> Result<Attachment> {
    attach::<Vlan>(host, id, 0, with(addresses(), more))
}

/// ADD with these keys and addresses says each of the parts, and changes nothing.
fn refused(host: &Sandbox, keys: Value, parts: &[&str]) -> Result<()> {
    master::refused::<Vlan>(host, with(addresses(), keys), parts)
}

fn the_id_is_as_configured(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for id in [0, 1, 100, 4094] {
        let one = one(host, &format!("p{id}"), json!({"vlanId": id}))?;
        same_json("ID", &id_of(&one.pod)?, &json!(id))?;
        equal("protocol", text_at(&one.pod.need_link("eth0")?, "/linkinfo/info_data/protocol")?, "802.1Q")?;
        one.sound(host)?;
        one.del(host)?;
    }
    Ok(())
}

fn an_id_that_cannot_be_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for id in [-1, 4095, 65636] {
        refused(host, json!({"vlanId": id}), &[&id.to_string()])?;
    }
    refused(host, json!({"vlanId": "7"}), &["vlanId"])
}

fn a_master_is_required(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("route add default dev up0")?;
    refused(host, json!({"master": ""}), &["master"])
}

fn there_need_be_no_addresses(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = attach::<Vlan>(host, "a", 0, json!({}))?;
    holds(one.pod.need_link("eth0")?["flags"].to_string().contains("\"UP\""), "it is not up")?;
    one.sound(host)
}

fn a_vlan_that_is_there_already_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let first = one(host, "a", json!({}))?;
    refused(host, json!({}), &[])?;
    if host.plugins().join("bridgehead").exists() {
        refused(host, json!({}), &["VLAN 100", MASTER])?;
    }
    first.sound(host)?;
    first.del(host)?;
    one(host, "b", json!({}))?.sound(host)
}

fn a_master_that_is_down_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("link set up0 down")?;
    refused(host, json!({}), &[MASTER, "down"])?;
    let pod = host.pod("s")?;
    let status = call::<Vlan>("s", 0, &pod, with(addresses(), json!({"cniVersion": "1.1.0"}))).status();
    contains("STATUS", &status.run(host)?.refused_with(50)?.text(), "down")
}

fn a_master_that_cannot_have_vlans_is_refused(host: &Sandbox) -> Result<()> {
    refused(host, json!({"master": "lo"}), &["lo"])
}

fn vlans_are_refused_where_the_kernel_has_none(host: &Sandbox) -> Result<()> {
    if Need::LinkType("vlan").unmet(host).is_none() {
        return Ok(());
    }
    uplink(host)?;
    refused(host, json!({}), &["CONFIG_VLAN_8021Q"])?;
    let pod = host.pod("s")?;
    let status = call::<Vlan>("s", 0, &pod, with(addresses(), json!({"cniVersion": "1.1.0"}))).status();
    contains("STATUS", &status.run(host)?.refused_with(50)?.text(), "CONFIG_VLAN_8021Q")
}

fn the_id_is_changed(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = one(host, "a", json!({}))?;
    let mut call = one.call.clone();
    call = call.set("vlanId", json!(200));
    let refusal = call.check().prev(&one.result).run(host)?.refusal()?;
    contains("CHECK", &refusal.text(), "200")?;
    contains("CHECK", &refusal.text(), "100")
}

/// Addresses of the network behind the uplink, in a VLAN there.
fn tagged(host: &Sandbox, id: u16) -> Result<Pod> {
    let outside = host.outside()?;
    outside.ip_set(&format!("link add link eth0 name tagged0 type vlan id {id}"))?;
    outside.ip_set("addr add 10.30.0.1/24 dev tagged0")?;
    outside.ip_set("addr add fd30::1/64 dev tagged0 nodad")?;
    outside.ip_set("link set tagged0 up")?;
    Ok(outside)
}

fn answers(pod: &Pod, address: &str) -> Result<bool> {
    Ok(pod.try_run(&["ping", "-n", "-c", "2", "-W", "1", address])?.status.success())
}

fn pod_and_outside_reach_each_other_with_tags(host: &Sandbox) -> Result<()> {
    let outside = tagged(host, 100)?;
    let one = one(host, "a", json!({}))?;
    for address in ["10.30.0.1", "fd30::1"] {
        one.pod.ping(address)?;
    }
    for address in ["10.30.0.2", "fd30::2"] {
        outside.ping(address)?;
    }
    holds(!answers(&host.pod("none")?, "10.30.0.2")?, "a pod without the VLAN reaches it")
}

fn pods_of_two_vlans_do_not_reach_each_other(host: &Sandbox) -> Result<()> {
    let outside = tagged(host, 100)?;
    let first = attach::<Vlan>(host, "a", 0, addresses())?;
    let second = attach::<Vlan>(host, "b", 1, addresses())?;
    first.pod.ping("10.30.0.1")?;
    holds(!answers(&second.pod, "10.30.0.1")?, "VLAN 101 reaches VLAN 100")?;
    holds(!answers(&second.pod, "10.30.0.2")?, "VLAN 101 reaches the pod in VLAN 100")?;
    outside.ping("10.30.0.2")
}

/// Who has the address of an earlier pod in mind learns of the new one by its announcement.
fn neighbours_hear_of_a_new_pod(host: &Sandbox) -> Result<()> {
    let outside = tagged(host, 100)?;
    let given = json!([{"address": "10.30.0.50/24"}, {"address": "fd30::50/64"}]);
    let keys = json!({"ipam": {"type": "static", "addresses": given}});
    for (number, mac) in ["02:00:00:00:aa:03", "02:00:00:00:aa:04"].into_iter().enumerate() {
        // A pod has the MAC address that its master has then.
        host.ip_set(&format!("link set up0 address {mac}"))?;
        let one = attach::<Vlan>(host, &format!("p{number}"), 0, keys.clone())?;
        for address in ["10.30.0.50", "fd30::50"] {
            let answer = outside.try_run(&["ping", "-n", "-c", "1", "-W", "0.9", address])?;
            holds(answer.status.success(), format!("{address} of pod {number} does not answer at once"))?;
        }
        one.del(host)?;
    }
    Ok(())
}
