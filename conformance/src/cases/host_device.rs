//! host-device: a device of the host goes to the pod and comes back as it was, whatever happens.
//!
//! The device is one end of a veth pair, whose other end is in a namespace of its own: something that it is connected to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::cases;
use super::networks::{USUAL, VERSIONS, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

mod removal;

use removal::*;

cases! {
    "host-device/add" {
        the_device_is_the_pods_interface needs [Need::Plugin("host-device")];
        addresses_are_optional needs [Need::Plugin("host-device")];
        every_version_is_spoken needs [Need::Plugin("host-device")];
        packets_arrive needs [Need::Plugin("host-device"), Need::Ipv6];
        it_is_found_by_its_mac needs [Need::Plugin("host-device")];
        it_is_found_by_its_place_in_the_tree needs [Need::Plugin("host-device")];
        it_is_found_on_the_pci_bus needs [Need::Plugin("host-device")];
        it_is_found_as_the_runtime_names_it needs [Need::Plugin("host-device")];
        a_device_for_programs_is_left_alone needs [Need::Plugin("host-device")];
        the_name_may_be_taken_in_the_pod_by_the_hosts_name needs [Need::Plugin("host-device")];
        add_again_gives_the_same_result needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
    }
    "host-device/errors" {
        wrong_keys_are_named needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        loopback_is_no_device needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        a_taken_interface_name_is_an_error_and_nothing_changes needs [Need::Plugin("host-device")];
        a_late_failure_brings_it_back needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        an_exhausted_range_moves_nothing needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        one_of_two_pods_gets_it needs [Need::Plugin("host-device")];
    }
    "host-device/check" {
        what_the_pod_changes_is_found needs [Need::Plugin("host-device")];
    }
    "host-device/del" {
        it_comes_back_as_it_was needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        it_comes_back_down_if_it_was_down needs [Need::Plugin("host-device")];
        it_comes_back_without_previous_result needs [Need::Plugin("host-device")];
        it_comes_back_without_netns needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        what_tuning_could_not_set_back_is_as_it_was needs [
            Need::Plugin("host-device"), Need::Plugin("bridgehead"), Need::Plugin("tuning")];
        it_comes_back_though_the_pod_renamed_it needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        it_comes_back_though_its_alias_is_gone needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        it_comes_back_without_its_record needs [Need::Plugin("host-device")];
        what_the_kernel_gave_back_gets_its_name needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        what_came_back_half_way_is_finished needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        a_taken_name_keeps_it_in_the_pod_until_it_is_free needs [Need::Plugin("host-device")];
        a_virtual_device_ends_with_the_namespace needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        del_twice_and_of_what_was_never_added needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        del_leaves_interfaces_of_others_alone needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
        gc_brings_it_back needs [Need::Plugin("host-device"), Need::Plugin("bridgehead")];
    }
    "host-device/exchange" {
        we_bring_back_what_the_reference_took needs [
            Need::Plugin("host-device"), Need::Plugin("bridgehead"), Need::Reference("host-device")];
        the_reference_brings_back_what_we_took needs [
            Need::Plugin("host-device"), Need::Plugin("bridgehead"), Need::Reference("host-device")];
    }
}

const MAC: &str = "02:00:00:00:00:d0";

/// Gives the host the device `dev0`, connected to `eth0` of the namespace that is answered, with 10.20.0.254 and fd20::fe.
fn connected(host: &Sandbox) -> Result<Pod> {
    let far = host.pod("far")?;
    host.ip_set(&format!("link add dev0 address {MAC} mtu 1450 type veth peer name eth0 netns far"))?;
    host.ip_set("link set dev0 up")?;
    far.ip_set("addr add 10.20.0.254/24 dev eth0")?;
    far.ip_set("addr add fd20::fe/64 dev eth0 nodad")?;
    far.ip_set("link set eth0 up")?;
    Ok(far)
}

fn device(id: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "host-device"});
    Call::new("host-device").id(id).ifname("eth0").netns(pod).config(with(config, more))
}

