//! After a reboot, and when containers end without a DEL: addresses of the dead are free again, those of the living
//! stay, and what cannot be judged is left alone.
//!
//! A reboot is the kernel's boot id that changes, a /run that is empty, and an address store that is as it was.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, host_local, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks, soon, text_at};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, STORE, Sandbox};

cases! {
    "host-local/reboot" {
        addresses_of_the_boot_before_are_free needs [Need::UserAttributes];
        a_full_range_of_the_boot_before_is_free needs [Need::UserAttributes];
        addresses_of_this_boot_stay;
        what_the_boot_before_left_half_written_is_free needs [Need::UserAttributes];
        gc_without_a_list_frees_the_boot_before needs [Need::UserAttributes];
        a_kept_run_directory_hides_nothing needs [Need::UserAttributes];
        what_others_reserved_is_not_judged needs [Need::UserAttributes];
        what_the_reference_reserved_is_not_judged needs [Need::Reference("host-local")];
    }
    "host-local/reclaim" {
        an_exhausted_range_takes_back_what_lost_its_namespace;
        a_replaced_namespace_is_a_lost_one;
        a_requested_address_of_the_dead_can_be_had;
        the_living_keep_their_addresses;
        a_reservation_without_a_record_is_kept;
        twenty_at_once_share_what_the_dead_left;
    }
    "bridge/reclaim" {
        an_exhausted_range_takes_back_whole_attachments needs [Need::Nftables];
        masquerade_of_nftables_goes_with_the_dead needs [Need::Nftables];
        a_new_namespace_for_the_same_container_is_alive needs [Need::Nftables];
        exhaustion_by_the_living_is_an_error_with_figures;
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Gives the kernel another boot id, in this mount namespace.
fn change_boot_id(host: &Sandbox, id: &str) -> Result<()> {
    let path = host.scratch("boot_id", &format!("{id}\n"))?;
    // One that covers another covers it for good, so that `host` may reboot again.
    let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    mount(Some(&path), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cover the boot id")
}

/// Empties /run but for what is the sandbox's own.
fn empty_run() -> Result<()> {
    for entry in fs::read_dir("/run")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["netns", "scratch", "layers", "lock"].contains(&name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn reboot(host: &Sandbox) -> Result<()> {
    change_boot_id(host, "11111111-2222-4333-8444-555555555555")?;
    empty_run()
}

/// host-local with three addresses to give, 10.1.0.2 to 10.1.0.4.
fn small(id: &str) -> Call {
    host_local(id, json!({"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.4"}))
}

/// A call in the version that has GC and STATUS.
fn newest(call: Call) -> Call {
    call.set("cniVersion", json!(NEWEST))
}

fn address(host: &Sandbox, call: &Call) -> Result<String> {
    let result = call.add().run(host)?.result()?;
    Ok(text_at(&result, "/ips/0/address")?.split('/').next().unwrap_or_default().to_owned())
}

fn fill(host: &Sandbox) -> Result<()> {
    for (id, wanted) in [("a", "10.1.0.2"), ("b", "10.1.0.3"), ("c", "10.1.0.4")] {
        equal("address", address(host, &small(id))?.as_str(), wanted)?;
    }
    Ok(())
}

fn addresses_of_the_boot_before_are_free(host: &Sandbox) -> Result<()> {
    address(host, &small("a"))?;
    address(host, &small("b"))?;
    reboot(host)?;
    address(host, &small("new"))?;
    equal("leases", host.leases("net")?.len(), 1)?;
    // What a runtime may still do for containers of then.
    small("a").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?.len(), 1)?;
    small("new").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn a_full_range_of_the_boot_before_is_free(host: &Sandbox) -> Result<()> {
    fill(host)?;
    reboot(host)?;
    newest(small("x")).status().run(host)?.silence().context("STATUS: an ADD would be served")?;
    equal("leases after STATUS", host.leases("net")?.len(), 3)?;
    for id in ["d", "e", "f"] {
        address(host, &small(id)).with_context(|| format!("ADD of {id}"))?;
    }
    small("g").add().run(host)?.refusal()?;
    Ok(())
}

fn addresses_of_this_boot_stay(host: &Sandbox) -> Result<()> {
    fill(host)?;
    // As if somebody had cleaned up.
    empty_run()?;
    small("d").add().run(host)?.refusal()?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.1.0.3", "10.1.0.4"])?;
    small("a").del().run(host)?.silence()?;
    equal("address", address(host, &small("d"))?.as_str(), "10.1.0.2")
}

fn what_the_boot_before_left_half_written_is_free(host: &Sandbox) -> Result<()> {
    for (number, content) in
        [b"".as_slice(), b"\0\0\0\0", b"a\r\n", b"a\r\ne", b"kept by nobody"].iter().enumerate()
    {
        let boot = format!("{number}1111111-2222-4333-8444-555555555555");
        let network = json!(format!("n{number}"));
        let only = |id: &str| host_local(id, json!({"subnet": "10.1.0.0/30"})).set("name", network.clone());
        address(host, &only("a"))?;
        fs::write(Path::new(STORE).join(format!("n{number}/10.1.0.2")), content)?;
        change_boot_id(host, &boot)?;
        empty_run()?;
        let what = || format!("where {:?} was left", String::from_utf8_lossy(content));
        equal("address", address(host, &only("b")).with_context(what)?.as_str(), "10.1.0.2")?;
    }
    Ok(())
}

fn gc_without_a_list_frees_the_boot_before(host: &Sandbox) -> Result<()> {
    fill(host)?;
    reboot(host)?;
    newest(small("x")).gc().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn a_kept_run_directory_hides_nothing(host: &Sandbox) -> Result<()> {
    // Not every system has a tmpfs there.
    fill(host)?;
    change_boot_id(host, "21111111-2222-4333-8444-555555555555")?;
    address(host, &small("d"))?;
    equal("leases", host.leases("net")?.len(), 1)
}

/// Reservations as the Go plugin leaves them.
fn plant(addresses: &[&str]) -> Result<()> {
    let directory = Path::new(STORE).join("net");
    fs::create_dir_all(&directory)?;
    for (number, address) in addresses.iter().enumerate() {
        fs::write(directory.join(address), format!("go{number}\r\neth0"))?;
    }
    Ok(())
}

fn what_others_reserved_is_not_judged(host: &Sandbox) -> Result<()> {
    plant(&["10.1.0.2", "10.1.0.3"])?;
    equal("address", address(host, &small("a"))?.as_str(), "10.1.0.4")?;
    reboot(host)?;
    // Of the three, one tells that it is of the boot before.
    equal("address", address(host, &small("b"))?.as_str(), "10.1.0.4")?;
    small("c").add().run(host)?.refusal()?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.1.0.3", "10.1.0.4"])
}

fn what_the_reference_reserved_is_not_judged(host: &Sandbox) -> Result<()> {
    small("a").from(REFERENCE).add().run(host)?.result()?;
    reboot(host)?;
    address(host, &small("b"))?;
    newest(small("b")).gc().run(host)?.silence()?;
    holds(host.leases("net")?.contains(&"10.1.0.2".to_owned()), "the reference's reservation is gone")?;
    // Its owner can still give it back, and a GC with a list takes it.
    small("a").del().run(host)?.silence()?;
    holds(!host.leases("net")?.contains(&"10.1.0.2".to_owned()), "the reference's reservation is still there")
}

fn an_exhausted_range_takes_back_what_lost_its_namespace(host: &Sandbox) -> Result<()> {
    let (lost, kept) = (host.pod("lost")?, host.pod("kept")?);
    equal("address", address(host, &small("a").netns(&kept))?.as_str(), "10.1.0.2")?;
    equal("address", address(host, &small("b").netns(&lost))?.as_str(), "10.1.0.3")?;
    equal("address", address(host, &small("c").netns(&kept))?.as_str(), "10.1.0.4")?;
    newest(small("d")).status().run(host)?.refused_with(50).context("STATUS while all live")?;
    lost.remove()?;
    newest(small("d")).status().run(host)?.silence().context("STATUS: an ADD would be served")?;
    equal("leases after STATUS", host.leases("net")?.len(), 3)?;
    equal("address", address(host, &small("d").netns(&kept))?.as_str(), "10.1.0.3")?;
    small("e").netns(&kept).add().run(host)?.refusal()?;
    // A late DEL of the dead does not take what is another's by now.
    small("b").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.1.0.3", "10.1.0.4"])
}

fn a_replaced_namespace_is_a_lost_one(host: &Sandbox) -> Result<()> {
    let only = |id: &str| host_local(id, json!({"subnet": "10.1.0.0/30"}));
    let first = host.pod("pod")?;
    address(host, &only("a").netns(&first))?;
    let guard = host.pod("guard")?;
    first.remove()?;
    let second = host.pod("pod")?;
    equal("address", address(host, &only("b").netns(&second))?.as_str(), "10.1.0.2")?;
    drop(guard);
    Ok(())
}

fn a_requested_address_of_the_dead_can_be_had(host: &Sandbox) -> Result<()> {
    let lost = host.pod("lost")?;
    let kept = host.pod("kept")?;
    let asks = |id: &str, pod: &Pod| small(id).netns(pod).args("IP=10.1.0.3");
    equal("address", address(host, &asks("a", &lost))?.as_str(), "10.1.0.3")?;
    asks("b", &kept).add().run(host)?.refusal()?;
    lost.remove()?;
    equal("address", address(host, &asks("b", &kept))?.as_str(), "10.1.0.3")?;
    let refusal = asks("c", &kept).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "10.1.0.3")
}

fn the_living_keep_their_addresses(host: &Sandbox) -> Result<()> {
    fill(host)?;
    for id in ["d", "e"] {
        small(id).add().run(host)?.refusal()?;
    }
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.1.0.3", "10.1.0.4"])?;
    for id in ["a", "b", "c"] {
        let result = small(id).add().run(host)?.result().context("the same once more")?;
        small(id).check().prev(&result).run(host)?.silence()?;
    }
    Ok(())
}

fn a_reservation_without_a_record_is_kept(host: &Sandbox) -> Result<()> {
    plant(&["10.1.0.2", "10.1.0.3", "10.1.0.4"])?;
    newest(small("a")).status().run(host)?.refused_with(50)?;
    let refusal = small("a").add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "10.1.0.1-10.1.0.4")?;
    equal("leases", host.leases("net")?.len(), 3)
}

fn twenty_at_once_share_what_the_dead_left(host: &Sandbox) -> Result<()> {
    let (lost, kept) = (host.pod("lost")?, host.pod("kept")?);
    let wide = |id: &str, pod: &Pod| {
        host_local(id, json!({"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.21"})).netns(pod)
    };
    for number in 0..20 {
        address(host, &wide(&format!("dead{number}"), if number % 2 == 0 { &lost } else { &kept }))?;
    }
    lost.remove()?;
    // Ten are free, and twenty come: those that get one get different ones, and the others are told so.
    let started: Vec<_> = (0..20)
        .map(|number| wide(&format!("new{number}"), &kept).add().start(host))
        .collect::<Result<_>>()?;
    let mut found = Vec::new();
    for one in started {
        let answer = one.answer(host)?;
        if answer.status() == Some(0) {
            found.push(text_at(&answer.result()?, "/ips/0/address")?.to_owned());
        } else {
            answer.refusal()?;
        }
    }
    found.sort();
    found.dedup();
    equal("addresses given", found.len(), 10)?;
    equal("leases", host.leases("net")?.len(), 20)
}

/// A bridge with NAT and two addresses for pods.
fn tight(more: Value) -> Value {
    let ipam =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/29", "rangeEnd": "10.20.0.3"}]]});
    let network = with(gateway4(), json!({"ipMasq": true, "ipam": ipam}));
    with(network, more)
}

fn rules(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

fn an_exhausted_range_takes_back_whole_attachments(host: &Sandbox) -> Result<()> {
    whole_attachments(host, json!({"ipMasqBackend": "iptables", "macspoofchk": true}))
}

fn masquerade_of_nftables_goes_with_the_dead(host: &Sandbox) -> Result<()> {
    whole_attachments(host, json!({"ipMasqBackend": "nftables"}))
}

/// The namespace's name goes, but a process keeps it: its link and its rules are there as well.
fn whole_attachments(host: &Sandbox, more: Value) -> Result<()> {
    let lost = Attachment::new(host, "lost", tight(more.clone()))?;
    let kept = Attachment::new(host, "kept", tight(more.clone()))?;
    let (link, id) = (lost.host_link()?.to_owned(), "lost");
    let holder = std::fs::File::open(lost.pod.path())?;
    lost.pod.remove()?;
    holds(host.link(&link)?.is_some(), "the link went by itself, so this shows nothing")?;
    contains("rules", &rules(host)?, id)?;
    let new = Attachment::new(host, "new", tight(more))?;
    equal("address", new.address()?, "10.20.0.2")?;
    soon(|| holds(host.link(&link)?.is_none(), "the link of the dead is still there"))?;
    lacks("rules", &rules(host)?, "lost")?;
    drop(holder);
    kept.sound(host)?;
    new.sound(host)?;
    new.pod.ping("10.20.0.3")?;
    // The runtime may come for the dead at last.
    lost.call.del().env("CNI_NETNS", "").run(host)?.silence()?;
    new.sound(host)?;
    new.del(host)?;
    kept.del(host)?;
    equal("leases", host.leases("net")?, Vec::<String>::new())?;
    ["lost", "kept", "new"].iter().try_for_each(|id| lacks("rules", &rules(host)?, id))
}

fn a_new_namespace_for_the_same_container_is_alive(host: &Sandbox) -> Result<()> {
    // A container that was restarted: same id, and its ADD runs while others look for dead ones.
    let only = json!({"ipam": pool(&["10.20.0.0/30"]), "ipMasqBackend": "nftables"});
    for round in 0..10 {
        let old = Attachment::new(host, &format!("old{round}"), tight(only.clone()))?;
        let call = old.call.clone();
        old.pod.remove()?;
        let (mine, other) = (host.pod(&format!("mine{round}"))?, host.pod(&format!("other{round}"))?);
        let again = call.netns(&mine);
        let rival = bridge("rival", &other, tight(only.clone()));
        let both = [again.add().start(host)?, rival.add().start(host)?];
        let [again_answer, rival_answer] = both.map(|one| one.answer(host));
        let (again_answer, rival_answer) = (again_answer?, rival_answer?);
        // There is one address, so one of them has it, and what it has is whole.
        let winners = [(&again, &again_answer), (&rival, &rival_answer)]
            .into_iter()
            .filter(|(_, answer)| answer.status() == Some(0))
            .collect::<Vec<_>>();
        equal(format!("ADDs that succeed in round {round}"), winners.len(), 1)?;
        for (call, answer) in winners {
            call.check().prev(&answer.result()?).run(host)?.silence().context("CHECK of who got it")?;
        }
        again.del().run(host)?.silence()?;
        rival.del().run(host)?.silence()?;
        equal("leases", host.leases("net")?, Vec::<String>::new())?;
    }
    Ok(())
}

fn exhaustion_by_the_living_is_an_error_with_figures(host: &Sandbox) -> Result<()> {
    let (one, two) =
        (Attachment::new(host, "a", tight(json!({})))?, Attachment::new(host, "b", tight(json!({})))?);
    let pod = host.pod("c")?;
    let call = bridge("c", &pod, tight(json!({})));
    let refusal = call.add().run(host)?.refusal()?;
    for part in ["10.20.0.1-10.20.0.3", "2 of 2"] {
        contains("the error", &refusal.text(), part)?;
    }
    let refusal = newest(call).status().run(host)?.refused_with(50)?;
    contains("STATUS", &refusal.text(), "2 of 2")?;
    one.sound(host)?;
    two.sound(host)
}
