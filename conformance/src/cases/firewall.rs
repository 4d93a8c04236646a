//! firewall: the rules of iptables, which are those of the reference, and what becomes of them.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, USUAL, gateway4, gateway46, pool, with};
use super::restore::TOOL;
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, same_json};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

mod drift;
mod legacy;
mod places;
mod removal;

use drift::*;
use legacy::*;
use places::*;
use removal::*;

/// The plugin, without which nothing here means anything.
pub(super) const FIREWALL: Need = Need::Plugin("firewall");

cases! {
    "firewall/iptables" {
        rules_are_those_of_the_reference needs [FIREWALL, Need::Iptables, Need::Ipv6];
        same_bridge_is_as_in_the_reference needs [FIREWALL, Need::Iptables];
        isolated_is_as_in_the_reference needs [FIREWALL, Need::Iptables, Need::Ipv6];
        another_admin_chain_can_be_named needs [FIREWALL, Need::Iptables];
        what_an_admin_chain_has_stays needs [FIREWALL, Need::Iptables];
        the_result_is_passed_on needs [FIREWALL, Need::Iptables];
        keys_match_without_regard_to_case needs [FIREWALL, Need::Iptables];
        any_other_back_end_is_chosen_by_the_plugin needs [FIREWALL, Need::Iptables];
        add_again_adds_nothing needs [FIREWALL, Need::Iptables];
        rules_of_others_stay needs [FIREWALL, Need::Iptables];
        forty_at_once_share_what_is_shared needs [FIREWALL, Need::Iptables];
    }
    "firewall/del" {
        del_removes_the_rules_of_the_pod needs [FIREWALL, Need::Iptables, Need::Ipv6];
        del_without_namespace_removes_them needs [FIREWALL, Need::Iptables];
        del_without_a_result_removes_them needs [FIREWALL, TOOL, Need::Iptables, Need::Ipv6];
        del_with_a_wrong_configuration_removes_them needs [FIREWALL, TOOL, Need::Iptables];
        del_of_nothing_is_silent needs [FIREWALL];
        isolation_goes_with_the_last_pod needs [FIREWALL, TOOL, Need::Iptables];
        isolation_goes_without_a_result needs [FIREWALL, TOOL, Need::Iptables];
        a_late_del_leaves_the_rules_of_the_next_owner needs [FIREWALL, TOOL, Need::Iptables];
        what_the_reference_left_is_removed needs [FIREWALL, TOOL, Need::Iptables, Need::Reference("firewall")];
        the_reference_removes_what_this_one_made needs [FIREWALL, Need::Iptables, Need::Reference("firewall")];
    }
    "firewall/check" {
        check_is_silent_after_add needs [FIREWALL, Need::Iptables, Need::Ipv6];
        check_finds_each_lost_rule needs [FIREWALL, Need::Iptables];
        check_finds_lost_isolation needs [FIREWALL, TOOL, Need::Iptables];
        check_makes_nothing needs [FIREWALL, TOOL, Need::Iptables];
        check_needs_a_result needs [FIREWALL];
    }
    "firewall/places" {
        damaged_places_are_not_believed needs [FIREWALL, TOOL, Need::Iptables, Need::Ipv6];
        rules_that_were_saved_and_restored_are_found needs [FIREWALL, TOOL, Need::Iptables, Need::Ipv6];
        nothing_is_kept_of_the_dead needs [FIREWALL, TOOL, Need::Iptables, Need::Ipv6];
    }
    "firewall/legacy" {
        legacy_tables_have_the_same_rules needs [FIREWALL, Need::LegacyIptables, Need::Ipv6];
        forty_at_once_share_legacy_tables needs [FIREWALL, TOOL, Need::LegacyIptables];
        del_looks_into_the_tables_of_both_variants needs [FIREWALL, TOOL, Need::LegacyIptables, Need::Iptables];
    }
    "firewall/errors" {
        add_needs_a_result needs [FIREWALL];
        an_unknown_policy_is_refused needs [FIREWALL];
        a_policy_needs_a_bridge needs [FIREWALL, Need::Iptables];
        a_bad_admin_chain_is_refused needs [FIREWALL, TOOL];
        versions_without_check_are_refused needs [FIREWALL];
    }
    "firewall/repair" {
        a_flush_is_made_good needs [FIREWALL, TOOL, Need::Iptables, Need::Ipv6];
        a_lost_jump_does_not_get_before_isolation needs [FIREWALL, TOOL, Need::Iptables];
        gc_removes_the_rules_of_dead_pods needs [FIREWALL, TOOL, Need::Iptables];
        gc_without_records_removes_them_too needs [FIREWALL, TOOL, Need::Iptables];
    }
}

