//! On the real kernel, each test in a network namespace of its own, read back with `nft` and `iptables`.

use super::*;
use crate::net::nft::tests::{private_namespace, run};

fn attachment(container_id: &str, ifname: &str) -> Attachment {
    Attachment { network: "testnet".into(), container_id: container_id.into(), ifname: ifname.into() }
}

fn masquerade(backend: Backend, container_id: &str, sources: &[&str]) -> Masquerade {
    let sources = sources.iter().map(|text| text.parse().unwrap()).collect();
    Masquerade { attachment: attachment(container_id, "eth0"), backend, sources }
}

fn names(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

const BOTH: [&str; 2] = ["10.1.0.5/16", "fd00:1::5/64"];

#[test]
fn a_subnet_without_pods_can_go() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let networks: Vec<Prefix> = ["10.1.0.0/16", "fd00:1::/64"].map(|it| it.parse().unwrap()).into();
    nftables::remove_empty(&mut nft, &networks).unwrap();
    let (pod, other) =
        (masquerade(Backend::Nftables, "abc", &BOTH), masquerade(Backend::Nftables, "def", &["10.1.0.6/16"]));
    pod.ensure_with(&mut nft).unwrap();
    other.ensure_with(&mut nft).unwrap();
    pod.remove_with(&mut nft).unwrap();
    nftables::remove_empty(&mut nft, &networks).unwrap();
    // Somebody is in one of them.
    assert_eq!(names(&other.observe_with(&mut nft).unwrap()), "");
    assert!(!run("nft list ruleset").contains("fd00"));
    other.remove_with(&mut nft).unwrap();
    nftables::remove_empty(&mut nft, &networks).unwrap();
    let left = run("nft list ruleset");
    assert!(!left.contains("set ") && !left.contains("masquerade"), "{left}");
    pod.ensure_with(&mut nft).unwrap();
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
}

#[test]
fn nftables_table() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = masquerade(Backend::Nftables, "abc", &BOTH);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    assert_eq!(
        run("nft list ruleset"),
        "table inet bridgehead {\n\
         \tset pods_10.1.0.0/16 {\n\
         \t\ttype ipv4_addr\n\
         \t\telements = { 10.1.0.5 comment \"testnet/abc/eth0\" }\n\
         \t}\n\
         \n\
         \tset pods_fd00-1--/64 {\n\
         \t\ttype ipv6_addr\n\
         \t\telements = { fd00:1::5 comment \"testnet/abc/eth0\" }\n\
         \t}\n\
         \n\
         \tchain postrouting {\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr @pods_10.1.0.0/16 ip daddr != 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade\n\
         \t\tip6 saddr @pods_fd00-1--/64 ip6 daddr != fd00:1::/64 ip6 daddr != ff00::/8 masquerade\n\
         \t}\n\
         }\n"
    );
    run("nft list ruleset | nft -c -f -");

    for _ in 0..2 {
        pod.remove_with(&mut nft).unwrap();
        assert!(!run("nft list ruleset").contains("elements"));
    }
    run("nft flush ruleset");
    pod.remove_with(&mut nft).unwrap();
    masquerade(Backend::Nftables, "abc", &[]).remove_with(&mut nft).unwrap();
    assert_eq!(pod.observe_with(&mut nft).unwrap().len(), 5);
    pod.ensure_with(&mut nft).unwrap();
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
}

