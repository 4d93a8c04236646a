//! ADD in all its forms, GC, and STATUS.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Kind, MASTER, addresses, attach, call, newest, same_addresses, uplink, usual};
use crate::call::Call;
use crate::cases::networks::{NEWEST, VERSIONS, pool, with};
use crate::expect::{contains, equal, holds, list_at, same_json, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

pub(super) fn the_result_has_the_interface_and_the_addresses<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let link = one.pod.need_link("eth0")?;
    let interfaces = json!([{"name": "eth0", "mac": link["address"], "sandbox": one.pod.netns()}]);
    same_json("interfaces", &one.result["interfaces"], &interfaces)?;
    let ips = json!([
        {"interface": 0, "address": "10.30.0.2/24", "gateway": "10.30.0.1"},
        {"interface": 0, "address": "fd30::2/64", "gateway": "fd30::1"},
    ]);
    same_json("ips", &one.result["ips"], &ips)?;
    same_json("routes", &one.result["routes"], &json!([{"dst": "0.0.0.0/0"}]))?;
    if K::SHARES_MAC {
        same_json("mac", &link["address"], &host.need_link(MASTER)?["address"])?;
    }
    Ok(())
}

pub(super) fn old_versions_get_old_results<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    for version in VERSIONS {
        let one = attach::<K>(host, "a", 0, with(same_addresses(), json!({"cniVersion": version})))
            .with_context(|| version.to_owned())?;
        equal("version", text_at(&one.result, "/cniVersion")?, version)?;
        match version {
            "0.1.0" | "0.2.0" => equal("ip4", text_at(&one.result, "/ip4/ip")?, "10.30.0.2/24")?,
            _ => equal("interfaces", list_at(&one.result, "/interfaces")?.len(), 1)?,
        }
        if version < NEWEST && version.starts_with("0.3") {
            holds(one.result["interfaces"][0].get("mtu").is_none(), format!("mtu in {version}"))?;
        }
        one.call.del().run(host)?.silence().with_context(|| version.to_owned())?;
        one.pod.remove()?;
    }
    Ok(())
}

pub(super) fn the_newest_version_tells_the_mtu<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    if K::HAS_MASTER {
        host.ip_set("link set up0 mtu 1420")?;
    }
    let one = attach::<K>(host, "a", 0, newest(addresses()))?;
    same_json("mtu", &one.result["interfaces"][0]["mtu"], &one.pod.need_link("eth0")?["mtu"])?;
    one.sound(host)
}

pub(super) fn the_pod_has_link_addresses_and_routes<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let link = one.pod.need_link("eth0")?;
    equal("kind", text_at(&link, "/linkinfo/info_kind")?, K::PLUGIN)?;
    let mut found = one.pod.addresses("eth0")?;
    found.sort();
    equal("addresses", found, ["10.30.0.2/24", "fd30::2/64"])?;
    let routes = one.pod.routes("-4", "main")?;
    let default = routes.iter().find(|route| route["dst"] == "default").context("no default route")?;
    equal("default route", default["gateway"].as_str(), Some("10.30.0.1"))?;
    one.pod.ping("10.30.0.2").or_else(|_| {
        // Its own addresses are those of `lo`, which is the pod's own matter.
        one.pod.ip_set("link set lo up")?;
        one.pod.ping("10.30.0.2")
    })
}

pub(super) fn the_link_names_its_owner<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let link = one.pod.need_link("eth0")?;
    equal("alias", text_at(&link, "/ifalias")?, "net/a/eth0")?;
    equal("group", text_at(&link, "/group")?, "default")
}

pub(super) fn ipv6_addresses_can_be_used_at_once<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let shown = one.pod.ip("addr show dev eth0")?;
    // The link's own address is the kernel's, which confirms it a moment later.
    let mut given = shown[0]["addr_info"].as_array().into_iter().flatten().filter(|it| it["scope"] != "link");
    let tentative = given.find(|it| it["tentative"] == true);
    holds(tentative.is_none(), format!("tentative: {tentative:?}"))
}

pub(super) fn duplicates_are_looked_for_on_request<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    // ADD waits until the address is known to be unique.
    let one = attach::<K>(host, "a", 0, with(addresses(), json!({"enabledad": true})))?;
    let shown = one.pod.ip("addr show dev eth0")?;
    for address in shown[0]["addr_info"].as_array().into_iter().flatten() {
        let is_settled = address.get("tentative").is_none() && address.get("dadfailed").is_none();
        holds(is_settled || address["scope"] == "link", format!("{address}"))?;
    }
    one.sound(host)
}

