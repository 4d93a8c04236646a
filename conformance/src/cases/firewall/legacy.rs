//! The tables of legacy iptables.

use anyhow::Result;
use serde_json::json;

use super::{BOTH, Walled, filter, forty_at_once, isolation, usual};
use crate::cases::iptables_legacy::choose_variant;
use crate::cases::networks::{gateway4, gateway46};
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;

pub(super) fn legacy_tables_have_the_same_rules(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let one = Walled::new(host, "a", gateway46(), json!({"ingressPolicy": "isolated"}))?;
    for (program, address, len) in [("iptables", "10.20.0.2", 32), ("ip6tables", "fd20::2", 128)] {
        let mut found = filter(host, program)?;
        found.sort();
        let mut wanted = usual(address, len);
        wanted.push(format!("-A FORWARD {BOTH} -j CNI-ISOLATION-STAGE-1"));
        wanted.extend([1, 2].map(|stage| format!(":CNI-ISOLATION-STAGE-{stage} - [0:0]")));
        wanted.extend(isolation("isolated", "cni0"));
        wanted.sort();
        equal(program, found, wanted)?;
    }
    let first = filter(host, "iptables-legacy")?;
    let position =
        |part: &str| first.iter().position(|rule| rule.starts_with("-A FORWARD") && rule.contains(part));
    holds(position("-j CNI-ISOLATION-STAGE-1") < position("-j CNI-FORWARD"), "isolation is not the first")?;
    one.check(host)?;
    host.run(&["iptables-legacy", "-F", "CNI-FORWARD"])?;
    contains("finding", &one.damaged(host)?, "-s 10.20.0.2/32 -j ACCEPT")?;
    one.call.del().prev(&one.result).run(host)?.silence()?;
    lacks("rules after DEL", &filter(host, "iptables-legacy")?.join("\n"), "10.20.0.2")
}

pub(super) fn forty_at_once_share_legacy_tables(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    forty_at_once(host, "iptables-legacy")
}

pub(super) fn del_looks_into_the_tables_of_both_variants(host: &Sandbox) -> Result<()> {
    let one = Walled::new(host, "a", gateway4(), json!({"ingressPolicy": "same-bridge"}))?;
    choose_variant(host, "legacy")?;
    one.call.del().prev(&one.result).run(host)?.silence()?;
    lacks("rules after DEL", &host.run(&["nft", "list", "ruleset"])?, "10.20.0.2")?;
    one.call.add().prev(&one.base.result).run(host)?.result()?;
    contains("rules", &filter(host, "iptables-legacy")?.join("\n"), "10.20.0.2")?;
    choose_variant(host, "nft")?;
    one.call.del().prev(&one.result).run(host)?.silence()?;
    let rules = filter(host, "iptables-legacy")?.join("\n");
    lacks("rules after DEL", &rules, "10.20.0.2")?;
    lacks("rules after DEL", &rules, "ISOLATION")
}
