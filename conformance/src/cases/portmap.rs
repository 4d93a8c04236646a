//! portmap: what it makes, refuses, finds missing, and removes.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, gateway4, gateway46, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, soon};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

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

fn rules_are_those_that_others_read(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), back_end("iptables")).add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    let chain = chain_of(&listing, "a")?;
    equal("length of the chain's name", (chain.len(), chain.starts_with("CNI-DN-")), (28, true))?;
    let jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";
    for base in ["PREROUTING", "OUTPUT"] {
        holds(rules_of(&listing, base).iter().any(|rule| rule == jump), format!("{base}: {listing:#?}"))?;
    }
    equal(
        "first rule of POSTROUTING",
        rules_of(&listing, "POSTROUTING").first().map(String::as_str),
        Some("-m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ"),
    )?;
    for (chain, wanted) in [
        (
            "CNI-HOSTPORT-SETMARK",
            vec![
                "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000"
                    .to_owned(),
            ],
        ),
        ("CNI-HOSTPORT-MASQ", vec!["-m mark --mark 0x2000/0x2000 -j MASQUERADE".to_owned()]),
        (
            "CNI-HOSTPORT-DNAT",
            vec![format!(
                "-p tcp -m comment --comment \"dnat name: \\\"net\\\" id: \\\"a\\\"\" -m multiport --dports 8080 -j {chain}"
            )],
        ),
        (
            chain.as_str(),
            vec![
                "-s 10.20.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK".to_owned(),
                "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK".to_owned(),
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.20.0.2:80".to_owned(),
            ],
        ),
    ] {
        equal(chain, rules_of(&listing, chain), wanted)?;
    }
    Ok(())
}

fn ipv6_has_the_same_without_localhost(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let mappings = json!([
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
        {"hostPort": 54, "containerPort": 54, "protocol": "udp", "hostIP": "192.0.2.1"},
        {"hostPort": 55, "containerPort": 55, "protocol": "udp", "hostIP": "2001:db8::1"},
    ]);
    portmap("a", &one, mappings, back_end("iptables")).add().run(host)?.result()?;
    let listing = nat(host, "ip6tables")?;
    let chain = chain_of(&listing, "a")?;
    equal(
        "rules",
        rules_of(&listing, &chain),
        [
            "-s fd20::/64 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
            "-p udp -m udp --dport 53 -j DNAT --to-destination [fd20::2]:5353",
            "-s fd20::/64 -d 2001:db8::1/128 -p udp -m udp --dport 55 -j CNI-HOSTPORT-SETMARK",
            "-d 2001:db8::1/128 -p udp -m udp --dport 55 -j DNAT --to-destination [fd20::2]:55",
        ],
    )?;
    let ipv4 = rules_of(&nat(host, "iptables")?, &chain).join("\n");
    contains(
        "IPv4",
        &ipv4,
        "-d 192.0.2.1/32 -p udp -m udp --dport 54 -j DNAT --to-destination 10.20.0.2:54",
    )?;
    lacks("IPv4", &ipv4, "--dport 55 ")
}

fn many_ports_are_fifteen_to_a_rule(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let mut mappings: Vec<Value> = Vec::new();
    for (protocol, count) in [("udp", 2), ("tcp", 31)] {
        mappings.extend(
            (0..count).map(|i| json!({"hostPort": 9000 + i, "containerPort": 1 + i, "protocol": protocol})),
        );
    }
    portmap("a", &one, json!(mappings), back_end("iptables")).add().run(host)?.result()?;
    let entries = rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT");
    let counts: Vec<(bool, usize)> = entries
        .iter()
        .map(|rule| {
            let ports = rule.split("--dports ").nth(1).unwrap_or_default();
            (rule.starts_with("-p tcp"), ports.split(' ').next().unwrap_or_default().split(',').count())
        })
        .collect();
    equal("whether tcp, and how many ports", counts, [(true, 15), (true, 15), (true, 1), (false, 2)])
}

