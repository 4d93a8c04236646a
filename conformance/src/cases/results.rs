//! What a plugin prints on success, in each version of the protocol.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, VERSIONS, bridge, gateway4, gateway46, host_local, pool};
use crate::case::Need;
use crate::expect::{at, contains, equal, holds, list_at, same_json, text_at};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "spec/results" {
        in_0_1_and_0_2_there_is_ip4;
        in_0_1_and_0_2_there_is_ip6 needs [Need::Ipv6];
        in_0_3_and_0_4_addresses_have_a_version;
        in_1_0_addresses_have_no_version;
        in_1_1_the_shape_is_that_of_1_0;
        both_families_in_every_version needs [Need::Ipv6];
        an_ipam_plugin_names_no_interfaces;
        more_than_one_address_of_a_family_needs_0_3;
        without_addresses_the_oldest_versions_fail_and_leave_nothing;
        dns_of_the_network_replaces_that_of_ipam;
        dns_of_ipam_is_kept;
        lists_that_are_empty_may_be_null_in_the_input;
    }
    "spec/prev-result" {
        a_result_of_the_same_family_is_understood;
        a_result_of_another_family_is_refused;
        a_result_without_version_has_that_of_the_configuration;
        check_without_it_is_refused;
        del_works_whatever_it_says;
    }
}

/// ADD of the usual network for a new pod in that version.
fn added(host: &Sandbox, version: &str, pod: &str, network: Value) -> Result<Value> {
    let pod_netns = host.pod(pod)?;
    let call = bridge(pod, &pod_netns, network).set("cniVersion", json!(version));
    let result = call.add().run(host)?.result().with_context(|| format!("ADD in {version}"))?;
    equal("version of the result", text_at(&result, "/cniVersion")?, version)?;
    call.del().run(host)?.silence().with_context(|| format!("DEL in {version}"))?;
    Ok(result)
}

fn lacks_keys(result: &Value, keys: &[&str]) -> Result<()> {
    for key in keys {
        holds(result.get(key).is_none(), format!("{key} does not belong into {result}"))?;
    }
    Ok(())
}

fn in_0_1_and_0_2_there_is_ip4(host: &Sandbox) -> Result<()> {
    for (version, last) in [("0.1.0", 2), ("0.2.0", 3)] {
        let result = added(host, version, &format!("p{last}"), gateway4())?;
        let wanted = json!({
            "ip": format!("10.20.0.{last}/24"), "gateway": "10.20.0.1",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.20.0.1"}],
        });
        same_json("ip4", at(&result, "/ip4")?, &wanted)?;
        lacks_keys(&result, &["ip6", "ips", "interfaces", "routes"])?;
    }
    Ok(())
}

fn in_0_1_and_0_2_there_is_ip6(host: &Sandbox) -> Result<()> {
    for (version, last) in [("0.1.0", 2), ("0.2.0", 3)] {
        let network = json!({"isDefaultGateway": true, "ipam": pool(&["fd20::/64"])});
        let result = added(host, version, &format!("p{last}"), network)?;
        let wanted = json!({
            "ip": format!("fd20::{last}/64"), "gateway": "fd20::1", "routes": [{"dst": "::/0", "gw": "fd20::1"}],
        });
        same_json("ip6", at(&result, "/ip6")?, &wanted)?;
        lacks_keys(&result, &["ip4", "ips", "interfaces", "routes"])?;
    }
    Ok(())
}

fn in_0_3_and_0_4_addresses_have_a_version(host: &Sandbox) -> Result<()> {
    for (version, last) in [("0.3.0", 2), ("0.3.1", 3), ("0.4.0", 4)] {
        let result = added(host, version, &format!("p{last}"), gateway4())?;
        let wanted = json!([{
            "version": "4", "interface": 2, "address": format!("10.20.0.{last}/24"), "gateway": "10.20.0.1",
        }]);
        same_json("ips", at(&result, "/ips")?, &wanted)?;
        same_json("routes", at(&result, "/routes")?, &json!([{"dst": "0.0.0.0/0", "gw": "10.20.0.1"}]))?;
        equal("interfaces", list_at(&result, "/interfaces")?.len(), 3)?;
        lacks_keys(&result, &["ip4", "ip6"])?;
    }
    Ok(())
}

