//! STATUS: 50 when an ADD could not be served now, 51 where running pods suffer, and nothing is changed by asking.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, fixed, gateway4, gateway46, host_local, pool, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds};
use crate::sandbox::{STORE, Sandbox};
use crate::snapshot::Snapshot;

cases! {
    "spec/status" {
        status_is_silent_where_all_is_well;
        status_changes_nothing;
        status_changes_nothing_where_there_is_much_to_tidy;
        status_does_not_wait_for_the_lock needs [Need::Program("flock")];
    }
    "host-local/status" {
        an_exhausted_range_is_named_with_figures;
        garbage_in_the_store_is_no_exhaustion;
        a_store_that_is_none_is_unavailable;
        a_resolv_conf_that_cannot_be_read_is_unavailable;
    }
    "bridge/status" {
        a_link_in_the_way_is_unavailable;
        missing_vlan_filtering_is_named;
        the_ipam_plugin_is_asked;
        a_bridge_that_is_down_with_pods_is_degraded;
        forwarding_that_is_off_with_pods_is_degraded;
        forwarding_that_is_off_without_pods_is_fine;
    }
}

fn newest(call: Call) -> Call {
    call.set("cniVersion", json!(NEWEST)).status()
}

/// STATUS of a bridge, with these keys.
fn of_bridge(more: Value) -> Call {
    let config = json!({"name": "net", "type": "bridge", "bridge": "cni0"});
    newest(Call::new("bridge").config(with(config, more)))
}

/// All files below the directories that plugins keep things in, with what can be told of each without reading it; and
/// the modules of the kernel.
fn traces() -> Result<BTreeMap<PathBuf, String>> {
    fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, String>) -> Result<()> {
        let about = |path: &Path| -> Result<String> {
            let it = fs::symlink_metadata(path)?;
            let (changed, modified) = ((it.ctime(), it.ctime_nsec()), (it.mtime(), it.mtime_nsec()));
            Ok(format!("{} {:o} {} {changed:?} {modified:?}", it.ino(), it.mode(), it.size()))
        };
        found.insert(directory.to_owned(), about(directory)?);
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                walk(&path, found)?;
            } else {
                found.insert(path.clone(), about(&path)?);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    for directory in ["/run", "/var/lib/cni"] {
        walk(Path::new(directory), &mut found)?;
    }
    for entry in fs::read_dir("/sys/module")? {
        found.insert(entry?.path(), String::new());
    }
    found.insert("/proc/modules".into(), fs::read_to_string("/proc/modules").unwrap_or_default());
    Ok(found)
}

/// What calls the four plugins, each with all that it can be asked for here.
fn calls() -> Vec<Call> {
    let all = json!({"ipMasq": true, "macspoofchk": true, "mtu": 1400});
    vec![
        of_bridge(json!({})),
        of_bridge(with(gateway46(), all)),
        newest(host_local("a", json!({"subnet": "10.20.0.0/24"}))),
        newest(fixed(json!({"addresses": [{"address": "10.1.0.5/24"}]}))),
        newest(Call::new("loopback").config(json!({"name": "lo", "type": "loopback"}))),
    ]
}

fn status_is_silent_where_all_is_well(host: &Sandbox) -> Result<()> {
    for call in calls() {
        call.run(host)?.silence().context("without pods")?;
    }
    let one = Attachment::new(host, "a", gateway46())?;
    for call in calls() {
        call.run(host)?.silence().context("with a pod")?;
    }
    one.sound(host)
}

fn status_changes_nothing(host: &Sandbox) -> Result<()> {
    let calls_before = calls();
    for with_pod in [false, true] {
        let one = with_pod.then(|| Attachment::new(host, "a", gateway46())).transpose()?;
        let before = (Snapshot::take(host, &[])?, traces()?);
        for call in &calls_before {
            call.run(host)?.silence()?;
        }
        equal(format!("files, with a pod: {with_pod}"), traces()?, before.1)?;
        Snapshot::take(host, &[])?.unchanged_since(&before.0)?;
        drop(one);
    }
    Ok(())
}

fn status_changes_nothing_where_there_is_much_to_tidy(host: &Sandbox) -> Result<()> {
    let directory = Path::new(STORE).join("net");
    fs::create_dir_all(directory.join("lock"))?;
    for (name, content) in
        [("10.20.0.2", ""), ("10.20.0.3", "\0\0"), (".bridgehead-draft", "x"), ("10.20.0.4", "go\r\neth0")]
    {
        fs::write(directory.join(name), content)?;
    }
    let before = traces()?;
    for call in calls() {
        call.run(host)?.silence()?;
    }
    equal("files", traces()?, before)
}

fn status_does_not_wait_for_the_lock(host: &Sandbox) -> Result<()> {
    host_local("a", json!({"subnet": "10.20.0.0/24"})).add().run(host)?.result()?;
    let script = format!(
        "flock {STORE}/net/lock sh -c 'echo > /run/scratch/held; sleep 60; echo > /run/scratch/let-go' >/dev/null 2>&1 & \
         while ! [ -e /run/scratch/held ]; do sleep 0.01; done"
    );
    host.run(&["sh", "-c", &script])?;
    let answer = newest(host_local("a", json!({"subnet": "10.20.0.0/24"}))).run(host)?;
    answer.silence()?;
    holds(!Path::new("/run/scratch/let-go").exists(), "STATUS waited for the lock")
}

