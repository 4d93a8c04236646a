//! macvlan: its own keys, and its packets.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, with};
use super::sublinks::master::{self, *};
use super::sublinks::{MASTER, Macvlan, addresses, attach, call, uplink};
use crate::case::Need;
use crate::expect::{contains, equal, holds, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "macvlan/keys" {
        the_mode_is_bridge_or_as_configured needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        an_unknown_mode_is_refused needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        the_mtu_is_the_masters_or_as_configured of Macvlan needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        a_larger_mtu_is_refused_with_both_figures of Macvlan needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        the_mac_is_that_of_the_runtime needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        a_mac_that_cannot_be_is_refused needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        the_mac_stays_the_same needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        the_broadcast_queue_is_as_configured needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        the_master_is_that_of_the_default_route of Macvlan needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        the_master_may_be_in_the_container of Macvlan needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        there_need_be_no_addresses needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        dns_of_the_configuration_is_told needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        dns_of_the_ipam_is_told_otherwise needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        keys_are_read_in_any_case needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
    }
    "macvlan/check" {
        the_mode_is_changed needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        the_master_is_another of Macvlan needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        a_moved_default_route_is_no_damage of Macvlan needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        a_smaller_master_is_no_damage needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
    }
    "macvlan/passthru" {
        the_pod_has_the_masters_mac needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        a_mac_for_a_passthru_is_the_masters_as_long needs [Need::Plugin("bridgehead"), Need::LinkType("macvlan")];
        there_is_only_one needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
    }
    "macvlan/master" {
        a_bridge_port_is_refused needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        loopback_is_refused needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
    }
    "macvlan/packets" {
        pods_and_the_outside_reach_each_other needs [Need::Plugin("macvlan"), Need::LinkType("macvlan"), Need::Ipv6];
        private_pods_reach_only_the_outside needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        vepa_pods_need_the_switch needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        a_passthru_pod_reaches_the_outside needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
        neighbours_hear_of_a_new_pod needs [Need::Plugin("macvlan"), Need::LinkType("macvlan"), Need::Ipv6];
        a_host_name_on_the_uplink_side_does_not_matter needs [Need::Plugin("macvlan"), Need::LinkType("macvlan")];
    }
}

fn mode_of(pod: &Pod) -> Result<String> {
    Ok(text_at(&pod.need_link("eth0")?, "/linkinfo/info_data/mode")?.to_owned())
}

fn one(host: &Sandbox, id: &str, more: Value) -> Result<Attachment> {
    attach::<Macvlan>(host, id, 0, with(addresses(), more))
}

/// ADD with these keys and addresses says each of the parts, and changes nothing.
fn refused(host: &Sandbox, keys: Value, parts: &[&str]) -> Result<()> {
    master::refused::<Macvlan>(host, with(addresses(), keys), parts)
}

fn the_mode_is_bridge_or_as_configured(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for (number, mode) in ["", "bridge", "private", "vepa", "passthru"].into_iter().enumerate() {
        let keys = if mode.is_empty() { json!({}) } else { json!({"mode": mode}) };
        let one = one(host, &format!("p{number}"), keys)?;
        equal("mode", mode_of(&one.pod)?, if mode.is_empty() { "bridge" } else { mode })?;
        one.sound(host)?;
        one.del(host)?;
    }
    Ok(())
}

fn an_unknown_mode_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for mode in ["source", "Bridge", "l2"] {
        refused(host, json!({"mode": mode}), &["mode", mode])?;
    }
    refused(host, json!({"mode": 4}), &["mode"])
}

