//! What stands in the place of the directory below /run in which a suite keeps what belongs to this boot.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, fixed, gateway4, host_local, with};
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds, lacks};
use crate::sandbox::{SCRATCH, Sandbox};
use crate::snapshot::Snapshot;

/// Where state is kept is a matter of the suite under test.
const TOOL: Need = Need::Plugin("bridgehead");

const STATE: &str = "/run/bridgehead";

cases! {
    "records/state-directory" {
        del_works_whatever_is_in_its_place needs [TOOL, Need::Nftables];
        add_names_what_is_in_its_place needs [TOOL, Need::Nftables];
        status_names_what_is_in_its_place needs [TOOL];
        gc_works_whatever_is_in_its_place needs [TOOL, Need::Nftables];
        who_is_not_root_is_told_so needs [TOOL, Need::Program("setpriv")];
    }
}

/// What may stand there, and the word for it.
const OBSTACLES: [(&str, &str); 5] = [
    ("file", "a file"),
    ("link to a directory", "a symbolic link"),
    ("link to a file", "a symbolic link"),
    ("link to nothing", "a symbolic link"),
    ("user's directory", "another user's directory"),
];

fn network() -> Value {
    with(gateway4(), json!({"ipMasq": true, "ipMasqBackend": "nftables", "cniVersion": NEWEST}))
}

/// What the obstacle is and where it leads, to the last bit.
fn look() -> Result<String> {
    let victim = Path::new(SCRATCH).join("victim");
    let mut text = String::new();
    for path in [Path::new(STATE), &victim] {
        let Ok(found) = fs::symlink_metadata(path) else { continue };
        let modified = (found.mtime(), found.mtime_nsec());
        text +=
            &format!("{} {:o} {} {} {modified:?}\n", found.ino(), found.mode(), found.uid(), found.size());
        if found.is_dir() {
            text += &format!(
                "{:?}\n",
                fs::read_dir(path)?.map(|it| Ok(it?.file_name())).collect::<Result<Vec<_>>>()?
            );
        }
    }
    Ok(text)
}

fn clear() -> Result<()> {
    let victim = Path::new(SCRATCH).join("victim");
    for path in [Path::new(STATE), &victim] {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// Loses the state, and puts something else in its place.
fn obstruct(how: &str) -> Result<()> {
    clear()?;
    let victim = Path::new(SCRATCH).join("victim");
    match how {
        "file" => fs::write(STATE, "mine")?,
        "link to a directory" => {
            fs::create_dir(&victim)?;
            symlink(&victim, STATE)?;
        }
        "link to a file" => {
            fs::write(&victim, "mine")?;
            symlink(&victim, STATE)?;
        }
        "link to nothing" => symlink(&victim, STATE)?,
        _ => {
            fs::create_dir(STATE)?;
            chown(STATE, Some(1234), None)?;
        }
    }
    Ok(())
}

fn each(host: &Sandbox, then: impl Fn(&str, &str, &str) -> Result<()>) -> Result<()> {
    for (number, (how, word)) in OBSTACLES.into_iter().enumerate() {
        then(&format!("pod{number}"), how, word).with_context(|| format!("with a {how}"))?;
        clear()?;
    }
    holds(host.link("lo")?.is_some(), "lo is gone")
}

fn del_works_whatever_is_in_its_place(host: &Sandbox) -> Result<()> {
    each(host, |id, how, _| {
        let one = Attachment::new(host, id, network())?;
        obstruct(how)?;
        let before = look()?;
        one.sound(host)?;
        one.del(host)?;
        one.del(host)?;
        equal("leases", host.leases("net")?, Vec::<String>::new())?;
        lacks("rules", &host.run(&["nft", "list", "ruleset"])?, &format!("net/{id}"))?;
        equal("links of the pod", one.pod.link_names()?, ["lo"])?;
        equal("what is in the place", look()?, before)
    })
}

/// Calls for all plugins.
fn calls(host: &Sandbox, id: &str) -> Result<Vec<Call>> {
    let pod = host.pod(id)?;
    let loopback = json!({"cniVersion": NEWEST, "name": "lo", "type": "loopback"});
    Ok(vec![
        bridge(id, &pod, network()),
        host_local(id, json!({"subnet": "10.1.0.0/24"})),
        fixed(json!({"addresses": [{"address": "10.1.0.9/24"}]})).id(id),
        Call::new("loopback").id(id).ifname("lo").netns(&pod).config(loopback),
    ])
}

fn add_names_what_is_in_its_place(host: &Sandbox) -> Result<()> {
    each(host, |id, how, word| {
        obstruct(how)?;
        let (snapshot, before) = (Snapshot::take(host, &[])?, look()?);
        for call in calls(host, id)? {
            let text = call.add().run(host)?.refused_with(105)?.text();
            contains("the error", &text, STATE)?;
            contains("the error", &text, word)?;
            call.del().run(host)?.silence()?;
        }
        equal("what is in the place", look()?, before)?;
        Snapshot::take(host, &[])?.unchanged_since(&snapshot)
    })
}

fn status_names_what_is_in_its_place(host: &Sandbox) -> Result<()> {
    each(host, |id, how, word| {
        obstruct(how)?;
        let before = look()?;
        for call in calls(host, id)? {
            let text = call.set("cniVersion", json!(NEWEST)).status().run(host)?.refused_with(50)?.text();
            contains("the error", &text, STATE)?;
            contains("the error", &text, word)?;
        }
        equal("what is in the place", look()?, before)
    })
}

fn gc_works_whatever_is_in_its_place(host: &Sandbox) -> Result<()> {
    each(host, |id, how, _| {
        let one = Attachment::new(host, id, network())?;
        let kept = Attachment::new(host, &format!("{id}kept"), network())?;
        obstruct(how)?;
        let before = look()?;
        let valid = json!([{"containerID": format!("{id}kept"), "ifname": "eth0"}]);
        one.call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
        lacks("rules", &host.run(&["nft", "list", "ruleset"])?, &format!("net/{id}/"))?;
        equal("leases", host.leases("net")?.len(), 1)?;
        kept.sound(host)?;
        equal("what is in the place", look()?, before)?;
        kept.del(host)
    })
}

fn who_is_not_root_is_told_so(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let tool = host.plugins().join("bridgehead");
    let words = ["setpriv", "--reuid", "65534", "--clear-groups", &tool.to_string_lossy(), "gc"];
    let finished = host.try_run(&words)?;
    holds(!finished.status.success(), "it fails")?;
    contains("stderr", &finished.stderr, "/run/bridgehead is root's, and this program does not run as root")?;
    one.sound(host)
}
