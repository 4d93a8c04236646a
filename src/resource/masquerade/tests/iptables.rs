//! The tables of iptables, of either variant.

use super::*;
use crate::resource::masquerade::iptables;

#[test]
fn iptables_rules() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = masquerade(Backend::Iptables, "abc123", &BOTH);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    let policies = "-P PREROUTING ACCEPT\n-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P POSTROUTING ACCEPT\n";
    let comment = r#"-m comment --comment "name: \"testnet\" id: \"abc123\"""#;
    let expected = |source: &str, subnet: &str, multicast: &str| {
        format!(
            "{policies}-N CNI-ac401170a6a418c7c78d298f\n\
             -A POSTROUTING -s {source} {comment} -j CNI-ac401170a6a418c7c78d298f\n\
             -A CNI-ac401170a6a418c7c78d298f -d {subnet} {comment} -j ACCEPT\n\
             -A CNI-ac401170a6a418c7c78d298f ! -d {multicast} {comment} -j MASQUERADE\n"
        )
    };
    let whole = expected("10.1.0.5/32", "10.1.0.0/16", "224.0.0.0/4")
        + &expected("fd00:1::5/128", "fd00:1::/64", "ff00::/8");
    assert_eq!(run(LISTINGS), whole);

    // A lost rule is noticed, and made again in its place.
    run("iptables-nft -t nat -D CNI-ac401170a6a418c7c78d298f 1");
    assert_eq!(
        names(&pod.observe_with(&mut nft).unwrap()),
        format!(
            "iptables rule -A CNI-ac401170a6a418c7c78d298f -d 10.1.0.0/16 {comment} -j ACCEPT in table nat is missing"
        )
    );
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(run(LISTINGS), whole);

    for _ in 0..2 {
        pod.remove_with(&mut nft).unwrap();
        assert_eq!(run(LISTINGS), policies.repeat(2));
    }
    run("nft flush ruleset");
    pod.remove_with(&mut nft).unwrap();
    assert_eq!(pod.observe_with(&mut nft).unwrap().len(), 6);
    pod.ensure_with(&mut nft).unwrap();
    assert_eq!(run(LISTINGS), whole);
    // Half of it is gone.
    run("iptables-nft -t nat -F POSTROUTING; ip6tables-nft -t nat -F CNI-ac401170a6a418c7c78d298f");
    masquerade(Backend::Iptables, "abc123", &[]).remove_with(&mut nft).unwrap();
    assert_eq!(run(LISTINGS), policies.repeat(2));
}

#[test]
fn iptables_a_policy_and_rules_of_others_stay() {
    private_namespace();
    run(
        "nft 'table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; policy drop; }; }' && \
         iptables-nft -t nat -A POSTROUTING -s 1.2.3.4 -j ACCEPT",
    );
    let before = run("iptables-nft -t nat -S");
    let mut nft = Nft::open().unwrap();
    let pod = masquerade(Backend::Iptables, "abc123", &["10.1.0.5/16"]);
    pod.ensure_with(&mut nft).unwrap();
    assert!(run("iptables-nft -t nat -S").contains("-P POSTROUTING DROP\n"));
    pod.remove_with(&mut nft).unwrap();
    assert_eq!(run("iptables-nft -t nat -S"), before);
}

#[test]
fn iptables_two_interfaces_of_a_container_share_the_chain() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let first = masquerade(Backend::Iptables, "abc123", &["10.1.0.5/16"]);
    let mut second = masquerade(Backend::Iptables, "abc123", &["10.2.0.5/16"]);
    second.attachment.ifname = "eth1".into();
    first.ensure_with(&mut nft).unwrap();
    assert_eq!(second.ensure_with(&mut nft).unwrap(), Ensured::Created);
    let chain = run("iptables-nft -t nat -S CNI-ac401170a6a418c7c78d298f");
    let targets: Vec<&str> = chain.lines().skip(1).filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(targets, ["ACCEPT", "ACCEPT", "MASQUERADE"]);
    first.remove_with(&mut nft).unwrap();
    assert_eq!(names(&second.observe_with(&mut nft).unwrap()), "");
    assert_eq!(run("iptables-nft -t nat -S POSTROUTING").lines().count(), 2);
    second.remove_with(&mut nft).unwrap();
    assert!(!run("iptables-nft -t nat -S").contains("CNI-"));
}

/// POSTROUTING is not read where the handles tell which rules lead to a chain. So whatever is otherwise must be found
/// out, or a rule of somebody else's would be taken for ours.
#[test]
fn iptables_rules_are_found_however_they_were_made() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = masquerade(Backend::Iptables, "abc123", &["10.1.0.5/16", "10.1.0.6/16", "10.2.0.5/16"]);
    const CHAIN: &str = "CNI-ac401170a6a418c7c78d298f";
    let changes = [
        "true",
        // All handles are new, and the rules' order by handle is not that of the transaction.
        r#"saved=$(iptables-nft-save -t nat) && echo "$saved" | iptables-nft-restore"#,
        // The chain is older than its rules; others' rules have the handles.
        &format!("iptables-nft -t nat -F {CHAIN}; iptables-nft -t nat -A POSTROUTING -s 1.2.3.4 -j ACCEPT"),
        &format!("iptables-nft -t nat -D {CHAIN} 1"),
        &format!("iptables-nft -t nat -I POSTROUTING 2 -s 10.9.0.5 -j {CHAIN}"),
        "iptables-nft -t nat -D POSTROUTING 1",
        "iptables-nft -t nat -F POSTROUTING",
    ];
    for change in changes {
        pod.ensure_with(&mut nft).unwrap();
        assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "", "{change}");
        run(change);
        let complete = pod.observe_with(&mut nft).unwrap().is_empty();
        let expected = if complete { Ensured::Present } else { Ensured::Created };
        assert_eq!(pod.ensure_with(&mut nft).unwrap(), expected, "{change}");
        assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "", "{change}");
        let listing = run("iptables-nft -t nat -S");
        let foreign = listing.lines().filter(|line| line.contains("10.9.0.5")).count();
        assert_eq!(listing.matches(&format!("-j {CHAIN}")).count(), 3 + foreign, "{change}: {listing}");
        pod.remove_with(&mut nft).unwrap();
        let left = run("iptables-nft -t nat -S");
        assert_eq!(left.contains("CNI-"), foreign > 0, "{change}: {left}");
        masquerade(Backend::Iptables, "abc123", &[]).remove_with(&mut nft).unwrap();
        let left = run("iptables-nft -t nat -S");
        assert!(!left.contains("CNI-"), "{change}: {left}");
    }
}