fn the_mac_is_that_of_the_runtime(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let (runtime, environment, own) = ("02:00:00:00:00:11", "02:00:00:00:00:12", "02:00:00:00:00:13");
    for (id, by_runtime, by_args, wanted) in
        [("a", true, true, runtime), ("b", false, true, environment), ("c", false, false, own)]
    {
        let pod = host.pod(id)?;
        let mut call = call::<Macvlan>(id, 0, &pod, with(addresses(), json!({"mac": own})));
        if by_runtime {
            call = call.set("runtimeConfig", json!({"mac": runtime}));
        }
        if by_args {
            call = call.args(&format!("IgnoreUnknown=1;MAC={environment}"));
        }
        let result = call.add().run(host)?.result()?;
        equal("in the result", text_at(&result, "/interfaces/0/mac")?, wanted)?;
        equal("of the link", text_at(&pod.need_link("eth0")?, "/address")?, wanted)?;
        call.check().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn a_mac_that_cannot_be_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for mac in ["01:00:5e:00:00:01", "02:00", "nonsense"] {
        refused(host, json!({"mac": mac}), &[mac])?;
    }
    Ok(())
}

fn the_mac_stays_the_same(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let first = one(host, "a", json!({}))?;
    first.del(host)?;
    let again = first.call.add().run(host)?.result()?;
    same_json("mac", &again["interfaces"][0]["mac"], &first.result["interfaces"][0]["mac"])?;
    let other = one(host, "b", json!({}))?;
    holds(
        other.result["interfaces"][0]["mac"] != again["interfaces"][0]["mac"],
        "two pods have one MAC address",
    )
}

fn the_broadcast_queue_is_as_configured(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = one(host, "a", json!({"bcqueuelen": 200}))?;
    let shown = one.pod.run(&["ip", "-d", "link", "show", "eth0"])?;
    contains("the link", &shown, "bcqueuelen 200")?;
    one.sound(host)?;
    one.pod.ip_set("link set eth0 type macvlan bcqueuelen 300")?;
    contains("CHECK", &one.damaged(host)?, "300")
}

fn there_need_be_no_addresses(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for (id, ipam) in [("a", Value::Null), ("b", json!({}))] {
        let one = attach::<Macvlan>(host, id, 0, json!({"ipam": ipam}))?;
        equal("addresses", one.pod.addresses("eth0")?, Vec::<String>::new())?;
        let link = one.pod.need_link("eth0")?;
        holds(link["flags"].to_string().contains("\"UP\""), format!("{link}"))?;
        equal("interfaces", one.result["interfaces"].as_array().map(Vec::len), Some(1))?;
        one.sound(host)?;
        one.del(host)?;
        equal("links", one.pod.link_names()?, ["lo"])?;
    }
    Ok(())
}

const DNS: &str = r#"{"nameservers": ["192.0.2.53"], "domain": "example.com"}"#;

fn dns_of_the_configuration_is_told(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let dns: Value = serde_json::from_str(DNS)?;
    same_json("dns", &one(host, "a", json!({"dns": dns}))?.result["dns"], &dns)
}

fn dns_of_the_ipam_is_told_otherwise(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let ipam = json!({"type": "static", "addresses": [{"address": "10.30.0.9/24"}], "dns": serde_json::from_str::<Value>(DNS)?});
    let one = attach::<Macvlan>(host, "a", 0, json!({"ipam": ipam}))?;
    equal("name servers", text_at(&one.result, "/dns/nameservers/0")?, "192.0.2.53")
}

fn keys_are_read_in_any_case(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "macvlan", "MASTER": MASTER, "Mode": "private", "MTU": 1400,
        "IPAM": {"Type": "static", "Addresses": [{"address": "10.30.0.9/24"}]},
    });
    let call = call::<Macvlan>("a", 0, &pod, json!({})).config(config);
    call.add().run(host)?.result()?;
    equal("mode", mode_of(&pod)?, "private")?;
    same_json("mtu", &pod.need_link("eth0")?["mtu"], &json!(1400))
}

fn the_mode_is_changed(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = one(host, "a", json!({"mode": "private"}))?;
    one.pod.ip_set("link set eth0 type macvlan mode vepa")?;
    let said = one.damaged(host)?.to_lowercase();
    contains("CHECK", &said, "private")?;
    contains("CHECK", &said, "vepa")
}

fn a_smaller_master_is_no_damage(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = call::<Macvlan>("a", 0, &pod, with(addresses(), json!({"cniVersion": "1.1.0"})));
    let result = call.add().run(host)?.result()?;
    // The kernel takes the links of a master with it when its MTU sinks.
    host.ip_set("link set up0 mtu 1400")?;
    same_json("mtu of the pod", &pod.need_link("eth0")?["mtu"], &json!(1400))?;
    call.check().prev(&result).run(host)?.silence()
}

fn the_pod_has_the_masters_mac(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let before = host.need_link(MASTER)?["address"].clone();
    let one = one(host, "a", json!({"mode": "passthru"}))?;
    same_json("in the result", &one.result["interfaces"][0]["mac"], &before)?;
    same_json("of the link", &one.pod.need_link("eth0")?["address"], &before)?;
    one.sound(host)?;
    one.del(host)?;
    same_json("of the master", &host.need_link(MASTER)?["address"], &before)
}

fn a_mac_for_a_passthru_is_the_masters_as_long(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let before = Snapshot::take(host, &[])?;
    let wanted = "02:00:00:00:00:14";
    let one = one(host, "a", json!({"mode": "passthru", "mac": wanted}))?;
    equal("in the result", text_at(&one.result, "/interfaces/0/mac")?, wanted)?;
    equal("of the link", text_at(&one.pod.need_link("eth0")?, "/address")?, wanted)?;
    equal("of the master", text_at(&host.need_link(MASTER)?, "/address")?, wanted)?;
    one.sound(host)?;
    one.del(host)?;
    before.restored(host, &[])
}

fn there_is_only_one(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let first = one(host, "a", json!({"mode": "passthru"}))?;
    for mode in ["passthru", "bridge"] {
        refused(host, json!({"mode": mode}), &[])?;
    }
    first.sound(host)?;
    first.del(host)?;
    one(host, "b", json!({}))?;
    refused(host, json!({"mode": "passthru"}), &[])
}

fn a_bridge_port_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("link add br0 type bridge")?;
    host.ip_set("link set up0 master br0")?;
    refused(host, json!({}), &[])
}

