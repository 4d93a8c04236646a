//! Bad input by the thousand. Whatever a plugin is called with, it ends by itself and soon, answers with a result or
//! with one CNI error object, and has changed nothing unless it was an ADD that succeeded.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, PLUGINS, VERSIONS, bridge, gateway4, with};
use crate::call::{Answer, Call};
use crate::case::Need;
use crate::expect::{contains, holds, lacks};
use crate::mutation::{Mutator, configurations};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "spec/mutations" {
        bridge_survives_mutants;
        bridge_survives_more_mutants;
        bridge_survives_still_more_mutants;
        host_local_survives_mutants;
        static_survives_mutants;
        loopback_survives_mutants;
    }
    "spec/limits" {
        a_configuration_of_any_depth_is_answered;
        a_plugin_that_is_no_ipam_is_not_executed_as_one needs [Need::Plugin("bridgehead")];
        an_ipam_plugin_may_answer_anything needs [Need::Plugin("bridgehead")];
    }
}

/// Calls between two looks at everything.
const BATCH: usize = 100;

/// Inputs of one case.
const MUTANTS: usize = 600;

/// The networks that users and tests have.
const LISTS: [&str; 9] = [
    include_str!("../../../test-configs/10-bridge-dual.conflist"),
    include_str!("../../../test-configs/20-containerd.conflist"),
    include_str!("../../../test-configs/25-with-portmap.conflist"),
    include_str!("../../../test-configs/30-podman.conflist"),
    include_str!("../../../test-configs/40-layer2.conflist"),
    include_str!("../../../test-configs/50-vlan.conflist"),
    include_str!("../../../test-configs/60-nftables.conflist"),
    include_str!("../../../test-configs/70-static.conflist"),
    include_str!("../../../test-configs/99-loopback.conf"),
];

fn bridge_survives_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "bridge", 1)?.run(MUTANTS)
}

fn bridge_survives_more_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "bridge", 2)?.run(MUTANTS)
}

fn bridge_survives_still_more_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "bridge", 6)?.run(MUTANTS)
}

fn host_local_survives_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "host-local", 3)?.run(MUTANTS)
}

fn static_survives_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "static", 4)?.run(MUTANTS)
}

fn loopback_survives_mutants(host: &Sandbox) -> Result<()> {
    Trial::new(host, "loopback", 5)?.run(MUTANTS)
}

/// Many calls of one plugin.
struct Trial<'a> {
    host: &'a Sandbox,
    plugin: &'static str,
    pod: Pod,
    mutator: Mutator,
}

/// One input.
#[derive(Clone)]
struct Mutant {
    variables: BTreeMap<&'static str, String>,
    stdin: Vec<u8>,
}

impl Mutant {
    fn command(&self) -> &str {
        self.variables.get("CNI_COMMAND").map_or("", String::as_str)
    }

    fn with_command(&self, command: &str) -> Self {
        let mut other = self.clone();
        other.variables.insert("CNI_COMMAND", command.to_owned());
        other
    }
}

impl<'a> Trial<'a> {
    fn new(host: &'a Sandbox, plugin: &'static str, number: u64) -> Result<Self> {
        seal_the_machine()?;
        let pod = host.pod("pod")?;
        let mut seeds = own_seeds(plugin);
        for list in LISTS {
            seeds.extend(configurations(list, plugin)?);
        }
        Ok(Self { host, plugin, pod, mutator: Mutator::new(number, seeds) })
    }

    fn run(mut self, count: usize) -> Result<()> {
        for _ in 0..count / BATCH {
            let mut harmless = Vec::new();
            for _ in 0..BATCH {
                let mutant = self.mutant()?;
                if !self.attaches(&mutant)? {
                    harmless.push(mutant);
                }
            }
            // What the attachments have left for others, such as bridges, must not hide what the rest would leave.
            self.clear()?;
            self.change_nothing(&harmless)?;
        }
        Ok(())
    }

