//! bridge: the links that it makes, and their attributes.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, USUAL, bridge, gateway4, gateway46, with};
use crate::case::Need;
use crate::expect::{at, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "bridge/links" {
        the_result_names_bridge_host_link_and_container;
        host_links_are_veth_and_eight_hexadecimal_digits;
        the_host_link_is_an_enslaved_veth_that_is_up;
        many_pods_share_one_bridge;
        the_bridge_is_called_cni0_by_default;
        an_existing_bridge_is_used;
        the_mac_of_the_bridge_does_not_change;
        the_mac_of_a_layer_2_bridge_does_not_change;
        the_mac_of_an_adopted_bridge_does_not_change;
        the_mtu_is_that_of_bridge_and_pair;
        two_interfaces_of_a_container;
        the_longest_name_works;
        router_advertisements_are_not_accepted needs [Need::Ipv6];
        loopback_stays_as_it_is;
    }
    "bridge/ports" {
        hairpin_is_off_and_on;
        isolation_is_off_and_on;
        the_bridge_is_promiscuous_on_request;
    }
    "bridge/mac" {
        by_cni_args;
        args_beat_cni_args;
        runtime_config_beats_all;
        a_mac_that_is_none_is_refused;
    }
    "bridge/layer-2" {
        without_ipam_there_are_no_addresses;
        the_container_interface_stays_down_on_request;
        an_empty_ipam_is_no_ipam;
    }
}

/// Whether a link is set up (IFF_UP).
pub(super) fn is_up(link: &Value) -> bool {
    link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"))
}

fn kind(link: &Value) -> &str {
    link["linkinfo"]["info_kind"].as_str().unwrap_or_default()
}

fn port<'a>(link: &'a Value, flag: &str) -> Result<&'a Value> {
    at(link, &format!("/linkinfo/info_slave_data/{flag}"))
}

fn the_result_names_bridge_host_link_and_container(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let interfaces = list_at(&one.result, "/interfaces")?;
    equal("interfaces", interfaces.len(), 3)?;
    let links = [
        (host.need_link("cni0")?, json!(null)),
        (host.need_link(one.host_link()?)?, json!(null)),
        (one.pod.need_link("eth0")?, json!("/run/netns/a")),
    ];
    equal("first", text_at(&interfaces[0], "/name")?, "cni0")?;
    equal("third", text_at(&interfaces[2], "/name")?, "eth0")?;
    for (interface, (link, sandbox)) in interfaces.iter().zip(links) {
        same_json("mac", &interface["mac"], &link["address"])?;
        let named = &interface["sandbox"];
        // An empty one is as good as none.
        let same = *named == sandbox || (sandbox.is_null() && *named == json!(""));
        holds(same, format!("sandbox: wanted {sandbox}, found {interface}"))?;
    }
    Ok(())
}

fn host_links_are_veth_and_eight_hexadecimal_digits(host: &Sandbox) -> Result<()> {
    for id in ["a", "b", "c"] {
        let one = Attachment::new(host, id, gateway4())?;
        let name = one.host_link()?;
        let digits = name.strip_prefix("veth").unwrap_or_default();
        let good = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        holds(good, format!("wanted veth and 8 digits, found {name}"))?;
    }
    Ok(())
}

fn the_host_link_is_an_enslaved_veth_that_is_up(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let link = host.need_link(one.host_link()?)?;
    equal("kind", kind(&link), "veth")?;
    same_json("master", &link["master"], &json!("cni0"))?;
    equal("up", is_up(&link), true)?;
    same_json("operational state", &link["operstate"], &json!("UP"))?;
    let inner = one.pod.need_link("eth0")?;
    equal("kind in the pod", kind(&inner), "veth")?;
    equal("up in the pod", is_up(&inner), true)?;
    same_json("peer of the pod's end", &inner["link_index"], &link["ifindex"])?;
    same_json("peer of the host's end", &link["link_index"], &inner["ifindex"])?;
    let bridge = host.need_link("cni0")?;
    equal("kind of the bridge", kind(&bridge), "bridge")?;
    equal("bridge is up", is_up(&bridge), true)
}

fn many_pods_share_one_bridge(host: &Sandbox) -> Result<()> {
    for id in ["a", "b", "c"] {
        let one = Attachment::new(host, id, gateway4())?;
        equal("links in the pod", one.pod.link_names()?, ["lo", "eth0"])?;
    }
    let links = host.ip("link show")?;
    equal("links of the host", links.len(), 5)?;
    equal("bridges", links.iter().filter(|link| kind(link) == "bridge").count(), 1)?;
    equal("ports", links.iter().filter(|link| link["master"] == "cni0").count(), 3)?;
    equal("gateway", host.addresses("cni0")?, ["10.20.0.1/24"])
}

