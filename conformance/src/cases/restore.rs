//! What is beyond the protocol: rules that somebody flushed, put back by `bridgehead restore`, and GC of what nobody
//! remembers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, gateway46, with};
use crate::case::Need;
use crate::exec::{Finished, PATH, Running};
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

/// The program that has the verb. The reference has none, and is not judged by it.
pub(super) const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "bridgehead/restore" {
        nothing_was_missing needs [TOOL, Need::Nftables];
        nothing_is_there needs [TOOL];
        a_flush_of_the_ruleset_is_made_good_in_nftables needs [TOOL, Need::Nftables, Need::Ipv6];
        a_flush_of_the_ruleset_is_made_good_in_iptables needs [TOOL, Need::Iptables, Need::Nftables, Need::Ipv6];
        an_emptied_chain_is_filled_again needs [TOOL, Need::Nftables];
        a_flush_of_iptables_is_made_good needs [TOOL, Need::Iptables, Need::Ipv6];
        forwarding_is_switched_on_again needs [TOOL, Need::Ipv6];
        the_mac_guard_stands_again needs [TOOL, Need::Nftables];
        the_spoof_guard_stands_again needs [TOOL, Need::Nftables];
        dead_pods_stay_dead needs [TOOL, Need::Nftables];
        only_one_network_if_only_one_is_asked_for needs [TOOL, Need::Nftables];
        what_another_has_by_now_is_left_to_it needs [TOOL, Need::Nftables];
        a_bad_record_hurts_nobody needs [TOOL, Need::Nftables];
        a_deleted_attachment_stays_deleted needs [TOOL, Need::Nftables, Need::Program("flock")];
        adds_and_dels_beside_it_leave_nothing needs [TOOL, Need::Nftables];
        check_explains_what_was_flushed needs [TOOL, Need::Nftables, Need::Iptables];
    }
    "bridge/gc-without-records" {
        gc_collects_elements_of_nobody needs [TOOL, Need::Nftables];
        gc_collects_iptables_rules_of_nobody needs [TOOL, Need::Iptables, Need::Ipv6];
        gc_collects_what_the_reference_left needs [TOOL, Need::Iptables, Need::Reference("bridge")];
        gc_collects_mac_guards_of_nobody needs [TOOL, Need::Nftables];
        gc_collects_spoof_guards_of_nobody needs [TOOL, Need::Nftables];
        gc_collects_links_of_nobody needs [TOOL];
        gc_with_null_collects_all needs [TOOL, Need::Nftables];
        gc_without_a_list_collects_nothing_that_may_live needs [TOOL, Need::Nftables];
    }
}

pub(super) fn with_back_end(network: Value, back_end: &str) -> Value {
    with(network, json!({"ipMasq": true, "ipMasqBackend": back_end, "cniVersion": NEWEST}))
}

pub(super) fn nftables() -> Value {
    with_back_end(gateway4(), "nftables")
}

pub(super) fn ruleset(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

fn start_tool(host: &Sandbox, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new(host.plugins().join("bridgehead"));
    command.args(arguments).env_clear().env("PATH", PATH);
    Running::start(command, b"")
}

/// Runs the program with some arguments.
pub(super) fn tool(host: &Sandbox, arguments: &[&str]) -> Result<Finished> {
    let finished = start_tool(host, arguments)?.finish()?;
    host.note(format!(
        "bridgehead {}: {}\n  stdout: {}\n  stderr: {}",
        arguments.join(" "),
        finished.outcome(),
        finished.stdout.trim_end(),
        finished.stderr.trim_end()
    ));
    Ok(finished)
}

/// `bridgehead restore` succeeds; gives what it says.
pub(super) fn restore(host: &Sandbox) -> Result<String> {
    let finished = tool(host, &["restore"])?;
    holds(finished.status.success(), format!("restore: {}: {}", finished.outcome(), finished.stderr))?;
    Ok(finished.stdout)
}

/// All rules of the host, sorted: those of iptables as it prints them, since nft does not show all of what they say.
pub(super) fn rules(host: &Sandbox) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for program in [
        ["iptables", "-w", "-t", "nat", "-S"].as_slice(),
        &["ip6tables", "-w", "-t", "nat", "-S"],
        &["nft", "-s", "list", "table", "inet", "bridgehead"],
        &["nft", "-s", "list", "table", "bridge", "bridgehead"],
    ] {
        // A table that is not there is an error to nft.
        let listed = host.try_run(program)?.stdout;
        lines.extend(listed.lines().map(|line| format!("{}: {line}", program[0])));
    }
    lines.sort();
    Ok(lines)
}

