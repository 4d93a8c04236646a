//! tap: a TAP device in the pod, with a program at its other end.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, VERSIONS, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::{REFERENCE, Sandbox};
use crate::snapshot::Snapshot;

cases! {
    "tap/add" {
        the_result_is_the_interface needs [Need::Plugin("tap"), Need::Tun];
        every_version_is_spoken needs [Need::Plugin("tap"), Need::Tun];
        a_program_has_the_other_end needs [Need::Plugin("tap"), Need::Tun];
        several_programs_have_several_queues needs [Need::Plugin("tap"), Need::Tun];
        without_multi_queue_there_is_one needs [Need::Plugin("tap"), Need::Tun];
        mac_and_mtu_are_set_whatever_else_is needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        owner_and_group_may_open_it needs [Need::Plugin("tap"), Need::Tun];
        it_is_a_port_of_a_bridge_in_the_pod needs [Need::Plugin("tap"), Need::Tun];
        it_may_be_without_addresses needs [Need::Plugin("tap"), Need::Tun];
        it_has_addresses_of_both_families needs [Need::Plugin("tap"), Need::Tun, Need::Ipv6];
        no_program_is_executed needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        it_has_the_selinux_context needs [Need::Plugin("tap"), Need::Tun, Need::Selinux];
        add_again_gives_the_same_result needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
    }
    "tap/errors" {
        wrong_keys_are_named needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        a_taken_interface_name_is_an_error_and_nothing_changes needs [
            Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        a_tap_of_others_is_not_taken_over needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        a_late_failure_leaves_nothing needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        a_host_without_tap_devices_says_so needs [Need::Plugin("tap"), Need::Plugin("bridgehead")];
    }
    "tap/check" {
        each_difference_is_found needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
    }
    "tap/del" {
        del_removes_it needs [Need::Plugin("tap"), Need::Tun];
        del_removes_it_from_under_a_program needs [Need::Plugin("tap"), Need::Tun];
        del_without_netns_removes_it needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        del_without_its_record_removes_it needs [Need::Plugin("tap"), Need::Tun];
        del_twice_and_of_what_was_never_added needs [Need::Plugin("tap"), Need::Tun];
        del_with_a_dangling_namespace needs [Need::Plugin("tap"), Need::Tun];
        gc_removes_who_is_not_valid needs [Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Tun];
        twenty_at_once_come_and_go needs [Need::Plugin("tap"), Need::Tun];
        we_remove_what_the_reference_added needs [
            Need::Plugin("tap"), Need::Plugin("bridgehead"), Need::Reference("tap"), Need::Tun];
    }
}

const MAC: &str = "0a:00:00:00:12:34";

fn tap(id: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "tap"});
    Call::new("tap").id(id).ifname("eth0").netns(pod).config(with(config, more))
}

fn addressed() -> Value {
    json!({"ipam": pool(&["10.20.0.0/24"])})
}

struct Attached {
    pod: Pod,
    call: Call,
    result: Value,
}

impl Attached {
    fn new(host: &Sandbox, id: &str, network: Value) -> Result<Self> {
        Self::on(host, id, host.pod(id)?, network)
    }

    fn on(host: &Sandbox, id: &str, pod: Pod, network: Value) -> Result<Self> {
        let call = tap(id, &pod, network);
        let result = call.add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
        Ok(Self { pod, call, result })
    }

    fn sound(&self, host: &Sandbox) -> Result<()> {
        self.call.check().prev(&self.result).run(host)?.silence()
    }

    fn del(&self, host: &Sandbox) -> Result<()> {
        self.call.del().prev(&self.result).run(host)?.silence()
    }

    /// Opens the other end, as a virtual machine does.
    fn open(&self, flags: i32) -> Result<nix::Result<File>> {
        self.pod.inside(|| {
            let file =
                File::options().read(true).write(true).open("/dev/net/tun").map_err(|_| Errno::ENODEV)?;
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
            let mut request = libc::ifreq {
                ifr_name: [0; libc::IFNAMSIZ],
                ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
            };
            for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
                *to = *from as libc::c_char;
            }
            // SAFETY: TUNSETIFF takes a struct ifreq, which lives as long as the call.
            Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
            Ok(file)
        })
    }

    /// What `ip -d link` says of the device.
    fn details(&self) -> Result<String> {
        self.pod.run(&["ip", "-d", "link", "show", "eth0"])
    }
}

