//! Addresses that a server gives although somebody on the link has them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::server::{Daemon, Server};
use super::{DHCP, DNSMASQ, Dnsmasq, LONG, OURS, lines, network};
use crate::cases::cases;
use crate::cases::networks::{Attachment, bridge};
use crate::expect::{contains, equal, holds, lacks, soon, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "dhcp/occupied" {
        another_address_is_taken_than_that_of_somebody_else needs [DHCP, DNSMASQ, OURS];
        the_server_is_told_whose_address_it_has_given needs [DHCP, OURS];
        what_nobody_waits_for_any_more_is_given_back needs [DHCP, OURS];
        who_looks_for_others_can_be_told_not_to needs [DHCP, OURS];
    }
}

/// Somebody on the server's bridge who has these addresses, and asked nobody.
fn squatter(host: &Sandbox, addresses: &[&str]) -> Result<Pod> {
    let pod = host.pod("squatter")?;
    host.ip_set("link add squatter0 type veth peer name eth0 address 02:00:00:00:00:99 netns squatter")?;
    host.ip_set("link set squatter0 master cni0 up")?;
    for address in addresses {
        pod.ip_set(&format!("addr add {address}/24 dev eth0"))?;
    }
    pod.ip_set("link set eth0 up")?;
    Ok(pod)
}

const MAC: &str = "02:00:00:00:00:99";

fn another_address_is_taken_than_that_of_somebody_else(host: &Sandbox) -> Result<()> {
    let _dnsmasq = Dnsmasq::start(host, &["--dhcp-range=10.88.0.50,10.88.0.51,120"])?;
    let _daemon = Daemon::start(host, &[])?;
    let free = Attachment::new(host, "pod1", network(json!({})))?;
    let taken = free.address()?.to_owned();
    free.del(host)?;
    free.pod.remove()?;
    soon(|| equal("leases of dnsmasq", lines("/run/leases"), Vec::<String>::new()))?;
    let squatter = squatter(host, &[&taken])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    holds(pod.address()? != taken, format!("it has {taken}"))?;
    pod.pod.ping("10.88.0.1")?;
    pod.pod.ping(&taken)?;
    squatter.ping(pod.address()?)?;
    contains(
        "the log of dnsmasq",
        &lines("/run/scratch/dnsmasq.log").concat(),
        &format!("DHCPDECLINE(cni0) {taken}"),
    )?;
    let leases = lines("/run/leases").concat();
    lacks("the leases of dnsmasq", &leases, &taken)?;
    contains("the leases of dnsmasq", &leases, pod.address()?)?;
    pod.sound(host)?;
    pod.del(host)?;
    soon(|| equal("leases of dnsmasq", lines("/run/leases"), Vec::<String>::new()))
}

fn the_server_is_told_whose_address_it_has_given(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let squatter = squatter(host, &["10.88.0.10"])?;
    let pod = host.pod("pod1")?;
    let before = Snapshot::take(host, &[&pod])?;
    let began = Instant::now();
    // It gives a client the same address, whatever it is told.
    let refusal = bridge("pod1", &pod, network(json!({}))).add().run(host)?.refused_with(11)?;
    for part in ["10.88.0.10", MAC, "10.88.0.1 gave"] {
        contains("the error", &refusal.text(), part)?;
    }
    holds(began.elapsed() < Duration::from_secs(10), "ADD took too long")?;
    before.restored(host, &[&pod])?;
    equal("attempts", server.heard(1).len(), 4)?;
    let declined = server.heard(4);
    equal("addresses that are declined", declined.len(), 4)?;
    let decline = declined.first().context("there is none")?;
    let codes: Vec<u8> = decline.options.keys().copied().collect();
    equal("options", codes, vec![50, 53, 54, 56, 61])?;
    equal("option 50", decline.options.get(&50).map(Vec::as_slice), Some(&[10, 88, 0, 10][..]))?;
    equal("option 54", decline.options.get(&54).map(Vec::as_slice), Some(&[10, 88, 0, 1][..]))?;
    contains("option 56", &String::from_utf8_lossy(decline.options.get(&56).context("no message")?), MAC)?;
    equal("the client's address", decline.client, [0; 4])?;
    equal("releases", server.heard(7).len(), 0)?;
    // Once it is free, it can be had.
    squatter.remove()?;
    let pod = Attachment::new(host, "pod2", network(json!({})))?;
    pod.sound(host)
}

fn what_nobody_waits_for_any_more_is_given_back(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-probe", "20s"])?;
    let pod = host.pod("pod1")?;
    let call = bridge("pod1", &pod, network(json!({})));
    let adding = call.add().start(host)?;
    soon(|| equal("requests", server.heard(3).len(), 1))?;
    // It has been granted by now, or will be in no time.
    std::thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(adding.pid().cast_signed()), Signal::SIGKILL)?;
    soon(|| equal("releases", server.heard(7).len(), 1))?;
    call.del().run(host)?.silence()?;
    holds(pod.link("eth0")?.is_none(), "eth0 is still there")
}

fn who_looks_for_others_can_be_told_not_to(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-probe", "0s"])?;
    let _squatter = squatter(host, &["10.88.0.10"])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    equal("the address", text_at(&pod.result, "/ips/0/address")?, "10.88.0.10/24")?;
    equal("addresses that are declined", server.heard(4).len(), 0)
}
