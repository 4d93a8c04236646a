//! firewall: the back end in nftables, internal networks, and chains of others that drop. None of it is in the reference.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::firewall::{FIREWALL, Walled, filter, firewall, other_network};
use super::firewall_packets::{is_cut_off, outside, three};
use super::networks::{NEWEST, gateway4, gateway46};
use super::restore::{TOOL, ruleset};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;

cases! {
    "firewall/nftables" {
        a_pod_is_an_element_and_iptables_is_left_alone needs [FIREWALL, TOOL, Need::Nftables, Need::Iptables];
        an_open_network_needs_no_rule needs [FIREWALL, TOOL, Need::Nftables];
        rules_do_not_grow_with_pods needs [FIREWALL, TOOL, Need::Nftables];
        same_bridge_keeps_networks_apart needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        isolated_keeps_pods_apart needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        open_networks_are_reached_from_all needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        nothing_leaves_an_internal_network needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        internal_is_of_this_back_end_only needs [FIREWALL, TOOL];
        add_again_is_the_same needs [FIREWALL, TOOL, Need::Nftables];
        del_removes_it_in_all_ways needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        a_bridge_goes_with_its_last_pod needs [FIREWALL, TOOL, Need::Nftables];
        a_late_del_leaves_what_the_next_owner_has needs [FIREWALL, TOOL, Need::Nftables];
        check_finds_what_is_lost needs [FIREWALL, TOOL, Need::Nftables];
        check_passes_with_bandwidth_behind_it needs [FIREWALL, TOOL, Need::Plugin("bandwidth"), Need::LinkType("ifb"), Need::Nftables];
        a_flush_of_the_ruleset_is_made_good needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        gc_removes_what_dead_pods_have needs [FIREWALL, TOOL, Need::Nftables];
        forty_at_once_are_forty_elements needs [FIREWALL, TOOL, Need::Nftables];
    }
    "firewall/status" {
        a_host_that_forwards_is_fine needs [FIREWALL, TOOL];
        a_chain_that_drops_is_named needs [FIREWALL, TOOL, Need::Nftables];
        a_chain_that_accepts_pods_is_fine needs [FIREWALL, TOOL, Need::Nftables];
        a_policy_of_iptables_matters_to_nftables_only needs [FIREWALL, TOOL, Need::Iptables, Need::Nftables];
        status_changes_nothing needs [FIREWALL, TOOL, Need::Nftables];
    }
    "firewall/open-forward" {
        a_way_is_made_through_a_chain_that_drops needs [FIREWALL, TOOL, Need::Nftables, Need::Ipv6];
        a_way_is_made_through_iptables needs [FIREWALL, TOOL, Need::Nftables, Need::Iptables];
        it_goes_with_the_last_pod needs [FIREWALL, TOOL, Need::Nftables];
        nothing_is_inserted_where_nothing_drops needs [FIREWALL, TOOL, Need::Nftables];
        check_finds_that_it_is_closed_again needs [FIREWALL, TOOL, Need::Nftables];
    }
}

fn keys(policy: &str) -> Value {
    json!({"backend": "nftables", "ingressPolicy": policy})
}

/// The elements and rules of the tables that are this program's.
fn own(host: &Sandbox) -> Result<String> {
    let rules = ruleset(host)?;
    Ok(rules
        .split("\ntable ")
        .filter(|table| table.contains(" bridgehead {"))
        .collect::<Vec<_>>()
        .join("\ntable "))
}

fn a_pod_is_an_element_and_iptables_is_left_alone(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), keys("isolated"))?;
    let rules = ruleset(host)?;
    for part in [r#""cni0" . 10.20.0.2 comment "net/a/eth0""#, r#""cni0" . fd20::2 comment "net/a/eth0""#] {
        contains("rules", &rules, part)?;
    }
    contains("rules", &rules, &format!("\"{}\" comment \"net/a/eth0\"", one.base.host_link()?))?;
    equal("iptables", filter(host, "iptables")?, Vec::<String>::new())?;
    one.check(host)
}

