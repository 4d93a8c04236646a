//! bridge: configurations that cannot be, and VLANs.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, bridge, gateway4, pool, with};
use crate::case::Need;
use crate::expect::{equal, holds, list_at, soon, text_at};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "bridge/errors" {
        vlan_ids_have_bounds;
        trunk_entries_have_bounds;
        trunk_ranges_are_complete_and_ascending;
        hairpin_excludes_promiscuity;
        a_disabled_interface_excludes_ipam;
        an_unknown_back_end_is_refused;
        a_link_that_is_no_bridge_is_refused;
        a_bridge_name_that_cannot_be_is_refused;
        values_of_the_wrong_type_are_refused;
        an_mtu_that_cannot_be_is_refused;
        a_namespace_that_is_none_is_refused;
        invalid_configurations_do_not_hinder_del;
        an_invalid_configuration_has_the_code_for_it;
    }
    "bridge/vlan" {
        a_vlan_is_the_only_one_of_the_port needs [Need::VlanFiltering];
        a_trunk_is_tagged needs [Need::VlanFiltering];
        the_default_vlan_is_kept_on_request needs [Need::VlanFiltering];
        the_gateway_of_a_vlan_is_a_link_of_its_own needs [Need::VlanFiltering];
        the_port_of_the_gateway_is_in_the_vlan needs [Need::VlanFiltering];
        a_forced_gateway_of_a_vlan_leaves_that_of_living_pods needs [Need::VlanFiltering];
        a_vlan_is_refused_where_bridges_do_not_filter;
    }
}

/// ADD with these keys says each of the parts (in any case), and changes nothing.
fn refused(host: &Sandbox, network: Value, parts: &[&str]) -> Result<()> {
    let what = network.to_string();
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = bridge("pod1", &pod, network).add().run(host)?.refusal().with_context(|| what.clone())?;
    let text = refusal.text().to_lowercase();
    for part in parts {
        holds(text.contains(&part.to_lowercase()), format!("{what}: {part:?} is not in the error {text:?}"))?;
    }
    before.restored(host, &[&pod]).with_context(|| what)?;
    pod.remove()
}

fn vlan_ids_have_bounds(host: &Sandbox) -> Result<()> {
    for id in [-100, -1, 4095, 5000] {
        refused(host, with(gateway4(), json!({"vlan": id})), &["vlan", &id.to_string()])?;
    }
    Attachment::new(host, "a", with(gateway4(), json!({"vlan": 0}))).map(drop)
}

fn trunk_entries_have_bounds(host: &Sandbox) -> Result<()> {
    for (entry, value) in [
        (json!({"id": 0}), "0"),
        (json!({"id": -5}), "-5"),
        (json!({"id": 4095}), "4095"),
        (json!({"minID": 0, "maxID": 5}), "0"),
        (json!({"minID": -1, "maxID": 5}), "-1"),
        (json!({"minID": 5000, "maxID": 5001}), "500"),
        (json!({"minID": 5, "maxID": 4095}), "4095"),
    ] {
        let key = if entry.get("id").is_some() { "id" } else { "ID" };
        refused(host, with(gateway4(), json!({"vlanTrunk": [entry]})), &["trunk", key, value])?;
    }
    Ok(())
}

fn trunk_ranges_are_complete_and_ascending(host: &Sandbox) -> Result<()> {
    refused(host, with(gateway4(), json!({"vlanTrunk": [{"minID": 10}]})), &["maxID"])?;
    refused(host, with(gateway4(), json!({"vlanTrunk": [{"id": 7}, {"maxID": 10}]})), &["minID"])?;
    refused(host, with(gateway4(), json!({"vlanTrunk": [{"minID": 20, "maxID": 10}]})), &["minID", "maxID"])
}

fn hairpin_excludes_promiscuity(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"hairpinMode": true, "promiscMode": true}));
    refused(host, network, &["hairpin", "promisc"])
}

fn a_disabled_interface_excludes_ipam(host: &Sandbox) -> Result<()> {
    refused(
        host,
        with(gateway4(), json!({"disableContainerInterface": true})),
        &["ipam", "disableContainerInterface"],
    )
}

fn an_unknown_back_end_is_refused(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"ipMasq": true, "ipMasqBackend": "ebtables"}));
    refused(host, network, &["ipMasqBackend", "ebtables"])
}

fn a_link_that_is_no_bridge_is_refused(host: &Sandbox) -> Result<()> {
    host.ip_set("link add v0 type veth peer name v1")?;
    for name in ["lo", "v0"] {
        refused(host, with(gateway4(), json!({"bridge": name})), &[name, "bridge"])?;
    }
    Ok(())
}

