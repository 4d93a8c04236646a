//! portmap: what it makes, refuses, finds missing, and removes.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, gateway4, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, holds, lacks};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

mod drift;
mod iptables;
mod lifecycle;
mod nftables;
mod owners;

use drift::*;
use iptables::*;
use lifecycle::*;
use nftables::*;
use owners::*;

const PORTMAP: Need = Need::Plugin("portmap");

/// What is beyond the protocol, and not asked of the reference.
const TOOL: Need = Need::Plugin("bridgehead");

/// A version of the reference that knows nftables.
const REFERENCE_PORTMAP: Need = Need::Reference("portmap");

cases! {
    "portmap/iptables" {
        rules_are_those_that_others_read needs [PORTMAP, Need::Iptables];
        ipv6_has_the_same_without_localhost needs [PORTMAP, Need::Iptables, Need::Ipv6];
        many_ports_are_fifteen_to_a_rule needs [PORTMAP, Need::Iptables];
        marks_are_those_that_are_asked_for needs [PORTMAP, Need::Iptables];
        conditions_stand_in_the_entry needs [PORTMAP, Need::Iptables];
        rules_are_the_references needs [TOOL, REFERENCE_PORTMAP, Need::Iptables, Need::Ipv6];
        del_leaves_the_shared_chains_only needs [PORTMAP, Need::Iptables];
        forty_pods_at_once_leave_one_of_each_shared_rule needs [PORTMAP, Need::Iptables];
    }
    "portmap/nftables" {
        no_rule_is_for_a_pod needs [TOOL, Need::Nftables, Need::Ipv6];
        a_thousand_ports_at_once needs [TOOL, Need::Nftables];
        conditions_are_a_networks_own needs [TOOL, Need::Nftables];
        del_of_one_leaves_the_other needs [PORTMAP, Need::Nftables];
        forty_pods_at_once_leave_one_skeleton needs [TOOL, Need::Nftables];
    }
    "portmap/lifecycle" {
        the_result_is_passed_on needs [PORTMAP];
        nothing_to_map_is_nothing_to_do needs [PORTMAP];
        add_without_a_result_is_refused needs [PORTMAP];
        add_again_changes_nothing needs [PORTMAP, Need::Nftables, Need::Iptables];
        del_works_in_all_ways needs [PORTMAP, Need::Nftables, Need::Iptables];
        del_removes_what_the_other_back_end_made needs [TOOL, Need::Nftables, Need::Iptables];
        check_finds_right_what_the_reference_made needs [TOOL, REFERENCE_PORTMAP, Need::Iptables];
        del_removes_what_the_reference_left needs [TOOL, REFERENCE_PORTMAP, Need::Iptables];
        the_reference_removes_what_is_left_here needs [TOOL, REFERENCE_PORTMAP, Need::Iptables];
        localhost_is_routed_to_the_bridge needs [PORTMAP];
    }
    "portmap/errors" {
        wrong_keys_are_named needs [TOOL];
        a_missing_chain_of_others_is_named needs [TOOL, Need::Iptables];
        nothing_is_left_of_a_refused_add needs [PORTMAP, Need::Nftables];
    }
    "portmap/owners" {
        a_taken_port_is_refused_with_its_owner needs [TOOL, Need::Nftables, Need::Iptables];
        wildcards_stand_against_addresses needs [TOOL];
        another_network_of_the_container_may_have_it_too needs [TOOL, Need::Nftables];
        a_dead_owner_loses_its_port needs [TOOL, Need::Nftables];
        a_damaged_claim_is_no_obstacle needs [TOOL];
        a_port_of_a_pod_of_the_reference_is_refused needs [TOOL, REFERENCE_PORTMAP, Need::Nftables, Need::Iptables, Need::Ipv6];
        claims_are_told_from_rules_of_others needs [TOOL, REFERENCE_PORTMAP, Need::Nftables, Need::Iptables];
    }
    "portmap/check" {
        each_loss_is_found_in_iptables needs [TOOL, Need::Iptables];
        each_loss_is_found_in_nftables needs [TOOL, Need::Nftables];
    }
    "portmap/gc" {
        ports_of_nobody_are_collected needs [TOOL, Need::Nftables, Need::Iptables];
    }
    "portmap/restore" {
        a_flush_is_made_good needs [TOOL, Need::Nftables, Need::Iptables, Need::Ipv6];
    }
    "portmap/status" {
        it_can_serve_here needs [PORTMAP];
        a_flush_is_told needs [TOOL, Need::Nftables];
    }
}

/// portmap behind bridge for `eth0` of a pod. No verb is chosen.
pub(super) fn portmap(id: &str, one: &Attachment, mappings: Value, more: Value) -> Call {
    let config = json!({
        "cniVersion": NEWEST, "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": mappings}, "prevResult": with(one.result.clone(), json!({"cniVersion": NEWEST})),
    });
    Call::new("portmap").id(id).ifname("eth0").netns(&one.pod).config(with(config, more))
}

pub(super) fn tcp(host_port: u16, container_port: u16) -> Value {
    json!([{"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"}])
}

fn back_end(name: &str) -> Value {
    json!({"backend": name})
}

fn nat(host: &Sandbox, program: &str) -> Result<Vec<String>> {
    Ok(host.run(&[program, "-w", "-t", "nat", "-S"])?.lines().map(str::to_owned).collect())
}

