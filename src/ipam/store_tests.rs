//! The store on a real filesystem: with others at work, with what a killed process leaves, and after a reboot.

mod company;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::range::{RangeConf, RangeSet};
use super::{HostLocal, LockedStore, Owner, Store};
use crate::spec::config::{LOCK_TIMEOUT, ValidAttachment, ValidAttachments};
use crate::spec::{Args, Attachment, NetConf};

/// Private directories for one test, removed at its end.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) state: PathBuf,
}

impl Place {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("bridgehead-ipam-{}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&root).unwrap();
        Self { state: root.join("run"), root }
    }

    /// With the state on a tmpfs, as it is in use.
    pub(super) fn with_fast_state() -> Self {
        let mut place = Self::new();
        let state = Path::new("/dev/shm").join(place.root.file_name().unwrap());
        fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
        place.state = state;
        place
    }

    pub(super) fn state(&self) -> PathBuf {
        self.state.clone()
    }

    pub(super) fn store(&self) -> Store {
        Store::new(&self.root.join("data"), "net", &self.state())
    }

    pub(super) fn lock(&self) -> LockedStore {
        self.store().lock_or_create(LOCK_TIMEOUT).unwrap()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.root.join("data/net").join(name)
    }

    /// A reservation as the Go plugin leaves one.
    pub(super) fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.root.join("data/net")).unwrap();
        fs::write(self.file(name), content).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// The reserved addresses, as the names in the directory tell.
    pub(super) fn reserved(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.root.join("data/net")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
    }

    pub(super) fn index(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.state().join("ipam")).unwrap();
        let path = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        path
    }

    /// What tells whether the index was built anew: the inode of a directory that is replaced then.
    pub(super) fn built(&self) -> u64 {
        fs::metadata(self.index().join("owners")).unwrap().ino()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).unwrap();
        if self.state.is_dir() {
            fs::remove_dir_all(&self.state).unwrap();
        }
    }
}

pub(super) fn owner(name: &str) -> Owner {
    Owner { container_id: name.into(), ifname: "eth0".into() }
}