/// After each loss, restore makes everything as it was, says so, and finds nothing to do afterwards.
fn made_good(host: &Sandbox, network: Value, losses: &[&str]) -> Result<()> {
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network)?;
    let before = rules(host)?;
    for loss in losses {
        host.run(&["sh", "-c", loss]).with_context(|| (*loss).to_owned())?;
        one.damaged(host).with_context(|| format!("CHECK after {loss}"))?;
        let said = restore(host)?;
        contains(format!("restore after {loss}"), &said, "net/a/eth0: put back ")?;
        equal(format!("rules after {loss}"), rules(host)?, before.clone())?;
        one.sound(host)?;
        two.sound(host)?;
        contains(format!("the second restore after {loss}"), &restore(host)?, "nothing was missing")?;
    }
    one.del(host)?;
    two.del(host)?;
    let rules = ruleset(host)?;
    lacks("rules after DEL", &rules, "10.20.0.2")?;
    lacks("rules after DEL", &rules, "fd20::2")
}

fn nothing_was_missing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    equal("what it says", restore(host)?.as_str(), "nothing was missing: 1 attachment\n")?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)
}

fn nothing_is_there(host: &Sandbox) -> Result<()> {
    contains("what it says", &restore(host)?, "no attachment")?;
    // Without masquerade and gateway, nothing could be lost.
    let one = Attachment::new(host, "a", json!({}))?;
    contains("what it says", &restore(host)?, "no attachment")?;
    one.del(host)?;
    contains("what it says", &restore(host)?, "no attachment")
}

fn a_flush_of_the_ruleset_is_made_good_in_nftables(host: &Sandbox) -> Result<()> {
    made_good(host, with_back_end(gateway46(), "nftables"), &["nft flush ruleset"])
}

fn a_flush_of_the_ruleset_is_made_good_in_iptables(host: &Sandbox) -> Result<()> {
    made_good(host, with_back_end(gateway46(), "iptables"), &["nft flush ruleset"])
}

fn an_emptied_chain_is_filled_again(host: &Sandbox) -> Result<()> {
    made_good(
        host,
        nftables(),
        &[
            "nft flush chain inet bridgehead postrouting",
            "nft flush chain inet bridgehead postrouting; nft delete chain inet bridgehead postrouting",
            "nft flush set inet bridgehead pods_10.20.0.0/24",
            "nft flush table inet bridgehead",
        ],
    )
}

fn a_flush_of_iptables_is_made_good(host: &Sandbox) -> Result<()> {
    made_good(
        host,
        with_back_end(gateway46(), "iptables"),
        &[
            "iptables -w -t nat -F",
            "iptables -w -t nat -F && iptables -w -t nat -X",
            "iptables -w -t nat -F POSTROUTING && ip6tables -w -t nat -F",
            // What iptables.service does: the tables are as they were saved, without pods.
            "printf '*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n' | iptables-restore -w",
        ],
    )
}

fn forwarding_is_switched_on_again(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    host.set_sysctl("ipv4/ip_forward", "0")?;
    host.set_sysctl("ipv6/conf/all/forwarding", "0")?;
    let said = restore(host)?;
    contains("restore", &said, "IPv4 forwarding")?;
    contains("restore", &said, "IPv6 forwarding")?;
    equal("IPv4 forwarding", host.sysctl("ipv4/ip_forward")?.as_str(), "1")?;
    equal("IPv6 forwarding", host.sysctl("ipv6/conf/all/forwarding")?.as_str(), "1")?;
    one.sound(host)
}

