//! ipvlan: its own keys, in a chain, and its packets.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, with};
use super::sublinks::master::*;
use super::sublinks::{Ipvlan, MASTER, addresses, attach, call, uplink};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "ipvlan/keys" {
        the_mode_is_l2_or_as_configured needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        an_unknown_mode_is_refused needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        the_mtu_is_the_masters_or_as_configured of Ipvlan needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        a_larger_mtu_is_refused_with_both_figures of Ipvlan needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
        the_master_is_that_of_the_default_route of Ipvlan needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        the_master_may_be_in_the_container of Ipvlan needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        addresses_are_required needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
    }
    "ipvlan/chain" {
        addresses_are_those_of_the_plugin_before needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        the_master_is_the_only_interface_before needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        several_interfaces_before_tell_no_master needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        its_own_ipam_comes_first needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        del_needs_no_result_before needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
        status_and_gc_know_nothing_before needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
    }
    "ipvlan/master" {
        one_that_has_macvlans_is_refused needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan"), Need::LinkType("macvlan")];
        ipvlan_is_refused_where_the_kernel_has_none needs [Need::Plugin("bridgehead")];
    }
    "ipvlan/check" {
        the_mode_is_changed needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        the_master_is_another of Ipvlan needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
        another_mac_of_the_master_is_no_damage of Ipvlan needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
        a_moved_default_route_is_no_damage of Ipvlan needs [Need::Plugin("bridgehead"), Need::LinkType("ipvlan")];
    }
    "ipvlan/packets" {
        l2_pods_and_the_outside_reach_each_other needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan"), Need::Ipv6];
        l3_pods_are_reached_by_a_route needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
        l3s_pods_are_reached_by_a_route needs [Need::Plugin("ipvlan"), Need::LinkType("ipvlan")];
    }
}

fn one(host: &Sandbox, id: &str, more: Value) -> Result<Attachment> {
    attach::<Ipvlan>(host, id, 0, with(addresses(), more))
}

fn the_mode_is_l2_or_as_configured(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for (number, mode) in ["", "l2", "l3", "l3s"].into_iter().enumerate() {
        let one = one(host, &format!("p{number}"), json!({"mode": mode}))?;
        let link = one.pod.need_link("eth0")?;
        let wanted = if mode.is_empty() { "l2" } else { mode };
        equal("mode", text_at(&link, "/linkinfo/info_data/mode")?, wanted)?;
        one.sound(host)?;
        one.del(host)?;
    }
    Ok(())
}

fn an_unknown_mode_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for mode in ["l4", "L2", "bridge"] {
        refused::<Ipvlan>(host, with(addresses(), json!({"mode": mode})), &["mode", mode])?;
    }
    Ok(())
}

fn addresses_are_required(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    refused::<Ipvlan>(host, json!({}), &[])?;
    let nothing = json!({"cniVersion": "1.0.0", "interfaces": [{"name": MASTER}]});
    refused::<Ipvlan>(host, json!({"prevResult": nothing}), &[])
}

/// What a plugin before in the chain has answered.
fn before(interfaces: Value) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": interfaces,
        "ips": [
            {"address": "10.30.0.77/24", "gateway": "10.30.0.1", "interface": 0},
            {"address": "fd30::77/64", "gateway": "fd30::1", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.30.0.1"}],
    })
}

fn chained(pod: &Pod, interfaces: Value, more: Value) -> Call {
    call::<Ipvlan>("a", 0, pod, with(json!({"prevResult": before(interfaces)}), more))
}

fn addresses_are_those_of_the_plugin_before(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let state = Snapshot::take(host, &[&pod])?;
    let call = chained(&pod, json!([{"name": "a0"}, {"name": "b0"}]), json!({}));
    let result = call.add().run(host)?.result()?;
    let mut found = pod.addresses("eth0")?;
    found.sort();
    equal("addresses", found, ["10.30.0.77/24", "fd30::77/64"])?;
    equal("interfaces", list_at(&result, "/interfaces")?.len(), 1)?;
    equal("interface", text_at(&result, "/interfaces/0/name")?, "eth0")?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.30.0.77/24")?;
    same_json("its interface", &result["ips"][1]["interface"], &json!(0))?;
    call.check().prev(&result).run(host)?.silence()?;
    same_json("again", &call.add().run(host)?.result()?, &result)?;
    call.del().prev(&result).run(host)?.silence()?;
    state.restored(host, &[&pod])
}

fn the_master_is_the_only_interface_before(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("link add other0 type veth peer name other1")?;
    host.ip_set("link set other0 up")?;
    let pod = host.pod("a")?;
    let call = chained(&pod, json!([{"name": "other0"}]), json!({"master": ""}));
    let result = call.add().run(host)?.result()?;
    let index = &host.need_link("other0")?["ifindex"];
    same_json("index of the master", &pod.need_link("eth0")?["link_index"], index)?;
    if host.plugins().join("bridgehead").exists() {
        // The reference looks for a link without a name.
        call.check().prev(&result).run(host)?.silence()?;
    }
    call.del().prev(&result).run(host)?.silence()
}

