//! Pods on a network that is not this host's own: a bridge that an uplink is in, and a macvlan on it. dnsmasq is behind.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::server::Daemon;
use super::{DHCP, DNSMASQ, lines};
use crate::call::Call;
use crate::case::Need;
use crate::cases::cases;
use crate::cases::networks::Attachment;
use crate::expect::{at, contains, equal, holds, lacks, same_json, soon};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

cases! {
    "dhcp/uplink" {
        a_macvlan_is_served_from_outside needs [DHCP, DNSMASQ, Need::LinkType("macvlan"), Need::Plugin("macvlan")];
        a_macvlan_is_removed_when_its_pod_is_gone needs [DHCP, DNSMASQ, Need::LinkType("macvlan"), Need::Plugin("macvlan"), Need::Plugin("bridgehead")];
        a_bridge_is_served_from_outside needs [DHCP, DNSMASQ];
    }
}

const LOG: &str = "/run/scratch/dnsmasq.log";
const LEASES: &str = "/run/leases";

/// A network behind the host's link `up0`, with a dnsmasq that has leases renewed each three seconds, which is the least.
struct Lan {
    server: Pod,
    dnsmasq: Child,
}

impl Lan {
    fn new(host: &Sandbox) -> Result<Self> {
        let server = host.pod("lan")?;
        host.ip_set("link add up0 type veth peer name eth0 netns lan")?;
        host.ip_set("link set up0 up")?;
        server.ip_set("addr add 10.88.0.1/24 dev eth0")?;
        server.ip_set("link set eth0 up")?;
        std::fs::write(LEASES, "")?;
        let mut command = Command::new("nsenter");
        command.args(["--net=/run/netns/lan", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"]);
        command.args(["--port=0", "--bind-interfaces", "--interface=eth0", "--user=root", "--no-ping"]);
        command.args(["--dhcp-range=10.88.0.50,10.88.0.99,120", "--dhcp-option=58,3", "--dhcp-option=59,60"]);
        command.args([&format!("--dhcp-leasefile={LEASES}"), &format!("--log-facility={LOG}")]);
        command.args(["--pid-file=/run/dnsmasq.pid", "--log-dhcp"]).stdin(Stdio::null());
        let mut lan = Self { server, dnsmasq: command.spawn().context("start dnsmasq")? };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !lines(LOG).iter().any(|line| line.contains("DHCP, IP range")) {
            if lan.dnsmasq.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("dnsmasq does not start: {:?}", lines(LOG));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(lan)
    }

    /// How many leases dnsmasq has given or renewed.
    fn acknowledged(&self) -> usize {
        lines(LOG).iter().filter(|line| line.contains("DHCPACK")).count()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.dnsmasq.kill();
        let _ = self.dnsmasq.wait();
    }
}

/// From ADD over renewals to DEL, with packets.
fn is_served(host: &Sandbox, lan: &Lan, config: Value) -> Result<()> {
    let name = config["type"].as_str().unwrap_or_default().to_owned();
    let pod = host.pod("pod1")?;
    let call = Call::new(&name).id("pod1").ifname("eth0").netns(&pod).config(config);
    let result = call.add().run(host)?.result()?;
    let one = Attachment { pod, call, result };
    let address = one.address()?.to_owned();
    same_json("the gateway", at(&one.result, "/ips/0/gateway")?, &json!("10.88.0.1"))?;
    equal("addresses of the pod", one.pod.addresses("eth0")?, [format!("{address}/24")])?;
    contains("the leases of dnsmasq", &lines(LEASES).concat(), &address)?;
    let mac = one.pod.need_link("eth0")?["address"].as_str().unwrap_or_default().to_owned();
    contains("the leases of dnsmasq", &lines(LEASES).concat(), &mac)?;
    one.pod.ping("10.88.0.1")?;
    lan.server.ping(&address)?;
    // One for ADD, and each other is a renewal.
    let deadline = Instant::now() + Duration::from_secs(15);
    while lan.acknowledged() < 3 {
        holds(Instant::now() < deadline, format!("nothing is renewed: {:#?}", lines(LOG)))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let discovered = lines(LOG).iter().filter(|line| line.contains("DHCPDISCOVER(")).count();
    equal("messages that look for a server", discovered, 1)?;
    one.call.check().prev(&one.result).run(host)?.silence()?;
    lan.server.ping(&address)?;
    one.call.del().prev(&one.result).run(host)?.silence()?;
    soon(|| equal("leases of dnsmasq", lines(LEASES), Vec::<String>::new()))?;
    lacks("links of the pod", &one.pod.link_names()?.join(" "), "eth0")?;
    one.call.del().prev(&one.result).run(host)?.silence()?;
    // The next one is served, too.
    let again = one.call.add().run(host)?.result()?;
    one.call.check().prev(&again).run(host)?.silence()?;
    one.call.del().prev(&again).run(host)?.silence()?;
    soon(|| equal("leases of dnsmasq", lines(LEASES), Vec::<String>::new()))
}

fn macvlan() -> Value {
    json!({"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "up0", "ipam": {"type": "dhcp"}})
}

fn a_macvlan_is_served_from_outside(host: &Sandbox) -> Result<()> {
    let lan = Lan::new(host)?;
    let _daemon = Daemon::start(host, &[])?;
    is_served(host, &lan, macvlan())
}

/// Nobody can tell the server any more from where it would listen; the daemon forgets the lease.
fn a_macvlan_is_removed_when_its_pod_is_gone(host: &Sandbox) -> Result<()> {
    let lan = Lan::new(host)?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("pod1")?;
    let call = Call::new("macvlan").id("pod1").ifname("eth0").netns(&pod).config(macvlan());
    let result = call.add().run(host)?.result()?;
    pod.remove()?;
    call.without("CNI_NETNS").del().prev(&result).run(host)?.silence()?;
    let directories = std::fs::read_dir("/run/bridgehead/dhcp").into_iter().flatten().flatten();
    let files: usize = directories.map(|it| std::fs::read_dir(it.path()).into_iter().flatten().count()).sum();
    equal("files of leases", files, 0)?;
    let again = host.pod("pod2")?;
    let call = call.id("pod2").netns(&again);
    let result = call.add().run(host)?.result()?;
    lan.server.ping(
        at(&result, "/ips/0/address")?.as_str().and_then(|it| it.split('/').next()).unwrap_or_default(),
    )?;
    call.del().prev(&result).run(host)?.silence()
}

fn a_bridge_is_served_from_outside(host: &Sandbox) -> Result<()> {
    let lan = Lan::new(host)?;
    let _daemon = Daemon::start(host, &[])?;
    host.ip_set("link add lan0 type bridge")?;
    host.ip_set("link set lan0 up")?;
    host.ip_set("link set up0 master lan0")?;
    let config = json!({"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "bridge": "lan0", "ipam": {"type": "dhcp"}});
    is_served(host, &lan, config)
}