pub(super) fn a_name_that_the_host_has_is_no_hindrance<K: Kind>(host: &Sandbox) -> Result<()> {
    host.ip_set("link add eth0 type bridge")?;
    let one = usual::<K>(host)?;
    equal("links in the pod", one.pod.link_names()?, ["lo", "eth0"])?;
    equal("kind", text_at(&one.pod.need_link("eth0")?, "/linkinfo/info_kind")?, K::PLUGIN)?;
    one.sound(host)?;
    one.del(host)?;
    equal("links in the pod after DEL", one.pod.link_names()?, ["lo"])?;
    host.need_link("eth0").map(drop)
}

pub(super) fn a_taken_interface_name_is_an_error_and_nothing_changes<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    // One of another kind, and one of the same that nobody says anything of.
    for (id, kind) in [("a", "bridge".to_owned()), ("b", format!("{} number 1", K::PLUGIN))] {
        let pod = host.pod(id)?;
        if kind == "bridge" {
            pod.ip_set("link add eth0 type bridge")?;
        } else {
            by_hand::<K>(host, &pod, "eth0")?;
        }
        let before = Snapshot::take(host, &[&pod])?;
        let refusal = call::<K>(id, 0, &pod, addresses()).add().run(host)?.refusal()?;
        contains(format!("the error with a {kind} in the way"), &refusal.text(), "eth0")?;
        before.restored(host, &[&pod])?;
    }
    Ok(())
}

/// Makes a link in a pod as somebody else would.
pub(super) fn by_hand<K: Kind>(host: &Sandbox, pod: &Pod, name: &str) -> Result<()> {
    let netns = pod.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let link = if K::HAS_MASTER { format!("link {MASTER}") } else { String::new() };
    let id = if K::PLUGIN == "vlan" { "id 999" } else { "" };
    host.ip_set(&format!("link add {link} name byhand0 netns {netns} type {} {id}", K::PLUGIN))?;
    pod.ip_set(&format!("link set byhand0 name {name}"))
}

/// A network on which ADD fails when the route is installed, after everything else.
fn failing_late() -> Value {
    let ipam = pool(&["10.30.0.0/24", "fd30::/64"]);
    let unreachable = json!({"routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]});
    json!({"ipam": with(ipam, unreachable)})
}

fn fails_and_leaves_nothing<K: Kind>(host: &Sandbox, keys: Value) -> Result<String> {
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let what = keys.to_string();
    let refusal = call::<K>("p", 0, &pod, keys).add().run(host)?.refusal().with_context(|| what.clone())?;
    before.restored(host, &[&pod]).with_context(|| what)?;
    pod.remove()?;
    Ok(refusal.text())
}

pub(super) fn a_late_failure_leaves_nothing<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    fails_and_leaves_nothing::<K>(host, failing_late()).map(drop)
}

pub(super) fn a_failing_ipam_leaves_nothing<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let directory = host.fake_plugin("ipam", "odd", "echo '{\"code\": 77, \"msg\": \"no more\"}'; exit 1")?;
    let path = format!("{}:{}", host.plugins().display(), directory.display());
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = call::<K>("p", 0, &pod, json!({"ipam": {"type": "odd"}})).env("CNI_PATH", &path);
    contains("the error", &call.add().run(host)?.refusal()?.text(), "no more")?;
    before.restored(host, &[&pod])
}

pub(super) fn an_ipam_without_addresses_leaves_nothing<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let script = "[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\": \"1.0.0\"}'; exit 0";
    let directory = host.fake_plugin("ipam", "odd", script)?;
    let path = format!("{}:{}", host.plugins().display(), directory.display());
    let pod = host.pod("p")?;
    let before = Snapshot::take(host, &[&pod])?;
    let call = call::<K>("p", 0, &pod, json!({"ipam": {"type": "odd"}})).env("CNI_PATH", &path);
    call.add().run(host)?.refusal()?;
    before.restored(host, &[&pod])
}

