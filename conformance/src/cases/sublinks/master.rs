//! The master: which link it is, and what of it the interface has.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Kind, addresses, attach, call, uplink, usual};
use crate::cases::networks::with;
use crate::expect::{contains, equal, same_json, text_at};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

/// ADD with these keys says each of the parts, and changes nothing.
pub(in crate::cases) fn refused<K: Kind>(host: &Sandbox, keys: Value, parts: &[&str]) -> Result<()> {
    let pod = host.pod("p")?;
    let what = keys.to_string();
    let before = Snapshot::take(host, &[&pod])?;
    let call = call::<K>("p", 0, &pod, keys);
    let refusal = call.add().run(host)?.refusal().with_context(|| what.clone())?;
    for part in parts {
        contains(format!("the error with {what}"), &refusal.text(), part)?;
    }
    before.restored(host, &[&pod]).with_context(|| what)?;
    pod.remove()
}

pub(in crate::cases) fn the_mtu_is_the_masters_or_as_configured<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("link set up0 mtu 1450")?;
    for (number, keys, mtu) in
        [(0, json!({}), 1450), (1, json!({"mtu": 0}), 1450), (2, json!({"mtu": 1400}), 1400)]
    {
        let one = attach::<K>(host, &format!("p{number}"), number, with(addresses(), keys))?;
        same_json("mtu", &one.pod.need_link("eth0")?["mtu"], &json!(mtu))?;
        one.sound(host)?;
    }
    Ok(())
}

pub(in crate::cases) fn a_larger_mtu_is_refused_with_both_figures<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    refused::<K>(host, with(addresses(), json!({"mtu": 1501})), &["1501", "1500"])
}

/// A link beside the uplink.
fn other(host: &Sandbox) -> Result<()> {
    host.ip_set("link add other0 type veth peer name other1")?;
    host.ip_set("link set other0 up")
}

pub(in crate::cases) fn the_master_is_that_of_the_default_route<K: Kind>(host: &Sandbox) -> Result<()> {
    host.outside()?;
    other(host)?;
    for (id, master) in [("a", Value::Null), ("b", json!(""))] {
        host.ip_set("route add default via 192.0.2.2")?;
        let one = attach::<K>(host, id, 0, with(addresses(), json!({"master": master})))?;
        let index = &host.need_link("up0")?["ifindex"];
        same_json("index of the master", &one.pod.need_link("eth0")?["link_index"], index)?;
        one.sound(host)?;
        one.del(host)?;
        // And DEL does not ask for one.
        host.ip_set("route del default")?;
        one.del(host)?;
    }
    Ok(())
}

pub(in crate::cases) fn a_moved_default_route_is_no_damage<K: Kind>(host: &Sandbox) -> Result<()> {
    host.outside()?;
    other(host)?;
    host.ip_set("route add default via 192.0.2.2")?;
    let one = attach::<K>(host, "a", 0, with(addresses(), json!({"master": ""})))?;
    host.ip_set("route replace default dev other0")?;
    one.sound(host)?;
    host.ip_set("route del default")?;
    one.sound(host)
}

pub(in crate::cases) fn another_mac_of_the_master_is_no_damage<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = attach::<K>(host, "a", 0, addresses())?;
    host.ip_set("link set up0 address 02:00:00:00:aa:02")?;
    one.sound(host)
}

pub(in crate::cases) fn the_master_is_another<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    // Older kernels rename only what is down.
    host.ip_set("link set up0 down")?;
    host.ip_set("link set up0 name gone0")?;
    host.ip_set("link add up0 type veth peer name far1")?;
    contains("CHECK with another master", &one.damaged(host)?, "gone0")
}

pub(in crate::cases) fn the_master_may_be_in_the_container<K: Kind>(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.ip_set("link add inner0 type veth peer name inner1")?;
    pod.ip_set("link set inner0 up")?;
    pod.ip_set("link set inner1 up")?;
    let before = Snapshot::take(host, &[&pod])?;
    let keys = json!({"master": "inner0", "linkInContainer": true});
    let call = call::<K>("a", 0, &pod, with(addresses(), keys));
    let result = call.add().run(host)?.result()?;
    equal("link", text_at(&pod.need_link("eth0")?, "/link")?, "inner0")?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    before.restored(host, &[&pod])?;
    let refusal = call.set("master", json!("up0")).add().run(host)?.refusal()?;
    if host.plugins().join("bridgehead").exists() {
        contains("the error", &refusal.text(), "up0")?;
    }
    Ok(())
}