fn marks_are_those_that_are_asked_for(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({"markMasqBit": 5})).add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    contains("SETMARK", &rules_of(&listing, "CNI-HOSTPORT-SETMARK").join(" "), "--set-xmark 0x20/0x20")?;
    contains("MASQ", &rules_of(&listing, "CNI-HOSTPORT-MASQ").join(" "), "--mark 0x20/0x20")?;

    host.run(&["iptables", "-w", "-t", "nat", "-N", "PLZ-SET-MARK"])?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("b", &two, tcp(8081, 80), json!({"externalSetMarkChain": "PLZ-SET-MARK"}));
    call.add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    let own = rules_of(&listing, &chain_of(&listing, "b")?).join("\n");
    contains("rules", &own, "-s 127.0.0.1/32 -p tcp -m tcp --dport 8081 -j PLZ-SET-MARK")?;
    lacks("rules", &own, "CNI-HOSTPORT-SETMARK")?;

    let three = Attachment::new(host, "c", gateway4())?;
    portmap("c", &three, tcp(8082, 80), json!({"snat": false, "backend": "iptables"}))
        .add()
        .run(host)?
        .result()?;
    let listing = nat(host, "iptables")?;
    equal("rules without snat", rules_of(&listing, &chain_of(&listing, "c")?).len(), 1)?;

    let four = Attachment::new(host, "d", gateway4())?;
    portmap("d", &four, tcp(8083, 80), json!({"masqAll": true, "backend": "iptables"}))
        .add()
        .run(host)?
        .result()?;
    let listing = nat(host, "iptables")?;
    let own = rules_of(&listing, &chain_of(&listing, "d")?);
    equal(
        "first rule with masqAll",
        own.first().map(String::as_str),
        Some("-p tcp -m tcp --dport 8083 -j CNI-HOSTPORT-SETMARK"),
    )
}

fn conditions_stand_in_the_entry(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let conditions = json!({"conditionsV4": ["!", "-s", "198.51.100.0/24", "-i", "up0"]});
    let call = portmap("a", &one, tcp(8080, 80), conditions);
    call.add().run(host)?.result()?;
    let entries = rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT");
    equal("entries", entries.len(), 1)?;
    contains("entry", &entries[0], "! -s 198.51.100.0/24")?;
    contains("entry", &entries[0], "-i up0")?;
    call.check().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    equal("entries after the second ADD", rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT").len(), 1)?;
    call.del().run(host)?.silence()?;
    lacks("rules after DEL", &nat(host, "iptables")?.join("\n"), "CNI-DN-")
}

/// Everything in both tables, as the two suites write it for the same configurations.
fn rules_are_the_references(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 82, "protocol": "udp", "hostIP": "0.0.0.0"},
        {"hostPort": 8083, "containerPort": 83, "protocol": "sctp"},
        {"hostPort": 8084, "containerPort": 84, "protocol": "udp", "hostIP": "2001:db8::1"},
    ]);
    let variants = [
        json!({}),
        json!({"snat": false}),
        json!({"markMasqBit": 3}),
        json!({"conditionsV4": ["-s", "1.2.3.4"], "conditionsV6": ["!", "-s", "12::34"]}),
    ];
    for more in variants {
        let call = portmap("a", &one, mappings.clone(), more.clone()).set("cniVersion", json!("1.0.0"));
        let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
        let mut saved = Vec::new();
        for suite in [None, Some(REFERENCE)] {
            for program in ["iptables", "ip6tables"] {
                host.run(&[program, "-w", "-t", "nat", "-F"])?;
                host.run(&[program, "-w", "-t", "nat", "-X"])?;
            }
            let call = suite.map_or_else(|| call.clone(), |directory| call.from(directory));
            call.add().run(host)?.result()?;
            saved.push([nat(host, "iptables")?, nat(host, "ip6tables")?]);
            call.del().run(host)?.silence()?;
        }
        equal(format!("rules of {more}"), &saved[0], &saved[1])?;
    }
    Ok(())
}

fn del_leaves_the_shared_chains_only(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("iptables"));
    let other = portmap("b", &two, tcp(8081, 80), back_end("iptables"));
    other.add().run(host)?.result()?;
    let before = nat(host, "iptables")?;
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    equal("rules", nat(host, "iptables")?, before)
}

