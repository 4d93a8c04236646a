//! What happens where there is no daemon, no server, or the wrong one, and what is given back then.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::server::{Daemon, Mood, SOCKET, Server};
use super::{DHCP, LONG, OURS, network};
use crate::call::{Call, Started};
use crate::cases::cases;
use crate::cases::drafts::{names, occupy};
use crate::cases::networks::{Attachment, NEWEST, bridge};
use crate::expect::{contains, equal, holds, soon};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "dhcp/failure" {
        without_a_daemon_add_says_where_it_should_be needs [DHCP, OURS];
        without_a_daemon_status_says_so needs [DHCP, OURS];
        without_a_daemon_del_gives_the_lease_back needs [DHCP, OURS];
        a_silent_server_is_an_error_in_time needs [DHCP, OURS];
        an_answer_that_nobody_reads_is_no_lease needs [DHCP, OURS];
        del_ends_an_add_that_waits needs [DHCP, OURS];
        who_does_not_speak_the_protocol_is_an_error needs [DHCP, OURS];
        wrong_options_are_refused_by_their_key needs [DHCP, OURS];
        check_without_a_lease_says_so needs [DHCP, OURS];
        gc_gives_back_what_belongs_to_nobody needs [DHCP, OURS];
        wrong_flags_are_refused needs [DHCP, OURS];
        a_second_daemon_is_refused needs [DHCP, OURS];
        what_a_dead_daemon_left_is_replaced needs [DHCP, OURS];
        what_a_killed_daemon_was_writing_goes_with_the_lease needs [DHCP, OURS];
        whatever_stands_among_leases_is_in_nobodys_way needs [DHCP, OURS];
        a_lease_that_cannot_be_kept_is_given_back needs [DHCP, OURS];
    }
}

fn without_a_daemon_add_says_where_it_should_be(host: &Sandbox) -> Result<()> {
    let pod = host.pod("pod1")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = bridge("pod1", &pod, network(json!({}))).add().run(host)?.refused_with(11)?;
    contains("the error", &refusal.text(), SOCKET)?;
    contains("the error", &refusal.text(), "dhcp daemon")?;
    before.restored(host, &[&pod])?;
    let elsewhere = network(json!({"daemonSocketPath": "/run/elsewhere.sock"}));
    let refusal = bridge("pod1", &pod, elsewhere).add().run(host)?.refused_with(11)?;
    contains("the error", &refusal.text(), "/run/elsewhere.sock")
}

fn without_a_daemon_status_says_so(host: &Sandbox) -> Result<()> {
    let pod = host.pod("pod1")?;
    let call = bridge("pod1", &pod, network(json!({}))).set("cniVersion", json!(NEWEST));
    contains("the error", &call.status().run(host)?.refused_with(50)?.text(), SOCKET)?;
    let _daemon = Daemon::start(host, &[])?;
    call.status().run(host)?.silence()
}

fn without_a_daemon_del_gives_the_lease_back(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    drop(daemon);
    pod.del(host)?;
    soon(|| equal("releases", server.heard(7).len(), 1))?;
    pod.del(host)?;
    let _daemon = Daemon::start(host, &[])?;
    // Nothing is left for it to go on with.
    contains("CHECK", &pod.damaged(host)?, "no lease")
}

fn a_silent_server_is_an_error_in_time(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-resendmax", "300ms", "-resendtimeout", "1500ms"])?;
    server.be(Mood::Silent);
    let pod = host.pod("pod1")?;
    let before = Snapshot::take(host, &[&pod])?;
    let answer = bridge("pod1", &pod, network(json!({}))).add().run(host)?;
    contains("the error", &answer.refused_with(11)?.text(), "no server has answered")?;
    holds(answer.took() < Duration::from_secs(6), format!("it took {:?}", answer.took()))?;
    holds(server.heard(1).len() >= 3, "it was not tried again")?;
    before.restored(host, &[&pod])
}

/// An ADD of the plugin alone that waits for the server, which says nothing, and its call.
fn adding_in_silence(host: &Sandbox, server: &Server) -> Result<(Call, Started)> {
    server.be(Mood::Silent);
    let pod = host.pod("pod1")?;
    host.ip_set("link add port0 type veth peer name eth0 netns pod1")?;
    host.ip_set("link set port0 master cni0 up")?;
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "ipam": {"type": "dhcp"}});
    let call = Call::new("dhcp").id("pod1").ifname("eth0").netns(&pod).config(config);
    let waiting = call.add().start(host)?;
    soon(|| holds(!server.heard(1).is_empty(), "it has not begun"))?;
    Ok((call, waiting))
}

