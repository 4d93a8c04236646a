//! host-local: what is on disk, whose it is, and how it is given back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, host_local};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, text_at};
use crate::sandbox::{REFERENCE, STORE, Sandbox};

cases! {
    "host-local/files" {
        a_reservation_is_a_file_with_its_owner;
        ipv6_names_are_compressed;
        another_directory_can_be_chosen;
        networks_are_apart;
        reservations_can_be_read_by_root_only;
    }
    "host-local/release" {
        del_releases_by_owner;
        del_releases_all_addresses_of_the_owner;
        del_leaves_the_other_interfaces_of_a_container;
        del_of_an_unknown_container_succeeds;
        del_twice_succeeds;
        del_needs_no_directory;
        del_works_when_the_configuration_is_invalid_by_now;
        del_releases_what_only_names_the_container;
        del_prefers_the_exact_owner;
        white_space_around_the_owner_means_nothing;
        a_prefix_of_an_owner_is_not_the_owner;
    }
    "host-local/robustness" {
        an_empty_reservation_is_free;
        an_unreadable_reservation_hurts_nobody;
        a_directory_in_place_of_a_reservation_is_skipped;
        a_symbolic_link_is_not_followed;
        foreign_files_are_left_alone;
        forty_at_once_get_forty_addresses;
        forty_at_once_give_forty_back;
        the_lock_is_respected needs [Need::Program("flock")];
        a_second_add_takes_no_second_address;
        an_unwritable_directory_is_an_error;
    }
    "host-local/check" {
        check_finds_the_reservation;
        check_misses_a_lost_reservation;
        check_misses_another_address;
        check_finds_what_only_names_the_container;
    }
    "host-local/status" {
        status_is_silent_while_there_are_addresses;
        status_says_50_when_a_range_is_exhausted;
        status_says_so_when_the_configuration_is_bad;
    }
    "host-local/gc" {
        gc_releases_all_but_the_valid;
        gc_with_an_empty_list_releases_all;
        gc_without_a_list_releases_nothing;
        gc_leaves_other_networks;
    }
    "host-local/exchange" {
        the_reference_releases_ours needs [Need::Reference("host-local")];
        we_release_what_the_reference_reserved needs [Need::Reference("host-local")];
        both_count_on_from_each_other needs [Need::Reference("host-local")];
        both_at_once_get_different_addresses needs [Need::Reference("host-local")];
    }
}

fn pool(id: &str) -> Call {
    host_local(id, json!({"subnet": "10.1.0.0/24"}))
}

fn path(name: &str) -> String {
    format!("{STORE}/net/{name}")
}

/// Puts a reservation there that nobody made.
fn plant(name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(format!("{STORE}/net"))?;
    fs::write(path(name), text).with_context(|| format!("cannot write {name}"))
}

fn address(host: &Sandbox, call: &Call) -> Result<String> {
    let result = call.add().run(host)?.result()?;
    Ok(text_at(&result, "/ips/0/address")?.to_owned())
}

fn nothing_left(host: &Sandbox) -> Result<()> {
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn a_reservation_is_a_file_with_its_owner(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    equal("content", fs::read(path("10.1.0.2"))?.as_slice(), b"c1\r\neth0")?;
    equal("memory", fs::read(path("last_reserved_ip.0"))?.as_slice(), b"10.1.0.2")?;
    holds(Path::new(&path("lock")).exists(), "the file `lock` is missing")?;
    pool("c1").del().run(host)?.silence()?;
    nothing_left(host)?;
    equal("memory", fs::read(path("last_reserved_ip.0"))?.as_slice(), b"10.1.0.2")
}

fn ipv6_names_are_compressed(host: &Sandbox) -> Result<()> {
    host_local("c1", json!({"subnet": "fd20:0:0:1::/64"})).add().run(host)?.result()?;
    equal("leases", host.leases("net")?, ["fd20:0:0:1::2"])
}

fn another_directory_can_be_chosen(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "dataDir": "/run/scratch/a/b"}));
    call.add().run(host)?.result()?;
    equal("content", fs::read("/run/scratch/a/b/net/10.1.0.2")?.as_slice(), b"c1\r\neth0")?;
    nothing_left(host)?;
    call.del().run(host)?.silence()?;
    holds(!Path::new("/run/scratch/a/b/net/10.1.0.2").exists(), "the reservation is still there")
}

fn networks_are_apart(host: &Sandbox) -> Result<()> {
    equal("first network", address(host, &pool("c1"))?, "10.1.0.2/24")?;
    equal("second network", address(host, &pool("c1").set("name", json!("other")))?, "10.1.0.2/24")?;
    pool("c1").del().run(host)?.silence()?;
    equal("leases of the second", host.leases("other")?, ["10.1.0.2"])
}

