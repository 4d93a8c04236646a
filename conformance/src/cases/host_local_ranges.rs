//! host-local: which address is next.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{USUAL, host_local};
use crate::case::Need;
use crate::expect::{contains, equal, same_json, text_at};
use crate::sandbox::{STORE, Sandbox};

cases! {
    "host-local/ranges" {
        a_subnet_has_a_gateway_and_a_broadcast;
        the_smallest_subnets_have_one_and_two;
        the_last_ipv6_address_is_usable;
        range_start_and_end_are_kept;
        the_gateway_is_never_handed_out;
        a_gateway_elsewhere_is_reported;
        ranges_of_a_set_follow_each_other;
        each_set_gives_one_address;
        the_old_form_is_the_first_set;
        ranges_of_the_runtime_come_first;
        both_families_come_from_two_sets;
        exhaustion_names_the_ranges;
        keys_are_read_in_any_case;
        unused_limits_may_be_null;
    }
    "host-local/round-robin" {
        a_released_address_is_not_handed_out_at_once;
        after_the_end_comes_the_beginning;
        the_last_reserved_is_reached_at_last;
        sets_remember_separately;
        a_memory_from_outside_the_ranges_is_ignored;
        an_unreadable_memory_is_ignored;
    }
    "host-local/errors" {
        ipam_is_missing;
        there_is_no_range;
        a_set_is_empty;
        a_subnet_is_too_small;
        a_subnet_has_host_bits;
        a_subnet_is_none;
        an_end_lies_outside;
        the_end_is_before_the_start;
        ranges_of_a_set_overlap;
        sets_overlap;
        families_are_mixed_in_a_set;
        an_old_version_has_one_address_a_family;
        mapped_ipv4_counts_as_ipv4 needs [Need::Ipv6];
    }
}

/// The addresses of a new container.
fn addresses(host: &Sandbox, id: &str, ipam: &Value) -> Result<Vec<String>> {
    let result =
        host_local(id, ipam.clone()).add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().map(|ip| text_at(ip, "/address").map(str::to_owned)).collect()
}

/// New containers get exactly these addresses, and the next one none.
fn yields(host: &Sandbox, ipam: &Value, wanted: &[&str]) -> Result<String> {
    for (index, address) in wanted.iter().enumerate() {
        equal(
            format!("address {index} of {ipam}"),
            addresses(host, &format!("c{index}"), ipam)?,
            [*address],
        )?;
    }
    let refusal =
        host_local("late", ipam.clone()).add().run(host)?.refusal().context("no address should be left")?;
    contains("the error", &refusal.text(), "no IP addresses available in range set")?;
    Ok(refusal.text())
}

fn release(host: &Sandbox, id: &str, ipam: &Value) -> Result<()> {
    host_local(id, ipam.clone()).del().run(host)?.silence()
}

fn a_subnet_has_a_gateway_and_a_broadcast(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/29"});
    let wanted = ["10.1.0.2/29", "10.1.0.3/29", "10.1.0.4/29", "10.1.0.5/29", "10.1.0.6/29"];
    yields(host, &ipam, &wanted).map(drop)
}

fn the_smallest_subnets_have_one_and_two(host: &Sandbox) -> Result<()> {
    yields(host, &json!({"subnet": "10.1.0.0/30"}), &["10.1.0.2/30"]).map(drop)
}

fn the_last_ipv6_address_is_usable(host: &Sandbox) -> Result<()> {
    yields(host, &json!({"subnet": "fd20::/126"}), &["fd20::2/126", "fd20::3/126"]).map(drop)
}

fn range_start_and_end_are_kept(host: &Sandbox) -> Result<()> {
    let ipam =
        json!({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "rangeEnd": "10.1.0.52"}]]});
    yields(host, &ipam, &["10.1.0.50/24", "10.1.0.51/24", "10.1.0.52/24"]).map(drop)
}

fn the_gateway_is_never_handed_out(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/29", "gateway": "10.1.0.4"});
    yields(host, &ipam, &["10.1.0.1/29", "10.1.0.2/29", "10.1.0.3/29", "10.1.0.5/29", "10.1.0.6/29"])
        .map(drop)
}

fn a_gateway_elsewhere_is_reported(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"subnet": "10.1.0.0/24", "gateway": "10.9.9.9"}));
    let result = call.add().run(host)?.result()?;
    same_json("ips", &result["ips"], &json!([{"address": "10.1.0.1/24", "gateway": "10.9.9.9"}]))
}

fn ranges_of_a_set_follow_each_other(host: &Sandbox) -> Result<()> {
    let ipam = json!({"ranges": [[
        {"subnet": "10.1.0.0/30"},
        {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.11"},
    ]]});
    let text = yields(host, &ipam, &["10.1.0.2/30", "10.2.0.10/24", "10.2.0.11/24"])?;
    contains("both ranges are named", &text, "10.1.0.1-10.1.0.2,10.2.0.10-10.2.0.11")
}

fn each_set_gives_one_address(host: &Sandbox) -> Result<()> {
    let ipam = json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "10.3.0.0/24"}]]});
    equal("addresses", addresses(host, "c1", &ipam)?, ["10.1.0.2/24", "10.2.0.2/24", "10.3.0.2/24"])?;
    equal("leases", host.leases("net")?, ["10.1.0.2", "10.2.0.2", "10.3.0.2"])
}