    fn mutant(&mut self) -> Result<Mutant> {
        let commands = ["ADD", "ADD", "ADD", "ADD", "ADD", "DEL", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
        let command = *self.mutator.pick(&commands)?;
        let mut variables = BTreeMap::from([("CNI_COMMAND", command.to_owned())]);
        if ["ADD", "DEL", "CHECK"].contains(&command) {
            variables.insert("CNI_CONTAINERID", "mutant".to_owned());
            variables.insert("CNI_IFNAME", "eth0".to_owned());
            variables.insert("CNI_NETNS", self.pod.netns().to_owned());
        }
        for _ in 0..self.mutator.below(20).saturating_sub(16) {
            let names = [
                "CNI_COMMAND",
                "CNI_CONTAINERID",
                "CNI_IFNAME",
                "CNI_NETNS",
                "CNI_ARGS",
                "CNI_PATH",
                "CNI_NETNS_OVERRIDE",
            ];
            let name = *self.mutator.pick(&names)?;
            let text = match self.mutator.below(4) {
                0 => self
                    .mutator
                    .pick(&["IP=10.22.0.9", "IP=x;MAC=y", "A=1;IgnoreUnknown=1", "=;;="])?
                    .to_string(),
                1 => self
                    .mutator
                    .pick(&["add", "UPDATE", "/proc/self/ns/net", "/etc/passwd", "1"])?
                    .to_string(),
                _ => self.mutator.text(),
            };
            // A variable has no NUL in it.
            variables.insert(name, text.replace('\0', "\u{1}"));
        }
        let mut stdin = self.mutator.config()?;
        while self.executes_a_stranger(&stdin) {
            stdin = self.mutator.config()?;
        }
        Ok(Mutant { variables, stdin })
    }

    /// Whether a plugin is named as IPAM that is none: the reference would execute itself without end.
    fn executes_a_stranger(&self, config: &[u8]) -> bool {
        let get = |value: &Value, key: &str| -> Vec<Value> {
            let map = value.as_object().into_iter().flatten();
            map.filter(|(own, _)| own.eq_ignore_ascii_case(key)).map(|(_, value)| value.clone()).collect()
        };
        let config: Value = serde_json::from_slice(config).unwrap_or_default();
        get(&config, "ipam").iter().flat_map(|ipam| get(ipam, "type")).any(|ipam_type| {
            ipam_type.as_str().is_some_and(|name| {
                !["host-local", "static"].contains(&name) && self.host.plugins().join(name).is_file()
            })
        })
    }

    fn call(&self, mutant: &Mutant) -> Result<Answer> {
        let call = Call::new(self.plugin).stdin(&mutant.stdin);
        mutant.variables.iter().fold(call, |call, (name, value)| call.env(name, value)).run(self.host)
    }

    /// Whether this input attaches the pod; then it is detached again.
    fn attaches(&self, mutant: &Mutant) -> Result<bool> {
        let answer = self.call(mutant)?;
        judge(mutant, &answer)?;
        if mutant.command() != "ADD" || answer.status() != Some(0) {
            return Ok(false);
        }
        let detached = self.call(&mutant.with_command("DEL"))?;
        detached.silence().context("DEL after an ADD with the same input")?;
        Ok(true)
    }

    /// These inputs leave everything as it is. If not, they are tried one by one, to tell which it is.
    fn change_nothing(&self, mutants: &[Mutant]) -> Result<()> {
        let mut before = self.look()?;
        for mutant in mutants {
            if self.attaches(mutant)? {
                // What kept it from that was there for another.
                self.clear()?;
                before = self.look()?;
            }
        }
        let Err(together) = before.restored(self.host, &[&self.pod]) else { return Ok(()) };
        for mutant in mutants {
            self.clear()?;
            let before = self.look()?;
            if !self.attaches(mutant)? {
                before.restored(self.host, &[&self.pod]).context("a call that did not attach the pod")?;
            }
        }
        Err(together.context("some of many calls, none of which did so alone"))
    }

    fn look(&self) -> Result<Snapshot> {
        Snapshot::take(self.host, &[&self.pod])
    }

    /// Removes the bridges, which may stay when the last pod goes. So may tables that all pods share, but nothing in
    /// them that names one.
    fn clear(&self) -> Result<()> {
        for link in self.host.ip("link show type bridge")? {
            let name = link["ifname"].as_str().unwrap_or_default();
            self.host.run(&["ip", "link", "delete", name])?;
        }
        lacks("rules that name a pod", &self.host.run(&["nft", "list", "ruleset"])?, "mutant")
    }
}

/// A configuration with every key that a plugin reads, and one with little more than its name.
fn own_seeds(plugin: &str) -> Vec<Value> {
    let dns = json!({"nameservers": ["10.1.0.1"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:2"]});
    let ipam = match plugin {
        "static" => json!({
            "type": "static", "addresses": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}], "dns": dns,
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "priority": 10, "table": 100, "scope": 0}],
        }),
        _ => json!({
            "type": "host-local", "subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.99",
            "gateway": "10.1.0.1", "ranges": [[{"subnet": "fd01::/64"}]], "dataDir": "/run/scratch/data",
            "resolvConf": "/etc/resolv.conf", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "advmss": 1300}],
        }),
    };
    let result = json!({
        "cniVersion": NEWEST, "dns": dns, "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/pod"}],
        "ips": [{"address": "10.1.0.9/16", "gateway": "10.1.0.1", "interface": 0}],
    });
    let plain = json!({"cniVersion": NEWEST, "name": "seed", "type": plugin, "ipam": ipam});
    let full = json!({
        "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "forceAddress": true, "ipMasq": true,
        "ipMasqBackend": "nftables", "mtu": 1400, "hairpinMode": false, "promiscMode": false, "macspoofchk": true,
        "enabledad": false, "portIsolation": true, "spoofGuard": true, "dns": dns, "prevResult": result,
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "args": {"cni": {"ips": ["10.1.0.11/16"], "mac": "02:00:00:00:00:02"}},
        "cni.dev/valid-attachments": [{"containerID": "mutant", "ifname": "eth0"}],
    });
    vec![plain.clone(), with(plain, full)]
}