fn by_name() -> Value {
    json!({"device": "dev0", "ipam": pool(&["10.20.0.0/24"])})
}

struct Attached {
    pod: Pod,
    call: Call,
    result: Value,
}

impl Attached {
    fn new(host: &Sandbox, id: &str, network: Value) -> Result<Self> {
        let pod = host.pod(id)?;
        let call = device(id, &pod, network);
        let result = call.add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
        holds(host.link("dev0")?.is_none(), "the device is still on the host")?;
        Ok(Self { pod, call, result })
    }

    fn sound(&self, host: &Sandbox) -> Result<()> {
        self.call.check().prev(&self.result).run(host)?.silence()
    }

    fn del(&self, host: &Sandbox) -> Result<()> {
        self.call.del().prev(&self.result).run(host)?.silence()
    }
}

/// The device is on the host, as [`connected`] has made it.
fn is_back(host: &Sandbox) -> Result<()> {
    let link = host.need_link("dev0")?;
    equal("MAC", link["address"].as_str(), Some(MAC))?;
    equal("MTU", link["mtu"].as_u64(), Some(1450))?;
    equal("alias", link.get("ifalias").and_then(Value::as_str).unwrap_or_default(), "")
}

fn is_up(host: &Sandbox) -> Result<bool> {
    let link = host.need_link("dev0")?;
    Ok(list_at(&link, "/flags")?.iter().any(|flag| flag == "UP"))
}

fn the_device_is_the_pods_interface(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    let wanted = json!([{"name": "eth0", "mac": MAC, "sandbox": one.pod.netns()}]);
    same_json("interfaces", &one.result["interfaces"], &wanted)?;
    let wanted = json!([{"interface": 0, "address": "10.20.0.2/24", "gateway": "10.20.0.1"}]);
    same_json("ips", &one.result["ips"], &wanted)?;
    let link = one.pod.need_link("eth0")?;
    equal("MAC", link["address"].as_str(), Some(MAC))?;
    equal("alias", link["ifalias"].as_str(), Some("dev0"))?;
    holds(one.pod.addresses("eth0")?.iter().any(|it| it == "10.20.0.2/24"), "the address is not there")?;
    one.sound(host)
}

fn addresses_are_optional(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", json!({"device": "dev0"}))?;
    holds(one.result.get("ips").and_then(Value::as_array).is_none_or(Vec::is_empty), "there are addresses")?;
    let link = one.pod.need_link("eth0")?;
    holds(list_at(&link, "/flags")?.iter().any(|flag| flag == "UP"), "the interface is down")?;
    one.sound(host)?;
    one.del(host)?;
    is_back(host)
}

fn every_version_is_spoken(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    for version in VERSIONS {
        let network = with(by_name(), json!({"cniVersion": version}));
        let one = Attached::new(host, &version.replace('.', "-"), network)?;
        equal("version", text_at(&one.result, "/cniVersion")?, version)?;
        one.del(host)?;
        is_back(host)?;
    }
    Ok(())
}

fn packets_arrive(host: &Sandbox) -> Result<()> {
    let far = connected(host)?;
    let one =
        Attached::new(host, "a", with(by_name(), json!({"ipam": pool(&["10.20.0.0/24", "fd20::/64"])})))?;
    one.pod.ping("10.20.0.254")?;
    one.pod.ping("fd20::fe")?;
    far.ping("10.20.0.2")?;
    far.ping("fd20::2")
}

/// ADD finds the device by these keys, and DEL brings it back.
fn found_by(host: &Sandbox, id: &str, keys: Value) -> Result<()> {
    let one = Attached::new(host, id, keys)?;
    equal("MAC", one.pod.need_link("eth0")?["address"].as_str(), Some(MAC))?;
    one.sound(host)?;
    one.del(host)?;
    is_back(host)
}