fn reservations_can_be_read_by_root_only(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    let mode = fs::metadata(path("10.1.0.2"))?.permissions().mode() & 0o7777;
    holds(mode & 0o077 == 0 || mode == 0o644, format!("mode {mode:o}"))?;
    equal("others may not write", mode & 0o022, 0)
}

fn del_releases_by_owner(host: &Sandbox) -> Result<()> {
    for id in ["c1", "c2", "c3"] {
        pool(id).add().run(host)?.result()?;
    }
    pool("c2").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.1.0.4"])
}

fn del_releases_all_addresses_of_the_owner(host: &Sandbox) -> Result<()> {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "fd20::/64"}]]);
    let call = host_local("c1", json!({"ranges": ranges}));
    call.add().run(host)?.result()?;
    equal("leases", host.leases("net")?.len(), 3)?;
    // The ranges of now are not those of then.
    pool("c1").del().run(host)?.silence()?;
    nothing_left(host)
}

fn del_leaves_the_other_interfaces_of_a_container(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    pool("c1").ifname("eth1").add().run(host)?.result()?;
    pool("c1").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.3"])?;
    pool("c1").ifname("eth1").del().run(host)?.silence()?;
    nothing_left(host)
}

fn del_of_an_unknown_container_succeeds(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    pool("stranger").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn del_twice_succeeds(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    pool("c1").del().run(host)?.silence()?;
    pool("c1").without("CNI_NETNS").del().run(host)?.silence()
}

fn del_needs_no_directory(host: &Sandbox) -> Result<()> {
    pool("c1").del().run(host)?.silence()
}

fn del_works_when_the_configuration_is_invalid_by_now(host: &Sandbox) -> Result<()> {
    for ipam in [
        json!({"type": "host-local"}),
        json!({"type": "host-local", "subnet": "10.1.0.0/31"}),
        json!({"type": "host-local", "subnet": "10.1.0.7/24"}),
        json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/24"}]]}),
        json!({"type": "host-local", "subnet": "10.9.0.0/24", "resolvConf": "/none"}),
        json!({"type": "host-local", "subnet": "garbage"}),
    ] {
        pool("c1").add().run(host)?.result()?;
        pool("c1").set("ipam", ipam.clone()).del().run(host)?.silence().with_context(|| ipam.to_string())?;
        nothing_left(host).with_context(|| ipam.to_string())?;
    }
    pool("c1").add().run(host)?.result()?;
    pool("c1").args("IP=garbage;FROB=1").del().run(host)?.silence().context("bad CNI_ARGS")?;
    nothing_left(host)
}

fn del_releases_what_only_names_the_container(host: &Sandbox) -> Result<()> {
    plant("10.1.0.2", "c1")?;
    plant("10.1.0.3", "c2")?;
    pool("c1").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.3"])
}

fn del_prefers_the_exact_owner(host: &Sandbox) -> Result<()> {
    plant("10.1.0.2", "c1")?;
    plant("10.1.0.3", "c1\r\neth0")?;
    pool("c1").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn white_space_around_the_owner_means_nothing(host: &Sandbox) -> Result<()> {
    plant("10.1.0.2", "  c1\r\neth0\n")?;
    plant("10.1.0.3", "\tc1\r\neth0\r\n")?;
    pool("c1").del().run(host)?.silence()?;
    nothing_left(host)?;
    plant("10.1.0.2", "  c1\n")?;
    pool("c1").del().run(host)?.silence()?;
    nothing_left(host)
}

fn a_prefix_of_an_owner_is_not_the_owner(host: &Sandbox) -> Result<()> {
    plant("10.1.0.2", "c11\r\neth0")?;
    plant("10.1.0.3", "c1\r\neth01")?;
    plant("10.1.0.4", "xc1\r\neth0")?;
    pool("c1").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?.len(), 3)
}

fn an_empty_reservation_is_free(host: &Sandbox) -> Result<()> {
    for text in ["", "\n", "  \r\n"] {
        plant("10.1.0.2", text)?;
        let call = host_local("c1", json!({"subnet": "10.1.0.0/30"}));
        equal(format!("address that {text:?} reserves"), address(host, &call)?, "10.1.0.2/30")?;
        call.del().run(host)?.silence()?;
        nothing_left(host)?;
    }
    Ok(())
}

fn an_unreadable_reservation_hurts_nobody(host: &Sandbox) -> Result<()> {
    fs::create_dir_all(format!("{STORE}/net"))?;
    fs::write(path("10.1.0.2"), b"\xff\xfe\0\x01")?;
    fs::write(path("10.1.0.3"), vec![b'x'; 1 << 20])?;
    pool("c1").add().run(host)?.result()?;
    pool("c1").del().run(host)?.silence()
}

fn a_directory_in_place_of_a_reservation_is_skipped(host: &Sandbox) -> Result<()> {
    fs::create_dir_all(path("10.1.0.2/inside"))?;
    equal("address", address(host, &pool("c1"))?, "10.1.0.3/24")?;
    pool("c1").del().run(host)?.silence()?;
    holds(Path::new(&path("10.1.0.2/inside")).exists(), "the directory is gone")?;
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn a_symbolic_link_is_not_followed(host: &Sandbox) -> Result<()> {
    fs::create_dir_all(format!("{STORE}/net"))?;
    let victim = host.scratch("victim", "precious")?;
    std::os::unix::fs::symlink(&victim, path("10.1.0.2"))?;
    std::os::unix::fs::symlink("/run/scratch/absent", path("10.1.0.3"))?;
    pool("c1").add().run(host)?.result()?;
    pool("c1").del().run(host)?.silence()?;
    equal("what the link points to", fs::read_to_string(&victim)?, "precious")?;
    holds(!Path::new("/run/scratch/absent").exists(), "a file was written through a dangling link")
}

fn foreign_files_are_left_alone(host: &Sandbox) -> Result<()> {
    plant("README", "c1\r\neth0 is what a reservation looks like")?;
    plant("10.1.0.999", "keep")?;
    equal("address", address(host, &pool("c1"))?, "10.1.0.2/24")?;
    pool("c1").del().run(host)?.silence()?;
    holds(
        Path::new(&path("README")).exists() && Path::new(&path("10.1.0.999")).exists(),
        "a foreign file is gone",
    )
}

/// Starts that many ADDs before it waits for any, and gives the addresses, sorted.
fn at_once(host: &Sandbox, calls: &[Call]) -> Result<Vec<String>> {
    let started = calls.iter().map(|call| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for one in started {
        let result = one.answer(host)?.result()?;
        found.push(text_at(&result, "/ips/0/address")?.to_owned());
    }
    found.sort();
    Ok(found)
}

fn forty_at_once_get_forty_addresses(host: &Sandbox) -> Result<()> {
    let calls: Vec<Call> = (0..40).map(|number| pool(&format!("c{number}"))).collect();
    let mut found = at_once(host, &calls)?;
    found.dedup();
    equal("different addresses", found.len(), 40)?;
    equal("leases", host.leases("net")?.len(), 40)
}

fn forty_at_once_give_forty_back(host: &Sandbox) -> Result<()> {
    let calls: Vec<Call> = (0..40).map(|number| pool(&format!("c{number}"))).collect();
    at_once(host, &calls)?;
    let started = calls.iter().map(|call| call.del().start(host)).collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    nothing_left(host)
}

fn the_lock_is_respected(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    let script = format!(
        "flock {} sh -c 'echo > /run/scratch/held; while ! [ -e /run/scratch/free ]; do sleep 0.01; done' \
         >/dev/null 2>&1 & while ! [ -e /run/scratch/held ]; do sleep 0.01; done",
        path("lock")
    );
    host.run(&["sh", "-c", &script])?;
    let before = host.leases("net")?;
    let waiting = pool("c2").add().start(host)?;
    std::thread::sleep(Duration::from_millis(200));
    let during = host.leases("net")?;
    std::fs::write("/run/scratch/free", "")?;
    waiting.answer(host)?.result()?;
    equal("leases while the lock was held", during, before)
}

fn a_second_add_takes_no_second_address(host: &Sandbox) -> Result<()> {
    pool("c1").add().run(host)?.result()?;
    // Both are allowed: an error, or the same answer again.
    let again = pool("c1").add().run(host)?;
    if again.status() == Some(0) {
        equal("address", text_at(&again.result()?, "/ips/0/address")?, "10.1.0.2/24")?;
    } else {
        again.refusal()?;
    }
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn an_unwritable_directory_is_an_error(host: &Sandbox) -> Result<()> {
    let file = host.scratch("file", "")?;
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "dataDir": file}));
    let refusal = call.add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "/run/scratch/file")
}