fn the_mac_guard_stands_again(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"macspoofchk": true}));
    made_good(
        host,
        network,
        &[
            "nft flush ruleset",
            "nft flush chain bridge bridgehead guard",
            "nft insert rule bridge bridgehead guard accept",
            "nft flush chain bridge bridgehead guard; nft add rule bridge bridgehead guard iifname @guarded_ports drop",
        ],
    )
}

fn the_spoof_guard_stands_again(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"spoofGuard": true}));
    made_good(
        host,
        network,
        &[
            "nft flush ruleset",
            "nft flush table bridge bridgehead",
            "nft insert rule bridge bridgehead spoof_entry accept",
            "nft flush chain bridge bridgehead spoof_check; nft add rule bridge bridgehead spoof_check accept",
        ],
    )
}

fn dead_pods_stay_dead(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    let two = Attachment::new(host, "b", nftables())?;
    one.pod.remove()?;
    host.run(&["nft", "flush", "ruleset"])?;
    let said = restore(host)?;
    lacks("restore", &said, "net/a/eth0")?;
    contains("restore", &said, "net/b/eth0: put back masquerade")?;
    lacks("rules", &ruleset(host)?, "10.20.0.2")?;
    two.sound(host)
}

fn only_one_network_if_only_one_is_asked_for(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    let other = with(
        nftables(),
        json!({"name": "other", "bridge": "cni1",
        "ipam": super::networks::pool(&["10.21.0.0/24"])}),
    );
    let two = Attachment::new(host, "b", other)?;
    host.run(&["nft", "flush", "ruleset"])?;
    let finished = tool(host, &["restore", "other"])?;
    holds(finished.status.success(), "restore failed")?;
    lacks("restore", &finished.stdout, "net/a")?;
    two.sound(host)?;
    one.damaged(host).map(drop)
}

fn what_another_has_by_now_is_left_to_it(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    host.run(&["nft", "flush", "set", "inet", "bridgehead", "pods_10.20.0.0/24"])?;
    let element = "{ 10.20.0.2 comment \"net/thief/eth0\" }";
    host.run(&["nft", "add", "element", "inet", "bridgehead", "pods_10.20.0.0/24", element])?;
    let finished = tool(host, &["restore"])?;
    equal("exit status", finished.status.code(), Some(1))?;
    contains("what it says", &finished.stderr, "net/thief/eth0")?;
    contains("rules", &ruleset(host)?, "net/thief/eth0")?;
    one.del(host)
}

fn a_bad_record_hurts_nobody(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "b", nftables())?;
    let records = Path::new("/run/bridgehead/attachments/bridge/net");
    fs::write(records.join("a:eth0"), "garbage")?;
    fs::create_dir(records.join("c:eth0"))?;
    std::os::unix::fs::symlink("/etc/passwd", records.join("d:eth0"))?;
    // One under another's name would be made twice.
    fs::copy(records.join("b:eth0"), records.join("e:eth0"))?;
    host.run(&["nft", "flush", "ruleset"])?;
    let said = restore(host)?;
    contains("restore", &said, "restored 1 of 1 attachment\n")?;
    one.sound(host)
}

/// A DEL that cannot go on, since somebody holds the lock of the reservations, has the attachment to itself.
fn a_deleted_attachment_stays_deleted(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", nftables())?;
    host.run(&["nft", "flush", "ruleset"])?;
    let script = "flock /var/lib/cni/networks/net/lock sh -c 'echo > /run/scratch/held; sleep 1' >/dev/null 2>&1 & \
                  while ! [ -e /run/scratch/held ]; do sleep 0.01; done";
    host.run(&["sh", "-c", script])?;
    let del = one.call.del().start(host)?;
    // It is at the address by now, which it gives back last.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let said = restore(host)?;
    del.answer(host)?.silence()?;
    contains("restore", &said, "no attachment")?;
    lacks("rules", &ruleset(host)?, "10.20.0.2")
}