pub(super) fn sets(subnets: &[&str]) -> Vec<RangeSet> {
    subnets
        .iter()
        .map(|subnet| {
            let conf = RangeConf { subnet: Some(subnet.parse().unwrap()), ..RangeConf::default() };
            RangeSet::new(&[conf], "k").unwrap()
        })
        .collect()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Allocates from these subnets and returns the addresses as text.
pub(super) fn allocate(place: &Place, subnets: &[&str], name: &str) -> Vec<String> {
    let configs = place.lock().allocate(&sets(subnets), &[], &owner(name)).unwrap();
    configs.iter().map(|config| config.address.address().to_string()).collect()
}

pub(super) fn release(place: &Place, name: &str) -> Vec<String> {
    place.store().release(&owner(name), &[], LOCK_TIMEOUT).unwrap().iter().map(IpAddr::to_string).collect()
}

pub(super) const NET: &[&str] = &["10.0.0.0/24"];
pub(super) const DUAL: &[&str] = &["10.0.0.0/24", "2001:db8::/64"];

#[test]
fn the_directory_is_as_the_reference_leaves_it() {
    let place = Place::new();
    assert_eq!(allocate(&place, DUAL, "a"), ["10.0.0.2", "2001:db8::2"]);
    assert_eq!(place.reserved(), BTreeSet::from(["10.0.0.2".into(), "2001:db8::2".into()]));
    assert_eq!(place.read("10.0.0.2"), "a\r\neth0");
    assert_eq!(
        (place.read("last_reserved_ip.0"), place.read("last_reserved_ip.1")),
        ("10.0.0.2".into(), "2001:db8::2".into())
    );
    for (name, mode) in [("10.0.0.2", 0o600), ("last_reserved_ip.0", 0o600), ("lock", 0o750), ("", 0o700)] {
        assert_eq!(fs::metadata(place.file(name)).unwrap().permissions().mode() & 0o7777, mode, "{name}");
    }
    assert_eq!(fs::metadata(place.file("10.0.0.2")).unwrap().nlink(), 1);
    assert_eq!(release(&place, "a"), ["10.0.0.2", "2001:db8::2"]);
    assert_eq!(place.reserved(), BTreeSet::new());
    assert_eq!(release(&place, "a"), [""; 0]);
}

#[test]
fn a_shorter_last_address_replaces_a_longer_one() {
    let place = Place::new();
    place.write("last_reserved_ip.0", "10.0.0.254");
    assert_eq!(allocate(&place, NET, "a"), ["10.0.0.2"]);
    assert_eq!(place.read("last_reserved_ip.0"), "10.0.0.2");
}

#[test]
fn addresses_go_round() {
    let place = Place::new();
    let small = &["10.0.0.0/29"];
    for (name, address) in [("a", "10.0.0.2"), ("b", "10.0.0.3"), ("c", "10.0.0.4"), ("d", "10.0.0.5")] {
        assert_eq!(allocate(&place, small, name), [address]);
    }
    release(&place, "a");
    release(&place, "d");
    assert_eq!(allocate(&place, small, "e"), ["10.0.0.6"]);
    assert_eq!(allocate(&place, small, "f"), ["10.0.0.2"]);
    assert_eq!(allocate(&place, small, "g"), ["10.0.0.5"]);
    let error = place.lock().allocate(&sets(small), &[], &owner("h")).unwrap_err();
    assert_eq!(error.code, 101);
    assert_eq!(
        error.msg,
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6"
    );
    assert!(error.details.contains("5 of 5 addresses are taken"), "{error}");
    // The last one given can be given again, at the very end.
    release(&place, "g");
    assert_eq!(allocate(&place, small, "h"), ["10.0.0.5"]);
}

#[test]
fn nothing_stays_after_a_failure() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.write(&format!("10.9.0.{}", name.as_bytes()[0] - 95), &format!("{name}\r\neth0"));
    }
    let mut store = place.lock();
    let error = store.allocate(&sets(&["10.0.0.0/24", "10.9.0.0/30"]), &[], &owner("x")).unwrap_err();
    assert!(error.msg.contains("for range 1: no IP addresses available"), "{error}");
    drop(store);
    assert_eq!(place.reserved().len(), 3);
    assert_eq!(release(&place, "x"), [""; 0]);
    assert_eq!(allocate(&place, NET, "y"), ["10.0.0.3"]);
}

#[test]
fn a_repeated_request_gets_the_same_and_another_is_refused() {
    let place = Place::new();
    assert_eq!(allocate(&place, DUAL, "a"), allocate(&place, DUAL, "a"));
    assert_eq!(place.reserved().len(), 2);
    let mut store = place.lock();
    assert!(store.allocate(&sets(DUAL), &[ip("10.0.0.2")], &owner("a")).is_ok());
    for (subnets, requested) in [(DUAL, vec![ip("10.0.0.9")]), (NET, vec![])] {
        let error = store.allocate(&sets(subnets), &requested, &owner("a")).unwrap_err();
        assert_eq!(error.code, 102);
        assert!(error.msg.contains("duplicate allocation is not allowed"), "{error}");
    }
    drop(store);
    place.write("10.0.0.77", "old");
    let error = place.lock().allocate(&sets(NET), &[], &owner("old")).unwrap_err();
    assert_eq!(error.code, 102);
}

#[test]
fn each_interface_has_its_own() {
    let place = Place::new();
    let second = Owner { ifname: "eth1".into(), ..owner("a") };
    allocate(&place, NET, "a");
    place.lock().allocate(&sets(NET), &[], &second).unwrap();
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
    assert_eq!(place.store().release(&second, &[], LOCK_TIMEOUT).unwrap(), [ip("10.0.0.3")]);
}

