//! How leases are kept, and how they end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::server::{Daemon, Mood, Server, Times, said};
use super::{DHCP, LONG, OURS, network};
use crate::cases::cases;
use crate::cases::networks::Attachment;
use crate::expect::{contains, equal, holds};
use crate::sandbox::Sandbox;

cases! {
    "dhcp/keeping" {
        a_lease_is_renewed needs [DHCP];
        what_its_server_does_not_renew_is_asked_of_all needs [DHCP, OURS];
        a_lease_that_ends_takes_the_interface_down needs [DHCP, OURS];
        a_server_that_has_forgotten_is_asked_for_the_same_again needs [DHCP, OURS];
        a_daemon_that_is_killed_has_forgotten_nothing needs [DHCP, OURS];
        a_daemon_that_is_told_to_end_removes_its_socket needs [DHCP, OURS];
        the_namespace_of_a_pod_is_not_held needs [DHCP, OURS];
        a_lease_ends_with_the_namespace_of_its_pod needs [DHCP, OURS];
    }
}

/// T1 after a second.
const SHORT: Times = [1, 2, 4];

/// Tries for some seconds: leases have no shorter times.
fn in_time<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(12);
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => return Err(error.context(said())),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

fn is_up(pod: &Attachment) -> Result<bool> {
    let link = pod.pod.need_link("eth0")?;
    Ok(link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP")))
}

fn files() -> usize {
    let directories = std::fs::read_dir("/run/bridgehead/dhcp").into_iter().flatten().flatten();
    directories.map(|it| std::fs::read_dir(it.path()).into_iter().flatten().count()).sum()
}

fn a_lease_is_renewed(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, SHORT, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    // Longer than the lease without being renewed.
    let begin = Instant::now();
    in_time(|| holds(server.renewals() >= 3, format!("{} renewals", server.renewals())))?;
    std::thread::sleep(Duration::from_millis(4500).saturating_sub(begin.elapsed()));
    holds(is_up(&pod)?, "eth0 is down")?;
    equal("messages that look for a server", server.heard(1).len(), 1)?;
    pod.sound(host)
}

fn what_its_server_does_not_renew_is_asked_of_all(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, [1, 2, 12], &[])?;
    let _daemon = Daemon::start(host, &["-resendmax", "500ms"])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    // Whom the server's address does not reach.
    host.ip_set("addr flush dev cni0")?;
    host.ip_set("addr add 10.88.0.2/24 dev cni0")?;
    server.be(Mood::Silent);
    in_time(|| holds(server.renewals() >= 1, "nobody has asked all servers"))?;
    server.be(Mood::Kind);
    let before = server.renewals();
    in_time(|| holds(server.renewals() > before, "nobody has asked all servers"))?;
    in_time(|| contains("the log", &said(), "renewed"))?;
    holds(is_up(&pod)?, "eth0 is down")
}

fn a_lease_that_ends_takes_the_interface_down(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, SHORT, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    server.be(Mood::Silent);
    in_time(|| holds(!is_up(&pod)?, "eth0 is up"))?;
    let said = pod.damaged(host)?;
    contains("CHECK", &said, "10.88.0.10")?;
    contains("CHECK", &said, "the lease has ended")?;
    server.be(Mood::Kind);
    // It starts anew.
    let again = pod.call.add().run(host)?.result()?;
    pod.call.check().prev(&again).run(host)?.silence()?;
    holds(is_up(&pod)?, "eth0 is down")
}

fn a_server_that_has_forgotten_is_asked_for_the_same_again(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, SHORT, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    server.be(Mood::Forgetful);
    in_time(|| holds(server.heard(1).len() >= 3, "nobody has looked for a server again"))?;
    let wanted = server.heard(1).last().and_then(|it| it.options.get(&50).cloned());
    equal("the address that is asked for", wanted, Some(vec![10, 88, 0, 10]))?;
    holds(is_up(&pod)?, "eth0 is down")?;
    pod.sound(host)
}

fn a_daemon_that_is_killed_has_forgotten_nothing(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, SHORT, &[])?;
    let daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    drop(daemon);
    let _daemon = Daemon::start(host, &[])?;
    pod.sound(host)?;
    let before = server.renewals();
    in_time(|| holds(server.renewals() >= before + 2, "nothing is renewed"))?;
    equal("messages that look for a server", server.heard(1).len(), 1)?;
    pod.del(host)?;
    in_time(|| equal("releases", server.heard(7).len(), 1))?;
    equal("files of leases", files(), 0)
}

fn a_daemon_that_is_told_to_end_removes_its_socket(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let daemon = Daemon::start(host, &["-pidfile", "/run/scratch/dhcp.pid"])?;
    let pid = std::fs::read_to_string("/run/scratch/dhcp.pid")?;
    equal("the process id", pid.trim().parse().ok(), Some(daemon.pid()))?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    daemon.stop()?;
    for path in ["/run/scratch/dhcp.pid", super::server::SOCKET] {
        holds(!std::path::Path::new(path).exists(), format!("{path} is still there"))?;
    }
    equal("releases", server.heard(7).len(), 0)?;
    let _daemon = Daemon::start(host, &[])?;
    pod.sound(host)
}

fn the_namespace_of_a_pod_is_not_held(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    let link = pod.host_link()?.to_owned();
    pod.pod.remove()?;
    // Its end of the pair goes with it, and that takes the other.
    in_time(|| match host.link(&link)? {
        None => Ok(()),
        Some(_) => bail!("{link} is still there"),
    })
}

fn a_lease_ends_with_the_namespace_of_its_pod(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, SHORT, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    equal("files of leases", files(), 1)?;
    let (call, result) = (pod.call.clone(), pod.result.clone());
    pod.pod.remove()?;
    in_time(|| equal("files of leases", files(), 0))?;
    call.del().prev(&result).run(host)?.silence().context("DEL afterwards")
}