#[test]
fn iptables_legacy_rules() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = masquerade(Backend::Iptables, "abc123", &BOTH);
    pod.ensure_with(&mut nft).unwrap();
    let native = run(LISTINGS);
    let rules: Vec<_> = Protocol::ALL
        .into_iter()
        .map(|protocol| iptables::Rules::new(protocol, &pod.attachment, &pod.sources).unwrap())
        .collect();
    for wanted in [Ensured::Created, Ensured::Present] {
        for rules in &rules {
            assert_eq!(iptables::ensure_legacy(rules).unwrap(), wanted);
        }
        assert_eq!(run(LEGACY_LISTINGS), native);
    }
    run("iptables-legacy -t nat -D CNI-ac401170a6a418c7c78d298f 1; ip6tables-legacy -t nat -F POSTROUTING");
    for rules in &rules {
        assert_eq!(iptables::ensure_legacy(rules).unwrap(), Ensured::Created);
    }
    assert_eq!(run(LEGACY_LISTINGS), native);
    run("iptables-legacy -t nat -A POSTROUTING -s 1.2.3.4 -j ACCEPT");
    let others = run("iptables-legacy -t nat -S POSTROUTING | tail -n 1");
    // Removed from both variants, whichever the command is by now.
    for _ in 0..2 {
        pod.remove_with(&mut nft).unwrap();
        assert!(!run(LISTINGS).contains("CNI-"));
        let left = run(LEGACY_LISTINGS);
        assert!(!left.contains("CNI-") && left.contains(&others), "{left}");
    }
}

#[test]
fn foreign_rules_are_removed() {
    private_namespace();
    let pod = attachment("one", "eth0");
    let comment = |ifname: &str| {
        format!("{}-{}, net: testnet, if: {ifname}, id: one", h(&["testnet"]), h(&[ifname, ":one"]))
    };
    fn h(parts: &[&str]) -> String {
        crate::spec::digest::sha512_hex(parts, 16)
    }
    run(&format!(
        "nft 'table inet cni_plugins_masquerade {{ chain masq_checks {{ \
           ip saddr 10.1.0.5 ip daddr != 10.1.0.0/16 masquerade comment \"{}\"; \
           ip saddr 10.1.0.6 ip daddr != 10.1.0.0/16 masquerade comment \"{}\"; \
         }}; }}'",
        comment("eth0"),
        comment("eth1"),
    ));
    let mut nft = Nft::open().unwrap();
    let shared = masquerade(Backend::Iptables, "one", &BOTH);
    shared.ensure_with(&mut nft).unwrap();
    for protocol in Protocol::ALL {
        let rules = iptables::Rules::new(protocol, &pod, &shared.sources).unwrap();
        iptables::ensure_legacy(&rules).unwrap();
    }
    for _ in 0..2 {
        foreign::remove(&mut nft, &pod).unwrap();
        let left = run("nft list table inet cni_plugins_masquerade");
        assert!(!left.contains("10.1.0.5") && left.contains("10.1.0.6"), "{left}");
        assert!(!run(&format!("{LISTINGS}; {LEGACY_LISTINGS}")).contains("CNI-"));
    }
}

/// Against the reference plugins themselves, where the system has them.
#[test]
fn iptables_rules_of_the_reference() {
    const PLUGINS: &str = "/usr/lib/cni";
    if !std::fs::exists(format!("{PLUGINS}/bridge")).unwrap() {
        eprintln!("skipped: no reference plugins in {PLUGINS}");
        return;
    }
    private_namespace();
    let call = |command: &str| {
        run(&format!(
            r#"unshare -m sh -e -c '
                mount -t tmpfs none /run; mount -t tmpfs none /var/lib
                ip netns add pod
                export CNI_COMMAND={command} CNI_CONTAINERID=abc123 CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0
                export CNI_PATH={PLUGINS}
                echo "{{ \"cniVersion\": \"1.0.0\", \"name\": \"testnet\", \"type\": \"bridge\", \"bridge\": \"br0\",
                  \"ipMasq\": true, \"ipam\": {{ \"type\": \"host-local\", \"ranges\":
                    [[{{ \"subnet\": \"10.1.0.0/16\" }}], [{{ \"subnet\": \"fd00:1::/64\" }}]] }} }}" |
                {PLUGINS}/bridge'"#
        ))
    };
    call("ADD");
    let theirs = run(LISTINGS);
    let pod = masquerade(Backend::Iptables, "abc123", &["10.1.0.2/16", "fd00:1::2/64"]);
    let mut nft = Nft::open().unwrap();
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present);
    pod.remove_with(&mut nft).unwrap();
    assert!(!run(LISTINGS).contains("CNI-"));
    pod.ensure_with(&mut nft).unwrap();
    assert_eq!(run(LISTINGS), theirs);
}