fn an_open_network_needs_no_rule(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), keys("open"))?;
    lacks("rules", &ruleset(host)?, "firewall")?;
    one.check(host)?;
    one.del(host)
}

fn rules_do_not_grow_with_pods(host: &Sandbox) -> Result<()> {
    let count = |text: &str| text.matches("counter packets").count();
    Walled::new(host, "a", gateway4(), keys("isolated"))?;
    let rules = |host: &Sandbox| host.run(&["nft", "list", "ruleset"]);
    let before = count(&rules(host)?);
    for id in ["b", "c", "d"] {
        Walled::new(host, id, gateway4(), keys("isolated"))?;
    }
    equal("rules", count(&rules(host)?), before)
}

fn same_bridge_keeps_networks_apart(host: &Sandbox) -> Result<()> {
    let outside = outside(host)?;
    let [one, two, three] = three(host, keys("same-bridge"))?;
    one.pod().ping(two.base.address()?)?;
    one.pod().ping("fd20::3")?;
    for address in [three.base.address()?, "fd21::2"] {
        is_cut_off(one.pod(), address)?;
    }
    is_cut_off(three.pod(), one.base.address()?)?;
    one.pod().ping("192.0.2.2")?;
    outside.ping("10.20.0.2")?;
    outside.ping("fd20::2")
}

fn isolated_keeps_pods_apart(host: &Sandbox) -> Result<()> {
    // Without iptables being shown what bridges carry.
    for sysctl in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        if host.sysctl(sysctl).is_ok() {
            host.set_sysctl(sysctl, "0")?;
        }
    }
    let outside = outside(host)?;
    let [one, two, three] = three(host, keys("isolated"))?;
    for address in [two.base.address()?, "fd20::3", three.base.address()?, "fd21::2"] {
        is_cut_off(one.pod(), address)?;
    }
    one.pod().ping("10.20.0.1")?;
    one.pod().ping("192.0.2.2")?;
    outside.ping("10.20.0.2")
}

fn open_networks_are_reached_from_all(host: &Sandbox) -> Result<()> {
    let closed = Walled::new(host, "a", gateway46(), keys("isolated"))?;
    let mut open = keys("open");
    open["name"] = json!("other");
    let open = Walled::new(host, "b", other_network(), open)?;
    closed.pod().ping(open.base.address()?)?;
    closed.pod().ping("fd21::2")?;
    // As in the reference: a policy is among those that have one.
    open.pod().ping(closed.base.address()?)
}

fn nothing_leaves_an_internal_network(host: &Sandbox) -> Result<()> {
    let outside = outside(host)?;
    let internal = json!({"internal": true});
    let one = Walled::new(host, "a", gateway46(), internal.clone())?;
    let two = Walled::new(host, "b", gateway46(), internal)?;
    let elsewhere = Walled::new(host, "c", other_network(), json!({"name": "other", "backend": "nftables"}))?;
    one.pod().ping(two.base.address()?)?;
    one.pod().ping("fd20::3")?;
    one.pod().ping("10.20.0.1")?;
    for address in ["192.0.2.2", "2001:db8:ffff::2", "10.21.0.2", "fd21::2"] {
        is_cut_off(one.pod(), address)?;
    }
    for from in [&outside, elsewhere.pod()] {
        is_cut_off(from, "10.20.0.2")?;
        is_cut_off(from, "fd20::2")?;
    }
    elsewhere.pod().ping("192.0.2.2")?;
    one.check(host)?;
    one.del(host)?;
    two.del(host)?;
    lacks("rules after DEL", &ruleset(host)?, "cni0")
}

