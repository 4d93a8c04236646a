//! Sets and maps of our own table.

use anyhow::Result;
use serde_json::{Value, json};

use super::{all, back_end, forty, nat, portmap, ruleset, tcp};
use crate::cases::networks::{Attachment, gateway4, gateway46};
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

pub(super) fn no_rule_is_for_a_pod(host: &Sandbox) -> Result<()> {
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

pub(super) fn a_thousand_ports_at_once(host: &Sandbox) -> Result<()> {
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

pub(super) fn conditions_are_a_networks_own(host: &Sandbox) -> Result<()> {
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

pub(super) fn del_of_one_leaves_the_other(host: &Sandbox) -> Result<()> {
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

pub(super) fn forty_pods_at_once_leave_one_skeleton(host: &Sandbox) -> Result<()> {
    let calls = forty(host, "nftables")?;
    let rules = ruleset(host)?;
    equal("entries", rules.matches("fib daddr type local jump").count(), 2)?;
    equal("ports", rules.matches(" . 80").count(), calls.len())?;
    all(host, &calls, "DEL")?;
    lacks("maps after DEL", &ruleset(host)?, "eth0\"")
}
