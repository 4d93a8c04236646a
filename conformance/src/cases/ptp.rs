//! ptp: a veth pair to the host without a bridge, what packets make of it, and that nothing stays.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, VERSIONS, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

mod drift;
mod packets;
mod removal;

use drift::*;
use packets::*;
use removal::*;

cases! {
    "ptp/links" {
        the_result_has_both_ends needs [Need::Plugin("ptp")];
        every_version_is_spoken needs [Need::Plugin("ptp")];
        the_subnet_is_reached_by_the_gateway needs [Need::Plugin("ptp"), Need::Ipv6];
        the_host_has_the_gateway_and_a_route needs [Need::Plugin("ptp"), Need::Ipv6];
        forwarding_is_switched_on needs [Need::Plugin("ptp"), Need::Ipv6];
        the_mtu_is_that_of_both_ends needs [Need::Plugin("ptp")];
        the_mac_can_be_asked_for needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        dns_is_overridden_even_by_an_empty_list needs [Need::Plugin("ptp")];
        a_gateway_outside_of_the_subnet_works needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        a_route_may_lead_by_another_address_of_the_subnet needs [Need::Plugin("ptp"), Need::Ipv6];
        without_a_gateway_it_is_the_first_address needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
    }
    "ptp/packets" {
        pod_and_host_reach_each_other needs [Need::Plugin("ptp")];
        pods_reach_each_other needs [Need::Plugin("ptp")];
        pods_reach_each_other_over_ipv6_at_once needs [Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Ipv6];
        outside_sees_the_host_with_iptables needs [Need::Plugin("ptp"), Need::Iptables];
        outside_sees_the_host_with_nftables needs [Need::Plugin("ptp"), Need::Nftables];
        outside_sees_the_host_over_ipv6 needs [Need::Plugin("ptp"), Need::Ipv6];
        outside_sees_the_pod_without_masquerade needs [Need::Plugin("ptp")];
        a_reused_address_is_reachable_at_once needs [Need::Plugin("ptp")];
    }
    "ptp/check" {
        what_is_missing_in_the_pod_is_found needs [Need::Plugin("ptp")];
        what_is_missing_on_the_host_is_found needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        flushed_rules_are_found needs [Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Nftables];
    }
    "ptp/errors" {
        ipam_is_necessary needs [Need::Plugin("ptp")];
        wrong_keys_are_named needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        a_taken_interface_name_is_an_error_and_nothing_changes needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        a_late_failure_leaves_nothing needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        add_again_gives_the_same_result needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        status_speaks_for_the_ipam needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
    }
    "ptp/del" {
        del_restores_everything needs [Need::Plugin("ptp"), Need::Ipv6];
        del_twice_and_of_what_was_never_added needs [Need::Plugin("ptp")];
        del_without_previous_result needs [Need::Plugin("ptp"), Need::Ipv6];
        del_without_namespace needs [Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Ipv6];
        del_with_a_dangling_namespace needs [Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Ipv6];
        gc_removes_who_is_not_valid needs [Need::Plugin("ptp"), Need::Plugin("bridgehead")];
        forty_at_once_come_and_go needs [Need::Plugin("ptp")];
    }
    "ptp/exchange" {
        we_remove_what_the_reference_added needs [
            Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Reference("ptp"), Need::Reference("host-local")];
        the_reference_removes_what_we_added needs [
            Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Reference("ptp"), Need::Reference("host-local")];
        both_find_the_others_pods_sound needs [
            Need::Plugin("ptp"), Need::Plugin("bridgehead"), Need::Reference("ptp"), Need::Reference("host-local")];
    }
}

/// ptp for `eth0` of a pod, on a network called `net` with these keys more. No verb is chosen.
fn ptp(id: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "ptp"});
    Call::new("ptp").id(id).ifname("eth0").netns(pod).config(with(config, more))
}

