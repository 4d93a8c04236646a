//! What others take from pods that live, and who notices: the next ADD, of whichever pod, and STATUS.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::cases;
use super::networks::{Attachment, NEWEST, gateway4, gateway46, host_local, with};
use super::restore::{TOOL, nftables, restore, rules, ruleset, with_back_end};
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;

cases! {
    "bridge/flushed-rules" {
        the_next_add_fills_an_emptied_chain needs [TOOL, Need::Nftables];
        the_next_add_stands_the_mac_guard_up_again needs [TOOL, Need::Nftables];
        adding_the_same_again_repairs_iptables needs [TOOL, Need::Iptables];
        del_after_a_flush_leaves_nothing needs [Need::Nftables];
        the_next_add_puts_all_back_in_nftables needs [TOOL, Need::Nftables, Need::Ipv6];
        the_next_add_puts_all_back_in_iptables needs [TOOL, Need::Iptables, Need::Nftables, Need::Ipv6];
        the_next_add_puts_all_mac_guards_back needs [TOOL, Need::Nftables];
        the_next_add_puts_all_spoof_guards_back needs [TOOL, Need::Nftables];
        the_next_add_puts_back_what_other_networks_lost needs [TOOL, Need::Nftables];
        the_next_add_succeeds_whatever_is_in_the_way needs [TOOL, Need::Nftables, Need::Program("flock")];
        status_tells_of_a_flush needs [TOOL, Need::Nftables, Need::Iptables];
        status_of_a_call_at_work_is_no_flush needs [TOOL, Need::Nftables, Need::Program("flock")];
    }
}

fn the_next_add_fills_an_emptied_chain(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    host.run(&["nft", "flush", "chain", "inet", "bridgehead", "postrouting"])?;
    Attachment::new(host, "b", nftables())?;
    equal("masquerade rules", ruleset(host)?.matches(" masquerade").count(), 1)?;
    one.sound(host)
}

fn the_next_add_stands_the_mac_guard_up_again(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"macspoofchk": true}));
    let one = Attachment::new(host, "a", network.clone())?;
    host.run(&["nft", "flush", "chain", "bridge", "bridgehead", "guard"])?;
    Attachment::new(host, "b", network)?;
    one.sound(host)
}

fn adding_the_same_again_repairs_iptables(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with_back_end(gateway4(), "iptables"))?;
    host.run(&["iptables", "-w", "-t", "nat", "-F"])?;
    one.damaged(host)?;
    let again = one.call.add().run(host)?.result()?;
    one.call.check().prev(&again).run(host)?.silence()?;
    equal("leases", host.leases("net")?.len(), 1)?;
    let rules = host.run(&["iptables", "-w", "-t", "nat", "-S"])?;
    equal("masquerade rules", rules.matches("-j MASQUERADE").count(), 1)?;
    one.call.del().prev(&again).run(host)?.silence()?;
    lacks("rules after DEL", &host.run(&["iptables", "-w", "-t", "nat", "-S"])?, "CNI-")
}

fn del_after_a_flush_leaves_nothing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    host.run(&["nft", "flush", "ruleset"])?;
    one.del(host)?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

/// After each loss, an ADD of another pod puts back what all have lost.
fn all_back(host: &Sandbox, network: serde_json::Value, losses: &[&str]) -> Result<()> {
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network.clone())?;
    let before = rules(host)?;
    for (number, loss) in losses.iter().enumerate() {
        host.run(&["sh", "-c", loss]).with_context(|| (*loss).to_owned())?;
        one.damaged(host).with_context(|| format!("CHECK after {loss}"))?;
        let new = Attachment::new(host, &format!("new{number}"), network.clone())?;
        for (name, attachment) in [("a", &one), ("b", &two), ("the new pod", &new)] {
            attachment.sound(host).with_context(|| format!("{name} after {loss}"))?;
        }
        new.del(host)?;
        equal(format!("rules after {loss}"), rules(host)?, before.clone())?;
    }
    one.del(host)?;
    two.del(host)
}

fn the_next_add_puts_all_back_in_nftables(host: &Sandbox) -> Result<()> {
    all_back(
        host,
        with_back_end(gateway46(), "nftables"),
        &["nft flush ruleset", "nft delete table inet bridgehead", "nft flush table inet bridgehead"],
    )
}

