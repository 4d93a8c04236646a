//! What CHECK finds.

use anyhow::{Context, Result};

use super::{last, limits, staged};
use crate::expect::{contains, text_at};
use crate::sandbox::Sandbox;

pub(super) fn a_sound_one(host: &Sandbox) -> Result<()> {
    let (_, call) = staged(host, "a", limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    call.check().prev(&result).run(host)?.silence()
}

/// A change to what ADD has made, and what CHECK has to say of it.
type Damage<'a> = (&'a str, &'a [&'a str], &'a str);

fn damaged(host: &Sandbox, id: &str, damage: &Damage<'_>) -> Result<String> {
    let (what, command, _) = damage;
    let (one, call) = staged(host, id, limits(8_000_000, 800_000))?;
    let result = call.add().run(host)?.result()?;
    let (link, ifb) = (one.host_link()?, text_at(last(&result)?, "/name")?);
    let words: Vec<&str> = command
        .iter()
        .map(|word| match *word {
            "LINK" => link,
            "IFB" => ifb,
            word => word,
        })
        .collect();
    host.run(&words)?;
    let text = call.check().prev(&result).run(host)?.refusal().with_context(|| (*what).to_owned())?.text();
    // Nothing is in the way of mending it.
    call.del().prev(&result).run(host)?.silence().with_context(|| (*what).to_owned())?;
    one.del(host)?;
    Ok(text)
}

const FOUND_BY_ALL: &[Damage<'_>] = &[
    ("no ifb", &["ip", "link", "del", "IFB"], "is missing"),
    (
        "another rate",
        &[
            "tc", "qdisc", "replace", "dev", "LINK", "root", "handle", "1:", "tbf", "rate", "9mbit", "burst",
            "100000", "latency", "25ms",
        ],
        "rate of the ingress limit (tbf) of host link",
    ),
    (
        "another burst",
        &[
            "tc", "qdisc", "replace", "dev", "IFB", "root", "handle", "1:", "tbf", "rate", "8mbit", "burst",
            "50000", "limit", "125000",
        ],
        "burst of the egress limit (tbf) of host link",
    ),
];

const FOUND_BY_US: &[Damage<'_>] = &[
    ("no ingress limit", &["tc", "qdisc", "del", "dev", "LINK", "root"], "ingress limit (tbf)"),
    ("no egress limit", &["tc", "qdisc", "del", "dev", "IFB", "root"], "egress limit (tbf)"),
    ("no redirection", &["tc", "qdisc", "del", "dev", "LINK", "ingress"], "redirection of what host link"),
    ("no filter", &["tc", "filter", "del", "dev", "LINK", "ingress"], "redirection of what host link"),
    ("ifb down", &["ip", "link", "set", "IFB", "down"], "should be up and is down"),
    ("small ifb", &["ip", "link", "set", "IFB", "mtu", "1000"], "should be 1500 and is 1000"),
    (
        "another kind",
        &["tc", "qdisc", "replace", "dev", "LINK", "root", "handle", "7:", "pfifo", "limit", "9"],
        "should be a tbf and is pfifo",
    ),
    (
        "another queue",
        &[
            "tc", "qdisc", "replace", "dev", "LINK", "root", "handle", "1:", "tbf", "rate", "8mbit", "burst",
            "100000", "limit", "9000",
        ],
        "should be 125000 bytes and is 9000 bytes",
    ),
];

pub(super) fn drift_that_the_reference_finds_too(host: &Sandbox) -> Result<()> {
    for (i, damage) in FOUND_BY_ALL.iter().enumerate() {
        damaged(host, &format!("p{i}"), damage)?;
    }
    Ok(())
}

pub(super) fn drift_of_all_kinds(host: &Sandbox) -> Result<()> {
    for (i, damage) in FOUND_BY_ALL.iter().chain(FOUND_BY_US).enumerate() {
        let text = damaged(host, &format!("p{i}"), damage)?;
        contains(damage.0, &text, damage.2)?;
    }
    Ok(())
}