fn several_interfaces_before_tell_no_master(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("route add default dev up0")?;
    for interfaces in [json!([]), json!([{"name": "a0"}, {"name": "b0"}])] {
        refused::<Ipvlan>(host, json!({"master": "", "prevResult": before(interfaces)}), &["aster"])?;
    }
    Ok(())
}

fn its_own_ipam_comes_first(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = chained(&pod, json!([{"name": "up0"}]), addresses());
    let result = call.add().run(host)?.result()?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.30.0.2/24")?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn del_needs_no_result_before(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let with_result = chained(&pod, json!([{"name": "up0"}]), json!({"master": ""}));
    with_result.add().run(host)?.result()?;
    let without = call::<Ipvlan>("a", 0, &pod, json!({"master": ""}));
    without.del().run(host)?.silence()?;
    equal("links", pod.link_names()?, ["lo"])?;
    without.del().run(host)?.silence()?;
    without.without("CNI_NETNS").del().run(host)?.silence()
}

fn status_and_gc_know_nothing_before(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = call::<Ipvlan>("a", 0, &pod, json!({"master": "", "cniVersion": "1.1.0"}));
    call.status().run(host)?.silence()?;
    call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()
}

fn one_that_has_macvlans_is_refused(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    host.ip_set("link add link up0 name there0 type macvlan mode bridge")?;
    refused::<Ipvlan>(host, addresses(), &[])
}

fn ipvlan_is_refused_where_the_kernel_has_none(host: &Sandbox) -> Result<()> {
    if Need::LinkType("ipvlan").unmet(host).is_none() {
        return Ok(());
    }
    uplink(host)?;
    refused::<Ipvlan>(host, addresses(), &["CONFIG_IPVLAN"])?;
    let pod = host.pod("s")?;
    let status = call::<Ipvlan>("s", 0, &pod, with(addresses(), json!({"cniVersion": "1.1.0"}))).status();
    contains("STATUS", &status.run(host)?.refused_with(50)?.text(), "CONFIG_IPVLAN")
}

fn the_mode_is_changed(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = one(host, "a", json!({"mode": "l2"}))?;
    one.pod.ip_set("link set eth0 type ipvlan mode l3")?;
    let said = one.damaged(host)?.to_lowercase();
    contains("CHECK", &said, "l2")?;
    contains("CHECK", &said, "l3")
}

fn l2_pods_and_the_outside_reach_each_other(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let range = |subnet: &str, start: &str| json!([{"subnet": subnet, "rangeStart": start}]);
    let ranges =
        json!([range("192.0.2.0/24", "192.0.2.100"), range("2001:db8:ffff::/64", "2001:db8:ffff::100")]);
    let keys = json!({"ipam": {"type": "host-local", "ranges": ranges}});
    let a = attach::<Ipvlan>(host, "a", 0, keys.clone())?;
    let b = attach::<Ipvlan>(host, "b", 1, keys)?;
    for (from, to) in [
        (&a.pod, "192.0.2.101"),
        (&b.pod, "192.0.2.2"),
        (&outside, "192.0.2.100"),
        (&b.pod, "2001:db8:ffff::100"),
        (&a.pod, "2001:db8:ffff::2"),
        (&outside, "2001:db8:ffff::101"),
    ] {
        from.ping(to)?;
    }
    Ok(())
}

/// In these modes pods hear no ARP; who is outside sends to them by way of the host.
fn routed(host: &Sandbox, mode: &str) -> Result<()> {
    let outside = host.outside()?;
    outside.ip_set("route add 10.30.0.0/24 via 192.0.2.1")?;
    let ipam = json!({
        "type": "host-local", "subnet": "10.30.0.0/24", "routes": [{"dst": "0.0.0.0/0"}],
    });
    let a = attach::<Ipvlan>(host, "a", 0, json!({"mode": mode, "ipam": ipam}))?;
    let b = attach::<Ipvlan>(host, "b", 1, json!({"mode": mode, "ipam": ipam}))?;
    a.pod.ping("10.30.0.3")?;
    outside.ping("10.30.0.2")?;
    b.pod.ping("192.0.2.2")?;
    holds(a.pod.need_link("eth0")?["flags"].to_string().contains("NOARP"), "it uses ARP")
}

fn l3_pods_are_reached_by_a_route(host: &Sandbox) -> Result<()> {
    routed(host, "l3")
}

fn l3s_pods_are_reached_by_a_route(host: &Sandbox) -> Result<()> {
    routed(host, "l3s")
}