/// A pod that bridge and then firewall have attached.
#[derive(Debug)]
pub(super) struct Walled {
    /// What bridge made.
    pub(super) base: Attachment,
    /// The call of firewall, without a verb.
    pub(super) call: Call,
    /// What its ADD answered.
    pub(super) result: Value,
}

/// A call of firewall for `eth0` of a pod, on the network `net`, with these keys more. No verb is chosen.
pub(super) fn firewall(id: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "firewall"});
    Call::new("firewall").id(id).ifname("eth0").netns(pod).config(with(config, more))
}

impl Walled {
    pub(super) fn new(host: &Sandbox, id: &str, network: Value, keys: Value) -> Result<Self> {
        let base = Attachment::new(host, id, network)?;
        let call = firewall(id, &base.pod, keys);
        let result = call.add().prev(&base.result).run(host)?.result().context("ADD of firewall")?;
        Ok(Self { base, call, result })
    }

    pub(super) fn pod(&self) -> &Pod {
        &self.base.pod
    }

    /// DEL of both, in the order of a runtime.
    pub(super) fn del(&self, host: &Sandbox) -> Result<()> {
        self.call.del().prev(&self.result).run(host)?.silence()?;
        self.base.del(host)
    }

    pub(super) fn check(&self, host: &Sandbox) -> Result<()> {
        self.call.check().prev(&self.result).run(host)?.silence()
    }

    /// What CHECK says that is wrong.
    pub(super) fn damaged(&self, host: &Sandbox) -> Result<String> {
        Ok(self.call.check().prev(&self.result).run(host)?.refusal()?.text())
    }
}

/// A network beside the usual one, with a bridge of its own.
pub(super) fn other_network() -> Value {
    json!({"name": "other", "bridge": "cni1", "isDefaultGateway": true, "ipam": pool(&["10.21.0.0/24", "fd21::/64"])})
}

pub(super) fn filter(host: &Sandbox, program: &str) -> Result<Vec<String>> {
    let saved = host.run(&[&format!("{program}-save"), "-t", "filter"])?;
    let is_rule = |line: &&str| line.starts_with("-A") || line.starts_with(":CNI");
    Ok(saved.lines().filter(is_rule).map(str::to_owned).collect())
}

const JUMP: &str = r#"-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD"#;
const ADMIN: &str =
    r#"-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN"#;
const BOTH: &str =
    r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)""#;

fn own_rules(address: &str, len: u8) -> [String; 2] {
    [
        format!("-A CNI-FORWARD -d {address}/{len} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-A CNI-FORWARD -s {address}/{len} -j ACCEPT"),
    ]
}

fn usual(address: &str, len: u8) -> Vec<String> {
    let mut rules: Vec<String> =
        [":CNI-ADMIN - [0:0]", ":CNI-FORWARD - [0:0]", JUMP, ADMIN].map(str::to_owned).to_vec();
    rules.extend(own_rules(address, len));
    rules
}

fn rules_are_those_of_the_reference(host: &Sandbox) -> Result<()> {
    Walled::new(host, "a", gateway46(), json!({}))?;
    equal("iptables", filter(host, "iptables")?, usual("10.20.0.2", 32))?;
    equal("ip6tables", filter(host, "ip6tables")?, usual("fd20::2", 128))
}

fn isolation(policy: &str, bridge: &str) -> Vec<String> {
    let own = format!(r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: {policy})""#);
    let mut rules = Vec::new();
    if policy == "isolated" {
        rules.push(format!("-A CNI-ISOLATION-STAGE-1 -i {bridge} -o {bridge} {own} -j DROP"));
    }
    rules.push(format!("-A CNI-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} {own} -j CNI-ISOLATION-STAGE-2"));
    rules.push(format!("-A CNI-ISOLATION-STAGE-1 {BOTH} -j RETURN"));
    rules.push(format!("-A CNI-ISOLATION-STAGE-2 -o {bridge} {BOTH} -j DROP"));
    rules.push(format!("-A CNI-ISOLATION-STAGE-2 {BOTH} -j RETURN"));
    rules
}