fn it_is_found_by_its_mac(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    found_by(host, "a", json!({"hwaddr": MAC}))?;
    found_by(host, "b", json!({"HWAddr": MAC.to_uppercase()}))
}

/// Puts a tree of one's own over a directory of /sys: the device of a path has the link `dev0`.
fn tree(over: &str, device: &str) -> Result<()> {
    mount(Some("tmpfs"), over, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {over}"))?;
    fs::create_dir_all(Path::new(device).join("net/dev0"))?;
    Ok(())
}

fn it_is_found_by_its_place_in_the_tree(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    tree("/sys/devices", "/sys/devices/pci0000:00/0000:00:1f.6")?;
    found_by(host, "a", json!({"kernelpath": "/sys/devices/pci0000:00/0000:00:1f.6"}))
}

fn with_driver(device: &str, driver: &str) -> Result<()> {
    let drivers = "/run/scratch/drivers";
    fs::create_dir_all(Path::new(drivers).join(driver))?;
    std::os::unix::fs::symlink(Path::new(drivers).join(driver), Path::new(device).join("driver"))?;
    Ok(())
}

fn it_is_found_on_the_pci_bus(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    tree("/sys/bus", "/sys/bus/pci/devices/0000:00:1f.6")?;
    with_driver("/sys/bus/pci/devices/0000:00:1f.6", "e1000e")?;
    found_by(host, "a", json!({"pciBusID": "0000:00:1f.6"}))?;
    fs::create_dir_all("/sys/bus/pci/devices/0000:00:02.0/virtio3/net/dev0")?;
    with_driver("/sys/bus/pci/devices/0000:00:02.0", "virtio-pci")?;
    found_by(host, "b", json!({"pciBusID": "0000:00:02.0"}))
}

fn it_is_found_as_the_runtime_names_it(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    tree("/sys/bus", "/sys/bus/pci/devices/0000:00:1f.6")?;
    with_driver("/sys/bus/pci/devices/0000:00:1f.6", "e1000e")?;
    found_by(host, "a", json!({"runtimeConfig": {"deviceID": "0000:00:1f.6"}}))?;
    fs::create_dir_all("/sys/bus/auxiliary/devices/mlx5_core.sf.4/net/dev0")?;
    found_by(host, "b", json!({"pciBusID": "0000:00:ff.0", "runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}))
}

fn a_device_for_programs_is_left_alone(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    tree("/sys/bus", "/sys/bus/pci/devices/0000:00:1f.6")?;
    with_driver("/sys/bus/pci/devices/0000:00:1f.6", "vfio-pci")?;
    let pod = host.pod("a")?;
    let call = device("a", &pod, json!({"pciBusID": "0000:00:1f.6", "ipam": pool(&["10.20.0.0/24"])}));
    let result = call.add().run(host)?.result()?;
    equal("interface", text_at(&result, "/interfaces/0/name")?, "eth0")?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.20.0.2/24")?;
    equal("links of the pod", pod.link_names()?, ["lo"])?;
    is_back(host)?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

fn the_name_may_be_taken_in_the_pod_by_the_hosts_name(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pod = host.pod("a")?;
    pod.ip_set("link add dev0 type bridge")?;
    let call = device("a", &pod, by_name());
    let result = call.add().run(host)?.result()?;
    equal("MAC", pod.need_link("eth0")?["address"].as_str(), Some(MAC))?;
    call.del().prev(&result).run(host)?.silence()?;
    is_back(host)?;
    equal("links of the pod", pod.link_names()?.len(), 2)
}

fn add_again_gives_the_same_result(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let one = Attached::new(host, "a", by_name())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    same_json("the second result", &one.call.add().run(host)?.result()?, &one.result)?;
    before.restored(host, &[&one.pod])
}

fn wrong_keys_are_named(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    for (more, key) in [
        (json!({}), "device"),
        (json!({"device": "dev/0"}), "device"),
        (json!({"device": "nothing0"}), "nothing0"),
        (json!({"hwaddr": "x"}), "hwaddr"),
        (json!({"hwaddr": "02:99:99:99:99:99"}), "hwaddr"),
        (json!({"kernelpath": "/sys/class/net/dev0"}), "kernelpath"),
        (json!({"kernelpath": "/sys/devices/nothing"}), "kernelpath"),
        (json!({"pciBusID": "../0000"}), "pciBusID"),
        (json!({"pciBusID": "ffff:ff:ff.7"}), "pciBusID"),
        (json!({"runtimeConfig": {"deviceID": "nothing"}}), "deviceID"),
    ] {
        let refusal = device("a", &pod, more).add().run(host)?.refused_with(7)?;
        contains("the error", &refusal.text(), key)?;
    }
    before.restored(host, &[&pod])
}

fn loopback_is_no_device(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    device("a", &pod, json!({"device": "lo"})).add().run(host)?.refused_with(7)?;
    device("a", &pod, json!({"hwaddr": "00:00:00:00:00:00"})).add().run(host)?.refused_with(7).map(drop)
}

fn a_taken_interface_name_is_an_error_and_nothing_changes(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = device("a", &pod, json!({"device": "dev0"})).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    before.restored(host, &[&pod])
}

fn a_late_failure_brings_it_back(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    host.ip_set("link set dev0 alias uplink-7")?;
    let routes = json!({"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]});
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let ipam = with(pool(&["10.20.0.0/24"]), routes);
    device("a", &pod, json!({"device": "dev0", "ipam": ipam})).add().run(host)?.refusal()?;
    before.restored(host, &[&pod])?;
    equal("alias", host.need_link("dev0")?["ifalias"].as_str(), Some("uplink-7"))?;
    holds(is_up(host)?, "it is down")
}

fn an_exhausted_range_moves_nothing(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let full = json!({"type": "host-local", "ranges": [[
        {"subnet": "10.20.0.0/24", "rangeStart": "10.20.0.1", "rangeEnd": "10.20.0.1"}]]});
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    device("a", &pod, json!({"device": "dev0", "ipam": full})).add().run(host)?.refusal()?;
    before.restored(host, &[&pod])
}

fn one_of_two_pods_gets_it(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    let pods = [host.pod("a")?, host.pod("b")?];
    let calls: Vec<Call> = ["a", "b"].iter().zip(&pods).map(|(id, pod)| device(id, pod, by_name())).collect();
    let started = calls.iter().map(|call| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let answers = started.into_iter().map(|it| it.answer(host)).collect::<Result<Vec<_>>>()?;
    let served = answers.iter().filter(|answer| answer.status() == Some(0)).count();
    equal("pods that have it", served, 1)?;
    for call in &calls {
        call.del().run(host)?.silence()?;
    }
    is_back(host)?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

fn what_the_pod_changes_is_found(host: &Sandbox) -> Result<()> {
    let _far = connected(host)?;
    for (index, deed) in [
        "link set eth0 address 02:00:00:00:66:66",
        "addr del 10.20.0.2/24 dev eth0",
        "link set eth0 down",
        "link set eth0 name other0",
    ]
    .into_iter()
    .enumerate()
    {
        let network = with(by_name(), json!({"runtimeConfig": {"ips": ["10.20.0.2"]}}));
        let one = Attached::new(host, &format!("p{index}"), network)?;
        one.sound(host)?;
        one.pod.ip_set("link set eth0 down").and_then(|()| one.pod.ip_set(deed))?;
        one.call.check().prev(&one.result).run(host)?.refusal()?;
        if deed.contains("name") {
            one.pod.ip_set("link set other0 name eth0")?;
        }
        one.del(host)?;
        host.ip_set(&format!("link set dev0 down address {MAC}"))?;
        host.ip_set("link set dev0 up")?;
    }
    Ok(())
}
