//! A plugin type that stands in a chain more than once.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, USUAL, gateway46, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, lacks, same_json};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "chained" {
        each_entry_of_a_type_answers_for_itself;
        a_new_previous_result_is_echoed;
        without_a_chain_another_configuration_starts_anew;
        del_leaves_what_another_network_has_in_the_pod needs [
            Need::Plugin("bridgehead"), Need::Plugin("tuning"), Need::Plugin("sbr"), Need::Plugin("host-device")
        ];
        check_passes_after_later_plugins needs [Need::Plugin("bridgehead"), Need::Plugin("ptp"), Need::Plugin("tuning"), Need::Plugin("sbr")];
        a_tuned_interface_is_what_add_has_made needs [
            Need::Plugin("bridgehead"), Need::Plugin("tuning"), Need::Plugin("macvlan"), Need::Plugin("tap"),
            Need::Plugin("host-device")
        ];
        add_again_does_what_the_runtime_asks_for_now needs [Need::Plugin("bridgehead"), Need::Plugin("tuning")];
        del_without_a_record_spares_another_pod needs [
            Need::Plugin("bridgehead"), Need::Plugin("tuning"), Need::Plugin("sbr")
        ];
        del_leaves_what_another_interface_has_on_the_network needs [
            Need::Plugin("bridgehead"), Need::Plugin("portmap"), Need::Iptables
        ];
        del_of_sbr_works_when_the_addresses_are_gone needs [Need::Plugin("bridgehead"), Need::Plugin("sbr")];
        del_leaves_the_device_of_another_network needs [Need::Plugin("bridgehead"), Need::Plugin("host-device")];
    }
}

/// An entry of a chain; the plugin does not know the key, but it tells one entry from another.
fn entry(pod: &Pod, entry: u32) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "lo-net", "type": "loopback", "entry": entry});
    Call::new("loopback").id("c1").ifname("lo").netns(pod).config(config)
}

fn prev(address: &str) -> Value {
    json!({
        "cniVersion": USUAL,
        "interfaces": [{"name": "eth0", "sandbox": "/pod"}],
        "ips": [{"interface": 0, "address": address}],
    })
}

fn each_entry_of_a_type_answers_for_itself(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for _ in 0..2 {
        for (number, address) in [(1, "10.1.0.5/24"), (2, "10.1.0.6/24"), (3, "10.1.0.7/24")] {
            let result = entry(&pod, number).add().prev(&prev(address)).run(host)?.result()?;
            same_json(format!("result of entry {number}"), &result, &prev(address))?;
        }
    }
    entry(&pod, 3).del().run(host)?.silence()?;
    entry(&pod, 2).del().run(host)?.silence()
}

fn a_new_previous_result_is_echoed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    for address in ["10.1.0.5/24", "10.1.0.6/24"] {
        let result = entry(&pod, 1).add().prev(&prev(address)).run(host)?.result()?;
        same_json("result", &result, &prev(address))?;
    }
    Ok(())
}

fn without_a_chain_another_configuration_starts_anew(host: &Sandbox) -> Result<()> {
    let pod = host.pod("p")?;
    let first = entry(&pod, 1).add().run(host)?.result()?;
    let second = entry(&pod, 2).add().run(host)?.result()?;
    same_json("result", &second, &first)
}

/// A call for a network other than the usual one, of the same container and interface.
fn on_second(plugin: &str, pod: &Pod, more: Value) -> Call {
    let config = json!({"cniVersion": USUAL, "name": "second", "type": plugin});
    Call::new(plugin).id("a").ifname("eth0").netns(pod).config(with(config, more))
}

fn del_leaves_what_another_network_has_in_the_pod(host: &Sandbox) -> Result<()> {
    // The first entry of the second network's chain fails, since it has the same interface; then all get a DEL.
    let one = Attachment::new(host, "a", gateway46())?;
    let mac = json!({"mac": "02:00:00:00:00:05", "mtu": 1300, "promisc": true});
    for (plugin, more) in [("tuning", mac), ("sbr", json!({}))] {
        let config = with(json!({"cniVersion": USUAL, "name": "net", "type": plugin}), more);
        let call = Call::new(plugin).id("a").ifname("eth0").netns(&one.pod).config(config);
        call.add().prev(&one.result).run(host)?.result().context(plugin)?;
    }
    let rules = |pod: &Pod| pod.run(&["sh", "-c", "ip rule; ip -6 rule; ip route show table all"]);
    let before = (Snapshot::take(host, &[&one.pod])?, rules(&one.pod)?);
    let ipam = json!({"ipam": pool(&["10.66.0.0/24"])});
    let refusal = on_second("bridge", &one.pod, ipam.clone()).add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), "eth0")?;
    for (plugin, more) in [
        ("tuning", json!({})),
        ("sbr", json!({})),
        ("sbr", json!({"prevResult": one.result})),
        ("host-device", json!({"device": "other0"})),
        ("bridge", ipam),
    ] {
        for call in [
            on_second(plugin, &one.pod, more.clone()),
            on_second(plugin, &one.pod, more).env("CNI_NETNS", ""),
        ] {
            call.del().run(host)?.silence().context(plugin)?;
            before.0.restored(host, &[&one.pod]).context(plugin)?;
            same_json(format!("rules after DEL of {plugin}"), &json!(rules(&one.pod)?), &json!(before.1))?;
        }
    }
    // What was before tuning is still known.
    let call = Call::new("tuning").id("a").ifname("eth0").netns(&one.pod);
    let config = json!({"cniVersion": USUAL, "name": "net", "type": "tuning"});
    call.config(config).del().run(host)?.silence()?;
    same_json("MTU", &one.pod.need_link("eth0")?["mtu"], &json!(1500))
}

