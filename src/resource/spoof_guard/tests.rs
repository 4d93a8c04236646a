//! On the real kernel, each test in a network namespace of its own, read back with `nft`. What becomes of packets is
//! tested by the conformance suite.

use super::*;
use crate::net::nft::tests::{private_namespace, run};

fn guard(container_id: &str, host_ifname: &str, mac: &str, addresses: &[&str]) -> SpoofGuard {
    let attachment =
        Attachment { network: "testnet".into(), container_id: container_id.into(), ifname: "eth0".into() };
    SpoofGuard {
        attachment,
        host_ifname: host_ifname.into(),
        mac: Some(mac.parse().unwrap()),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn dual() -> SpoofGuard {
    guard("abc", "veth0", "02:00:00:00:00:01", &["10.1.0.5", "fd00:1::5"])
}

fn names(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

const LISTING: &str = "table bridge bridgehead {
	set spoof_ports {
		type ifname
		elements = { \"veth0\" comment \"testnet/abc/eth0\" }
	}

	set spoof_ipv4 {
		type ifname . ether_addr . ipv4_addr
		elements = { \"veth0\" . 02:00:00:00:00:01 . 10.1.0.5 comment \"testnet/abc/eth0\" }
	}

	set spoof_ipv6 {
		type ifname . ether_addr . ipv6_addr
		elements = { \"veth0\" . 02:00:00:00:00:01 . fd00:1::5 comment \"testnet/abc/eth0\" }
	}

	set spoof_targets {
		typeof iifname . ether saddr . @th,64,64 . @th,128,64
		elements = { \"veth0\" . 02:00:00:00:00:01 . 0xfd00000100000000 . 0x5 comment \"testnet/abc/eth0\" }
	}

	chain spoof_entry {
		type filter hook prerouting priority dstnat; policy accept;
		iifname @spoof_ports goto spoof_check
	}

	chain spoof_check {
		iifname . ether saddr . ip saddr @spoof_ipv4 goto spoof_check_ipv4
		iifname . ether saddr . ip6 saddr @spoof_ipv6 goto spoof_check_ipv6
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @spoof_ipv4 iifname . arp saddr ether . arp saddr ip @spoof_ipv4 accept
		counter packets 0 bytes 0 drop
	}

	chain spoof_check_ipv4 {
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		ip saddr 0.0.0.0 meta l4proto igmp accept
		ip saddr 0.0.0.0 counter packets 0 bytes 0 drop
		meta l4proto != udp meta l4proto != icmp accept
		ip frag-off & 8191 != 0 accept
		udp dport != 68 accept
		icmp type != redirect icmp type != router-advertisement accept
		counter packets 0 bytes 0 drop
	}

	chain spoof_check_ipv6 {
		ip6 saddr :: goto spoof_check_unspecified
		meta l4proto != udp meta l4proto != ipv6-icmp accept
		frag frag-off != 0 accept
		udp dport != 546 accept
		icmpv6 type != nd-router-advert icmpv6 type != nd-neighbor-advert icmpv6 type != nd-redirect accept
		icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,64 . @th,128,64 @spoof_targets accept
		counter packets 0 bytes 0 drop
	}

	chain spoof_check_unspecified {
		icmpv6 type nd-neighbor-solicit iifname . ether saddr . @th,64,64 . @th,128,64 @spoof_targets accept
		icmpv6 type 131-133 accept
		icmpv6 type mld2-listener-report accept
		counter packets 0 bytes 0 drop
	}
}
";

#[test]
fn the_table() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let pod = dual();
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Present);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    // Sets are listed in no certain order, so of each only one element is left here.
    for (set, key) in [
        ("spoof_ipv4", "0.0.0.0"),
        ("spoof_ipv6", "::"),
        ("spoof_ipv6", "fe80::ff:fe00:1"),
        ("spoof_targets", "0xfe80000000000000 . 0xfffe000001"),
    ] {
        run(&format!("nft 'delete element bridge bridgehead {set} {{ veth0 . 02:00:00:00:00:01 . {key} }}'"));
    }
    assert_eq!(run("nft list ruleset"), LISTING);
    // nft makes the same of its own listing.
    run("nft list ruleset > /dev/shm/spoof-guard-listing && nft flush ruleset");
    run("nft -f /dev/shm/spoof-guard-listing && rm /dev/shm/spoof-guard-listing");
    assert_eq!(run("nft list ruleset"), LISTING);
    // But not the same rules, which is for ADD to repair.
    let findings = names(&pod.observe_with(&mut nft).unwrap());
    for sentence in [
        "chain bridge bridgehead spoof_check was changed by somebody",
        "element veth0 . 02:00:00:00:00:01 . 0.0.0.0 of set bridge bridgehead spoof_ipv4 is missing",
        "element veth0 . 02:00:00:00:00:01 . :: of set bridge bridgehead spoof_ipv6 is missing",
        "element veth0 . 02:00:00:00:00:01 . fe80::ff:fe00:1 of set bridge bridgehead spoof_ipv6 is missing",
        "element veth0 . 02:00:00:00:00:01 . fe80::ff:fe00:1 of set bridge bridgehead spoof_targets is missing",
    ] {
        assert!(findings.contains(sentence), "{findings}");
    }
    // What is missing is put back, and nothing else is touched.
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    for _ in 0..2 {
        pod.remove_with(&mut nft).unwrap();
        assert!(!run("nft list ruleset").contains("elements"));
    }
}

#[test]
fn a_port_that_is_used_again() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let (pod, next) = (dual(), guard("def", "veth0", "02:00:00:00:00:02", &["10.1.0.5", "10.1.0.6"]));
    pod.ensure_with(&mut nft).unwrap();
    assert_eq!(next.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert!(!run("nft list ruleset").contains("abc"));
    assert_eq!(names(&next.observe_with(&mut nft).unwrap()), "");
    assert!(!pod.observe_with(&mut nft).unwrap().is_empty());
    // Of the same MAC address: the keys are the same, and only the owner is another.
    let same = guard("ghi", "veth0", "02:00:00:00:00:02", &["10.1.0.6"]);
    assert_eq!(same.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(names(&same.observe_with(&mut nft).unwrap()), "");
    let listing = run("nft list ruleset");
    assert!(!listing.contains("def") && !listing.contains("10.1.0.5"), "{listing}");
    // The guards of those who had it before are not there any more, and this one stays.
    next.remove_with(&mut nft).unwrap();
    SpoofGuard::of(&pod.attachment, "veth0".into()).remove_with(&mut nft).unwrap();
    assert_eq!(names(&same.observe_with(&mut nft).unwrap()), "");
    SpoofGuard::of(&same.attachment, "veth0".into()).remove_with(&mut nft).unwrap();
    assert!(!run("nft list ruleset").contains("elements"));
}

#[test]
fn rules_that_somebody_took_away_are_put_back() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let (pod, other) = (dual(), guard("def", "veth1", "02:00:00:00:00:02", &["10.1.0.6"]));
    pod.ensure_with(&mut nft).unwrap();
    let whole = run("nft -s list chain bridge bridgehead spoof_check");
    let chains = rules::parts().map(|part| part.chain.name);
    assert_eq!(chains.len(), 5);
    for chain in chains {
        run(&format!("nft flush chain bridge bridgehead {chain}"));
        assert_eq!(
            names(&pod.observe_with(&mut nft).unwrap()),
            format!("content of chain bridge bridgehead {chain} is missing")
        );
        assert_eq!(other.ensure_with(&mut nft).unwrap(), Ensured::Created, "{chain}");
        assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "", "{chain}");
        assert_eq!(names(&other.observe_with(&mut nft).unwrap()), "", "{chain}");
        other.remove_with(&mut nft).unwrap();
    }
    assert_eq!(run("nft -s list chain bridge bridgehead spoof_check"), whole);
    run("nft insert rule bridge bridgehead spoof_check accept");
    assert_eq!(
        names(&pod.observe_with(&mut nft).unwrap()),
        "chain bridge bridgehead spoof_check was changed by somebody"
    );
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    run("nft flush ruleset");
    assert_eq!(pod.ensure_with(&mut nft).unwrap(), Ensured::Created);
    assert_eq!(names(&pod.observe_with(&mut nft).unwrap()), "");
    run("nft flush ruleset");
    pod.remove_with(&mut nft).unwrap();
    assert_eq!(pod.observe_with(&mut nft).unwrap().len(), 5 + 8);
}

#[test]
fn it_stands_beside_the_guard_of_macs() {
    private_namespace();
    run("nft 'table bridge bridgehead { set guarded { type ifname . ether_addr; }; chain guard { \
         type filter hook prerouting priority dstnat; policy accept; iifname . ether saddr @guarded accept; }; }'");
    let before = run("nft list chain bridge bridgehead guard");
    let mut nft = Nft::open().unwrap();
    dual().ensure_with(&mut nft).unwrap();
    dual().remove_with(&mut nft).unwrap();
    assert_eq!(run("nft list chain bridge bridgehead guard"), before);
}

#[test]
fn owners_are_found_and_removed() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    assert_eq!(owned::owners(&mut nft, &SETS, "testnet").unwrap(), []);
    dual().ensure_with(&mut nft).unwrap();
    guard("def", "veth1", "02:00:00:00:00:02", &["10.1.0.6"]).ensure_with(&mut nft).unwrap();
    let found = owned::owners(&mut nft, &SETS, "testnet").unwrap();
    assert_eq!(found.iter().map(Owner::as_str).collect::<Vec<_>>(), ["testnet/abc/eth0", "testnet/def/eth0"]);
    assert_eq!(owned::owners(&mut nft, &SETS, "test").unwrap(), []);
    owned::remove_all_of(&mut nft, &SETS, &found[0]).unwrap();
    let listing = run("nft list ruleset");
    assert!(!listing.contains("abc") && listing.contains("def"), "{listing}");
}

#[test]
fn all_pods_are_made_and_removed_at_once() {
    private_namespace();
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let at_once = |work: &(dyn Fn(&SpoofGuard, &mut Nft) + Sync)| {
        std::thread::scope(|scope| {
            for number in 0..20 {
                let namespace = &namespace;
                scope.spawn(move || {
                    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    let (mac, address) = (format!("02:00:00:00:01:{number:02x}"), format!("10.1.0.{number}"));
                    let pod = guard(&format!("pod{number}"), &format!("veth{number}"), &mac, &[&address]);
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
fn link_local_addresses_are_those_of_the_kernel() {
    assert_eq!(link_local(Mac([0x0a, 0x58, 10, 1, 0, 5])).to_string(), "fe80::858:aff:fe01:5");
    assert_eq!(link_local(Mac([0x02, 0, 0, 0, 0, 1])).to_string(), "fe80::ff:fe00:1");
}

#[test]
fn a_kernel_without_the_feature_is_told_from_other_refusals() {
    let says = |deed: &str, errno| is_unsupported(&net::Error::new(deed, errno));
    assert!(says("open a netlink socket", Errno::EPROTONOSUPPORT));
    assert!(says("look for chain bridge bridgehead spoof_entry", Errno::EINVAL));
    assert!(says("add table bridge bridgehead, add set x", Errno::EOPNOTSUPP));
    assert!(says("add chain bridge bridgehead spoof_entry", Errno::ENOENT));
    assert!(!says("delete element 0x00 of set bridge bridgehead spoof_ipv4", Errno::ENOENT));
    assert!(!says("add element 0x00 to set bridge bridgehead spoof_ipv4", Errno::ENOMEM));
}
