//! What a plugin remembers below /run, when it is damaged.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, fixed, gateway4, host_local, with};
use crate::case::Need;
use crate::expect::{equal, holds, lacks};
use crate::sandbox::{SCRATCH, Sandbox};

/// Where records are is a matter of the suite under test; those without this program have none there.
pub(super) const TOOL: Need = Need::Plugin("bridgehead");

/// Where the suite keeps what belongs to this boot.
pub(super) const STATE: &str = "/run/bridgehead";

cases! {
    "records/damaged" {
        del_works_with_a_damaged_record needs [TOOL, Need::Nftables];
        del_works_with_a_damaged_draft needs [TOOL, Need::Nftables];
        add_replaces_a_damaged_record needs [TOOL, Need::Nftables];
        add_replaces_a_damaged_draft needs [TOOL, Need::Nftables];
        check_needs_no_record needs [TOOL, Need::Nftables];
        gc_goes_on_past_damaged_records needs [TOOL, Need::Nftables];
        gc_removes_abandoned_drafts needs [TOOL];
        a_file_in_place_of_a_directory_is_replaced needs [TOOL];
        a_link_in_place_of_a_directory_is_not_followed needs [TOOL];
        ipam_plugins_survive_damaged_records needs [TOOL];
    }
    "records/modes" {
        nobody_else_can_read_state needs [TOOL, Need::Nftables];
        what_is_too_open_is_closed needs [TOOL];
    }
    "records/locks" {
        del_waits_for_the_call_that_has_the_attachment needs [TOOL, Need::Program("flock")];
        gc_leaves_an_attachment_alone_that_a_call_works_on needs [TOOL, Need::Program("flock")];
    }
}

pub(super) fn network() -> Value {
    with(gateway4(), json!({"ipMasq": true, "ipMasqBackend": "nftables", "cniVersion": NEWEST}))
}

pub(super) fn record(plugin: &str, id: &str) -> PathBuf {
    Path::new(STATE).join("attachments").join(plugin).join("net").join(format!("{id}:eth0"))
}

pub(super) fn draft(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}:new", path.display()))
}

/// Ways to damage a file, each with its name.
const DAMAGES: [&str; 10] = [
    "empty",
    "truncated",
    "binary",
    "not json",
    "other json",
    "another's",
    "user",
    "directory",
    "link",
    "fifo",
];

/// What a symbolic link of the case leads to.
const VICTIM: &str = "/run/scratch/victim";

/// Puts something else in the place of a file, which may be there or not; its content is `text`.
fn damage(host: &Sandbox, path: &Path, text: &str, how: &str) -> Result<()> {
    // Not there is fine.
    let _ = fs::remove_file(path);
    match how {
        "empty" => fs::write(path, "")?,
        "truncated" => fs::write(path, &text[..text.len() / 2])?,
        "binary" => fs::write(path, [0xff, 0xfe, 0, 1, 0x80])?,
        "not json" => fs::write(path, "no record\n")?,
        "other json" => fs::write(path, "[1, {\"attachment\": null}]")?,
        "another's" => fs::write(path, text.replace("\"eth0\"", "\"eth7\""))?,
        "user" => {
            fs::write(path, text)?;
            chown(path, Some(1234), None)?;
        }
        "directory" => {
            fs::create_dir(path)?;
            fs::create_dir(path.join("inside"))?;
            fs::write(path.join("inside/file"), text)?;
            symlink(SCRATCH, path.join("way-out"))?;
        }
        "link" => {
            fs::write(VICTIM, text)?;
            symlink(VICTIM, path)?;
        }
        _ => drop(host.run(&["mkfifo", &path.to_string_lossy()])?),
    }
    Ok(())
}

fn gone(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).is_ok();
    holds(!found, format!("{} is there", path.display()))
}

fn ruleset(host: &Sandbox) -> Result<String> {
    host.run(&["nft", "-s", "list", "ruleset"])
}

/// Nothing of an attachment is left, and what a link led to is what it was.
fn nothing_left(host: &Sandbox, id: &str, path: &Path, text: &str) -> Result<()> {
    gone(path)?;
    gone(&draft(path))?;
    lacks("rules", &ruleset(host)?, &format!("net/{id}/eth0"))?;
    equal("leases", host.leases("net")?, ["10.20.0.2"])?;
    if Path::new(VICTIM).exists() {
        equal("what the link led to", fs::read_to_string(VICTIM)?.as_str(), text)?;
        fs::remove_file(VICTIM)?;
    }
    Ok(())
}