#[test]
fn requested_addresses() {
    let place = Place::new();
    let request = |name: &str, list: &[&str]| {
        let requested: Vec<IpAddr> = list.iter().map(|text| ip(text)).collect();
        place.lock().allocate(&sets(DUAL), &requested, &owner(name))
    };
    let given = request("a", &["2001:db8::5", "10.0.0.9", "10.0.0.9"]).unwrap();
    assert_eq!(given[0].address.to_string(), "10.0.0.9/24");
    assert_eq!(given[1].gateway, Some(ip("2001:db8::1")));
    assert_eq!(place.read("last_reserved_ip.0"), "10.0.0.9");
    for (list, text) in [
        (
            &["10.0.0.9"],
            "10.0.0.9 is not available in range set 10.0.0.1-10.0.0.254: it is reserved for container a",
        ),
        (&["10.0.0.1"], "is the gateway"),
        (&["10.5.0.1"], "10.5.0.1 cannot be given"),
    ] {
        let error = request("b", list).unwrap_err();
        assert_eq!(error.code, 101);
        assert!(error.to_string().contains(text), "{error}");
    }
    let error = request("b", &["10.0.0.20", "10.0.0.21"]).unwrap_err();
    assert!(error.msg.contains("10.0.0.21 cannot be given"), "{error}");
    assert_eq!(place.reserved().len(), 2);
}

#[test]
fn foreign_changes_are_seen() {
    let place = Place::new();
    allocate(&place, NET, "a");
    place.write("10.0.0.3", "go\r\neth0");
    assert_eq!(allocate(&place, NET, "b"), ["10.0.0.4"]);
    fs::remove_file(place.file("10.0.0.2")).unwrap();
    assert_eq!(release(&place, "a"), [""; 0]);
    assert_eq!(release(&place, "go"), ["10.0.0.3"]);
    // Somebody else has the address meanwhile.
    fs::write(place.file("10.0.0.4"), "other\r\neth0").unwrap();
    assert_eq!(release(&place, "b"), [""; 0]);
    assert_eq!(release(&place, "other"), ["10.0.0.4"]);
}

#[test]
fn old_and_untidy_reservations_are_released() {
    let place = Place::new();
    place.write("10.0.0.2", "old");
    place.write("10.0.0.3", "  tidy\r\neth0\n");
    place.write("10.0.0.4", "both");
    place.write("10.0.0.5", "both\r\neth0");
    assert_eq!(release(&place, "old"), ["10.0.0.2"]);
    assert_eq!(release(&place, "tidy"), ["10.0.0.3"]);
    assert_eq!(release(&place, "both"), ["10.0.0.5"]);
    assert_eq!(release(&place, "both"), ["10.0.0.4"]);
}