fn adds_and_dels_beside_it_leave_nothing(host: &Sandbox) -> Result<()> {
    let stays = Attachment::new(host, "stays", nftables())?;
    for round in 0..8 {
        let pods =
            (0..6).map(|number| host.pod(&format!("p{round}x{number}"))).collect::<Result<Vec<_>>>()?;
        let calls: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| bridge(&format!("p{round}x{number}"), pod, nftables()))
            .collect();
        let started = calls.iter().map(|call| call.add().start(host)).collect::<Result<Vec<_>>>()?;
        let restoring = start_tool(host, &["restore"])?;
        for one in started {
            one.answer(host)?.result()?;
        }
        holds(restoring.finish()?.status.success(), "restore beside ADDs failed")?;
        host.run(&["nft", "flush", "ruleset"])?;
        let restoring = start_tool(host, &["restore"])?;
        let started = calls.iter().map(|call| call.del().start(host)).collect::<Result<Vec<_>>>()?;
        let second = start_tool(host, &["restore"])?;
        for one in started {
            one.answer(host)?.silence()?;
        }
        for restoring in [restoring, second] {
            holds(restoring.finish()?.status.success(), "restore beside DELs failed")?;
        }
        let rules = ruleset(host)?;
        lacks(format!("rules after round {round}"), &rules, &format!("net/p{round}x"))?;
        equal("masquerade rules", rules.matches(" masquerade").count(), 1)?;
        stays.sound(host)?;
    }
    Ok(())
}

fn check_explains_what_was_flushed(host: &Sandbox) -> Result<()> {
    for (back_end, names) in [
        ("nftables", ["inet bridgehead postrouting", "10.20.0.2"]),
        ("iptables", ["table nat", "-s 10.20.0.3/32"]),
    ] {
        fs::create_dir_all("/etc/cni/net.d")?;
        let plugin = with(with_back_end(gateway4(), back_end), json!({"type": "bridge", "bridge": "cni0"}));
        let list = json!({"cniVersion": NEWEST, "name": "net", "plugins": [plugin]});
        fs::write("/etc/cni/net.d/10-net.conflist", list.to_string())?;
        let pod = host.pod(back_end)?;
        let directory = host.plugins().to_string_lossy().into_owned();
        let on = |verb: &str| tool(host, &[verb, "net", pod.netns(), "--plugin-dir", &directory]);
        holds(on("add")?.status.success(), "add failed")?;
        holds(on("check")?.status.success(), "check failed")?;
        host.run(&["nft", "flush", "ruleset"])?;
        let checked = on("check")?;
        equal("exit status of check", checked.status.code(), Some(1))?;
        contains("what it says", &checked.stderr, "is missing")?;
        for name in names {
            contains("what it says", &checked.stdout, name)?;
        }
        restore(host)?;
        holds(on("check")?.status.success(), "check after restore failed")?;
        holds(on("del")?.status.success(), "del failed")?;
    }
    Ok(())
}

/// Loses what is remembered of all attachments, as a /run that was emptied has.
fn forget_all() -> Result<()> {
    fs::remove_dir_all("/run/bridgehead").context("cannot lose the records")
}

/// Two attachments of which nothing is remembered, and one on another network, then GC with a list that has the second.
fn collected(host: &Sandbox, network: &Value, valid: Option<Value>) -> Result<[Attachment; 3]> {
    let one = Attachment::new(host, "gone", network.clone())?;
    let two = Attachment::new(host, "kept", network.clone())?;
    let elsewhere = with(
        network.clone(),
        json!({"name": "other", "bridge": "cni1",
        "ipam": super::networks::pool(&["10.21.0.0/24"])}),
    );
    let other = Attachment::new(host, "gone2", elsewhere)?;
    forget_all()?;
    let mut call = one.call.gc();
    if let Some(valid) = valid {
        call = call.set("cni.dev/valid-attachments", valid.clone()).set("cni.dev/attachments", valid);
    }
    call.run(host)?.silence()?;
    other.sound(host).context("an attachment to another network")?;
    Ok([one, two, other])
}

