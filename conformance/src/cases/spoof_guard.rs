//! bridge: `spoofGuard`, a pod can send only as itself. The reference does not have it.
//!
//! Frames are made byte by byte and sent from inside a pod; another pod on the same bridge tells what arrives. Each list
//! of them is also sent without the guard, where all must arrive, so that none is missing for another reason.

pub(super) mod frames;
mod traffic;
pub(super) mod wire;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, gateway46, pool, with};
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, soon, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use frames::{ETHER_IPV4, UDP, ethernet, ipv4, tagged, udp};
use traffic::{Named, Stage, false_arp, false_ipv4, false_ipv6, false_protocols, good};
use wire::Wire;

cases! {
    "bridge/spoof-guard" {
        pods_work needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        what_a_pod_may_send_passes needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        false_ipv4_is_dropped needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        false_ipv6_is_dropped needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        false_arp_is_dropped needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        other_protocols_are_dropped needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        a_vlan_tag_is_no_way_around needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        frames_for_the_bridge_itself_are_no_way_around needs [Need::Plugin("bridgehead"), Need::Nftables];
        without_it_all_frames_pass needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        others_are_not_guarded needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        both_guards_work_together needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        multicast_is_heard needs [Need::Plugin("bridgehead"), Need::Nftables];
        all_addresses_of_a_pod_pass needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        a_mac_that_was_asked_for_passes needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        duplicate_address_detection_works needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
        pods_of_a_vlan_work needs [Need::Plugin("bridgehead"), Need::Nftables, Need::VlanFiltering];
        without_ipam_it_is_refused needs [Need::Plugin("bridgehead")];
        del_leaves_nothing_of_it needs [Need::Plugin("bridgehead"), Need::Nftables];
        del_without_record_and_namespace_leaves_nothing needs [Need::Plugin("bridgehead"), Need::Nftables];
        gc_removes_that_of_the_dead needs [Need::Plugin("bridgehead"), Need::Nftables];
        an_add_that_fails_leaves_nothing_of_it needs [Need::Plugin("bridgehead"), Need::Nftables];
        check_tells_what_is_missing needs [Need::Plugin("bridgehead"), Need::Nftables];
        add_replaces_what_was_left_on_the_link needs [Need::Plugin("bridgehead"), Need::Nftables];
        the_next_add_puts_rules_back needs [Need::Plugin("bridgehead"), Need::Nftables, Need::Ipv6];
    }
}

fn guarded(network: Value) -> Value {
    with(network, json!({"spoofGuard": true}))
}

fn ruleset(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

/// What became of frames, by their names.
#[derive(Default)]
struct Fates<'a> {
    arrived: Vec<&'a str>,
    lost: Vec<&'a str>,
}

/// Sends frames from one pod to the other.
fn send<'a>(stage: &Stage, frames: &'a [Named]) -> Result<Fates<'a>> {
    let (mouth, ear) = (Wire::open(&stage.one.pod, "eth0")?, Wire::open(&stage.other.pod, "eth0")?);
    // The last one passes in any case, so all before it have arrived when it has, or never will.
    let last = stage.passing();
    for (name, frame) in frames.iter().chain([&last]) {
        mouth.send(frame).with_context(|| name.clone())?;
    }
    // What arrives is without its tag.
    let untagged: Vec<Vec<u8>> = frames
        .iter()
        .chain([&last])
        .map(|(_, frame)| match frame.get(12..14) {
            Some([0x81, 0]) => [&frame[..12], &frame[16..]].concat(),
            _ => frame.clone(),
        })
        .collect();
    let mut heard = ear.heard(&untagged.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    if heard.pop() != Some(true) {
        bail!("nothing arrives at all");
    }
    let mut fates = Fates::default();
    for ((name, _), is_heard) in frames.iter().zip(heard) {
        let those = if is_heard { &mut fates.arrived } else { &mut fates.lost };
        those.push(name);
    }
    Ok(fates)
}