fn a_bridge_name_that_cannot_be_is_refused(host: &Sandbox) -> Result<()> {
    for name in ["sixteen.bytes.ab", "a/b", "a b", ".."] {
        refused(host, with(gateway4(), json!({"bridge": name})), &[])?;
    }
    Ok(())
}

fn values_of_the_wrong_type_are_refused(host: &Sandbox) -> Result<()> {
    for (key, value) in [
        ("bridge", json!(7)),
        ("isGateway", json!("yes")),
        ("mtu", json!("1500")),
        ("mtu", json!(1500.5)),
        ("vlan", json!("7")),
        ("vlanTrunk", json!({"id": 7})),
        ("ipMasq", json!(1)),
        ("dns", json!(["192.0.2.53"])),
        ("ipam", json!("host-local")),
    ] {
        refused(host, with(gateway4(), json!({key: value})), &[key])?;
    }
    Ok(())
}

fn an_mtu_that_cannot_be_is_refused(host: &Sandbox) -> Result<()> {
    for mtu in [-1, 70000, 10] {
        refused(host, with(gateway4(), json!({"mtu": mtu})), &["mtu", &mtu.to_string()])?;
    }
    Ok(())
}

fn a_namespace_that_is_none_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    for netns in ["/run/netns/none", "/etc/passwd", "/run/netns", "/dev/null"] {
        let call = bridge("pod1", &pod, gateway4()).env("CNI_NETNS", netns);
        let refusal = call.add().run(host)?.refusal().with_context(|| netns.to_owned())?;
        holds(refusal.text().contains(netns), format!("{netns} is not in the error: {}", refusal.text()))?;
        before.restored(host, &[&pod]).with_context(|| netns.to_owned())?;
    }
    Ok(())
}

fn invalid_configurations_do_not_hinder_del(host: &Sandbox) -> Result<()> {
    for (index, keys) in [
        json!({"vlan": 5000}),
        json!({"hairpinMode": true, "promiscMode": true}),
        json!({"ipMasq": true, "ipMasqBackend": "ebtables"}),
        json!({"disableContainerInterface": true}),
        json!({"ipam": {"type": "host-local"}}),
    ]
    .into_iter()
    .enumerate()
    {
        let one = Attachment::new(host, &format!("p{index}"), gateway4())?;
        let mut call = one.call.del();
        for (key, value) in keys.as_object().into_iter().flatten() {
            call = call.set(key, value.clone());
        }
        call.run(host)?.silence().with_context(|| format!("DEL with {keys}"))?;
        equal(format!("links after DEL with {keys}"), one.pod.link_names()?, ["lo"])?;
        equal(format!("leases after DEL with {keys}"), host.leases("net")?, Vec::<String>::new())?;
    }
    Ok(())
}

fn an_invalid_configuration_has_the_code_for_it(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for keys in [
        json!({"vlan": 5000}),
        json!({"vlanTrunk": [{"id": 5000}]}),
        json!({"hairpinMode": true, "promiscMode": true}),
        json!({"disableContainerInterface": true}),
        json!({"ipMasq": true, "ipMasqBackend": "ebtables"}),
        json!({"ipam": pool(&["10.20.0.0/31"])}),
    ] {
        let what = keys.to_string();
        let refusal = bridge("pod1", &pod, with(gateway4(), keys)).add().run(host)?.refusal()?;
        // 2: unsupported field; 7: invalid network configuration.
        holds(matches!(refusal.code, 2 | 7), format!("{what}: code {}: {}", refusal.code, refusal.text()))?;
    }
    Ok(())
}

/// VLANs of a port as `id flags`, ranges spelled out as `from-to flags`.
fn vlans(host: &Sandbox, link: &str) -> Result<Vec<String>> {
    let shown = host.run(&["bridge", "-j", "-compressvlans", "vlan", "show", "dev", link])?;
    let list: Vec<Value> = serde_json::from_str(&shown)?;
    let mut found = Vec::new();
    for vlan in list.iter().flat_map(|entry| entry["vlans"].as_array().into_iter().flatten()) {
        let flags: Vec<&str> =
            vlan["flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let end = vlan["vlanEnd"].as_u64().map(|end| format!("-{end}")).unwrap_or_default();
        found.push(format!("{}{end} {}", vlan["vlan"], flags.join(",")).trim_end().to_owned());
    }
    Ok(found)
}

fn a_vlan_is_the_only_one_of_the_port(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({"vlan": 100}))?;
    equal("VLANs of the port", vlans(host, one.host_link()?)?, ["100 PVID,Egress Untagged"])?;
    one.sound(host)
}

