//! DEL in all its forms.

use anyhow::{Context, Result};
use serde_json::json;

use super::{Walled, filter, firewall, made_up, nothing_of_pods, other_network};
use crate::cases::networks::{gateway4, gateway46};
use crate::expect::{contains, lacks};
use crate::sandbox::{REFERENCE, Sandbox};

pub(super) fn del_removes_the_rules_of_the_pod(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), json!({}))?;
    let two = Walled::new(host, "b", gateway46(), json!({}))?;
    for _ in 0..2 {
        one.call.del().prev(&one.result).run(host)?.silence()?;
        let rules = filter(host, "iptables")?.join("\n");
        lacks("rules after DEL", &rules, "10.20.0.2/")?;
        contains("rules of the other", &rules, "10.20.0.3/")?;
    }
    two.check(host)?;
    two.call.del().prev(&two.result).run(host)?.silence()?;
    nothing_of_pods(host)
}

pub(super) fn del_without_namespace_removes_them(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    one.call.without("CNI_NETNS").del().prev(&one.result).run(host)?.silence()?;
    nothing_of_pods(host)?;
    let Walled { base, call, result } = one;
    call.add().prev(&base.result).run(host)?.result()?;
    base.pod.remove()?;
    call.del().prev(&result).run(host)?.silence()?;
    nothing_of_pods(host)
}

pub(super) fn del_without_a_result_removes_them(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), json!({}))?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    nothing_of_pods(host)?;
    one.call.add().prev(&one.base.result).run(host)?.result()?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    one.call.del().run(host)?.silence()?;
    nothing_of_pods(host).context("without a record")
}

pub(super) fn del_with_a_wrong_configuration_removes_them(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    one.call.set("ingressPolicy", json!("nonsense")).del().prev(&one.result).run(host)?.silence()?;
    nothing_of_pods(host)
}

pub(super) fn del_of_nothing_is_silent(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    firewall("a", &pod, json!({})).del().run(host)?.silence()?;
    firewall("a", &pod, json!({"ingressPolicy": "isolated"})).without("CNI_NETNS").del().run(host)?.silence()
}

pub(super) fn isolation_goes_with_the_last_pod(host: &Sandbox) -> Result<()> {
    let keys = json!({"ingressPolicy": "isolated"});
    let one = Walled::new(host, "a", gateway4(), keys.clone())?;
    let two = Walled::new(host, "b", gateway4(), keys)?;
    let elsewhere =
        Walled::new(host, "c", other_network(), json!({"name": "other", "ingressPolicy": "same-bridge"}))?;
    one.del(host)?;
    two.check(host)?;
    two.del(host)?;
    let rules = filter(host, "iptables")?.join("\n");
    lacks("rules", &rules, "cni0")?;
    elsewhere.check(host)?;
    elsewhere.del(host)?;
    nothing_of_pods(host)
}

pub(super) fn isolation_goes_without_a_result(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "same-bridge"}))?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    nothing_of_pods(host)
}

pub(super) fn a_late_del_leaves_the_rules_of_the_next_owner(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let (first, second) = (firewall("first", &pod, json!({})), firewall("second", &pod, json!({})));
    let result = made_up("10.20.0.2/24");
    first.add().prev(&result).run(host)?.result()?;
    first.del().prev(&result).run(host)?.silence()?;
    second.add().prev(&result).run(host)?.result()?;
    first.del().prev(&result).run(host)?.silence()?;
    second.check().prev(&result).run(host)?.silence()
}

pub(super) fn what_the_reference_left_is_removed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = firewall("a", &pod, json!({"ingressPolicy": "same-bridge"})).prev(&made_up("10.20.0.2/24"));
    call.from(REFERENCE).add().run(host)?.result()?;
    contains("rules of the reference", &filter(host, "iptables")?.join("\n"), "ISOLATION")?;
    call.del().run(host)?.silence()?;
    nothing_of_pods(host)
}

pub(super) fn the_reference_removes_what_this_one_made(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = firewall("a", &pod, json!({})).prev(&made_up("10.20.0.2/24"));
    call.add().run(host)?.result()?;
    call.from(REFERENCE).check().run(host)?.silence().context("CHECK by the reference")?;
    call.from(REFERENCE).del().run(host)?.silence().context("DEL by the reference")?;
    nothing_of_pods(host)
}
