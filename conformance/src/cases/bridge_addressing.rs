//! bridge: addresses, routes and the gateway.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, gateway46, pool, with};
use crate::case::Need;
use crate::expect::{at, contains, equal, holds, same_json};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use crate::snapshot::Snapshot;

cases! {
    "bridge/addresses" {
        the_address_is_in_the_pod;
        ipv6_addresses_can_be_used_at_once needs [Need::Ipv6];
        several_addresses_are_all_there needs [Need::Ipv6];
        ipv6_survives_when_the_link_goes_down needs [Need::Ipv6];
        ipv6_is_switched_on_for_an_ipv6_address needs [Need::Ipv6];
        duplicate_detection_is_done_on_request needs [Need::Ipv6];
        addresses_of_static_are_taken;
        the_last_address_of_a_subnet_has_a_broadcast;
    }
    "bridge/routes" {
        there_is_a_default_route_on_request;
        there_is_none_without;
        each_family_has_one_default_route needs [Need::Ipv6];
        a_default_route_of_ipam_is_kept;
        a_default_route_without_gateway_is_that_of_the_bridge;
        routes_of_ipam_take_the_gateway_of_the_address;
        routes_without_any_gateway_are_on_link;
        numbers_of_0_are_as_if_they_were_not_there needs [Need::Plugin("bridgehead"), Need::Ipv6];
        what_1_1_has_is_installed;
        what_1_1_has_is_installed_for_ipv6 needs [Need::Ipv6];
    }
    "bridge/gateway" {
        the_bridge_has_the_gateway_address;
        the_bridge_has_none_without_is_gateway;
        a_configured_gateway_is_used;
        a_missing_gateway_is_the_first_address;
        forwarding_is_on_for_the_families_in_use needs [Need::Ipv6];
        another_address_on_the_bridge_is_a_conflict;
        another_address_is_replaced_on_request;
        an_overlapping_ipv6_address_is_a_conflict needs [Need::Ipv6];
        a_disjoint_ipv6_address_is_none needs [Need::Ipv6];
        the_same_address_is_none;
    }
}

fn route<'a>(routes: &'a [Value], dst: &str) -> Result<&'a Value> {
    routes
        .iter()
        .find(|route| route["dst"] == dst)
        .with_context(|| format!("no route to {dst} in {routes:?}"))
}

/// Gateways of the default routes.
fn defaults(pod: &Pod, family: &str) -> Result<Vec<String>> {
    let routes = pod.routes(family, "main")?;
    let defaults = routes.iter().filter(|route| route["dst"] == "default");
    Ok(defaults.map(|route| route["gateway"].as_str().unwrap_or_default().to_owned()).collect())
}

fn the_address_is_in_the_pod(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    equal("addresses", one.pod.addresses("eth0")?, ["10.20.0.2/24"])?;
    let link = one.pod.ip("addr show dev eth0")?;
    let address = &link[0]["addr_info"][0];
    same_json("broadcast", &address["broadcast"], &json!("10.20.0.255"))?;
    same_json("scope", &address["scope"], &json!("global"))
}

fn ipv6_addresses_can_be_used_at_once(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let link = one.pod.ip("addr show dev eth0")?;
    let list = link[0]["addr_info"].as_array().cloned().unwrap_or_default();
    let address =
        list.iter().find(|address| address["local"] == "fd20::2").context("fd20::2 is not there")?;
    holds(address.get("tentative").is_none(), format!("it is tentative: {address}"))?;
    same_json("prefix length", &address["prefixlen"], &json!(64))
}

fn several_addresses_are_all_there(host: &Sandbox) -> Result<()> {
    let ipam = pool(&["10.20.0.0/24", "fd20::/64", "fd21::/64"]);
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    let mut found = one.pod.addresses("eth0")?;
    found.sort();
    equal("addresses", found, ["10.20.0.2/24", "fd20::2/64", "fd21::2/64"])?;
    let mut found = host.addresses("cni0")?;
    found.sort();
    equal("gateways", found, ["10.20.0.1/24", "fd20::1/64", "fd21::1/64"])?;
    one.sound(host)
}

fn ipv6_survives_when_the_link_goes_down(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    one.pod.ip_set("link set eth0 down")?;
    let mut found = one.pod.addresses("eth0")?;
    found.sort();
    equal("addresses", found, ["10.20.0.2/24", "fd20::2/64"])
}