fn an_answer_that_nobody_reads_is_no_lease(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-resendmax", "100ms"])?;
    let (_, waiting) = adding_in_silence(host, &server)?;
    let pid = Pid::from_raw(waiting.pid() as i32);
    kill(pid, Signal::SIGSTOP)?;
    server.be(Mood::Kind);
    soon(|| holds(leases_of("pod1") == 1, "there is no lease"))?;
    kill(pid, Signal::SIGKILL)?;
    drop(waiting.answer(host)?);
    soon(|| equal("leases", leases_of("pod1"), 0))?;
    soon(|| equal("releases", server.heard(7).len(), 1))
}

/// How many files the daemon has that name a container.
fn leases_of(id: &str) -> usize {
    let files = |directory: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let leases = files(Path::new("/run/bridgehead/dhcp")).into_iter().flat_map(|of_socket| files(&of_socket));
    leases.filter(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(id))).count()
}

fn del_ends_an_add_that_waits(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &["-resendmax", "300ms"])?;
    let (call, waiting) = adding_in_silence(host, &server)?;
    // One of another plugin: ours of the same attachment wait for each other.
    call.from(crate::sandbox::REFERENCE).del().run(host)?.silence()?;
    let answer = waiting.answer(host)?;
    contains("the error", &answer.refused_with(11)?.text(), "DEL")
}

fn who_does_not_speak_the_protocol_is_an_error(host: &Sandbox) -> Result<()> {
    std::fs::create_dir_all("/run/cni")?;
    let pod = host.pod("pod1")?;
    for answer in ["220 mail.example ESMTP\n\n", "HTTP/1.0 200 Connected to Go RPC\n\n\x02\x7f\x7f", ""] {
        let _ = std::fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET)?;
        let thread = std::thread::spawn(move || {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(answer.as_bytes());
                let mut sink = Vec::new();
                let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                let _ = std::io::Read::read_to_end(&mut stream, &mut sink);
            }
        });
        let refusal = bridge("pod1", &pod, network(json!({}))).add().run(host)?.refusal()?;
        contains("the error", &refusal.text(), SOCKET).with_context(|| format!("{answer:?}"))?;
        let _ = thread.join();
    }
    Ok(())
}

fn wrong_options_are_refused_by_their_key(host: &Sandbox) -> Result<()> {
    let _daemon = Daemon::start(host, &[])?;
    let pod = host.pod("pod1")?;
    let before = Snapshot::take(host, &[&pod])?;
    let long = "x".repeat(256);
    for (ipam, word) in [
        (json!({"request": [{"option": "nonsense"}]}), "ipam.request[0].option"),
        (json!({"provide": [{"option": "256", "value": "x"}]}), "ipam.provide[0].option"),
        (json!({"provide": [{"option": "host-name", "value": long}]}), "256 bytes"),
        (json!({"provide": [{"option": "53", "value": "1"}]}), "option 53"),
    ] {
        let refusal = bridge("pod1", &pod, network(ipam)).add().run(host)?.refused_with(7)?;
        contains("the error", &refusal.text(), word)?;
    }
    before.restored(host, &[&pod])
}

fn check_without_a_lease_says_so(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    drop(daemon);
    std::fs::remove_dir_all("/run/bridgehead/dhcp")?;
    let _daemon = Daemon::start(host, &[])?;
    contains("CHECK", &pod.damaged(host)?, "no lease")?;
    equal("messages that look for a server", server.heard(1).len(), 1)
}

fn gc_gives_back_what_belongs_to_nobody(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let keys = super::super::networks::with(network(json!({})), json!({"cniVersion": NEWEST}));
    let alive = Attachment::new(host, "alive", keys.clone())?;
    let dead = Attachment::new(host, "dead", keys.clone())?;
    let nameless = Attachment::new(host, "nameless", keys)?;
    std::fs::remove_file("/run/bridgehead/attachments/bridge/net/nameless:eth0")
        .context("the record, without which only the daemon knows of it")?;
    let valid: Value = json!([{"containerID": "alive", "ifname": "eth0"}]);
    alive.call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    soon(|| equal("releases", server.heard(7).len(), 2))?;
    alive.sound(host)?;
    for gone in [&dead, &nameless] {
        holds(gone.pod.link("eth0")?.is_none(), "eth0 is still there")?;
    }
    Ok(())
}

