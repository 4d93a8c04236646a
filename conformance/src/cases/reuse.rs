//! bridge: an address that is used again belongs to its new pod at once.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, gateway4, gateway46, with};
use super::spoof_guard::wire::Wire;
use crate::case::Need;
use crate::expect::{PATIENCE, contains, equal, holds, lacks};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "bridge/reuse" {
        neighbours_hear_of_a_new_ipv4_address needs [Need::Plugin("bridgehead")];
        neighbours_hear_of_a_new_ipv6_address needs [Need::Plugin("bridgehead"), Need::Ipv6];
        a_pod_with_another_mac_is_reached_at_once needs [Need::Plugin("bridgehead"), Need::Ipv6];
        a_pod_with_the_same_mac_is_reached_at_once needs [Need::Plugin("bridgehead"), Need::Ipv6];
        one_that_was_waited_for_is_reached_at_once needs [Need::Plugin("bridgehead"), Need::Ipv6];
        del_has_the_host_forget_its_neighbour needs [Need::Plugin("bridgehead"), Need::Ipv6];
        del_has_the_host_forget_connections needs [Need::Plugin("bridgehead"), Need::Program("conntrack"), Need::Iptables, Need::Ipv6];
    }
}

const ADDRESSES: [&str; 2] = ["10.20.0.50", "fd20::50"];

/// The usual network, with certain addresses and perhaps a certain MAC address.
fn certain(mac: Option<&str>) -> Value {
    let mut asked = json!({"ips": ADDRESSES});
    if let Some(mac) = mac {
        asked["mac"] = json!(mac);
    }
    with(gateway46(), json!({"runtimeConfig": asked}))
}

