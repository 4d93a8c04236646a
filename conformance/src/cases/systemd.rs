//! The units of packaging/systemd under a systemd that runs: the socket by which the DHCP daemon is started, the sandbox
//! that the units describe, and the rules that are put back with a firewall.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::dhcp::server::{LONG, SOCKET, Server};
use super::networks::{Attachment, gateway46, with};
use crate::case::Need;
use crate::exec::{Finished, PATH};
use crate::expect::{contains, equal, holds, same_json};
use crate::sandbox::Sandbox;

/// What is beyond the reference.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "systemd/dhcp" {
        the_socket_starts_the_daemon needs [TOOL, Need::Systemd];
    }
    "systemd/restore" {
        rules_come_back_with_the_firewall needs [TOOL, Need::Systemd, Need::Nftables, Need::Ipv6];
    }
}

/// As they are installed.
const UNITS: [(&str, &str); 3] = [
    ("bridgehead-dhcp.service", include_str!("../../../packaging/systemd/bridgehead-dhcp.service")),
    ("bridgehead-dhcp.socket", include_str!("../../../packaging/systemd/bridgehead-dhcp.socket")),
    ("bridgehead-restore.service", include_str!("../../../packaging/systemd/bridgehead-restore.service")),
];

/// A firewall that flushes everything when it starts and when it is reloaded, as Debian's does.
const NFTABLES: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=nft flush ruleset\nExecReload=nft flush ruleset\n[Install]\nWantedBy=all.target\n";

const DIRECTORY: &str = "/run/scratch/units";
/// Where it looks for units: there, and where it notes which are enabled.
const UNIT_PATH: &str = "/run/scratch/units:/run/systemd/system";
const PLUGINS: &str = "/run/scratch/bin";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the units write.
const LOG: &str = "/run/scratch/units.log";

/// Becomes systemd, in the control group $0 and in namespaces of its own. It has no console, and nothing of the kernel
/// to set that is not of a namespace: it would raise the number of files that may be open.
const ENTER: &str =
    "mkdir $0 && echo $$ > $0/cgroup.procs && exec unshare --fork --pid --kill-child --cgroup --mount \
    --propagation slave --mount-proc sh -ec '
      mount --make-rshared /
      umount /sys/fs/cgroup
      mount -t cgroup2 cgroup2 /sys/fs/cgroup
      for each in fs kernel vm; do mount --bind -o ro /proc/sys/$each /proc/sys/$each; done
      for each in console kmsg; do [ ! -e /dev/$each ] || mount --bind /dev/null /dev/$each; done
      exec /lib/systemd/systemd --system --unit=all.target'";

/// A systemd with these units and no others, which is the first process of a process namespace. It ends with this.
struct Systemd {
    child: Child,
    cgroup: PathBuf,
}

