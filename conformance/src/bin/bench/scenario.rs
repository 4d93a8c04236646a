//! What is measured: the table of scenarios.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::process::Command;

/// The network name and the bridge of all scenarios.
pub(crate) const NETWORK: &str = "bench";
/// Subnets are 10.x.0.0/16 with this x.
pub(crate) const SUBNET: u8 = 88;
/// More pods than this would leave the subnet, together with the reservations, or the range of host ports.
pub(crate) const MAX_PODS: usize = 10_000;

/// The scenario that asks the kernel for no more than the floor does, and is judged by it.
pub(crate) const BARE_ATTACHMENT: &str = "bridge, no NAT";

/// What podman and others put on a node's conflist.
const CHAIN: &str = "bridge+portmap+firewall+bandwidth+tuning";

/// Where the NAT of a scenario has to show up in the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Nat {
    /// There is none.
    None,
    /// In iptables' nat table.
    Iptables,
    /// In an nf_tables table that is not one of iptables'.
    Nftables,
}

/// What is called, and timed.
pub(crate) enum Workload {
    /// VERSION of this plugin: the cost of starting it.
    Startup(&'static str),
    /// STATUS of this configuration, with a pod attached.
    Question(Value),
    /// ADD and DEL of attachments.
    Attachments {
        /// The plugins' configurations in the order of ADD; `type` names the executable. `cniVersion` and `name`
        /// are filled in when called, as is the `runtimeConfig` for declared capabilities.
        chain: Vec<Value>,
        /// What must be found in the kernel after the first ADD.
        nat: Nat,
        /// How many addresses host-local has given away before.
        reservations: u32,
        /// How many ports of the host lead to each pod, where a plugin has the capability.
        ports: usize,
    },
}

/// What a timed call is for: a command of CNI, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Starts a program, and has nothing for it to do.
    Start,
    /// Says which versions the plugin speaks, and does nothing else.
    Version,
    /// Says whether an ADD could be served.
    Status,
    /// Attaches a pod.
    Add,
    /// Detaches it.
    Del,
}

/// One scenario.
pub(crate) struct Scenario {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// What is called.
    pub(crate) workload: Workload,
    /// How many calls are under way at the same time; a batch for each.
    pub(crate) at_once: &'static [usize],
    /// The most pods that there is room for.
    pub(crate) most_pods: usize,
}

/// All scenarios, in the order of the report.
pub(crate) fn all() -> Vec<Scenario> {
    use Family::{Dual, V4};
    let both: &[usize] = &[1, 8];
    let chained = |nat| vec![bridge(nat, V4), portmap(nat), firewall(nat), bandwidth(), tuning()];
    vec![
        single("start-up (VERSION)", Workload::Startup("bridge")),
        single("bridge with a pod", Workload::Question(bridge(Nat::Iptables, V4))),
        attachments(BARE_ATTACHMENT, vec![bridge(Nat::None, V4)], Nat::None, both),
        attachments("bridge, iptables", vec![bridge(Nat::Iptables, V4)], Nat::Iptables, both),
        attachments("bridge, nftables", vec![bridge(Nat::Nftables, V4)], Nat::Nftables, both),
        attachments("bridge, dual stack, iptables", vec![bridge(Nat::Iptables, Dual)], Nat::Iptables, both),
        attachments("bridge, dual stack, nftables", vec![bridge(Nat::Nftables, Dual)], Nat::Nftables, both),
        attachments("ptp, iptables", vec![ptp(Nat::Iptables)], Nat::Iptables, &[1]),
        attachments(
            "bridge+portmap, nftables",
            vec![bridge(Nat::Nftables, V4), portmap(Nat::Nftables)],
            Nat::Nftables,
            &[1],
        ),
        many_ports(
            "bridge+portmap, 1000 ports, nftables",
            vec![bridge(Nat::Nftables, V4), portmap(Nat::Nftables)],
        ),
        attachments(CHAIN, chained(Nat::Iptables), Nat::Iptables, both),
        attachments("the same chain, nftables", chained(Nat::Nftables), Nat::Nftables, &[1]),
        attachments("the same as one entry, iptables", vec![whole(Nat::Iptables)], Nat::Iptables, &[1]),
        attachments("the same as one entry, nftables", vec![whole(Nat::Nftables)], Nat::Nftables, &[1]),
        reserved("host-local, 10 reservations", 10),
        reserved("host-local, 10000 reservations", 10_000),
    ]
}

fn attachments(name: &'static str, chain: Vec<Value>, nat: Nat, at_once: &'static [usize]) -> Scenario {
    let workload = Workload::Attachments { chain, nat, reservations: 0, ports: 1 };
    Scenario { at_once, ..single(name, workload) }
}

