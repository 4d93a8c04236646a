//! The store when somebody, or a power failure, has spoilt what is kept; see also the conformance suite, which does so
//! to the plugin from outside.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::store_tests::{NET, Place, allocate, ip, owner, release, set_boot, sets};
use super::{Owner, Usage};
use crate::spec::config::{LOCK_TIMEOUT, ValidAttachments};

const OTHER_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// What `look` cannot take for a reservation, and what becomes of it by its mark.
#[test]
fn garbage_is_judged_by_its_mark() {
    let place = Place::new();
    allocate(&place, NET, "a");
    allocate(&place, NET, "b");
    allocate(&place, NET, "c");
    // Of this boot, so its pod may live; of another; of nobody.
    fs::write(place.file("10.0.0.2"), [0xff; 9]).unwrap();
    fs::write(place.file("10.0.0.3"), "kept by nobody").unwrap();
    set_boot(&place.file("10.0.0.3"), OTHER_BOOT);
    place.write("10.0.0.7", "\u{1}\u{2}");
    place.write("10.0.0.8", "kept by hand");
    place.lock().collect(&ValidAttachments::NotGiven, &[]).unwrap();
    let left = ["10.0.0.2", "10.0.0.4", "10.0.0.8"].map(str::to_owned);
    assert_eq!(place.reserved(), BTreeSet::from(left));
}

#[test]
fn an_owners_file_that_lacks_something_is_not_believed() {
    for content in ["", "10.0.0.2\n", "10.0.0.2\nen", "10.0.0.2", "\nend", "end\n", "\u{0}end"] {
        let place = Place::new();
        allocate(&place, NET, "a");
        fs::write(place.index().join("owners/a:eth0"), content).unwrap();
        assert_eq!(release(&place, "a"), ["10.0.0.2"], "{content:?}");
    }
}

#[test]
fn a_lost_owners_file_is_made_up_for_by_what_the_caller_knows() {
    let place = Place::new();
    allocate(&place, NET, "a");
    fs::remove_file(place.index().join("owners/a:eth0")).unwrap();
    // Another's address is not released, whatever the caller believes.
    let believed = [ip("10.0.0.2")];
    assert!(place.store().release(&owner("b"), &believed, LOCK_TIMEOUT).unwrap().is_empty());
    assert_eq!(place.store().release(&owner("a"), &believed, LOCK_TIMEOUT).unwrap(), believed);
}

#[test]
fn links_in_the_index_are_not_followed() {
    for part in ["owners", "taken", ""] {
        let place = Place::new();
        allocate(&place, NET, "a");
        let beyond = place.root.join("beyond");
        fs::create_dir(&beyond).unwrap();
        let path = if part.is_empty() { place.state.join("ipam") } else { place.index().join(part) };
        fs::remove_dir_all(&path).unwrap();
        symlink(&beyond, &path).unwrap();
        assert_eq!(allocate(&place, NET, "b"), ["10.0.0.3"], "{part}");
        release(&place, "b");
        let found: Vec<_> = fs::read_dir(&beyond).unwrap().collect();
        assert!(found.is_empty(), "{part}: {found:?}");
    }
}

#[test]
fn whatever_stands_where_the_draft_belongs() {
    let place = Place::new();
    allocate(&place, NET, "a");
    let draft = place.file(".bridgehead-draft");
    fs::create_dir(&draft).unwrap();
    assert_eq!(allocate(&place, NET, "b"), ["10.0.0.3"]);
    assert!(!draft.exists());
    fs::create_dir_all(draft.join("inside")).unwrap();
    assert_eq!(allocate(&place, NET, "c"), ["10.0.0.4"]);
    assert!(draft.join("inside").exists() && !place.file(".bridgehead-draft-1").exists());
    assert_eq!(place.read("10.0.0.4"), "c\r\neth0");
}

#[test]
fn whatever_stands_where_the_lock_belongs() {
    let place = Place::new();
    allocate(&place, NET, "a");
    let lock = place.file("lock");
    let absent = place.root.join("absent");
    let spoils: [&dyn Fn(); 4] = [
        &|| symlink(&absent, &lock).unwrap(),
        &|| fs::create_dir(&lock).unwrap(),
        &|| drop(std::os::unix::net::UnixListener::bind(&lock).unwrap()),
        &|| nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    ];
    for (number, spoil) in spoils.iter().enumerate() {
        if lock.is_dir() {
            fs::remove_dir(&lock).unwrap();
        } else {
            fs::remove_file(&lock).unwrap();
        }
        spoil();
        let name = format!("x{number}");
        assert_eq!(allocate(&place, NET, &name).len(), 1);
        let held = place.lock();
        let error = place.store().lock(std::time::Duration::ZERO).unwrap_err();
        assert_eq!(error.code, 11, "{number}");
        drop(held);
        assert_eq!(release(&place, &name).len(), 1);
    }
    assert!(!absent.exists());
}

/// The index goes before what it describes changes: if the building of a new one is cut short, nobody believes the old.
#[test]
fn an_index_is_not_sealed_while_it_is_built() {
    let place = Place::new();
    allocate(&place, NET, "a");
    // It cannot be removed wholly, so the building ends half-way, as if it had been killed there.
    let taken = place.index().join("taken");
    fs::remove_dir_all(&taken).unwrap();
    fs::create_dir(&taken).unwrap();
    mount_something(&taken);
    place.lock().collect(&ValidAttachments::NotGiven, &[]).unwrap();
    assert!(!place.index().join("stamp").exists());
    nix::mount::umount(&taken).unwrap();
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
}

/// Makes a directory one that cannot be removed, for this process alone.
fn mount_something(path: &Path) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(None::<&str>, path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

#[test]
fn only_who_is_said_to_be_dead_is_reclaimed() {
    let place = Place::new();
    for name in ["a", "b", "c", "d"] {
        allocate(&place, NET, name);
    }
    set_boot(&place.file("10.0.0.5"), OTHER_BOOT);
    let mut asked = Vec::new();
    let released = place.lock().reclaim(|owner, release| {
        asked.push(owner.container_id.clone());
        if owner.container_id == "b" {
            release().unwrap();
        }
    });
    // The fourth says it by itself.
    assert_eq!((released.unwrap(), asked), (2, ["a", "b", "c"].map(str::to_owned).to_vec()));
    assert_eq!(place.reserved(), BTreeSet::from(["10.0.0.2", "10.0.0.4"].map(str::to_owned)));
    assert_eq!(release(&place, "b"), [""; 0]);
    assert_eq!(release(&place, "c"), ["10.0.0.4"]);
}

#[test]
fn usage_counts_what_can_be_reclaimed_as_free_and_changes_nothing() {
    let place = Place::new();
    let small = &["10.0.0.0/29"];
    for name in ["a", "b", "c", "d", "e"] {
        allocate(&place, small, name);
    }
    let exhausted = |is_dead: &dyn Fn(&Owner) -> bool| {
        let usage = place.store().usage(&sets(small), is_dead).unwrap();
        usage.iter().any(Usage::is_exhausted)
    };
    let before = (place.reserved(), place.built());
    assert!(exhausted(&|_| false));
    assert!(!exhausted(&|owner| owner.container_id == "c"));
    fs::write(place.file("10.0.0.4"), "").unwrap();
    assert!(exhausted(&|_| false), "it has the mark of this boot");
    set_boot(&place.file("10.0.0.4"), OTHER_BOOT);
    assert!(!exhausted(&|_| false));
    fs::remove_dir_all(place.state()).unwrap();
    assert!(!exhausted(&|_| false));
    assert_eq!(place.reserved(), before.0);
    assert!(!place.state().exists());
}
