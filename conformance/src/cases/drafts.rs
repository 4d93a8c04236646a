//! What is written aside of a file of state names a pod, too: it does not outlive a call that fails, nor the DEL after a
//! call that was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{Attachment, NEWEST, bridge, gateway4, with};
use super::portmap::{portmap, tcp};
use super::records::{STATE, TOOL, draft, record};
use super::tuning;
use crate::call::Call;
use crate::case::Need;
use crate::expect::{contains, equal, holds};
use crate::sandbox::Sandbox;

const PORTMAP: Need = Need::Plugin("portmap");
const TUNING: Need = Need::Plugin("tuning");

cases! {
    "drafts/killed" {
        del_removes_a_draft_of_owners_of_ports needs [TOOL, PORTMAP];
        gc_removes_a_draft_of_owners_of_ports needs [TOOL, PORTMAP];
        whatever_stands_in_the_place_of_owners_of_ports_is_replaced needs [TOOL, PORTMAP];
        del_removes_a_draft_of_what_a_link_was needs [TOOL, TUNING];
    }
    "drafts/refused" {
        owners_of_ports_that_cannot_be_written_leave_none needs [TOOL, PORTMAP];
        a_del_that_cannot_write_owners_of_ports_leaves_none needs [TOOL, PORTMAP];
        a_backup_that_cannot_be_written_leaves_none needs [TOOL, TUNING];
        a_record_that_cannot_be_written_leaves_none needs [TOOL];
    }
}

/// The file of the owners of 64 ports, 8080 among them.
fn owners() -> PathBuf {
    Path::new(STATE).join("ports/tcp-126")
}

/// The names below a directory, in their order.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn call(one: &Attachment, id: &str) -> Call {
    portmap(id, one, tcp(8080, 80), json!({}))
}

/// Leaves what a call does that is killed.
type Kill = fn() -> Result<()>;

/// What a call leaves that is killed as it writes the owners of ports, as others had some already, and as the first.
const KILLED: [(&str, Kill); 2] = [("killed", killed), ("killed as the first", killed_as_the_first)];

fn killed() -> Result<()> {
    fs::copy(owners(), draft(&owners()))?;
    Ok(())
}

fn killed_as_the_first() -> Result<()> {
    Ok(fs::rename(owners(), draft(&owners()))?)
}

fn del_removes_a_draft_of_owners_of_ports(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = call(&one, "a");
    for (how, killed) in KILLED {
        for has_record in [true, false] {
            let what = format!("{how}, record: {has_record}");
            call.add().run(host)?.result()?;
            killed()?;
            if !has_record {
                fs::remove_file(record("portmap", "a"))?;
            }
            call.del().run(host)?.silence().with_context(|| what.clone())?;
            equal(what, names(&Path::new(STATE).join("ports"))?, ["lock"])?;
        }
    }
    Ok(())
}

fn gc_removes_a_draft_of_owners_of_ports(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    // In another file than the dead pod's.
    let kept = portmap("b", &two, tcp(8200, 80), json!({}));
    kept.add().run(host)?.result()?;
    for (how, killed) in KILLED {
        call(&one, "a").add().run(host)?.result()?;
        killed()?;
        fs::remove_file(record("portmap", "a"))?;
        let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
        kept.gc().set("cni.dev/valid-attachments", valid).run(host)?.silence()?;
        equal(how, names(&Path::new(STATE).join("ports"))?, ["lock", "tcp-128"])?;
        kept.check().run(host)?.silence()?;
    }
    Ok(())
}