fn del_leaves_the_device_of_another_network(host: &Sandbox) -> Result<()> {
    host.ip_set("link add dev0 type veth peer name end0")?;
    host.ip_set("link add dev1 type veth peer name end1")?;
    let pod = host.pod("a")?;
    let first = on_second("host-device", &pod, json!({"name": "first", "device": "dev0"}));
    first.add().run(host)?.result()?;
    let before = Snapshot::take(host, &[&pod])?;
    let second = on_second("host-device", &pod, json!({"device": "dev1"}));
    second.add().run(host)?.refusal()?;
    second.del().run(host)?.silence()?;
    before.restored(host, &[&pod])?;
    first.del().run(host)?.silence()
}

/// A call of another entry of the chain of a network `net`.
fn entry_of(plugin: &str, pod: &Pod, version: &str, more: Value) -> Call {
    let config = json!({"cniVersion": version, "name": "net", "type": plugin});
    Call::new(plugin).id("a").ifname("eth0").netns(pod).config(with(config, more))
}

fn check_passes_after_later_plugins(host: &Sandbox) -> Result<()> {
    // The MTU is not in results before 1.1.0; and sbr moves what is in the main table, whether that is named or not.
    let routes = json!({"routes": [{"dst": "192.168.0.0/16", "table": 254}]});
    let ipam = json!({"mtu": 9000, "ipam": with(pool(&["10.20.0.0/24"]), routes)});
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        for plugin in ["bridge", "ptp"] {
            let pod = host.pod("a")?;
            let chain = [
                entry_of(
                    plugin,
                    &pod,
                    version,
                    with(json!({"bridge": "cni0", "isGateway": true}), ipam.clone()),
                ),
                entry_of("tuning", &pod, version, json!({"mtu": 1400, "mac": "02:00:00:00:00:05"})),
                entry_of("sbr", &pod, version, json!({})),
            ];
            let mut result = chain[0].add().run(host)?.result()?;
            for call in &chain[1..] {
                result = call.add().prev(&result).run(host)?.result()?;
            }
            for call in &chain {
                call.check()
                    .prev(&result)
                    .run(host)?
                    .silence()
                    .with_context(|| format!("{plugin} {version}"))?;
            }
            for call in chain.iter().rev() {
                call.del().prev(&result).run(host)?.silence()?;
            }
            pod.remove()?;
        }
    }
    Ok(())
}

fn a_tuned_interface_is_what_add_has_made(host: &Sandbox) -> Result<()> {
    host.ip_set("link add up0 type veth peer name up1")?;
    host.ip_set("link set up0 up")?;
    host.ip_set("link add dev0 type veth peer name dev1")?;
    let tuning = json!({"mtu": 1300, "mac": "02:00:00:00:00:05", "promisc": true});
    for version in ["0.4.0", "1.1.0"] {
        for (plugin, more) in [
            ("macvlan", json!({"master": "up0", "mtu": 1450})),
            ("tap", json!({"mtu": 1450})),
            ("host-device", json!({"device": "dev0"})),
        ] {
            let pod = host.pod("a")?;
            let before = Snapshot::take(host, &[&pod])?;
            let ipam = json!({"ipam": pool(&["10.20.0.0/24"])});
            let chain = [
                entry_of(plugin, &pod, version, with(more, ipam)),
                entry_of("tuning", &pod, version, tuning.clone()),
            ];
            let what = || format!("{plugin} {version}");
            let add = || {
                let first = chain[0].add().run(host)?.result()?;
                chain[1].add().prev(&first).run(host)?.result()
            };
            let result = add().with_context(what)?;
            for call in &chain {
                call.check().prev(&result).run(host)?.silence().with_context(what)?;
            }
            same_json("result of ADD again", &add()?, &result).with_context(what)?;
            for call in chain.iter().rev() {
                call.del().prev(&result).run(host)?.silence().with_context(what)?;
            }
            before.restored(host, &[&pod]).with_context(what)?;
            pod.remove()?;
        }
    }
    Ok(())
}

