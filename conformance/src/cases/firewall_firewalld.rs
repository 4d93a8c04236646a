//! firewall: the back end of firewalld, with the real one on a D-Bus of its own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cases;
use super::firewall::{FIREWALL, Walled, filter, firewall};
use super::networks::{NEWEST, gateway4, gateway46};
use super::restore::TOOL;
use crate::case::Need;
use crate::exec::PATH;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::{REFERENCE, Sandbox};

/// What there is of firewalld, which Debian has in packages that a machine need not have.
const DAEMON: Need = Need::Program("firewalld");
const BUS: Need = Need::Program("dbus-daemon");

cases! {
    "firewall/firewalld" {
        addresses_are_sources_of_the_zone needs [FIREWALL, DAEMON, BUS, Need::Ipv6];
        another_zone_can_be_named needs [FIREWALL, DAEMON, BUS];
        it_is_chosen_where_it_runs needs [FIREWALL, DAEMON, BUS];
        add_again_is_the_same needs [FIREWALL, DAEMON, BUS];
        an_unknown_zone_is_refused needs [FIREWALL, TOOL, DAEMON, BUS];
        isolation_is_in_iptables needs [FIREWALL, DAEMON, BUS, Need::Iptables];
        del_removes_them_in_all_ways needs [FIREWALL, TOOL, DAEMON, BUS];
        a_late_del_leaves_what_the_next_owner_has needs [FIREWALL, TOOL, DAEMON, BUS];
        what_the_reference_left_is_removed needs [FIREWALL, TOOL, DAEMON, BUS, Need::Reference("firewall")];
        check_finds_what_a_reload_takes needs [FIREWALL, DAEMON, BUS];
        a_reload_is_made_good needs [FIREWALL, TOOL, DAEMON, BUS];
        gc_removes_the_sources_of_dead_pods needs [FIREWALL, TOOL, DAEMON, BUS];
        a_host_without_it_says_so needs [FIREWALL, TOOL];
        del_works_without_it needs [FIREWALL];
    }
}

/// How long firewalld may take until it is on the bus; it is written in Python.
const PATIENCE: Duration = Duration::from_secs(15);

/// A bus and a firewalld, until this is dropped.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            // They are gone with the namespace of processes at the latest.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(argv: &[&str]) -> Result<Child> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env_clear().env("PATH", PATH).env("LC_ALL", "C");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("start {}", argv[0]))
}

/// Tries until it succeeds.
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        if Instant::now() > deadline {
            bail!("{what} does not come up within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Running {
    fn start(host: &Sandbox) -> Result<Self> {
        std::fs::create_dir_all("/run/dbus")?;
        let bus = start(&["dbus-daemon", "--system", "--nofork", "--nopidfile", "--nosyslog"])?;
        let mut running = Self(vec![bus]);
        wait_for("dbus-daemon", || std::path::Path::new("/run/dbus/system_bus_socket").exists())?;
        running.0.push(start(&["firewalld", "--nofork", "--nopid", "--log-target", "console"])?);
        wait_for("firewalld", || {
            host.try_run(&["firewall-cmd", "--state"]).is_ok_and(|it| it.status.success())
        })?;
        Ok(running)
    }
}

fn keys() -> Value {
    json!({"backend": "firewalld"})
}

fn sources(host: &Sandbox, zone: &str) -> Result<String> {
    host.run(&["firewall-cmd", &format!("--zone={zone}"), "--list-sources"])
}

fn addresses_are_sources_of_the_zone(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway46(), keys())?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.2/32 fd20::2/128")?;
    one.check(host)?;
    one.del(host)?;
    equal("sources after DEL", sources(host, "trusted")?.trim(), "")
}

fn another_zone_can_be_named(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one =
        Walled::new(host, "a", gateway4(), json!({"backend": "firewalld", "firewalldZone": "internal"}))?;
    equal("sources", sources(host, "internal")?.trim(), "10.20.0.2/32")?;
    equal("sources of trusted", sources(host, "trusted")?.trim(), "")?;
    one.del(host)?;
    equal("sources after DEL", sources(host, "internal")?.trim(), "")
}

fn it_is_chosen_where_it_runs(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway4(), json!({}))?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.2/32")?;
    lacks("iptables", &filter(host, "iptables")?.join("\n"), "10.20.0.2")?;
    one.check(host)?;
    one.del(host)?;
    equal("sources after DEL", sources(host, "trusted")?.trim(), "")
}

fn add_again_is_the_same(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway4(), keys())?;
    let again = one.call.add().prev(&one.base.result).run(host)?.result()?;
    equal("result", &again, &one.result)?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.2/32")
}