/// Makes every filesystem read-only that is the machine's: whatever path a mutant has, it leads nowhere.
fn seal_the_machine() -> Result<()> {
    let own = ["/run", "/proc", "/sys", "/var/lib/cni", "/etc/cni"];
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let is_own = own.iter().any(|directory| Path::new(point).starts_with(directory));
        // Where the machine has no such directory, the sandbox has one in an overlay of what is above.
        let is_layer = ["/var/lib", "/etc"].contains(&point) && line.contains(" - overlay ");
        if is_own || is_layer {
            continue;
        }
        let point = point.replace("\\040", " ");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, point.as_str(), None::<&str>, flags, None::<&str>)
            .with_context(|| format!("cannot make {point} read-only"))?;
    }
    Ok(())
}

/// The answer is one that the specification knows.
fn judge(mutant: &Mutant, answer: &Answer) -> Result<()> {
    let verdict = if answer.status() == Some(0) {
        match mutant.command() {
            "ADD" => answer.result().and_then(|result| is_result(&result)),
            "DEL" | "CHECK" | "GC" | "STATUS" => answer.silence(),
            "VERSION" => answer.result().and_then(|versions| {
                let list = versions["supportedVersions"].as_array();
                holds(list.is_some_and(|list| !list.is_empty()), format!("an answer to VERSION: {versions}"))
            }),
            "" => answer.silence(),
            other => bail!("the verb {other:?} succeeds"),
        }
    } else {
        answer.refusal().map(drop)
    };
    verdict.with_context(|| {
        let stdin = String::from_utf8_lossy(&mutant.stdin).into_owned();
        format!("the answer to {:?} with {stdin} on stdin", mutant.variables)
    })
}

