//! On the real kernel, each test in a network namespace of its own, read back with `nft` and `iptables`.

mod iptables;
mod nftables;

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