/// Addresses of 10.20.0.0/24, and a default route.
fn one_family() -> Value {
    json!({"ipam": with(pool(&["10.20.0.0/24"]), json!({"routes": [{"dst": "0.0.0.0/0"}]}))})
}

/// Addresses of 10.20.0.0/24 and fd20::/64, and default routes.
fn two_families() -> Value {
    let routes = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    json!({"ipam": with(pool(&["10.20.0.0/24", "fd20::/64"]), routes)})
}

/// The same with masquerade.
fn full() -> Value {
    with(two_families(), json!({"ipMasq": true}))
}

struct Attached {
    pod: Pod,
    call: Call,
    result: Value,
}

impl Attached {
    fn new(host: &Sandbox, id: &str, network: Value) -> Result<Self> {
        let pod = host.pod(id)?;
        let call = ptp(id, &pod, network);
        let result = call.add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
        Ok(Self { pod, call, result })
    }

    fn host_link(&self) -> Result<&str> {
        text_at(&self.result, "/interfaces/0/name")
    }

    fn sound(&self, host: &Sandbox) -> Result<()> {
        self.call.check().prev(&self.result).run(host)?.silence()
    }

    fn del(&self, host: &Sandbox) -> Result<()> {
        self.call.del().prev(&self.result).run(host)?.silence()
    }
}

fn the_result_has_both_ends(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", one_family())?;
    equal("interfaces", list_at(&one.result, "/interfaces")?.len(), 2)?;
    holds(one.host_link()?.starts_with("veth"), "the host's end has another name")?;
    holds(one.result.pointer("/interfaces/0/sandbox").is_none(), "the host's end has a sandbox")?;
    equal("the pod's end", text_at(&one.result, "/interfaces/1/name")?, "eth0")?;
    equal("sandbox", text_at(&one.result, "/interfaces/1/sandbox")?, one.pod.netns())?;
    let wanted = json!([{"interface": 1, "address": "10.20.0.2/24", "gateway": "10.20.0.1"}]);
    same_json("ips", &one.result["ips"], &wanted)?;
    for (pod, pointer, name) in [(host as &Pod, 0, one.host_link()?), (&one.pod, 1, "eth0")] {
        let mac = text_at(&one.result, &format!("/interfaces/{pointer}/mac"))?;
        equal("MAC", pod.need_link(name)?["address"].as_str(), Some(mac))?;
    }
    holds(host.need_link(one.host_link()?)?.get("master").is_none(), "the host's end has a master")?;
    one.sound(host)
}

fn every_version_is_spoken(host: &Sandbox) -> Result<()> {
    for version in VERSIONS {
        let one = Attached::new(
            host,
            &version.replace('.', "-"),
            with(one_family(), json!({"cniVersion": version})),
        )?;
        equal("version", text_at(&one.result, "/cniVersion")?, version)?;
        one.del(host)?;
    }
    Ok(())
}

/// The routes of a family in the main table, as `ip route` prints them; only those that say `word`.
fn routes(pod: &Pod, family: &str, word: &str) -> Result<Vec<String>> {
    let text = pod.run(&["ip", family, "route", "show"])?;
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.contains(word) && !line.starts_with("fe80::"))
        .map(|line| line.split(" metric").next().unwrap_or_default().trim_end().to_owned())
        .collect();
    lines.sort();
    Ok(lines)
}

fn the_subnet_is_reached_by_the_gateway(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", two_families())?;
    equal(
        "IPv4 routes",
        routes(&one.pod, "-4", "eth0")?,
        [
            "10.20.0.0/24 via 10.20.0.1 dev eth0 src 10.20.0.2",
            "10.20.0.1 dev eth0 scope link src 10.20.0.2",
            "default via 10.20.0.1 dev eth0",
        ],
    )?;
    let six = routes(&one.pod, "-6", "eth0")?;
    for start in
        ["default via fd20::1 dev eth0", "fd20::/64 via fd20::1 dev eth0 src fd20::2", "fd20::1 dev eth0"]
    {
        holds(six.iter().any(|line| line.starts_with(start)), format!("no route {start:?} in {six:?}"))?;
    }
    Ok(())
}