/// For each damage: a pod whose record is damaged so, or what is at another path that follows from its, while another pod
/// lives on.
fn each(
    host: &Sandbox,
    target: impl Fn(&Path) -> PathBuf,
    then: impl Fn(&Attachment) -> Result<()>,
) -> Result<()> {
    let witness = Attachment::new(host, "witness", network())?;
    for (number, how) in DAMAGES.iter().enumerate() {
        let id = format!("pod{number}");
        let path = record("bridge", &id);
        let one = Attachment::new(host, &id, network())?;
        let text = fs::read_to_string(&path).context("there is no record")?;
        damage(host, &target(&path), &text, how).with_context(|| format!("cannot make it {how}"))?;
        then(&one).with_context(|| (*how).to_owned())?;
        // Its DEL may be called again.
        one.del(host).with_context(|| format!("{how}, DEL"))?;
        one.del(host).with_context(|| format!("{how}, DEL again"))?;
        nothing_left(host, &id, &path, &text).with_context(|| (*how).to_owned())?;
        equal("links of the pod", one.pod.link_names()?, ["lo"])?;
        witness.sound(host).with_context(|| format!("{how}: the other pod"))?;
    }
    Ok(())
}

fn del_works_with_a_damaged_record(host: &Sandbox) -> Result<()> {
    each(host, Path::to_owned, |_| Ok(()))
}

fn del_works_with_a_damaged_draft(host: &Sandbox) -> Result<()> {
    each(host, draft, |_| Ok(()))
}

fn replaced(host: &Sandbox, one: &Attachment) -> Result<()> {
    // Nobody can know that it is there already, and ADD has to make it anew or to refuse; a runtime would call DEL.
    let again = one.call.add().run(host)?;
    if again.status() == Some(0) {
        return one.call.check().prev(&again.result()?).run(host)?.silence();
    }
    again.refusal()?;
    one.call.del().run(host)?.silence()?;
    let again = one.call.add().run(host)?.result()?;
    one.call.check().prev(&again).run(host)?.silence()?;
    let id = Path::new(one.pod.netns()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = record("bridge", &id);
    let found = fs::symlink_metadata(&path)?;
    holds(found.is_file() && found.uid() == 0, "the record is not a file of root's")?;
    gone(&draft(&path))
}

fn add_replaces_a_damaged_record(host: &Sandbox) -> Result<()> {
    each(host, Path::to_owned, |one| replaced(host, one))
}

fn add_replaces_a_damaged_draft(host: &Sandbox) -> Result<()> {
    each(host, draft, |one| replaced(host, one))
}

fn check_needs_no_record(host: &Sandbox) -> Result<()> {
    each(host, Path::to_owned, |one| one.sound(host))
}

fn gc_goes_on_past_damaged_records(host: &Sandbox) -> Result<()> {
    let kept = Attachment::new(host, "kept", network())?;
    for (number, how) in DAMAGES.iter().enumerate() {
        let id = format!("pod{number}");
        let path = record("bridge", &id);
        Attachment::new(host, &id, network())?;
        let text = fs::read_to_string(&path)?;
        damage(host, &path, &text, how)?;
    }
    let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
    kept.call.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
    for number in 0..DAMAGES.len() {
        gone(&record("bridge", &format!("pod{number}")))?;
    }
    lacks("rules", &ruleset(host)?, "net/pod")?;
    equal("leases", host.leases("net")?, ["10.20.0.2"])?;
    kept.sound(host)
}

/// Has a file be as old as that.
pub(super) fn age(path: &Path, by: Duration) -> Result<()> {
    let then = SystemTime::now().checked_sub(by).context("the clock is at its beginning")?;
    fs::File::open(path)?.set_modified(then).with_context(|| path.display().to_string())
}

fn gc_removes_abandoned_drafts(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(gateway4(), json!({"cniVersion": NEWEST})))?;
    let (old, new) = (draft(&record("bridge", "old")), draft(&record("bridge", "new")));
    for path in [&old, &new] {
        fs::write(path, "")?;
    }
    age(&old, Duration::from_secs(600))?;
    one.call.gc().run(host)?.silence()?;
    gone(&old)?;
    holds(new.exists(), "the draft of a call that may run is gone")?;
    one.sound(host)
}

fn a_file_in_place_of_a_directory_is_replaced(host: &Sandbox) -> Result<()> {
    for place in ["attachments", "attachments/bridge", "attachments/bridge/net"] {
        let path = Path::new(STATE).join(place);
        // Not there is fine.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, "in the way")?;
        let pod = host.pod(&place.replace('/', "-"))?;
        let call = bridge(&place.replace('/', "-"), &pod, gateway4());
        call.del().run(host)?.silence().with_context(|| format!("DEL, {place}"))?;
        let result = call.add().run(host)?.result().with_context(|| format!("ADD, {place}"))?;
        call.check().prev(&result).run(host)?.silence()?;
        call.del().run(host)?.silence()?;
        holds(path.is_dir(), format!("{place} is no directory"))?;
    }
    Ok(())
}