fn with_policy(host: &Sandbox, policy: &str, network: Value, families: &[(&str, &str, u8)]) -> Result<()> {
    Walled::new(host, "a", network, json!({"ingressPolicy": policy}))?;
    for &(program, address, len) in families {
        let mut wanted = usual(address, len);
        for (at, stage) in
            [":CNI-ISOLATION-STAGE-1 - [0:0]", ":CNI-ISOLATION-STAGE-2 - [0:0]"].iter().enumerate()
        {
            wanted.insert(2 + at, (*stage).to_owned());
        }
        wanted.insert(4, format!("-A FORWARD {BOTH} -j CNI-ISOLATION-STAGE-1"));
        wanted.extend(isolation(policy, "cni0"));
        equal(program, filter(host, program)?, wanted)?;
    }
    Ok(())
}

fn same_bridge_is_as_in_the_reference(host: &Sandbox) -> Result<()> {
    with_policy(host, "same-bridge", gateway4(), &[("iptables", "10.20.0.2", 32)])?;
    lacks("ip6tables", &filter(host, "ip6tables")?.join("\n"), "ISOLATION")
}

fn isolated_is_as_in_the_reference(host: &Sandbox) -> Result<()> {
    let families = [("iptables", "10.20.0.2", 32), ("ip6tables", "fd20::2", 128)];
    with_policy(host, "isolated", gateway46(), &families)
}

fn another_admin_chain_can_be_named(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({"iptablesAdminChainName": "MY-RULES"}))?;
    let rules = filter(host, "iptables")?.join("\n");
    contains(
        "rules",
        &rules,
        r#"-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j MY-RULES"#,
    )?;
    lacks("rules", &rules, "CNI-ADMIN")?;
    one.check(host)
}

fn what_an_admin_chain_has_stays(host: &Sandbox) -> Result<()> {
    host.run(&["iptables", "-N", "CNI-ADMIN"])?;
    host.run(&["iptables", "-A", "CNI-ADMIN", "-s", "10.20.0.2", "-j", "DROP"])?;
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    let outside = host.outside()?;
    outside.ip_set("route add 10.20.0.0/24 via 192.0.2.1")?;
    let answer = one.pod().try_run(&["ping", "-n", "-c", "1", "-W", "1", "192.0.2.2"])?;
    holds(!answer.status.success(), "a pod gets by what the administrator forbids")?;
    one.del(host)?;
    contains("after DEL", &filter(host, "iptables")?.join("\n"), "-A CNI-ADMIN -s 10.20.0.2/32 -j DROP")
}

fn the_result_is_passed_on(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    same_json("result", &one.result, &one.base.result)
}

fn keys_match_without_regard_to_case(host: &Sandbox) -> Result<()> {
    let keys =
        json!({"IPTABLESADMINCHAINNAME": "MY-RULES", "IngressPolicy": "same-bridge", "Backend": "iptables"});
    Walled::new(host, "a", gateway4(), keys)?;
    let rules = filter(host, "iptables")?.join("\n");
    contains("rules", &rules, "-j MY-RULES")?;
    contains("rules", &rules, "CNI-ISOLATION-STAGE-1")
}

fn any_other_back_end_is_chosen_by_the_plugin(host: &Sandbox) -> Result<()> {
    Walled::new(host, "a", gateway4(), json!({"backend": "whatever"}))?;
    equal("rules", filter(host, "iptables")?, usual("10.20.0.2", 32))
}

fn add_again_adds_nothing(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "isolated"}))?;
    let before = filter(host, "iptables")?;
    let again = one.call.add().prev(&one.base.result).run(host)?.result()?;
    same_json("result", &again, &one.result)?;
    equal("rules", filter(host, "iptables")?, before)
}

