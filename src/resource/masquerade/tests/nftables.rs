//! Our own table.

use super::*;
use crate::resource::masquerade::nftables;

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
