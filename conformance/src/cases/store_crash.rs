//! The address store of host-local after a call that was killed at any point, and after a power cut.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::cases;
use super::networks::{NEWEST, host_local};
use super::store_damage::{add, address, del, on};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{equal, holds};
use crate::sandbox::{STORE, Sandbox};

cases! {
    "host-local/crash" {
        an_add_that_was_killed_anywhere_is_undone_by_del needs [Need::Program("strace")];
        a_del_that_was_killed_anywhere_is_finished_by_another needs [Need::Program("strace")];
        a_gc_that_was_killed_anywhere_loses_nothing needs [Need::Program("strace")];
        what_a_power_cut_leaves_of_a_reservation_is_free;
        what_a_power_cut_leaves_of_other_files_is_in_nobodys_way;
    }
}

/// The system calls that touch files, and so may leave something half done.
const TOUCHING: [&str; 18] = [
    "openat",
    "openat2",
    "write",
    "pwrite64",
    "linkat",
    "link",
    "unlinkat",
    "unlink",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "flock",
    "utimensat",
    "fsetxattr",
    "fsync",
];

/// Runs a call again and again, each time killed at another system call, and then `afterwards`; `before` prepares it.
/// Each time is on a network of its own.
fn killed_everywhere(
    host: &Sandbox,
    before: impl Fn(&str) -> Result<()>,
    call: impl Fn(&str) -> Call,
    afterwards: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    let real = host.plugins().join("host-local");
    let script = format!(
        "exec strace -f -qq -o /dev/null -e trace=$DEADLY -e inject=$DEADLY:signal=KILL:when=$NUMBER {}",
        real.display()
    );
    let deadly = host.fake_plugin("deadly", "host-local", &script)?;
    let mut deaths = 0;
    for name in TOUCHING {
        for number in 1.. {
            let network = format!("{name}-{number}");
            before(&network).context("before the call that is to be killed")?;
            let killed = call(&network)
                .from(&deadly)
                .env("CNI_PATH", &host.plugins().to_string_lossy())
                .env("DEADLY", name)
                .env("NUMBER", &number.to_string())
                .run(host)?;
            if killed.status().is_some() {
                break;
            }
            deaths += 1;
            afterwards(&network).with_context(|| format!("after it was killed at {name} number {number}"))?;
            // What is kept of a network in which nothing is any more would only be one more to look at, for all that
            // follow; and there would always be one more call to be killed at.
            let empty = ["find", "/run", "-depth", "-type", "d", "-empty", "-name", &network];
            host.run(&[&empty[..], &["-exec", "rmdir", "{}", ";"]].concat())?;
        }
    }
    holds(deaths > 10, format!("it was killed at {deaths} calls only"))
}

fn an_add_that_was_killed_anywhere_is_undone_by_del(host: &Sandbox) -> Result<()> {
    killed_everywhere(
        host,
        |network| add(host, network, "neighbour").map(drop),
        |network| on(network, "dead").add(),
        |network| {
            let other = add(host, network, "other")?;
            holds(other != "10.1.0.2", "the neighbour's address was given again")?;
            let again = add(host, network, "dead")?;
            let different = BTreeSet::from(["10.1.0.2".to_owned(), other, again]);
            equal("different addresses", different.len(), 3)?;
            del(host, network, "dead")?;
            del(host, network, "other")?;
            equal("leases", host.leases(network)?, ["10.1.0.2"])?;
            del(host, network, "neighbour")?;
            tidy(host, network)
        },
    )?;
    // And without a second ADD, as it is when the runtime gives up.
    killed_everywhere(
        host,
        |network| add(host, &format!("u-{network}"), "neighbour").map(drop),
        |network| on(&format!("u-{network}"), "dead").add(),
        |network| {
            let network = format!("u-{network}");
            del(host, &network, "dead")?;
            equal("leases", host.leases(&network)?, ["10.1.0.2"])?;
            add(host, &network, "other")?;
            del(host, &network, "other")?;
            del(host, &network, "neighbour")?;
            tidy(host, &network)
        },
    )
}

