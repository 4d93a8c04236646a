//! Who has a port of the host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{back_end, gone, portmap, ruleset, tcp};
use crate::cases::networks::{Attachment, gateway4, gateway46, with};
use crate::cases::records::age;
use crate::expect::{contains, equal, lacks, soon};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn a_taken_port_is_refused_with_its_owner(host: &Sandbox) -> Result<()> {
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

pub(super) fn wildcards_stand_against_addresses(host: &Sandbox) -> Result<()> {
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

pub(super) fn another_network_of_the_container_may_have_it_too(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("nftables"));
    call.add().run(host)?.result()?;
    let mut result = one.result.clone();
    result["interfaces"][2]["name"] = json!("eth1");
    let second = call.ifname("eth1").set("name", json!("other")).prev(&result);
    second.add().run(host)?.result()?;
    call.check().run(host)?.silence()?;
    second.check().run(host)?.silence()?;
    second.del().run(host)?.silence()?;
    call.check().run(host)?.silence()?;
    // The other way round, it goes to the one that is left.
    second.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    contains("the one that is left", &ruleset(host)?, "tcp . 8080 comment \"other/a/eth1\"")?;
    second.check().run(host)?.silence()?;
    second.del().run(host)?.silence()?;
    gone(host, "of both")
}

pub(super) fn a_dead_owner_loses_its_port(host: &Sandbox) -> Result<()> {
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

pub(super) fn a_damaged_claim_is_no_obstacle(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), json!({}));
    let path = Path::new("/run/bridgehead/ports/tcp-126");
    let elsewhere = host.scratch("elsewhere", "not ours")?;
    for damage in [
        "echo nonsense > $0",
        ": > $0",
        "rm -f $0; mkdir $0",
        "rm -rf $0; ln -s /run/scratch/elsewhere $0",
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
    equal("what a link leads to", std::fs::read_to_string(elsewhere)?.as_str(), "not ours")
}

/// It claims nothing; its rules tell who has which port.
pub(super) fn a_port_of_a_pod_of_the_reference_is_refused(host: &Sandbox) -> Result<()> {
    let at = |port: u16, address: &str| json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": address}]);
    let two = Attachment::new(host, "b", gateway46())?;
    for (theirs, id) in [("iptables", "a"), ("nftables", "c")] {
        let one = Attachment::new(host, id, gateway46())?;
        let call = portmap(id, &one, tcp(8080, 80), back_end(theirs)).set("cniVersion", json!("1.0.0"));
        let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"}))).from(REFERENCE);
        for ours in ["iptables", "nftables"] {
            for (mappings, others, is_free) in [
                (tcp(8080, 80), tcp(8080, 81), false),
                (at(8080, "192.0.2.1"), tcp(8080, 80), false),
                (at(8080, "192.0.2.1"), at(8080, "192.0.2.2"), true),
                (at(8080, "2001:db8::1"), at(8080, "::"), false),
            ] {
                let what = || format!("{theirs}, then {ours}: {mappings}, then {others}");
                let call = call.clone().set("runtimeConfig", json!({"portMappings": mappings}));
                call.add().run(host)?.result().with_context(what)?;
                let before = Snapshot::take(host, &[])?;
                let other = portmap("b", &two, others.clone(), back_end(ours));
                let answer = other.add().run(host)?;
                if is_free {
                    answer.result().with_context(what)?;
                    other.check().run(host)?.silence().with_context(what)?;
                } else {
                    let refusal = answer.refused_with(102).with_context(what)?;
                    contains("message", &refusal.msg, "tcp port 8080")?;
                    contains("message", &refusal.msg, &format!("container {id}"))?;
                    Snapshot::take(host, &[])?.unchanged_since(&before).with_context(what)?;
                }
                // The port is free once the other is gone, by whichever suite.
                call.del().run(host)?.silence()?;
                other.add().run(host)?.result().with_context(what)?;
                other.del().run(host)?.silence()?;
            }
        }
    }
    Ok(())
}

/// That all rules are of pods with claims is known by their number; the chain is read when it is another.
pub(super) fn claims_are_told_from_rules_of_others(host: &Sandbox) -> Result<()> {
    let pods: Vec<_> =
        ["a", "b", "c"].iter().map(|id| Attachment::new(host, id, gateway4())).collect::<Result<_>>()?;
    let ours = |index: usize, port| {
        portmap(["a", "b", "c"][index], &pods[index], tcp(port, 80), back_end("iptables"))
    };
    let of_reference = |index: usize, port| {
        let result = with(pods[index].result.clone(), json!({"cniVersion": "1.0.0"}));
        ours(index, port).set("cniVersion", json!("1.0.0")).prev(&result).from(REFERENCE)
    };
    ours(0, 8080).add().run(host)?.result()?;
    // One of the reference goes where one of ours was.
    ours(1, 8081).add().run(host)?.result()?;
    of_reference(1, 8081).del().run(host)?.silence()?;
    of_reference(2, 8082).add().run(host)?.result()?;
    // Nobody takes it for granted for long that equal numbers are the same rules.
    age(Path::new("/run/bridgehead/ports/lock"), Duration::from_secs(6))?;
    ours(1, 8082).add().run(host)?.refused_with(102)?;
    ours(1, 8083).add().run(host)?.result()?;
    ours(1, 8083).del().run(host)?.silence()?;
    ours(1, 8082).add().run(host)?.refused_with(102)?;
    // What has lost its claim still has its port.
    host.run(&["sh", "-c", "rm /run/bridgehead/ports/*"])?;
    ours(1, 8080).add().run(host)?.refused_with(102)?;
    ours(0, 8080).add().run(host)?.result()?;
    ours(0, 8080).check().run(host)?.silence()
}
