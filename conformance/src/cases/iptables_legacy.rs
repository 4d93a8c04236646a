//! Where iptables is not nf_tables: a chain of bridge, firewall and portmap from end to end, with packets.

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::cases;
use super::firewall::firewall;
use super::networks::{Attachment, gateway46, with};
use super::portmap::{portmap, tcp};
use super::portmap_packets::{exchanged, is_closed, listen, seen, udp};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::{REFERENCE, Sandbox};

/// What is beyond the reference.
const TOOL: Need = Need::Plugin("bridgehead");

cases! {
    "legacy/chain" {
        pods_reach_out_and_are_reached needs [Need::Plugin("portmap"), Need::Plugin("firewall"), Need::LegacyIptables, Need::Ipv6];
        each_loss_is_found needs [TOOL, Need::LegacyIptables, Need::Ipv6];
        a_flush_is_made_good needs [TOOL, Need::LegacyIptables, Need::Ipv6];
        attachments_of_nobody_are_collected needs [TOOL, Need::LegacyIptables, Need::Ipv6];
        del_finds_what_another_variant_has needs [TOOL, Need::LegacyIptables, Need::Iptables, Need::Ipv6];
        forty_at_once_share_one_of_each_rule needs [Need::Plugin("portmap"), Need::LegacyIptables];
    }
    "legacy/reference" {
        rules_are_the_references needs [TOOL, Need::Reference("portmap"), Need::LegacyIptables, Need::Ipv6];
        del_removes_what_the_reference_left needs [TOOL, Need::Reference("portmap"), Need::LegacyIptables, Need::Ipv6];
        its_ports_are_refused needs [TOOL, Need::Reference("portmap"), Need::LegacyIptables, Need::Ipv6];
    }
}

const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

/// Has the commands of iptables be those of a variant, as a host's administrator does it.
pub(super) fn choose_variant(host: &Sandbox, variant: &str) -> Result<()> {
    // The first directory of every search path.
    let script = "mkdir -p /usr/local/sbin && cd /run/scratch && \
        { [ -d sbin ] || { cp -a /usr/local/sbin sbin && mount --bind sbin /usr/local/sbin; }; } && \
        for family in iptables ip6tables; do for verb in '' -restore -save; do \
          ln -sf $(readlink -f /usr/sbin/$family-$0$verb) /usr/local/sbin/$family$verb; done; done";
    host.run(&["sh", "-c", script, variant]).map(drop)
}

/// A pod in such a chain.
struct Chain {
    one: Attachment,
    firewall: Call,
    portmap: Call,
    result: Value,
}

impl Chain {
    fn new(host: &Sandbox, id: &str, mappings: Value) -> Result<Self> {
        let one = Attachment::new(host, id, with(gateway46(), json!({"ipMasq": true})))?;
        let firewall = firewall(id, &one.pod, json!({"backend": "iptables"}));
        let result = firewall.add().prev(&one.result).run(host)?.result().context("ADD of firewall")?;
        let portmap = portmap(id, &one, mappings, json!({"backend": "iptables"}));
        portmap.add().run(host)?.result().context("ADD of portmap")?;
        Ok(Self { one, firewall, portmap, result })
    }

    fn calls(&self) -> [(&'static str, Call); 3] {
        [
            ("bridge", self.one.call.prev(&self.one.result)),
            ("firewall", self.firewall.prev(&self.result)),
            ("portmap", self.portmap.clone()),
        ]
    }

    fn check(&self, host: &Sandbox) -> Result<()> {
        self.calls().into_iter().try_for_each(|(name, call)| {
            call.check().run(host)?.silence().with_context(|| format!("CHECK of {name}"))
        })
    }

    fn del(&self, host: &Sandbox) -> Result<()> {
        self.calls().into_iter().rev().try_for_each(|(name, call)| {
            call.without("CNI_NETNS").del().run(host)?.silence().with_context(|| format!("DEL of {name}"))
        })
    }
}

fn both_ports() -> Value {
    json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
    ])
}

/// All legacy tables, without what packets have counted.
fn saved(host: &Sandbox) -> Result<String> {
    let mut text = String::new();
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        for line in host.run(&[program])?.lines().filter(|line| !line.starts_with('#')) {
            text.push_str(line.split(" [").next().unwrap_or_default());
            text.push('\n');
        }
    }
    Ok(text)
}

/// Nothing but what all pods share, and nothing in nf_tables.
fn gone(host: &Sandbox) -> Result<()> {
    let rules = saved(host)? + &host.run(&["nft", "list", "ruleset"])?;
    for part in ["10.20.0.2", "fd20::2", "CNI-DN-", "id: ", "8080"] {
        lacks("rules after DEL", &rules, part)?;
    }
    Ok(())
}