fn all_pass(stage: &Stage, frames: &[Named]) -> Result<()> {
    equal("frames that do not arrive", send(stage, frames)?.lost, [""; 0])
}

fn none_passes(stage: &Stage, frames: &[Named]) -> Result<()> {
    equal("frames that arrive", send(stage, frames)?.arrived, [""; 0])
}

fn pods_work(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let network = with(guarded(gateway46()), json!({"ipMasq": true}));
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network)?;
    for address in ["10.20.0.3", "fd20::3", "10.20.0.1", "fd20::1", "192.0.2.2", "2001:db8:ffff::2"] {
        one.pod.ping(address)?;
    }
    for address in ["10.20.0.2", "fd20::2"] {
        host.ping(address)?;
        two.pod.ping(address)?;
        let large = two.pod.try_run(&["ping", "-n", "-c", "1", "-W", "9", "-s", "6000", address])?;
        holds(large.status.success(), format!("{address} does not answer in fragments"))?;
    }
    let link = text_at(&one.pod.need_link("eth0")?, "/address")?.to_owned();
    let local = one.pod.run(&["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"])?;
    let local = local.split_whitespace().nth(3).and_then(|text| text.split('/').next());
    let local = local.with_context(|| format!("the pod with {link} has no link-local address"))?;
    two.pod.ping(&format!("{local}%eth0"))?;
    drop(outside);
    one.sound(host)
}

fn what_a_pod_may_send_passes(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    all_pass(&stage, &good(&stage))
}

fn false_ipv4_is_dropped(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    none_passes(&stage, &false_ipv4(&stage))
}

fn false_ipv6_is_dropped(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    none_passes(&stage, &false_ipv6(&stage))
}

fn false_arp_is_dropped(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    none_passes(&stage, &false_arp(&stage))
}

fn other_protocols_are_dropped(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    none_passes(&stage, &false_protocols(&stage))
}

fn in_vlan(frames: Vec<Named>) -> Vec<Named> {
    let tag = |(name, frame): Named| (format!("{name}, in VLAN 7"), tagged(7, &frame));
    frames.into_iter().map(tag).collect()
}

fn every_false(stage: &Stage) -> Vec<Named> {
    [false_ipv4(stage), false_ipv6(stage), false_arp(stage), false_protocols(stage)].concat()
}

fn a_vlan_tag_is_no_way_around(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    none_passes(&stage, &in_vlan(every_false(&stage)))?;
    all_pass(&stage, &in_vlan(good(&stage)))?;
    // A receiver takes VLAN 0 for no VLAN (IEEE 802.1Q, priority tags).
    let (name, frame) = stage.stranger();
    none_passes(&stage, &[(format!("{name}, in VLAN 0"), tagged(0, &frame))])
}