fn loopback_is_refused(host: &Sandbox) -> Result<()> {
    refused(host, json!({"master": "lo"}), &[])
}

/// A network that is also outside: see [`Sandbox::outside`].
fn shared(more: Value) -> Value {
    let range = |subnet: &str, start: &str| json!([{"subnet": subnet, "rangeStart": start}]);
    let ranges =
        json!([range("192.0.2.0/24", "192.0.2.100"), range("2001:db8:ffff::/64", "2001:db8:ffff::100")]);
    with(json!({"ipam": {"type": "host-local", "ranges": ranges}}), more)
}

fn pods_and_the_outside_reach_each_other(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let a = attach::<Macvlan>(host, "a", 0, shared(json!({})))?;
    let b = attach::<Macvlan>(host, "b", 1, shared(json!({})))?;
    for (from, to) in [
        (&a.pod, "192.0.2.101"),
        (&b.pod, "192.0.2.100"),
        (&a.pod, "192.0.2.2"),
        (&outside, "192.0.2.100"),
        (&outside, "192.0.2.101"),
        (&a.pod, "2001:db8:ffff::101"),
        (&b.pod, "2001:db8:ffff::2"),
        (&outside, "2001:db8:ffff::100"),
    ] {
        from.ping(to)?;
    }
    // The kernel keeps a master's own addresses from its macvlans.
    holds(!answers(&a.pod, "192.0.2.1")?, "the host answers by its uplink")
}

fn answers(pod: &Pod, address: &str) -> Result<bool> {
    Ok(pod.try_run(&["ping", "-n", "-c", "2", "-W", "1", address])?.status.success())
}

fn private_pods_reach_only_the_outside(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let keys = json!({"mode": "private"});
    let a = attach::<Macvlan>(host, "a", 0, shared(keys.clone()))?;
    let b = attach::<Macvlan>(host, "b", 1, shared(keys))?;
    for pod in [&a.pod, &b.pod] {
        pod.ping("192.0.2.2")?;
    }
    outside.ping("192.0.2.101")?;
    holds(!answers(&a.pod, "192.0.2.101")?, "private pods reach each other")
}

fn vepa_pods_need_the_switch(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let keys = json!({"mode": "vepa"});
    let a = attach::<Macvlan>(host, "a", 0, shared(keys.clone()))?;
    attach::<Macvlan>(host, "b", 1, shared(keys))?;
    a.pod.ping("192.0.2.2")?;
    holds(!answers(&a.pod, "192.0.2.101")?, "pods reach each other without the switch")?;
    // A switch that sends packets back by the port that they came by: a bridge in hairpin mode.
    outside.ip_set("addr flush dev eth0")?;
    outside.ip_set("link add switch0 type bridge")?;
    outside.ip_set("link set eth0 master switch0")?;
    outside.run(&["bridge", "link", "set", "dev", "eth0", "hairpin", "on"])?;
    outside.ip_set("link set switch0 up")?;
    a.pod.ping("192.0.2.101")
}

fn a_passthru_pod_reaches_the_outside(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = attach::<Macvlan>(host, "a", 0, shared(json!({"mode": "passthru"})))?;
    one.pod.ping("192.0.2.2")?;
    outside.ping("192.0.2.100")
}

/// Who has the address of an earlier pod in mind learns of the new one by its announcement.
fn neighbours_hear_of_a_new_pod(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    for (number, mac) in ["02:00:00:00:00:21", "02:00:00:00:00:22"].into_iter().enumerate() {
        let one = attach::<Macvlan>(host, &format!("p{number}"), 0, again(mac))?;
        for address in ["192.0.2.100", "2001:db8:ffff::100"] {
            let answer = outside.try_run(&["ping", "-n", "-c", "1", "-W", "0.5", address])?;
            holds(answer.status.success(), format!("{address} of pod {number} does not answer at once"))?;
        }
        one.del(host)?;
    }
    Ok(())
}

fn again(mac: &str) -> Value {
    let given = json!([{"address": "192.0.2.100/24"}, {"address": "2001:db8:ffff::100/64"}]);
    json!({"mac": mac, "ipam": {"type": "static", "addresses": given}})
}

/// The host's own uplink is called `eth0`, as on most machines, and so is the pod's interface.
fn a_host_name_on_the_uplink_side_does_not_matter(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    host.ip_set("link set up0 down")?;
    host.ip_set("link set up0 name eth0")?;
    host.ip_set("link set eth0 up")?;
    let a = attach::<Macvlan>(host, "a", 0, shared(json!({"master": "eth0"})))?;
    let b = attach::<Macvlan>(host, "b", 1, shared(json!({"master": "eth0"})))?;
    a.pod.ping("192.0.2.101")?;
    outside.ping("192.0.2.100")?;
    equal("links", a.pod.link_names()?, ["lo", "eth0"])?;
    b.sound(host)?;
    a.del(host)?;
    equal("links after DEL", a.pod.link_names()?, ["lo"])
}