/// What ADD printed has the shape of a result.
fn is_result(result: &Value) -> Result<()> {
    let version = result["cniVersion"].as_str().unwrap_or_default();
    holds(VERSIONS.contains(&version), format!("a result of version {version:?}"))?;
    let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
    let mut addresses: Vec<Value> = list("ips").iter().map(|ip| ip["address"].clone()).collect();
    addresses.extend(["ip4", "ip6"].iter().filter_map(|key| result.get(*key)).map(|ip| ip["ip"].clone()));
    addresses.extend(list("routes").iter().map(|route| route["dst"].clone()));
    for address in addresses {
        let text = address.as_str().unwrap_or_default();
        let is_prefix = text.split_once('/').is_some_and(|(address, len)| {
            address.parse::<IpAddr>().is_ok_and(|it| len.parse().is_ok_and(|len| prefix_fits(it, len)))
        });
        holds(is_prefix, format!("{address} is no address with a prefix length in {result}"))?;
    }
    Ok(())
}

fn prefix_fits(address: IpAddr, len: u8) -> bool {
    len <= if address.is_ipv4() { 32 } else { 128 }
}

/// A list in a list, and so on.
fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

fn a_configuration_of_any_depth_is_answered(host: &Sandbox) -> Result<()> {
    for plugin in PLUGINS {
        for command in ["ADD", "DEL", "CHECK"] {
            for key in ["x", "ipam", "prevResult"] {
                let call = Call::new(plugin).command(command).id("deep").ifname("eth0").somewhere();
                let config = format!(r#"{{"cniVersion":"1.0.0","name":"n","{key}":{}}}"#, deep(300_000));
                let answer = call.stdin(config.as_bytes()).run(host)?;
                answer.refused_with(6).with_context(|| format!("{plugin} {command} with a deep {key}"))?;
            }
        }
    }
    Ok(())
}

fn a_plugin_that_is_no_ipam_is_not_executed_as_one(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for ipam_type in ["bridge", "loopback"] {
        let call = bridge("pod1", &pod, json!({"cniVersion": NEWEST, "ipam": {"type": ipam_type}}));
        let before = Snapshot::take(host, &[&pod])?;
        let refusal = call.add().run(host)?.refused_with(7)?;
        contains("the error names the type", &refusal.text(), ipam_type)?;
        before.restored(host, &[&pod])?;
        call.status().run(host)?.refused_with(7)?;
        call.del().run(host)?.silence()?;
        call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    }
    Ok(())
}

fn an_ipam_plugin_may_answer_anything(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let answers = [
        ("nothing", "true"),
        ("a depth without end", "head -c 300000 /dev/zero | tr '\\0' '['"),
        ("output without end", "exec yes"),
        ("an error without end", "yes | head -c 300000 >&2; exit 1"),
        ("bytes that are no text", "printf '\\377\\376{}'"),
        ("an address that is none", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"x"}]}'"#),
        ("a list", "echo '[]'"),
        ("a version that nobody knows", r#"echo '{"cniVersion":"9.9.9"}'"#),
        ("a signal", "kill -SEGV $$"),
    ];
    for (what, script) in answers {
        let path = host.fake_plugin("fakes", "fake", script)?;
        let path = format!("{}:{}", path.display(), host.plugins().display());
        let network = with(gateway4(), json!({"ipam": {"type": "fake"}}));
        let call = bridge("pod1", &pod, network).env("CNI_PATH", &path);
        let before = Snapshot::take(host, &[&pod])?;
        call.add().run(host)?.refusal().with_context(|| format!("an IPAM plugin answers with {what}"))?;
        before.restored(host, &[&pod]).with_context(|| format!("an IPAM plugin answers with {what}"))?;
    }
    Ok(())
}