fn add_again_does_what_the_runtime_asks_for_now(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let bridge = |ip: &str| {
        let more = json!({"runtimeConfig": {"ips": [ip]}, "ipam": pool(&["10.20.0.0/24"])});
        entry_of("bridge", &pod, USUAL, more)
    };
    bridge("10.20.0.5").add().run(host)?.result()?;
    let result = bridge("10.20.0.6").add().run(host)?.result()?;
    same_json("address", &result["ips"][0]["address"], &json!("10.20.0.6/24"))?;
    // What no plugin looks at may change while a pod lives.
    let links = pod.run(&["ip", "-o", "link"])?;
    let annotated = json!({"ips": ["10.20.0.6"], "io.kubernetes.cri.pod-annotations": {"a": "b"}});
    bridge("").set("runtimeConfig", annotated).add().run(host)?.result()?;
    equal("links", pod.run(&["ip", "-o", "link"])?, links)?;
    let of_args = bridge("10.20.0.6").env("CNI_ARGS", "MAC=02:00:00:00:00:07");
    let result = of_args.add().run(host)?.result()?;
    same_json("MAC address", &result["interfaces"][2]["mac"], &json!("02:00:00:00:00:07"))?;
    let tuned = |mac: &str| {
        let wishes = json!({"runtimeConfig": {"mac": mac}});
        entry_of("tuning", &pod, USUAL, wishes).prev(&result)
    };
    tuned("02:00:00:00:00:08").add().run(host)?.result()?;
    let last = tuned("02:00:00:00:00:09").add().run(host)?.result()?;
    same_json("MAC address", &last["interfaces"][2]["mac"], &json!("02:00:00:00:00:09"))?;
    tuned("02:00:00:00:00:09").check().prev(&last).run(host)?.silence()?;
    tuned("02:00:00:00:00:09").del().prev(&last).run(host)?.silence()?;
    contains("the pod's interface", &pod.run(&["ip", "link", "show", "eth0"])?, "02:00:00:00:00:07")
}

fn del_without_a_record_spares_another_pod(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let other = Attachment::new(host, "b", gateway46())?;
    let tuning = json!({"mac": "02:00:00:00:00:05", "mtu": 1300});
    entry_of("tuning", &one.pod, USUAL, tuning.clone()).add().prev(&one.result).run(host)?.result()?;
    let sbr = |pod: &Pod, id: &str| entry_of("sbr", pod, USUAL, json!({})).id(id);
    sbr(&other.pod, "b").add().prev(&other.result).run(host)?.result()?;
    host.run(&["rm", "-r", "/run/bridgehead"])?;
    let rules = || other.pod.run(&["sh", "-c", "ip rule; ip -6 rule"]);
    let before = (Snapshot::take(host, &[&other.pod])?, rules()?);
    sbr(&other.pod, "a").del().prev(&one.result).run(host)?.silence()?;
    entry_of("tuning", &other.pod, USUAL, tuning).del().prev(&one.result).run(host)?.silence()?;
    before.0.restored(host, &[&other.pod])?;
    equal("rules", rules()?, before.1)
}

fn del_leaves_what_another_interface_has_on_the_network(host: &Sandbox) -> Result<()> {
    // Chains of iptables are named by network and container; the ADD of the second interface fails, and gets its DEL.
    let pod = host.pod("a")?;
    let more = json!({
        "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "iptables",
        "ipam": pool(&["10.20.0.0/24"])
    });
    let bridge = entry_of("bridge", &pod, USUAL, more);
    let result = bridge.add().run(host)?.result()?;
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let more = json!({"backend": "iptables", "runtimeConfig": ports});
    let portmap = entry_of("portmap", &pod, USUAL, more);
    portmap.add().prev(&result).run(host)?.result()?;
    pod.ip_set("link add eth1 type veth peer name other")?;
    bridge.ifname("eth1").add().run(host)?.refusal()?;
    for call in [&portmap, &bridge] {
        call.ifname("eth1").del().run(host)?.silence()?;
    }
    for call in [&portmap, &bridge] {
        call.check().prev(&result).run(host)?.silence()?;
    }
    for call in [&portmap, &bridge] {
        call.del().prev(&result).run(host)?.silence()?;
    }
    let left = host.run(&["iptables", "-t", "nat", "-S"])?;
    lacks("rules", &left, "10.20.0.2")
}

fn del_of_sbr_works_when_the_addresses_are_gone(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let sbr = entry_of("sbr", &one.pod, USUAL, json!({}));
    let result = sbr.add().prev(&one.result).run(host)?.result()?;
    one.pod.ip_set("addr flush dev eth0")?;
    sbr.del().prev(&result).run(host)?.silence()?;
    let rules = one.pod.run(&["sh", "-c", "ip rule; ip -6 rule"])?;
    lacks("rules", &rules, "10.20.0.2")?;
    lacks("rules", &rules, "fd20::2")
}