fn single(name: &'static str, workload: Workload) -> Scenario {
    Scenario { name, workload, at_once: &[1], most_pods: MAX_PODS }
}

/// A thousand ports for each of a few pods.
fn many_ports(name: &'static str, chain: Vec<Value>) -> Scenario {
    let workload = Workload::Attachments { chain, nat: Nat::Nftables, reservations: 0, ports: 1000 };
    Scenario { most_pods: 5, ..single(name, workload) }
}

fn reserved(name: &'static str, reservations: u32) -> Scenario {
    let chain = vec![json!({"type": "host-local", "ipam": host_local(Family::V4)})];
    single(name, Workload::Attachments { chain, nat: Nat::None, reservations, ports: 1 })
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    Dual,
}

fn host_local(family: Family) -> Value {
    let v4 = json!([{"subnet": format!("10.{SUBNET}.0.0/16")}]);
    let v6 = json!([{"subnet": "fd00:88::/64"}]);
    let ranges = match family {
        Family::V4 => json!([v4]),
        Family::Dual => json!([v4, v6]),
    };
    json!({"type": "host-local", "ranges": ranges})
}

fn bridge(nat: Nat, family: Family) -> Value {
    let mut config = json!({
        "type": "bridge", "bridge": "bench0", "isGateway": true, "isDefaultGateway": true,
        "ipam": host_local(family),
    });
    if !matches!(nat, Nat::None) {
        config["ipMasq"] = json!(true);
        config["ipMasqBackend"] = json!(backend(nat));
    }
    config
}

fn ptp(nat: Nat) -> Value {
    let mut config = bridge(nat, Family::V4);
    config["type"] = json!("ptp");
    config
}

fn portmap(nat: Nat) -> Value {
    json!({"type": "portmap", "backend": backend(nat), "capabilities": {"portMappings": true}})
}

fn firewall(nat: Nat) -> Value {
    json!({"type": "firewall", "backend": backend(nat)})
}

/// The chain as one entry of a list, which only this suite has.
fn whole(nat: Nat) -> Value {
    let mut whole = bridge(nat, Family::V4);
    for part in [portmap(nat), firewall(nat), bandwidth(), tuning()] {
        if let (Some(whole), Value::Object(part)) = (whole.as_object_mut(), part) {
            whole.extend(part);
        }
    }
    whole["type"] = json!("bridgehead");
    whole["firewall"] = json!(true);
    whole
}

fn backend(nat: Nat) -> &'static str {
    match nat {
        Nat::Iptables => "iptables",
        Nat::None | Nat::Nftables => "nftables",
    }
}

fn bandwidth() -> Value {
    let (rate, burst) = (1_000_000_000, 8_000_000);
    json!({"type": "bandwidth", "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

fn tuning() -> Value {
    json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})
}

impl Workload {
    /// What is timed, in this order.
    pub(crate) fn verbs(&self) -> &'static [Verb] {
        match self {
            Self::Startup(_) => &[Verb::Version],
            Self::Question(_) => &[Verb::Status],
            Self::Attachments { .. } => &[Verb::Add, Verb::Del],
        }
    }
}

impl Verb {
    /// The value of `CNI_COMMAND`; a dash where there is none.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "-",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

impl Nat {
    /// Looks in the calling thread's network namespace for what a plugin should have put there. `Err` says what is
    /// missing: a plugin that ignores the key must not be timed as if it had done the work.
    pub(crate) fn verify(self) -> Result<()> {
        let missing = match self {
            Self::None => None,
            Self::Iptables => {
                let rules = output("iptables-save", &["-t", "nat"])?;
                (!rules.contains("MASQUERADE")).then_some("ADD makes no masquerading rule in iptables")
            }
            Self::Nftables => {
                let tables = output("nft", &["list", "tables"])?;
                tables.lines().all(is_iptables_table).then_some("ADD ignores ipMasqBackend nftables")
            }
        };
        missing.map_or(Ok(()), |missing| Err(anyhow::anyhow!(missing)))
    }
}

/// Whether a line of `nft list tables` names a table that belongs to iptables or ip6tables.
fn is_iptables_table(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    matches!(words.next(), Some("ip" | "ip6"))
        && matches!(words.next(), Some("nat" | "filter" | "mangle" | "raw" | "security"))
}

fn output(command: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(command)
        .args(arguments)
        .env("PATH", crate::machine::PATH)
        .output()
        .with_context(|| format!("cannot run {command}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_iptables_are_told_from_others() {
        assert!(is_iptables_table("table ip nat"));
        assert!(is_iptables_table("table ip6 filter"));
        assert!(!is_iptables_table("table inet cni_plugins_masquerade"));
        assert!(!is_iptables_table("table inet nat"));
    }
}