fn internal_is_of_this_back_end_only(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for back_end in ["iptables", "firewalld"] {
        let call = firewall("a", &pod, json!({"internal": true, "backend": back_end}));
        contains("message", &call.add().run(host)?.refused_with(2)?.text(), back_end)?;
    }
    Ok(())
}

fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), keys("isolated"))?;
    let before = own(host)?;
    let again = one.call.add().prev(&one.base.result).run(host)?.result()?;
    equal("result", &again, &one.result)?;
    equal("rules", own(host)?, before)
}

fn no_pods(host: &Sandbox) -> Result<()> {
    let rules = ruleset(host)?;
    for part in ["10.20.0.", "fd20::", "cni0", "eth0"] {
        lacks("rules after DEL", &rules, part)?;
    }
    Ok(())
}

fn del_removes_it_in_all_ways(host: &Sandbox) -> Result<()> {
    let Walled { base, call, result } = Walled::new(host, "a", gateway46(), keys("isolated"))?;
    call.del().prev(&result).run(host)?.silence()?;
    no_pods(host).context("with a result")?;
    call.del().prev(&result).run(host)?.silence()?;
    call.add().prev(&base.result).run(host)?.result()?;
    call.without("CNI_NETNS").set("backend", json!("iptables")).del().run(host)?.silence()?;
    no_pods(host).context("with another configuration, no namespace and no result")?;
    call.add().prev(&base.result).run(host)?.result()?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    call.del().run(host)?.silence()?;
    no_pods(host).context("without a record")
}

fn a_bridge_goes_with_its_last_pod(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), keys("same-bridge"))?;
    let two = Walled::new(host, "b", gateway4(), keys("same-bridge"))?;
    one.del(host)?;
    two.check(host)?;
    contains("rules", &ruleset(host)?, "\"cni0\"")?;
    two.del(host)?;
    no_pods(host)
}

fn a_late_del_leaves_what_the_next_owner_has(host: &Sandbox) -> Result<()> {
    let first = Walled::new(host, "a", gateway4(), keys("isolated"))?;
    let pod = host.pod("b")?;
    first.call.del().prev(&first.result).run(host)?.silence()?;
    let second = firewall("b", &pod, keys("isolated")).prev(&first.base.result);
    second.add().run(host)?.result()?;
    first.call.del().prev(&first.result).run(host)?.silence()?;
    second.check().run(host)?.silence()
}

fn check_finds_what_is_lost(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), keys("isolated"))?;
    let losses = [
        ("delete element inet bridgehead firewall_ipv4 { \"cni0\" . 10.20.0.2 }", "10.20.0.2"),
        ("delete element inet bridgehead firewall_isolated_ipv4 { \"cni0\" . 10.20.0.2 }", "isolated"),
        ("delete element inet bridgehead firewall_bridges { \"cni0\" }", "firewall_bridges"),
        ("flush chain inet bridgehead firewall_forward", "chain inet"),
        ("flush chain bridge bridgehead firewall_forward", "chain bridge"),
        ("insert rule inet bridgehead firewall_forward accept", "changed by somebody"),
    ];
    for (loss, part) in losses {
        host.run(&["nft", loss])?;
        contains(format!("finding after {loss}"), &one.damaged(host)?, part)?;
        one.call.add().prev(&one.base.result).run(host)?.result()?;
        one.check(host).with_context(|| format!("repaired after {loss}"))?;
    }
    Ok(())
}

fn check_passes_with_bandwidth_behind_it(host: &Sandbox) -> Result<()> {
    // CHECK has the result of the whole chain, in which there is one more link of the host.
    for (id, policy) in [("a", "isolated"), ("b", "same-bridge")] {
        let one = Walled::new(host, id, gateway4(), keys(policy))?;
        let limits = json!({
            "cniVersion": NEWEST, "name": "net", "type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 8_000_000,
        });
        let bandwidth = Call::new("bandwidth").id(id).ifname("eth0").netns(one.pod()).config(limits);
        let result = bandwidth.add().prev(&one.result).run(host)?.result()?;
        one.call.check().prev(&result).run(host)?.silence().context(policy)?;
        bandwidth.del().prev(&result).run(host)?.silence()?;
        one.del(host)?;
    }
    Ok(())
}

