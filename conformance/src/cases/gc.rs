//! GC in every plugin: whom it is told to leave alone, what it takes for dead, and who may ask for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, fixed, gateway4, host_local, pool, with};
use super::records::{TOOL, network, record};
use super::restore::{nftables, tool};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds};
use crate::pod::Pod;
use crate::sandbox::{SCRATCH, Sandbox};
use crate::snapshot::Snapshot;

cases! {
    "gc/namespaces" {
        gc_spares_a_namespace_whose_process_alone_has_ended needs [TOOL];
    }
    "gc/tool" {
        the_dead_are_removed_whatever_their_network needs [TOOL, Need::Nftables];
        the_dead_of_another_ipam_are_left_and_named needs [TOOL];
        nothing_that_may_live_is_removed needs [TOOL];
    }
    "gc/lists" {
        bridge_knows_the_three_lists needs [TOOL];
        host_local_knows_the_three_lists needs [TOOL];
        static_knows_the_three_lists needs [TOOL];
        loopback_knows_the_three_lists needs [TOOL];
        the_key_of_the_list_is_found_whatever_its_case needs [TOOL];
        an_entry_that_names_no_interface_is_refused needs [TOOL];
        gc_gives_back_what_an_executed_ipam_gave needs [TOOL];
        gc_by_another_user_than_root_is_an_error needs [TOOL, Need::Program("setpriv")];
    }
}

fn gc_spares_a_namespace_whose_process_alone_has_ended(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let start = || pod.inside(|| Command::new("/bin/sleep").arg("1000").spawn());
    let (mut first, mut second) = (start()??, start()??);
    let netns = format!("/proc/{}/ns/net", first.id());
    let call = bridge("a", &pod, with(gateway4(), json!({"cniVersion": NEWEST}))).env("CNI_NETNS", &netns);
    call.add().run(host)?.result()?;
    first.kill()?;
    first.wait()?;
    call.gc().run(host)?.silence()?;
    equal("leases while another process is there", host.leases("net")?, ["10.20.0.2"])?;
    pod.ping("10.20.0.1")?;
    second.kill()?;
    second.wait()?;
    pod.remove()?;
    // The kernel takes its links away some time after the namespace.
    while host.run(&["ip", "link", "show", "type", "veth"])?.contains("veth") {
        std::thread::sleep(Duration::from_millis(5));
    }
    call.gc().run(host)?.silence()?;
    equal("leases without the namespace", host.leases("net")?, Vec::<String>::new())
}

/// Two attachments: `dead`, whose namespace is removed, and `live`. Then GC with no list, with one, and with either
/// form of an empty one; `left` tells who is remembered.
fn three_lists(
    host: &Sandbox,
    attach: impl Fn(&str, &Pod) -> Call,
    left: impl Fn() -> Result<Vec<String>>,
) -> Result<()> {
    let key = "cni.dev/valid-attachments";
    let live = json!([{"containerID": "live", "ifname": "eth0"}]);
    for (round, (list, wanted)) in [
        (None, vec!["live"]),
        (Some(live.clone()), vec!["live"]),
        (Some(json!([])), vec![]),
        (Some(Value::Null), vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let pods = [host.pod(&format!("dead{round}"))?, host.pod(&format!("live{round}"))?];
        let [dead, live] = ["dead", "live"].map(|id| attach(id, &pods[usize::from(id == "live")]));
        dead.add().run(host)?.result()?;
        live.add().run(host)?.result()?;
        equal("before GC", left()?, ["dead", "live"])?;
        let [gone, _still] = pods;
        gone.remove()?;
        let gc = live.gc();
        let gc = list.as_ref().map_or(gc.clone(), |list| gc.set(key, list.clone()));
        gc.run(host)?.silence().with_context(|| format!("{list:?}"))?;
        equal(format!("after GC with {list:?}"), left()?, wanted)?;
        for call in [dead, live] {
            call.del().run(host)?.silence()?;
        }
        equal("after DEL", left()?, Vec::<String>::new())?;
    }
    Ok(())
}

/// The containers that a plugin has records of.
fn recorded(plugin: &str) -> Result<Vec<String>> {
    let directory = record(plugin, "x").parent().map(Path::to_owned).unwrap_or_default();
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ids.push(name.split(':').next().unwrap_or_default().to_owned());
    }
    ids.sort();
    Ok(ids)
}