fn ruleset(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

/// The rules of a chain behind `-A <chain> `.
fn rules_of(listing: &[String], chain: &str) -> Vec<String> {
    let beginning = format!("-A {chain} ");
    listing.iter().filter_map(|line| line.strip_prefix(&beginning).map(str::to_owned)).collect()
}

/// The chain of a container, from the rule that leads there.
fn chain_of(listing: &[String], id: &str) -> Result<String> {
    let entries = rules_of(listing, "CNI-HOSTPORT-DNAT");
    let entry = entries.iter().find(|rule| rule.contains(&format!("id: \\\"{id}\\\"")));
    let entry = entry.with_context(|| format!("no entry of {id} in {listing:#?}"))?;
    Ok(entry.rsplit(' ').next().unwrap_or_default().to_owned())
}

/// Seconds that each of forty may wait for the others, on a machine that is slow.
pub(super) const CROWD_WAITS: u64 = 120;

/// Forty pods with a port each, by name of a result that nobody checks.
pub(super) fn forty(host: &Sandbox, name: &str) -> Result<Vec<Call>> {
    let one = Attachment::new(host, "first", gateway4())?;
    let calls: Vec<Call> = (0..40)
        .map(|i| {
            let result =
                json!({"cniVersion": NEWEST, "ips": [{"address": format!("10.20.0.{}/24", 100 + i)}]});
            portmap(&format!("p{i}"), &one, tcp(7000 + i, 80), back_end(name))
                .set("lockTimeout", json!(CROWD_WAITS))
                .prev(&result)
        })
        .collect();
    all(host, &calls, "ADD")?;
    Ok(calls)
}

pub(super) fn all(host: &Sandbox, calls: &[Call], verb: &str) -> Result<()> {
    let started: Vec<_> = calls.iter().map(|call| call.command(verb).start(host)).collect::<Result<_>>()?;
    for call in started {
        let answer = call.answer(host)?;
        holds(answer.status() == Some(0), format!("{verb}: {}", answer.stdout()))?;
    }
    Ok(())
}

fn gone(host: &Sandbox, what: &str) -> Result<()> {
    let rules = ruleset(host)?;
    for part in ["10.20.0.2:80", "10.20.0.2 . 80", "CNI-DN-", "comment \"net/a/eth0\""] {
        lacks(format!("rules after DEL {what}"), &rules, part)?;
    }
    Ok(())
}

fn wrong_keys_are_named(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    for (mappings, more, part) in [
        (tcp(8080, 0), json!({}), "portMappings[0].containerPort"),
        (json!([{"hostPort": 65536, "containerPort": 80, "protocol": "tcp"}]), json!({}), "65536"),
        (json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]), json!({}), "icmp"),
        (json!([{"hostPort": 1, "containerPort": 1, "hostIP": "nowhere"}]), json!({}), "nowhere"),
        (tcp(8080, 80), json!({"backend": "ipchains"}), "ipchains"),
        (tcp(8080, 80), json!({"markMasqBit": 32}), "markMasqBit"),
        (tcp(8080, 80), json!({"markMasqBit": 3, "externalSetMarkChain": "X"}), "externalSetMarkChain"),
        (tcp(8080, 80), json!({"markMasqBit": 3, "backend": "nftables"}), "markMasqBit"),
        (tcp(8080, 80), json!({"conditionsV4": ["-s", "1.2.3.4"], "backend": "nftables"}), "conditionsV4"),
        (tcp(8080, 80), json!({"conditionsV6": ["ip6", "saddr"], "backend": "iptables"}), "conditionsV6"),
        (tcp(8080, 80), json!({"lockTimeout": "x"}), "lockTimeout"),
    ] {
        let call = portmap("a", &one, mappings, more);
        let refusal = call.add().run(host)?.refused_with(7)?;
        contains("message", &refusal.text(), part)?;
        call.status().run(host)?.refused_with(7)?;
        Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)?;
        call.del().run(host)?.silence()?;
    }
    let call = portmap("a", &one, json!("8080:80"), json!({}));
    contains("message", &call.add().run(host)?.refused_with(6)?.text(), "portMappings")
}

fn a_missing_chain_of_others_is_named(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), json!({"externalSetMarkChain": "NOBODYS"}));
    contains("message", &call.add().run(host)?.refused_with(7)?.text(), "NOBODYS")?;
    gone(host, "of a refused ADD")
}

fn nothing_is_left_of_a_refused_add(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    portmap("b", &two, tcp(8081, 80), back_end("nftables")).add().run(host)?.result()?;
    let before = Snapshot::take(host, &[&one.pod])?;
    // The address of nobody: no route leads there, and so no link that could have route_localnet.
    let result = json!({"cniVersion": NEWEST, "ips": [{"address": "198.18.0.1/24"}]});
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables")).prev(&result);
    call.add().run(host)?.refusal()?;
    call.del().run(host)?.silence()?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)
}

fn ports_of_nobody_are_collected(host: &Sandbox) -> Result<()> {
    for (name, ids) in [("iptables", ["a", "b"]), ("nftables", ["c", "d"])] {
        let one = Attachment::new(host, ids[0], gateway4())?;
        let two = Attachment::new(host, ids[1], gateway4())?;
        let call = portmap(ids[0], &one, tcp(8080, 80), back_end(name));
        let other = portmap(ids[1], &two, tcp(8081, 80), back_end(name));
        for has_records in [true, false] {
            call.add().run(host)?.result()?;
            other.add().run(host)?.result()?;
            if !has_records {
                std::fs::remove_dir_all("/run/bridgehead/attachments/portmap")?;
            }
            let valid = json!([{"containerID": ids[1], "ifname": "eth0"}]);
            call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
            other.check().run(host)?.silence()?;
            call.check().run(host)?.refusal()?;
            let taken = portmap(ids[1], &two, tcp(8080, 80), back_end(name)).ifname("eth1");
            taken.add().run(host)?.result().context("the port is free again")?;
            taken.del().run(host)?.silence()?;
        }
        other.del().run(host)?.silence()?;
    }
    Ok(())
}

fn it_can_serve_here(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({})).status().run(host)?.silence()
}
