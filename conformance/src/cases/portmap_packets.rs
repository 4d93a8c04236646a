//! portmap: what becomes of packets, over TCP and UDP.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, gateway4, gateway46, with};
use super::portmap::{portmap, tcp};
use crate::case::Need;
use crate::expect::{PATIENCE, equal};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

const PORTMAP: Need = Need::Plugin("portmap");

/// What is beyond the reference.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "portmap/packets" {
        the_outside_reaches_a_pod needs [PORTMAP, Need::Iptables, Need::Nftables];
        the_outside_reaches_a_pod_over_ipv6 needs [PORTMAP, Need::Ipv6, Need::Iptables, Need::Nftables];
        the_outside_reaches_a_pod_over_udp needs [PORTMAP, Need::Iptables, Need::Nftables];
        the_host_reaches_a_pod_by_each_of_its_addresses needs [PORTMAP, Need::Iptables, Need::Nftables];
        a_pod_reaches_itself needs [PORTMAP, Need::Iptables, Need::Nftables];
        a_pod_reaches_itself_over_ipv6 needs [PORTMAP, Need::Ipv6, Need::Iptables, Need::Nftables];
        a_neighbour_reaches_a_pod_with_iptables needs [PORTMAP, Need::Iptables];
        a_neighbour_reaches_a_pod_with_nftables needs [TOOL, Need::Nftables];
        all_are_masqueraded_if_asked_for needs [PORTMAP, Need::Iptables];
        all_are_masqueraded_if_asked_for_in_nftables needs [TOOL, Need::Nftables];
        a_port_of_one_address_is_not_one_of_another needs [PORTMAP, Need::Iptables, Need::Nftables];
        conditions_keep_packets_out needs [PORTMAP, Need::Iptables];
        conditions_of_one_network_leave_others_alone needs [TOOL, Need::Nftables];
        nothing_leads_there_after_del needs [PORTMAP, Need::Iptables, Need::Nftables];
        the_first_owner_keeps_its_port needs [TOOL, Need::Iptables, Need::Nftables];
        udp_flows_from_before_reach_the_pod needs [PORTMAP, Need::Iptables, Need::Nftables];
        udp_flows_follow_the_port_to_another_pod needs [TOOL, Need::Iptables, Need::Nftables];
    }
    "portmap/cve" {
        cve_2025_67499_packets_to_others_pass_by needs [PORTMAP, Need::Iptables, Need::Nftables];
        cve_2019_9946_services_come_first needs [PORTMAP, Need::Iptables];
        cve_2019_9946_services_come_first_in_nftables needs [TOOL, Need::Iptables, Need::Nftables];
    }
}

const BACK_ENDS: [&str; 2] = ["iptables", "nftables"];

/// How long to wait for what should not.
const BRIEFLY: Duration = Duration::from_millis(500);

fn back_end(name: &str) -> Value {
    json!({"backend": name})
}