fn ipv6_is_switched_on_for_an_ipv6_address(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    for scope in ["all", "default"] {
        pod.set_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    bridge("a", &pod, gateway46()).add().run(host)?.result()?;
    equal("disable_ipv6", pod.sysctl("ipv6/conf/eth0/disable_ipv6")?, "0")?;
    holds(pod.addresses("eth0")?.contains(&"fd20::2/64".to_owned()), "fd20::2 is not there")
}

fn duplicate_detection_is_done_on_request(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway46(), json!({"enabledad": true})))?;
    let value = one.pod.sysctl("ipv6/conf/eth0/accept_dad")?;
    holds(value != "0", "accept_dad of eth0 is 0")?;
    // ADD waits until the address is known to be unique.
    let link = one.pod.ip("addr show dev eth0")?;
    let list = link[0]["addr_info"].as_array().cloned().unwrap_or_default();
    let address =
        list.iter().find(|address| address["local"] == "fd20::2").context("fd20::2 is not there")?;
    holds(address.get("tentative").is_none() && address.get("dadfailed").is_none(), format!("{address}"))
}

fn addresses_of_static_are_taken(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.30.0.7/16", "gateway": "10.30.0.1"}]});
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    equal("addresses", one.pod.addresses("eth0")?, ["10.30.0.7/16"])?;
    equal("gateway", host.addresses("cni0")?, ["10.30.0.1/16"])?;
    one.pod.ping("10.30.0.1")
}

fn the_last_address_of_a_subnet_has_a_broadcast(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "host-local", "subnet": "10.20.0.0/22", "rangeStart": "10.20.3.254"});
    let one = Attachment::new(host, "a", json!({"isGateway": true, "ipam": ipam}))?;
    let link = one.pod.ip("addr show dev eth0")?;
    same_json("broadcast", &link[0]["addr_info"][0]["broadcast"], &json!("10.20.3.255"))
}

fn there_is_a_default_route_on_request(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    equal("default routes", defaults(&one.pod, "-4")?, ["10.20.0.1"])?;
    let routes = one.pod.routes("-4", "main")?;
    equal("device of the subnet", route(&routes, "10.20.0.0/24")?["dev"].as_str(), Some("eth0"))
}

fn there_is_none_without(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({"isGateway": true, "ipam": pool(&["10.20.0.0/24"])}))?;
    equal("default routes", defaults(&one.pod, "-4")?, Vec::<String>::new())?;
    equal("routes in the result", one.result["routes"].as_array().map_or(0, Vec::len), 0)
}

fn each_family_has_one_default_route(host: &Sandbox) -> Result<()> {
    let ipam = pool(&["10.20.0.0/24", "10.21.0.0/24", "fd20::/64", "fd21::/64"]);
    let one =
        Attachment::new(host, "a", json!({"isDefaultGateway": true, "forceAddress": true, "ipam": ipam}));
    // Two IPv4 gateways cannot both be on the bridge in the reference; what matters is the pod.
    let Ok(one) = one else {
        let ipam = pool(&["10.20.0.0/24", "fd20::/64", "fd21::/64"]);
        let one = Attachment::new(host, "b", json!({"isDefaultGateway": true, "ipam": ipam}))?;
        equal("v4", defaults(&one.pod, "-4")?, ["10.20.0.1"])?;
        return equal("v6", defaults(&one.pod, "-6")?, ["fd20::1"]);
    };
    equal("v4", defaults(&one.pod, "-4")?, ["10.20.0.1"])?;
    equal("v6", defaults(&one.pod, "-6")?, ["fd20::1"])
}

fn a_default_route_of_ipam_is_kept(host: &Sandbox) -> Result<()> {
    let ipam = with(pool(&["10.20.0.0/24"]), json!({"routes": [{"dst": "0.0.0.0/0", "gw": "10.20.0.99"}]}));
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    equal("default routes", defaults(&one.pod, "-4")?, ["10.20.0.99"])
}

fn a_default_route_without_gateway_is_that_of_the_bridge(host: &Sandbox) -> Result<()> {
    let ipam = with(pool(&["10.20.0.0/24"]), json!({"routes": [{"dst": "0.0.0.0/0"}]}));
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    equal("default routes", defaults(&one.pod, "-4")?, ["10.20.0.1"])?;
    one.sound(host)
}