fn the_old_form_is_the_first_set(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.9.0.0/24", "ranges": [[{"subnet": "10.1.0.0/24"}]]});
    equal("addresses", addresses(host, "c1", &ipam)?, ["10.9.0.2/24", "10.1.0.2/24"])
}

fn ranges_of_the_runtime_come_first(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({"ranges": [[{"subnet": "10.1.0.0/24"}]]}));
    let call = call.set("runtimeConfig", json!({"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}));
    let result = call.add().run(host)?.result()?;
    equal("first", text_at(&result, "/ips/0/address")?, "10.7.0.2/24")?;
    equal("second", text_at(&result, "/ips/1/address")?, "10.1.0.2/24")
}

fn both_families_come_from_two_sets(host: &Sandbox) -> Result<()> {
    let call =
        host_local("c1", json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd20:0:0::/64"}]]}));
    let result = call.add().run(host)?.result()?;
    let wanted = json!([
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd20::2/64", "gateway": "fd20::1"},
    ]);
    same_json("ips", &result["ips"], &wanted)
}

fn exhaustion_names_the_ranges(host: &Sandbox) -> Result<()> {
    let text = yields(host, &json!({"subnet": "10.1.0.0/30"}), &["10.1.0.2/30"])?;
    contains("the range", &text, "10.1.0.1-10.1.0.2")?;
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn keys_are_read_in_any_case(host: &Sandbox) -> Result<()> {
    let call = host_local("c1", json!({})).stdin(
        br#"{"CNIVersion":"1.0.0","Name":"net","IPAM":{"Type":"host-local","SUBNET":"10.1.0.0/24",
            "RangeStart":"10.1.0.40","rangeend":"10.1.0.60"},"RuntimeConfig":{"IPs":["10.1.0.50"]}}"#,
    );
    let result = call.add().run(host)?.result()?;
    equal("version", text_at(&result, "/cniVersion")?, USUAL)?;
    equal("address", text_at(&result, "/ips/0/address")?, "10.1.0.50/24")
}

fn unused_limits_may_be_null(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/24", "rangeStart": null, "rangeEnd": null, "gateway": null, "dataDir": null});
    equal("addresses", addresses(host, "c1", &ipam)?, ["10.1.0.2/24"])
}

fn a_released_address_is_not_handed_out_at_once(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/24"});
    equal("first", addresses(host, "a", &ipam)?, ["10.1.0.2/24"])?;
    release(host, "a", &ipam)?;
    equal("second", addresses(host, "b", &ipam)?, ["10.1.0.3/24"])?;
    equal("memory", fs::read_to_string(format!("{STORE}/net/last_reserved_ip.0"))?, "10.1.0.3")
}

fn after_the_end_comes_the_beginning(host: &Sandbox) -> Result<()> {
    let ipam =
        json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29", "rangeStart": "10.2.0.5"}]]});
    for (id, wanted) in [("a", "10.1.0.2/30"), ("b", "10.2.0.5/29"), ("c", "10.2.0.6/29")] {
        equal(id, addresses(host, id, &ipam)?, [wanted])?;
    }
    release(host, "a", &ipam)?;
    release(host, "b", &ipam)?;
    equal("after the end", addresses(host, "d", &ipam)?, ["10.1.0.2/30"])?;
    equal("and on", addresses(host, "e", &ipam)?, ["10.2.0.5/29"])
}

fn the_last_reserved_is_reached_at_last(host: &Sandbox) -> Result<()> {
    let ipam = json!({"subnet": "10.1.0.0/30"});
    for id in ["a", "b", "c"] {
        equal(id, addresses(host, id, &ipam)?, ["10.1.0.2/30"])?;
        release(host, id, &ipam)?;
    }
    Ok(())
}

fn sets_remember_separately(host: &Sandbox) -> Result<()> {
    let ipam = json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.20"}]]});
    equal("addresses", addresses(host, "a", &ipam)?, ["10.1.0.2/24", "10.2.0.20/24"])?;
    for (index, wanted) in ["10.1.0.2", "10.2.0.20"].iter().enumerate() {
        let found = fs::read_to_string(format!("{STORE}/net/last_reserved_ip.{index}"))?;
        equal(format!("memory of set {index}"), found.as_str(), *wanted)?;
    }
    Ok(())
}

fn remembered(host: &Sandbox, text: &str) -> Result<()> {
    fs::create_dir_all(format!("{STORE}/net"))?;
    fs::write(format!("{STORE}/net/last_reserved_ip.0"), text)?;
    equal(
        format!("with {text:?} remembered"),
        addresses(host, "a", &json!({"subnet": "10.1.0.0/24"}))?,
        ["10.1.0.2/24"],
    )
}

fn a_memory_from_outside_the_ranges_is_ignored(host: &Sandbox) -> Result<()> {
    remembered(host, "10.9.0.7")
}

fn an_unreadable_memory_is_ignored(host: &Sandbox) -> Result<()> {
    remembered(host, "garbage")?;
    release(host, "a", &json!({"subnet": "10.1.0.0/24"}))?;
    remembered(host, "")
}

/// ADD says something with that part, and reserves nothing.
fn refused(host: &Sandbox, ipam: Value, part: &str) -> Result<()> {
    let refusal =
        host_local("c1", ipam.clone()).add().run(host)?.refusal().with_context(|| ipam.to_string())?;
    contains(&ipam, &refusal.text(), part)?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn ipam_is_missing(host: &Sandbox) -> Result<()> {
    for ipam in ["", r#","ipam":null"#] {
        let config = format!(r#"{{"cniVersion":"1.0.0","name":"net"{ipam}}}"#);
        let refusal = host_local("c1", json!({})).add().stdin(config.as_bytes()).run(host)?.refusal()?;
        contains("the error", &refusal.text(), "ipam")?;
    }
    Ok(())
}

fn there_is_no_range(host: &Sandbox) -> Result<()> {
    refused(host, json!({}), "no IP ranges specified")?;
    refused(host, json!({"ranges": []}), "no IP ranges specified")
}

fn a_set_is_empty(host: &Sandbox) -> Result<()> {
    refused(host, json!({"ranges": [[{"subnet": "10.1.0.0/24"}], []]}), "1")
}

fn a_subnet_is_too_small(host: &Sandbox) -> Result<()> {
    for subnet in ["10.1.0.0/31", "10.1.0.1/32", "fd20::/127", "fd20::1/128"] {
        refused(host, json!({"subnet": subnet}), subnet)?;
    }
    Ok(())
}

fn a_subnet_has_host_bits(host: &Sandbox) -> Result<()> {
    refused(host, json!({"subnet": "10.1.0.77/24"}), "10.1.0.0")?;
    refused(host, json!({"ranges": [[{"subnet": "fd20::7/64"}]]}), "fd20::")
}

fn a_subnet_is_none(host: &Sandbox) -> Result<()> {
    for subnet in ["10.1.0.0", "10.1.0/24", "10.1.0.0/33", "010.1.0.0/24", "text", "fd20::/129"] {
        refused(host, json!({"subnet": subnet}), subnet)?;
    }
    refused(host, json!({"ranges": [[{}]]}), "")?;
    for (key, value) in [("rangeStart", "10.1.0.x"), ("rangeEnd", "10.1.0"), ("gateway", "10.1.0.1/24")] {
        refused(host, json!({"ranges": [[{"subnet": "10.1.0.0/24", key: value}]]}), value)?;
    }
    Ok(())
}

fn an_end_lies_outside(host: &Sandbox) -> Result<()> {
    for (key, value) in [
        ("rangeStart", "10.2.0.1"),
        ("rangeEnd", "10.2.0.1"),
        ("rangeStart", "fd20::5"),
        ("rangeEnd", "10.0.255.255"),
    ] {
        refused(host, json!({"ranges": [[{"subnet": "10.1.0.0/24", key: value}]]}), value)?;
    }
    Ok(())
}

fn the_end_is_before_the_start(host: &Sandbox) -> Result<()> {
    let range = json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"});
    refused(host, json!({"ranges": [[range]]}), "10.1.0.")
}

fn ranges_of_a_set_overlap(host: &Sandbox) -> Result<()> {
    let ranges = json!([[
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.9"},
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.12"},
    ]]);
    refused(host, json!({"ranges": ranges}), "overlap")
}

fn sets_overlap(host: &Sandbox) -> Result<()> {
    refused(host, json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}), "overlap")
}

fn families_are_mixed_in_a_set(host: &Sandbox) -> Result<()> {
    refused(host, json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd20::/64"}]]}), "")
}

fn an_old_version_has_one_address_a_family(host: &Sandbox) -> Result<()> {
    for version in ["0.1.0", "0.2.0"] {
        let text = format!("CNI version {version} does not support more than 1 address per family");
        for subnets in [["10.1.0.0/24", "10.2.0.0/24"], ["fd01::/64", "fd02::/64"]] {
            let ipam = json!({"ranges": [[{"subnet": subnets[0]}], [{"subnet": subnets[1]}]]});
            let refusal =
                host_local("c1", ipam).set("cniVersion", json!(version)).add().run(host)?.refusal()?;
            contains("the error", &refusal.text(), &text)?;
        }
        let ipam = json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]});
        let call = host_local("c1", ipam).set("cniVersion", json!(version));
        call.add().run(host)?.result().context("one of each family")?;
        call.del().run(host)?.silence()?;
    }
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn mapped_ipv4_counts_as_ipv4(host: &Sandbox) -> Result<()> {
    let range = json!({"subnet": "10.1.0.0/24", "rangeStart": "::ffff:10.1.0.9"});
    equal("addresses", addresses(host, "a", &json!({"ranges": [[range]]}))?, ["10.1.0.9/24"])?;
    equal("leases", host.leases("net")?, ["10.1.0.9"])
}
