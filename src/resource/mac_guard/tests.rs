//! On the real kernel, each test in a network namespace of its own, read back with `nft`.

use super::*;
use crate::net::nft::tests::{private_namespace, run};

fn guard(container_id: &str, host_ifname: &str, mac: &str) -> MacGuard {
    let attachment =
        Attachment { network: "testnet".into(), container_id: container_id.into(), ifname: "eth0".into() };
    MacGuard { attachment, host_ifname: host_ifname.into(), mac: mac.parse().unwrap() }
}

fn names(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_table() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = guard("abc", "veth0", "02:00:00:00:00:01");
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    assert_eq!(
        run("nft list ruleset"),
        "table bridge bridgehead {\n\
         \tset guarded {\n\
         \t\ttype ifname . ether_addr\n\
         \t\telements = { \"veth0\" . 02:00:00:00:00:01 comment \"testnet/abc/eth0\" }\n\
         \t}\n\
         \n\
         \tset guarded_ports {\n\
         \t\ttype ifname\n\
         \t\telements = { \"veth0\" comment \"testnet/abc/eth0\" }\n\
         \t}\n\
         \n\
         \tchain guard {\n\
         \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
         \t\tiifname . ether saddr @guarded accept\n\
         \t\tiifname @guarded_ports drop\n\
         \t}\n\
         }\n"
    );
    run("nft list ruleset | nft -c -f -");

    // The link's name is used again before its last owner was removed.
    let next = guard("def", "veth0", "02:00:00:00:00:02");
    assert_eq!(next.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(pod.observe_with(&mut nft).unwrap().len(), 1);
    pod.remove_with(&mut nft).unwrap();
    assert_eq!(names(&next.observe_with(&mut nft).unwrap()), "");
    let listing = run("nft list ruleset");
    assert!(!listing.contains("02:00:00:00:00:01") && listing.contains("02:00:00:00:00:02"), "{listing}");

    for _ in 0..2 {
        next.remove_with(&mut nft).unwrap();
        assert!(!run("nft list ruleset").contains("elements"));
    }
    run("nft flush ruleset");
    next.remove_with(&mut nft).unwrap();
    assert_eq!(
        names(&next.observe_with(&mut nft).unwrap()),
        "rule for set bridge bridgehead guarded in chain bridge bridgehead guard is missing\n\
         rule for set bridge bridgehead guarded_ports in chain bridge bridgehead guard is missing\n\
         element veth0 of set bridge bridgehead guarded is missing\n\
         element veth0 of set bridge bridgehead guarded_ports is missing"
    );
}

#[test]
fn rules_of_the_reference_are_removed() {
    private_namespace();
    let pod = |id: &str, link: &str| {
        format!(
            "chain cni-br-iface-{id}-eth0 {{ jump cni-br-iface-{id}-eth0-mac; }}; \
             chain PREROUTING {{ iifname \"{link}\" jump cni-br-iface-{id}-eth0 comment \"macspoofchk-{id}-eth0\"; }}; "
        )
    };
    run(&format!(
        "nft 'table bridge nat {{ \
           chain cni-br-iface-abc-eth0-mac {{ ether saddr 02:00:00:00:00:01 return; drop; }}; \
           chain cni-br-iface-abcd-eth0-mac {{ drop; }}; \
           chain PREROUTING {{ type filter hook prerouting priority -300; }}; {} {} }}'",
        pod("abc", "veth0"),
        pod("abcd", "veth1"),
    ));
    let mut nft = Nft::open().unwrap();
    let ours = guard("abc", "veth0", "02:00:00:00:00:01");
    for _ in 0..2 {
        ours.remove_with(&mut nft).unwrap();
        let left = run("nft list ruleset");
        assert!(!left.contains("abc-") && left.matches("abcd-eth0").count() == 5, "{left}");
    }
    run("nft 'flush chain bridge nat PREROUTING; delete chain bridge nat cni-br-iface-abcd-eth0'");
    guard("abcd", "veth1", "02:00:00:00:00:01").remove_with(&mut nft).unwrap();
    assert!(!run("nft list ruleset").contains("abcd"));
    // A name that is too long for any chain.
    guard(&"x".repeat(200), "veth1", "02:00:00:00:00:01").remove_with(&mut nft).unwrap();
}

#[test]
fn all_pods_are_made_and_removed_at_once() {
    private_namespace();
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let at_once = |work: &(dyn Fn(&MacGuard, &mut Nft) + Sync)| {
        std::thread::scope(|scope| {
            for number in 0..20 {
                let namespace = &namespace;
                scope.spawn(move || {
                    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    let mac = format!("02:00:00:00:01:{number:02x}");
                    let pod = guard(&format!("pod{number}"), &format!("veth{number}"), &mac);
                    work(&pod, &mut Nft::open().unwrap());
                });
            }
        });
    };
    at_once(&|pod, nft| assert_eq!(pod.ensure_with(nft).unwrap(), Ensured::Created));
    at_once(&|pod, nft| assert_eq!(names(&pod.observe_with(nft).unwrap()), ""));
    at_once(&|pod, nft| pod.remove_with(nft).unwrap());
    assert!(!run("nft list ruleset").contains("elements"));
}

#[test]
fn flushed_rules_are_put_back() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = guard("abc", "veth0", "02:00:00:00:00:01");
    pod.ensure_with(&mut nft).unwrap();
    let whole = run("nft -s list ruleset");
    for loss in [
        "nft flush chain bridge bridgehead guard",
        "nft flush set bridge bridgehead guarded",
        "nft 'flush chain bridge bridgehead guard; add rule bridge bridgehead guard iifname @guarded_ports drop'",
        "nft insert rule bridge bridgehead guard accept",
        "nft flush ruleset",
    ] {
        run(loss);
        assert!(!pod.observe_with(&mut nft).unwrap().is_empty(), "{loss}");
        assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created, "{loss}");
        assert_eq!(run("nft -s list ruleset"), whole, "{loss}");
        assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present, "{loss}");
    }
}
