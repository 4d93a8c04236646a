//! bridge: masquerade rules, and what packets make of them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, bridge, gateway4, gateway46, with};
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, soon};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "bridge/masquerade" {
        iptables_has_the_known_chain needs [Need::Iptables];
        ip6tables_has_the_known_chain needs [Need::Iptables, Need::Ipv6];
        several_subnets_share_a_chain needs [Need::Iptables];
        iptables_is_the_default needs [Need::Iptables];
        nftables_leaves_iptables_alone needs [Need::Nftables];
        nftables_is_used_where_there_is_no_iptables needs [Need::Nftables];
        there_are_no_rules_without_ip_masq;
        commands_of_a_hostile_environment_are_not_executed needs [Need::Plugin("bridgehead"), Need::Iptables];
        del_removes_what_iptables_has needs [Need::Iptables, Need::Ipv6];
        del_removes_what_nftables_has needs [Need::Nftables];
        del_without_namespace_removes_the_rules needs [Need::Ipv6];
        del_without_namespace_removes_the_elements needs [Need::Nftables];
        del_removes_what_the_other_back_end_made needs [Need::Nftables, Need::Iptables];
        del_leaves_the_rules_of_others;
        both_interfaces_of_a_pod_are_masqueraded;
    }
    "bridge/packets" {
        pods_reach_each_other;
        pods_reach_the_gateway_and_the_host_reaches_pods;
        pods_reach_each_other_over_ipv6 needs [Need::Ipv6];
        an_isolated_pod_reaches_only_the_gateway;
        outside_sees_the_host_with_iptables needs [Need::Iptables];
        outside_sees_the_host_with_nftables needs [Need::Nftables];
        outside_sees_the_host_over_ipv6_with_iptables needs [Need::Ipv6, Need::Iptables];
        outside_sees_the_host_over_ipv6_with_nftables needs [Need::Ipv6, Need::Nftables];
        outside_sees_the_pod_without_masquerade;
        pods_see_each_others_own_addresses;
        a_reused_address_is_reachable_at_once;
        pods_of_two_networks_reach_the_outside;
    }
    "bridge/mac-spoof-check" {
        frames_with_another_mac_are_dropped needs [Need::Nftables];
        del_leaves_no_spoof_check needs [Need::Nftables];
    }
}

/// The chain of network `test` and container `1234`.
const CHAIN: &str = "CNI-2bbe0c48b91a7d1b8a6753a8";

fn masqueraded(network: Value) -> Value {
    with(network, json!({"name": "test", "ipMasq": true}))
}

fn rules(host: &Sandbox, program: &str) -> Result<Vec<String>> {
    Ok(host.run(&[program, "-w", "-t", "nat", "-S"])?.lines().map(str::to_owned).collect())
}

fn ruleset(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

/// A rule as `iptables -S` prints it: matches, comment and target are each there, in whatever order.
fn has_rule(rules: &[String], start: &str, parts: &[&str]) -> Result<()> {
    let found =
        rules.iter().any(|rule| rule.starts_with(start) && parts.iter().all(|part| rule.contains(part)));
    holds(found, format!("no rule `{start}` with {parts:?} in {rules:#?}"))
}

fn known_chain(host: &Sandbox, program: &str, source: &str, subnet: &str, multicast: &str) -> Result<()> {
    Attachment::new(host, "1234", masqueraded(gateway46()))?;
    let rules = rules(host, program)?;
    let comment = r#"--comment "name: \"test\" id: \"1234\"""#;
    holds(rules.contains(&format!("-N {CHAIN}")), format!("no chain {CHAIN} in {rules:#?}"))?;
    has_rule(&rules, "-A POSTROUTING ", &[&format!("-s {source}"), comment, &format!("-j {CHAIN}")])?;
    let own: Vec<String> =
        rules.iter().filter(|rule| rule.starts_with(&format!("-A {CHAIN}"))).cloned().collect();
    equal("rules in the chain", own.len(), 2)?;
    has_rule(&own[..1], "-A", &[&format!("-d {subnet}"), comment, "-j ACCEPT"])?;
    has_rule(&own[1..], "-A", &[&format!("! -d {multicast}"), comment, "-j MASQUERADE"])
}

fn iptables_has_the_known_chain(host: &Sandbox) -> Result<()> {
    known_chain(host, "iptables", "10.20.0.2/32", "10.20.0.0/24", "224.0.0.0/4")
}

fn ip6tables_has_the_known_chain(host: &Sandbox) -> Result<()> {
    known_chain(host, "ip6tables", "fd20::2/128", "fd20::/64", "ff00::/8")
}

fn several_subnets_share_a_chain(host: &Sandbox) -> Result<()> {
    let ipam =
        json!({"type": "static", "addresses": [{"address": "10.30.0.7/24"}, {"address": "10.31.0.7/24"}]});
    Attachment::new(host, "1234", masqueraded(json!({"ipam": ipam})))?;
    let rules = rules(host, "iptables")?;
    for source in ["10.30.0.7/32", "10.31.0.7/32"] {
        has_rule(&rules, "-A POSTROUTING ", &[&format!("-s {source}"), CHAIN])?;
    }
    for subnet in ["10.30.0.0/24", "10.31.0.0/24"] {
        has_rule(&rules, &format!("-A {CHAIN}"), &[&format!("-d {subnet}"), "ACCEPT"])?;
    }
    let masquerades = rules.iter().filter(|rule| rule.contains("-j MASQUERADE")).count();
    equal("MASQUERADE rules", masquerades, 1)
}

fn iptables_is_the_default(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "1234", masqueraded(gateway4()))?;
    has_rule(&rules(host, "iptables")?, "-A POSTROUTING ", &["10.20.0.2/32", CHAIN])
}

