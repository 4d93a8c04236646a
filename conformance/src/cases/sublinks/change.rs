//! CHECK: what has become otherwise.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Kind, addresses, attach, newest, same_addresses, uplink, usual};
use crate::cases::networks::{Attachment, with};
use crate::expect::contains;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

pub(super) fn all_is_well_after_add<K: Kind>(host: &Sandbox) -> Result<()> {
    usual::<K>(host)?.sound(host)?;
    attach::<K>(host, "b", 1, newest(addresses()))?.sound(host).context("in the newest version")?;
    if K::HAS_MASTER {
        attach::<K>(host, "c", 2, with(addresses(), json!({"mtu": 1400})))?
            .sound(host)
            .context("with an mtu")?;
    }
    Ok(())
}

pub(super) fn check_changes_nothing<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let before = Snapshot::take(host, &[&one.pod])?;
    one.sound(host)?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)?;
    one.pod.ip_set("addr del 10.30.0.2/24 dev eth0")?;
    let before = Snapshot::take(host, &[&one.pod])?;
    one.damaged(host)?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before).context("CHECK of damage")
}

pub(super) fn a_missing_previous_result_is_named<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    contains("the error", &one.call.check().run(host)?.refusal()?.text(), "prevResult")
}

/// What is done to a pod, and a word that CHECK must say then.
type Damage = (fn(&Sandbox, &Attachment) -> Result<()>, &'static str);

pub(super) fn each_damage_is_named<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let mut damages: Vec<Damage> = vec![
        (|_, one| one.pod.ip_set("addr del 10.30.0.2/24 dev eth0"), "10.30.0.2"),
        (|_, one| one.pod.ip_set("addr del fd30::2/64 dev eth0"), "fd30::2"),
        (|_, one| one.pod.ip_set("link del eth0"), "eth0"),
        (
            |_, one| {
                one.pod.ip_set("link del eth0")?;
                one.pod.ip_set("link add eth0 type bridge")
            },
            K::PLUGIN,
        ),
    ];
    if host.plugins().join("bridgehead").exists() {
        // What the reference does not look at.
        damages.push((|_, one| one.pod.ip_set("route del default"), "default"));
        damages.push((|_, one| one.pod.ip_set("link set eth0 down"), "down"));
        damages.push((|_, one| one.pod.ip_set("link set eth0 mtu 1300"), "1300"));
    }
    if K::HAS_MASTER {
        damages.push((
            |host, one| {
                one.pod.ip_set("link del eth0")?;
                host.ip_set("link del up0")
            },
            "up0",
        ));
    }
    if !K::SHARES_MAC {
        damages.push((
            |_, one| {
                one.pod.ip_set("link set eth0 down")?;
                one.pod.ip_set("link set eth0 address 02:00:00:00:00:99")?;
                one.pod.ip_set("link set eth0 up")
            },
            "02:00:00:00:00:99",
        ));
    }
    for (number, (deed, word)) in damages.into_iter().enumerate() {
        let id = format!("p{number}");
        // The addresses are the same each time.
        let one = attach::<K>(host, &id, 0, newest(same_addresses()))?;
        one.sound(host).with_context(|| format!("before damage {number}"))?;
        deed(host, &one)?;
        let said = one.damaged(host).with_context(|| format!("damage {number} ({word})"))?;
        contains(format!("CHECK after damage {number}"), &said, word)?;
        one.del(host)?;
        one.pod.remove()?;
        if host.link("up0")?.is_none() {
            uplink(host)?;
        }
    }
    Ok(())
}

pub(super) fn the_reservation_is_removed<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    fs::remove_file("/var/lib/cni/networks/net/10.30.0.2")?;
    contains("CHECK without the reservation", &one.damaged(host)?, "10.30.0.2")
}