fn the_result_is_the_interface(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    let link = one.pod.need_link("eth0")?;
    let wanted = json!([{"name": "eth0", "mac": link["address"], "sandbox": one.pod.netns()}]);
    same_json("interfaces", &one.result["interfaces"], &wanted)?;
    let wanted = json!([{"interface": 0, "address": "10.20.0.2/24", "gateway": "10.20.0.1"}]);
    same_json("ips", &one.result["ips"], &wanted)?;
    contains("details", &one.details()?, "tun type tap")?;
    contains("details", &one.details()?, "persist on")?;
    holds(list_at(&link, "/flags")?.iter().any(|flag| flag == "UP"), "it is down")?;
    one.sound(host)
}

fn every_version_is_spoken(host: &Sandbox) -> Result<()> {
    for version in VERSIONS {
        let network = with(addressed(), json!({"cniVersion": version}));
        let one = Attached::new(host, &version.replace('.', "-"), network)?;
        equal("version", text_at(&one.result, "/cniVersion")?, version)?;
        one.del(host)?;
    }
    Ok(())
}

/// Waits for a frame of a type of Ethernet, behind the header of virtio.
fn receives(mut file: &File, ether_type: [u8; 2]) -> Result<bool> {
    let mut frame = [0; 2048];
    for _ in 0..50 {
        let ready = poll(
            &mut [PollFd::new(std::os::fd::AsFd::as_fd(file), PollFlags::POLLIN)],
            PollTimeout::from(2000u16),
        )?;
        if ready == 0 {
            return Ok(false);
        }
        let len = file.read(&mut frame)?;
        if frame.get(22..24).filter(|_| len >= 24) == Some(&ether_type) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn a_program_has_the_other_end(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    let file = one.open(0)?.context("open it")?;
    one.pod.try_run(&["ping", "-n", "-c", "1", "-W", "1", "10.20.0.9"])?;
    holds(receives(&file, [0x08, 0x06])?, "no question of ARP arrives")
}

fn several_programs_have_several_queues(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", with(addressed(), json!({"multiQueue": true})))?;
    let _first = one.open(libc::IFF_MULTI_QUEUE)?.context("open it")?;
    let _second = one.open(libc::IFF_MULTI_QUEUE)?.context("open it again")?;
    contains("details", &one.details()?, "multi_queue")?;
    one.sound(host)
}

fn without_multi_queue_there_is_one(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    equal("several queues", one.open(libc::IFF_MULTI_QUEUE)?.map(drop), Err(Errno::EINVAL))?;
    let _first = one.open(0)?.context("open it")?;
    equal("the second", one.open(0)?.map(drop), Err(Errno::EBUSY))
}

fn mac_and_mtu_are_set_whatever_else_is(host: &Sandbox) -> Result<()> {
    for (id, more) in [("a", json!({})), ("b", json!({"owner": 7})), ("c", json!({"owner": 7, "group": 8}))] {
        let keys = json!({"mac": "0a:00:00:00:99:99", "mtu": 1400, "runtimeConfig": {"mac": MAC}});
        let one = Attached::new(host, id, with(with(addressed(), keys), more))?;
        let link = one.pod.need_link("eth0")?;
        equal("MAC", link["address"].as_str(), Some(MAC))?;
        equal("MTU", link["mtu"].as_u64(), Some(1400))?;
        equal("MAC in the result", text_at(&one.result, "/interfaces/0/mac")?, MAC)?;
        one.sound(host)?;
    }
    let one = Attached::new(host, "d", with(addressed(), json!({"mac": MAC})))?;
    equal("MAC of the key", one.pod.need_link("eth0")?["address"].as_str(), Some(MAC))
}

fn owner_and_group_may_open_it(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", with(addressed(), json!({"owner": 4711, "group": 4712})))?;
    contains("details", &one.details()?, "user 4711")?;
    contains("details", &one.details()?, "group 4712")
}

fn it_is_a_port_of_a_bridge_in_the_pod(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.ip_set("link add br0 type bridge")?;
    let one = Attached::on(host, "a", pod, json!({"bridge": "br0"}))?;
    equal("master", one.pod.need_link("eth0")?["master"].as_str(), Some("br0"))?;
    one.sound(host)?;
    one.del(host)?;
    equal("links of the pod", one.pod.link_names()?.len(), 2)
}

fn it_may_be_without_addresses(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", json!({}))?;
    holds(one.result.get("ips").and_then(Value::as_array).is_none_or(Vec::is_empty), "there are addresses")?;
    one.sound(host)
}

fn it_has_addresses_of_both_families(host: &Sandbox) -> Result<()> {
    let routes = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let one = Attached::new(host, "a", json!({"ipam": with(pool(&["10.20.0.0/24", "fd20::/64"]), routes)}))?;
    let addresses = one.pod.addresses("eth0")?;
    for address in ["10.20.0.2/24", "fd20::2/64"] {
        holds(addresses.iter().any(|it| it == address), format!("no {address} in {addresses:?}"))?;
    }
    contains("IPv4 routes", &one.pod.run(&["ip", "-4", "route"])?, "default via 10.20.0.1")?;
    contains("IPv6 routes", &one.pod.run(&["ip", "-6", "route"])?, "default via fd20::1")?;
    one.sound(host)
}

fn no_program_is_executed(host: &Sandbox) -> Result<()> {
    let directory = host.fake_plugin("hostile", "ip", "touch /run/scratch/executed; exit 1")?;
    let pod = host.pod("a")?;
    let keys = json!({"owner": 7, "mac": MAC});
    let call = tap("a", &pod, with(addressed(), keys)).env("PATH", directory.to_str().context("path")?);
    call.add().run(host)?.result()?;
    holds(
        !std::path::Path::new("/run/scratch/executed").exists(),
        "a command of the caller's PATH was executed",
    )
}

fn it_has_the_selinux_context(host: &Sandbox) -> Result<()> {
    let label = "system_u:system_r:container_t:s0";
    Attached::new(host, "a", with(addressed(), json!({"selinuxContext": label})))?.del(host)
}

fn add_again_gives_the_same_result(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    same_json("the second result", &one.call.add().run(host)?.result()?, &one.result)?;
    before.restored(host, &[&one.pod])
}

fn wrong_keys_are_named(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.ip_set("link add other0 type veth peer name other1")?;
    let before = Snapshot::take(host, &[&pod])?;
    for (more, code, key) in [
        (json!({"mac": "01:00:00:00:00:01"}), 7, "mac"),
        (json!({"mtu": 67}), 7, "mtu"),
        (json!({"mtu": 1279, "ipam": pool(&["fd20::/64"])}), 7, "mtu"),
        (json!({"owner": -1}), 6, "owner"),
        (json!({"owner": 4_294_967_295_u32}), 7, "owner"),
        (json!({"group": "users"}), 6, "group"),
        (json!({"multiQueue": "yes"}), 6, "multiQueue"),
        (json!({"bridge": "a/b"}), 7, "bridge"),
        (json!({"bridge": "nothing0"}), 7, "bridge"),
        (json!({"bridge": "other0"}), 7, "bridge"),
    ] {
        let refusal = tap("a", &pod, more).add().run(host)?.refused_with(code)?;
        contains("the error", &refusal.text(), key)?;
    }
    if Need::Selinux.unmet(host).is_some() {
        let more = json!({"selinuxContext": "system_u:system_r:container_t:s0"});
        let call = tap("a", &pod, with(json!({"cniVersion": NEWEST}), more));
        contains("the error", &call.add().run(host)?.refused_with(7)?.text(), "selinuxContext")?;
        contains("STATUS", &call.status().run(host)?.refused_with(50)?.text(), "selinuxContext")?;
    }
    before.restored(host, &[&pod])
}

fn a_taken_interface_name_is_an_error_and_nothing_changes(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.ip_set("link add eth0 type bridge")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = tap("a", &pod, addressed()).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    before.restored(host, &[&pod])
}

fn a_tap_of_others_is_not_taken_over(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    pod.run(&["ip", "tuntap", "add", "eth0", "mode", "tap"])?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = tap("a", &pod, addressed()).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    before.restored(host, &[&pod])
}

fn a_late_failure_leaves_nothing(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let routes = json!({"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]});
    let ipam = with(pool(&["10.20.0.0/24"]), routes);
    tap("a", &pod, json!({"ipam": ipam})).add().run(host)?.refusal()?;
    before.restored(host, &[&pod])
}

fn a_host_without_tap_devices_says_so(host: &Sandbox) -> Result<()> {
    use nix::mount::{MsFlags, mount};
    // An empty directory over the one that has the device.
    if std::path::Path::new("/dev/net").exists() {
        mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    }
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = tap("a", &pod, with(addressed(), json!({"cniVersion": NEWEST})));
    contains("the error", &call.add().run(host)?.refusal()?.text(), "/dev/net/tun")?;
    contains("STATUS", &call.status().run(host)?.refused_with(50)?.text(), "/dev/net/tun")?;
    before.restored(host, &[&pod])
}

fn each_difference_is_found(host: &Sandbox) -> Result<()> {
    let network = with(addressed(), json!({"mtu": 1400, "mac": MAC, "bridge": "br0"}));
    for (index, (deed, part)) in [
        ("link set eth0 mtu 1300", "1300"),
        ("link set eth0 address 02:00:00:00:66:66", "02:00:00:00:66:66"),
        ("link set eth0 nomaster", "bridge of"),
        ("addr flush dev eth0", "10.20.0."),
        ("link set eth0 down", "up"),
        ("link del eth0", "missing"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("p{index}");
        let pod = host.pod(&id)?;
        pod.ip_set("link add br0 type bridge")?;
        let one = Attached::on(host, &id, pod, network.clone())?;
        one.sound(host)?;
        one.pod.ip_set(deed)?;
        let text = one.call.check().prev(&one.result).run(host)?.refusal()?.text();
        contains(format!("the error after {deed:?}"), &text, part)?;
        one.del(host)?;
    }
    // Another device in its place.
    let one =
        Attached::new(host, "a", with(addressed(), json!({"multiQueue": true, "owner": 7, "group": 8})))?;
    one.sound(host)?;
    one.pod.ip_set("link del eth0")?;
    one.pod.run(&["ip", "tuntap", "add", "eth0", "mode", "tap"])?;
    let text = one.call.check().prev(&one.result).run(host)?.refusal()?.text();
    for part in ["owner of", "group of", "multiple queues of"] {
        contains("the error", &text, part)?;
    }
    one.pod.ip_set("link del eth0")?;
    one.pod.ip_set("link add eth0 type bridge")?;
    contains("the error", &one.call.check().prev(&one.result).run(host)?.refusal()?.text(), "TAP")
}

fn del_removes_it(host: &Sandbox) -> Result<()> {
    let before = Snapshot::take(host, &[])?;
    let one = Attached::new(host, "a", addressed())?;
    one.del(host)?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])?;
    before.restored(host, &[])
}

fn del_removes_it_from_under_a_program(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    let _file = one.open(0)?.context("open it")?;
    one.del(host)?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])
}

fn del_without_netns_removes_it(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    one.call.without("CNI_NETNS").del().run(host)?.silence()?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

fn del_without_its_record_removes_it(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    host.run(&["rm", "-rf", "/run/bridgehead"])?;
    one.del(host)?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])
}