fn bridge_knows_the_three_lists(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    three_lists(
        host,
        |id, pod| bridge(id, pod, network.clone()),
        || {
            let ids = recorded("bridge")?;
            equal("leases", host.leases("net")?.len(), ids.len())?;
            Ok(ids)
        },
    )
}

fn host_local_knows_the_three_lists(host: &Sandbox) -> Result<()> {
    three_lists(
        host,
        |id, pod| {
            host_local(id, json!({"subnet": "10.1.0.0/24"})).netns(pod).set("cniVersion", json!(NEWEST))
        },
        || {
            let ids = recorded("host-local")?;
            equal("leases", host.leases("net")?.len(), ids.len())?;
            Ok(ids)
        },
    )
}

fn static_knows_the_three_lists(host: &Sandbox) -> Result<()> {
    let ipam = json!({"addresses": [{"address": "10.1.0.9/24"}]});
    three_lists(
        host,
        |id, pod| fixed(ipam.clone()).id(id).netns(pod).set("cniVersion", json!(NEWEST)),
        || recorded("static"),
    )
}

fn loopback_knows_the_three_lists(host: &Sandbox) -> Result<()> {
    let config = json!({"cniVersion": NEWEST, "name": "net", "type": "loopback"});
    three_lists(
        host,
        |id, pod| Call::new("loopback").id(id).ifname("eth0").netns(pod).config(config.clone()),
        || recorded("loopback"),
    )
}

fn the_key_of_the_list_is_found_whatever_its_case(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    for (number, key) in ["CNI.dev/Valid-Attachments", "cni.dev/Attachments"].into_iter().enumerate() {
        let gone = Attachment::new(host, &format!("gone{number}"), network.clone())?;
        let kept = Attachment::new(host, &format!("kept{number}"), network.clone())?;
        let list = json!([{"ContainerID": format!("kept{number}"), "IfName": "eth0"}]);
        kept.call.gc().set(key, list).run(host)?.silence()?;
        gone.damaged(host).context(key)?;
        kept.sound(host)?;
        kept.call.gc().set(key, Value::Null).run(host)?.silence()?;
        kept.damaged(host).with_context(|| format!("{key} with null"))?;
    }
    Ok(())
}

fn an_entry_that_names_no_interface_is_refused(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    let one = Attachment::new(host, "a", network)?;
    for entry in [json!({"containerID": "a"}), json!({"ifname": "eth0"}), json!({}), json!("a"), Value::Null]
    {
        one.call.gc().set("cni.dev/valid-attachments", json!([entry])).run(host)?.refused_with(6)?;
        one.sound(host)?;
    }
    Ok(())
}