fn the_bridge_is_called_cni0_by_default(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4())
        .config(with(gateway4(), json!({"cniVersion": USUAL, "name": "net", "type": "bridge"})));
    let result = call.add().run(host)?.result()?;
    equal("bridge in the result", text_at(&result, "/interfaces/0/name")?, "cni0")?;
    host.need_link("cni0").map(drop)
}

fn an_existing_bridge_is_used(host: &Sandbox) -> Result<()> {
    host.ip_set("link add cni0 type bridge")?;
    let before = host.need_link("cni0")?;
    Attachment::new(host, "a", gateway4())?;
    let after = host.need_link("cni0")?;
    same_json("index", &after["ifindex"], &before["ifindex"])?;
    equal("up", is_up(&after), true)
}

/// Ports with lower and higher addresses come and go; the bridge keeps its own, and it is the one in the result.
fn bridge_mac_is_stable(host: &Sandbox, network: &Value) -> Result<()> {
    let first = Attachment::new(host, "a", network.clone())?;
    let mac = host.need_link("cni0")?["address"].clone();
    same_json("mac in the result", &first.result["interfaces"][0]["mac"], &mac)?;
    let pods = [host.pod("b")?, host.pod("c")?];
    let mut calls = Vec::new();
    for (pod, low) in pods.iter().zip(["00:00:5e:00:53:01", "fe:ff:ff:ff:53:01"]) {
        let call = bridge("x", pod, network.clone()).id(pod.netns().rsplit('/').next().unwrap_or_default());
        let call = call.set("runtimeConfig", json!({"mac": low}));
        call.add().run(host)?.result()?;
        same_json("mac with another pod", &host.need_link("cni0")?["address"], &mac)?;
        calls.push(call);
    }
    // A foreign port with the lowest address there can be.
    host.ip_set("link add low type veth peer name high")?;
    host.ip_set("link set low address 00:00:00:00:00:01 master cni0")?;
    same_json("mac with a foreign port", &host.need_link("cni0")?["address"], &mac)?;
    host.ip_set("link del low")?;
    first.del(host)?;
    for call in calls {
        call.del().run(host)?.silence()?;
        same_json("mac with a pod less", &host.need_link("cni0")?["address"], &mac)?;
    }
    Ok(())
}

fn the_mac_of_the_bridge_does_not_change(host: &Sandbox) -> Result<()> {
    bridge_mac_is_stable(host, &gateway4())
}

fn the_mac_of_a_layer_2_bridge_does_not_change(host: &Sandbox) -> Result<()> {
    bridge_mac_is_stable(host, &json!({}))
}

/// A bridge that nobody gave a MAC takes the lowest of its ports', unless who uses it gives it one.
fn the_mac_of_an_adopted_bridge_does_not_change(host: &Sandbox) -> Result<()> {
    host.ip_set("link add cni0 type bridge")?;
    host.ip_set("link set cni0 up")?;
    bridge_mac_is_stable(host, &json!({}))
}

fn the_mtu_is_that_of_bridge_and_pair(host: &Sandbox) -> Result<()> {
    for (mtu, name) in [(1400, "br1"), (9000, "br2")] {
        let network =
            with(gateway4(), json!({"bridge": name, "mtu": mtu, "name": name, "forceAddress": true}));
        let one = Attachment::new(host, name, network)?;
        equal("bridge", host.need_link(name)?["mtu"].as_u64(), Some(mtu))?;
        equal("host link", host.need_link(one.host_link()?)?["mtu"].as_u64(), Some(mtu))?;
        equal("pod link", one.pod.need_link("eth0")?["mtu"].as_u64(), Some(mtu))?;
    }
    Ok(())
}

fn two_interfaces_of_a_container(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let second = one.call.ifname("net1").set("isDefaultGateway", json!(false));
    let result = second.add().run(host)?.result()?;
    holds(one.host_link()? != text_at(&result, "/interfaces/1/name")?, "both have the same host link")?;
    equal("first address", one.pod.addresses("eth0")?, ["10.20.0.2/24"])?;
    equal("second address", one.pod.addresses("net1")?, ["10.20.0.3/24"])?;
    second.del().run(host)?.silence()?;
    equal("links", one.pod.link_names()?, ["lo", "eth0"])?;
    equal("leases", host.leases("net")?, ["10.20.0.2"])?;
    one.sound(host)
}