fn nftables_leaves_iptables_alone(host: &Sandbox) -> Result<()> {
    let network = with(masqueraded(gateway4()), json!({"ipMasqBackend": "nftables"}));
    let one = Attachment::new(host, "1234", network)?;
    lacks("iptables", &rules(host, "iptables")?.join("\n"), "CNI-")?;
    contains("nftables", &ruleset(host)?, "10.20.0.2")?;
    one.sound(host)
}

fn nftables_is_used_where_there_is_no_iptables(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    host.scratch("bin/nothing", "")?;
    host.run(&["ln", "-s", "/usr/sbin/nft", "/run/scratch/bin/nft"])?;
    let call = bridge("a", &pod, masqueraded(gateway4())).env("PATH", "/run/scratch/bin");
    call.add().run(host)?.result()?;
    contains("nftables", &ruleset(host)?, "10.20.0.2")?;
    call.del().run(host)?.silence()?;
    lacks("nftables after DEL", &ruleset(host)?, "10.20.0.2")
}

fn there_are_no_rules_without_ip_masq(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", gateway46())?;
    let rules = ruleset(host)?;
    lacks("rules", &rules, "10.20.0.")?;
    lacks("rules", &rules, "fd20::")
}

/// An environment in which every command that could be asked for is somebody else's, and libraries too.
fn commands_of_a_hostile_environment_are_not_executed(host: &Sandbox) -> Result<()> {
    let script = "touch /run/scratch/executed; exit 1";
    let mut directory = host.fake_plugin("hostile", "iptables", script)?;
    for program in ["ip", "nft", "conntrack", "modprobe", "sh", "bridge"] {
        host.fake_plugin("hostile", program, script)?;
    }
    for family in ["iptables", "ip6tables"] {
        for variant in ["", "-nft", "-legacy"] {
            for command in ["", "-restore", "-save"] {
                directory = host.fake_plugin("hostile", &format!("{family}{variant}{command}"), script)?;
            }
        }
    }
    let path = directory.to_str().context("path")?;
    let pod = host.pod("a")?;
    for back_end in ["iptables", "nftables"] {
        let network = with(masqueraded(gateway46()), json!({"ipMasqBackend": back_end}));
        let call =
            bridge("a", &pod, network).env("PATH", path).env("LD_PRELOAD", "/run/scratch/hostile/iptables");
        let call = call
            .env("LD_LIBRARY_PATH", path)
            .env("XTABLES_LIBDIR", path)
            .env("IPTABLES", &format!("{path}/iptables"));
        let result = call.add().run(host)?.result()?;
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address = address.context("no address")?;
        contains("rules", &ruleset(host)?, address)?;
        call.check().prev(&result).run(host)?.silence()?;
        call.del().prev(&result).run(host)?.silence()?;
        lacks("rules after DEL", &ruleset(host)?, address)?;
    }
    holds(
        !std::path::Path::new("/run/scratch/executed").exists(),
        "a command of the caller's PATH was executed",
    )
}

/// Neither back end knows anything of the usual network's first pod or its chain.
fn no_trace(host: &Sandbox) -> Result<()> {
    let rules = ruleset(host)?;
    for part in ["10.20.0.2", "fd20::2", CHAIN, "id: \\\"1234"] {
        lacks("rules after DEL", &rules, part)?;
    }
    Ok(())
}

fn del_removes_what_iptables_has(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "1234", masqueraded(gateway46()))?;
    one.del(host)?;
    no_trace(host)?;
    for program in ["iptables", "ip6tables"] {
        lacks(program, &rules(host, program)?.join("\n"), "CNI-")?;
    }
    Ok(())
}

