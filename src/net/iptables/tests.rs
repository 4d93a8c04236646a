//! Against the commands themselves, each test in a network namespace of its own.

use std::net::SocketAddr;

use super::native::Edition;
use super::rule::COMMENT_MAX;
use super::*;
use crate::net::nft::tests::{private_namespace, run};
use crate::net::nft::{self, Base, Chain, Hook, Kind, Nft, Transaction};

const COMMENT: &str = r#"name: "net" id: "abc123""#;

fn rule(source: Option<AddressMatch>, destination: Option<AddressMatch>, target: Target) -> Rule {
    Rule { source, destination, comment: Some(COMMENT.to_owned()), ..Rule::to(target) }
}

/// Rules of every shape, all prefix lengths among them.
fn shapes(protocol: Protocol) -> Vec<Rule> {
    let (address, multicast, longest) = match protocol {
        Protocol::Ipv4 => ("10.201.77.5", "224.0.0.0/4", 32),
        Protocol::Ipv6 => ("fd00:1:aff1:c0de:8765:4321:eeff:5", "ff00::/8", 128),
    };
    let mut rules: Vec<Rule> = (0..=longest)
        .map(|len| {
            let network = format!("{address}/{len}").parse().unwrap();
            rule(None, Some(AddressMatch::within(network)), Target::Accept)
        })
        .collect();
    let multicast = AddressMatch::outside(multicast.parse().unwrap());
    let host = AddressMatch::within(address.parse().unwrap());
    rules.push(rule(None, Some(multicast), Target::Masquerade));
    rules.push(rule(Some(host), None, Target::Chain("CNI-other".into())));
    rules.push(rule(Some(host), Some(multicast), Target::Chain("CNI-other".into())));
    rules.push(Rule { comment: Some("x".repeat(COMMENT_MAX)), ..rule(None, None, Target::Masquerade) });
    let comment = Some(r#"back\slash "quote" 'single'"#.into());
    rules.push(Rule { comment, ..rule(None, None, Target::Accept) });
    let to = SocketAddr::new(address.parse().unwrap(), 80);
    for transport in Transport::ALL {
        let one = Rule { matches: vec![Match::Port(8080)], ..Rule::to(Target::Dnat(to)) };
        let destination = Some(host);
        rules.push(Rule { destination, transport: Some(transport), ..one.clone() });
        rules.push(Rule { transport: Some(transport), ..one });
        let target = Target::Chain("CNI-other".into());
        for ports in [vec![1], (1..=15).map(|i| i * 4000).collect()] {
            let matches = vec![Match::Ports(ports)];
            rules.push(Rule { transport: Some(transport), matches, ..rule(None, None, target.clone()) });
        }
    }
    for bits in [1, 0x2000, 1 << 31] {
        rules.push(Rule { matches: vec![Match::Mark(bits)], ..Rule::to(Target::Masquerade) });
        rules.push(rule(None, None, Target::Mark(bits)));
    }
    let matches = vec![Match::LocalDestination];
    rules.push(Rule { matches, ..Rule::to(Target::Chain("CNI-other".into())) });
    rules
}

fn write_natively(protocol: Protocol, edition: Edition, rules: &[Rule]) -> Nft {
    let mut nft = Nft::open().unwrap();
    let mut transaction = Transaction::new();
    let table = protocol.nat();
    transaction.add_table(table);
    transaction.add_base_chain(table.chain("POSTROUTING"), POSTROUTING);
    transaction.add_chain(table.chain("CNI-x"));
    transaction.add_chain(table.chain("CNI-other"));
    for rule in rules {
        let number = rule.transport.map(Transport::number);
        transaction.add_rule_of(table.chain("CNI-x"), rule.expressions_of(edition, protocol), number);
    }
    nft.commit(transaction).unwrap();
    nft
}

const POSTROUTING: Base = Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 };

fn rules_of(nft: &mut Nft, chain: Chain) -> Vec<nft::Rule> {
    nft.rules(chain).unwrap()
}