fn the_longest_name_works(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for ifname in ["fifteen.bytes.a", "e", "a@b"] {
        let call = bridge("a", &pod, gateway4()).ifname(ifname);
        let result = call.add().run(host)?.result().with_context(|| ifname.to_owned())?;
        equal("name in the result", text_at(&result, "/interfaces/2/name")?, ifname)?;
        pod.run(&["ip", "link", "show", "dev", ifname])?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

fn router_advertisements_are_not_accepted(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    for link in ["cni0", one.host_link()?] {
        equal(format!("accept_ra of {link}"), host.sysctl(&format!("ipv6/conf/{link}/accept_ra"))?, "0")?;
    }
    Ok(())
}

fn loopback_stays_as_it_is(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    equal("lo is up", is_up(&one.pod.need_link("lo")?), false)
}

fn port_flag(host: &Sandbox, key: &str, flag: &str) -> Result<()> {
    for (id, network, wanted) in
        [("a", json!({}), false), ("b", json!({key: true}), true), ("c", json!({key: false}), false)]
    {
        let one = Attachment::new(host, id, with(gateway4(), network))?;
        let link = host.need_link(one.host_link()?)?;
        same_json(format!("{flag} for pod {id}"), port(&link, flag)?, &json!(wanted))?;
    }
    Ok(())
}

fn hairpin_is_off_and_on(host: &Sandbox) -> Result<()> {
    port_flag(host, "hairpinMode", "hairpin")
}

fn isolation_is_off_and_on(host: &Sandbox) -> Result<()> {
    port_flag(host, "portIsolation", "isolated")
}

fn the_bridge_is_promiscuous_on_request(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", gateway4())?;
    equal("promiscuity without", host.need_link("cni0")?["promiscuity"].as_u64(), Some(0))?;
    Attachment::new(host, "b", with(gateway4(), json!({"promiscMode": true})))?;
    equal("promiscuity with", host.need_link("cni0")?["promiscuity"].as_u64(), Some(1))?;
    Attachment::new(host, "c", with(gateway4(), json!({"promiscMode": true})))?;
    equal("promiscuity with two", host.need_link("cni0")?["promiscuity"].as_u64(), Some(1))
}

fn mac_of(host: &Sandbox, pod: &Pod, result: &Value) -> Result<String> {
    let found = pod.need_link("eth0")?;
    same_json("mac in the result", &result["interfaces"][2]["mac"], &found["address"])?;
    holds(host.link("eth0")?.is_none(), "there is an eth0 on the host")?;
    Ok(text_at(&found, "/address")?.to_owned())
}

fn by_cni_args(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4()).args("IgnoreUnknown=1;MAC=02:42:AC:11:00:02");
    let result = call.add().run(host)?.result()?;
    equal("mac", mac_of(host, &pod, &result)?, "02:42:ac:11:00:02")
}

fn args_beat_cni_args(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4()).args("IgnoreUnknown=1;MAC=02:00:00:00:00:01");
    let result = call.set("args", json!({"cni": {"mac": "02:00:00:00:00:02"}})).add().run(host)?.result()?;
    equal("mac", mac_of(host, &pod, &result)?, "02:00:00:00:00:02")
}

fn runtime_config_beats_all(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4()).args("IgnoreUnknown=1;MAC=02:00:00:00:00:01");
    let call = call.set("args", json!({"cni": {"mac": "02:00:00:00:00:02"}}));
    // The key is written like this by some runtimes.
    let call = call.set("RuntimeConfig", json!({"mac": "02:00:00:00:00:03"}));
    let result = call.add().run(host)?.result()?;
    equal("mac", mac_of(host, &pod, &result)?, "02:00:00:00:00:03")
}

fn a_mac_that_is_none_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for mac in ["02:00:00:00:00", "02:00:00:00:00:zz", "text"] {
        let call = bridge("a", &pod, gateway4()).set("runtimeConfig", json!({"mac": mac}));
        let refusal = call.add().run(host)?.refusal().with_context(|| mac.to_owned())?;
        holds(refusal.text().contains(mac), format!("{mac} is not in the error: {}", refusal.text()))?;
        equal("links in the pod", pod.link_names()?, ["lo"])?;
        equal("leases", host.leases("net")?, Vec::<String>::new())?;
    }
    Ok(())
}

fn without_ipam_there_are_no_addresses(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({}))?;
    equal("up", is_up(&one.pod.need_link("eth0")?), true)?;
    equal("addresses", one.pod.addresses("eth0")?, Vec::<String>::new())?;
    equal("interfaces", list_at(&one.result, "/interfaces")?.len(), 3)?;
    equal("ips", one.result["ips"].as_array().map_or(0, Vec::len), 0)?;
    one.del(host)?;
    equal("links", one.pod.link_names()?, ["lo"])
}

fn the_container_interface_stays_down_on_request(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({"disableContainerInterface": true}))?;
    equal("up", is_up(&one.pod.need_link("eth0")?), false)?;
    let port = host.need_link(one.host_link()?)?;
    same_json("master", &port["master"], &json!("cni0"))?;
    one.del(host)?;
    equal("links", one.pod.link_names()?, ["lo"])
}

fn an_empty_ipam_is_no_ipam(host: &Sandbox) -> Result<()> {
    for (id, ipam) in [("a", json!({})), ("b", json!({"type": ""})), ("c", Value::Null)] {
        let one = Attachment::new(host, id, json!({"ipam": ipam})).with_context(|| ipam.to_string())?;
        equal("addresses", one.pod.addresses("eth0")?, Vec::<String>::new())?;
    }
    Ok(())
}
