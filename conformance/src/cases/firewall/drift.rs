//! What CHECK finds, and what makes it good; what GC does.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Walled, filter, firewall, nothing_of_pods};
use crate::cases::networks::{NEWEST, gateway4, gateway46};
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;

pub(super) fn check_is_silent_after_add(host: &Sandbox) -> Result<()> {
    Walled::new(host, "a", gateway46(), json!({"ingressPolicy": "isolated"}))?.check(host)
}

pub(super) fn check_finds_each_lost_rule(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    for rule in ["FORWARD 1", "CNI-FORWARD 1", "CNI-FORWARD 2", "CNI-FORWARD 3"] {
        let saved = host.run(&["iptables-save"])?;
        let mut argv = vec!["iptables", "-D"];
        argv.extend(rule.split(' '));
        host.run(&argv)?;
        holds(!one.damaged(host)?.is_empty(), format!("CHECK is silent without rule {rule}"))?;
        let restored = host.run_with_input(&["iptables-restore"], saved.as_bytes())?;
        holds(restored.status.success(), "iptables-restore")?;
        one.check(host)?;
    }
    Ok(())
}

pub(super) fn check_finds_lost_isolation(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "isolated"}))?;
    host.run(&["iptables", "-F", "CNI-ISOLATION-STAGE-1"])?;
    let text = one.damaged(host)?;
    contains("finding", &text, "-A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0")?;
    contains("finding", &text, "is missing")
}

pub(super) fn check_makes_nothing(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    host.run(&["nft", "flush", "ruleset"])?;
    one.damaged(host)?;
    lacks("rules", &host.run(&["nft", "list", "ruleset"])?, "CNI-")
}

pub(super) fn check_needs_a_result(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    firewall("a", &pod, json!({})).check().run(host)?.refusal().map(drop)
}

fn restored(host: &Sandbox) -> Result<()> {
    let program = host.plugins().join("bridgehead");
    host.run(&[program.to_str().context("a path that is no text")?, "restore"]).map(drop)
}

pub(super) fn a_flush_is_made_good(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), json!({"ingressPolicy": "isolated"}))?;
    let before = (filter(host, "iptables")?, filter(host, "ip6tables")?);
    host.run(&["nft", "flush", "ruleset"])?;
    restored(host)?;
    equal("rules", (filter(host, "iptables")?, filter(host, "ip6tables")?), before)?;
    one.check(host)
}

pub(super) fn a_lost_jump_does_not_get_before_isolation(host: &Sandbox) -> Result<()> {
    Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "isolated"}))?;
    let before = filter(host, "iptables")?;
    host.run(&["iptables", "-D", "FORWARD", "2"])?;
    restored(host)?;
    equal("rules", filter(host, "iptables")?, before)
}

fn gc(host: &Sandbox, valid: &[&Walled]) -> Result<()> {
    let pod = host.pod("gc")?;
    let list: Vec<Value> = valid.iter().map(|it| json!({"containerID": it.pod().path().file_name().and_then(|name| name.to_str()), "ifname": "eth0"})).collect();
    let call = firewall("gc", &pod, json!({"cniVersion": NEWEST, "cni.dev/valid-attachments": list}));
    call.gc().run(host)?.silence()
}

pub(super) fn gc_removes_the_rules_of_dead_pods(host: &Sandbox) -> Result<()> {
    let keys = json!({"ingressPolicy": "same-bridge"});
    let one = Walled::new(host, "a", gateway4(), keys.clone())?;
    let two = Walled::new(host, "b", gateway4(), keys)?;
    gc(host, &[&two])?;
    lacks("rules of the dead", &filter(host, "iptables")?.join("\n"), one.base.address()?)?;
    two.check(host)
}

pub(super) fn gc_without_records_removes_them_too(host: &Sandbox) -> Result<()> {
    Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "same-bridge"}))?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    gc(host, &[])?;
    nothing_of_pods(host)
}
