//! host-local: addresses that were asked for, routes and DNS.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, USUAL, host_local};
use crate::call::Call;
use crate::expect::{contains, equal, same_json, text_at};
use crate::sandbox::Sandbox;

cases! {
    "host-local/requests" {
        by_cni_args;
        by_args;
        by_runtime_config;
        the_prefix_length_is_ignored;
        one_of_each_family;
        one_of_each_set_in_the_order_of_the_sets;
        only_some_sets_are_asked;
        a_request_in_another_notation_is_the_same_address;
        an_address_outside_the_ranges_is_refused;
        an_address_of_the_subnet_but_not_the_range_is_refused;
        the_gateway_is_refused;
        an_address_that_is_taken_is_refused;
        a_request_that_is_no_address_is_refused;
        a_failed_request_releases_what_was_reserved;
        an_asked_for_address_is_not_handed_out_again;
    }
    "host-local/routes" {
        routes_are_echoed;
        routes_keep_what_1_1_has;
        a_route_without_destination_is_refused;
    }
    "host-local/dns" {
        resolv_conf_is_read;
        an_empty_resolv_conf_is_fine;
        a_missing_resolv_conf_is_an_error_and_reserves_nothing;
    }
}

fn pool(id: &str) -> Call {
    host_local(
        id,
        json!({"ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.99"}], [{"subnet": "fd20::/64"}]]}),
    )
}

fn given(host: &Sandbox, call: &Call, wanted: [&str; 2]) -> Result<()> {
    let result = call.add().run(host)?.result()?;
    equal("v4", text_at(&result, "/ips/0/address")?, wanted[0])?;
    equal("v6", text_at(&result, "/ips/1/address")?, wanted[1])?;
    equal("addresses", result["ips"].as_array().map(Vec::len), Some(2))
}

fn runtime(call: &Call, ips: Value) -> Call {
    call.set("runtimeConfig", json!({"ips": ips}))
}

fn by_cni_args(host: &Sandbox) -> Result<()> {
    given(host, &pool("a").args("IP=10.1.0.50"), ["10.1.0.50/24", "fd20::2/64"])?;
    given(
        host,
        &pool("b").args("IgnoreUnknown=1;IP=fd20::50;K8S_POD_NAME=x"),
        ["10.1.0.51/24", "fd20::50/64"],
    )
}

fn by_args(host: &Sandbox) -> Result<()> {
    let call = pool("a").set("args", json!({"cni": {"ips": ["10.1.0.50", "fd20::50"]}}));
    given(host, &call, ["10.1.0.50/24", "fd20::50/64"])
}

fn by_runtime_config(host: &Sandbox) -> Result<()> {
    given(host, &runtime(&pool("a"), json!(["10.1.0.50", "fd20::50"])), ["10.1.0.50/24", "fd20::50/64"])
}

fn the_prefix_length_is_ignored(host: &Sandbox) -> Result<()> {
    given(
        host,
        &runtime(&pool("a"), json!(["10.1.0.50/8", "fd20::50/128"])),
        ["10.1.0.50/24", "fd20::50/64"],
    )?;
    let call = pool("b").set("args", json!({"cni": {"ips": ["10.1.0.60/8", "fd20::60/128"]}}));
    given(host, &call, ["10.1.0.60/24", "fd20::60/64"])?;
    given(host, &pool("c").args("IP=10.1.0.70/16"), ["10.1.0.70/24", "fd20::61/64"])
}

fn one_of_each_family(host: &Sandbox) -> Result<()> {
    given(host, &runtime(&pool("a"), json!(["fd20::50", "10.1.0.50"])), ["10.1.0.50/24", "fd20::50/64"])
}

fn one_of_each_set_in_the_order_of_the_sets(host: &Sandbox) -> Result<()> {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}, {"subnet": "10.3.0.0/24"}]]);
    let call = runtime(&host_local("a", json!({"ranges": ranges})), json!(["10.3.0.9", "10.1.0.9"]));
    given(host, &call, ["10.1.0.9/24", "10.3.0.9/24"])
}

fn only_some_sets_are_asked(host: &Sandbox) -> Result<()> {
    given(host, &runtime(&pool("a"), json!(["fd20::50"])), ["10.1.0.2/24", "fd20::50/64"])
}

fn a_request_in_another_notation_is_the_same_address(host: &Sandbox) -> Result<()> {
    given(host, &runtime(&pool("a"), json!(["FD20:0000::0:0050"])), ["10.1.0.2/24", "fd20::50/64"])?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "fd20::50"])
}

fn refused(host: &Sandbox, call: &Call, part: &str, left: &[&str]) -> Result<()> {
    let refusal = call.add().run(host)?.refusal()?;
    contains("the error", &refusal.text(), part)?;
    equal("leases", host.leases("net")?, left)
}

fn an_address_outside_the_ranges_is_refused(host: &Sandbox) -> Result<()> {
    refused(host, &runtime(&pool("a"), json!(["10.9.0.9"])), "10.9.0.9", &[]).context("runtimeConfig")?;
    refused(host, &pool("a").args("IP=10.9.0.9"), "10.9.0.9", &[]).context("CNI_ARGS")?;
    refused(host, &pool("a").set("args", json!({"cni": {"ips": ["10.9.0.9"]}})), "10.9.0.9", &[])
        .context("args")
}

fn an_address_of_the_subnet_but_not_the_range_is_refused(host: &Sandbox) -> Result<()> {
    for address in ["10.1.0.100", "10.1.0.0", "10.1.0.255"] {
        refused(host, &runtime(&pool("a"), json!([address])), address, &[])?;
    }
    Ok(())
}