fn rules_of_others_stay(host: &Sandbox) -> Result<()> {
    host.run(&["iptables", "-P", "FORWARD", "DROP"])?;
    host.run(&["iptables", "-A", "FORWARD", "-s", "192.0.2.9", "-j", "ACCEPT"])?;
    let one = Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "isolated"}))?;
    one.del(host)?;
    let rules = host.run(&["iptables", "-S"])?;
    contains("policy", &rules, "-P FORWARD DROP")?;
    contains("rules", &rules, "-A FORWARD -s 192.0.2.9/32 -j ACCEPT")
}

/// A result as bridge would have it, without any link.
fn made_up(address: &str) -> Value {
    json!({
        "cniVersion": USUAL,
        "interfaces": [{"name": "cni0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/somewhere"}],
        "ips": [{"interface": 2, "address": address}],
    })
}

/// Adds forty pods of one bridge at once, removes them again, and counts the rules after each.
fn forty_at_once(host: &Sandbox, program: &str) -> Result<()> {
    let pod = host.pod("a")?;
    let calls: Vec<Call> = (0..40)
        .map(|n| {
            let keys = json!({"ingressPolicy": "same-bridge", "lockTimeout": super::portmap::CROWD_WAITS});
            firewall(&format!("c{n}"), &pod, keys).prev(&made_up(&format!("10.20.0.{}/24", n + 2)))
        })
        .collect();
    // The jumps to CNI-FORWARD and CNI-ADMIN stay; the rest goes with the last pod.
    for (verb, wanted) in [("ADD", [1, 1, 1, 1, 80]), ("DEL", [1, 1, 0, 0, 0])] {
        let started: Vec<_> =
            calls.iter().map(|call| call.command(verb).start(host)).collect::<Result<_>>()?;
        for one in started {
            let answer = one.answer(host)?;
            holds(answer.status() == Some(0), format!("{verb}: {}", answer.stdout()))?;
        }
        let rules = filter(host, program)?;
        let parts = [
            "-j CNI-FORWARD",
            "-j CNI-ADMIN",
            "-j CNI-ISOLATION-STAGE-1",
            "-o cni0 -m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\" -j DROP",
            "10.20.0.",
        ];
        equal(verb, parts.map(|part| rules.iter().filter(|rule| rule.contains(part)).count()), wanted)?;
    }
    Ok(())
}

fn forty_at_once_share_what_is_shared(host: &Sandbox) -> Result<()> {
    forty_at_once(host, "iptables")
}

fn nothing_of_pods(host: &Sandbox) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        let rules = filter(host, program)?.join("\n");
        for part in ["10.20.0.", "fd20::", "ISOLATION"] {
            lacks(format!("{program} after DEL"), &rules, part)?;
        }
    }
    Ok(())
}

fn untouched(host: &Sandbox) -> Result<()> {
    lacks("rules", &host.run(&["nft", "list", "ruleset"])?, "CNI-")
}

fn add_needs_a_result(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let refusal = firewall("a", &pod, json!({})).add().run(host)?.refusal()?;
    contains("message", &refusal.text().to_lowercase(), "prevresult")?;
    untouched(host)
}

fn an_unknown_policy_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = firewall("a", &pod, json!({"ingressPolicy": "closed"})).prev(&made_up("10.20.0.2/24"));
    contains("message", &call.add().run(host)?.refusal()?.text(), "closed")
}

fn a_policy_needs_a_bridge(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let mut result = made_up("10.20.0.2/24");
    result["interfaces"] = json!([]);
    result["ips"] = json!([{"address": "10.20.0.2/24"}]);
    let call = firewall("a", &pod, json!({"ingressPolicy": "isolated"})).prev(&result);
    call.add().run(host)?.refusal()?;
    lacks("rules", &filter(host, "iptables")?.join("\n"), "ISOLATION")
}

fn a_bad_admin_chain_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for name in ["CNI-FORWARD", "-F", "a b", &"x".repeat(29)] {
        let call =
            firewall("a", &pod, json!({"iptablesAdminChainName": name})).prev(&made_up("10.20.0.2/24"));
        let refusal = call.add().run(host)?.refused_with(7)?;
        contains("message", &refusal.text(), "iptablesAdminChainName")?;
    }
    untouched(host)
}

fn versions_without_check_are_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for version in ["0.1.0", "0.3.1"] {
        firewall("a", &pod, json!({"cniVersion": version})).add().run(host)?.refused_with(1)?;
    }
    Ok(())
}
