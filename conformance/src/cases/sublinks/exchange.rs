//! Pods of the reference.

use anyhow::{Context, Result};

use super::{Kind, addresses, call, uplink, usual};
use crate::expect::equal;
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn we_remove_what_the_reference_added<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = call::<K>("a", 0, &pod, addresses());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.del().prev(&result).run(host)?.silence()?;
    before.restored(host, &[&pod])?;
    call.from(REFERENCE).add().run(host)?.result()?;
    call.del().run(host)?.silence()?;
    before.restored(host, &[&pod]).context("without prevResult")
}

pub(super) fn we_remove_it_without_namespace<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = call::<K>("a", 0, &pod, addresses());
    call.from(REFERENCE).add().run(host)?.result()?;
    pod.remove()?;
    call.del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

pub(super) fn the_reference_removes_what_we_added<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    one.call.from(REFERENCE).del().prev(&one.result).run(host)?.silence()?;
    equal("links in the pod", one.pod.link_names()?, ["lo"])?;
    equal("leases", host.leases("net")?, Vec::<String>::new())?;
    // And what is left does not disturb the next.
    let again = one.call.add().run(host)?.result().context("the same attachment again")?;
    one.call.check().prev(&again).run(host)?.silence()
}

pub(super) fn we_find_pods_of_the_reference_sound<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = call::<K>("a", 0, &pod, addresses());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()
}

pub(super) fn the_reference_finds_our_pods_sound<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    one.call.from(REFERENCE).check().prev(&one.result).run(host)?.silence()
}