fn the_host_has_the_gateway_and_a_route(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", two_families())?;
    let link = one.host_link()?;
    let addresses = host.addresses(link)?;
    for address in ["10.20.0.1/32", "fd20::1/128"] {
        holds(addresses.iter().any(|it| it == address), format!("no {address} in {addresses:?}"))?;
    }
    let four = routes(host, "-4", link)?.join("\n");
    contains("IPv4 routes", &four, &format!("10.20.0.2 dev {link} scope host"))?;
    contains("IPv6 routes", &routes(host, "-6", link)?.join("\n"), &format!("fd20::2 dev {link}"))
}

fn forwarding_is_switched_on(host: &Sandbox) -> Result<()> {
    host.set_sysctl("ipv4/ip_forward", "0")?;
    host.set_sysctl("ipv6/conf/all/forwarding", "0")?;
    let _one = Attached::new(host, "a", two_families())?;
    equal("IPv4", host.sysctl("ipv4/ip_forward")?, "1")?;
    equal("IPv6", host.sysctl("ipv6/conf/all/forwarding")?, "1")
}

fn the_mtu_is_that_of_both_ends(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", with(one_family(), json!({"mtu": 1400})))?;
    equal("in the pod", one.pod.need_link("eth0")?["mtu"].as_u64(), Some(1400))?;
    equal("on the host", host.need_link(one.host_link()?)?["mtu"].as_u64(), Some(1400))
}

fn the_mac_can_be_asked_for(host: &Sandbox) -> Result<()> {
    let mac = "0a:00:00:00:12:34";
    let one = Attached::new(host, "a", with(one_family(), json!({"runtimeConfig": {"mac": mac}})))?;
    equal("MAC", one.pod.need_link("eth0")?["address"].as_str(), Some(mac))?;
    equal("MAC in the result", text_at(&one.result, "/interfaces/1/mac")?, mac)?;
    one.sound(host)
}

fn dns_is_overridden_even_by_an_empty_list(host: &Sandbox) -> Result<()> {
    let resolv = host.scratch("resolv.conf", "nameserver 192.0.2.53\n")?;
    let ipam = with(one_family()["ipam"].clone(), json!({"resolvConf": resolv}));
    for (id, dns, wanted) in [
        ("a", json!({}), json!({"nameservers": ["192.0.2.53"]})),
        ("b", json!({"nameservers": ["192.0.2.99"]}), json!({"nameservers": ["192.0.2.99"]})),
        ("c", json!({"nameservers": []}), json!(null)),
    ] {
        let one = Attached::new(host, id, json!({"ipam": ipam, "dns": dns}))?;
        let found = one.result.get("dns").filter(|dns| **dns != json!({})).cloned().unwrap_or_default();
        same_json("dns", &found, &wanted)?;
    }
    Ok(())
}

