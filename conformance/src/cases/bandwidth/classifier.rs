//! By what the packets of a pod are redirected: `matchall`, or `u32` where a kernel does not have that.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{rate, redirected, staged};
use crate::expect::{equal, holds};
use crate::sandbox::Sandbox;

/// The kinds of filters of a link.
fn kinds(host: &Sandbox, link: &str) -> Result<Vec<String>> {
    let text = host.run(&["tc", "-j", "filter", "show", "dev", link, "ingress"])?;
    let list: Value = serde_json::from_str(text.trim()).unwrap_or_default();
    let with_actions =
        list.as_array().into_iter().flatten().filter(|it| it.pointer("/options/actions").is_some());
    Ok(with_actions.filter_map(|it| it["kind"].as_str()).map(str::to_owned).collect())
}

/// Whether the kernel has a classifier.
fn has(host: &Sandbox, kind: &str) -> Result<bool> {
    host.ip_set("link add trial0 type veth peer name trial1")?;
    host.run(&["tc", "qdisc", "add", "dev", "trial0", "ingress"])?;
    let keys: &[&str] = if kind == "u32" { &["match", "u32", "0", "0"] } else { &[] };
    let begin = ["tc", "filter", "add", "dev", "trial0", "ingress", "protocol", "all", kind];
    let is_there = host.try_run(&[&begin, keys, &["classid", "1:1"]].concat())?.status.success();
    host.ip_set("link del trial0")?;
    Ok(is_there)
}

/// Nobody sees modules any more, but those that have a directory of this name.
fn hide_modules(host: &Sandbox, but: &str) -> Result<()> {
    let script = "for directory in /lib/modules /usr/lib/modules /sys/module; do \
        [ ! -d $directory ] || mount -t tmpfs tmpfs $directory; done; [ -z \"$0\" ] || mkdir /sys/module/$0";
    host.run(&["sh", "-c", script, but]).map(drop)
}

/// From ADD to DEL with one classifier.
fn is_done_by(host: &Sandbox, kind: &str) -> Result<()> {
    let (one, call) = staged(host, "a", json!({"egressRate": 16_000_000, "egressBurst": 160_000}))?;
    let result = call.add().run(host)?.result().with_context(|| format!("by {kind}"))?;
    let link = one.host_link()?;
    equal("filters", kinds(host, link)?, [kind])?;
    let ifb = redirected(host, link)?.context("nothing is redirected")?;
    rate::is(16_000_000, || rate::measure(&one.pod, host, "10.20.0.1"))?;
    call.check().prev(&result).run(host)?.silence()?;
    call.add().run(host)?.result()?;
    equal("filters after a second ADD", kinds(host, link)?, [kind])?;
    // One that goes elsewhere is found, whatever it is made by.
    host.run(&["tc", "filter", "del", "dev", link, "ingress"])?;
    call.check().prev(&result).run(host)?.refused_with(103)?;
    call.add().run(host)?.result()?;
    equal("redirected to", redirected(host, link)?, Some(ifb))?;
    call.del().prev(&result).run(host)?.silence()?;
    equal("filters after DEL", kinds(host, link)?, Vec::<String>::new())
}

pub(super) fn it_is_matchall_where_there_is_one(host: &Sandbox) -> Result<()> {
    let wanted = if has(host, "matchall")? { "matchall" } else { "u32" };
    is_done_by(host, wanted)
}

/// As on a kernel without modules, which files tell nothing of.
pub(super) fn it_is_u32_where_nothing_tells_of_matchall(host: &Sandbox) -> Result<()> {
    holds(has(host, "u32")?, "the kernel has no u32")?;
    hide_modules(host, "")?;
    is_done_by(host, "u32")
}

/// A kernel that is thought to have it, and has not, is asked for the other.
pub(super) fn what_files_tell_need_not_be_true(host: &Sandbox) -> Result<()> {
    let wanted = if has(host, "matchall")? { "matchall" } else { "u32" };
    hide_modules(host, "cls_matchall")?;
    is_done_by(host, wanted)
}