pub(super) fn listen(pod: &Pod, address: &str) -> Result<TcpListener> {
    let address: SocketAddr = address.parse()?;
    let listener = pod.inside(|| TcpListener::bind(address))?.context("cannot listen")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects, and tells which client the server sees.
pub(super) fn seen(client: &Pod, target: &str, server: &TcpListener) -> Result<String> {
    let target: SocketAddr = target.parse()?;
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match client.inside(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)))? {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => {
                bail!("no connection from {} to {target}: {error}", client.netns())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    loop {
        match server.accept() {
            Ok((_, peer)) => return Ok(peer.ip().to_string()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => {
                bail!(
                    "{} has connected to {target}, but not to the server ({:?}): {error}",
                    client.netns(),
                    stream
                )
            }
        }
    }
}

/// Nobody answers.
pub(super) fn is_closed(client: &Pod, target: &str) -> Result<()> {
    let target: SocketAddr = target.parse()?;
    match client.inside(|| TcpStream::connect_timeout(&target, BRIEFLY))? {
        Ok(_) => bail!("{} reaches {target}", client.netns()),
        Err(_) => Ok(()),
    }
}

pub(super) fn udp(pod: &Pod, address: &str) -> Result<UdpSocket> {
    let address: SocketAddr = address.parse()?;
    let socket = pod.inside(|| UdpSocket::bind(address))?.context("cannot bind")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// Sends until the server has it and its answer is back; gives the client that the server sees.
pub(super) fn exchanged(client: &UdpSocket, target: &str, server: &UdpSocket) -> Result<String> {
    let target: SocketAddr = target.parse()?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 16];
    while Instant::now() < deadline {
        client.send_to(b"question", target)?;
        let Ok((_, peer)) = server.recv_from(&mut buffer) else { continue };
        server.send_to(b"answer", peer)?;
        let Ok((len, from)) = client.recv_from(&mut buffer) else { continue };
        equal("answer", &buffer[..len], b"answer")?;
        equal("where the answer comes from", from, target)?;
        return Ok(peer.ip().to_string());
    }
    bail!("what is sent to {target} does not reach the server, or its answer does not come back")
}

/// A pod with a port of each back end: with iptables 8080, with nftables 8081, both to 80.
pub(super) struct Both {
    pub(super) outside: Pod,
    pub(super) pods: Vec<(Attachment, String, u16)>,
}

impl Both {
    pub(super) fn new(host: &Sandbox, network: &Value, protocol: &str, more: Value) -> Result<Self> {
        let outside = host.outside()?;
        let mut pods = Vec::new();
        for (name, host_port) in BACK_ENDS.into_iter().zip(8080..) {
            let id = format!("of-{name}");
            let one = Attachment::new(host, &id, network.clone())?;
            let mappings = json!([{"hostPort": host_port, "containerPort": 80, "protocol": protocol}]);
            let call = portmap(&id, &one, mappings, with(more.clone(), back_end(name)));
            call.add().run(host)?.result().with_context(|| name.to_owned())?;
            pods.push((one, id, host_port));
        }
        Ok(Self { outside, pods })
    }
}

fn the_outside_reaches_a_pod(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "tcp", json!({}))?;
    for (one, id, port) in &both.pods {
        let server = listen(&one.pod, "0.0.0.0:80")?;
        equal(id, seen(&both.outside, &format!("192.0.2.1:{port}"), &server)?, "192.0.2.2")?;
    }
    Ok(())
}

fn the_outside_reaches_a_pod_over_ipv6(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway46(), "tcp", json!({}))?;
    for (one, id, port) in &both.pods {
        let server = listen(&one.pod, "[::]:80")?;
        let target = format!("[2001:db8:ffff::1]:{port}");
        equal(id, seen(&both.outside, &target, &server)?, "2001:db8:ffff::2")?;
    }
    Ok(())
}

fn the_outside_reaches_a_pod_over_udp(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "udp", json!({}))?;
    for (one, id, port) in &both.pods {
        let server = udp(&one.pod, "0.0.0.0:80")?;
        let client = udp(&both.outside, "0.0.0.0:0")?;
        equal(id, exchanged(&client, &format!("192.0.2.1:{port}"), &server)?, "192.0.2.2")?;
    }
    Ok(())
}

fn the_host_reaches_a_pod_by_each_of_its_addresses(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "tcp", json!({}))?;
    host.ip_set("link set lo up")?;
    for (one, id, port) in &both.pods {
        let server = listen(&one.pod, "0.0.0.0:80")?;
        for address in ["127.0.0.1", "192.0.2.1", "10.20.0.1"] {
            let peer = seen(host, &format!("{address}:{port}"), &server).with_context(|| id.clone())?;
            let wanted = if address == "127.0.0.1" { "10.20.0.1" } else { address };
            equal(format!("{id}, {address}"), peer, wanted)?;
        }
    }
    Ok(())
}

fn a_pod_reaches_itself(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &with(gateway4(), json!({"hairpinMode": true})), "tcp", json!({}))?;
    for (one, id, port) in &both.pods {
        let server = listen(&one.pod, "0.0.0.0:80")?;
        for address in ["192.0.2.1", "10.20.0.1"] {
            equal(id, seen(&one.pod, &format!("{address}:{port}"), &server)?, "10.20.0.1")?;
        }
    }
    Ok(())
}

fn a_pod_reaches_itself_over_ipv6(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &with(gateway46(), json!({"hairpinMode": true})), "tcp", json!({}))?;
    for (one, id, port) in &both.pods {
        let server = listen(&one.pod, "[::]:80")?;
        equal(id, seen(&one.pod, &format!("[2001:db8:ffff::1]:{port}"), &server)?, "fd20::1")?;
    }
    Ok(())
}

fn a_neighbour_reaches(host: &Sandbox, name: &str) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    portmap("a", &one, tcp(8080, 80), back_end(name)).add().run(host)?.result()?;
    let server = listen(&one.pod, "0.0.0.0:80")?;
    equal("peer", seen(&two.pod, "10.20.0.1:8080", &server)?, "10.20.0.1")?;
    // What does not come by the host port is left as it is.
    equal("peer at the pod's address", seen(&two.pod, "10.20.0.2:80", &server)?, "10.20.0.3")
}

