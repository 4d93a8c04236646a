//! Rules of iptables, as the reference has them.

use anyhow::Result;
use serde_json::{Value, json};

use super::{all, back_end, chain_of, forty, nat, portmap, rules_of, tcp};
use crate::cases::networks::{Attachment, gateway4, gateway46, with};
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::{REFERENCE, Sandbox};

pub(super) fn rules_are_those_that_others_read(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), back_end("iptables")).add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    let chain = chain_of(&listing, "a")?;
    equal("length of the chain's name", (chain.len(), chain.starts_with("CNI-DN-")), (28, true))?;
    let jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";
    for base in ["PREROUTING", "OUTPUT"] {
        holds(rules_of(&listing, base).iter().any(|rule| rule == jump), format!("{base}: {listing:#?}"))?;
    }
    equal(
        "first rule of POSTROUTING",
        rules_of(&listing, "POSTROUTING").first().map(String::as_str),
        Some("-m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ"),
    )?;
    for (chain, wanted) in [
        (
            "CNI-HOSTPORT-SETMARK",
            vec![
                "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000"
                    .to_owned(),
            ],
        ),
        ("CNI-HOSTPORT-MASQ", vec!["-m mark --mark 0x2000/0x2000 -j MASQUERADE".to_owned()]),
        (
            "CNI-HOSTPORT-DNAT",
            vec![format!(
                "-p tcp -m comment --comment \"dnat name: \\\"net\\\" id: \\\"a\\\"\" -m multiport --dports 8080 -j {chain}"
            )],
        ),
        (
            chain.as_str(),
            vec![
                "-s 10.20.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK".to_owned(),
                "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK".to_owned(),
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.20.0.2:80".to_owned(),
            ],
        ),
    ] {
        equal(chain, rules_of(&listing, chain), wanted)?;
    }
    Ok(())
}

pub(super) fn ipv6_has_the_same_without_localhost(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let mappings = json!([
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
        {"hostPort": 54, "containerPort": 54, "protocol": "udp", "hostIP": "192.0.2.1"},
        {"hostPort": 55, "containerPort": 55, "protocol": "udp", "hostIP": "2001:db8::1"},
    ]);
    portmap("a", &one, mappings, back_end("iptables")).add().run(host)?.result()?;
    let listing = nat(host, "ip6tables")?;
    let chain = chain_of(&listing, "a")?;
    equal(
        "rules",
        rules_of(&listing, &chain),
        [
            "-s fd20::/64 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
            "-p udp -m udp --dport 53 -j DNAT --to-destination [fd20::2]:5353",
            "-s fd20::/64 -d 2001:db8::1/128 -p udp -m udp --dport 55 -j CNI-HOSTPORT-SETMARK",
            "-d 2001:db8::1/128 -p udp -m udp --dport 55 -j DNAT --to-destination [fd20::2]:55",
        ],
    )?;
    let ipv4 = rules_of(&nat(host, "iptables")?, &chain).join("\n");
    contains(
        "IPv4",
        &ipv4,
        "-d 192.0.2.1/32 -p udp -m udp --dport 54 -j DNAT --to-destination 10.20.0.2:54",
    )?;
    lacks("IPv4", &ipv4, "--dport 55 ")
}

pub(super) fn many_ports_are_fifteen_to_a_rule(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let mut mappings: Vec<Value> = Vec::new();
    for (protocol, count) in [("udp", 2), ("tcp", 31)] {
        mappings.extend(
            (0..count).map(|i| json!({"hostPort": 9000 + i, "containerPort": 1 + i, "protocol": protocol})),
        );
    }
    portmap("a", &one, json!(mappings), back_end("iptables")).add().run(host)?.result()?;
    let entries = rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT");
    let counts: Vec<(bool, usize)> = entries
        .iter()
        .map(|rule| {
            let ports = rule.split("--dports ").nth(1).unwrap_or_default();
            (rule.starts_with("-p tcp"), ports.split(' ').next().unwrap_or_default().split(',').count())
        })
        .collect();
    equal("whether tcp, and how many ports", counts, [(true, 15), (true, 15), (true, 1), (false, 2)])
}

