//! On the real kernel, each test in a network namespace of its own, read back with the `nft` command.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::net::nft::expr::{Operator, Register, Side};

/// Puts the test's thread into a new network namespace, which ends with it.
pub(crate) fn private_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("tests of the kernel run as root");
}

/// What a command prints, in the thread's namespace.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(line).output().expect("sh");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const TABLE: Table = Table::new(Family::Inet, "t");
const MAP: Set = Set { table: TABLE, name: "m", key: &[KeyType::Ipv4Address], carries: Carries::Verdict };

fn skeleton() -> Transaction {
    let mut transaction = Transaction::new();
    transaction.add_table(TABLE);
    transaction.add_base_chain(
        TABLE.chain("post"),
        Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 },
    );
    transaction.add_chain(TABLE.chain("sub"));
    transaction.add_set(MAP);
    transaction.flush_chain(TABLE.chain("post"));
    transaction.flush_chain(TABLE.chain("sub"));
    let address = "10.1.0.5".parse().unwrap();
    let mut rule = expr::family_is(address).to_vec();
    rule.extend([expr::load_address(Side::Source, address), expr::lookup_verdict("m")]);
    transaction.add_rule(TABLE.chain("post"), rule, Some("entry"));
    for network in ["10.1.0.0/16", "224.0.0.0/4"] {
        let mut rule = expr::family_is(address).to_vec();
        rule.extend(expr::address_in(Side::Destination, Operator::Equal, network.parse().unwrap()));
        rule.push(expr::verdict(&Verdict::Return));
        transaction.add_rule(TABLE.chain("sub"), rule, None);
    }
    transaction.add_rule(TABLE.chain("sub"), vec![expr::counter(), expr::masquerade()], None);
    transaction
}

#[test]
fn what_is_written_is_what_nft_reads() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let sub = TABLE.chain("sub");
    assert!(!nft.has_chain(sub).unwrap());
    assert_eq!(nft.rules(sub).unwrap(), []);
    assert_eq!(nft.elements(MAP).unwrap(), []);
    assert_eq!(nft.element(MAP, &[10, 1, 0, 5]).unwrap(), None);

    for _ in 0..2 {
        nft.commit(skeleton()).unwrap();
    }
    let element = Element {
        key: vec![10, 1, 0, 5],
        verdict: Some(Verdict::Goto("sub".into())),
        comment: Some("net/id/eth0".into()),
        ..Element::default()
    };
    let mut transaction = Transaction::new();
    transaction.add_element(MAP, &element);
    nft.commit(transaction).unwrap();
    assert_eq!(
        run("nft list ruleset"),
        "table inet t {\n\
         \tmap m {\n\
         \t\ttype ipv4_addr : verdict\n\
         \t\telements = { 10.1.0.5 comment \"net/id/eth0\" : goto sub }\n\
         \t}\n\
         \n\
         \tchain post {\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr vmap @m comment \"entry\"\n\
         \t}\n\
         \n\
         \tchain sub {\n\
         \t\tip daddr 10.1.0.0/16 return\n\
         \t\tip daddr 224.0.0.0/4 return\n\
         \t\tcounter packets 0 bytes 0 masquerade\n\
         \t}\n\
         }\n"
    );
    // And nft takes its own listing back.
    run("nft list ruleset > /dev/null && nft list ruleset | nft -c -f -");

    assert!(nft.has_chain(sub).unwrap());
    assert_eq!(nft.element(MAP, &element.key).unwrap().as_ref(), Some(&element));
    assert_eq!(nft.element(MAP, &[10, 1, 0, 6]).unwrap(), None);
    assert_eq!(nft.elements(MAP).unwrap(), std::slice::from_ref(&element));

    let post = nft.rules(TABLE.chain("post")).unwrap();
    assert_eq!(post.len(), 1);
    assert_eq!(post[0].comment.as_deref(), Some("entry"));
    assert!(post[0].looks_up("m") && !post[0].looks_up("n"));
    assert_eq!(nft.rules(sub).unwrap()[0].verdicts().collect::<Vec<_>>(), [Verdict::Return]);

    let mut transaction = Transaction::new();
    transaction.delete_rule(TABLE.chain("post"), post[0].handle);
    transaction.delete_element(MAP, &element.key);
    transaction.flush_chain(sub);
    transaction.delete_chain(sub);
    nft.commit(transaction).unwrap();
    assert!(!nft.has_chain(sub).unwrap());
    assert_eq!(nft.elements(MAP).unwrap(), []);

    let mut transaction = Transaction::new();
    transaction.delete_set(MAP);
    nft.commit(transaction).unwrap();
    assert!(!nft.has_set(MAP).unwrap());
}