fn routes_of_ipam_take_the_gateway_of_the_address(host: &Sandbox) -> Result<()> {
    let routes = json!([{"dst": "192.168.0.0/16"}, {"dst": "192.168.7.0/24", "gw": "10.20.0.7"}]);
    let ipam = with(pool(&["10.20.0.0/24"]), json!({"routes": routes}));
    let one = Attachment::new(host, "a", json!({"isGateway": true, "ipam": ipam}))?;
    let routes = one.pod.routes("-4", "main")?;
    equal("without gw", route(&routes, "192.168.0.0/16")?["gateway"].as_str(), Some("10.20.0.1"))?;
    equal("with gw", route(&routes, "192.168.7.0/24")?["gateway"].as_str(), Some("10.20.0.7"))?;
    one.sound(host)
}

fn routes_without_any_gateway_are_on_link(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.30.0.7/24"}], "routes": [{"dst": "192.168.0.0/16"}]});
    let one = Attachment::new(host, "a", json!({"ipam": ipam}))?;
    let routes = one.pod.routes("-4", "main")?;
    let found = route(&routes, "192.168.0.0/16")?;
    equal("gateway", found.get("gateway"), None)?;
    equal("device", found["dev"].as_str(), Some("eth0"))
}

fn numbers_of_0_are_as_if_they_were_not_there(host: &Sandbox) -> Result<()> {
    for (subnet, dst, host_of) in
        [("10.20.0.0/24", "192.168.0.0/16", "192.168.7.7/16"), ("fd20::/64", "fd99::/64", "fd99::7/64")]
    {
        let zero = json!({"dst": dst, "mtu": 0, "advmss": 0, "priority": 0, "table": 0});
        // The others are the same route.
        let routes = json!([zero, {"dst": dst}, {"dst": host_of}]);
        let ipam = with(pool(&[subnet]), json!({"routes": routes}));
        let network = json!({"cniVersion": NEWEST, "isGateway": true, "ipam": ipam});
        let one = Attachment::new(host, "a", network)?;
        one.sound(host)?;
        let again = one.call.add().run(host)?.result()?;
        same_json("the result of an ADD again", &again, &one.result)?;
        one.del(host)?;
        one.pod.remove()?;
    }
    Ok(())
}

fn extended(host: &Sandbox, subnet: &str, family: &str, gateway: &str, dst: &str) -> Result<()> {
    let routes = json!([
        {"dst": dst, "gw": gateway, "mtu": 1400, "advmss": 1340, "priority": 55},
        {"dst": dst, "gw": gateway, "table": 100},
    ]);
    let pod = host.pod("a")?;
    let network = json!({"isGateway": true, "ipam": with(pool(&[subnet]), json!({"routes": routes}))});
    let call = bridge("a", &pod, network).set("cniVersion", json!(NEWEST));
    let result = call.add().run(host)?.result()?;
    same_json("routes in the result", at(&result, "/routes")?, &routes)?;
    let main = pod.routes(family, "main")?;
    let found = route(&main, dst)?;
    same_json("priority", &found["metric"], &json!(55))?;
    same_json("mtu", &found["metrics"][0]["mtu"], &json!(1400))?;
    same_json("advmss", &found["metrics"][0]["advmss"], &json!(1340))?;
    let other = pod.routes(family, "100")?;
    equal("gateway in table 100", route(&other, dst)?["gateway"].as_str(), Some(gateway))?;
    call.check().prev(&result).run(host)?.silence().context("CHECK")
}

fn what_1_1_has_is_installed(host: &Sandbox) -> Result<()> {
    extended(host, "10.20.0.0/24", "-4", "10.20.0.1", "192.168.0.0/16")?;
    let pod = host.pod("b")?;
    let routes = json!([{"dst": "192.168.1.0/24", "scope": 253}]);
    let ipam = json!({"type": "static", "addresses": [{"address": "10.20.0.200/24"}], "routes": routes});
    let call = bridge("b", &pod, json!({"ipam": ipam})).set("cniVersion", json!(NEWEST));
    call.add().run(host)?.result()?;
    let main = pod.routes("-4", "main")?;
    same_json("scope", &route(&main, "192.168.1.0/24")?["scope"], &json!("link"))
}

fn what_1_1_has_is_installed_for_ipv6(host: &Sandbox) -> Result<()> {
    extended(host, "fd20::/64", "-6", "fd20::1", "fd99::/48")
}

fn the_bridge_has_the_gateway_address(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", json!({"isGateway": true, "ipam": pool(&["10.20.0.0/24"])}))?;
    equal("addresses of the bridge", host.addresses("cni0")?, ["10.20.0.1/24"])?;
    one.del(host)?;
    equal("after DEL", host.addresses("cni0")?, ["10.20.0.1/24"])
}

