//! bridge on a host where much is going on: many links, links that come and go, and answers of the kernel that are
//! larger than a page.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::json;

use super::cases;
use super::networks::{Attachment, gateway46, with};
use crate::case::Need;
use crate::exec::PATH;
use crate::expect::holds;
use crate::sandbox::Sandbox;

cases! {
    "bridge/crowd" {
        five_hundred_links_are_no_obstacle needs [Need::Ipv6];
        links_and_routes_may_come_and_go_meanwhile needs [Need::Ipv6];
        a_link_may_be_described_on_several_pages needs [Need::Ipv6];
    }
}

/// Links that the host has beside those of the pods.
const CROWD: usize = 500;

/// Alternative names of 120 bytes and more (127 are allowed), that make the description of a link larger than a page of 4 KiB.
/// The kernel takes its time over each, and holds up all other cases meanwhile.
const NAMES: usize = 21;

/// Has `ip` do many things at once.
fn batch(host: &Sandbox, lines: impl Iterator<Item = String>) -> Result<()> {
    let script = host.scratch("batch", &lines.collect::<Vec<_>>().join("\n"))?;
    host.run(&["ip", "-batch", script.to_str().context("a path that is no text")?]).map(drop)
}

fn crowd(host: &Sandbox) -> Result<()> {
    batch(host, (0..CROWD).map(|n| format!("link add crowd{n} type bridge")))
}

/// Three pods, one after the other and then together: each works, is as its CHECK wants it, and leaves nothing.
fn pods_come_and_go(host: &Sandbox) -> Result<()> {
    let network = with(gateway46(), json!({"ipMasq": true}));
    for _ in 0..3 {
        let pods = ["a", "b", "c"]
            .into_iter()
            .map(|id| Attachment::new(host, id, network.clone()))
            .collect::<Result<Vec<_>>>()?;
        for one in &pods {
            one.sound(host)?;
            one.pod.ping("10.20.0.1")?;
        }
        for one in &pods {
            one.del(host)?;
        }
        let left = host.run(&["ip", "link", "show", "type", "veth"])?;
        holds(left.trim().is_empty(), format!("left: {left}"))?;
        for one in pods {
            one.pod.remove()?;
        }
    }
    Ok(())
}

fn five_hundred_links_are_no_obstacle(host: &Sandbox) -> Result<()> {
    crowd(host)?;
    pods_come_and_go(host)
}

/// A shell that runs until it is dropped.
struct Restless(Child);

impl Restless {
    fn start(script: &str) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("while :; do {script}; done")]).env("PATH", PATH);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("start a shell")?))
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        // It is gone with the namespace of processes at the latest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn links_and_routes_may_come_and_go_meanwhile(host: &Sandbox) -> Result<()> {
    crowd(host)?;
    // Each of them interrupts dumps of links, of addresses or of routes that are under way. The pause is for the other
    // cases: the kernel has one lock for the links of all namespaces.
    let restless = Restless::start(
        "ip link add restless type bridge && ip link set restless up; \
         ip addr add 192.0.2.77/32 dev restless; ip route add 198.51.100.0/24 dev restless; \
         ip link del restless; sleep 0.01",
    )?;
    let outcome = pods_come_and_go(host);
    drop(restless);
    outcome
}

fn a_link_may_be_described_on_several_pages(host: &Sandbox) -> Result<()> {
    let first = Attachment::new(host, "first", gateway46())?;
    batch(host, (0..NAMES).map(|n| format!("link property add dev cni0 altname bridge-{n}-{:x>115}", "")))?;
    let description = host.run(&["ip", "-o", "link", "show", "cni0"])?;
    holds(description.len() > NAMES * 115, "the bridge has no long description")?;
    let second = Attachment::new(host, "second", gateway46())?;
    for one in [&first, &second] {
        one.sound(host)?;
        one.pod.ping("10.20.0.1")?;
        one.del(host)?;
    }
    let left = host.run(&["ip", "link", "show", "type", "veth"])?;
    holds(left.trim().is_empty(), format!("left: {left}"))
}
