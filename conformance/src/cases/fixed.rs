//! The plugin `static`: addresses that the configuration, the runtime or the caller names.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, VERSIONS, fixed};
use crate::call::Call;
use crate::expect::{contains, equal, holds, same_json, text_at};
use crate::sandbox::Sandbox;

cases! {
    "static/addresses" {
        addresses_routes_and_dns_are_echoed;
        every_version_has_its_shape;
        the_same_destination_may_come_twice;
        no_address_at_all_is_accepted;
        host_addresses_are_accepted;
        cni_args_add_addresses;
        cni_args_name_gateways;
        args_replace_the_configuration;
        runtime_config_replaces_all;
        routes_keep_what_1_1_has;
    }
    "static/errors" {
        an_address_needs_a_prefix;
        a_gateway_must_be_an_address;
        ipam_is_missing;
        an_old_version_has_one_address_a_family;
    }
    "static/verbs" {
        del_succeeds_whatever_the_configuration;
        check_is_silent_when_all_is_there;
        check_needs_a_previous_result;
        check_sees_another_gateway;
        check_sees_a_missing_address;
        status_and_gc_are_silent;
    }
}

fn two() -> Call {
    fixed(json!({
        "addresses": [
            {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
            {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff:0::1"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "192.168.0.0/16", "gw": "10.10.5.1"},
            {"dst": "3ffe:ffff:0:1ff::/64"},
        ],
        "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]},
    }))
}

fn addresses(host: &Sandbox, call: &Call) -> Result<Vec<String>> {
    let result = call.add().run(host)?.result()?;
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().map(|ip| text_at(ip, "/address").map(str::to_owned)).collect()
}

fn addresses_routes_and_dns_are_echoed(host: &Sandbox) -> Result<()> {
    let result = two().add().run(host)?.result()?;
    let ips = json!([
        {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
        {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff::1"},
    ]);
    same_json("ips", &result["ips"], &ips)?;
    let routes = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}, {"dst": "3ffe:ffff:0:1ff::/64"},
    ]);
    same_json("routes", &result["routes"], &routes)?;
    let dns = json!({"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]});
    same_json("dns", &result["dns"], &dns)?;
    holds(result.get("interfaces").is_none(), "an IPAM plugin names no interfaces")
}

fn every_version_has_its_shape(host: &Sandbox) -> Result<()> {
    for version in &VERSIONS[..6] {
        let result = two().set("cniVersion", json!(version)).add().run(host)?.result()?;
        equal("version", text_at(&result, "/cniVersion")?, *version)?;
        if version.starts_with("0.1") || version.starts_with("0.2") {
            let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}]);
            let wanted = json!({"ip": "10.10.0.1/24", "gateway": "10.10.0.254", "routes": routes});
            same_json(format!("ip4 in {version}"), &result["ip4"], &wanted)?;
        } else {
            let family = result["ips"][0]["version"].as_str();
            equal(
                format!("version of the address in {version}"),
                family,
                (!version.starts_with('1')).then_some("4"),
            )?;
        }
    }
    Ok(())
}

fn the_same_destination_may_come_twice(host: &Sandbox) -> Result<()> {
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.2"}]);
    let call = fixed(json!({"addresses": [{"address": "10.1.0.5/24"}], "routes": routes}));
    same_json("routes", &call.add().run(host)?.result()?["routes"], &routes)
}

fn no_address_at_all_is_accepted(host: &Sandbox) -> Result<()> {
    equal("addresses", addresses(host, &fixed(json!({})))?, Vec::<String>::new())?;
    equal("addresses", addresses(host, &fixed(json!({"addresses": []})))?, Vec::<String>::new())
}

fn host_addresses_are_accepted(host: &Sandbox) -> Result<()> {
    let list = json!([{"address": "10.1.0.5/32"}, {"address": "fd20::5/128"}]);
    equal("addresses", addresses(host, &fixed(json!({"addresses": list})))?, ["10.1.0.5/32", "fd20::5/128"])
}

fn cni_args_add_addresses(host: &Sandbox) -> Result<()> {
    let call = fixed(json!({"addresses": [{"address": "10.1.0.5/24"}]})).args("IP=10.2.0.5/24,fd20::5/64");
    equal("addresses", addresses(host, &call)?, ["10.1.0.5/24", "10.2.0.5/24", "fd20::5/64"])
}

fn cni_args_name_gateways(host: &Sandbox) -> Result<()> {
    let call = fixed(json!({})).args("IP=10.2.0.5/24,fd20::5/64;GATEWAY=10.2.0.1,fd20::1");
    let result = call.add().run(host)?.result()?;
    let wanted = json!([
        {"address": "10.2.0.5/24", "gateway": "10.2.0.1"}, {"address": "fd20::5/64", "gateway": "fd20::1"},
    ]);
    same_json("ips", &result["ips"], &wanted)
}