fn an_exhausted_range_is_named_with_figures(host: &Sandbox) -> Result<()> {
    let ranges = json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "10.2.0.0/30"}]]});
    let call = |id: &str| host_local(id, ranges.clone());
    call("a").add().run(host)?.result()?;
    let refusal = newest(call("a")).run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "10.2.0.1-10.2.0.2")?;
    contains("the error", &refusal.text(), "1 of 1")?;
    call("a").del().run(host)?.silence()?;
    newest(call("a")).run(host)?.silence()
}

fn garbage_in_the_store_is_no_exhaustion(host: &Sandbox) -> Result<()> {
    // An ADD would find that nobody has it.
    fs::create_dir_all(format!("{STORE}/net"))?;
    fs::write(format!("{STORE}/net/10.1.0.2"), "")?;
    let call = host_local("a", json!({"subnet": "10.1.0.0/30"}));
    newest(call.clone()).run(host)?.silence()?;
    call.add().run(host)?.result()?;
    newest(call).run(host)?.refused_with(50).map(drop)
}

fn a_store_that_is_none_is_unavailable(host: &Sandbox) -> Result<()> {
    fs::create_dir_all(STORE)?;
    fs::write(format!("{STORE}/net"), "")?;
    let call = host_local("a", json!({"subnet": "10.1.0.0/30"}));
    call.add().run(host)?.refusal()?;
    let refusal = newest(call).run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "networks/net")
}

fn a_resolv_conf_that_cannot_be_read_is_unavailable(host: &Sandbox) -> Result<()> {
    let call = host_local("a", json!({"subnet": "10.1.0.0/24", "resolvConf": "/run/scratch/resolv.conf"}));
    call.add().run(host)?.refusal()?;
    let refusal = newest(call.clone()).run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "/run/scratch/resolv.conf")?;
    fs::write("/run/scratch/resolv.conf", "nameserver 192.0.2.53\n")?;
    newest(call).run(host)?.silence()
}

fn a_link_in_the_way_is_unavailable(host: &Sandbox) -> Result<()> {
    host.ip_set("link add cni0 type dummy")
        .or_else(|_| host.ip_set("link add cni0 type veth peer name other0"))?;
    let refusal = of_bridge(gateway4()).run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "cni0")
}

fn missing_vlan_filtering_is_named(host: &Sandbox) -> Result<()> {
    for more in [json!({"vlan": 10}), json!({"vlanTrunk": [{"id": 5}]})] {
        let call = of_bridge(with(json!({"ipam": pool(&["10.20.0.0/24"])}), more));
        match Need::VlanFiltering.unmet(host) {
            None => call.run(host)?.silence()?,
            Some(_) => contains("the error", &call.run(host)?.refused_with(50)?.text(), "VLAN")?,
        }
        // With the bridge there it is the same.
        host.ip_set("link add cni0 type bridge")?;
        match Need::VlanFiltering.unmet(host) {
            None => call.run(host)?.silence()?,
            Some(_) => contains("the error", &call.run(host)?.refused_with(50)?.text(), "VLAN")?,
        }
        host.ip_set("link del cni0")?;
    }
    Ok(())
}

fn the_ipam_plugin_is_asked(host: &Sandbox) -> Result<()> {
    let script = "[ $CNI_COMMAND = STATUS ] && { echo '{\"code\":50,\"msg\":\"my database is away\"}'; exit 1; }\nexit 0";
    let directory = host.fake_plugin("ipam", "odd", script)?;
    let path = format!("{}:{}", host.plugins().display(), directory.display());
    let call = of_bridge(json!({"ipam": {"type": "odd"}})).env("CNI_PATH", &path);
    let refusal = call.run(host)?.refused_with(50)?;
    contains("the error", &refusal.text(), "my database is away")
}

fn a_bridge_that_is_down_with_pods_is_degraded(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let status = newest(one.call.clone());
    host.ip_set("link set cni0 down")?;
    let refusal = status.run(host)?.refused_with(51)?;
    contains("the error", &refusal.text(), "cni0")?;
    host.ip_set("link set cni0 up")?;
    status.run(host)?.silence()?;
    one.del(host)?;
    // An ADD sets it up.
    host.ip_set("link set cni0 down")?;
    status.run(host)?.silence()
}

fn forwarding_that_is_off_with_pods_is_degraded(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway46())?;
    let status = newest(one.call.clone());
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        host.set_sysctl(key, "0")?;
        let refusal = status.run(host)?.refused_with(51)?;
        contains("the error", &refusal.text(), key)?;
        host.set_sysctl(key, "1")?;
        status.run(host)?.silence()?;
    }
    Ok(())
}

fn forwarding_that_is_off_without_pods_is_fine(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    one.del(host)?;
    host.set_sysctl("ipv4/ip_forward", "0")?;
    newest(one.call.clone()).run(host)?.silence()
}
