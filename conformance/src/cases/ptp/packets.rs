//! Who reaches whom.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Attached, full, one_family, two_families};
use crate::cases::bridge_masquerade::seen;
use crate::cases::networks::with;
use crate::expect::{equal, holds};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

pub(super) fn pod_and_host_reach_each_other(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", one_family())?;
    one.pod.ping("10.20.0.1")?;
    host.ping("10.20.0.2")
}

pub(super) fn pods_reach_each_other(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", one_family())?;
    let two = Attached::new(host, "b", one_family())?;
    one.pod.ping("10.20.0.3")?;
    two.pod.ping("10.20.0.2")?;
    equal("peer", seen(&one.pod, &two.pod, "10.20.0.3")?, "10.20.0.2")
}

/// The first packet arrives: nobody waits for duplicates to be looked for.
pub(super) fn pods_reach_each_other_over_ipv6_at_once(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", two_families())?;
    let two = Attached::new(host, "b", two_families())?;
    for (pod, address) in [(&one.pod, "fd20::3"), (&two.pod, "fd20::2"), (host as &Pod, "fd20::3")] {
        let answer = pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", address])?;
        holds(answer.status.success(), format!("{address} does not answer {} at once", pod.netns()))?;
    }
    one.pod.ping("fd20::1")?;
    equal("peer", seen(&one.pod, &two.pod, "fd20::3")?, "fd20::2")
}

fn outside_sees_the_host(host: &Sandbox, more: Value, server: &str, wanted: &str) -> Result<()> {
    let outside = host.outside()?;
    let one = Attached::new(host, "a", with(full(), more))?;
    let two = Attached::new(host, "b", full())?;
    equal("peer", seen(&one.pod, &outside, server)?, wanted)?;
    // Not between pods.
    equal("peer inside", seen(&one.pod, &two.pod, "10.20.0.3")?, "10.20.0.2")
}

pub(super) fn outside_sees_the_host_with_iptables(host: &Sandbox) -> Result<()> {
    outside_sees_the_host(host, json!({"ipMasqBackend": "iptables"}), "192.0.2.2", "192.0.2.1")
}

pub(super) fn outside_sees_the_host_with_nftables(host: &Sandbox) -> Result<()> {
    outside_sees_the_host(host, json!({"ipMasqBackend": "nftables"}), "192.0.2.2", "192.0.2.1")
}

pub(super) fn outside_sees_the_host_over_ipv6(host: &Sandbox) -> Result<()> {
    outside_sees_the_host(host, json!({}), "2001:db8:ffff::2", "2001:db8:ffff::1")
}

pub(super) fn outside_sees_the_pod_without_masquerade(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    outside.ip_set("route add 10.20.0.0/24 via 192.0.2.1")?;
    let one = Attached::new(host, "a", one_family())?;
    equal("peer", seen(&one.pod, &outside, "192.0.2.2")?, "10.20.0.2")
}

pub(super) fn a_reused_address_is_reachable_at_once(host: &Sandbox) -> Result<()> {
    let ipam = with(one_family()["ipam"].clone(), json!({}));
    let network = json!({"ipam": ipam, "runtimeConfig": {"ips": ["10.20.0.50"]}});
    for id in ["a", "b", "c"] {
        let one = Attached::new(host, id, network.clone())?;
        let answer = host.try_run(&["ping", "-n", "-c", "1", "-W", "1", "10.20.0.50"])?;
        holds(answer.status.success(), format!("pod {id} does not answer at once"))?;
        one.del(host)?;
    }
    Ok(())
}