fn a_neighbour_reaches_a_pod_with_iptables(host: &Sandbox) -> Result<()> {
    a_neighbour_reaches(host, "iptables")
}

fn a_neighbour_reaches_a_pod_with_nftables(host: &Sandbox) -> Result<()> {
    a_neighbour_reaches(host, "nftables")
}

fn all_are_masqueraded(host: &Sandbox, name: &str) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", gateway4())?;
    let more = with(back_end(name), json!({"masqAll": true}));
    portmap("a", &one, tcp(8080, 80), more).add().run(host)?.result()?;
    let server = listen(&one.pod, "0.0.0.0:80")?;
    equal("peer", seen(&outside, "192.0.2.1:8080", &server)?, "10.20.0.1")?;
    outside.ip_set("route add 10.20.0.0/24 via 192.0.2.1")?;
    equal("peer at the pod's address", seen(&outside, "10.20.0.2:80", &server)?, "192.0.2.2")
}

fn all_are_masqueraded_if_asked_for(host: &Sandbox) -> Result<()> {
    all_are_masqueraded(host, "iptables")
}

fn all_are_masqueraded_if_asked_for_in_nftables(host: &Sandbox) -> Result<()> {
    all_are_masqueraded(host, "nftables")
}

fn a_port_of_one_address_is_not_one_of_another(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    host.ip_set("addr add 192.0.2.7/24 dev up0")?;
    for (name, id, port) in [("iptables", "a", 8080), ("nftables", "b", 8081)] {
        let one = Attachment::new(host, id, gateway4())?;
        let mappings =
            json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.7"}]);
        portmap(id, &one, mappings, back_end(name)).add().run(host)?.result()?;
        let server = listen(&one.pod, "0.0.0.0:80")?;
        equal(name, seen(&outside, &format!("192.0.2.7:{port}"), &server)?, "192.0.2.2")?;
        is_closed(&outside, &format!("192.0.2.1:{port}"))?;
    }
    Ok(())
}

fn conditions_keep_packets_out(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", gateway4())?;
    let more = json!({"conditionsV4": ["!", "-s", "192.0.2.2"]});
    portmap("a", &one, tcp(8080, 80), more).add().run(host)?.result()?;
    let server = listen(&one.pod, "0.0.0.0:80")?;
    is_closed(&outside, "192.0.2.1:8080")?;
    outside.ip_set("addr add 192.0.2.3/24 dev eth0")?;
    outside.ip_set("addr del 192.0.2.2/24 dev eth0")?;
    outside.ip_set("addr replace 192.0.2.3/24 dev eth0")?;
    equal("peer", seen(&outside, "192.0.2.1:8080", &server)?, "192.0.2.3")
}

fn conditions_of_one_network_leave_others_alone(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    portmap("a", &one, tcp(8080, 80), back_end("nftables")).add().run(host)?.result()?;
    let more = json!({"conditionsV4": ["ip", "saddr", "!=", "192.0.2.2"]});
    portmap("b", &two, tcp(8081, 80), more).add().run(host)?.result()?;
    let server = listen(&one.pod, "0.0.0.0:80")?;
    let other = listen(&two.pod, "0.0.0.0:80")?;
    equal("without conditions", seen(&outside, "192.0.2.1:8080", &server)?, "192.0.2.2")?;
    is_closed(&outside, "192.0.2.1:8081")?;
    equal("from the host", seen(host, "192.0.2.1:8081", &other)?, "192.0.2.1")
}

fn nothing_leads_there_after_del(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "tcp", json!({}))?;
    for ((one, id, port), name) in both.pods.iter().zip(BACK_ENDS) {
        let server = listen(&one.pod, "0.0.0.0:80")?;
        let target = format!("192.0.2.1:{port}");
        seen(&both.outside, &target, &server)?;
        let call = portmap(id, one, tcp(*port, 80), back_end(name));
        call.without("CNI_NETNS").del().run(host)?.silence()?;
        is_closed(&both.outside, &target)?;
    }
    Ok(())
}

fn the_first_owner_keeps_its_port(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &gateway4(), "tcp", json!({}))?;
    let late = Attachment::new(host, "late", gateway4())?;
    for ((one, id, port), name) in both.pods.iter().zip(BACK_ENDS) {
        let server = listen(&one.pod, "0.0.0.0:80")?;
        let call = portmap("late", &late, tcp(*port, 80), back_end(name));
        call.add().run(host)?.refused_with(102)?;
        equal(id, seen(&both.outside, &format!("192.0.2.1:{port}"), &server)?, "192.0.2.2")?;
        call.del().run(host)?.silence()?;
        equal(id, seen(&both.outside, &format!("192.0.2.1:{port}"), &server)?, "192.0.2.2")?;
    }
    Ok(())
}