fn del_twice_and_of_what_was_never_added(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", addressed())?;
    one.del(host)?;
    one.del(host)?;
    let pod = host.pod("b")?;
    pod.ip_set("link add eth0 type bridge")?;
    tap("b", &pod, addressed()).del().run(host)?.silence()?;
    pod.need_link("eth0").map(drop)
}

fn del_with_a_dangling_namespace(host: &Sandbox) -> Result<()> {
    let before = Snapshot::take(host, &[])?;
    let one = Attached::new(host, "a", addressed())?;
    one.pod.remove()?;
    one.call.del().run(host)?.silence()?;
    before.restored(host, &[])
}

fn gc_removes_who_is_not_valid(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", with(addressed(), json!({"cniVersion": NEWEST})))?;
    let gc = |list: Value| one.call.set("cni.dev/valid-attachments", list).gc().run(host)?.silence();
    gc(json!([{"containerID": "a", "ifname": "eth0"}]))?;
    one.sound(host)?;
    gc(json!([]))?;
    equal("links of the pod", one.pod.link_names()?, ["lo"])?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}

fn twenty_at_once_come_and_go(host: &Sandbox) -> Result<()> {
    let calls = (0..20)
        .map(|n| {
            let pod = host.pod(&format!("x{n}"))?;
            Ok((tap(&format!("x{n}"), &pod, addressed()), pod))
        })
        .collect::<Result<Vec<_>>>()?;
    let started = calls.iter().map(|(call, _)| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.result()?;
    }
    equal("addresses", host.leases("net")?.len(), 20)?;
    let started = calls.iter().map(|(call, _)| call.del().start(host)).collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    equal("addresses", host.leases("net")?, [] as [&str; 0])?;
    calls.iter().try_for_each(|(_, pod)| equal("links of the pod", pod.link_names()?, ["lo"]))
}

fn we_remove_what_the_reference_added(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = tap("a", &pod, addressed());
    let result = call.from(REFERENCE).add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("links of the pod", pod.link_names()?, ["lo"])?;
    equal("addresses", host.leases("net")?, [] as [&str; 0])
}