impl Systemd {
    fn start(host: &Sandbox) -> Result<Self> {
        // Where the units can see them: /tmp is not theirs.
        fs::create_dir_all(PLUGINS)?;
        host.run(&["mount", "--bind", &host.plugins().to_string_lossy(), PLUGINS])?;
        fs::create_dir_all(DIRECTORY)?;
        let output = format!("[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n");
        for (name, text) in UNITS {
            let text = text.replace("/opt/cni/bin", PLUGINS).replace("[Service]\n", &output);
            fs::write(Path::new(DIRECTORY).join(name), text)?;
        }
        fs::write(Path::new(DIRECTORY).join("nftables.service"), NFTABLES)?;
        // What systemd itself and the units without a word ask for.
        for name in ["basic", "sysinit", "sockets", "shutdown", "umount", "final", "all"] {
            let text = "[Unit]\nDefaultDependencies=no\n";
            fs::write(Path::new(DIRECTORY).join(format!("{name}.target")), text)?;
        }
        // Pods are mounted here, and their namespaces are to be seen there.
        host.run(&["mount", "--make-rshared", "/"])?;
        // A control group of its own: in the root it would take all processes for its own.
        host.run(&["mount", "-t", "cgroup2", "cgroup2", CGROUPS])?;
        let cgroup = Path::new(CGROUPS).join(format!("bridgehead-conformance-{}", own_process_id()?));
        let log = fs::File::create(LOG)?;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER]).arg(&cgroup).env_clear().env("PATH", PATH).process_group(0);
        command.env("container", "conformance").env("SYSTEMD_UNIT_PATH", UNIT_PATH);
        command.env("SYSTEMD_LOG_TARGET", "null").stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start systemd")?;
        let mut systemd = Self { child, cgroup };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let asked = systemd.try_ctl(host, &["is-active", "all.target"])?;
            if asked.status.success() {
                return Ok(systemd);
            }
            if systemd.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("systemd does not start: {}{}{}", said(), asked.stdout, asked.stderr);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `systemctl`, from within: systemd does not answer processes that it cannot see.
    fn try_ctl(&self, host: &Sandbox, arguments: &[&str]) -> Result<Finished> {
        let unshare = self.child.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = children.split_whitespace().next().unwrap_or("0");
        let begin = ["nsenter", "--pid", "--mount", "--target", first, "systemctl"];
        host.try_run(&[&begin, arguments].concat())
    }

    fn ctl(&self, host: &Sandbox, arguments: &[&str]) -> Result<String> {
        let finished = self.try_ctl(host, arguments)?;
        if !finished.status.success() {
            bail!("systemctl {arguments:?}: {}{}", finished.stderr, self.account(host));
        }
        Ok(finished.stdout)
    }

    /// What has become of the units, and what they have said.
    fn account(&self, host: &Sandbox) -> String {
        let status = self.try_ctl(host, &["status", "--no-pager", "--lines=0", "bridgehead-*"]);
        status.map(|it| it.stdout).unwrap_or_default() + &said()
    }

    /// What systemd knows of a unit.
    fn shown(&self, host: &Sandbox, unit: &str, property: &str) -> Result<String> {
        Ok(self.ctl(host, &["show", "--value", "--property", property, unit])?.trim().to_owned())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // All processes of the namespace go with the first.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !is_removed(&self.cgroup) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes a control group with all below it; whether it is gone.
fn is_removed(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            is_removed(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
    !cgroup.exists()
}

/// One that differs from that of every other case that runs now: they are each the second of a namespace.
fn own_process_id() -> Result<String> {
    let link = fs::read_link("/proc/self/ns/pid")?;
    Ok(link.to_string_lossy().chars().filter(char::is_ascii_digit).collect())
}

/// What the units have said.
fn said() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Tries for some seconds.
fn in_time(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => return Err(error.context(said())),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}

fn network() -> Value {
    json!({"bridge": super::dhcp::server::BRIDGE, "ipam": {"type": "dhcp"}})
}

fn the_socket_starts_the_daemon(host: &Sandbox) -> Result<()> {
    let server = Server::start(host, LONG, &[3, 4, 10, 88, 0, 1])?;
    let systemd = Systemd::start(host)?;
    systemd.ctl(host, &["start", "bridgehead-dhcp.socket"])?;
    equal(
        "the daemon at first",
        systemd.shown(host, "bridgehead-dhcp.service", "ActiveState")?.as_str(),
        "inactive",
    )?;
    let one = Attachment::new(host, "pod1", network())?;
    equal("the daemon", systemd.shown(host, "bridgehead-dhcp.service", "ActiveState")?.as_str(), "active")?;
    equal("addresses of the pod", one.pod.addresses("eth0")?, ["10.88.0.10/24"])?;
    one.pod.ping("10.88.0.1")?;
    one.sound(host)?;
    // It is started again when it was killed, and when it was stopped by whoever asks next.
    let before = systemd.shown(host, "bridgehead-dhcp.service", "MainPID")?;
    systemd.ctl(host, &["kill", "--signal=KILL", "bridgehead-dhcp.service"])?;
    in_time(|| {
        let now = systemd.shown(host, "bridgehead-dhcp.service", "MainPID")?;
        holds(now != "0" && now != before, format!("it is still {now}"))
    })?;
    one.sound(host)?;
    let two = Attachment::new(host, "pod2", network())?;
    systemd.ctl(host, &["stop", "bridgehead-dhcp.service"])?;
    holds(Path::new(SOCKET).exists(), "the socket has gone with the daemon")?;
    two.sound(host)?;
    same_json("ADD again", &two.call.add().run(host)?.result()?, &two.result)?;
    equal("messages that look for a server", server.heard(1).len(), 2)?;
    systemd.ctl(host, &["restart", "bridgehead-dhcp.service"])?;
    for pod in [one, two] {
        pod.sound(host)?;
        pod.del(host)?;
    }
    in_time(|| equal("releases", server.heard(7).len(), 2))?;
    // A namespace that is gone without a word is no reason to fail.
    let three = Attachment::new(host, "pod3", network())?;
    let del = three.call.del().prev(&three.result);
    three.pod.remove()?;
    del.run(host)?.silence()?;
    systemd.ctl(host, &["stop", "bridgehead-dhcp.socket", "bridgehead-dhcp.service"])?;
    holds(!Path::new(SOCKET).exists(), "the socket is still there")?;
    equal("the socket", systemd.shown(host, "bridgehead-dhcp.socket", "Result")?.as_str(), "success")
}

fn rules_come_back_with_the_firewall(host: &Sandbox) -> Result<()> {
    let systemd = Systemd::start(host)?;
    systemd.ctl(host, &["enable", "--runtime", "--now", "nftables.service"])?;
    systemd.ctl(host, &["enable", "--runtime", "--now", "bridgehead-restore.service"])?;
    let mut pods = Vec::new();
    for (id, name) in [("a", "iptables"), ("b", "nftables")] {
        let keys = json!({"name": name, "bridge": name, "ipMasq": true, "ipMasqBackend": name,
            "ipam": super::networks::pool(&[if id == "a" { "10.20.0.0/24" } else { "10.21.0.0/24" }])});
        pods.push(Attachment::new(host, id, with(gateway46(), keys))?);
    }
    for verb in ["restart", "reload", "stop", "start"] {
        systemd.ctl(host, &[verb, "nftables.service"])?;
        if verb == "stop" {
            continue;
        }
        in_time(|| pods.iter().try_for_each(|pod| pod.sound(host)).with_context(|| verb.to_owned()))?;
    }
    let rules = host.run(&["nft", "list", "ruleset"])?;
    contains("rules", &rules, "10.20.0.")?;
    contains("rules", &rules, "10.21.0.")?;
    equal("the unit", systemd.shown(host, "bridgehead-restore.service", "Result")?.as_str(), "success")?;
    pods.iter().try_for_each(|pod| pod.del(host))
}