fn only_kept() -> Option<Value> {
    Some(json!([{"containerID": "kept", "ifname": "eth0"}]))
}

fn gc_collects_elements_of_nobody(host: &Sandbox) -> Result<()> {
    let [_, kept, _] = collected(host, &nftables(), only_kept())?;
    lacks("rules", &ruleset(host)?, "net/gone/eth0")?;
    kept.sound(host)?;
    equal("leases", host.leases("net")?, ["10.20.0.3"])
}

fn gc_collects_iptables_rules_of_nobody(host: &Sandbox) -> Result<()> {
    let [_, kept, _] = collected(host, &with_back_end(gateway46(), "iptables"), only_kept())?;
    let rules = ruleset(host)?;
    for address in ["10.20.0.2", "fd20::2", "\"gone\\"] {
        lacks("rules", &rules, address)?;
    }
    for program in ["iptables", "ip6tables"] {
        let rules = host.run(&[program, "-w", "-t", "nat", "-S"])?;
        lacks(program, &rules, "id: \\\"gone\\\"")?;
        contains(program, &rules, "id: \\\"kept\\\"")?;
    }
    kept.sound(host)
}

fn gc_collects_what_the_reference_left(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"ipMasq": true}));
    let pod = host.pod("gone")?;
    let call = bridge("gone", &pod, network).from(crate::sandbox::REFERENCE);
    call.add().run(host)?.result()?;
    contains("rules", &host.run(&["iptables", "-w", "-t", "nat", "-S"])?, "10.20.0.2")?;
    pod.remove()?;
    let gc = call.from(host.plugins()).set("cniVersion", json!(NEWEST)).gc();
    gc.set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    lacks("rules", &host.run(&["iptables", "-w", "-t", "nat", "-S"])?, "CNI-")?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn gc_collects_mac_guards_of_nobody(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"macspoofchk": true, "cniVersion": NEWEST}));
    let [_, kept, _] = collected(host, &network, only_kept())?;
    lacks("rules", &ruleset(host)?, "net/gone/eth0")?;
    kept.sound(host)
}

fn gc_collects_spoof_guards_of_nobody(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"spoofGuard": true, "cniVersion": NEWEST}));
    let [_, kept, _] = collected(host, &network, only_kept())?;
    lacks("rules", &ruleset(host)?, "net/gone/eth0")?;
    kept.sound(host)
}

fn gc_collects_links_of_nobody(host: &Sandbox) -> Result<()> {
    // A link of somebody else's, by its name, whatever it says of itself.
    host.ip_set("link add mine type veth peer name mine1")?;
    host.ip_set("link set mine alias net/gone/eth0")?;
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    let [gone, kept, _] = collected(host, &network, only_kept())?;
    equal("the pod's link", gone.pod.link("eth0")?.is_none(), true)?;
    holds(host.link("mine")?.is_some(), "a link of another name is gone")?;
    kept.sound(host)?;
    equal("leases", host.leases("net")?, ["10.20.0.3"])
}

fn gc_with_null_collects_all(host: &Sandbox) -> Result<()> {
    collected(host, &nftables(), Some(Value::Null))?;
    let rules = ruleset(host)?;
    lacks("rules", &rules, "net/")?;
    contains("rules", &rules, "other/gone2/eth0")?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn gc_without_a_list_collects_nothing_that_may_live(host: &Sandbox) -> Result<()> {
    for one in collected(host, &nftables(), None)? {
        one.sound(host)?;
    }
    Ok(())
}