fn args_replace_the_configuration(host: &Sandbox) -> Result<()> {
    let call = two().set("args", json!({"cni": {"ips": ["10.7.0.7/16"]}})).args("IP=10.8.0.8/24");
    equal("addresses", addresses(host, &call)?, ["10.7.0.7/16"])
}

fn runtime_config_replaces_all(host: &Sandbox) -> Result<()> {
    let call = two().set("args", json!({"cni": {"ips": ["10.7.0.7/16"]}})).args("IP=10.8.0.8/24");
    let call = call.set("runtimeConfig", json!({"ips": ["10.9.0.9/24", "fd99::9/64"]}));
    equal("addresses", addresses(host, &call)?, ["10.9.0.9/24", "fd99::9/64"])
}

fn routes_keep_what_1_1_has(host: &Sandbox) -> Result<()> {
    let routes = json!([
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 100, "scope": 253},
    ]);
    let call = fixed(json!({"addresses": [{"address": "10.1.0.5/24"}], "routes": routes}));
    same_json("routes", &call.set("cniVersion", json!(NEWEST)).add().run(host)?.result()?["routes"], &routes)
}

fn refused(host: &Sandbox, call: &Call, part: &str) -> Result<()> {
    let refusal = call.add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), part)
}

fn an_address_needs_a_prefix(host: &Sandbox) -> Result<()> {
    for address in ["10.1.0.5", "10.1.0/24", "10.1.0.5/33", "text", ""] {
        refused(host, &fixed(json!({"addresses": [{"address": address}]})), address).context("ipam")?;
    }
    refused(host, &fixed(json!({})).set("args", json!({"cni": {"ips": ["10.1.0.5"]}})), "10.1.0.5")
        .context("args")?;
    refused(host, &fixed(json!({})).set("runtimeConfig", json!({"ips": ["10.1.0.5"]})), "10.1.0.5")
        .context("runtime")?;
    refused(host, &fixed(json!({})).args("IP=10.1.0.5"), "10.1.0.5").context("CNI_ARGS")
}

fn a_gateway_must_be_an_address(host: &Sandbox) -> Result<()> {
    refused(host, &fixed(json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "x.y"}]})), "x.y")?;
    refused(host, &fixed(json!({})).args("IP=10.1.0.5/24;GATEWAY=x.y"), "x.y")
}

fn ipam_is_missing(host: &Sandbox) -> Result<()> {
    let call = fixed(json!({})).set("ipam", Value::Null);
    refused(host, &call, "ipam")?;
    refused(host, &call.set("runtimeConfig", json!({"ips": ["10.1.0.5/24"]})), "ipam")
}

fn an_old_version_has_one_address_a_family(host: &Sandbox) -> Result<()> {
    let call = fixed(json!({"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.2.0.5/24"}]}));
    for version in ["0.1.0", "0.2.0"] {
        let text = format!("CNI version {version} does not support more than 1 address per family");
        refused(host, &call.set("cniVersion", json!(version)), &text)?;
    }
    Ok(())
}

fn del_succeeds_whatever_the_configuration(host: &Sandbox) -> Result<()> {
    two().del().run(host)?.silence()?;
    two().without("CNI_NETNS").del().run(host)?.silence()?;
    two().set("ipam", Value::Null).del().run(host)?.silence().context("no ipam")?;
    fixed(json!({"addresses": [{"address": "text"}]})).del().run(host)?.silence().context("a bad address")
}

fn check_is_silent_when_all_is_there(host: &Sandbox) -> Result<()> {
    for version in ["0.4.0", "1.0.0"] {
        let call = two().set("cniVersion", json!(version));
        let result = call.add().run(host)?.result()?;
        call.check().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn check_needs_a_previous_result(host: &Sandbox) -> Result<()> {
    contains("the error", &two().check().run(host)?.refusal()?.text(), "prevResult")
}

fn check_sees_another_gateway(host: &Sandbox) -> Result<()> {
    let mut result = two().add().run(host)?.result()?;
    result["ips"][0]["gateway"] = json!("10.10.0.7");
    two().check().prev(&result).run(host)?.refusal().map(drop)
}

fn check_sees_a_missing_address(host: &Sandbox) -> Result<()> {
    let mut result = two().add().run(host)?.result()?;
    result["ips"][0]["address"] = json!("10.10.0.9/24");
    two().check().prev(&result).run(host)?.refusal().map(drop)
}

fn status_and_gc_are_silent(host: &Sandbox) -> Result<()> {
    let call = two().set("cniVersion", json!(NEWEST));
    call.status().run(host)?.silence()?;
    call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()
}