/// A bridge keeps frames to 01:80:c2:00:00:0X for itself. Some it gives to the host without looking at them any more,
/// and learns from them where a MAC address is.
fn frames_for_the_bridge_itself_are_no_way_around(host: &Sandbox) -> Result<()> {
    let witness = Attachment::new(host, "witness", gateway4())?;
    host.ping(witness.address()?)?;
    let victim = [0x0a, 0x58, 10, 20, 0, 2];
    for (network, stp) in [(gateway4(), 1), (guarded(gateway4()), 0), (guarded(gateway4()), 1)] {
        let is_open = network.get("spoofGuard").is_none();
        let one = Attachment::new(host, &format!("pod{is_open}{stp}"), network)?;
        host.ip_set(&format!("link set cni0 type bridge stp_state {stp} forward_delay 200"))?;
        let port = one.host_link()?;
        expect_forwarding(host, port)?;
        let (mouth, ear) = (Wire::open(&one.pod, "eth0")?, UdpSocket::bind("10.20.0.1:0")?);
        let ear_port = ear.local_addr()?.port();
        host.set_sysctl(&format!("ipv4/conf/{port}/rp_filter"), "0")?;
        ear.set_read_timeout(Some(Duration::from_millis(300)))?;
        let send = || -> Result<()> {
            (0..16).filter(|last| *last != 1).try_for_each(|last| {
                let to = [0x01, 0x80, 0xc2, 0, 0, last];
                let datagram = udp(1, ear_port, b"x");
                let packet = ipv4([10, 20, 0, 99].into(), [10, 20, 0, 1].into(), UDP, 0, &datagram);
                mouth.send(&ethernet(to, victim, ETHER_IPV4, &packet)).map(drop)
            })
        };
        let has_moved = || -> Result<bool> {
            let learnt = host.run(&["bridge", "fdb", "show", "br", "cni0"])?;
            Ok(learnt.lines().any(|l| l.starts_with("0a:58:0a:14:00:02") && l.contains(port)))
        };
        send()?;
        let came = ear.recv_from(&mut [0; 16]).is_ok();
        equal(format!("whether the host hears {port} as somebody else, STP {stp}"), came, is_open)?;
        if is_open {
            // Whatever the other says meanwhile, asked by the host whether it is still there, takes it back.
            soon(|| {
                send()?;
                holds(has_moved()?, format!("the bridge does not take {port} for somebody else's"))
            })?;
        } else {
            holds(!has_moved()?, format!("the bridge takes {port} for somebody else's, STP {stp}"))?;
        }
        one.del(host)?;
        witness.pod.ping("10.20.0.1")?;
    }
    Ok(())
}

/// With STP, a port learns for a while before it carries packets.
fn expect_forwarding(host: &Sandbox, port: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let link = host.need_link(port)?;
        if text_at(&link, "/linkinfo/info_slave_data/state")? == "forwarding" {
            return Ok(());
        }
        holds(Instant::now() < deadline, "the port does not come to forward packets")?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn without_it_all_frames_pass(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, gateway46())?;
    all_pass(&stage, &good(&stage))?;
    all_pass(&stage, &every_false(&stage))?;
    all_pass(&stage, &in_vlan(every_false(&stage)))?;
    lacks("rules", &ruleset(host)?, "spoof")
}

fn others_are_not_guarded(host: &Sandbox) -> Result<()> {
    let _first = Attachment::new(host, "first", guarded(gateway46()))?;
    let stage = Stage::new(host, gateway46())?;
    all_pass(&stage, &every_false(&stage))
}

fn both_guards_work_together(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, with(guarded(gateway46()), json!({"macspoofchk": true})))?;
    all_pass(&stage, &good(&stage))?;
    none_passes(&stage, &every_false(&stage))?;
    stage.one.sound(host)?;
    stage.one.del(host)?;
    lacks("rules", &ruleset(host)?, "net/one/eth0")
}

fn multicast_is_heard(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", guarded(gateway4()))?;
    let two = Attachment::new(host, "b", guarded(gateway4()))?;
    let ear = two.pod.inside(|| -> std::io::Result<UdpSocket> {
        let ear = UdpSocket::bind("0.0.0.0:5353")?;
        ear.join_multicast_v4(&[239, 1, 2, 3].into(), &[10, 20, 0, 3].into())?;
        ear.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(ear)
    })??;
    let mouth = one.pod.inside(|| UdpSocket::bind("10.20.0.2:0"))??;
    let (_, from) = soon(|| {
        mouth.send_to(b"x", "239.1.2.3:5353")?;
        ear.recv_from(&mut [0; 16]).context("a pod does not hear the group that it joined")
    })?;
    equal("sender", from.ip().to_string(), "10.20.0.2")
}

fn answers(pod: &Pod, from: &str, to: &str) -> Result<()> {
    let answer = pod.try_run(&["ping", "-n", "-c", "1", "-W", "9", "-I", from, to])?;
    holds(answer.status.success(), format!("{to} does not answer to {from}"))
}