fn newer_shape(host: &Sandbox, version: &str) -> Result<()> {
    let result = added(host, version, "p2", gateway4())?;
    let wanted = json!([{"interface": 2, "address": "10.20.0.2/24", "gateway": "10.20.0.1"}]);
    same_json("ips", at(&result, "/ips")?, &wanted)?;
    same_json("routes", at(&result, "/routes")?, &json!([{"dst": "0.0.0.0/0", "gw": "10.20.0.1"}]))?;
    equal("interfaces", list_at(&result, "/interfaces")?.len(), 3)?;
    lacks_keys(&result, &["ip4", "ip6"])
}

fn in_1_0_addresses_have_no_version(host: &Sandbox) -> Result<()> {
    newer_shape(host, USUAL)
}

fn in_1_1_the_shape_is_that_of_1_0(host: &Sandbox) -> Result<()> {
    newer_shape(host, NEWEST)
}

fn both_families_in_every_version(host: &Sandbox) -> Result<()> {
    for (index, version) in VERSIONS.iter().enumerate() {
        let last = index + 2;
        let result = added(host, version, &format!("p{last}"), gateway46())?;
        if index < 2 {
            equal("ip4", text_at(&result, "/ip4/ip")?, format!("10.20.0.{last}/24"))?;
            equal("ip6", text_at(&result, "/ip6/ip")?, format!("fd20::{last}/64"))?;
            same_json(
                "v4 routes",
                at(&result, "/ip4/routes")?,
                &json!([{"dst": "0.0.0.0/0", "gw": "10.20.0.1"}]),
            )?;
            same_json("v6 routes", at(&result, "/ip6/routes")?, &json!([{"dst": "::/0", "gw": "fd20::1"}]))?;
            continue;
        }
        equal("first address", text_at(&result, "/ips/0/address")?, format!("10.20.0.{last}/24"))?;
        equal("second address", text_at(&result, "/ips/1/address")?, format!("fd20::{last}/64"))?;
        for (position, family) in ["4", "6"].iter().enumerate() {
            let found = result["ips"][position]["version"].as_str();
            equal(format!("ips/{position}/version in {version}"), found, (index < 5).then_some(*family))?;
        }
        let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.20.0.1"}, {"dst": "::/0", "gw": "fd20::1"}]);
        same_json("routes", at(&result, "/routes")?, &routes)?;
    }
    Ok(())
}

fn an_ipam_plugin_names_no_interfaces(host: &Sandbox) -> Result<()> {
    for (version, id) in VERSIONS[..6].iter().zip(["a", "b", "c", "d", "e", "f"]) {
        let call = host_local(id, json!({"subnet": "10.1.0.0/24"})).set("cniVersion", json!(version));
        let result = call.add().run(host)?.result()?;
        equal("version of the result", text_at(&result, "/cniVersion")?, *version)?;
        lacks_keys(&result, &["interfaces"])?;
        for ip in result["ips"].as_array().into_iter().flatten() {
            lacks_keys(ip, &["interface"])?;
        }
    }
    Ok(())
}

fn more_than_one_address_of_a_family_needs_0_3(host: &Sandbox) -> Result<()> {
    let before = Snapshot::take(host, &[])?;
    for subnets in [["10.1.0.0/24", "10.2.0.0/24"], ["fd01::/64", "fd02::/64"]] {
        for version in ["0.1.0", "0.2.0"] {
            let pod = host.pod("p")?;
            let call =
                bridge("pod1", &pod, json!({"ipam": pool(&subnets)})).set("cniVersion", json!(version));
            let refusal = call.add().run(host)?.refusal()?;
            let text = format!("CNI version {version} does not support more than 1 address per family");
            contains("the error", &refusal.text(), &text)?;
            before.restored(host, &[])?;
            pod.remove()?;
        }
    }
    Ok(())
}

fn without_addresses_the_oldest_versions_fail_and_leave_nothing(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    for version in ["0.1.0", "0.2.0"] {
        let call = bridge("pod1", &pod, json!({})).set("cniVersion", json!(version));
        let refusal = call.add().run(host)?.refusal()?;
        contains("the error", &refusal.text(), "cannot convert: no valid IP addresses")?;
        before.restored(host, &[&pod])?;
    }
    Ok(())
}