#[test]
fn what_is_no_reservation_is_in_nobodys_way() {
    let place = Place::new();
    place.write("10.0.0.2", "kept by hand");
    fs::create_dir(place.file("10.0.0.3")).unwrap();
    symlink("/etc/passwd", place.file("10.0.0.4")).unwrap();
    nix::unistd::mkfifo(&place.file("10.0.0.5"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    place.write("10.0.0.6", "");
    place.write("10.0.0.7", "\0\0\0\0");
    place.write("10.0.0.8", &"x".repeat(3 << 20));
    place.write("README", "x");
    place.write("last_reserved_ip.0", "rubbish");
    assert_eq!(allocate(&place, NET, "a"), ["10.0.0.6"]);
    assert_eq!(allocate(&place, NET, "b"), ["10.0.0.7"]);
    assert_eq!(allocate(&place, NET, "c"), ["10.0.0.9"]);
    assert_eq!(place.read("10.0.0.2"), "kept by hand");
    assert!(fs::symlink_metadata(place.file("10.0.0.4")).unwrap().is_symlink());
    // And if one appears unseen, because somebody put the directory's time back, it is passed over.
    let (accessed, modified) = {
        let it = fs::metadata(place.file("")).unwrap();
        (it.accessed().unwrap(), it.modified().unwrap())
    };
    fs::create_dir(place.file("10.0.0.10")).unwrap();
    let times = fs::FileTimes::new().set_accessed(accessed).set_modified(modified);
    fs::File::open(place.file("")).unwrap().set_times(times).unwrap();
    assert_eq!(allocate(&place, NET, "d"), ["10.0.0.11"]);
}

#[test]
fn a_directory_in_place_of_the_last_address_costs_nothing() {
    let place = Place::new();
    fs::create_dir_all(place.file("last_reserved_ip.0")).unwrap();
    assert_eq!(allocate(&place, NET, "a"), ["10.0.0.2"]);
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
}

/// What a process leaves that is killed after each of its steps: the index must be found wanting each time.
#[test]
fn a_killed_process_leaves_nothing_wrong() {
    let place = Place::new();
    allocate(&place, NET, "a");
    // Killed after the draft was written; then after it was linked; then after the draft was removed.
    place.write(".bridgehead-draft", "b\r\neth0");
    assert_eq!(allocate(&place, NET, "c"), ["10.0.0.3"]);
    assert_eq!(place.reserved().len(), 2);
    place.write(".bridgehead-draft", "b\r\neth0");
    fs::hard_link(place.file(".bridgehead-draft"), place.file("10.0.0.4")).unwrap();
    assert_eq!(allocate(&place, NET, "d"), ["10.0.0.5"]);
    assert_eq!(place.read("10.0.0.4"), "b\r\neth0");
    assert!(!place.file(".bridgehead-draft").exists());
    assert_eq!(release(&place, "b"), ["10.0.0.4"]);
    // Killed after the reservation was removed, before the index knew.
    fs::remove_file(place.file("10.0.0.5")).unwrap();
    assert_eq!(release(&place, "d"), [""; 0]);
    // Killed while the index was written.
    fs::remove_file(place.index().join("stamp")).unwrap();
    fs::remove_file(place.index().join("owners/a:eth0")).unwrap();
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
}

#[test]
fn a_spoilt_index_is_built_anew() {
    for spoil in ["owners/a:eth0", "stamp", "taken/4-a00", ""] {
        let place = Place::new();
        allocate(&place, NET, "a");
        let path = if spoil.is_empty() { place.index() } else { place.index().join(spoil) };
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
            fs::write(&path, "x").unwrap();
        } else {
            fs::write(&path, "\u{1}rubbish").unwrap();
        }
        assert_eq!(release(&place, "a"), ["10.0.0.2"], "{spoil}");
        assert_eq!(allocate(&place, NET, "b"), ["10.0.0.3"], "{spoil}");
        assert_eq!(release(&place, "b"), ["10.0.0.3"], "{spoil}");
    }
}

#[test]
fn no_state_directory_is_slow_but_right() {
    let place = Place::new();
    fs::write(place.state(), "in the way").unwrap();
    assert_eq!(allocate(&place, NET, "a"), ["10.0.0.2"]);
    assert_eq!(allocate(&place, NET, "b"), ["10.0.0.3"]);
    assert_eq!(allocate(&place, NET, "a"), ["10.0.0.2"]);
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
}

#[test]
fn bits_that_are_wrongly_set_do_not_exhaust_a_set() {
    let place = Place::new();
    let small = &["10.0.0.0/30"];
    allocate(&place, small, "a");
    release(&place, "a");
    fs::write(place.index().join("taken/4-a00"), [0xff; 8192]).unwrap();
    assert_eq!(allocate(&place, small, "b"), ["10.0.0.2"]);
}

#[test]
fn reservations_of_another_boot_are_free() {
    let place = Place::new();
    allocate(&place, NET, "a");
    allocate(&place, NET, "b");
    place.write("10.0.0.4", "go\r\neth0");
    place.write("10.0.0.5", "");
    let set = |name: &str| set_boot(&place.file(name), "00000000-0000-0000-0000-000000000000");
    set("10.0.0.2");
    set("10.0.0.5");
    // A boot empties /run.
    fs::remove_dir_all(place.state()).unwrap();
    let collected = place.lock().collect(&ValidAttachments::NotGiven, &[]).unwrap();
    assert_eq!(collected.released, [(owner("a"), ip("10.0.0.2"))]);
    assert_eq!(place.reserved(), BTreeSet::from(["10.0.0.3".into(), "10.0.0.4".into()]));
    assert_eq!(release(&place, "a"), [""; 0]);
}

pub(super) fn set_boot(path: &Path, boot: &str) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both names are C strings, and the kernel reads exactly the given number of bytes of the value.
    let result = unsafe {
        nix::libc::setxattr(
            path.as_ptr(),
            c"user.bridgehead.boot".as_ptr(),
            boot.as_ptr().cast(),
            boot.len(),
            0,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn a_gc_keeps_what_is_valid() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        allocate(&place, NET, name);
    }
    place.write("10.0.0.9", "old");
    place.write("10.0.0.10", "older");
    let valid = |id: &str| ValidAttachment { container_id: id.into(), ifname: "eth0".into() };
    let collected =
        place.lock().collect(&ValidAttachments::Only(vec![valid("b"), valid("old")]), &[]).unwrap();
    let released: Vec<String> = collected.released.iter().map(|(_, address)| address.to_string()).collect();
    assert_eq!(released, ["10.0.0.2", "10.0.0.4", "10.0.0.10"]);
    assert!(collected.failures.is_empty());
    assert_eq!(place.reserved(), BTreeSet::from(["10.0.0.3".into(), "10.0.0.9".into()]));
    assert_eq!(release(&place, "b"), ["10.0.0.3"]);
}

#[test]
fn check_names_every_difference() {
    let place = Place::new();
    allocate(&place, DUAL, "a");
    let observe = |name: &str, expected: &[&str]| {
        let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
        place.lock().observe(&owner(name), &expected).unwrap()
    };
    assert!(observe("a", &["2001:db8::2", "10.0.0.2"]).is_empty());
    assert!(observe("a", &[]).is_empty());
    assert_eq!(observe("b", &[]), ["no address is reserved for container b interface eth0"]);
    assert_eq!(
        observe("b", &["10.0.0.2", "10.0.0.9"]),
        [
            "address 10.0.0.2 of container b interface eth0 is reserved for container a interface eth0",
            "address 10.0.0.9 of container b interface eth0 is not reserved"
        ]
    );
}

#[test]
fn usage_counts_only_what_a_set_can_give() {
    let place = Place::new();
    place.write("10.0.0.1", "gateway\r\neth0");
    place.write("10.7.0.1", "elsewhere\r\neth0");
    place.write("2001:db8::ffff:1", "six\r\neth0");
    for name in ["a", "b"] {
        allocate(&place, NET, name);
    }
    // Once from the index that was built in this call, once from the files.
    for _ in 0..2 {
        let sets = sets(&["10.0.0.0/24", "2001:db8::/64", "10.0.0.0/8"]);
        let usage = place.store().usage(&sets, |_| false).unwrap();
        let counts: Vec<(u128, u128)> = usage.iter().map(|it| (it.taken, it.total)).collect();
        assert_eq!(counts, [(2, 253), (1, (1 << 64) - 2), (3, (1 << 24) - 3)]);
    }
}

#[test]
fn nothing_is_created_but_by_add() {
    let place = Place::new();
    assert_eq!(release(&place, "a"), [""; 0]);
    assert!(place.store().lock(LOCK_TIMEOUT).unwrap().is_none());
    assert_eq!(fs::read_dir(&place.root).unwrap().count(), 0);
}