fn all_addresses_of_a_pod_pass(host: &Sandbox) -> Result<()> {
    let subnets = ["10.20.0.0/24", "10.21.0.0/24", "fd20::/64", "fd21::/64"];
    let network = guarded(json!({"isDefaultGateway": true, "ipam": pool(&subnets)}));
    let one = Attachment::new(host, "a", network)?;
    for (from, to) in [
        ("10.20.0.2", "10.20.0.1"),
        ("10.21.0.2", "10.21.0.1"),
        ("10.21.0.2", "10.20.0.1"),
        ("fd20::2", "fd20::1"),
        ("fd21::2", "fd21::1"),
        ("fd21::2", "fd20::1"),
    ] {
        answers(&one.pod, from, to)?;
    }
    one.pod.ip_set("addr add 10.20.0.77/24 dev eth0")?;
    let answer = one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "-I", "10.20.0.77", "10.20.0.1"])?;
    holds(!answer.status.success(), "a pod sends from an address that it gave itself")
}

fn a_mac_that_was_asked_for_passes(host: &Sandbox) -> Result<()> {
    let mac = "02:00:00:00:12:34";
    let network = with(guarded(gateway46()), json!({"runtimeConfig": {"mac": mac}}));
    let one = Attachment::new(host, "a", network)?;
    equal("MAC address", text_at(&one.pod.need_link("eth0")?, "/address")?, mac)?;
    answers(&one.pod, "10.20.0.2", "10.20.0.1")?;
    answers(&one.pod, "fd20::2", "fd20::1")?;
    one.sound(host)?;
    one.pod.ip_set("link set eth0 address 02:00:00:00:66:66")?;
    let answer = one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "10.20.0.1"])?;
    holds(!answer.status.success(), "a pod with another MAC address than it asked for reaches the gateway")
}

fn duplicate_address_detection_works(host: &Sandbox) -> Result<()> {
    let network = with(guarded(gateway46()), json!({"enabledad": true}));
    let one = Attachment::new(host, "a", network.clone())?;
    answers(&one.pod, "fd20::2", "fd20::1")?;
    // Somebody has the next pod's address: it learns of it only if it may ask, and the other may answer.
    one.pod.ip_set("addr add fd20::3/64 dev eth0 nodad")?;
    let open = with(network, json!({"spoofGuard": false}));
    let pod = host.pod("b")?;
    bridge("b", &pod, open)
        .add()
        .run(host)?
        .result()
        .context("who guards a pod lets it claim another's address")?;
    Ok(())
}

fn pods_of_a_vlan_work(host: &Sandbox) -> Result<()> {
    let network = with(guarded(gateway46()), json!({"vlan": 100}));
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network)?;
    for address in [two.address()?, "10.20.0.1", "fd20::1"] {
        one.pod.ping(address)?;
    }
    one.pod.ip_set("addr add 10.20.0.77/24 dev eth0")?;
    let answer = one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "-I", "10.20.0.77", "10.20.0.1"])?;
    holds(!answer.status.success(), "a pod of a VLAN sends from an address that it gave itself")?;
    two.sound(host)
}

fn without_ipam_it_is_refused(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let refusal = bridge("a", &pod, json!({"spoofGuard": true})).add().run(host)?.refused_with(7)?;
    contains("message", &refusal.text(), "spoofGuard")
}

fn del_leaves_nothing_of_it(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", guarded(gateway4()))?;
    let two = Attachment::new(host, "b", guarded(gateway4()))?;
    contains("rules after ADD", &ruleset(host)?, "net/a/eth0")?;
    one.del(host)?;
    let left = ruleset(host)?;
    lacks("rules after DEL", &left, "net/a/eth0")?;
    lacks("rules after DEL", &left, one.host_link()?)?;
    two.sound(host)?;
    two.call.without("CNI_NETNS").del().run(host)?.silence()?;
    lacks("rules after DEL without namespace", &ruleset(host)?, "elements")
}

