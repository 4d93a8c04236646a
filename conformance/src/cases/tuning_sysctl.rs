//! The plugin `tuning`: sysctls of the pod's namespace.

use std::fs;

use anyhow::Result;
use serde_json::json;

use super::cases;
use super::networks::NEWEST;
use super::tuning::{pod, prev, tuning};
use crate::case::Need;
use crate::expect::{contains, equal, same_json};
use crate::sandbox::Sandbox;

const TUNING: Need = Need::Plugin("tuning");
/// What only this suite does.
const TOOL: Need = Need::Plugin("bridgehead");

const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

cases! {
    "tuning/sysctl" {
        sysctls_are_set_and_checked needs [TUNING];
        names_are_read_with_dots_and_slashes needs [TUNING];
        interfaces_with_dots_can_be_named needs [TUNING, TOOL];
        sysctls_of_the_call_need_no_others needs [TUNING, TOOL];
        lists_of_numbers_are_compared_as_such needs [TUNING, TOOL];
        only_net_can_be_set needs [TUNING];
        duplicates_are_refused needs [TUNING];
        the_allowlist_is_obeyed needs [TUNING];
        the_allowlist_is_anchored needs [TUNING, TOOL];
        a_broken_allowlist_allows_nothing needs [TUNING];
    }
}

fn sysctls_are_set_and_checked(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let keys = json!({"sysctl": {
        "net.ipv4.conf.all.log_martians": "1", "net.ipv4.conf.IFNAME.arp_filter": "1",
        "net/ipv4/conf/IFNAME/arp_ignore": "2",
    }});
    let call = tuning(&pod, keys);
    let result = call.add().run(host)?.result()?;
    same_json("result", &result, &prev(&pod))?;
    equal("log_martians", pod.sysctl("ipv4/conf/all/log_martians")?, "1")?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "1")?;
    equal("arp_ignore", pod.sysctl("ipv4/conf/eth0/arp_ignore")?, "2")?;
    equal("the host's", host.sysctl("ipv4/conf/all/log_martians")?, "0")?;
    call.check().prev(&result).run(host)?.silence()?;
    pod.set_sysctl("ipv4/conf/eth0/arp_ignore", "0")?;
    let text = call.check().prev(&result).run(host)?.refusal()?.text();
    contains("CHECK", &text, "arp_ignore")?;
    call.del().prev(&result).run(host)?.silence()?;
    // They are the namespace's, and stay.
    equal("log_martians after DEL", pod.sysctl("ipv4/conf/all/log_martians")?, "1")
}