/// Every subnet of pods must have a name that `nft` reads, and a rule that says what it should.
#[test]
fn nftables_subnets_of_all_lengths() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let mut rule = |source: &str| {
        masquerade(Backend::Nftables, "abc", &[source]).ensure_with(&mut nft).unwrap();
        run("nft list ruleset | nft -c -f -");
        let listing = run("nft list chain inet bridgehead postrouting");
        let rules: Vec<&str> = listing.lines().filter(|line| line.contains("saddr")).collect();
        rules.last().unwrap().trim().to_owned()
    };
    for (source, wanted) in [
        ("10.1.2.3/32", "ip saddr @pods_10.1.2.3/32 ip daddr != 10.1.2.3"),
        ("10.1.2.3/31", "ip saddr @pods_10.1.2.2/31 ip daddr != 10.1.2.2/31"),
        ("10.1.2.3/25", "ip saddr @pods_10.1.2.0/25 ip daddr != 10.1.2.0/25"),
        ("10.1.2.3/8", "ip saddr @pods_10.0.0.0/8 ip daddr != 10.0.0.0/8"),
        // Nothing is outside of it.
        ("10.1.2.3/0", "ip saddr @pods_0.0.0.0/0 ip daddr != 0.0.0.0/0"),
    ] {
        assert_eq!(rule(source), format!("{wanted} ip daddr != 224.0.0.0/4 masquerade"));
    }
    for (source, wanted) in [
        ("::1/64", "ip6 saddr @pods_--/64 ip6 daddr != ::/64"),
        ("fd00:1:2:3:4:5:6:7/128", "ip6 saddr @pods_fd00-1-2-3-4-5-6-7/128 ip6 daddr != fd00:1:2:3:4:5:6:7"),
        ("fd00:1:2:3:4:5:6:7/61", "ip6 saddr @pods_fd00-1-2--/61 ip6 daddr != fd00:1:2::/61"),
    ] {
        assert_eq!(rule(source), format!("{wanted} ip6 daddr != ff00::/8 masquerade"));
    }
    let owner = Owner::new(&attachment("abc", "eth0"));
    assert_eq!(nftables::owners(&mut nft, "testnet").unwrap(), std::slice::from_ref(&owner));
    nftables::remove_all_of(&mut nft, &owner).unwrap();
    assert!(!run("nft list ruleset").contains("elements"));
}

#[test]
fn nftables_notices_what_was_changed() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    // Two addresses of one subnet, which has one set and one rule all the same.
    let pod = masquerade(Backend::Nftables, "abc", &["10.1.0.5/16", "fd00:1::5/64", "10.1.0.6/16"]);
    pod.ensure_with(&mut nft).unwrap();
    run("nft delete element inet bridgehead pods_fd00-1--/64 '{ fd00:1::5 }'");
    assert_eq!(
        names(&pod.observe_with(&mut nft).unwrap()),
        "element fd00:1::5 of set inet bridgehead pods_fd00-1--/64 is missing"
    );
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    run("nft flush chain inet bridgehead postrouting");
    assert_eq!(
        names(&pod.observe_with(&mut nft).unwrap()),
        "rule for set inet bridgehead pods_10.1.0.0/16 in chain inet bridgehead postrouting is missing\n\
         rule for set inet bridgehead pods_fd00-1--/64 in chain inet bridgehead postrouting is missing"
    );
    // A rule with the right set that says something else.
    run("nft add rule inet bridgehead postrouting ip saddr @pods_10.1.0.0/16 masquerade");
    assert_eq!(pod.observe_with(&mut nft).unwrap().len(), 2);
    // Sets of others are none of ours.
    run(
        "nft 'add set inet bridgehead pods_x { type ipv4_addr; elements = { 1.2.3.4 comment \"testnet/abc/eth0\" }; }'",
    );
    masquerade(Backend::Nftables, "abc", &[]).remove_with(&mut nft).unwrap();
    let left = run("nft list ruleset");
    assert!(left.matches("elements").count() == 1 && left.contains("1.2.3.4"), "{left}");
}

