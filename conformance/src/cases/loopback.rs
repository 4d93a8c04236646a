//! The plugin `loopback`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, VERSIONS};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{equal, holds, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "loopback" {
        lo_comes_up;
        another_interface_name_means_lo;
        cni_args_are_not_read;
        the_result_names_lo_and_its_addresses needs [Need::Ipv6];
        old_versions_get_old_results needs [Need::Ipv6];
        a_previous_result_is_echoed;
        a_foreign_address_is_an_error;
        add_twice_succeeds;
        del_takes_lo_down;
        del_needs_no_namespace;
        check_sees_whether_lo_is_up;
        a_file_that_is_no_namespace_is_refused;
        status_and_gc_are_silent;
    }
}

fn call(pod: &Pod) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "lo-net", "type": "loopback"});
    Call::new("loopback").id("c1").ifname("lo").netns(pod).config(config)
}

fn is_up(pod: &Pod) -> Result<bool> {
    let lo = pod.need_link("lo")?;
    Ok(lo["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP")))
}

fn lo_comes_up(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for version in &VERSIONS[..6] {
        let call = call(&pod).set("cniVersion", json!(version));
        equal("lo is up at first", is_up(&pod)?, false)?;
        call.add().run(host)?.result().with_context(|| format!("ADD in {version}"))?;
        equal(format!("lo is up after ADD in {version}"), is_up(&pod)?, true)?;
        call.del().run(host)?.silence()?;
    }
    pod.ip_set("link set lo up")
}

fn another_interface_name_means_lo(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let result = call(&pod).ifname("eth0").add().run(host)?.result()?;
    equal("lo is up", is_up(&pod)?, true)?;
    equal("name", text_at(&result, "/interfaces/0/name")?, "lo")
}

fn cni_args_are_not_read(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let call = call(&pod).args("none");
    let result = call.add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().run(host)?.silence()
}

fn the_result_names_lo_and_its_addresses(host: &Sandbox) -> Result<()> {
    for (version, name) in [("0.3.1", "a"), ("0.4.0", "b"), ("1.0.0", "c")] {
        let pod = host.pod(name)?;
        let result = call(&pod).set("cniVersion", json!(version)).add().run(host)?.result()?;
        equal("version", text_at(&result, "/cniVersion")?, version)?;
        let interfaces = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.netns()}]);
        same_json("interfaces", &result["interfaces"], &interfaces)?;
        let mut ips =
            json!([{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}]);
        if version.starts_with('0') {
            ips[0]["version"] = json!("4");
            ips[1]["version"] = json!("6");
        }
        same_json(format!("ips in {version}"), &result["ips"], &ips)?;
    }
    Ok(())
}

fn old_versions_get_old_results(host: &Sandbox) -> Result<()> {
    for (version, name) in [("0.1.0", "a"), ("0.2.0", "b")] {
        let pod = host.pod(name)?;
        let result = call(&pod).set("cniVersion", json!(version)).add().run(host)?.result()?;
        equal("ip4", text_at(&result, "/ip4/ip")?, "127.0.0.1/8")?;
        equal("ip6", text_at(&result, "/ip6/ip")?, "::1/128")?;
        holds(
            result.get("ips").is_none() && result.get("interfaces").is_none(),
            format!("{version}: {result}"),
        )?;
    }
    Ok(())
}

fn a_previous_result_is_echoed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let prev = json!({
        "cniVersion": USUAL,
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": pod.netns()}],
        "ips": [{"interface": 0, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let result = call(&pod).prev(&prev).add().run(host)?.result()?;
    same_json("result", &result, &prev)?;
    equal("lo is up", is_up(&pod)?, true)
}

fn a_foreign_address_is_an_error(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    pod.ip_set("addr add 10.9.9.9/32 dev lo")?;
    call(&pod).add().run(host)?.refusal().map(drop)
}

fn add_twice_succeeds(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let first = call(&pod).add().run(host)?.result()?;
    let second = call(&pod).add().run(host)?.result()?;
    same_json("second result", &second, &first)
}

fn del_takes_lo_down(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    call(&pod).add().run(host)?.result()?;
    call(&pod).del().run(host)?.silence()?;
    equal("lo is up after DEL", is_up(&pod)?, false)?;
    call(&pod).del().run(host)?.silence().context("DEL again")
}

fn del_needs_no_namespace(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let call = call(&pod);
    call.add().run(host)?.result()?;
    call.without("CNI_NETNS").del().run(host)?.silence().context("no CNI_NETNS")?;
    pod.remove()?;
    call.del().run(host)?.silence().context("dangling CNI_NETNS")
}

fn check_sees_whether_lo_is_up(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let call = call(&pod);
    let result = call.add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    pod.ip_set("link set lo down")?;
    call.check().prev(&result).run(host)?.refusal().map(drop)
}

fn a_file_that_is_no_namespace_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for netns in ["/etc/passwd", "/run/netns/none", "/run"] {
        call(&pod).env("CNI_NETNS", netns).add().run(host)?.refusal().with_context(|| netns.to_owned())?;
    }
    Ok(())
}

fn status_and_gc_are_silent(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let call = call(&pod).set("cniVersion", json!(NEWEST));
    call.status().run(host)?.silence()?;
    call.gc().set("cni.dev/valid-attachments", Value::Array(Vec::new())).run(host)?.silence()
}
