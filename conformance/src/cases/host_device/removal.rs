//! How the device comes back.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Attached, MAC, by_name, connected, device, is_back, is_up};
use crate::call::Call;
use crate::cases::networks::{NEWEST, USUAL, with};
use crate::expect::{contains, equal, holds};
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

pub(super) fn it_comes_back_as_it_was(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    host.ip_set("link set dev0 alias uplink-7")?;
    let before = Snapshot::take(host, &[])?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.ip_set("link set eth0 mtu 1300")?;
    one.pod.ip_set("link set eth0 address 02:00:00:00:66:66")?;
    one.del(host)?;
    let link = host.need_link("dev0")?;
    equal("MAC", link["address"].as_str(), Some(MAC))?;
    equal("MTU", link["mtu"].as_u64(), Some(1450))?;
    equal("alias", link["ifalias"].as_str(), Some("uplink-7"))?;
    holds(is_up(host)?, "it is down")?;
    before.restored(host, &[])?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])
}

pub(super) fn it_comes_back_down_if_it_was_down(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    host.ip_set("link set dev0 down")?;
    let one = Attached::new(host, "a", by_name())?;
    one.del(host)?;
    is_back(host)?;
    holds(!is_up(host)?, "it is up")
}

pub(super) fn it_comes_back_without_previous_result(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.call.del().run(host)?.silence()?;
    is_back(host)
}

pub(super) fn it_comes_back_without_netns(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    is_back(host)?;
    holds(is_up(host)?, "it is down")?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn what_tuning_could_not_set_back_is_as_it_was(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let before = host.run(&["ip", "-d", "link", "show", "dev0"])?;
    let one = Attached::new(host, "a", by_name())?;
    let config = json!({
        "cniVersion": USUAL, "name": "net", "type": "tuning", "promisc": true, "allmulti": true, "txQLen": 77
    });
    let tuning = Call::new("tuning").id("a").ifname("eth0").netns(&one.pod).config(config);
    tuning.add().prev(&one.result).run(host)?.result()?;
    tuning.without("CNI_NETNS").del().run(host)?.silence()?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    is_back(host)?;
    let after = host.run(&["ip", "-d", "link", "show", "dev0"])?;
    for flag in ["PROMISC", "ALLMULTI", "qlen 77"] {
        equal(flag, after.contains(flag), before.contains(flag))?;
    }
    Ok(())
}

pub(super) fn it_comes_back_though_the_pod_renamed_it(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.ip_set("link set eth0 down")?;
    one.pod.ip_set("link set eth0 name wan0")?;
    one.del(host)?;
    is_back(host)
}

pub(super) fn it_comes_back_though_its_alias_is_gone(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.ip_set("link set eth0 alias mine")?;
    one.del(host)?;
    is_back(host)
}

pub(super) fn it_comes_back_without_its_record(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    host.run(&["rm", "-rf", "/run/bridgehead"])?;
    one.del(host)?;
    is_back(host)?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

/// A physical device is given back by the kernel when the namespace ends, under the name that it had there.
pub(super) fn what_the_kernel_gave_back_gets_its_name(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.ip_set("link set eth0 netns host")?;
    one.pod.remove()?;
    equal("alias", host.need_link("eth0")?["ifalias"].as_str(), Some("dev0"))?;
    one.call.del().run(host)?.silence()?;
    holds(host.link("eth0")?.is_none(), "it has the pod's name")?;
    is_back(host)?;
    holds(is_up(host)?, "it is down")
}

/// As if a DEL had been killed after the device was moved.
pub(super) fn what_came_back_half_way_is_finished(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.ip_set("link set eth0 mtu 1300")?;
    one.pod.ip_set("link set eth0 netns host name dev0")?;
    one.del(host)?;
    is_back(host)?;
    holds(is_up(host)?, "it is down")
}

pub(super) fn a_taken_name_keeps_it_in_the_pod_until_it_is_free(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    host.ip_set("link add dev0 type bridge")?;
    let refusal = one.call.del().prev(&one.result).run(host)?.refusal()?;
    contains("the error", &refusal.text(), "dev0")?;
    equal("MAC", one.pod.need_link("eth0")?["address"].as_str(), Some(MAC))?;
    host.ip_set("link del dev0")?;
    one.del(host)?;
    is_back(host)
}

pub(super) fn a_virtual_device_ends_with_the_namespace(host: &Sandbox) -> Result<()> {
    let far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.pod.remove()?;
    crate::expect::soon(|| equal("links", far.link_names()?, ["lo"]))?;
    one.call.del().run(host)?.silence()?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn del_twice_and_of_what_was_never_added(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.del(host)?;
    one.del(host)?;
    is_back(host)?;
    let pod = host.pod("b")?;
    let call = device("b", &pod, by_name());
    call.del().run(host)?.silence()?;
    call.without("CNI_NETNS").del().run(host)?.silence()?;
    is_back(host)?;
    holds(is_up(host)?, "it is down")
}

pub(super) fn del_leaves_interfaces_of_others_alone(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type bridge")?;
    pod.ip_set("link set eth0 alias net/a/eth0")?;
    let call = device("a", &pod, by_name());
    call.del().run(host)?.silence()?;
    pod.run(&["ip", "link", "set", "eth0", "alias", ""])?;
    call.del().run(host)?.silence()?;
    pod.need_link("eth0").map(drop)
}

pub(super) fn gc_brings_it_back(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", with(by_name(), json!({"cniVersion": NEWEST})))?;
    let gc = |list: Value| one.call.set("cni.dev/valid-attachments", list).gc().run(host)?.silence();
    gc(json!([{"containerID": "a", "ifname": "eth0"}]))?;
    one.sound(host)?;
    gc(json!([]))?;
    is_back(host)?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn we_bring_back_what_the_reference_took(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pod = host.pod("a")?;
    let call = device("a", &pod, by_name());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    is_back(host)?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

pub(super) fn the_reference_brings_back_what_we_took(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    one.call.from(REFERENCE).check().prev(&one.result).run(host)?.silence()?;
    one.call.from(REFERENCE).del().prev(&one.result).run(host)?.silence()?;
    equal("MAC", host.need_link("dev0")?["address"].as_str(), Some(MAC))?;
    // Ours has only the alias left to do, which older ones forget.
    one.del(host)?;
    is_back(host)
}