fn pods_reach_out_and_are_reached(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let outside = host.outside()?;
    let chain = Chain::new(host, "a", both_ports())?;
    lacks("nf_tables", &host.run(&["nft", "list", "ruleset"])?, "10.20.0.2")?;
    let pod = &chain.one.pod;
    let server = listen(pod, "[::]:80")?;
    equal("client", seen(&outside, "192.0.2.1:8080", &server)?, "::ffff:192.0.2.2")?;
    equal("client", seen(&outside, "[2001:db8:ffff::1]:8080", &server)?, "2001:db8:ffff::2")?;
    equal("the host at 127.0.0.1", seen(host, "127.0.0.1:8080", &server)?, "::ffff:10.20.0.1")?;
    let (of_pod, client) = (udp(pod, "0.0.0.0:53")?, udp(&outside, "0.0.0.0:0")?);
    equal("client of UDP", exchanged(&client, "192.0.2.1:8053", &of_pod)?, "192.0.2.2")?;
    // The other way, the pod has the host's address, and nobody but the firewall lets it pass.
    for program in PROGRAMS {
        host.run(&[program, "-w", "-P", "FORWARD", "DROP"])?;
    }
    let server = listen(&outside, "[::]:81")?;
    equal("pod", seen(pod, "192.0.2.2:81", &server)?, "::ffff:192.0.2.1")?;
    equal("pod", seen(pod, "[2001:db8:ffff::2]:81", &server)?, "2001:db8:ffff::1")?;
    chain.check(host)?;
    let before = saved(host)?;
    chain.portmap.add().run(host)?.result()?;
    chain.firewall.add().prev(&chain.one.result).run(host)?.result()?;
    equal("rules after a second ADD", saved(host)?, before)?;
    chain.del(host)?;
    gone(host)?;
    is_closed(&outside, "192.0.2.1:8080")?;
    chain.del(host)
}

fn each_loss_is_found(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let chain = Chain::new(host, "a", both_ports())?;
    for (program, table, of, index) in [
        ("iptables", "nat", "CNI-HOSTPORT-DNAT", 2),
        ("ip6tables", "nat", "CNI-HOSTPORT-DNAT", 2),
        ("iptables", "nat", "PREROUTING", 2),
        ("iptables", "nat", "POSTROUTING", 0),
        ("ip6tables", "nat", "POSTROUTING", 0),
        ("iptables", "filter", "CNI-FORWARD", 1),
        ("ip6tables", "filter", "FORWARD", 1),
    ] {
        chain.check(host)?;
        let save = format!("{program}-legacy-save");
        let restore = format!("{program}-legacy-restore");
        let before = host.run(&[&save])?;
        host.run(&[program, "-w", "-t", table, "-F", of])?;
        let (name, call) = &chain.calls()[index];
        let refusal =
            call.check().run(host)?.refused_with(103).with_context(|| format!("{program} {of}: {name}"))?;
        contains("finding", &refusal.text(), of)?;
        let restored = host.run_with_input(&[&restore], before.as_bytes())?;
        holds(restored.status.success(), restored.stderr)?;
    }
    chain.check(host)
}

fn a_flush_is_made_good(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let chain = Chain::new(host, "a", both_ports())?;
    let before = saved(host)?;
    for program in PROGRAMS {
        for table in ["nat", "filter"] {
            host.run(&[program, "-w", "-t", table, "-F"])?;
            host.run(&[program, "-w", "-t", table, "-X"])?;
        }
    }
    let tool = host.plugins().join("bridgehead");
    host.run(&[&tool.to_string_lossy(), "restore"])?;
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    equal("rules", sorted(saved(host)?), sorted(before))?;
    chain.check(host)?;
    chain.del(host)?;
    gone(host)
}

fn attachments_of_nobody_are_collected(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let chain = Chain::new(host, "a", both_ports())?;
    // The rules of `firewall` tell nobody's name, those of the others do.
    for plugin in ["bridge", "portmap"] {
        std::fs::remove_dir_all(format!("/run/bridgehead/attachments/{plugin}"))?;
    }
    for (_, call) in chain.calls().into_iter().rev() {
        let call = call.without("CNI_CONTAINERID").without("CNI_IFNAME").without("CNI_NETNS");
        call.gc()
            .set("cniVersion", json!("1.1.0"))
            .set("cni.dev/valid-attachments", json!([]))
            .run(host)?
            .silence()?;
    }
    gone(host)
}