/// A client that never pauses: what the kernel knows of its flow is from before the port led anywhere.
fn udp_flows_from_before_reach_the_pod(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    // The kernel tracks connections only where somebody asks for it.
    host.run(&["iptables", "-w", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT", "-s", "203.0.113.9"])?;
    for (name, id, port) in [("iptables", "a", 8080), ("nftables", "b", 8081)] {
        let one = Attachment::new(host, id, gateway4())?;
        let client = udp(&outside, "0.0.0.0:0")?;
        let target = format!("192.0.2.1:{port}");
        // Without a listener the host says so each time, which is an error of the next call.
        let early = udp(host, &format!("0.0.0.0:{port}"))?;
        for _ in 0..3 {
            client.send_to(b"early", &target)?;
        }
        early.recv_from(&mut [0; 16]).context("the host gets nothing")?;
        let server = udp(&one.pod, "0.0.0.0:80")?;
        let mappings = json!([{"hostPort": port, "containerPort": 80, "protocol": "udp"}]);
        portmap(id, &one, mappings, back_end(name)).add().run(host)?.result()?;
        equal(name, exchanged(&client, &target, &server)?, "192.0.2.2")?;
    }
    Ok(())
}

fn udp_flows_follow_the_port_to_another_pod(host: &Sandbox) -> Result<()> {
    let outside = host.outside()?;
    for (name, ids, port) in [("iptables", ["a", "b"], 8080), ("nftables", ["c", "d"], 8081)] {
        let mappings = json!([{"hostPort": port, "containerPort": 80, "protocol": "udp"}]);
        let client = udp(&outside, "0.0.0.0:0")?;
        let target = format!("192.0.2.1:{port}");
        for id in ids {
            let one = Attachment::new(host, id, gateway4())?;
            let server = udp(&one.pod, "0.0.0.0:80")?;
            let call = portmap(id, &one, mappings.clone(), back_end(name));
            call.add().run(host)?.result()?;
            equal(format!("{name}, {id}"), exchanged(&client, &target, &server)?, "192.0.2.2")?;
            call.del().run(host)?.silence()?;
        }
    }
    Ok(())
}

/// CVE-2025-67499: a port of a pod is not one of each host that packets pass this one on their way to.
fn cve_2025_67499_packets_to_others_pass_by(host: &Sandbox) -> Result<()> {
    let both = Both::new(host, &with(gateway4(), json!({"ipMasq": true})), "tcp", json!({}))?;
    let client = Attachment::new(host, "client", with(gateway4(), json!({"ipMasq": true})))?;
    for (one, id, port) in &both.pods {
        let trap = listen(&one.pod, "0.0.0.0:80")?;
        let server = listen(&both.outside, &format!("192.0.2.2:{port}"))?;
        for pod in [&client.pod, &one.pod] {
            equal(id, seen(pod, &format!("192.0.2.2:{port}"), &server)?, "192.0.2.1")?;
        }
        if trap.accept().is_ok() {
            bail!("{id}: a packet for another host came to the pod");
        }
    }
    Ok(())
}

/// CVE-2019-9946: what a service has stays with the service, whoever was there first.
fn services_come_first(host: &Sandbox, name: &str) -> Result<()> {
    let outside = host.outside()?;
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    for line in [
        "-N KUBE-SERVICES",
        "-A PREROUTING -m comment --comment services -j KUBE-SERVICES",
        "-A KUBE-SERVICES -d 192.0.2.1/32 -p tcp --dport 8080 -j DNAT --to-destination 10.20.0.3:90",
    ] {
        let mut argv = vec!["iptables", "-w", "-t", "nat"];
        argv.extend(line.split(' '));
        host.run(&argv)?;
    }
    portmap("a", &one, tcp(8080, 80), back_end(name)).add().run(host)?.result()?;
    let trap = listen(&one.pod, "0.0.0.0:80")?;
    let service = listen(&two.pod, "0.0.0.0:90")?;
    equal("peer", seen(&outside, "192.0.2.1:8080", &service)?, "192.0.2.2")?;
    if trap.accept().is_ok() {
        bail!("a packet for the service came to the pod");
    }
    // What the service does not have is the pod's.
    equal("peer at another address", seen(host, "10.20.0.1:8080", &trap)?, "10.20.0.1")
}

fn cve_2019_9946_services_come_first(host: &Sandbox) -> Result<()> {
    services_come_first(host, "iptables")
}

fn cve_2019_9946_services_come_first_in_nftables(host: &Sandbox) -> Result<()> {
    services_come_first(host, "nftables")
}
