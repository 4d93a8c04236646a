//! firewall: what packets make of its rules.

use anyhow::Result;
use serde_json::{Value, json};

use super::cases;
use super::firewall::{FIREWALL, Walled, other_network};
use super::networks::{gateway4, gateway46};
use crate::case::Need;
use crate::expect::holds;
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "firewall/packets" {
        a_host_that_drops_lets_pods_through_iptables needs [FIREWALL, Need::Iptables, Need::Ipv6];
        open_networks_reach_each_other_in_iptables needs [FIREWALL, Need::Iptables];
        same_bridge_keeps_networks_apart_in_iptables needs [FIREWALL, Need::Iptables, Need::Ipv6];
        isolated_keeps_pods_apart_in_iptables needs [FIREWALL, Need::Iptables];
    }
}

pub(super) fn is_cut_off(from: &Pod, address: &str) -> Result<()> {
    let answer = from.try_run(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address])?;
    holds(!answer.status.success(), format!("{address} answers in {}, and should not", from.netns()))
}

/// A namespace outside that knows its way to the pods.
pub(super) fn outside(host: &Sandbox) -> Result<Pod> {
    let outside = host.outside()?;
    for subnet in ["10.20.0.0/24", "10.21.0.0/24"] {
        outside.ip_set(&format!("route add {subnet} via 192.0.2.1"))?;
    }
    for subnet in ["fd20::/64", "fd21::/64"] {
        outside.ip_set(&format!("-6 route add {subnet} via 2001:db8:ffff::1"))?;
    }
    Ok(outside)
}

/// Two pods of the usual network and one of another, all with the same keys.
pub(super) fn three(host: &Sandbox, keys: Value) -> Result<[Walled; 3]> {
    let mut elsewhere = keys.clone();
    elsewhere["name"] = json!("other");
    Ok([
        Walled::new(host, "a", gateway46(), keys.clone())?,
        Walled::new(host, "b", gateway46(), keys)?,
        Walled::new(host, "c", other_network(), elsewhere)?,
    ])
}

fn a_host_that_drops_lets_pods_through_iptables(host: &Sandbox) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        host.run(&[program, "-P", "FORWARD", "DROP"])?;
    }
    let outside = outside(host)?;
    let one = Walled::new(host, "a", gateway46(), json!({}))?;
    for address in ["192.0.2.2", "2001:db8:ffff::2"] {
        one.pod().ping(address)?;
    }
    for address in ["10.20.0.2", "fd20::2"] {
        is_cut_off(&outside, address)?;
    }
    one.call.del().prev(&one.result).run(host)?.silence()?;
    is_cut_off(one.pod(), "192.0.2.2")
}

fn open_networks_reach_each_other_in_iptables(host: &Sandbox) -> Result<()> {
    let [one, two, three] = three(host, json!({}))?;
    one.pod().ping(two.base.address()?)?;
    one.pod().ping(three.base.address()?)
}

fn same_bridge_keeps_networks_apart_in_iptables(host: &Sandbox) -> Result<()> {
    let outside = outside(host)?;
    let [one, two, three] = three(host, json!({"ingressPolicy": "same-bridge"}))?;
    one.pod().ping(two.base.address()?)?;
    one.pod().ping("fd20::3")?;
    is_cut_off(one.pod(), three.base.address()?)?;
    is_cut_off(three.pod(), one.base.address()?)?;
    is_cut_off(one.pod(), "fd21::2")?;
    one.pod().ping("192.0.2.2")?;
    outside.ping("10.20.0.2")
}

fn isolated_keeps_pods_apart_in_iptables(host: &Sandbox) -> Result<()> {
    // As far as the kernel shows iptables what bridges carry.
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        return Ok(());
    }
    host.set_sysctl("bridge/bridge-nf-call-iptables", "1")?;
    let keys = json!({"ingressPolicy": "isolated"});
    let one = Walled::new(host, "a", gateway4(), keys.clone())?;
    let two = Walled::new(host, "b", gateway4(), keys)?;
    is_cut_off(one.pod(), two.base.address()?)?;
    one.pod().ping("10.20.0.1")
}