#[test]
fn nftables_puts_rules_back_that_somebody_flushed() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let one = masquerade(Backend::Nftables, "one", &BOTH);
    one.ensure_with(&mut nft).unwrap();
    let whole = run("nft -s list ruleset");
    for loss in [
        "nft flush chain inet bridgehead postrouting",
        "nft delete chain inet bridgehead postrouting",
        "nft flush set inet bridgehead pods_10.1.0.0/16",
        "nft flush ruleset",
    ] {
        run(loss);
        assert_eq!(one.ensure_with(&mut nft).unwrap(), Ensured::Created, "{loss}");
        assert_eq!(run("nft -s list ruleset"), whole, "{loss}");
        assert_eq!(one.ensure_with(&mut nft).unwrap(), Ensured::Present, "{loss}");
    }
    // The next pod's ADD notices, too.
    run("nft flush chain inet bridgehead postrouting");
    masquerade(Backend::Nftables, "two", &["10.1.0.6/16", "fd00:1::6/64"]).ensure_with(&mut nft).unwrap();
    assert_eq!(names(&one.observe_with(&mut nft).unwrap()), "");
}

#[test]
fn nftables_flushed_rules_come_back_once_however_many_put_them_back() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    masquerade(Backend::Nftables, "one", &BOTH).ensure_with(&mut nft).unwrap();
    for round in 0..20 {
        run("nft flush chain inet bridgehead postrouting");
        at_once(|number, nft| {
            let sources = [format!("10.1.{round}.{number}/16"), format!("fd00:1::{round}:{number}/64")];
            let pod = masquerade(Backend::Nftables, &format!("pod{number}"), &[&sources[0], &sources[1]]);
            pod.ensure_with(nft).unwrap();
        });
        assert_eq!(run("nft list ruleset").matches("masquerade").count(), 2);
    }
}

#[test]
fn nftables_an_address_has_the_owner_who_was_last_given_it() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let old = masquerade(Backend::Nftables, "old", &["10.1.0.5/16"]);
    let new = masquerade(Backend::Nftables, "new", &["10.1.0.5/16"]);
    old.ensure_with(&mut nft).unwrap();
    assert_eq!(new.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(
        names(&old.observe_with(&mut nft).unwrap()),
        "element 10.1.0.5 of set inet bridgehead pods_10.1.0.0/16 should be testnet/old/eth0 and is \
         testnet/new/eth0"
    );
    // A late DEL of the old pod leaves the new one alone, whether it knows its addresses or not.
    old.remove_with(&mut nft).unwrap();
    masquerade(Backend::Nftables, "old", &[]).remove_with(&mut nft).unwrap();
    assert_eq!(names(&new.observe_with(&mut nft).unwrap()), "");
    // What nobody owns is the address's.
    run("nft flush set inet bridgehead pods_10.1.0.0/16; \
         nft add element inet bridgehead pods_10.1.0.0/16 '{ 10.1.0.5 }'");
    new.remove_with(&mut nft).unwrap();
    assert!(!run("nft list ruleset").contains("elements"));
}

#[test]
fn nftables_owners_are_listed_and_removed_without_addresses() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    assert_eq!(nftables::owners(&mut nft, "testnet").unwrap(), []);
    masquerade(Backend::Nftables, "one", &BOTH).ensure_with(&mut nft).unwrap();
    masquerade(Backend::Nftables, "two", &["10.1.0.6/16"]).ensure_with(&mut nft).unwrap();
    let mut other = masquerade(Backend::Nftables, "one", &["10.2.0.6/16"]);
    other.attachment.network = "test".into();
    other.ensure_with(&mut nft).unwrap();
    let owners = nftables::owners(&mut nft, "testnet").unwrap();
    assert_eq!(owners, [Owner::new(&attachment("one", "eth0")), Owner::new(&attachment("two", "eth0"))]);
    nftables::remove_all_of(&mut nft, &owners[0]).unwrap();
    assert_eq!(nftables::owners(&mut nft, "testnet").unwrap(), [owners[1].clone()]);
    assert_eq!(nftables::owners(&mut nft, "test").unwrap().len(), 1);
}

/// Runs twenty pods' calls at once, each on its own connection, in the namespace of this thread.
fn at_once(work: impl Fn(usize, &mut Nft) + Sync) {
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (namespace, work) = (&namespace, &work);
            scope.spawn(move || {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                work(number, &mut Nft::open().unwrap());
            });
        }
    });
}