fn check_finds_the_reservation(host: &Sandbox) -> Result<()> {
    let result = pool("c1").add().run(host)?.result()?;
    pool("c1").check().prev(&result).run(host)?.silence()
}

fn check_misses_a_lost_reservation(host: &Sandbox) -> Result<()> {
    let result = pool("c1").add().run(host)?.result()?;
    fs::remove_file(path("10.1.0.2"))?;
    pool("c1").check().prev(&result).run(host)?.refusal().map(drop)
}

fn check_misses_another_address(host: &Sandbox) -> Result<()> {
    let result = pool("c1").add().run(host)?.result()?;
    fs::rename(path("10.1.0.2"), path("10.1.0.77"))?;
    pool("c1").check().prev(&result).run(host)?.refusal().map(drop)
}

fn check_finds_what_only_names_the_container(host: &Sandbox) -> Result<()> {
    let result = pool("c1").add().run(host)?.result()?;
    fs::write(path("10.1.0.2"), "c1")?;
    pool("c1").check().prev(&result).run(host)?.silence()
}

fn status_is_silent_while_there_are_addresses(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/29"})).set("cniVersion", json!(NEWEST));
    call.status().run(host)?.silence()?;
    call.add().run(host)?.result()?;
    call.status().run(host)?.silence()
}