fn the_next_add_puts_all_back_in_iptables(host: &Sandbox) -> Result<()> {
    all_back(
        host,
        with_back_end(gateway46(), "iptables"),
        &[
            "nft flush ruleset",
            "iptables -w -t nat -F; ip6tables -w -t nat -F",
            "iptables -w -t nat -F && iptables -w -t nat -X",
            "printf '*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n' | iptables-restore -w",
        ],
    )
}

fn the_next_add_puts_all_mac_guards_back(host: &Sandbox) -> Result<()> {
    let losses = ["nft flush ruleset", "nft delete table bridge bridgehead"];
    all_back(host, with(gateway4(), json!({"macspoofchk": true})), &losses)
}

fn the_next_add_puts_all_spoof_guards_back(host: &Sandbox) -> Result<()> {
    let losses = ["nft flush ruleset", "nft delete table bridge bridgehead"];
    all_back(host, with(gateway4(), json!({"spoofGuard": true})), &losses)
}

fn the_next_add_puts_back_what_other_networks_lost(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    let dead = Attachment::new(host, "dead", nftables())?;
    dead.pod.remove()?;
    host.run(&["nft", "flush", "ruleset"])?;
    let network =
        json!({"name": "other", "bridge": "cni1", "ipam": super::networks::pool(&["10.21.0.0/24"])});
    Attachment::new(host, "b", with(nftables(), network))?;
    one.sound(host)?;
    lacks("rules", &ruleset(host)?, "net/dead/eth0")
}

/// What cannot be put back, or not now, is no failure of an ADD, and it does not wait for it.
fn the_next_add_succeeds_whatever_is_in_the_way(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    let two = Attachment::new(host, "b", nftables())?;
    let records = Path::new("/run/bridgehead/attachments/bridge/net");
    fs::write(records.join("c:eth0"), "garbage")?;
    fs::create_dir(records.join("d:eth0"))?;
    host.run(&["nft", "flush", "ruleset"])?;
    let script = "flock /run/bridgehead/attachments/bridge/net/a:eth0 \
                  sh -c 'echo > /run/scratch/held; sleep 60' >/dev/null 2>&1 & \
                  while ! [ -e /run/scratch/held ]; do sleep 0.01; done";
    host.run(&["sh", "-c", script])?;
    let began = std::time::Instant::now();
    let new = Attachment::new(host, "new", nftables())?;
    holds(began.elapsed().as_secs() < 5, "ADD waited for a call about another pod")?;
    new.sound(host)?;
    two.sound(host)?;
    one.damaged(host).map(drop)
}

fn status_tells_of_a_flush(host: &Sandbox) -> Result<()> {
    let guarded = with(gateway4(), json!({"spoofGuard": true, "macspoofchk": true}));
    for (number, network) in
        [with_back_end(gateway4(), "nftables"), with_back_end(gateway4(), "iptables"), guarded]
            .into_iter()
            .enumerate()
    {
        let network = with(network, json!({"cniVersion": NEWEST}));
        let one = Attachment::new(host, &format!("a{number}"), network.clone())?;
        let two = Attachment::new(host, &format!("b{number}"), network)?;
        let status = one.call.status();
        status.run(host)?.silence()?;
        host.run(&["nft", "flush", "ruleset"])?;
        let refusal = status.run(host)?.refused_with(51)?;
        contains("the error", &refusal.text(), "missing")?;
        contains("the error", &refusal.text(), "bridgehead restore")?;
        restore(host)?;
        status.run(host)?.silence()?;
        host.run(&["nft", "flush", "ruleset"])?;
        one.del(host)?;
        two.del(host)?;
        // Nobody is left who could suffer.
        status.run(host)?.silence()?;
    }
    Ok(())
}

/// A record says what is to be before it is. Here an ADD waits for an address, and so holds its record.
fn status_of_a_call_at_work_is_no_flush(host: &Sandbox) -> Result<()> {
    let network = with(nftables(), json!({"cniVersion": NEWEST}));
    let one = Attachment::new(host, "a", network)?;
    host.run(&["nft", "flush", "ruleset"])?;
    let script = "flock /run/bridgehead/attachments/bridge/net/a:eth0 \
                  sh -c 'echo > /run/scratch/held; sleep 60' >/dev/null 2>&1 & \
                  while ! [ -e /run/scratch/held ]; do sleep 0.01; done";
    host.run(&["sh", "-c", script])?;
    one.call.status().run(host)?.silence()?;
    // It is asked of every plugin, each about its own.
    host_local("a", json!({"subnet": "10.20.0.0/24"}))
        .set("cniVersion", json!(NEWEST))
        .status()
        .run(host)?
        .silence()
}
