//! ADD and DEL in all their forms, and pods of the reference.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{back_end, chain_of, gone, nat, portmap, ruleset, tcp};
use crate::call::Call;
use crate::cases::networks::{Attachment, NEWEST, gateway4, with};
use crate::expect::{contains, equal, lacks};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn the_result_is_passed_on(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    for version in ["0.3.1", "0.4.0", "1.0.0", NEWEST] {
        let previous = json!({
            "cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": one.pod.netns(), "mac": "02:00:00:00:00:01"}],
            "ips": [{"version": "4", "interface": 0, "address": "10.20.0.2/24", "gateway": "10.20.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["192.0.2.53"]},
        });
        let call = portmap("a", &one, tcp(8080, 80), json!({"cniVersion": version})).prev(&previous);
        let result = call.add().run(host)?.result()?;
        equal(format!("address, {version}"), &result["ips"][0]["address"], "10.20.0.2/24")?;
        equal(format!("name server, {version}"), &result["dns"]["nameservers"][0], "192.0.2.53")?;
        equal(format!("version, {version}"), &result["cniVersion"], version)?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

pub(super) fn nothing_to_map_is_nothing_to_do(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let before = Snapshot::take(host, &[])?.rules();
    for mappings in [json!([]), Value::Null, json!([{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}])]
    {
        let is_zero = mappings[0]["hostPort"] == 0;
        if is_zero && !host.plugins().join("bridgehead").exists() {
            continue;
        }
        let call = portmap("a", &one, mappings, json!({}));
        call.add().run(host)?.result()?;
        Snapshot::take(host, &[])?.rules().unchanged_since(&before)?;
        call.check().run(host)?.silence()?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

pub(super) fn add_without_a_result_is_refused(host: &Sandbox) -> Result<()> {
    let config = json!({"cniVersion": NEWEST, "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": tcp(8080, 80)}});
    let call = Call::new("portmap").id("a").ifname("eth0").somewhere().config(config);
    contains("refusal", &call.add().run(host)?.refusal()?.text(), "chained")?;
    call.check().run(host)?.refusal()?;
    call.del().run(host)?.silence()
}

pub(super) fn add_again_changes_nothing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    // The reference's nftables rules are there twice then.
    let is_reference = !host.plugins().join("bridgehead").exists();
    for name in if is_reference { &["iptables"][..] } else { &["iptables", "nftables"] } {
        let call = portmap("a", &one, tcp(8080, 80), back_end(name));
        let result = call.add().run(host)?.result()?;
        let before = Snapshot::take(host, &[])?.rules();
        equal("result", call.add().run(host)?.result()?, result)?;
        Snapshot::take(host, &[])?.rules().unchanged_since(&before)?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

pub(super) fn del_works_in_all_ways(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    for name in ["iptables", "nftables"] {
        let call = portmap("a", &one, tcp(8080, 80), back_end(name));
        let bare = call.set("prevResult", Value::Null);
        for (what, del) in [
            ("as usual", call.clone()),
            ("twice", call.clone()),
            ("without CNI_NETNS", call.without("CNI_NETNS")),
            ("without prevResult", bare.clone()),
            ("with a dangling CNI_NETNS", bare.env("CNI_NETNS", "/run/netns/gone")),
        ] {
            call.add().run(host)?.result().with_context(|| format!("{name} {what}"))?;
            del.del().run(host)?.silence().with_context(|| format!("{name} {what}"))?;
            gone(host, what)?;
            del.del().run(host)?.silence().with_context(|| format!("{name} {what}, again"))?;
        }
    }
    Ok(())
}

pub(super) fn del_removes_what_the_other_back_end_made(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    for (then, now) in [("iptables", "nftables"), ("nftables", "iptables")] {
        for has_record in [true, false] {
            portmap("a", &one, tcp(8080, 80), back_end(then)).add().run(host)?.result()?;
            if !has_record {
                std::fs::remove_dir_all("/run/bridgehead/attachments/portmap")?;
            }
            portmap("a", &one, tcp(8080, 80), back_end(now)).del().run(host)?.silence()?;
            gone(host, then)?;
            let names: Vec<_> =
                std::fs::read_dir("/run/bridgehead/ports")?.collect::<std::io::Result<_>>()?;
            equal("files of claims", names.len(), 1)?;
        }
        // With a configuration that is wrong, too.
        portmap("a", &one, tcp(8080, 80), back_end(then)).add().run(host)?.result()?;
        portmap("a", &one, tcp(8080, 0), back_end("nonsense")).del().run(host)?.silence()?;
        gone(host, then)?;
    }
    Ok(())
}

/// It claims no ports.
pub(super) fn check_finds_right_what_the_reference_made(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("iptables")).set("cniVersion", json!("1.0.0"));
    let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
    call.from(REFERENCE).add().run(host)?.result()?;
    call.check().run(host)?.silence()?;
    let chain = chain_of(&nat(host, "iptables")?, "a")?;
    host.run(&["iptables", "-w", "-t", "nat", "-F", &chain])?;
    call.check().run(host)?.refused_with(103)?;
    call.del().run(host)?.silence()
}

pub(super) fn del_removes_what_the_reference_left(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    for name in ["iptables", "nftables"] {
        let call = portmap("a", &one, tcp(8080, 80), back_end(name)).set("cniVersion", json!("1.0.0"));
        let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
        call.from(REFERENCE).add().run(host)?.result()?;
        contains("rules", &ruleset(host)?, "8080")?;
        call.without("CNI_NETNS").del().run(host)?.silence()?;
        let rules = ruleset(host)?;
        lacks(format!("rules of {name}"), &rules, "8080")?;
        lacks(format!("rules of {name}"), &rules, "comment \"a\"")?;
    }
    Ok(())
}

pub(super) fn the_reference_removes_what_is_left_here(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("iptables")).set("cniVersion", json!("1.0.0"));
    let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
    call.add().run(host)?.result()?;
    call.from(REFERENCE).del().run(host)?.silence()?;
    lacks("rules", &nat(host, "iptables")?.join("\n"), "8080")
}

pub(super) fn localhost_is_routed_to_the_bridge(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({"snat": false})).add().run(host)?.result()?;
    equal("route_localnet without snat", host.sysctl("ipv4/conf/cni0/route_localnet")?.as_str(), "0")?;
    let two = Attachment::new(host, "b", gateway4())?;
    portmap("b", &two, tcp(8081, 80), json!({})).add().run(host)?.result()?;
    equal("route_localnet", host.sysctl("ipv4/conf/cni0/route_localnet")?.as_str(), "1")
}
