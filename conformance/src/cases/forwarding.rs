//! bridge: forwarding, which the host must not lose its own network by.

use anyhow::Result;
use serde_json::json;

use super::cases;
use super::networks::{Attachment, bridge, gateway4, gateway46, with};
use super::spoof_guard::frames::{ETHER_IPV6, ICMPV6, ethernet, icmpv6, ipv6};
use super::spoof_guard::wire::Wire;
use crate::case::Need;
use crate::expect::{contains, equal, holds, soon};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "bridge/forwarding" {
        an_advertised_default_route_stays needs [Need::Plugin("bridgehead"), Need::Ipv6];
        an_advertised_route_by_hand_counts_too needs [Need::Plugin("bridgehead"), Need::Ipv6];
        other_links_are_left_alone needs [Need::Plugin("bridgehead"), Need::Ipv6];
        ipv4_alone_leaves_ipv6_alone needs [Need::Ipv6];
        read_only_sysctls_that_are_right_are_no_error needs [Need::Plugin("bridgehead"), Need::Ipv6];
        read_only_sysctls_that_are_wrong_are_named needs [Need::Plugin("bridgehead")];
    }
}

/// A router behind the host advertises itself.
fn advertise(outside: &Pod) -> Result<()> {
    let (router, all) = ("fe80::1".parse()?, "ff02::1".parse()?);
    // For half an hour: type 134, hop limit 64, no flags, 1800 seconds.
    let body = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let packet = ipv6(router, all, ICMPV6, &icmpv6(router, all, 134, &body));
    let frame = ethernet([0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1], ETHER_IPV6, &packet);
    Wire::open(outside, "eth0")?.send(&frame)
}

fn default_routes(host: &Sandbox) -> Result<Vec<String>> {
    let routes = host.run(&["ip", "-6", "route", "show", "default"])?;
    Ok(routes.lines().map(str::to_owned).collect())
}

fn learns(host: &Sandbox, outside: &Pod) -> Result<()> {
    soon(|| {
        advertise(outside)?;
        let routes = default_routes(host)?;
        holds(routes.iter().any(|route| route.contains("proto ra")), format!("no route by RA: {routes:?}"))
    })
}

fn an_advertised_default_route_stays(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    equal("forwarding at first", host.sysctl("ipv6/conf/all/forwarding")?, "0")?;
    equal("accept_ra at first", host.sysctl("ipv6/conf/up0/accept_ra")?, "1")?;
    learns(host, &outside)?;
    let before = default_routes(host)?.len();
    Attachment::new(host, "a", gateway46())?;
    equal("forwarding", host.sysctl("ipv6/conf/all/forwarding")?, "1")?;
    equal("default routes", default_routes(host)?.len(), before)?;
    equal("accept_ra", host.sysctl("ipv6/conf/up0/accept_ra")?, "2")?;
    // And the next advertisement is heard too.
    host.run(&["ip", "-6", "route", "flush", "proto", "ra"])?;
    learns(host, &outside)
}

fn an_advertised_route_by_hand_counts_too(host: &Sandbox) -> Result<()> {
    let _outside = host.outside()?;
    host.ip_set("-6 route add default via fe80::1 dev up0 proto ra")?;
    Attachment::new(host, "a", gateway46())?;
    equal("accept_ra", host.sysctl("ipv6/conf/up0/accept_ra")?, "2")
}

fn other_links_are_left_alone(host: &Sandbox) -> Result<()> {
    let _outside = host.outside()?;
    host.ip_set("link add up1 type veth peer name far1")?;
    host.ip_set("link set up1 up")?;
    host.ip_set("link set far1 up")?;
    host.ip_set("-6 route add default via 2001:db8:ffff::2 dev up0 proto static")?;
    host.set_sysctl("ipv6/conf/up1/accept_ra", "0")?;
    host.ip_set("-6 route add default via fe80::1 dev up1 proto ra metric 2000")?;
    host.ip_set("-6 route add 2001:db8:7::/64 via fe80::1 dev far1 proto ra")?;
    Attachment::new(host, "a", gateway46())?;
    for (link, wanted) in [("up0", "1"), ("up1", "0"), ("far1", "1")] {
        equal(link, host.sysctl(&format!("ipv6/conf/{link}/accept_ra"))?, wanted)?;
    }
    Ok(())
}

fn ipv4_alone_leaves_ipv6_alone(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    learns(host, &outside)?;
    Attachment::new(host, "a", gateway4())?;
    equal("forwarding", host.sysctl("ipv6/conf/all/forwarding")?, "0")?;
    equal("accept_ra", host.sysctl("ipv6/conf/up0/accept_ra")?, "1")
}

/// Nobody can write a sysctl any more, as in a container without privileges.
fn make_read_only(host: &Sandbox) -> Result<()> {
    host.run(&["mount", "--bind", "/proc/sys", "/proc/sys"])?;
    host.run(&["mount", "-o", "remount,bind,ro", "/proc/sys"]).map(drop)
}

fn read_only_sysctls_that_are_right_are_no_error(host: &Sandbox) -> Result<()> {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        host.set_sysctl(key, "1")?;
    }
    make_read_only(host)?;
    let one = Attachment::new(host, "a", with(gateway46(), json!({"ipMasq": true})))?;
    one.pod.ping("10.20.0.1")?;
    one.pod.ping("fd20::1")?;
    one.sound(host)?;
    one.del(host)
}

fn read_only_sysctls_that_are_wrong_are_named(host: &Sandbox) -> Result<()> {
    host.set_sysctl("ipv4/ip_forward", "0")?;
    make_read_only(host)?;
    let pod = host.pod("a")?;
    let refusal = bridge("a", &pod, gateway4()).add().run(host)?.refused_with(100)?;
    contains("message", &refusal.text(), "net/ipv4/ip_forward")?;
    contains("message", &refusal.text(), "Read-only file system")?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}