fn a_del_that_was_killed_anywhere_is_finished_by_another(host: &Sandbox) -> Result<()> {
    killed_everywhere(
        host,
        |network| {
            add(host, network, "neighbour")?;
            add(host, network, "dead").map(drop)
        },
        |network| on(network, "dead").del(),
        |network| {
            let other = add(host, network, "other")?;
            holds(other != "10.1.0.2", "the neighbour's address was given again")?;
            del(host, network, "dead")?;
            del(host, network, "other")?;
            equal("leases", host.leases(network)?, ["10.1.0.2"])?;
            del(host, network, "neighbour")?;
            tidy(host, network)
        },
    )
}

fn a_gc_that_was_killed_anywhere_loses_nothing(host: &Sandbox) -> Result<()> {
    let valid = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]);
    let gc = |network: &str| {
        on(network, "a").set("cniVersion", json!(NEWEST)).gc().set("cni.dev/valid-attachments", valid.clone())
    };
    killed_everywhere(
        host,
        |network| ["a", "b", "c", "d"].iter().try_for_each(|id| add(host, network, id).map(drop)),
        gc,
        |network| {
            // First, without anybody else: what is left must not make it forget what is there.
            del(host, network, "a")?;
            holds(
                !host.leases(network)?.contains(&"10.1.0.2".to_owned()),
                "the address of a is still reserved",
            )?;
            let again = add(host, network, "a")?;
            holds(again != "10.1.0.3", "the address of b was given again")?;
            gc(network).run(host)?.silence()?;
            equal("leases", host.leases(network)?.len(), 2)?;
            del(host, network, "a")?;
            del(host, network, "b")?;
            tidy(host, network)
        },
    )
}

/// The store has nothing but what it has when nobody has an address, and nobody waits for its lock.
fn tidy(host: &Sandbox, network: &str) -> Result<()> {
    equal("the store", host.store(network)?, ["last_reserved_ip.0", "lock"])
}

/// What stands in a file after a power cut: less than was written, or what the disk had there before.
const LEFTOVERS: [&[u8]; 6] =
    [b"", b"\0", b"\0\0\0\0\0\0\0\0", b"c1\r\n\0\0\0\0", b"\xff\xfe\x03\x80\x01", b"\x7fELF\x02\x01\x01\0"];

fn plant(network: &str, name: &str, content: &[u8]) -> Result<()> {
    let directory = Path::new(STORE).join(network);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(name), content).with_context(|| format!("cannot write {name}"))
}

fn what_a_power_cut_leaves_of_a_reservation_is_free(host: &Sandbox) -> Result<()> {
    for (number, content) in LEFTOVERS.into_iter().enumerate() {
        let network = format!("n{number}");
        plant(&network, "10.1.0.2", content)?;
        // The only address that there is.
        let call = host_local("c1", json!({"subnet": "10.1.0.0/30"})).set("name", json!(network));
        let what = || format!("after {:?}", String::from_utf8_lossy(content));
        equal("address", address(&call.add().run(host)?).with_context(what)?.as_str(), "10.1.0.2")?;
        call.del().run(host)?.silence().with_context(what)?;
        equal("leases", host.leases(&network)?, Vec::<String>::new()).with_context(what)?;
    }
    Ok(())
}

fn what_a_power_cut_leaves_of_other_files_is_in_nobodys_way(host: &Sandbox) -> Result<()> {
    for (number, content) in LEFTOVERS.into_iter().enumerate() {
        for name in ["last_reserved_ip.0", "lock", ".bridgehead-draft"] {
            let network = format!("n{number}-{}", name.trim_start_matches('.'));
            plant(&network, name, content)?;
            let what = || format!("{name} has {:?}", String::from_utf8_lossy(content));
            equal("address", add(host, &network, "a").with_context(what)?.as_str(), "10.1.0.2")?;
            equal("address", add(host, &network, "b").with_context(what)?.as_str(), "10.1.0.3")?;
            del(host, &network, "a").with_context(what)?;
            del(host, &network, "b").with_context(what)?;
            equal("leases", host.leases(&network)?, Vec::<String>::new()).with_context(what)?;
        }
    }
    Ok(())
}