#[test]
fn a_rule_that_leads_somewhere_is_found() {
    private_namespace();
    run(
        "nft 'table ip t { chain ab { }; chain abc { }; chain c { jump ab; goto abc; ip saddr 1.2.3.4 drop; }; }'",
    );
    let table = Table::new(Family::Ip, "t");
    let rules = Nft::open().unwrap().rules(table.chain("c")).unwrap();
    let leads = |to: &str| rules.iter().map(|r| r.leads_to(to)).collect::<Vec<_>>();
    assert_eq!(leads("ab"), [true, false, false]);
    assert_eq!(leads("abc"), [false, true, false]);
    assert_eq!(leads(""), [false, false, false]);
}

#[test]
fn a_concatenation_of_link_and_mac() {
    private_namespace();
    let table = Table::new(Family::Bridge, "t");
    let pairs = Set {
        table,
        name: "pairs",
        key: &[KeyType::Ifname, KeyType::EtherAddress],
        carries: Carries::Nothing,
    };
    let pre = table.chain("pre");
    let mut transaction = Transaction::new();
    transaction.add_table(table);
    transaction.add_base_chain(pre, Base { kind: Kind::Filter, hook: Hook::Prerouting, priority: -300 });
    transaction.add_set(pairs);
    let rule = vec![
        expr::load_meta(expr::MetaKey::Iifname, Register::Reg1),
        expr::load_link_header(6, 6, Register::Reg2),
        expr::lookup("pairs"),
        expr::verdict(&Verdict::Accept),
    ];
    transaction.add_rule(pre, rule, None);
    let key = set::key(&[&set::ifname_key("veth0"), &[2, 0, 0, 0, 0, 1]]);
    let element = Element { key, comment: Some("x".into()), ..Element::default() };
    transaction.add_element(pairs, &element);
    let mut nft = Nft::open().unwrap();
    nft.commit(transaction).unwrap();
    let listing = run("nft list ruleset");
    for line in [
        "type ifname . ether_addr",
        "elements = { \"veth0\" . 02:00:00:00:00:01 comment \"x\" }",
        "type filter hook prerouting priority dstnat; policy accept;",
        "iifname . ether saddr @pairs accept",
    ] {
        assert!(listing.contains(line), "{line} in {listing}");
    }
    assert_eq!(nft.element(pairs, &element.key).unwrap(), Some(element));
}

#[test]
fn a_refused_change_is_named_and_takes_back_the_others() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let mut transaction = Transaction::new();
    transaction.add_table(TABLE);
    transaction.add_chain(TABLE.chain("a"));
    transaction.delete_rule(TABLE.chain("a"), 77);
    transaction.add_chain(TABLE.chain("b"));
    let error = nft.commit(transaction).unwrap_err();
    assert_eq!((error.deed.as_str(), error.errno), ("delete rule 77 of chain inet t a", Errno::ENOENT));
    assert_eq!(run("nft list ruleset"), "");
    // The connection is as good as new.
    nft.commit(skeleton()).unwrap();
    assert!(nft.has_chain(TABLE.chain("sub")).unwrap());
}

#[test]
fn many_rules_are_all_read() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    let mut transaction = Transaction::new();
    transaction.add_table(TABLE);
    let chain = TABLE.chain("long");
    transaction.add_chain(chain);
    for number in 0..500 {
        transaction.add_rule(chain, vec![expr::counter()], Some(&format!("rule {number}")));
    }
    nft.commit(transaction).unwrap();
    let rules = nft.rules(chain).unwrap();
    assert_eq!(rules.len(), 500);
    assert_eq!(rules[499].comment.as_deref(), Some("rule 499"));
}

#[test]
fn extensions_of_xtables() {
    private_namespace();
    let mut nft = Nft::open().unwrap();
    assert!(nft.has_extension(Family::Ip, Extension::Target, "MASQUERADE", 0).unwrap());
    assert!(nft.has_extension(Family::Ip6, Extension::Match, "comment", 0).unwrap());
    assert!(!nft.has_extension(Family::Ip, Extension::Match, "nonsense", 0).unwrap());
}