fn whatever_stands_in_the_place_of_owners_of_ports_is_replaced(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let call = call(&one, "a");
    for target in [owners(), draft(&owners())] {
        for damage in [
            "mkdir $0 $0/inside; echo > $0/inside/file",
            "ln -s /run/scratch/victim $0",
            "mkfifo $0",
            "echo nonsense > $0",
        ] {
            let what = format!("{damage} ({})", target.display());
            fs::create_dir_all(Path::new(STATE).join("ports"))?;
            host.run(&["sh", "-c", damage, &target.to_string_lossy()])?;
            call.add().run(host)?.result().with_context(|| what.clone())?;
            call.check().run(host)?.silence().with_context(|| what.clone())?;
            holds(owners().is_file(), format!("{what}: it is no file"))?;
            host.run(&["sh", "-c", &format!("rm -f $0; {damage}"), &target.to_string_lossy()])?;
            call.del().run(host)?.silence().with_context(|| what.clone())?;
            // Of a draft in its place, too.
            equal(what, names(&Path::new(STATE).join("ports"))?, ["lock"])?;
        }
    }
    holds(!Path::new("/run/scratch/victim").exists(), "a link was followed")
}

fn del_removes_a_draft_of_what_a_link_was(host: &Sandbox) -> Result<()> {
    let pod = tuning::pod(host)?;
    let call = tuning::tuning(&pod, json!({"mtu": 1400}));
    let backup = Path::new(tuning::BACKUP);
    for has_record in [true, false] {
        call.add().run(host)?.result()?;
        fs::copy(backup, draft(backup))?;
        if !has_record {
            fs::remove_file(Path::new(STATE).join("attachments/tuning/net/c1:eth0"))?;
        }
        call.del().run(host)?.silence()?;
        let left = names(backup.parent().unwrap_or(backup))?;
        equal(format!("record: {has_record}"), left, Vec::<String>::new())?;
    }
    Ok(())
}

/// Makes a path one that nothing can be put in the place of.
pub(super) fn occupy(host: &Sandbox, path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    host.run(&["mount", "-t", "tmpfs", "none", &path.to_string_lossy()]).map(drop)
}

/// An ADD that cannot write its file is refused, and leaves nothing beside it.
fn refused(host: &Sandbox, call: &Call, occupied: &Path) -> Result<()> {
    let directory = occupied.parent().unwrap_or(occupied);
    fs::create_dir_all(directory)?;
    occupy(host, occupied)?;
    let before = names(directory)?;
    let refusal = call.add().run(host)?.refused_with(105)?;
    contains("the error", &refusal.text(), &occupied.to_string_lossy())?;
    equal("files", names(directory)?.into_iter().filter(|name| name != "lock").collect::<Vec<_>>(), before)
}

fn owners_of_ports_that_cannot_be_written_leave_none(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    refused(host, &call(&one, "a"), &owners())
}

fn a_del_that_cannot_write_owners_of_ports_leaves_none(host: &Sandbox) -> Result<()> {
    let one = Attachment::new(host, "a", gateway4())?;
    let two = Attachment::new(host, "b", gateway4())?;
    let (call, other) = (call(&one, "a"), portmap("b", &two, tcp(8081, 80), json!({})));
    call.add().run(host)?.result()?;
    other.add().run(host)?.result()?;
    let path = owners().to_string_lossy().into_owned();
    host.run(&["mount", "--bind", &path, &path])?;
    contains("the error", &call.del().run(host)?.refused_with(105)?.text(), &path)?;
    equal("files", names(&Path::new(STATE).join("ports"))?, ["lock", "tcp-126"])?;
    host.run(&["umount", &path])?;
    call.del().run(host)?.silence()?;
    other.check().run(host)?.silence()
}

fn a_backup_that_cannot_be_written_leaves_none(host: &Sandbox) -> Result<()> {
    let pod = tuning::pod(host)?;
    refused(host, &tuning::tuning(&pod, json!({"mtu": 1400})), Path::new(tuning::BACKUP))
}

fn a_record_that_cannot_be_written_leaves_none(host: &Sandbox) -> Result<()> {
    let pod = host.pod("a")?;
    let keys: Value = with(gateway4(), json!({"cniVersion": NEWEST}));
    refused(host, &bridge("a", &pod, keys), &record("bridge", "a"))
}