fn wrong_flags_are_refused(host: &Sandbox) -> Result<()> {
    let program = host.plugins().join("dhcp");
    let program = program.to_str().unwrap_or_default();
    for (flags, word) in [
        (&["-pidfile", "d.pid"][..], "absolute"),
        (&["-timeout", "soon"], "soon"),
        (&["-nonsense"], "nonsense"),
    ] {
        let argv = [&[program, "daemon"], flags].concat();
        let finished = host.try_run(&argv)?;
        holds(!finished.status.success(), format!("{flags:?} succeeded"))?;
        contains("stderr", &finished.stderr, word)?;
    }
    Ok(())
}

fn a_second_daemon_is_refused(host: &Sandbox) -> Result<()> {
    let _daemon = Daemon::start(host, &[])?;
    let program = host.plugins().join("dhcp");
    let finished = host.try_run(&[program.to_str().unwrap_or_default(), "daemon"])?;
    holds(!finished.status.success(), "a second daemon runs")?;
    contains("stderr", &finished.stderr, "another daemon listens on /run/cni/dhcp.sock")?;
    holds(std::path::Path::new(SOCKET).exists(), "the socket of the first is gone")
}

fn what_a_dead_daemon_left_is_replaced(host: &Sandbox) -> Result<()> {
    let daemon = Daemon::start(host, &[])?;
    drop(daemon);
    holds(std::path::Path::new(SOCKET).exists(), "a daemon that was killed has removed its socket")?;
    Daemon::start(host, &[])?.stop()
}

/// The directory of the daemon's leases.
fn leases() -> Result<PathBuf> {
    let all = Path::new("/run/bridgehead/dhcp");
    let only = names(all)?.pop().context("the daemon has no directory")?;
    Ok(all.join(only))
}

fn what_a_killed_daemon_was_writing_goes_with_the_lease(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[])?;
    let mut daemon = Daemon::start(host, &[])?;
    for restarts in [false, true] {
        let pod = Attachment::new(host, "pod1", network(json!({})))?;
        let directory = leases()?;
        let kept = names(&directory)?;
        let name = kept.first().context("no lease is kept")?;
        fs::copy(directory.join(name), directory.join(format!("{name}:new")))?;
        if restarts {
            drop(daemon);
            daemon = Daemon::start(host, &[])?;
            // It can be called before it has looked at them.
            soon(|| equal("files of a new daemon", names(&directory)?, kept.clone()))?;
            pod.sound(host)?;
        }
        pod.del(host)?;
        equal("files after DEL", names(&directory)?, Vec::<String>::new())?;
        pod.pod.remove()?;
    }
    Ok(())
}

fn whatever_stands_among_leases_is_in_nobodys_way(host: &Sandbox) -> Result<()> {
    let _server = Server::start(host, LONG, &[])?;
    let daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    let directory = leases()?;
    let name = names(&directory)?.pop().context("no lease is kept")?;
    drop(daemon);
    for damage in [
        "mkdir -p $0/inside; echo > $0/inside/file",
        "mkfifo $0",
        "ln -s /etc/passwd $0",
        "echo nonsense > $0",
    ] {
        for target in [name.clone(), format!("{name}:new")] {
            let what = format!("{damage} ({target})");
            let path = directory.join(&target).to_string_lossy().into_owned();
            host.run(&["sh", "-c", &format!("rm -f $0; {damage}"), &path])?;
            let _daemon = Daemon::start(host, &[]).with_context(|| what.clone())?;
            pod.del(host).with_context(|| what.clone())?;
            equal(format!("files after {what}"), names(&directory)?, Vec::<String>::new())?;
            let result = pod.call.add().run(host)?.result().with_context(|| what.clone())?;
            pod.call.check().prev(&result).run(host)?.silence().with_context(|| what.clone())?;
        }
    }
    Ok(())
}

fn a_lease_that_cannot_be_kept_is_given_back(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[])?;
    let _daemon = Daemon::start(host, &[])?;
    let pod = Attachment::new(host, "pod1", network(json!({})))?;
    let directory = leases()?;
    let name = names(&directory)?.pop().context("no lease is kept")?;
    pod.del(host)?;
    soon(|| equal("releases", server.heard(7).len(), 1))?;
    occupy(host, &directory.join(&name))?;
    let refusal = pod.call.add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), &name)?;
    equal("files", names(&directory)?, [name])?;
    soon(|| equal("releases", server.heard(7).len(), 2))
}
