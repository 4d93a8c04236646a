//! dhcp: addresses of a server on the network, and the daemon that keeps them.

mod failures;
mod keeping;
mod occupied;
pub mod server;
mod uplink;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, bridge};
use crate::call::Call;
use crate::case::{Case, Need};
use crate::expect::{at, contains, equal, holds, same_json, soon};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, Sandbox};
use server::{Daemon, LONG, Server};

const DHCP: Need = Need::Plugin("dhcp");
const DNSMASQ: Need = Need::Program("dnsmasq");
const OURS: Need = Need::Plugin("bridgehead");

cases! {
    "dhcp/lease" {
        add_gets_what_dnsmasq_gives needs [DHCP, DNSMASQ];
        classless_routes_take_the_place_of_the_router needs [DHCP, DNSMASQ];
        dnsmasq_gets_the_lease_back needs [DHCP, DNSMASQ, OURS];
        the_server_is_told_and_asked_as_configured needs [DHCP];
        defaults_can_be_left_out needs [DHCP];
        priority_is_the_metric_of_the_routes needs [DHCP];
        answers_to_all_can_be_asked_for needs [DHCP, OURS];
        add_again_gives_the_same_address needs [DHCP, OURS];
        del_gives_back_what_several_adds_have_got needs [DHCP, DNSMASQ, OURS];
        the_plugin_alone_gets_and_gives_back needs [DHCP];
        forty_pods_at_once needs [DHCP, OURS];
    }
    "dhcp/reference" {
        the_daemon_serves_the_plugin_of_the_reference needs [DHCP, OURS, Need::Reference("dhcp")];
        the_plugin_understands_the_daemon_of_the_reference needs [DHCP, OURS, Need::Reference("dhcp")];
    }
}

/// The cases of how leases are kept.
pub(super) const KEEPING: &[Case] = keeping::CASES;

/// The cases of what fails.
pub(super) const FAILURES: &[Case] = failures::CASES;

/// The cases of addresses that others have.
pub(super) const OCCUPIED: &[Case] = occupied::CASES;

/// The cases of networks that are not this host's own.
pub(super) const UPLINKS: &[Case] = uplink::CASES;