fn a_flush_of_the_ruleset_is_made_good(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway46(), keys("isolated"))?;
    let before = own(host)?;
    host.run(&["nft", "flush", "ruleset"])?;
    let program = host.plugins().join("bridgehead");
    host.run(&[program.to_str().context("a path that is no text")?, "restore"])?;
    equal("rules", own(host)?, before)?;
    one.check(host)
}

fn gc_removes_what_dead_pods_have(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), keys("isolated"))?;
    let two = Walled::new(host, "b", gateway4(), keys("isolated"))?;
    let gc = |list: Value| {
        let call = one.call.set("cniVersion", json!(NEWEST)).set("cni.dev/valid-attachments", list);
        call.gc().run(host)?.silence()
    };
    gc(json!([{"containerID": "b", "ifname": "eth0"}]))?;
    lacks("rules of the dead", &ruleset(host)?, "net/a/eth0")?;
    two.check(host)?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    gc(json!([]))?;
    no_pods(host)
}

fn forty_at_once_are_forty_elements(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let calls: Vec<_> = (0..40)
        .map(|n| {
            firewall(&format!("c{n}"), &pod, keys("same-bridge")).prev(&json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [{"interface": 1, "address": format!("10.20.0.{}/24", n + 2)}],
            }))
        })
        .collect();
    for verb in ["ADD", "DEL"] {
        let started: Vec<_> =
            calls.iter().map(|call| call.command(verb).start(host)).collect::<Result<_>>()?;
        for one in started {
            let answer = one.answer(host)?;
            holds(answer.status() == Some(0), format!("{verb}: {}", answer.stdout()))?;
        }
        let found = ruleset(host)?.matches("10.20.0.").count();
        equal(format!("elements after {verb}"), found, if verb == "ADD" { 40 } else { 0 })?;
    }
    no_pods(host)
}

fn status(host: &Sandbox, more: Value) -> Result<crate::call::Answer> {
    let pod = host.pod("status")?;
    let answer = firewall("a", &pod, more).set("cniVersion", json!(NEWEST)).status().run(host)?;
    pod.remove()?;
    Ok(answer)
}

const DROPPING: &str = "table inet strict { chain forward { type filter hook forward priority 10; policy drop; \
    ct state established,related accept; }; }";

fn a_host_that_forwards_is_fine(host: &Sandbox) -> Result<()> {
    for back_end in ["iptables", "nftables"] {
        status(host, json!({"backend": back_end}))?.silence()?;
    }
    Ok(())
}

fn a_chain_that_drops_is_named(host: &Sandbox) -> Result<()> {
    host.run(&["nft", DROPPING])?;
    for back_end in ["iptables", "nftables"] {
        let refusal = status(host, json!({"backend": back_end}))?.refused_with(51)?;
        contains("message", &refusal.text(), "inet strict forward")?;
    }
    status(host, json!({"openForward": true}))?.silence()?;
    status(host, json!({"internal": true}))?.silence()
}

fn a_chain_that_accepts_pods_is_fine(host: &Sandbox) -> Result<()> {
    host.run(&["nft", DROPPING])?;
    host.run(&["nft", "add rule inet strict forward iifname \"cni0\" accept"])?;
    status(host, json!({}))?.silence()
}

fn a_policy_of_iptables_matters_to_nftables_only(host: &Sandbox) -> Result<()> {
    host.run(&["iptables", "-P", "FORWARD", "DROP"])?;
    status(host, json!({"backend": "iptables"}))?.silence()?;
    let refusal = status(host, json!({"backend": "nftables"}))?.refused_with(51)?;
    contains("message", &refusal.text(), "FORWARD")?;
    // What Docker makes of it.
    host.run(&["iptables", "-N", "DOCKER-USER"])?;
    host.run(&["iptables", "-A", "FORWARD", "-j", "DOCKER-USER"])?;
    status(host, json!({"backend": "nftables"}))?.refused_with(51)?;
    status(host, json!({"backend": "nftables", "openForward": true}))?.silence()
}