#[test]
fn native_rules_are_those_of_the_command_byte_for_byte() {
    for protocol in Protocol::ALL {
        let command = protocol.command();
        let rules = shapes(protocol);

        private_namespace();
        let mut script = "*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-x - [0:0]\n:CNI-other - [0:0]\n".to_owned();
        for rule in &rules {
            script.push_str(&format!("-A CNI-x {rule}\n"));
        }
        run(&format!("{command}-nft-restore --noflush <<'END'\n{script}COMMIT\nEND"));
        let chain = protocol.nat().chain("CNI-x");
        let theirs = rules_of(&mut Nft::open().unwrap(), chain);
        let their_listing = run(&format!("{command}-nft -t nat -S"));
        let their_save = run(&format!("{command}-nft-save -t nat | grep -v '^#'"));

        private_namespace();
        let mut nft = write_natively(protocol, Edition::Early, &rules);
        let ours = rules_of(&mut nft, chain);
        assert_eq!(run(&format!("{command}-nft -t nat -S")), their_listing);
        assert_eq!(run(&format!("{command}-nft-save -t nat | grep -v '^#'")), their_save);
        assert_eq!(ours.len(), rules.len());
        for ((ours, theirs), rule) in ours.iter().zip(&theirs).zip(&rules) {
            assert!(ours.expressions().eq(theirs.expressions()), "{rule}:\n{ours:?}\n{theirs:?}");
            assert!(rule.is(theirs, protocol), "{rule}");
        }
        expect_recognised(protocol, &ours, &rules);
        // The text is what the command prints.
        for (rule, line) in rules.iter().zip(their_listing.lines().filter(|l| l.starts_with("-A CNI-x"))) {
            // It prints no quotes around a comment that does not need them.
            if rule.comment.as_ref().is_none_or(|comment| comment.contains(' ')) {
                let mask = if rule.destination.is_some_and(|d| d.network.prefix() == 0) { "" } else { line };
                assert!(mask.is_empty() || *line == format!("-A CNI-x {rule}"), "{line}\n{rule}");
            }
        }
    }
}

/// No rule is taken for another.
fn expect_recognised(protocol: Protocol, found: &[nft::Rule], rules: &[Rule]) {
    assert_eq!(found.len(), rules.len());
    for (i, found) in found.iter().enumerate() {
        for (j, rule) in rules.iter().enumerate() {
            assert_eq!(rule.is(found, protocol), i == j, "{rule}");
        }
    }
}

/// The command of this machine may be of either edition, and understands both.
#[test]
fn rules_of_all_editions_mean_the_same() {
    for protocol in Protocol::ALL {
        let rules = shapes(protocol);
        let listings = [Edition::Early, Edition::Late].map(|edition| {
            private_namespace();
            let mut nft = write_natively(protocol, edition, &rules);
            expect_recognised(protocol, &rules_of(&mut nft, protocol.nat().chain("CNI-x")), &rules);
            run(&format!("{}-nft -t nat -S", protocol.command()))
        });
        assert_eq!(listings[0], listings[1]);
    }
}

#[test]
fn the_command_checks_and_deletes_native_rules() {
    for protocol in Protocol::ALL {
        private_namespace();
        let command = protocol.command();
        let rules = shapes(protocol);
        write_natively(protocol, Edition::Early, &rules);
        // The shell does not take away the backslash before a single quote.
        for rule in rules.iter().filter(|rule| !rule.comment.as_ref().is_some_and(|it| it.contains('\''))) {
            run(&format!("{command}-nft -t nat -C CNI-x {rule}"));
            run(&format!("{command}-nft -t nat -D CNI-x {rule}"));
        }
        assert_eq!(run(&format!("{command}-nft -t nat -S CNI-x")).lines().count(), 2);
    }
}

#[test]
fn legacy_changes_are_made_together_or_not_at_all() {
    use commands::Change;
    for protocol in Protocol::ALL {
        private_namespace();
        assert!(!legacy::has_nat(protocol));
        let legacy = Commands::find(protocol, Variant::Legacy).unwrap();
        let rules = shapes(protocol);
        let mut changes = vec![Change::EmptyChain("CNI-other".into()), Change::EmptyChain("CNI-x".into())];
        changes.extend(rules.iter().map(|rule| Change::Append("CNI-x".into(), rule.clone())));
        legacy.change_nat(&changes).unwrap();
        assert!(legacy::has_nat(protocol));
        let listed = legacy.nat_rules("CNI-x").unwrap().unwrap();
        let rules_listed = listed.iter().filter(|line| line.starts_with("-A ")).count();
        assert_eq!(rules_listed, rules.len());
        assert_eq!(legacy.nat_rules("CNI-none").unwrap(), None);
        for (chain, there) in [("CNI-x", true), ("CNI-other", true), ("CNI-", false), ("CNI-othe", false)] {
            assert_eq!(legacy::nat_has_chain(protocol, chain).unwrap(), there, "{chain}");
        }

        let deletions: Vec<Change> = listed
            .iter()
            .filter_map(|line| line.strip_prefix("-A ").map(|rule| Change::Delete(rule.to_owned())))
            .collect();
        let mut refused = deletions.clone();
        refused.push(Change::Delete("CNI-x -p tcp -j ACCEPT".into()));
        let error = legacy.change_nat(&refused).unwrap_err();
        assert!(error.text.contains("Error occurred at line") || error.text.contains("failed"), "{error}");
        assert_eq!(legacy.nat_rules("CNI-x").unwrap().unwrap(), listed);

        let mut removal = deletions;
        removal.push(Change::DeleteChain("CNI-x".into()));
        legacy.change_nat(&removal).unwrap();
        assert_eq!(legacy.nat_rules("CNI-x").unwrap(), None);
        assert!(!legacy::nat_has_chain(protocol, "CNI-x").unwrap());
    }
}
