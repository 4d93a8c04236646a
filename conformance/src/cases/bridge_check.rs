//! bridge: CHECK, STATUS and GC.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, gateway46, pool, with};
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "bridge/check" {
        all_is_well_right_after_add;
        all_is_well_with_masquerade needs [Need::Iptables];
        all_is_well_with_nftables needs [Need::Nftables];
        all_is_well_on_layer_2;
        all_is_well_with_the_interface_disabled;
        check_changes_nothing;
        what_later_plugins_add_is_no_damage;
        a_sniffer_on_the_bridge_is_no_damage needs [Need::Program("tcpdump")];
        the_address_is_removed;
        another_prefix_length;
        the_route_is_removed;
        the_pod_link_is_removed;
        the_pod_link_is_down;
        the_host_link_is_down;
        the_host_link_has_no_master;
        the_host_link_has_another_master;
        the_mtu_is_changed;
        the_mac_is_changed;
        hairpin_is_toggled;
        isolation_is_toggled;
        promiscuity_is_lost;
        the_bridge_is_removed;
        the_bridge_is_down;
        the_gateway_address_is_removed;
        forwarding_is_switched_off;
        ipv6_forwarding_is_switched_off needs [Need::Ipv6];
        the_masquerade_of_iptables_is_removed needs [Need::Iptables];
        the_masquerade_of_nftables_is_removed needs [Need::Nftables];
        the_reservation_is_removed;
        all_damage_is_reported_together;
    }
    "bridge/status" {
        status_is_silent_when_an_add_would_succeed;
        status_says_50_when_a_range_is_exhausted;
        status_names_an_absent_ipam_plugin;
        status_needs_no_ipam;
    }
    "bridge/gc" {
        gc_removes_all_but_the_valid;
        gc_with_an_empty_list_removes_all;
        gc_without_a_list_removes_nothing;
        gc_leaves_other_networks;
        gc_removes_what_has_lost_its_namespace;
        gc_removes_masquerade_of_nftables needs [Need::Nftables];
    }
}

fn masqueraded() -> Value {
    with(gateway46(), json!({"ipMasq": true}))
}

fn all_is_well_right_after_add(host: &Sandbox) -> Result<()> {
    for (id, network) in
        [("a", gateway4()), ("b", gateway46()), ("c", json!({"ipam": pool(&["10.20.0.0/24"])}))]
    {
        Attachment::new(host, id, network)?.sound(host).with_context(|| format!("pod {id}"))?;
    }
    Ok(())
}

fn all_is_well_with_masquerade(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", with(masqueraded(), json!({"ipMasqBackend": "iptables"})))?.sound(host)
}

fn all_is_well_with_nftables(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", with(masqueraded(), json!({"ipMasqBackend": "nftables"})))?.sound(host)
}

fn all_is_well_on_layer_2(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", json!({}))?.sound(host)
}

fn all_is_well_with_the_interface_disabled(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", json!({"disableContainerInterface": true}))?.sound(host)
}

fn check_changes_nothing(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", masqueraded())?;
    let before = Snapshot::take(host, &[&one.pod])?;
    one.sound(host)?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before)?;
    one.pod.ip_set("addr del 10.20.0.2/24 dev eth0")?;
    let before = Snapshot::take(host, &[&one.pod])?;
    one.damaged(host)?;
    Snapshot::take(host, &[&one.pod])?.unchanged_since(&before).context("CHECK of damage")
}

fn what_later_plugins_add_is_no_damage(host: &Sandbox) -> Result<()> {
    let mut one = Attachment::new(host, "a", gateway4())?;
    one.pod.ip_set("link add tun0 type bridge")?;
    one.pod.ip_set("addr add 10.77.0.1/24 dev tun0")?;
    one.pod.ip_set("addr add 10.20.0.222/24 dev eth0")?;
    one.pod.ip_set("route add 192.168.0.0/16 via 10.20.0.1")?;
    // A chained plugin appends an interface of its own to the result.
    if let Some(interfaces) = one.result["interfaces"].as_array_mut() {
        interfaces.push(json!({"name": "tun0", "mac": "02:00:00:00:00:07", "sandbox": "/run/netns/a"}));
    }
    if let Some(ips) = one.result["ips"].as_array_mut() {
        ips.push(json!({"interface": 3, "address": "10.77.0.1/24"}));
    }
    one.sound(host)
}

fn a_sniffer_on_the_bridge_is_no_damage(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    // It makes the bridge promiscuous as long as it runs; the case's own end kills it.
    let script = "tcpdump -i cni0 -w /dev/null >/dev/null 2>&1 & \
                  for i in 1 2 3 4 5 6 7 8 9 10; do \
                  [ \"$(cat /sys/class/net/cni0/flags)\" = 0x1103 ] && exit; sleep 0.1; done";
    host.run(&["sh", "-c", script])?;
    let promiscuity = host.need_link("cni0")?["promiscuity"].as_u64();
    equal("promiscuity while sniffing", promiscuity, Some(1))?;
    one.sound(host)
}

