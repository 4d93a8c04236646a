//! What CHECK finds.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Attached, full, one_family};
use crate::cases::networks::with;
use crate::expect::{contains, text_at};
use crate::pod::Pod;
use crate::sandbox::Sandbox;

/// What was done to a pod, and a part of what CHECK must say in lower case.
type Damage<'a> = (&'a str, &'a str, &'a str);

/// On which side of the pod's link it was done.
enum Side {
    Host,
    Pod,
}

fn damages(host: &Sandbox, network: &Value, side: Side, damages: &[Damage<'_>]) -> Result<()> {
    for (index, (deed, undo, part)) in damages.iter().enumerate() {
        let one = Attached::new(host, &format!("p{index}"), network.clone())?;
        one.sound(host).context("before the damage")?;
        let place: &Pod = match side {
            Side::Host => host,
            Side::Pod => &one.pod,
        };
        let link = one.host_link()?;
        let address = text_at(&one.result, "/ips/0/address")?.split('/').next().unwrap_or_default();
        let fill = |text: &str| text.replace("LINK", link).replace("ADDRESS", address);
        place.ip_set(&fill(deed))?;
        let text = one.call.check().prev(&one.result).run(host)?.refusal()?.text().to_lowercase();
        contains(format!("the error after {deed:?}"), &text, &fill(part).to_lowercase())?;
        if !undo.is_empty() {
            place.ip_set(&fill(undo))?;
            one.sound(host).with_context(|| format!("after {undo:?}"))?;
        }
        one.del(host)?;
    }
    Ok(())
}

pub(super) fn what_is_missing_in_the_pod_is_found(host: &Sandbox) -> Result<()> {
    damages(
        host,
        &with(one_family(), json!({"mtu": 1400})),
        Side::Pod,
        &[
            ("addr del ADDRESS/24 dev eth0", "", "ADDRESS"),
            ("route del 10.20.0.0/24", "", ""),
            ("route del default", "route add default via 10.20.0.1", ""),
            ("link del eth0", "", "eth0"),
            ("link set eth0 down", "", ""),
            ("link set eth0 address 02:00:00:00:66:66", "", ""),
        ],
    )
}

pub(super) fn what_is_missing_on_the_host_is_found(host: &Sandbox) -> Result<()> {
    damages(
        host,
        &with(one_family(), json!({"mtu": 1400})),
        Side::Host,
        &[
            ("addr del 10.20.0.1/32 dev LINK", "", "gateway address 10.20.0.1/32"),
            (
                "route del ADDRESS dev LINK scope host",
                "route add ADDRESS dev LINK scope host",
                "route ADDRESS/32",
            ),
            ("link set LINK down", "", "host link LINK"),
            ("link set LINK mtu 1300", "link set LINK mtu 1400", "1300"),
            ("link del LINK", "", "host link LINK"),
        ],
    )?;
    let one = Attached::new(host, "a", one_family())?;
    host.set_sysctl("ipv4/ip_forward", "0")?;
    let text = one.call.check().prev(&one.result).run(host)?.refusal()?.text();
    contains("the error", &text, "ip_forward")?;
    one.pod.ip_set("link set eth0 mtu 1300")?;
    one.pod.ip_set("route del 10.20.0.1")?;
    let text = one.call.check().prev(&one.result).run(host)?.refusal()?.text();
    contains("the error", &text, "ip_forward")?;
    contains("the error", &text, "route 10.20.0.1/32")
}

pub(super) fn flushed_rules_are_found(host: &Sandbox) -> Result<()> {
    let one = Attached::new(host, "a", full())?;
    one.sound(host)?;
    host.run(&["nft", "flush", "ruleset"])?;
    one.call.check().prev(&one.result).run(host)?.refusal()?;
    one.del(host)
}