fn status_says_50_when_a_range_is_exhausted(host: &Sandbox) -> Result<()> {
    let ranges = json!([[{"subnet": "10.1.0.0/30"}], [{"subnet": "fd20::/64"}]]);
    let call = host_local("c1", json!({"ranges": ranges})).set("cniVersion", json!(NEWEST));
    call.add().run(host)?.result()?;
    call.status().run(host)?.refused_with(50)?;
    call.del().run(host)?.silence()?;
    call.status().run(host)?.silence()
}

fn status_says_so_when_the_configuration_is_bad(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/31"})).set("cniVersion", json!(NEWEST));
    call.status().run(host)?.refusal().map(drop)
}

/// GC after three ADDs; gives what is still reserved.
fn collected(host: &Sandbox, valid: Option<Value>) -> Result<Vec<String>> {
    for (id, ifname) in [("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")] {
        pool(id).ifname(ifname).set("cniVersion", json!(NEWEST)).add().run(host)?.result()?;
    }
    let mut call = pool("c1").set("cniVersion", json!(NEWEST)).gc();
    if let Some(valid) = valid {
        // libcni sends the list under both names.
        call = call.set("cni.dev/valid-attachments", valid.clone()).set("cni.dev/attachments", valid);
    }
    call.run(host)?.silence()?;
    host.leases("net")
}

fn gc_releases_all_but_the_valid(host: &Sandbox) -> Result<()> {
    let left = collected(host, Some(json!([{"containerID": "c1", "ifname": "eth1"}])))?;
    equal("leases", left, ["10.1.0.3"])
}

fn gc_with_an_empty_list_releases_all(host: &Sandbox) -> Result<()> {
    equal("leases", collected(host, Some(json!([])))?, Vec::<String>::new())
}

fn gc_without_a_list_releases_nothing(host: &Sandbox) -> Result<()> {
    equal("leases", collected(host, None)?, ["10.1.0.2", "10.1.0.3", "10.1.0.4"])
}

fn gc_leaves_other_networks(host: &Sandbox) -> Result<()> {
    pool("c1").set("name", json!("other")).add().run(host)?.result()?;
    collected(host, Some(json!([])))?;
    equal("leases", host.leases("other")?, ["10.1.0.2"])
}

fn the_reference_releases_ours(host: &Sandbox) -> Result<()> {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd20::/64"}]]);
    let call = host_local("c1", json!({"ranges": ranges}));
    let result = call.add().run(host)?.result()?;
    call.from(REFERENCE).check().prev(&result).run(host)?.silence()?;
    call.from(REFERENCE).del().run(host)?.silence()?;
    nothing_left(host)?;
    // What was kept beside the reservation must not be in the way of the next.
    call.id("c2").add().run(host)?.result().map(drop)
}

fn we_release_what_the_reference_reserved(host: &Sandbox) -> Result<()> {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd20::/64"}]]);
    let call = host_local("c1", json!({"ranges": ranges}));
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().run(host)?.silence()?;
    nothing_left(host)
}

fn both_count_on_from_each_other(host: &Sandbox) -> Result<()> {
    equal("reference", address(host, &pool("a").from(REFERENCE))?, "10.1.0.2/24")?;
    equal("under test", address(host, &pool("b"))?, "10.1.0.3/24")?;
    equal("reference", address(host, &pool("c").from(REFERENCE))?, "10.1.0.4/24")?;
    pool("c").del().run(host)?.silence()?;
    equal("under test", address(host, &pool("d"))?, "10.1.0.5/24")
}

fn both_at_once_get_different_addresses(host: &Sandbox) -> Result<()> {
    let calls: Vec<Call> = (0..30)
        .map(|number| {
            let call = pool(&format!("c{number}"));
            if number % 2 == 0 { call } else { call.from(REFERENCE) }
        })
        .collect();
    let mut found = at_once(host, &calls)?;
    found.dedup();
    equal("different addresses", found.len(), 30)
}