fn names_are_read_with_dots_and_slashes(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    for (value, key) in [
        ("1", "net.ipv4.conf.eth0.arp_ignore"),
        ("2", "net/ipv4/conf/eth0/arp_ignore"),
        ("1", "net/ipv4.conf/eth0.arp_ignore"),
        ("2", "/net.ipv4//conf.IFNAME.arp_ignore"),
    ] {
        let call = tuning(&pod, json!({"sysctl": {key: value}}));
        call.add().run(host)?.result()?;
        equal(key, pod.sysctl("ipv4/conf/eth0/arp_ignore")?, value)?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

fn interfaces_with_dots_can_be_named(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    pod.ip_set("link set eth0 down")?;
    pod.ip_set("link set eth0 name eth0.5")?;
    host.ip_set("link add host1 type veth peer name eth1.7 netns p")?;
    for (value, key, link) in [
        ("1", "net.ipv4.conf.IFNAME.arp_ignore", "eth0.5"),
        ("2", "net.ipv4.conf.eth0.5.arp_ignore", "eth0.5"),
        ("1", "net/ipv4/conf/eth0.5/arp_ignore", "eth0.5"),
        ("2", "net.ipv4.conf.eth0/5.arp_ignore", "eth0.5"),
        ("1", "net/ipv4/conf/eth1.7/arp_ignore", "eth1.7"),
        ("2", "net.ipv4.conf.eth1/7.arp_ignore", "eth1.7"),
    ] {
        let call = tuning(&pod, json!({"sysctl": {key: value}})).ifname("eth0.5");
        let result = call.add().run(host)?.result()?;
        equal(key, pod.sysctl(&format!("ipv4/conf/{link}/arp_ignore"))?, value)?;
        call.check().prev(&result).run(host)?.silence()?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

fn sysctls_of_the_call_need_no_others(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let args = json!({"cni": {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}});
    tuning(&pod, json!({"args": args})).add().run(host)?.result()?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "1")
}

fn lists_of_numbers_are_compared_as_such(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let call = tuning(&pod, json!({"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}}));
    let result = call.add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()
}

fn only_net_can_be_set(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    for key in ["kernel.hostname", "net/../kernel/hostname", "vm.swappiness", "netx.core.somaxconn", ""] {
        let refusal = tuning(&pod, json!({"sysctl": {key: "1", "net.ipv4.conf.IFNAME.arp_filter": "1"}}))
            .add()
            .run(host)?;
        contains("message", &refusal.refusal()?.text(), &key.replace('.', "/"))
            .or_else(|_| contains("message", &refusal.refusal()?.text(), key))?;
        equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "0")?;
    }
    Ok(())
}

fn duplicates_are_refused(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "type": "tuning", "prevResult": {}, "sysctl": {{
            "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.arp_filter": "0"}}}}"#,
        prev(&pod)
    );
    let call = tuning(&pod, json!({})).stdin(text.as_bytes());
    for call in [call.add(), call.check()] {
        contains("message", &call.run(host)?.refusal()?.text(), "duplicate")?;
    }
    Ok(())
}

fn allow(text: &str) -> Result<()> {
    fs::create_dir_all("/etc/cni/tuning")?;
    Ok(fs::write(ALLOWLIST, text)?)
}

fn the_allowlist_is_obeyed(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    allow("\n  ^net.ipv4.conf.IFNAME.[a-z_]*$\n^net\\.core\\.somaxconn$\n")?;
    let refused = tuning(
        &pod,
        json!({"sysctl": {
        "net.ipv4.conf.all.log_martians": "1", "net.ipv4.conf.IFNAME.arp_filter": "1"}}),
    );
    let text = refused.add().run(host)?.refusal()?.text();
    contains("message", &text, "net.ipv4.conf.all.log_martians")
        .or_else(|_| contains("message", &text, "allow"))?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "0")?;
    let allowed = json!({"net.core.somaxconn": "555", "net.ipv4.conf.IFNAME.arp_filter": "1"});
    let call = tuning(&pod, json!({"sysctl": allowed}));
    let result = call.add().run(host)?.result()?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "1")?;
    // What is there is not judged by it.
    allow("")?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    call.add().run(host)?.refusal().map(drop)
}

fn the_allowlist_is_anchored(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    allow("net.ipv4.conf.IFNAME.forwarding\nnet.ipv4.conf.(all|IFNAME).arp\n")?;
    for key in ["net.ipv4.conf.IFNAME.arp_filter", "net.ipv4.conf.all.arp_filter"] {
        let refusal = tuning(&pod, json!({"sysctl": {key: "1"}})).add().run(host)?.refused_with(7)?;
        contains("message", &refusal.text(), key)?;
        contains("message", &refusal.text(), ALLOWLIST)?;
    }
    let status =
        tuning(&pod, json!({"cniVersion": NEWEST, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}));
    status.status().run(host)?.refused_with(50)?;
    tuning(&pod, json!({"sysctl": {"net.ipv4.conf.IFNAME.forwarding": "1"}}))
        .add()
        .run(host)?
        .result()
        .map(drop)
}

fn a_broken_allowlist_allows_nothing(host: &Sandbox) -> Result<()> {
    let pod = pod(host)?;
    allow("net.(\n")?;
    let call = tuning(&pod, json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}));
    call.add().run(host)?.refusal()?;
    equal("arp_filter", pod.sysctl("ipv4/conf/eth0/arp_filter")?, "0")
}