/// Hears frames of a pod's neighbour for a while, from before the pod is attached.
fn heard_while_adding(host: &Sandbox, is_it: impl Fn(&[u8]) -> bool) -> Result<bool> {
    let witness = Attachment::new(host, "w", gateway46())?;
    let ear = Wire::open(&witness.pod, "eth0")?;
    // The kernel puts off what it does about carriers for at most a second. Without others in that time, it sees at
    // once that a new port has none yet, and the port forwards nothing until the pod's end is up.
    std::thread::sleep(Duration::from_millis(1200));
    Attachment::new(host, "a", certain(None))?;
    let deadline = Instant::now() + PATIENCE;
    while let Some(frame) = ear.hear(deadline)? {
        if is_it(&frame) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn neighbours_hear_of_a_new_ipv4_address(host: &Sandbox) -> Result<()> {
    let own = [10, 20, 0, 50];
    // ARP, whose sender and target have the same address.
    let heard = heard_while_adding(host, |frame| {
        frame.get(12..14) == Some(&[8, 6])
            && frame.get(28..32) == Some(&own)
            && frame.get(38..42) == Some(&own)
    })?;
    holds(heard, "no gratuitous ARP reaches another pod")
}

fn neighbours_hear_of_a_new_ipv6_address(host: &Sandbox) -> Result<()> {
    let own: Ipv6Addr = ADDRESSES[1].parse()?;
    // A neighbour advertisement, whose target is the address, and which overrides.
    let heard = heard_while_adding(host, |frame| {
        frame.get(12..14) == Some(&[0x86, 0xdd])
            && frame.get(54) == Some(&136)
            && frame.get(58).is_some_and(|flags| flags & 0x20 != 0)
            && frame.get(62..78) == Some(&own.octets())
    })?;
    holds(heard, "no unsolicited neighbour advertisement reaches another pod")
}

/// Who has asked in vain for a neighbour asks again after a second, so half of one shows that nobody has to.
fn reached_at_once(pods: &[&Pod], when: &str) -> Result<()> {
    for pod in pods {
        for address in ADDRESSES {
            let answer = pod.try_run(&["ping", "-n", "-c", "1", "-W", "0.5", address])?;
            holds(
                answer.status.success(),
                format!("{address} does not answer {} within half a second, {when}", pod.netns()),
            )?;
        }
    }
    Ok(())
}

/// An announcement may come late on a busy machine, but not each time.
const TRIES: usize = 4;

fn used_again(
    host: &Sandbox,
    macs: [Option<&str>; 3],
    in_between: impl Fn(&Pod) -> Result<()>,
) -> Result<()> {
    let witness = Attachment::new(host, "w", gateway46())?;
    let attempt = |number| used_by_one_after_another(host, &witness, number, macs, &in_between);
    (1..TRIES).find_map(|number| attempt(number).ok()).map_or_else(|| attempt(TRIES), Ok)
}

fn used_by_one_after_another(
    host: &Sandbox,
    witness: &Attachment,
    attempt: usize,
    macs: [Option<&str>; 3],
    in_between: &impl Fn(&Pod) -> Result<()>,
) -> Result<()> {
    for (number, mac) in macs.into_iter().enumerate() {
        let one = Attachment::new(host, &format!("a{attempt}{number}"), certain(mac))?;
        let reached = reached_at_once(&[host, &witness.pod], &format!("pod {number}"));
        one.del(host)?;
        reached?;
        for pod in [host, &witness.pod] {
            in_between(pod)?;
        }
    }
    Ok(())
}

fn a_pod_with_another_mac_is_reached_at_once(host: &Sandbox) -> Result<()> {
    used_again(host, [None, Some("02:00:00:00:00:02"), Some("02:00:00:00:00:03")], |_| Ok(()))
}

fn a_pod_with_the_same_mac_is_reached_at_once(host: &Sandbox) -> Result<()> {
    used_again(host, [None; 3], |_| Ok(()))
}

fn one_that_was_waited_for_is_reached_at_once(host: &Sandbox) -> Result<()> {
    used_again(host, [None, Some("02:00:00:00:00:02"), None], |pod| {
        // Who sends to nobody asks for him, and then waits for a second before it asks again.
        for address in ADDRESSES {
            let address: IpAddr = address.parse()?;
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            pod.inside(|| UdpSocket::bind(any)?.send_to(b"x", (address, 9)))?.context("send")?;
        }
        Ok(())
    })
}

fn del_has_the_host_forget_its_neighbour(host: &Sandbox) -> Result<()> {
    let other = Attachment::new(host, "w", gateway46())?;
    let one = Attachment::new(host, "a", certain(None))?;
    for address in [ADDRESSES[0], ADDRESSES[1], other.address()?] {
        host.ping(address)?;
        contains("neighbours", &host.run(&["ip", "neigh"])?, &format!("{address} dev cni0"))?;
    }
    one.del(host)?;
    let left = host.run(&["ip", "neigh"])?;
    for address in ADDRESSES {
        lacks("neighbours after DEL", &left, address)?;
    }
    contains("neighbours after DEL", &left, &format!("{} dev cni0", other.address()?))
}

fn connections(host: &Sandbox, address: &str) -> Result<usize> {
    let family = if address.contains(':') { "ipv6" } else { "ipv4" };
    let list = host.run(&["conntrack", "-L", "-f", family])?;
    Ok(list
        .lines()
        .filter(|line| line.split_whitespace().any(|word| word.ends_with(&format!("={address}"))))
        .count())
}

fn del_has_the_host_forget_connections(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let network = |network: Value| with(network, json!({"ipMasq": true, "ipMasqBackend": "iptables"}));
    let other = Attachment::new(host, "w", network(gateway4()))?;
    let one = Attachment::new(host, "a", network(certain(None)))?;
    for pod in [&one.pod, &other.pod] {
        pod.ping("192.0.2.2")?;
    }
    one.pod.ping("2001:db8:ffff::2")?;
    host.ping(ADDRESSES[0])?;
    let others = connections(host, other.address()?)?;
    holds(others > 0, "connections of the other pod are not tracked")?;
    for address in ADDRESSES {
        holds(connections(host, address)? > 0, format!("connections of {address} are not tracked"))?;
    }
    one.del(host)?;
    // The caller does not wait for it.
    for address in ADDRESSES {
        let deadline = Instant::now() + Duration::from_secs(5);
        while connections(host, address)? > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        equal(format!("connections of {address} after DEL"), connections(host, address)?, 0)?;
    }
    equal("connections of the other pod", connections(host, other.address()?)?, others)?;
    drop(outside);
    Ok(())
}