fn forty_pods_at_once_leave_one_of_each_shared_rule(host: &Sandbox) -> Result<()> {
    let calls = forty(host, "iptables")?;
    let listing = nat(host, "iptables")?;
    for chain in ["PREROUTING", "OUTPUT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"] {
        equal(chain, rules_of(&listing, chain).len(), 1)?;
    }
    equal("entries", rules_of(&listing, "CNI-HOSTPORT-DNAT").len(), calls.len())?;
    all(host, &calls, "DEL")?;
    equal("entries after DEL", rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT").len(), 0)
}

/// Forty pods with a port each, by name of a result that nobody checks.
fn forty(host: &Sandbox, name: &str) -> Result<Vec<Call>> {
    let one = Attachment::new(host, "first", gateway4())?;
    let calls: Vec<Call> = (0..40)
        .map(|i| {
            let result =
                json!({"cniVersion": NEWEST, "ips": [{"address": format!("10.20.0.{}/24", 100 + i)}]});
            portmap(&format!("p{i}"), &one, tcp(7000 + i, 80), back_end(name)).prev(&result)
        })
        .collect();
    all(host, &calls, "ADD")?;
    Ok(calls)
}

fn all(host: &Sandbox, calls: &[Call], verb: &str) -> Result<()> {
    let started: Vec<_> = calls.iter().map(|call| call.command(verb).start(host)).collect::<Result<_>>()?;
    for call in started {
        let answer = call.answer(host)?;
        holds(answer.status() == Some(0), format!("{verb}: {}", answer.stdout()))?;
    }
    Ok(())
}

fn no_rule_is_for_a_pod(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let two = Attachment::new(host, "b", gateway46())?;
    portmap("a", &one, tcp(8080, 80), back_end("nftables")).add().run(host)?.result()?;
    let chains = |host: &Sandbox| -> Result<Vec<String>> {
        let text = host.run(&["nft", "-s", "list", "table", "inet", "bridgehead"])?;
        Ok(text.split_once("\tchain ").map_or("", |(_, rest)| rest).lines().map(str::to_owned).collect())
    };
    let before = chains(host)?;
    holds(!before.is_empty(), "there are no chains")?;
    portmap("b", &two, tcp(8081, 80), back_end("nftables")).add().run(host)?.result()?;
    equal("chains", chains(host)?, before)?;
    let rules = ruleset(host)?;
    for part in [
        "tcp . 8080 comment \"net/a/eth0\" : 10.20.0.2 . 80",
        "tcp . 8081 comment \"net/b/eth0\" : 10.20.0.3 . 80",
        "tcp . 8080 comment \"net/a/eth0\" : fd20::2 . 80",
    ] {
        contains("maps", &rules, part)?;
    }
    lacks("iptables", &nat(host, "iptables")?.join("\n"), "CNI-")
}

fn a_thousand_ports_at_once(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let mappings: Vec<Value> = (0..1000)
        .map(|i| json!({"hostPort": 20000 + i, "containerPort": 1 + i, "protocol": "tcp"}))
        .collect();
    let call = portmap("a", &one, json!(mappings), back_end("nftables"));
    call.add().run(host)?.result()?;
    contains("maps", &ruleset(host)?, "tcp . 20999 comment \"net/a/eth0\" : 10.20.0.2 . 1000")?;
    call.check().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    lacks("maps", &ruleset(host)?, "net/a/eth0")
}

fn conditions_are_a_networks_own(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let conditions = json!({"conditionsV4": ["ip", "saddr", "!=", "198.51.100.0/24"]});
    let call = portmap("a", &one, tcp(8080, 80), conditions.clone());
    call.add().run(host)?.result()?;
    portmap("b", &two, tcp(8081, 80), back_end("nftables")).add().run(host)?.result()?;
    let rules = ruleset(host)?;
    contains("entries", &rules, "ip saddr != 198.51.100.0/24")?;
    contains("entries", &rules, "\t\tfib daddr type local jump hostports\n")?;
    call.check().run(host)?.silence()?;
    host.run(&["nft", "flush", "chain", "inet", "bridgehead", "hostports_prerouting"])?;
    contains("CHECK", &call.check().run(host)?.refusal()?.text(), "hostports_prerouting")?;
    call.add().run(host)?.result()?;
    call.check().run(host)?.silence()?;
    call.del().run(host)?.silence()?;
    lacks("elements after DEL", &ruleset(host)?, "net/a/eth0")?;
    let wrong = portmap("a", &one, tcp(8080, 80), json!({"conditionsV4": ["nonsense"]}));
    contains("refusal", &wrong.add().run(host)?.refusal()?.text(), "nonsense")?;
    lacks("elements after a refused ADD", &ruleset(host)?, "net/a/eth0")
}

fn del_of_one_leaves_the_other(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    let other = portmap("b", &two, tcp(8081, 81), back_end("nftables"));
    other.add().run(host)?.result()?;
    let before = Snapshot::take(host, &[])?.rules();
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    Snapshot::take(host, &[])?.rules().unchanged_since(&before)?;
    other.check().run(host)?.silence()
}

fn forty_pods_at_once_leave_one_skeleton(host: &Sandbox) -> Result<()> {
    let calls = forty(host, "nftables")?;
    let rules = ruleset(host)?;
    equal("entries", rules.matches("fib daddr type local jump").count(), 2)?;
    equal("ports", rules.matches(" . 80").count(), calls.len())?;
    all(host, &calls, "DEL")?;
    lacks("maps after DEL", &ruleset(host)?, "eth0\"")
}

fn the_result_is_passed_on(host: &Sandbox) -> Result<()> {
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

fn nothing_to_map_is_nothing_to_do(host: &Sandbox) -> Result<()> {
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

fn add_without_a_result_is_refused(host: &Sandbox) -> Result<()> {
    let config = json!({"cniVersion": NEWEST, "name": "net", "type": "portmap",
        "runtimeConfig": {"portMappings": tcp(8080, 80)}});
    let call = Call::new("portmap").id("a").ifname("eth0").somewhere().config(config);
    contains("refusal", &call.add().run(host)?.refusal()?.text(), "chained")?;
    call.check().run(host)?.refusal()?;
    call.del().run(host)?.silence()
}

fn add_again_changes_nothing(host: &Sandbox) -> Result<()> {
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

fn gone(host: &Sandbox, what: &str) -> Result<()> {
    let rules = ruleset(host)?;
    for part in ["10.20.0.2:80", "10.20.0.2 . 80", "CNI-DN-", "comment \"net/a/eth0\""] {
        lacks(format!("rules after DEL {what}"), &rules, part)?;
    }
    Ok(())
}

fn del_works_in_all_ways(host: &Sandbox) -> Result<()> {
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

fn del_removes_what_the_other_back_end_made(host: &Sandbox) -> Result<()> {
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
fn check_finds_right_what_the_reference_made(host: &Sandbox) -> Result<()> {
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

fn del_removes_what_the_reference_left(host: &Sandbox) -> Result<()> {
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

fn the_reference_removes_what_is_left_here(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("iptables")).set("cniVersion", json!("1.0.0"));
    let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
    call.add().run(host)?.result()?;
    call.from(REFERENCE).del().run(host)?.silence()?;
    lacks("rules", &nat(host, "iptables")?.join("\n"), "8080")
}

fn localhost_is_routed_to_the_bridge(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({"snat": false})).add().run(host)?.result()?;
    equal("route_localnet without snat", host.sysctl("ipv4/conf/cni0/route_localnet")?.as_str(), "0")?;
    let two = Attachment::new(host, "b", gateway4())?;
    portmap("b", &two, tcp(8081, 80), json!({})).add().run(host)?.result()?;
    equal("route_localnet", host.sysctl("ipv4/conf/cni0/route_localnet")?.as_str(), "1")
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

fn a_taken_port_is_refused_with_its_owner(host: &Sandbox) -> Result<()> {
    for (name, ids) in [("iptables", ["a", "b"]), ("nftables", ["c", "d"])] {
        let one = Attachment::new(host, ids[0], gateway4())?;
        let two = Attachment::new(host, ids[1], gateway4())?;
        let call = portmap(ids[0], &one, tcp(8080, 80), back_end(name));
        call.add().run(host)?.result()?;
        let before = Snapshot::take(host, &[])?;
        let both = json!([
            {"hostPort": 8079, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ]);
        let other = portmap(ids[1], &two, both, back_end(name));
        let refusal = other.add().run(host)?.refused_with(102)?;
        contains("message", &refusal.msg, "tcp port 8080")?;
        contains("message", &refusal.msg, &format!("container {} interface eth0 on network net", ids[0]))?;
        Snapshot::take(host, &[])?.unchanged_since(&before)?;
        call.check().run(host)?.silence()?;
        let udp = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]);
        let of_udp = portmap(ids[1], &two, udp, back_end(name));
        of_udp.add().run(host)?.result()?;
        of_udp.del().run(host)?.silence()?;
        call.del().run(host)?.silence()?;
        other.add().run(host)?.result()?;
        other.del().run(host)?.silence()?;
    }
    Ok(())
}

fn wildcards_stand_against_addresses(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let two = Attachment::new(host, "b", gateway46())?;
    let at =
        |address: &str| json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": address}]);
    for (first, second, is_free) in [
        ("", "192.0.2.1", false),
        ("192.0.2.1", "0.0.0.0", false),
        ("192.0.2.1", "", false),
        ("192.0.2.1", "192.0.2.2", true),
        ("192.0.2.1", "::", true),
        ("::", "2001:db8::1", false),
        ("0.0.0.0", "2001:db8::1", true),
        ("", "2001:db8::1", false),
    ] {
        let call = portmap("a", &one, at(first), json!({}));
        let other = portmap("b", &two, at(second), json!({}));
        call.add().run(host)?.result()?;
        let answer = other.add().run(host)?;
        if is_free {
            answer.result().map(drop)?
        } else {
            answer.refused_with(102).map(drop)?
        }
        call.del().run(host)?.silence()?;
        other.del().run(host)?.silence()?;
    }
    Ok(())
}

fn another_network_of_the_container_may_have_it_too(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    call.add().run(host)?.result()?;
    let second = call.ifname("eth1").set("name", json!("other"));
    second.add().run(host)?.result()?;
    call.check().run(host)?.silence()?;
    second.check().run(host)?.silence()?;
    second.del().run(host)?.silence()?;
    call.check().run(host)?.silence()?;
    call.del().run(host)?.silence()?;
    gone(host, "of both")
}

fn a_dead_owner_loses_its_port(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    let other = portmap("b", &two, tcp(8080, 81), back_end("nftables"));
    call.add().run(host)?.result()?;
    other.add().run(host)?.refused_with(102)?;
    one.pod.remove()?;
    soon(|| other.add().run(host)?.result())?;
    let rules = ruleset(host)?;
    lacks("the dead one's", &rules, "net/a/eth0")?;
    contains("the living one's", &rules, "tcp . 8080 comment \"net/b/eth0\" : 10.20.0.3 . 81")?;
    // A DEL that comes late takes nothing of it.
    call.del().run(host)?.silence()?;
    other.check().run(host)?.silence()
}

fn a_damaged_claim_is_no_obstacle(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), json!({}));
    let path = Path::new("/run/bridgehead/ports/tcp-126");
    for damage in [
        "echo nonsense > $0",
        ": > $0",
        "rm -f $0; mkdir $0",
        "rm -rf $0; ln -s /etc/passwd $0",
        "rm -rf $0; mkfifo $0",
    ] {
        call.add().run(host)?.result()?;
        let text = path.to_string_lossy().into_owned();
        host.run(&["sh", "-c", damage, &text])?;
        call.check().run(host)?.refusal().with_context(|| format!("CHECK after {damage}"))?;
        call.del().run(host)?.silence().with_context(|| format!("DEL after {damage}"))?;
        if path.is_dir() {
            std::fs::remove_dir(path)?;
        }
    }
    holds(Path::new("/etc/passwd").exists(), "a link was followed")
}

/// CHECK names what each command takes away, and ADD puts it back.
fn losses_are_found(host: &Sandbox, name: &str, losses: &[(&str, &str)]) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end(name));
    call.add().run(host)?.result()?;
    let chain =
        nat(host, "iptables")?.iter().find_map(|line| line.strip_prefix("-N CNI-DN-").map(str::to_owned));
    for (loss, part) in losses {
        let loss = loss.replace("CHAIN", &format!("CNI-DN-{}", chain.clone().unwrap_or_default()));
        host.run(&["sh", "-c", &loss])?;
        let refusal = call.check().run(host)?.refused_with(103).with_context(|| loss.clone())?;
        contains(format!("CHECK after {loss}"), &refusal.text(), part)?;
        call.add().run(host)?.result().with_context(|| format!("ADD after {loss}"))?;
        call.check().run(host)?.silence().with_context(|| format!("CHECK after ADD after {loss}"))?;
    }
    call.del().run(host)?.silence()?;
    gone(host, name)
}

fn each_loss_is_found_in_iptables(host: &Sandbox) -> Result<()> {
    losses_are_found(
        host,
        "iptables",
        &[
            ("iptables -w -t nat -F PREROUTING", "-A PREROUTING -m addrtype"),
            ("iptables -w -t nat -F OUTPUT", "-A OUTPUT -m addrtype"),
            ("iptables -w -t nat -F POSTROUTING", "CNI portfwd requiring masquerade"),
            ("iptables -w -t nat -F CNI-HOSTPORT-SETMARK", "-A CNI-HOSTPORT-SETMARK"),
            ("iptables -w -t nat -F CNI-HOSTPORT-MASQ", "-A CNI-HOSTPORT-MASQ"),
            ("iptables -w -t nat -F CNI-HOSTPORT-DNAT", "multiport --dports 8080"),
            ("iptables -w -t nat -D CHAIN 1", "-s 10.20.0.0/24 -p tcp -m tcp --dport 8080"),
            ("iptables -w -t nat -D CHAIN 3", "-j DNAT --to-destination 10.20.0.2:80"),
            ("iptables -w -t nat -F CHAIN", "and 2 more differences"),
            ("iptables -w -t nat -F", "more differences"),
            ("iptables -w -t nat -F; iptables -w -t nat -X", "more differences"),
            ("echo 0 > /proc/sys/net/ipv4/conf/cni0/route_localnet", "route_localnet"),
        ],
    )
}

fn each_loss_is_found_in_nftables(host: &Sandbox) -> Result<()> {
    losses_are_found(
        host,
        "nftables",
        &[
            (
                "nft delete element inet bridgehead hostports_ip '{ tcp . 8080 }'",
                "tcp . 8080 of map inet bridgehead",
            ),
            ("nft flush set inet bridgehead hairpin_10.20.0.0/24", "10.20.0.2 . tcp . 8080 of set"),
            ("nft flush set inet bridgehead from_localhost_ip", "10.20.0.2 of set"),
            ("nft flush chain inet bridgehead hostports", "rules of chain inet bridgehead hostports"),
            (
                "nft flush chain inet bridgehead hostports_prerouting",
                "a rule of chain inet bridgehead hostports_prerouting",
            ),
            (
                "nft flush chain inet bridgehead hostports_output",
                "a rule of chain inet bridgehead hostports_output",
            ),
            (
                "nft flush chain inet bridgehead hostports_postrouting",
                "rules of chain inet bridgehead hostports_postrouting",
            ),
            (
                "nft delete element inet bridgehead hostports_ip '{ tcp . 8080 }'; \
                 nft add element inet bridgehead hostports_ip '{ tcp . 8080 comment \"net/a/eth0\" : 10.9.9.9 . 1 }'",
                "should be 10.20.0.2 . 80 and is 10.9.9.9 . 1",
            ),
            ("nft flush table inet bridgehead; nft delete table inet bridgehead", "is missing"),
            ("nft flush ruleset", "is missing"),
        ],
    )
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

fn a_flush_is_made_good(host: &Sandbox) -> Result<()> {
    for (name, id, port) in [("iptables", "a", 8080), ("nftables", "b", 8081)] {
        let one = Attachment::new(host, id, gateway46())?;
        let call = portmap(id, &one, tcp(port, 80), back_end(name));
        call.add().run(host)?.result()?;
        // What the other back end's pod has left does not come back.
        host.run(&["nft", "flush", "ruleset"])?;
        call.add().run(host)?.result()?;
        let before = Snapshot::take(host, &[])?.rules();
        host.run(&["nft", "flush", "ruleset"])?;
        call.check().run(host)?.refusal()?;
        let tool = host.plugins().join("bridgehead");
        let said = host.run(&[tool.to_str().unwrap_or_default(), "restore"])?;
        contains("restore", &said, "put back host ports")?;
        call.check().run(host)?.silence()?;
        Snapshot::take(host, &[])?.rules().unchanged_since(&before)?;
        call.del().run(host)?.silence()?;
    }
    Ok(())
}

fn it_can_serve_here(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({})).status().run(host)?.silence()
}

fn a_flush_is_told(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    call.add().run(host)?.result()?;
    call.status().run(host)?.silence()?;
    host.run(&["nft", "flush", "ruleset"])?;
    call.status().run(host)?.refused_with(51).map(drop)
}