fn a_gateway_outside_of_the_subnet_works(host: &Sandbox) -> Result<()> {
    let ipam = json!({
        "type": "static",
        "addresses": [{"address": "10.20.0.7/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let one = Attached::new(host, "a", json!({"ipam": ipam}))?;
    one.pod.ping("169.254.1.1")?;
    host.ping("10.20.0.7")?;
    one.sound(host)
}

fn a_route_may_lead_by_another_address_of_the_subnet(host: &Sandbox) -> Result<()> {
    // The host has more addresses than the gateway's, and answers for all of them.
    host.ip_set("addr add 10.20.0.254/32 dev lo")?;
    host.ip_set("addr add 10.77.0.1/32 dev lo")?;
    let ipam = json!({
        "type": "static",
        "addresses": [
            {"address": "10.20.0.7/24", "gateway": "10.20.0.1"},
            {"address": "fd20::7/64", "gateway": "fd20::1"},
        ],
        "routes": [
            {"dst": "10.77.0.0/16", "gw": "10.20.0.254"},
            {"dst": "10.78.0.0/16", "gw": "10.20.0.254"},
            {"dst": "fd77::/64", "gw": "fd20::fe"},
        ],
    });
    let one = Attached::new(host, "a", json!({"ipam": ipam}))?;
    let hosts = |family: &str, hop: &str| -> Result<Vec<String>> { routes(&one.pod, family, hop) };
    equal(
        "IPv4 routes",
        hosts("-4", "10.20.0.254")?,
        ["10.77.0.0/16 via 10.20.0.254 dev eth0", "10.78.0.0/16 via 10.20.0.254 dev eth0"],
    )?;
    equal("IPv6 routes", hosts("-6", "fd20::fe")?, ["fd77::/64 via fd20::fe dev eth0"])?;
    one.pod.ping("10.77.0.1")?;
    one.sound(host)
}

fn without_a_gateway_it_is_the_first_address(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.20.0.7/24"}]});
    let one = Attached::new(host, "a", json!({"ipam": ipam}))?;
    equal("gateway", text_at(&one.result, "/ips/0/gateway")?, "10.20.0.1")?;
    one.pod.ping("10.20.0.1")
}

fn ipam_is_necessary(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    ptp("a", &pod, json!({})).add().run(host)?.refusal()?;
    before.restored(host, &[&pod])
}

fn wrong_keys_are_named(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    for (more, key) in [
        (json!({}), "ipam"),
        (with(one_family(), json!({"mtu": -1})), "mtu"),
        (with(one_family(), json!({"mtu": 70000})), "mtu"),
        (with(one_family(), json!({"ipMasqBackend": "pf"})), "ipMasqBackend"),
        (with(one_family(), json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}})), "mac"),
        (with(two_families(), json!({"mtu": 1279})), "mtu"),
        (
            json!({"ipam": {"type": "static", "addresses": [{"address": "10.20.0.1/24", "gateway": "10.20.0.1"}]}}),
            "gateway",
        ),
        (json!({"ipam": {"type": "static", "addresses": [{"address": "10.20.0.1/32"}]}}), "gateway"),
        (json!({"ipam": {"type": "static", "addresses": []}}), "ipam"),
    ] {
        let refusal = ptp("a", &pod, more).add().run(host)?.refused_with(7)?;
        contains("the error", &refusal.text(), key)?;
    }
    before.restored(host, &[&pod])
}

fn a_taken_interface_name_is_an_error_and_nothing_changes(host: &Sandbox) -> Result<()> {
    let _warm = Attached::new(host, "warm", full())?;
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = ptp("a", &pod, full()).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    before.restored(host, &[&pod])
}

fn a_late_failure_leaves_nothing(host: &Sandbox) -> Result<()> {
    let warm = Attached::new(host, "warm", full())?;
    let pod = host.pod("a")?;
    let routes = json!({"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]});
    let ipam = with(pool(&["10.20.0.0/24", "fd20::/64"]), routes);
    let before = Snapshot::take(host, &[&pod])?;
    ptp("a", &pod, with(full(), json!({"ipam": ipam}))).add().run(host)?.refusal()?;
    before.restored(host, &[&pod])?;
    warm.sound(host).context("the other pod")
}

fn add_again_gives_the_same_result(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", full())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    let again = one.call.add().run(host)?.result()?;
    same_json("the second result", &again, &one.result)?;
    before.restored(host, &[&one.pod])
}

fn status_speaks_for_the_ipam(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let small = json!({"cniVersion": NEWEST, "ipam": pool(&["10.20.0.0/30"])});
    let call = ptp("a", &pod, small);
    call.status().run(host)?.silence()?;
    let result = call.add().run(host)?.result()?;
    call.status().run(host)?.refused_with(50)?;
    call.del().prev(&result).run(host)?.silence()?;
    call.status().run(host)?.silence()
}