/// Who is not root sees no record and may remove nothing; to say that all is clean would be wrong.
fn gc_by_another_user_than_root_is_an_error(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", network())?;
    let copy = Path::new(SCRATCH).join("bridge");
    fs::copy(host.plugins().join("bridge"), &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let config = with(network(), json!({"name": "net", "type": "bridge", "cni.dev/valid-attachments": []}));
    let config = host.scratch("config", &config.to_string())?;
    let script = format!(
        "CNI_COMMAND=GC CNI_PATH={} setpriv --reuid=1234 --regid=1234 --clear-groups {} < {}",
        SCRATCH,
        copy.display(),
        config.display()
    );
    let finished = host.try_run(&["sh", "-c", &script])?;
    equal("exit status", finished.status.code(), Some(1))?;
    holds(finished.stdout.contains("root"), format!("the error does not name root: {}", finished.stdout))?;
    one.sound(host)
}

/// An IPAM that has to be executed is told of each pod that is gone, by the variables of a DEL.
fn gc_gives_back_what_an_executed_ipam_gave(host: &Sandbox) -> Result<()> {
    let directory = Path::new(SCRATCH).join("foreign");
    fs::create_dir(&directory)?;
    fs::copy(host.plugins().join("host-local"), directory.join("host-local"))?;
    let path = format!("{}:{}", directory.display(), host.plugins().display());
    let pods = [host.pod("gone")?, host.pod("kept")?];
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    let [gone, kept] = ["gone", "kept"]
        .map(|id| bridge(id, &pods[usize::from(id == "kept")], network.clone()).env("CNI_PATH", &path));
    gone.add().run(host)?.result()?;
    let result = kept.add().run(host)?.result()?;
    let list = json!([{"containerID": "kept", "ifname": "eth0"}]);
    kept.gc().set("cni.dev/valid-attachments", list).run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.20.0.3"])?;
    holds(!record("bridge", "gone").exists(), "the record of the dead pod is there")?;
    kept.check().prev(&result).run(host)?.silence()
}

fn the_dead_are_removed_whatever_their_network(host: &Sandbox) -> Result<()> {
    let other = with(nftables(), json!({"name": "other", "bridge": "cni1", "ipam": pool(&["10.21.0.0/24"])}));
    let live = Attachment::new(host, "live", nftables())?;
    // So that what attachments share is there before.
    Attachment::new(host, "first", other.clone())?.del(host)?;
    let before = Snapshot::take(host, &[&live.pod])?;
    let dead =
        [("dead", nftables()), ("gone", other)].map(|(id, network)| Attachment::new(host, id, network));
    for one in dead {
        one?.pod.remove()?;
    }
    let said = tool(host, &["gc"])?;
    holds(said.status.success(), format!("gc: {}: {}", said.outcome(), said.stderr))?;
    contains("what gc says", &said.stdout, "container dead interface eth0 on network net: removed\n")?;
    contains("what gc says", &said.stdout, "container gone interface eth0 on network other: removed\n")?;
    contains(
        "what gc says",
        &said.stdout,
        "removed what was left of 2 attachments; 1 not known to be gone\n",
    )?;
    before.restored(host, &[&live.pod])?;
    live.call.check().prev(&live.result).run(host)?.silence()?;
    let again = tool(host, &["gc"])?;
    equal("what gc says", &*again.stdout, "nothing is left of any that is gone; 1 not known to be gone\n")
}

fn the_dead_of_another_ipam_are_left_and_named(host: &Sandbox) -> Result<()> {
    let directory = Path::new(SCRATCH).join("foreign");
    fs::create_dir(&directory)?;
    fs::copy(host.plugins().join("host-local"), directory.join("host-local"))?;
    let path = format!("{}:{}", directory.display(), host.plugins().display());
    let pod = host.pod("dead")?;
    let call = bridge("dead", &pod, with(gateway4(), json!({"cniVersion": NEWEST}))).env("CNI_PATH", &path);
    call.add().run(host)?.result()?;
    pod.remove()?;
    let said = tool(host, &["gc"])?;
    equal("exit status", said.status.code(), Some(1))?;
    contains("what gc says", &said.stderr, "container dead interface eth0 on network net: ")?;
    contains("what gc says", &said.stderr, "`bridgehead gc net`")?;
    holds(record("bridge", "dead").exists(), "the record is gone")?;
    call.del().run(host)?.silence()
}

fn nothing_that_may_live_is_removed(host: &Sandbox) -> Result<()> {
    let none = tool(host, &["gc"])?;
    equal("what gc says", &*none.stdout, "nothing is left of any that is gone; 0 not known to be gone\n")?;
    let live = Attachment::new(host, "live", gateway4())?;
    let said = tool(host, &["gc"])?;
    equal("what gc says", &*said.stdout, "nothing is left of any that is gone; 1 not known to be gone\n")?;
    for arguments in [["gc", "--all"].as_slice(), &["gc", "--valid", "x"]] {
        equal("exit status", tool(host, arguments)?.status.code(), Some(2))?;
    }
    live.call.check().prev(&live.result).run(host)?.silence()
}