/// The usual network, then the damage, then CHECK must fail; gives what it says in lower case.
fn damage(host: &Sandbox, network: Value, deed: impl FnOnce(&Attachment) -> Result<()>) -> Result<String> {
    let one = Attachment::new(host, "a", network)?;
    one.sound(host).context("before the damage")?;
    deed(&one)?;
    Ok(one.damaged(host)?.to_lowercase())
}

fn the_address_is_removed(host: &Sandbox) -> Result<()> {
    let text = damage(host, gateway4(), |one| one.pod.ip_set("addr del 10.20.0.2/24 dev eth0"))?;
    contains("the error", &text, "10.20.0.2")
}

fn another_prefix_length(host: &Sandbox) -> Result<()> {
    let text = damage(host, gateway4(), |one| {
        one.pod.ip_set("addr add 10.20.0.2/16 dev eth0")?;
        one.pod.ip_set("route add 10.20.0.0/24 dev eth0 metric 5")?;
        one.pod.ip_set("addr del 10.20.0.2/24 dev eth0")?;
        one.pod.ip_set("route replace default via 10.20.0.1")
    })?;
    contains("the error", &text, "10.20.0.2")
}

fn the_route_is_removed(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| one.pod.ip_set("route del default")).map(drop)
}

fn the_pod_link_is_removed(host: &Sandbox) -> Result<()> {
    let text = damage(host, gateway4(), |one| one.pod.ip_set("link del eth0"))?;
    contains("the error", &text, "eth0")
}

fn the_pod_link_is_down(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| one.pod.ip_set("link set eth0 down")).map(drop)
}

fn the_host_link_is_down(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| host.ip_set(&format!("link set {} down", one.host_link()?))).map(drop)
}

fn the_host_link_has_no_master(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| host.ip_set(&format!("link set {} nomaster", one.host_link()?))).map(drop)
}

fn the_host_link_has_another_master(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| {
        host.ip_set("link add other type bridge")?;
        host.ip_set(&format!("link set {} master other", one.host_link()?))
    })
    .map(drop)
}

fn the_mtu_is_changed(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"mtu": 1400}));
    let text = damage(host, network, |one| one.pod.ip_set("link set eth0 mtu 1300"))?;
    contains("the error", &text, "1300")
}

fn the_mac_is_changed(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |one| one.pod.ip_set("link set eth0 address 02:00:00:00:66:66")).map(drop)
}

fn hairpin_is_toggled(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"hairpinMode": true}));
    let set =
        |one: &Attachment| host.run(&["bridge", "link", "set", "dev", one.host_link()?, "hairpin", "off"]);
    contains("the error", &damage(host, network, |one| set(one).map(drop))?, "hairpin")
}

fn isolation_is_toggled(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"portIsolation": true}));
    let set =
        |one: &Attachment| host.run(&["bridge", "link", "set", "dev", one.host_link()?, "isolated", "off"]);
    contains("the error", &damage(host, network, |one| set(one).map(drop))?, "isolat")
}

fn promiscuity_is_lost(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"promiscMode": true}));
    contains("the error", &damage(host, network, |_| host.ip_set("link set cni0 promisc off"))?, "promisc")
}

fn the_bridge_is_removed(host: &Sandbox) -> Result<()> {
    contains("the error", &damage(host, gateway4(), |_| host.ip_set("link del cni0"))?, "cni0")
}

fn the_bridge_is_down(host: &Sandbox) -> Result<()> {
    contains("the error", &damage(host, gateway4(), |_| host.ip_set("link set cni0 down"))?, "cni0")
}

fn the_gateway_address_is_removed(host: &Sandbox) -> Result<()> {
    let text = damage(host, gateway4(), |_| host.ip_set("addr del 10.20.0.1/24 dev cni0"))?;
    contains("the error", &text, "10.20.0.1")
}

fn forwarding_is_switched_off(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |_| host.set_sysctl("ipv4/ip_forward", "0")).map(drop)
}

fn ipv6_forwarding_is_switched_off(host: &Sandbox) -> Result<()> {
    damage(host, gateway46(), |_| host.set_sysctl("ipv6/conf/all/forwarding", "0")).map(drop)
}

fn the_masquerade_of_iptables_is_removed(host: &Sandbox) -> Result<()> {
    let network = with(masqueraded(), json!({"ipMasqBackend": "iptables"}));
    damage(host, network, |_| host.run(&["iptables", "-w", "-t", "nat", "-F", "POSTROUTING"]).map(drop))
        .map(drop)
}

fn the_masquerade_of_nftables_is_removed(host: &Sandbox) -> Result<()> {
    let network = with(masqueraded(), json!({"ipMasqBackend": "nftables"}));
    damage(host, network, |_| host.run(&["nft", "flush", "ruleset"]).map(drop)).map(drop)
}

fn the_reservation_is_removed(host: &Sandbox) -> Result<()> {
    damage(host, gateway4(), |_| {
        std::fs::remove_file("/var/lib/cni/networks/net/10.20.0.2").context("cannot remove the reservation")
    })
    .map(drop)
}