fn dns_of_the_network_replaces_that_of_ipam(host: &Sandbox) -> Result<()> {
    let file = host.scratch("resolv.conf", "nameserver 192.0.2.53\nsearch a.example\n")?;
    let mut network = gateway4();
    network["ipam"]["resolvConf"] = json!(file);
    network["dns"] = json!({"nameservers": ["192.0.2.99"], "domain": "b.example", "options": ["ndots:2"]});
    let wanted = network["dns"].clone();
    let result = added(host, USUAL, "p", network)?;
    same_json("dns", at(&result, "/dns")?, &wanted)
}

fn dns_of_ipam_is_kept(host: &Sandbox) -> Result<()> {
    let file = host.scratch("resolv.conf", "nameserver 192.0.2.53\nsearch a.example\n")?;
    for version in ["0.2.0", "0.4.0", USUAL] {
        let mut network = gateway4();
        network["ipam"]["resolvConf"] = json!(file);
        let result = added(host, version, &version.replace('.', ""), network)?;
        let wanted = json!({"nameservers": ["192.0.2.53"], "search": ["a.example"]});
        same_json("dns", at(&result, "/dns")?, &wanted)?;
    }
    Ok(())
}

fn lists_that_are_empty_may_be_null_in_the_input(host: &Sandbox) -> Result<()> {
    let mut network = gateway4();
    network["ipam"]["routes"] = Value::Null;
    network["dns"] = Value::Null;
    network["args"] = Value::Null;
    network["runtimeConfig"] = Value::Null;
    network["mtu"] = Value::Null;
    added(host, USUAL, "p", network).map(drop)
}

fn a_result_of_the_same_family_is_understood(host: &Sandbox) -> Result<()> {
    for (version, other, name) in [("0.4.0", "0.3.1", "a"), ("0.4.0", "0.3.0", "b"), ("1.0.0", "1.0.0", "c")]
    {
        let pod = host.pod(name)?;
        let call = bridge(name, &pod, gateway4()).set("cniVersion", json!(version));
        let mut result = call.add().run(host)?.result()?;
        result["cniVersion"] = json!(other);
        let answer = call.check().prev(&result).run(host)?;
        answer.silence().with_context(|| format!("CHECK in {version} with a result of {other}"))?;
    }
    Ok(())
}

fn a_result_of_another_family_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4());
    let mut result = call.add().run(host)?.result()?;
    for other in ["0.2.0", "0.4.0", "7.0.0"] {
        result["cniVersion"] = json!(other);
        let answer = call.check().prev(&result).run(host)?;
        answer.refusal().with_context(|| format!("CHECK in {USUAL} with a result of {other}"))?;
    }
    Ok(())
}

fn a_result_without_version_has_that_of_the_configuration(host: &Sandbox) -> Result<()> {
    for (version, name) in [("0.4.0", "a"), ("1.0.0", "b")] {
        let pod = host.pod(name)?;
        let call = bridge(name, &pod, gateway4()).set("cniVersion", json!(version));
        let mut result = call.add().run(host)?.result()?;
        if let Some(object) = result.as_object_mut() {
            object.remove("cniVersion");
        }
        call.check().prev(&result).run(host)?.silence().with_context(|| format!("CHECK in {version}"))?;
    }
    Ok(())
}

fn check_without_it_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, gateway4());
    call.add().run(host)?.result()?;
    let refusal = call.check().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "prevResult")
}

fn del_works_whatever_it_says(host: &Sandbox) -> Result<()> {
    let foreign = json!({
        "cniVersion": "0.2.0", "ip4": {"ip": "10.99.0.2/24"},
    });
    let broken = json!({"cniVersion": "1.0.0", "interfaces": [], "ips": [{"interface": 7, "address": "10.20.0.9/24"}]});
    let unknown = json!({"cniVersion": "9.9.9"});
    for (name, result) in
        [("a", foreign), ("b", broken), ("c", unknown), ("d", json!({})), ("e", Value::Null)]
    {
        let pod = host.pod(name)?;
        let call = bridge(name, &pod, gateway4());
        call.add().run(host)?.result()?;
        call.del().prev(&result).run(host)?.silence().with_context(|| format!("DEL with {result}"))?;
        equal("links in the pod", pod.link_names()?, ["lo"])?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}