fn the_gateway_is_refused(host: &Sandbox) -> Result<()> {
    refused(host, &runtime(&pool("a"), json!(["10.1.0.1"])), "gateway", &[])?;
    refused(host, &runtime(&pool("a"), json!(["fd20::1"])), "gateway", &[])
}

fn an_address_that_is_taken_is_refused(host: &Sandbox) -> Result<()> {
    runtime(&pool("a"), json!(["10.1.0.50"])).add().run(host)?.result()?;
    refused(host, &runtime(&pool("b"), json!(["10.1.0.50"])), "10.1.0.50", &["10.1.0.50", "fd20::2"])
}

fn a_request_that_is_no_address_is_refused(host: &Sandbox) -> Result<()> {
    refused(host, &runtime(&pool("a"), json!(["10.1.0.x"])), "10.1.0.x", &[])?;
    refused(host, &pool("a").set("args", json!({"cni": {"ips": ["10.1.0.50/99"]}})), "10.1.0.50/99", &[])?;
    refused(host, &pool("a").args("IP=nothing"), "nothing", &[])
}

fn a_failed_request_releases_what_was_reserved(host: &Sandbox) -> Result<()> {
    refused(host, &runtime(&pool("a"), json!(["10.1.0.50", "fd99::1"])), "fd99::1", &[])?;
    pool("b").args("IP=fd20::50").add().run(host)?.result()?;
    let before = host.leases("net")?;
    // The first set could be served, the second cannot.
    let call = runtime(&pool("a"), json!(["10.1.0.70", "fd20::50"]));
    contains("the error", &call.add().run(host)?.refusal()?.text(), "fd20::50")?;
    equal("leases", host.leases("net")?, before)
}

fn an_asked_for_address_is_not_handed_out_again(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/29"});
    runtime(&host_local("a", ipam.clone()), json!(["10.1.0.3"])).add().run(host)?.result()?;
    let mut others = Vec::new();
    for id in ["b", "c", "d", "e"] {
        let result = host_local(id, ipam.clone()).add().run(host)?.result()?;
        others.push(text_at(&result, "/ips/0/address")?.to_owned());
    }
    others.sort();
    equal("the others", others, ["10.1.0.2/29", "10.1.0.4/29", "10.1.0.5/29", "10.1.0.6/29"])
}

fn routes_are_echoed(host: &Sandbox) -> Result<()> {
    let routes = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.0.1"}, {"dst": "3ffe:ffff:0:01ff::1/64"},
    ]);
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "routes": routes}));
    let result = call.add().run(host)?.result()?;
    let dst = text_at(&result, "/routes/2/dst")?;
    // With or without the bits behind the prefix, which mean nothing.
    equal("third route", dst == "3ffe:ffff:0:1ff::1/64" || dst == "3ffe:ffff:0:1ff::/64", true)?;
    same_json("first route", &result["routes"][0], &json!({"dst": "0.0.0.0/0"}))?;
    same_json("second route", &result["routes"][1], &json!({"dst": "192.168.0.0/16", "gw": "10.1.0.1"}))?;
    let result = call.id("c2").set("cniVersion", json!("0.2.0")).add().run(host)?.result()?;
    same_json(
        "routes in 0.2.0",
        &result["ip4"]["routes"],
        &json!([{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.0.1"}]),
    )
}

fn routes_keep_what_1_1_has(host: &Sandbox) -> Result<()> {
    let routes = json!([
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 100},
        {"dst": "192.168.0.0/16", "scope": 253},
        {"dst": "192.168.1.0/24", "scope": 0, "priority": 0},
    ]);
    let call =
        host_local("c1", json!({"subnet": "10.1.0.0/24", "routes": routes})).set("cniVersion", json!(NEWEST));
    let result = call.add().run(host)?.result()?;
    same_json("first route", &result["routes"][0], &routes[0])?;
    same_json("second route", &result["routes"][1], &routes[1])
}

fn a_route_without_destination_is_refused(host: &Sandbox) -> Result<()> {
    for routes in
        [json!([{"dst": "nowhere"}]), json!([{"dst": "10.0.0.0/8", "gw": "x"}]), json!([{"gw": "10.1.0.1"}])]
    {
        let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "routes": routes}));
        call.add().run(host)?.refusal().with_context(|| routes.to_string())?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn dns(host: &Sandbox, id: &str, text: &str) -> Result<Value> {
    let file = host.scratch("resolv.conf", text)?;
    let result =
        host_local(id, json!({"subnet": "10.1.0.0/24", "resolvConf": file})).add().run(host)?.result()?;
    equal("version", text_at(&result, "/cniVersion")?, USUAL)?;
    Ok(result["dns"].clone())
}

fn resolv_conf_is_read(host: &Sandbox) -> Result<()> {
    let found = dns(
        host,
        "a",
        "# nameserver 192.0.2.1\n; nameserver 192.0.2.2\n\n  nameserver 192.0.2.3  \nnameserver\t2001:db8::3\n\
         domain one.example\ndomain two.example\nsearch a.example b.example\nsearch c.example\noptions ndots:5\n\
         options edns0 trust-ad\nnameserver\nsortlist 192.0.2.0\n",
    )?;
    let wanted = json!({
        "nameservers": ["192.0.2.3", "2001:db8::3"], "domain": "two.example",
        "search": ["a.example", "b.example", "c.example"], "options": ["ndots:5", "edns0", "trust-ad"],
    });
    same_json("dns", &found, &wanted)
}

fn an_empty_resolv_conf_is_fine(host: &Sandbox) -> Result<()> {
    let found = dns(host, "a", "\n# nothing\n")?;
    equal("no dns, or an empty one", found.is_null() || found == json!({}), true)
}

fn a_missing_resolv_conf_is_an_error_and_reserves_nothing(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "resolvConf": "/run/scratch/none"}));
    refused(host, &call, "/run/scratch/none", &[])
}