#[test]
fn twenty_at_once() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        private_namespace();
        let pod = |number: usize| {
            let sources = [format!("10.1.0.{number}/16"), format!("fd00:1::{number}/64")];
            masquerade(backend, &format!("pod{number}"), &[&sources[0], &sources[1]])
        };
        for _ in 0..3 {
            at_once(|number, nft| assert_eq!(pod(number).ensure_with(nft).unwrap(), Ensured::Created));
            at_once(|number, nft| assert_eq!(names(&pod(number).observe_with(nft).unwrap()), ""));
            if backend == Backend::Nftables {
                assert_eq!(run("nft list ruleset").matches("masquerade").count(), 2);
            }
            at_once(|number, nft| pod(number).remove_with(nft).unwrap());
            let left = run("nft list ruleset");
            assert!(!left.contains("testnet") && !left.contains("CNI-"), "{left}");
        }
    }
}

const LISTINGS: &str = "iptables-nft -t nat -S; ip6tables-nft -t nat -S";
const LEGACY_LISTINGS: &str = "iptables-legacy -t nat -S; ip6tables-legacy -t nat -S";

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

#[test]
fn a_back_end_is_chosen_without_executing_anything() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let expected = if installed(Protocol::Ipv4).is_some() { Backend::Iptables } else { Backend::Nftables };
    assert_eq!(Backend::detect(&mut nft).unwrap(), expected);
    let json = serde_json::to_string(&[Backend::Iptables, Backend::Nftables]).unwrap();
    assert_eq!(json, r#"["iptables","nftables"]"#);
}

/// Not a test: how long it takes. `cargo test --release -- --ignored --nocapture timing`
#[test]
#[ignore = "a measurement"]
fn timing() {
    use std::time::Instant;
    for others in [10, 500, 2000] {
        for backend in [Backend::Nftables, Backend::Iptables] {
            private_namespace();
            let mut nft = Nft::open().unwrap();
            for number in 0..others {
                let source = format!("10.1.{}.{}/16", number / 250 + 1, number % 250 + 1);
                masquerade(backend, &format!("other{number}"), &[&source]).ensure_with(&mut nft).unwrap();
            }
            let pod = masquerade(backend, "pod", &["10.1.0.5/16"]);
            let start = Instant::now();
            let entries = nft.rules(Protocol::Ipv4.nat().chain("POSTROUTING")).unwrap();
            let read = start.elapsed();
            let leading = entries.iter().filter(|rule| rule.leads_to("CNI-other")).count();
            let all = start.elapsed();
            eprintln!("{} rules, {leading} found: read in {read:?}, and searched in {all:?}", entries.len());
            // In a row, and at rest: an ADD right after a DEL may find the kernel still busy with that.
            for pause in [0, 40] {
                let mut times: [Vec<u128>; 4] = Default::default();
                for _ in 0..100 {
                    std::thread::sleep(std::time::Duration::from_millis(pause));
                    let mut start = Instant::now();
                    let mut lap = |index: usize| {
                        times[index].push(start.elapsed().as_micros());
                        start = Instant::now();
                    };
                    let mut nft = Nft::open().unwrap();
                    pod.ensure_with(&mut nft).unwrap();
                    lap(0);
                    drop(nft);
                    lap(1);
                    let mut nft = Nft::open().unwrap();
                    pod.remove_with(&mut nft).unwrap();
                    lap(2);
                    drop(nft);
                    lap(3);
                    // The children that closed the connections; a program that ends leaves them to init.
                    while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                        .is_ok_and(|status| status.pid().is_some())
                    {}
                }
                let [ensure, close, remove, close_again] = times.map(|mut t| {
                    t.sort_unstable();
                    t[t.len() / 2]
                });
                eprintln!(
                    "{backend:?}, {others} others, pause {pause} ms: ensure {ensure} µs, close {close}; \
                     remove {remove}, close {close_again}"
                );
            }
        }
    }
}