fn del_removes_what_nftables_has(host: &Sandbox) -> Result<()> {
    let network = with(masqueraded(gateway46()), json!({"ipMasqBackend": "nftables"}));
    let one = Attachment::new(host, "1234", network)?;
    contains("before DEL", &ruleset(host)?, "fd20::2")?;
    one.del(host)?;
    no_trace(host)
}

fn without_namespace(host: &Sandbox, network: Value) -> Result<()> {
    let one = Attachment::new(host, "1234", network.clone())?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    no_trace(host).context("no CNI_NETNS, no prevResult")?;
    let other = Attachment { pod: host.pod("b")?, ..one };
    let call = other.call.netns(&other.pod);
    call.add().run(host)?.result()?;
    other.pod.remove()?;
    call.del().run(host)?.silence()?;
    no_trace(host).context("dangling CNI_NETNS")?;
    let rules = ruleset(host)?;
    lacks("rules after DEL", &rules, "10.20.0.3")?;
    lacks("rules after DEL", &rules, "fd20::3")
}

fn del_without_namespace_removes_the_rules(host: &Sandbox) -> Result<()> {
    without_namespace(host, masqueraded(gateway46()))
}

fn del_without_namespace_removes_the_elements(host: &Sandbox) -> Result<()> {
    without_namespace(host, with(masqueraded(gateway46()), json!({"ipMasqBackend": "nftables"})))
}

fn del_removes_what_the_other_back_end_made(host: &Sandbox) -> Result<()> {
    for (id, [then, now]) in [("1234", ["iptables", "nftables"]), ("b", ["nftables", "iptables"])] {
        let one = Attachment::new(host, id, with(masqueraded(gateway4()), json!({"ipMasqBackend": then})))?;
        let address = one.address()?.to_owned();
        contains("rules after ADD", &ruleset(host)?, &address)?;
        one.call.set("ipMasqBackend", json!(now)).del().prev(&one.result).run(host)?.silence()?;
        lacks(format!("rules of {then} after DEL with {now}"), &ruleset(host)?, &address)?;
    }
    Ok(())
}

fn del_leaves_the_rules_of_others(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", masqueraded(gateway4()))?;
    let two = Attachment::new(host, "b", masqueraded(gateway4()))?;
    one.del(host)?;
    equal("peer", seen(&two.pod, &outside, "192.0.2.2")?, "192.0.2.1")
}

fn both_interfaces_of_a_pod_are_masqueraded(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", masqueraded(gateway4()))?;
    let second = one.call.ifname("eth1").set("isDefaultGateway", json!(false));
    second.add().run(host)?.result()?;
    equal("peer with two", seen(&one.pod, &outside, "192.0.2.2")?, "192.0.2.1")?;
    second.del().run(host)?.silence()?;
    equal("peer after the second is gone", seen(&one.pod, &outside, "192.0.2.2")?, "192.0.2.1")?;
    lacks("rules of the second", &ruleset(host)?, "10.20.0.3")?;
    one.del(host)?;
    lacks("rules of the first", &ruleset(host)?, "10.20.0.2")
}

/// The address that a server in one namespace sees when a client in another connects.
pub(super) fn seen(client: &Pod, server: &Pod, address: &str) -> Result<String> {
    let ip: IpAddr = address.parse()?;
    let listener = server.inside(|| TcpListener::bind(SocketAddr::new(ip, 0)))?.context("cannot listen")?;
    let target = listener.local_addr()?;
    let connected =
        client.inside(|| soon(|| Ok(TcpStream::connect_timeout(&target, Duration::from_secs(1))?)))?;
    let Ok(_stream) = connected else {
        bail!("no connection from {} to {target}: {connected:?}", client.netns())
    };
    let (_, peer) = listener.accept()?;
    Ok(peer.ip().to_string())
}

fn pods_reach_each_other(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    one.pod.ping(two.address()?)?;
    two.pod.ping(one.address()?)
}

fn pods_reach_the_gateway_and_the_host_reaches_pods(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    one.pod.ping("10.20.0.1")?;
    host.ping("10.20.0.2")
}

fn pods_reach_each_other_over_ipv6(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let two = Attachment::new(host, "b", gateway46())?;
    one.pod.ping("fd20::3")?;
    two.pod.ping("fd20::2")?;
    one.pod.ping("fd20::1")?;
    host.ping("fd20::2")
}