pub(super) fn an_answer_that_cannot_be_written_is_undone<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let script = "CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_IFNAME=eth0 CNI_NETNS=\"$1\" CNI_PATH=\"$2\" exec \"$0\" >/dev/full";
    let config =
        with(with(json!({"cniVersion": "1.0.0", "name": "net", "type": K::PLUGIN}), K::keys(0)), addresses());
    let plugin = host.plugins().join(K::PLUGIN);
    let argv =
        ["sh", "-c", script, &plugin.to_string_lossy(), pod.netns(), &host.plugins().to_string_lossy()];
    if host.run_with_input(&argv, config.to_string().as_bytes())?.status.success() {
        bail!("ADD succeeds although its result cannot be written");
    }
    before.restored(host, &[&pod])
}

pub(super) fn add_again_gives_the_same_result<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let before = Snapshot::take(host, &[&one.pod])?;
    let again = one.call.add().run(host)?.result()?;
    same_json("result", &again, &one.result)?;
    before.restored(host, &[&one.pod])?;
    one.sound(host)
}

pub(super) fn add_again_repairs<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = attach::<K>(host, "a", 0, same_addresses())?;
    for damage in ["link del eth0", "addr del 10.30.0.2/24 dev eth0", "link set eth0 down"] {
        one.pod.ip_set(damage)?;
        let result = one.call.add().run(host)?.result().with_context(|| damage.to_owned())?;
        one.call.check().prev(&result).run(host)?.silence().with_context(|| damage.to_owned())?;
    }
    Ok(())
}

pub(super) fn add_again_in_a_new_namespace_starts_anew<K: Kind>(host: &Sandbox) -> Result<()> {
    let one = usual::<K>(host)?;
    let pod = host.pod("b")?;
    let moved = one.call.netns(&pod);
    let result = moved.add().run(host)?.result()?;
    equal("leases", host.leases("net")?.len(), 2)?;
    equal("links in the old namespace, which lives", one.pod.link_names()?, ["lo"])?;
    moved.check().prev(&result).run(host)?.silence()?;
    moved.del().run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

pub(super) fn wrong_values_are_named_and_change_nothing<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let mut wrong = vec![("ipam", json!("host-local"), 6), ("ipam", json!({"type": 7}), 6)];
    if K::HAS_MASTER {
        wrong.extend([
            ("master", json!(7), 6),
            ("master", json!("none0"), 7),
            ("master", json!("a/b"), 7),
            ("mtu", json!("1500"), 6),
            ("mtu", json!(-1), 7),
            ("mtu", json!(67), 7),
            ("mtu", json!(9000), 7),
            ("linkInContainer", json!("yes"), 6),
            ("dns", json!([]), 6),
        ]);
    }
    for (key, value, code) in wrong {
        let what = format!("{key}: {value}");
        let pod = host.pod("p")?;
        let before = Snapshot::take(host, &[&pod])?;
        let call = call::<K>("p", 0, &pod, with(addresses(), json!({key: value})));
        let refusal = call.add().run(host)?.refusal().with_context(|| what.clone())?;
        contains(&what, &refusal.text(), key)?;
        equal(format!("code with {what}"), refusal.code, code)?;
        before.restored(host, &[&pod]).with_context(|| what)?;
        pod.remove()?;
    }
    Ok(())
}

/// What an IPAM that speaks to the network sees of the pod's interface.
const LOOK: &str = "nsenter --net=$CNI_NETNS ip -o link show eth0 > /run/scratch/seen-by-$CNI_COMMAND 2>&1
case $CNI_COMMAND in ADD) echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.30.0.5/24\"}]}';; esac";

fn with_looking_ipam<K: Kind>(host: &Sandbox, pod: &Pod) -> Result<Call> {
    let directory = host.fake_plugin("ipam", "looks", LOOK)?;
    let path = format!("{}:{}", host.plugins().display(), directory.display());
    Ok(call::<K>("a", 0, pod, json!({"ipam": {"type": "looks"}})).env("CNI_PATH", &path))
}

pub(super) fn ipam_finds_the_interface_up<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = with_looking_ipam::<K>(host, &pod)?;
    let result = call.add().run(host)?.result()?;
    let seen = fs::read_to_string("/run/scratch/seen-by-ADD")?;
    contains("eth0 as the IPAM saw it", &seen, ",UP,LOWER_UP")?;
    let mac = text_at(&result, "/interfaces/0/mac")?;
    contains("eth0 as the IPAM saw it", &seen, mac)?;
    equal("addresses", pod.addresses("eth0")?, ["10.30.0.5/24"])?;
    call.check().prev(&result).run(host)?.silence()
}

