//! DEL in all its forms.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use super::lifecycle::by_hand;
use super::{Kind, addresses, attach, call, uplink, usual};
use crate::cases::networks::Attachment;
use crate::expect::{equal, soon};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

/// ADD, then DEL as the closure calls it; everything must be as before, the pod included if it is still there.
fn restored_by<K: Kind>(
    host: &Sandbox,
    del: impl FnOnce(&Sandbox, Attachment) -> Result<Option<Pod>>,
) -> Result<()> {
    uplink(host)?;
    let other = attach::<K>(host, "warm", 7, addresses())?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod, &other.pod])?;
    let without_pod = Snapshot::take(host, &[&other.pod])?;
    let call = call::<K>("a", 0, &pod, addresses());
    let result = call.add().run(host)?.result()?;
    match del(host, Attachment { pod, call, result })? {
        Some(pod) => before.restored(host, &[&pod, &other.pod]),
        None => without_pod.restored(host, &[&other.pod]),
    }?;
    other.sound(host).context("the other pod")
}

pub(super) fn del_restores_everything<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| one.del(host).map(|()| Some(one.pod)))
}

pub(super) fn del_without_previous_result<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| {
        one.call.del().run(host)?.silence()?;
        Ok(Some(one.pod))
    })
}

/// The namespace lives: where the plugin knows it, the link goes too, and else only what is on the host.
pub(super) fn del_without_namespace<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = call::<K>("a", 0, &pod, addresses());
    call.add().run(host)?.result()?;
    call.without("CNI_NETNS").del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())?;
    call.without("CNI_NETNS").del().run(host)?.silence().context("again")?;
    pod.remove()
}

pub(super) fn del_with_a_dangling_namespace<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| {
        one.pod.remove()?;
        one.call.del().run(host)?.silence()?;
        Ok(None)
    })
}

pub(super) fn del_with_a_file_that_is_no_namespace<K: Kind>(host: &Sandbox) -> Result<()> {
    // What a crash leaves: the mount is gone, the file is still there.
    restored_by::<K>(host, |host, one| {
        let path = one.pod.path().to_owned();
        one.pod.remove()?;
        fs::write(&path, "")?;
        let outcome = one.call.del().run(host)?.silence();
        fs::remove_file(&path)?;
        outcome.map(|()| None)
    })
}

pub(super) fn del_without_a_record<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| {
        let records = format!("/run/bridgehead/attachments/{}/net", K::PLUGIN);
        for entry in fs::read_dir(&records)? {
            let path = entry?.path();
            if fs::read_to_string(&path)?.contains("\"a\"") {
                fs::remove_file(path)?;
            }
        }
        one.call.del().run(host)?.silence()?;
        Ok(Some(one.pod))
    })
}

pub(super) fn del_twice<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| {
        one.del(host)?;
        one.del(host).context("second DEL")?;
        one.call.without("CNI_NETNS").del().run(host)?.silence().context("third DEL")?;
        Ok(Some(one.pod))
    })
}

pub(super) fn del_of_what_was_never_added<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    call::<K>("a", 0, &pod, addresses()).del().run(host)?.silence()?;
    before.restored(host, &[&pod])
}

pub(super) fn del_when_the_interface_is_gone<K: Kind>(host: &Sandbox) -> Result<()> {
    restored_by::<K>(host, |host, one| {
        one.pod.ip_set("link del eth0")?;
        one.del(host)?;
        Ok(Some(one.pod))
    })
}

pub(super) fn del_when_the_master_is_gone<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    host.ip_set("link del up0")?;
    one.del(host)?;
    equal("links in the pod", one.pod.link_names()?, ["lo"])?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

pub(super) fn del_with_a_wrong_configuration<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for (key, value) in
        [("mode", json!("odd")), ("mtu", json!(-5)), ("master", json!("none0")), ("vlanId", json!(9999))]
    {
        let one = attach::<K>(host, "a", 0, addresses())?;
        one.call.set(key, value).del().run(host)?.silence().with_context(|| key.to_owned())?;
        equal(format!("links in the pod with a wrong {key}"), one.pod.link_names()?, ["lo"])?;
        equal(format!("leases with a wrong {key}"), host.leases("net")?, Vec::<String>::new())?;
        one.pod.remove()?;
    }
    Ok(())
}

/// What has the name, but is of another kind or says that it is somebody else's, stays.
pub(super) fn del_leaves_links_of_others<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    call::<K>("a", 0, &pod, addresses()).del().run(host)?.silence()?;
    before.restored(host, &[&pod])?;
    pod.ip_set("link del eth0")?;
    by_hand::<K>(host, &pod, "eth0")?;
    pod.ip_set("link set eth0 alias somebody/else/eth0")?;
    let before = Snapshot::take(host, &[&pod])?;
    call::<K>("a", 0, &pod, addresses()).del().run(host)?.silence()?;
    before.restored(host, &[&pod])
}

pub(super) fn names_can_be_used_again_at_once<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    for round in 0..5 {
        one.call.del().run(host)?.silence()?;
        equal(format!("links in the pod after DEL {round}"), one.pod.link_names()?, ["lo"])?;
        one.call.add().run(host)?.result().with_context(|| format!("ADD {round}"))?;
    }
    Ok(())
}

pub(super) fn no_process_stays_behind<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    soon(|| equal("processes after ADD", host.processes()?, Vec::<String>::new()))?;
    one.del(host)?;
    soon(|| equal("processes after DEL", host.processes()?, Vec::<String>::new()))
}