fn del_without_record_and_namespace_leaves_nothing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", guarded(gateway4()))?;
    let two = Attachment::new(host, "b", guarded(gateway4()))?;
    host.run(&["rm", "-r", "/run/bridgehead"])?;
    one.call.without("CNI_NETNS").set("spoofGuard", json!(false)).del().run(host)?.silence()?;
    lacks("rules after DEL", &ruleset(host)?, "net/a/eth0")?;
    two.sound(host)
}

fn gc_removes_that_of_the_dead(host: &Sandbox) -> Result<()> {
    let network = with(guarded(gateway4()), json!({"cniVersion": NEWEST}));
    let one = Attachment::new(host, "a", network.clone())?;
    let two = Attachment::new(host, "b", network)?;
    let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
    one.call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    lacks("rules after GC", &ruleset(host)?, "net/a/eth0")?;
    two.sound(host)
}

fn an_add_that_fails_leaves_nothing_of_it(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type veth peer name taken")?;
    bridge("a", &pod, guarded(gateway4())).add().run(host)?.refusal()?;
    lacks("rules", &ruleset(host)?, "elements")
}

fn check_tells_what_is_missing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", guarded(gateway4()))?;
    one.sound(host)?;
    host.run(&["nft", "flush", "chain", "bridge", "bridgehead", "spoof_check_ipv4"])?;
    contains("CHECK", &one.damaged(host)?, "chain bridge bridgehead spoof_check_ipv4")?;
    // ADD again repairs what is there.
    let one = again(host, one)?;
    host.run(&["nft", "flush", "set", "bridge", "bridgehead", "spoof_ipv4"])?;
    contains("CHECK", &one.damaged(host)?, one.address()?)?;
    let one = again(host, one)?;
    host.ip_set(&format!("link set {} type bridge_slave group_fwd_mask 0", one.host_link()?))?;
    contains("CHECK", &one.damaged(host)?, "group_fwd_mask")?;
    let one = again(host, one)?;
    host.run(&["nft", "flush", "ruleset"])?;
    contains("CHECK", &one.damaged(host)?, "spoof_entry")?;
    again(host, one).map(drop)
}

/// ADD for an attachment that is there; CHECK finds nothing wrong with it afterwards.
fn again(host: &Sandbox, one: Attachment) -> Result<Attachment> {
    let result = one.call.add().run(host)?.result()?;
    let one = Attachment { result, ..one };
    one.sound(host)?;
    Ok(one)
}

fn add_replaces_what_was_left_on_the_link(host: &Sandbox) -> Result<()> {
    let network = |address: &str| with(guarded(gateway4()), json!({"runtimeConfig": {"ips": [address]}}));
    let one = Attachment::new(host, "a", network("10.20.0.50"))?;
    // As after a kill: the guard is there, and nobody knows of it.
    host.run(&["rm", "-r", "/run/bridgehead"])?;
    one.pod.ip_set("link del eth0")?;
    one.pod.remove()?;
    host.run(&["rm", "-r", "/var/lib/cni/networks/net"])?;
    let again = Attachment::new(host, "a", network("10.20.0.51"))?;
    lacks("rules", &ruleset(host)?, "10.20.0.50")?;
    again.pod.ping("10.20.0.1")?;
    again.sound(host)
}

fn the_next_add_puts_rules_back(host: &Sandbox) -> Result<()> {
    let stage = Stage::new(host, guarded(gateway46()))?;
    for (number, chain) in ["spoof_entry", "spoof_check", "spoof_check_ipv6"].iter().enumerate() {
        host.run(&["nft", "flush", "chain", "bridge", "bridgehead", chain])?;
        let next = Attachment::new(host, &format!("next{number}"), guarded(gateway46()))?;
        none_passes(&stage, &every_false(&stage)).with_context(|| format!("after a flush of {chain}"))?;
        all_pass(&stage, &good(&stage)).with_context(|| format!("after a flush of {chain}"))?;
        next.pod.ping("10.20.0.1")?;
    }
    Ok(())
}