/// Otherwise an address could not be given back over the network that it is from.
pub(super) fn ipam_is_told_to_delete_while_the_interface_is_there<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let pod = host.pod("a")?;
    let call = with_looking_ipam::<K>(host, &pod)?;
    for without_record in [false, true] {
        call.add().run(host)?.result()?;
        if without_record {
            fs::remove_dir_all("/run/bridgehead/attachments")?;
        }
        call.del().run(host)?.silence()?;
        contains("eth0 as the IPAM saw it", &fs::read_to_string("/run/scratch/seen-by-DEL")?, "UP")?;
        equal("links in the pod", pod.link_names()?, ["lo"])?;
    }
    Ok(())
}

pub(super) fn gc_removes_all_but_the_valid<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let all = (0..3)
        .map(|number| attach::<K>(host, &format!("pod{number}"), number, newest(addresses())))
        .collect::<Result<Vec<_>>>()?;
    let valid = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    all[0].call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.30.0.3", "fd30::3"])?;
    all[1].sound(host)?;
    all[0].call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

pub(super) fn gc_removes_the_link_of_a_living_namespace<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let one = attach::<K>(host, "a", 0, newest(addresses()))?;
    one.call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    equal("links in the pod", one.pod.link_names()?, ["lo"])
}

pub(super) fn gc_without_a_list_removes_the_dead<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let dead = attach::<K>(host, "dead", 0, newest(addresses()))?;
    let alive = attach::<K>(host, "alive", 1, newest(addresses()))?;
    dead.pod.remove()?;
    alive.call.gc().run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.30.0.3", "fd30::3"])?;
    alive.sound(host)
}

fn status_of<K: Kind>(host: &Sandbox, keys: Value) -> Result<Call> {
    let pod = host.pod("s")?;
    let call = call::<K>("s", 0, &pod, newest(keys)).status();
    pod.remove()?;
    Ok(call)
}

pub(super) fn status_is_silent_where_an_add_would_succeed<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    status_of::<K>(host, addresses())?.run(host)?.silence()
}

pub(super) fn status_says_50_where_no_address_is_left<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let keys = json!({"ipam": pool(&["10.30.0.0/30"])});
    attach::<K>(host, "a", 0, newest(keys.clone()))?;
    let refusal = status_of::<K>(host, keys)?.run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "10.30.0.1-10.30.0.2")
}

pub(super) fn status_says_50_where_the_master_is_missing<K: Kind>(host: &Sandbox) -> Result<()> {
    let call = status_of::<K>(host, addresses())?;
    if !K::HAS_MASTER {
        return call.run(host)?.silence();
    }
    contains("the error", &call.run(host)?.refused_with(50)?.text(), MASTER)?;
    let by_route = call.set("master", json!("")).run(host)?;
    if K::PLUGIN == "vlan" {
        return by_route.refusal().map(drop);
    }
    contains("the error", &by_route.refused_with(50)?.text(), "default route")
}

pub(super) fn forty_come_and_go_at_once<K: Kind>(host: &Sandbox) -> Result<()> {
    uplink(host)?;
    let before = Snapshot::take(host, &[])?;
    let pods = (0..40)
        .map(|number| {
            let (id, pod) = (format!("box{number}"), host.pod(&format!("p{number}"))?);
            Ok((call::<K>(&id, number, &pod, addresses()), pod))
        })
        .collect::<Result<Vec<_>>>()?;
    let started = pods.iter().map(|(call, _)| call.add().start(host)).collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for (one, (call, _)) in started.into_iter().zip(&pods) {
        let result = one.answer(host)?.result()?;
        found.push(text_at(&result, "/ips/0/address")?.to_owned());
        call.check().prev(&result).run(host)?.silence()?;
    }
    found.sort();
    found.dedup();
    equal("different addresses", found.len(), 40)?;
    let started = pods.iter().map(|(call, _)| call.del().start(host)).collect::<Result<Vec<_>>>()?;
    for one in started {
        one.answer(host)?.silence()?;
    }
    for (_, pod) in &pods {
        equal("links after DEL", pod.link_names()?, ["lo"])?;
    }
    before.restored(host, &[])
}