/// A network on the server's bridge, with these keys under `ipam`.
fn network(ipam: Value) -> Value {
    json!({"bridge": server::BRIDGE, "ipam": super::networks::with(json!({"type": "dhcp"}), ipam)})
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A dnsmasq that runs until it is dropped.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(host: &Sandbox, options: &[&str]) -> Result<Self> {
        server::network(host)?;
        fs::write("/run/leases", "")?;
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--bind-interfaces"]);
        command.args(["--interface=cni0", "--user=root", "--dhcp-leasefile=/run/leases", "--no-ping"]);
        command.args(["--dhcp-range=10.88.0.50,10.88.0.99,120", "--log-facility=/run/scratch/dnsmasq.log"]);
        command.arg("--pid-file=/run/dnsmasq.pid").args(options).stdin(Stdio::null());
        let child = command.spawn().context("start dnsmasq")?;
        let mut dnsmasq = Self(child);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !lines("/run/scratch/dnsmasq.log").iter().any(|line| line.contains("DHCP, IP range")) {
            if dnsmasq.0.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("dnsmasq does not start: {:?}", lines("/run/scratch/dnsmasq.log"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(dnsmasq)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn add_gets_what_dnsmasq_gives(host: &Sandbox) -> Result<()> {
    let _dnsmasq = Dnsmasq::start(host, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    same_json("the gateway", at(&pod.result, "/ips/0/gateway")?, &json!("10.88.0.1"))?;
    same_json("the routes", at(&pod.result, "/routes")?, &json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}]))?;
    let address = format!("{}/24", pod.address()?);
    equal("addresses of the pod", pod.pod.addresses("eth0")?, [address])?;
    contains("the leases of dnsmasq", &lines("/run/leases").concat(), pod.address()?)?;
    pod.pod.ping("10.88.0.1")?;
    pod.sound(host)?;
    pod.del(host)
}

fn classless_routes_take_the_place_of_the_router(host: &Sandbox) -> Result<()> {
    let _dnsmasq =
        Dnsmasq::start(host, &["--dhcp-option=121,192.0.2.0/24,10.88.0.9,198.51.100.0/24,0.0.0.0"])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({"request": [{"option": "121"}]})))?;
    same_json(
        "the routes",
        at(&pod.result, "/routes")?,
        &json!([{"dst": "192.0.2.0/24", "gw": "10.88.0.9"}, {"dst": "198.51.100.0/24", "gw": "0.0.0.0", "scope": 253}]),
    )?;
    let routes = pod.pod.run(&["ip", "route"])?;
    contains("routes of the pod", &routes, "192.0.2.0/24 via 10.88.0.9")?;
    contains("routes of the pod", &routes, "198.51.100.0/24 dev eth0 scope link")
}

fn dnsmasq_gets_the_lease_back(host: &Sandbox) -> Result<()> {
    let _dnsmasq = Dnsmasq::start(host, &["--dhcp-option=6,9.9.9.9", "--domain=lan.example"])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    same_json(
        "the name servers",
        at(&pod.result, "/dns")?,
        &json!({"nameservers": ["9.9.9.9"], "domain": "lan.example"}),
    )?;
    equal("leases of dnsmasq", lines("/run/leases").len(), 1)?;
    pod.del(host)?;
    soon(|| equal("leases of dnsmasq", lines("/run/leases"), Vec::<String>::new()))?;
    // What is not there can be given back again.
    pod.del(host)
}

fn the_server_is_told_and_asked_as_configured(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("pod1")?;
    let ipam = json!({
        "request": [{"option": "121"}, {"option": "host-name"}],
        "provide": [{"option": "host-name", "value": "nobody", "fromArg": "K8S_POD_NAME"},
            {"option": "vendor-class-identifier", "value": "cni"}, {"option": "77", "value": "blue"}],
    });
    let call = bridge("pod1", &pod, network(ipam)).args("IgnoreUnknown=1;K8S_POD_NAME=web-0");
    call.add().run(host)?.result()?;
    for kind in [1, 3] {
        let heard = server.heard(kind);
        let heard = heard.last().context("the server has heard nothing")?;
        let option = |code: u8| heard.options.get(&code).map(|it| String::from_utf8_lossy(it).into_owned());
        equal("option 12", option(12).as_deref(), Some("web-0"))?;
        equal("option 60", option(60).as_deref(), Some("cni"))?;
        equal("option 77", option(77).as_deref(), Some("blue"))?;
        equal("option 61", option(61).as_deref(), Some("\0pod1/net/eth0"))?;
        let asked = heard.options.get(&55).cloned().unwrap_or_default();
        holds([1, 3, 12, 121].iter().all(|code| asked.contains(code)), format!("option 55 is {asked:?}"))?;
    }
    Ok(())
}

fn defaults_can_be_left_out(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let request = json!({"request": [{"skipDefault": true, "option": "subnet-mask"}]});
    Attachment::new(host, "pod1", network(request))?;
    let asked = server.heard(1).first().and_then(|it| it.options.get(&55).cloned());
    equal("option 55", asked, Some(vec![1]))
}

fn priority_is_the_metric_of_the_routes(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[3, 4, 10, 88, 0, 1])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({"priority": 77})))?;
    contains("routes of the pod", &pod.pod.run(&["ip", "route"])?, "default via 10.88.0.1 dev eth0 metric 77")
}

fn answers_to_all_can_be_asked_for(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-broadcast"])?;
    Attachment::new(host, "pod1", network(json!({})))?;
    let heard = [server.heard(1), server.heard(3)].concat();
    holds(heard.iter().all(|it| it.broadcast), "a message without the flag")
}

fn add_again_gives_the_same_address(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    let again = pod.call.add().run(host)?.result()?;
    same_json("the result", &again, &pod.result)?;
    equal("messages that look for a server", server.heard(1).len(), 1)
}