fn an_isolated_pod_reaches_only_the_gateway(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"portIsolation": true}));
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network)?;
    let open = Attachment::new(host, "c", gateway4())?;
    one.pod.ping("10.20.0.1")?;
    one.pod.ping(open.address()?)?;
    let answer = one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", two.address()?])?;
    holds(!answer.status.success(), "isolated pods reach each other")
}

fn outside_sees(host: &Sandbox, back_end: &str, server: &str, wanted: &str) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", with(masqueraded(gateway46()), json!({"ipMasqBackend": back_end})))?;
    equal("peer", seen(&one.pod, &outside, server)?, wanted)
}

fn outside_sees_the_host_with_iptables(host: &Sandbox) -> Result<()> {
    outside_sees(host, "iptables", "192.0.2.2", "192.0.2.1")
}

fn outside_sees_the_host_with_nftables(host: &Sandbox) -> Result<()> {
    outside_sees(host, "nftables", "192.0.2.2", "192.0.2.1")
}

fn outside_sees_the_host_over_ipv6_with_iptables(host: &Sandbox) -> Result<()> {
    outside_sees(host, "iptables", "2001:db8:ffff::2", "2001:db8:ffff::1")
}

fn outside_sees_the_host_over_ipv6_with_nftables(host: &Sandbox) -> Result<()> {
    outside_sees(host, "nftables", "2001:db8:ffff::2", "2001:db8:ffff::1")
}

fn outside_sees_the_pod_without_masquerade(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    outside.ip_set("route add 10.20.0.0/24 via 192.0.2.1")?;
    let one = Attachment::new(host, "a", gateway4())?;
    equal("peer", seen(&one.pod, &outside, "192.0.2.2")?, "10.20.0.2")
}

fn pods_see_each_others_own_addresses(host: &Sandbox) -> Result<()> {
    let backends: &[&str] = &["iptables", "nftables"];
    for (index, back_end) in backends.iter().enumerate() {
        let network = with(masqueraded(gateway4()), json!({"ipMasqBackend": back_end}));
        let one = Attachment::new(host, &format!("a{index}"), network.clone())?;
        let two = Attachment::new(host, &format!("b{index}"), network)?;
        equal(format!("peer, {back_end}"), seen(&one.pod, &two.pod, two.address()?)?, one.address()?)?;
        equal(format!("host as peer, {back_end}"), seen(&one.pod, host, "10.20.0.1")?, one.address()?)?;
    }
    Ok(())
}

fn a_reused_address_is_reachable_at_once(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"runtimeConfig": {"ips": ["10.20.0.50"]}}));
    let witness = Attachment::new(host, "w", gateway4())?;
    for id in ["a", "b", "c"] {
        let one = Attachment::new(host, id, network.clone())?;
        for pod in [host as &Pod, &witness.pod] {
            let answer = pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "10.20.0.50"])?;
            holds(answer.status.success(), format!("pod {id} does not answer {} at once", pod.netns()))?;
        }
        one.del(host)?;
    }
    Ok(())
}

fn pods_of_two_networks_reach_the_outside(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", masqueraded(gateway4()))?;
    let other = json!({
        "name": "other", "bridge": "cni1", "ipMasq": true, "isDefaultGateway": true,
        "ipam": super::networks::pool(&["10.21.0.0/24"]),
    });
    let two = Attachment::new(host, "b", other)?;
    equal("first", seen(&one.pod, &outside, "192.0.2.2")?, "192.0.2.1")?;
    equal("second", seen(&two.pod, &outside, "192.0.2.2")?, "192.0.2.1")?;
    one.del(host)?;
    equal("second after the first is gone", seen(&two.pod, &outside, "192.0.2.2")?, "192.0.2.1")
}

fn frames_with_another_mac_are_dropped(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway4(), json!({"macspoofchk": true})))?;
    one.pod.ping("10.20.0.1")?;
    one.pod.ip_set("link set eth0 address 02:00:00:00:66:66")?;
    let answer = one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "10.20.0.1"])?;
    holds(!answer.status.success(), "a pod with another MAC reaches the gateway")
}

fn del_leaves_no_spoof_check(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "spoof1", with(gateway4(), json!({"macspoofchk": true})))?;
    let two = Attachment::new(host, "spoof2", with(gateway4(), json!({"macspoofchk": true})))?;
    let links = [one.host_link()?, two.host_link()?];
    for link in links {
        contains("rules after ADD", &ruleset(host)?, link)?;
    }
    one.del(host)?;
    soon(|| lacks("rules after DEL", &ruleset(host)?, links[0]))?;
    lacks("rules after DEL", &ruleset(host)?, "spoof1")?;
    two.call.without("CNI_NETNS").del().run(host)?.silence()?;
    lacks("rules after DEL without namespace", &ruleset(host)?, links[1])
}