fn status_changes_nothing(host: &Sandbox) -> Result<()> {
    host.run(&["nft", DROPPING])?;
    let before = ruleset(host)?;
    status(host, json!({"openForward": true, "ingressPolicy": "isolated"}))?.silence()?;
    equal("rules", ruleset(host)?, before)
}

fn a_way_is_made_through_a_chain_that_drops(host: &Sandbox) -> Result<()> {
    host.run(&[
        "nft",
        "table inet strict { chain forward { type filter hook forward priority 10; policy drop; }; }",
    ])?;
    let outside = outside(host)?;
    for back_end in ["iptables", "nftables"] {
        let shut = Walled::new(host, &format!("{back_end}-shut"), gateway46(), json!({"backend": back_end}))?;
        is_cut_off(shut.pod(), "192.0.2.2")?;
        let keys = json!({"backend": back_end, "openForward": true});
        let one = Walled::new(host, back_end, gateway46(), keys)?;
        one.pod().ping("192.0.2.2")?;
        one.pod().ping("2001:db8:ffff::2")?;
        is_cut_off(&outside, one.base.address()?)?;
        one.check(host)?;
        one.del(host)?;
        shut.del(host)?;
    }
    lacks("rules after DEL", &ruleset(host)?, "openForward")
}

fn a_way_is_made_through_iptables(host: &Sandbox) -> Result<()> {
    host.run(&["iptables", "-P", "FORWARD", "DROP"])?;
    let outside = outside(host)?;
    let one = Walled::new(host, "a", gateway4(), json!({"backend": "nftables", "openForward": true}))?;
    one.pod().ping("192.0.2.2")?;
    is_cut_off(&outside, one.base.address()?)?;
    one.check(host)?;
    one.del(host)?;
    lacks("rules after DEL", &filter(host, "iptables")?.join("\n"), "10.20.0.2")
}

fn it_goes_with_the_last_pod(host: &Sandbox) -> Result<()> {
    host.run(&["nft", DROPPING])?;
    let before = ruleset(host)?;
    let keys = json!({"backend": "nftables", "openForward": true});
    let one = Walled::new(host, "a", gateway4(), keys.clone())?;
    let two = Walled::new(host, "b", gateway4(), keys)?;
    equal("tagged rules", ruleset(host)?.matches("comment \"bridgehead openForward cni0\"").count(), 2)?;
    one.del(host)?;
    two.check(host)?;
    std::fs::remove_dir_all("/run/bridgehead/attachments/firewall")?;
    two.call.without("CNI_NETNS").del().run(host)?.silence()?;
    equal("rules", ruleset(host)?, before)
}

fn nothing_is_inserted_where_nothing_drops(host: &Sandbox) -> Result<()> {
    host.run(&[
        "nft",
        "table inet lax { chain forward { type filter hook forward priority 10; policy accept; }; }",
    ])?;
    let before = ruleset(host)?;
    Walled::new(host, "a", gateway4(), json!({"backend": "nftables", "openForward": true}))?;
    equal("rules", ruleset(host)?, before)
}

fn check_finds_that_it_is_closed_again(host: &Sandbox) -> Result<()> {
    host.run(&["nft", DROPPING])?;
    let one = Walled::new(host, "a", gateway4(), json!({"backend": "nftables", "openForward": true}))?;
    host.run(&["nft", "flush chain inet strict forward"])?;
    contains("finding", &one.damaged(host)?, "openForward cni0")?;
    one.call.add().prev(&one.base.result).run(host)?.result()?;
    one.check(host)
}