fn an_unknown_zone_is_refused(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let base = super::networks::Attachment::new(host, "a", gateway4())?;
    let call = firewall("a", &base.pod, json!({"backend": "firewalld", "firewalldZone": "nowhere"}));
    let refusal = call.add().prev(&base.result).run(host)?.refusal()?;
    contains("message", &refusal.text(), "nowhere")?;
    holds(
        !std::path::Path::new("/run/bridgehead/shared/source_nowhere 10.20.0.2").exists(),
        "something is left",
    )?;
    let call = firewall("a", &base.pod, json!({"backend": "firewalld", "firewalldZone": "a/b"}));
    call.add().prev(&base.result).run(host)?.refused_with(7).map(drop)
}

fn isolation_is_in_iptables(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one =
        Walled::new(host, "a", gateway4(), json!({"backend": "firewalld", "ingressPolicy": "isolated"}))?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.2/32")?;
    contains("rules", &filter(host, "iptables")?.join("\n"), "-A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0")?;
    one.check(host)
}

fn del_removes_them_in_all_ways(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let Walled { base, call, result } = Walled::new(host, "a", gateway4(), keys())?;
    let gone = |how: &str| equal(format!("sources after DEL {how}"), sources(host, "trusted")?.trim(), "");
    call.without("CNI_NETNS").del().run(host)?.silence()?;
    gone("without namespace and result")?;
    call.del().prev(&result).run(host)?.silence()?;
    call.add().prev(&base.result).run(host)?.result()?;
    call.set("backend", json!("iptables")).del().prev(&result).run(host)?.silence()?;
    gone("with another back end")?;
    call.add().prev(&base.result).run(host)?.result()?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    call.del().run(host)?.silence()?;
    gone("without a record")
}

fn a_late_del_leaves_what_the_next_owner_has(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let first = Walled::new(host, "a", gateway4(), keys())?;
    first.call.del().prev(&first.result).run(host)?.silence()?;
    let pod = host.pod("b")?;
    let second = firewall("b", &pod, keys()).prev(&first.base.result);
    second.add().run(host)?.result()?;
    first.call.del().prev(&first.result).run(host)?.silence()?;
    second.check().run(host)?.silence()
}

fn what_the_reference_left_is_removed(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let base = super::networks::Attachment::new(host, "a", gateway4())?;
    let call = firewall("a", &base.pod, keys()).prev(&base.result);
    call.from(REFERENCE).add().run(host)?.result()?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.2/32")?;
    call.del().run(host)?.silence()?;
    equal("sources after DEL", sources(host, "trusted")?.trim(), "")
}

fn check_finds_what_a_reload_takes(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway4(), keys())?;
    host.run(&["firewall-cmd", "--reload"])?;
    contains("finding", &one.damaged(host)?, "10.20.0.2/32")
}

fn a_reload_is_made_good(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway4(), keys())?;
    host.run(&["firewall-cmd", "--reload"])?;
    let program = host.plugins().join("bridgehead");
    host.run(&[program.to_str().context("a path that is no text")?, "restore"])?;
    one.check(host)
}

fn gc_removes_the_sources_of_dead_pods(host: &Sandbox) -> Result<()> {
    let _running = Running::start(host)?;
    let one = Walled::new(host, "a", gateway4(), keys())?;
    let two = Walled::new(host, "b", gateway4(), keys())?;
    let gc = |list: Value| {
        let call = one.call.set("cniVersion", json!(NEWEST)).set("cni.dev/valid-attachments", list);
        call.gc().run(host)?.silence()
    };
    gc(json!([{"containerID": "b", "ifname": "eth0"}]))?;
    equal("sources", sources(host, "trusted")?.trim(), "10.20.0.3/32")?;
    two.check(host)?;
    std::fs::remove_dir_all("/run/bridgehead/attachments")?;
    gc(json!([]))?;
    equal("sources", sources(host, "trusted")?.trim(), "")
}

fn a_host_without_it_says_so(host: &Sandbox) -> Result<()> {
    let base = super::networks::Attachment::new(host, "a", gateway4())?;
    let call = firewall("a", &base.pod, keys()).prev(&base.result);
    contains("message", &call.add().run(host)?.refused_with(106)?.text(), "firewalld does not run")?;
    let refusal = call.set("cniVersion", json!(NEWEST)).status().run(host)?.refused_with(50)?;
    contains("message", &refusal.text(), "firewalld does not run")
}

fn del_works_without_it(host: &Sandbox) -> Result<()> {
    let base = super::networks::Attachment::new(host, "a", gateway4())?;
    firewall("a", &base.pod, keys()).prev(&base.result).del().run(host)?.silence()
}