fn del_gives_back_what_several_adds_have_got(host: &Sandbox) -> Result<()> {
    let _dnsmasq = Dnsmasq::start(host, &[])?;
    let daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    pod.call.add().run(host)?.result()?;
    // Of a link of its name that is another, of another MAC address, by another daemon, and in another namespace.
    pod.pod.ip_set("link del eth0")?;
    pod.call.add().run(host)?.result()?;
    pod.pod.ip_set("link del eth0")?;
    let mac = json!({"mac": "02:11:22:33:44:55"});
    pod.call.set("runtimeConfig", mac).add().run(host)?.result()?;
    daemon.stop()?;
    let _daemon = Daemon::start(host, &[])?;
    pod.call.add().run(host)?.result()?;
    let Attachment { pod: one, call, .. } = pod;
    one.remove()?;
    let other = host.pod("pod1")?;
    let last = call.add().run(host)?.result()?;
    let leases = lines("/run/leases");
    contains(
        "the leases of dnsmasq",
        &leases.concat(),
        &other.addresses("eth0")?.concat().replace("/24", ""),
    )?;
    equal("leases of dnsmasq", leases.len(), 1)?;
    call.del().prev(&last).run(host)?.silence()?;
    soon(|| equal("leases of dnsmasq", lines("/run/leases"), Vec::<String>::new()))?;
    let kept = host.run(&["find", "/run/bridgehead/dhcp", "-type", "f"])?;
    equal("leases that are kept", kept.as_str(), "")
}

/// As a main plugin of another suite calls it.
fn the_plugin_alone_gets_and_gives_back(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[3, 4, 10, 88, 0, 1])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("pod1")?;
    host.ip_set("link add port0 type veth peer name eth0 netns pod1")?;
    host.ip_set("link set port0 master cni0 up")?;
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "ipam": {"type": "dhcp"}});
    let call = Call::new("dhcp").id("pod1").ifname("eth0").netns(&pod).config(config);
    let result = call.add().run(host)?.result()?;
    let address = json!({"address": "10.88.0.10/24", "gateway": "10.88.0.1"});
    same_json("the addresses", at(&result, "/ips")?, &json!([address]))?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    soon(|| equal("releases", server.heard(7).len(), 1))?;
    call.del().run(host)?.silence()
}

fn forty_pods_at_once(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pods: Vec<(Call, Pod)> = (0..40)
        .map(|i| {
            let pod = host.pod(&format!("pod{i}"))?;
            Ok((bridge(&format!("pod{i}"), &pod, network(json!({}))), pod))
        })
        .collect::<Result<_>>()?;
    let started: Vec<_> = pods.iter().map(|(call, _)| call.add().start(host)).collect::<Result<_>>()?;
    let mut addresses = std::collections::BTreeSet::new();
    for call in started {
        let result = call.answer(host)?.result()?;
        addresses.insert(at(&result, "/ips/0/address")?.to_string());
    }
    equal("addresses that differ", addresses.len(), 40)?;
    let started: Vec<_> = pods.iter().map(|(call, _)| call.del().start(host)).collect::<Result<_>>()?;
    for call in started {
        call.answer(host)?.silence()?;
    }
    soon(|| equal("releases", server.heard(7).len(), 40))
}

fn the_daemon_serves_the_plugin_of_the_reference(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[3, 4, 10, 88, 0, 1])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("pod1")?;
    let call = bridge("pod1", &pod, network(json!({}))).from(REFERENCE);
    let result = call.add().run(host)?.result()?;
    same_json("the routes", at(&result, "/routes")?, &json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}]))?;
    equal("addresses of the pod", pod.addresses("eth0")?, ["10.88.0.10/24"])?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    let refusal = call.set("ipam", json!({"type": "dhcp", "request": [{"option": "nonsense"}]}));
    contains("the error", &refusal.id("pod2").ifname("eth1").add().run(host)?.refusal()?.text(), "nonsense")
}

fn the_plugin_understands_the_daemon_of_the_reference(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[3, 4, 10, 88, 0, 1])?;
    let _daemon = Daemon::start_from(std::path::Path::new(REFERENCE), &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({"priority": 9})))?;
    equal("addresses of the pod", pod.pod.addresses("eth0")?, ["10.88.0.10/24"])?;
    contains("routes of the pod", &pod.pod.run(&["ip", "route"])?, "default via 10.88.0.1")?;
    pod.sound(host)?;
    let newest = pod.call.set("cniVersion", json!(super::networks::NEWEST));
    newest.status().run(host)?.silence()?;
    newest.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    pod.del(host)
}