fn a_trunk_is_tagged(host: &Sandbox) -> Result<()> {
    let trunk = json!([{"id": 101}, {"minID": 200, "maxID": 203}, {"id": 201}]);
    let one = Attachment::new(host, "a", json!({"vlanTrunk": trunk}))?;
    equal("VLANs of the port", vlans(host, one.host_link()?)?, ["1 PVID,Egress Untagged", "101", "200-203"])?;
    let two = Attachment::new(host, "b", json!({"vlan": 100, "vlanTrunk": trunk}))?;
    equal("with a native one", vlans(host, two.host_link()?)?, ["100 PVID,Egress Untagged", "101", "200-203"])
}

fn the_default_vlan_is_kept_on_request(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({"vlan": 100, "preserveDefaultVlan": true}))?;
    equal(
        "VLANs of the port",
        vlans(host, one.host_link()?)?,
        ["1 Egress Untagged", "100 PVID,Egress Untagged"],
    )
}

fn the_gateway_of_a_vlan_is_a_link_of_its_own(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway4(), json!({"vlan": 100})))?;
    let interfaces = list_at(&one.result, "/interfaces")?;
    equal("interfaces", interfaces.len(), 4)?;
    equal("fourth", text_at(&interfaces[3], "/name")?, "cni0.100")?;
    equal("kind", text_at(&host.need_link("cni0.100")?, "/linkinfo/info_kind")?, "veth")?;
    equal("its address", host.addresses("cni0.100")?, ["10.20.0.1/24"])?;
    equal("addresses of the bridge", host.addresses("cni0")?, Vec::<String>::new())?;
    one.pod.ping("10.20.0.1")?;
    let two = Attachment::new(host, "b", with(gateway4(), json!({"vlan": 100})))?;
    two.pod.ping("10.20.0.1")?;
    one.del(host)?;
    equal("its address after DEL", host.addresses("cni0.100")?, ["10.20.0.1/24"])
}

fn the_port_of_the_gateway_is_in_the_vlan(host: &Sandbox) -> Result<()> {
    for (id, keep, wanted) in [
        (100, false, vec!["100 PVID,Egress Untagged"]),
        (200, true, vec!["1 Egress Untagged", "200 PVID,Egress Untagged"]),
    ] {
        let conf = with(gateway4(), json!({"vlan": id, "preserveDefaultVlan": keep}));
        let one = Attachment::new(host, &format!("pod{id}"), conf)?;
        let link = host.need_link(&format!("cni0.{id}"))?;
        let port = text_at(&link, "/link")?;
        equal(format!("VLANs of the gateway's port {port}"), vlans(host, port)?, wanted)?;
        one.del(host)?;
    }
    Ok(())
}

fn a_forced_gateway_of_a_vlan_leaves_that_of_living_pods(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway4(), json!({"vlan": 100})))?;
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.21.0.0/24"}]]});
    let moved = json!({"vlan": 100, "forceAddress": true, "name": "moved", "ipam": ipam});
    Attachment::new(host, "b", with(gateway4(), moved))?;
    let addresses = host.addresses("cni0.100")?;
    for gateway in ["10.20.0.1/24", "10.21.0.1/24"] {
        holds(addresses.iter().any(|have| have == gateway), format!("{gateway} is not among {addresses:?}"))?;
    }
    one.pod.ping("10.20.0.1")
}

fn a_vlan_is_refused_where_bridges_do_not_filter(host: &Sandbox) -> Result<()> {
    if Need::VlanFiltering.unmet(host).is_none() {
        // This kernel can, so the bridge must be one that was made without.
        host.ip_set("link add cni0 address 02:00:00:00:00:01 type bridge vlan_filtering 0")?;
        host.ip_set("link set cni0 up")?;
    }
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let answer = bridge("pod1", &pod, json!({"vlan": 100})).add().run(host)?;
    if answer.status() == Some(0) {
        // Then the VLAN must be in force.
        let result = answer.result()?;
        return soon(|| {
            let filters = host.need_link("cni0")?["linkinfo"]["info_data"]["vlan_filtering"].as_u64();
            equal("vlan_filtering", filters, Some(1))?;
            let port = vlans(host, text_at(&result, "/interfaces/1/name")?)?;
            equal("VLANs of the port", port, ["100 PVID,Egress Untagged"])
        });
    }
    answer.refusal()?;
    before.restored(host, &[&pod])
}