fn a_link_in_place_of_a_directory_is_not_followed(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let directory = record("bridge", "a").parent().map(Path::to_owned).unwrap_or_default();
    let elsewhere = Path::new(SCRATCH).join("elsewhere");
    fs::rename(&directory, &elsewhere)?;
    symlink(&elsewhere, &directory)?;
    one.del(host)?;
    holds(elsewhere.join("a:eth0").exists(), "DEL removed a file behind a link")?;
    let two = Attachment::new(host, "b", gateway4())?;
    holds(!elsewhere.join("b:eth0").exists(), "ADD wrote a file behind a link")?;
    two.del(host)
}

fn ipam_plugins_survive_damaged_records(host: &Sandbox) -> Result<()> {
    for (number, how) in DAMAGES.iter().enumerate() {
        for (plugin, call) in [
            ("host-local", host_local(&format!("c{number}"), json!({"subnet": "10.1.0.0/24"}))),
            ("static", fixed(json!({"addresses": [{"address": "10.1.0.9/24"}]})).id(&format!("c{number}"))),
        ] {
            call.add().run(host)?.result()?;
            let path = record(plugin, &format!("c{number}"));
            let text = fs::read_to_string(&path)?;
            damage(host, &path, &text, how)?;
            let again = call.add().run(host)?;
            if again.status() != Some(0) {
                again.refusal()?;
            }
            call.del().run(host)?.silence().with_context(|| format!("{plugin}, {how}"))?;
            gone(&path).with_context(|| format!("{plugin}, {how}"))?;
            equal(format!("leases, {how}"), host.leases("net")?, Vec::<String>::new())?;
        }
    }
    Ok(())
}

/// Everything below a directory, and it itself.
fn tree(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            found.extend(tree(&entry?.path())?);
        }
    }
    Ok(found)
}

fn closed(path: &Path) -> Result<()> {
    for path in tree(path)? {
        let found = fs::symlink_metadata(&path)?;
        let mode = found.permissions().mode() & 0o7777;
        let wanted = if found.is_dir() { 0o700 } else { 0o600 };
        holds(mode & !wanted == 0, format!("{} has the mode {mode:o}", path.display()))?;
    }
    Ok(())
}

fn nobody_else_can_read_state(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", with(network(), json!({"macspoofchk": true})))?;
    closed(Path::new(STATE))?;
    Attachment::new(host, "b", network())?;
    one.del(host)?;
    closed(Path::new(STATE))
}

fn what_is_too_open_is_closed(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let attachments = Path::new(STATE).join("attachments");
    for path in tree(&attachments)? {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    fs::set_permissions(STATE, fs::Permissions::from_mode(0o755))?;
    // The same again, and then another.
    one.call.add().run(host)?.result()?;
    closed(&record("bridge", "a"))?;
    Attachment::new(host, "b", gateway4())?;
    closed(Path::new(STATE))
}

/// Starts a shell that holds a file for a second and says when it has let go.
fn hold(host: &Sandbox, path: &Path) -> Result<()> {
    let script = format!(
        "flock '{}' sh -c 'echo > /run/scratch/held; sleep 1; echo > /run/scratch/let-go' >/dev/null 2>&1 & \
         while ! [ -e /run/scratch/held ]; do sleep 0.01; done",
        path.display()
    );
    host.run(&["sh", "-c", &script]).map(drop)
}

fn del_waits_for_the_call_that_has_the_attachment(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    hold(host, &record("bridge", "a"))?;
    let other = two.call.del().run(host)?;
    other.silence()?;
    let answer = one.call.del().run(host)?;
    answer.silence()?;
    holds(Path::new("/run/scratch/let-go").exists(), "DEL did not wait")?;
    equal("leases", host.leases("net")?, Vec::<String>::new())
}

fn gc_leaves_an_attachment_alone_that_a_call_works_on(host: &Sandbox) -> Result<()> {
    let network = with(gateway4(), json!({"cniVersion": NEWEST}));
    let one = Attachment::new(host, "a", network.clone())?;
    Attachment::new(host, "b", network)?;
    hold(host, &record("bridge", "a"))?;
    one.call.gc().set("cni.dev/valid-attachments", json!([])).run(host)?.silence()?;
    equal("leases", host.leases("net")?, ["10.20.0.2"])?;
    one.sound(host)
}