pub(super) fn marks_are_those_that_are_asked_for(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    portmap("a", &one, tcp(8080, 80), json!({"markMasqBit": 5})).add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    contains("SETMARK", &rules_of(&listing, "CNI-HOSTPORT-SETMARK").join(" "), "--set-xmark 0x20/0x20")?;
    contains("MASQ", &rules_of(&listing, "CNI-HOSTPORT-MASQ").join(" "), "--mark 0x20/0x20")?;

    host.run(&["iptables", "-w", "-t", "nat", "-N", "PLZ-SET-MARK"])?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("b", &two, tcp(8081, 80), json!({"externalSetMarkChain": "PLZ-SET-MARK"}));
    call.add().run(host)?.result()?;
    let listing = nat(host, "iptables")?;
    let own = rules_of(&listing, &chain_of(&listing, "b")?).join("\n");
    contains("rules", &own, "-s 127.0.0.1/32 -p tcp -m tcp --dport 8081 -j PLZ-SET-MARK")?;
    lacks("rules", &own, "CNI-HOSTPORT-SETMARK")?;

    let three = Attachment::new(host, "c", gateway4())?;
    portmap("c", &three, tcp(8082, 80), json!({"snat": false, "backend": "iptables"}))
        .add()
        .run(host)?
        .result()?;
    let listing = nat(host, "iptables")?;
    equal("rules without snat", rules_of(&listing, &chain_of(&listing, "c")?).len(), 1)?;

    let four = Attachment::new(host, "d", gateway4())?;
    portmap("d", &four, tcp(8083, 80), json!({"masqAll": true, "backend": "iptables"}))
        .add()
        .run(host)?
        .result()?;
    let listing = nat(host, "iptables")?;
    let own = rules_of(&listing, &chain_of(&listing, "d")?);
    equal(
        "first rule with masqAll",
        own.first().map(String::as_str),
        Some("-p tcp -m tcp --dport 8083 -j CNI-HOSTPORT-SETMARK"),
    )
}

pub(super) fn conditions_stand_in_the_entry(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let conditions = json!({"conditionsV4": ["!", "-s", "198.51.100.0/24", "-i", "up0"]});
    let call = portmap("a", &one, tcp(8080, 80), conditions);
    call.add().run(host)?.result()?;
    let entries = rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT");
    equal("entries", entries.len(), 1)?;
    contains("entry", &entries[0], "! -s 198.51.100.0/24")?;
    contains("entry", &entries[0], "-i up0")?;
    call.check().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    equal("entries after the second ADD", rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT").len(), 1)?;
    call.del().run(host)?.silence()?;
    lacks("rules after DEL", &nat(host, "iptables")?.join("\n"), "CNI-DN-")
}

/// Everything in both tables, as the two suites write it for the same configurations.
pub(super) fn rules_are_the_references(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8082, "containerPort": 82, "protocol": "udp", "hostIP": "0.0.0.0"},
        {"hostPort": 8083, "containerPort": 83, "protocol": "sctp"},
        {"hostPort": 8084, "containerPort": 84, "protocol": "udp", "hostIP": "2001:db8::1"},
    ]);
    let variants = [
        json!({}),
        json!({"snat": false}),
        json!({"markMasqBit": 3}),
        json!({"conditionsV4": ["-s", "1.2.3.4"], "conditionsV6": ["!", "-s", "12::34"]}),
    ];
    for more in variants {
        let call = portmap("a", &one, mappings.clone(), more.clone()).set("cniVersion", json!("1.0.0"));
        let call = call.prev(&with(one.result.clone(), json!({"cniVersion": "1.0.0"})));
        let mut saved = Vec::new();
        for suite in [None, Some(REFERENCE)] {
            for program in ["iptables", "ip6tables"] {
                host.run(&[program, "-w", "-t", "nat", "-F"])?;
                host.run(&[program, "-w", "-t", "nat", "-X"])?;
            }
            let call = suite.map_or_else(|| call.clone(), |directory| call.from(directory));
            call.add().run(host)?.result()?;
            saved.push([nat(host, "iptables")?, nat(host, "ip6tables")?]);
            call.del().run(host)?.silence()?;
        }
        equal(format!("rules of {more}"), &saved[0], &saved[1])?;
    }
    Ok(())
}

pub(super) fn del_leaves_the_shared_chains_only(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let call = portmap("a", &one, tcp(8080, 80), back_end("iptables"));
    let other = portmap("b", &two, tcp(8081, 80), back_end("iptables"));
    other.add().run(host)?.result()?;
    let before = nat(host, "iptables")?;
    call.add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    equal("rules", nat(host, "iptables")?, before)
}

pub(super) fn forty_pods_at_once_leave_one_of_each_shared_rule(host: &Sandbox) -> Result<()> {
    let calls = forty(host, "iptables")?;
    let listing = nat(host, "iptables")?;
    for chain in ["PREROUTING", "OUTPUT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"] {
        equal(chain, rules_of(&listing, chain).len(), 1)?;
    }
    equal("entries", rules_of(&listing, "CNI-HOSTPORT-DNAT").len(), calls.len())?;
    all(host, &calls, "DEL")?;
    equal("entries after DEL", rules_of(&nat(host, "iptables")?, "CNI-HOSTPORT-DNAT").len(), 0)
}