fn del_finds_what_another_variant_has(host: &Sandbox) -> Result<()> {
    for (then, now) in [("legacy", "nft"), ("nft", "legacy")] {
        choose_variant(host, then)?;
        let chain = Chain::new(host, "a", both_ports())?;
        choose_variant(host, now)?;
        chain.del(host)?;
        gone(host).with_context(|| format!("made by {then}, removed by {now}"))?;
        chain.one.pod.remove()?;
    }
    Ok(())
}

fn forty_at_once_share_one_of_each_rule(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let calls = super::portmap::forty(host, "iptables")?;
    let rules = saved(host)?;
    for (part, wanted) in [
        ("-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT", 1),
        ("-A CNI-HOSTPORT-MASQ", 1),
        ("-A CNI-HOSTPORT-SETMARK", 1),
        ("-A CNI-HOSTPORT-DNAT", 40),
        ("-j DNAT --to-destination", 40),
    ] {
        equal(part, rules.lines().filter(|line| line.contains(part)).count(), wanted)?;
    }
    super::portmap::all(host, &calls, "DEL")?;
    lacks("rules after DEL", &saved(host)?, "CNI-DN-")
}

/// A call as version 1.0.0, which every release of the reference knows.
fn of_version_1_0(call: &Call, result: &Value) -> Call {
    call.set("cniVersion", json!("1.0.0")).prev(&with(result.clone(), json!({"cniVersion": "1.0.0"})))
}

fn rules_are_the_references(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let one = Attachment::new(host, "a", gateway46())?;
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 82, "protocol": "udp", "hostIP": "0.0.0.0"},
        {"hostPort": 8083, "containerPort": 83, "protocol": "sctp"},
        {"hostPort": 8084, "containerPort": 84, "protocol": "udp", "hostIP": "2001:db8::1"},
    ]);
    for more in [
        json!({}),
        json!({"snat": false}),
        json!({"markMasqBit": 3}),
        json!({"conditionsV4": ["-s", "1.2.3.4"], "conditionsV6": ["!", "-s", "12::34"]}),
    ] {
        let call = of_version_1_0(&portmap("a", &one, mappings.clone(), more.clone()), &one.result);
        let mut found = Vec::new();
        for suite in [None, Some(REFERENCE)] {
            for program in PROGRAMS {
                host.run(&[program, "-w", "-t", "nat", "-F"])?;
                host.run(&[program, "-w", "-t", "nat", "-X"])?;
            }
            let call = suite.map_or_else(|| call.clone(), |directory| call.from(directory));
            call.add().run(host)?.result()?;
            found.push(PROGRAMS.map(|program| host.run(&[program, "-w", "-t", "nat", "-S"])));
            call.del().run(host)?.silence()?;
        }
        let [ours, theirs] = <[_; 2]>::try_from(found).map_err(|_| anyhow!("two suites"))?;
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            equal(format!("rules of {more}"), ours?, theirs?)?;
        }
    }
    Ok(())
}

fn del_removes_what_the_reference_left(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let chain = Chain::new(host, "a", both_ports())?;
    let call = of_version_1_0(&chain.portmap, &chain.one.result);
    chain.portmap.del().run(host)?.silence()?;
    call.from(REFERENCE).add().run(host)?.result()?;
    contains("rules", &saved(host)?, "CNI-DN-")?;
    call.check().run(host)?.silence()?;
    chain.del(host)?;
    gone(host)
}

/// It claims nothing, but its rules tell; see `portmap/owners`.
fn its_ports_are_refused(host: &Sandbox) -> Result<()> {
    choose_variant(host, "legacy")?;
    let one = Attachment::new(host, "a", gateway46())?;
    let two = Attachment::new(host, "b", gateway46())?;
    let theirs =
        of_version_1_0(&portmap("a", &one, tcp(8080, 80), json!({"backend": "iptables"})), &one.result);
    let theirs = theirs.from(REFERENCE);
    for ours in ["iptables", "nftables"] {
        theirs.add().run(host)?.result()?;
        let call = |port| portmap("b", &two, tcp(port, 80), json!({"backend": ours}));
        let refusal = call(8080).add().run(host)?.refused_with(102)?;
        contains("message", &refusal.msg, "tcp port 8080 (IPv4) is taken by container a on network net")?;
        call(8081).add().run(host)?.result()?;
        call(8081).del().run(host)?.silence()?;
        theirs.del().run(host)?.silence()?;
        call(8080).add().run(host)?.result()?;
        call(8080).del().run(host)?.silence()?;
    }
    Ok(())
}