fn the_bridge_has_none_without_is_gateway(host: &Sandbox) -> Result<()> {
    Attachment::new(host, "a", json!({"ipam": pool(&["10.20.0.0/24"])}))?;
    equal("addresses of the bridge", host.addresses("cni0")?, Vec::<String>::new())?;
    equal("forwarding", host.sysctl("ipv4/ip_forward")?, "0")
}

fn a_configured_gateway_is_used(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "host-local", "subnet": "10.20.0.0/24", "gateway": "10.20.0.254"});
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    equal("addresses of the bridge", host.addresses("cni0")?, ["10.20.0.254/24"])?;
    equal("default routes", defaults(&one.pod, "-4")?, ["10.20.0.254"])?;
    one.pod.ping("10.20.0.254")
}

fn a_missing_gateway_is_the_first_address(host: &Sandbox) -> Result<()> {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.30.5.7/16"}]});
    let one = Attachment::new(host, "a", json!({"isDefaultGateway": true, "ipam": ipam}))?;
    equal("addresses of the bridge", host.addresses("cni0")?, ["10.30.0.1/16"])?;
    same_json("gateway in the result", &one.result["ips"][0]["gateway"], &json!("10.30.0.1"))?;
    equal("default routes", defaults(&one.pod, "-4")?, ["10.30.0.1"])
}

fn forwarding_is_on_for_the_families_in_use(host: &Sandbox) -> Result<()> {
    equal("v4 at first", host.sysctl("ipv4/ip_forward")?, "0")?;
    Attachment::new(host, "a", gateway4())?;
    equal("v4 after v4", host.sysctl("ipv4/ip_forward")?, "1")?;
    equal("v6 after v4", host.sysctl("ipv6/conf/all/forwarding")?, "0")?;
    Attachment::new(host, "b", gateway46())?;
    equal("v6 after both", host.sysctl("ipv6/conf/all/forwarding")?, "1")
}

fn conflicting(host: &Sandbox, present: &str, network: Value) -> Result<()> {
    // With an address of its own, since the kernel changes any other with the ports.
    host.ip_set("link add cni0 address 02:00:00:00:00:01 type bridge")?;
    host.ip_set("link set cni0 up")?;
    host.ip_set(&format!("addr add {present} dev cni0"))?;
    let pod = host.pod("a")?;
    let before = Snapshot::take(host, &[&pod])?;
    let refusal = bridge("a", &pod, network).add().run(host)?.refusal()?;
    contains("the error names the bridge", &refusal.text(), "cni0")?;
    before.restored(host, &[&pod])
}

fn another_address_on_the_bridge_is_a_conflict(host: &Sandbox) -> Result<()> {
    conflicting(host, "10.99.0.1/24", gateway4())
}

fn another_address_is_replaced_on_request(host: &Sandbox) -> Result<()> {
    // No pod uses it as its gateway; what happens while one does is for the plugin to decide.
    host.ip_set("link add cni0 type bridge")?;
    host.ip_set("addr add 10.99.0.1/24 dev cni0")?;
    let one = Attachment::new(host, "b", with(gateway4(), json!({"forceAddress": true})))?;
    equal("after", host.addresses("cni0")?, ["10.20.0.1/24"])?;
    one.pod.ping("10.20.0.1")
}

fn an_overlapping_ipv6_address_is_a_conflict(host: &Sandbox) -> Result<()> {
    conflicting(host, "fd20::99/48", json!({"isGateway": true, "ipam": pool(&["fd20::/64"])}))
}

fn a_disjoint_ipv6_address_is_none(host: &Sandbox) -> Result<()> {
    host.ip_set("link add cni0 type bridge")?;
    host.ip_set("addr add fd99::1/64 dev cni0 nodad")?;
    Attachment::new(host, "a", json!({"isGateway": true, "ipam": pool(&["fd20::/64"])}))?;
    let mut found = host.addresses("cni0")?;
    found.sort();
    equal("addresses of the bridge", found, ["fd20::1/64", "fd99::1/64"])
}

fn the_same_address_is_none(host: &Sandbox) -> Result<()> {
    host.ip_set("link add cni0 type bridge")?;
    host.ip_set("addr add 10.20.0.1/24 dev cni0")?;
    Attachment::new(host, "a", gateway4())?;
    equal("addresses of the bridge", host.addresses("cni0")?, ["10.20.0.1/24"])
}