fn all_damage_is_reported_together(host: &Sandbox) -> Result<()> {
    let text = damage(host, gateway4(), |one| {
        one.pod.ip_set("addr del 10.20.0.2/24 dev eth0")?;
        host.ip_set("addr del 10.20.0.1/24 dev cni0")?;
        host.ip_set(&format!("link set {} nomaster", one.host_link()?))
    })?;
    for part in ["10.20.0.2", "10.20.0.1", "cni0"] {
        contains("the error", &text, part)?;
    }
    Ok(())
}

fn newest(host: &Sandbox, id: &str, network: Value) -> Result<Attachment> {
    let network = with(network, json!({"cniVersion": NEWEST}));
    let pod = host.pod(id)?;
    // Set after the fact, since the usual version is the default.
    let call = bridge(id, &pod, network);
    let result = call.add().run(host)?.result()?;
    Ok(Attachment { pod, call, result })
}

fn status_is_silent_when_an_add_would_succeed(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, masqueraded()).set("cniVersion", json!(NEWEST));
    let before = Snapshot::take(host, &[&pod])?;
    call.status().run(host)?.silence()?;
    Snapshot::take(host, &[&pod])?.unchanged_since(&before)
}

fn status_says_50_when_a_range_is_exhausted(host: &Sandbox) -> Result<()> {
    let one = newest(host, "a", with(gateway4(), json!({"ipam": pool(&["10.20.0.0/30"])})))?;
    one.call.status().run(host)?.refused_with(50)?;
    one.del(host)?;
    one.call.status().run(host)?.silence()
}

fn status_names_an_absent_ipam_plugin(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let call = bridge("a", &pod, json!({"ipam": {"type": "absent"}})).set("cniVersion", json!(NEWEST));
    contains("the error", &call.status().run(host)?.refused_with(50)?.text(), "absent")
}

fn status_needs_no_ipam(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    bridge("a", &pod, json!({})).set("cniVersion", json!(NEWEST)).status().run(host)?.silence()
}

/// Three attachments, one of them a second interface, then GC.
fn collect(host: &Sandbox, network: Value, valid: Option<Value>) -> Result<Vec<Attachment>> {
    let all = vec![
        newest(host, "a", network.clone())?,
        newest(host, "b", network.clone())?,
        newest(host, "c", network)?,
    ];
    let mut call = all[0].call.gc();
    if let Some(valid) = valid {
        // libcni sends the list under both names.
        call = call.set("cni.dev/valid-attachments", valid.clone()).set("cni.dev/attachments", valid);
    }
    call.run(host)?.silence()?;
    Ok(all)
}

fn gone(host: &Sandbox, one: &Attachment) -> Result<()> {
    let what = one.pod.netns();
    equal(format!("links in {what}"), one.pod.link_names()?, ["lo"])?;
    holds(host.link(one.host_link()?)?.is_none(), format!("the host link of {what} is there"))?;
    let address = one.address()?;
    holds(!host.leases("net")?.contains(&address.to_owned()), format!("{address} is reserved"))?;
    lacks(format!("rules for {what}"), &host.run(&["nft", "-s", "list", "ruleset"])?, address)
}

fn gc_removes_all_but_the_valid(host: &Sandbox) -> Result<()> {
    let all = collect(host, masqueraded(), Some(json!([{"containerID": "b", "ifname": "eth0"}])))?;
    gone(host, &all[0])?;
    gone(host, &all[2])?;
    all[1].sound(host)?;
    equal("leases", host.leases("net")?, ["10.20.0.3", "fd20::3"])
}

fn gc_with_an_empty_list_removes_all(host: &Sandbox) -> Result<()> {
    for one in collect(host, masqueraded(), Some(json!([])))? {
        gone(host, &one)?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn gc_without_a_list_removes_nothing(host: &Sandbox) -> Result<()> {
    for one in collect(host, masqueraded(), None)? {
        one.sound(host)?;
    }
    Ok(())
}

fn gc_leaves_other_networks(host: &Sandbox) -> Result<()> {
    let network =
        with(masqueraded(), json!({"name": "other", "bridge": "cni1", "ipam": pool(&["10.21.0.0/24"])}));
    let other = newest(host, "z", network)?;
    collect(host, masqueraded(), Some(json!([])))?;
    other.sound(host)
}

fn gc_removes_what_has_lost_its_namespace(host: &Sandbox) -> Result<()> {
    let lost = newest(host, "lost", masqueraded())?;
    let kept = newest(host, "kept", masqueraded())?;
    lost.pod.remove()?;
    let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
    kept.call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.20.0.3", "fd20::3"])?;
    lacks("rules", &host.run(&["nft", "-s", "list", "ruleset"])?, "10.20.0.2")?;
    kept.sound(host)
}

fn gc_removes_masquerade_of_nftables(host: &Sandbox) -> Result<()> {
    let network = with(masqueraded(), json!({"ipMasqBackend": "nftables"}));
    let all = collect(host, network, Some(json!([{"containerID": "b", "ifname": "eth0"}])))?;
    gone(host, &all[0])?;
    gone(host, &all[2])?;
    contains("rules", &host.run(&["nft", "-s", "list", "ruleset"])?, all[1].address()?)
}
