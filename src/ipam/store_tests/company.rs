//! The store with many reservations, and with others who want it at the same time.

use super::*;

#[test]
fn the_holder_of_the_lock_is_named() {
    let place = Place::new();
    allocate(&place, NET, "a");
    let held = Flock::lock(fs::File::open(place.file("lock")).unwrap(), FlockArg::LockExclusive).unwrap();
    let began = Instant::now();
    let error = place.store().lock(Duration::from_millis(60)).unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(60) && began.elapsed() < Duration::from_secs(5));
    assert_eq!(error.code, 11);
    assert!(error.msg.contains(&format!("/lock is held by process {} (", std::process::id())), "{error}");
    drop(held);
    // The waiter that gave up does not keep it.
    assert_eq!(release(&place, "a"), ["10.0.0.2"]);
}

#[test]
fn a_lock_that_was_removed_meanwhile_is_not_believed() {
    let place = Place::new();
    allocate(&place, NET, "a");
    let held = Flock::lock(fs::File::open(place.file("lock")).unwrap(), FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| allocate(&place, NET, "b"));
        std::thread::sleep(Duration::from_millis(50));
        fs::remove_dir_all(place.file("")).unwrap();
        drop(held);
        assert_eq!(waiting.join().unwrap(), ["10.0.0.2"]);
    });
    assert_eq!(place.reserved(), BTreeSet::from(["10.0.0.2".into()]));
}

#[test]
fn many_at_once_get_different_addresses() {
    let place = Place::new();
    let got: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let place = &place;
                scope.spawn(move || {
                    let mut got = Vec::new();
                    for i in 0..25 {
                        let name = format!("c{thread}-{i}");
                        got.extend(allocate(place, NET, &name));
                        if i % 5 == 0 {
                            // Like the Go plugin: its own file, written under the lock.
                            let lock = fs::File::open(place.file("lock")).unwrap();
                            let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
                            place.write(&format!("10.3.{thread}.{i}"), "go\r\neth0");
                            drop(lock);
                        }
                    }
                    got
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 200);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let place = &place;
            scope.spawn(move || {
                for i in 0..25 {
                    assert_eq!(release(place, &format!("c{thread}-{i}")).len(), 1);
                }
            });
        }
    });
    assert_eq!(place.reserved().len(), 40);
}

/// With ten thousand reservations nothing is listed and no other owner's file is opened: whatever they have become,
/// unnoticed because the directory's time is as it was, nobody finds out.
#[test]
fn ten_thousand_neighbours_are_left_alone() {
    let place = Place::new();
    let net = &["10.0.0.0/8"];
    for i in 0..10_000_u32 {
        place.write(&format!("10.2.{}.{}", i / 250, i % 250), &format!("c{i}\r\neth0"));
    }
    place.write("last_reserved_ip.0", "10.1.255.255");
    assert_eq!(allocate(&place, net, "a"), ["10.2.0.250"]);
    let built = place.built();
    let modified = fs::metadata(place.file("")).unwrap().modified().unwrap();
    for i in 0..10_000_u32 {
        fs::write(place.file(&format!("10.2.{}.{}", i / 250, i % 250)), "").unwrap();
    }
    assert_eq!(fs::metadata(place.file("")).unwrap().modified().unwrap(), modified);
    assert_eq!(allocate(&place, net, "b"), ["10.2.0.251"]);
    assert_eq!(release(&place, "a"), ["10.2.0.250"]);
    assert_eq!(release(&place, "unknown"), [""; 0]);
    assert_eq!(release(&place, "b"), ["10.2.0.251"]);
    assert_eq!(place.built(), built);
    assert_eq!(place.reserved().len(), 10_000);
}

#[test]
fn a_long_container_id() {
    let place = Place::new();
    let name = "x".repeat(5000);
    assert_eq!(allocate(&place, NET, &name), allocate(&place, NET, &name));
    assert_eq!(release(&place, &name), ["10.0.0.2"]);
}

#[test]
fn blocks_go_with_their_last_reservation() {
    let place = Place::new();
    let request = [ip("2001:db8::1234:5678"), ip("10.0.0.9")];
    place.lock().allocate(&sets(DUAL), &request, &owner("a")).unwrap();
    assert_eq!(fs::read_dir(place.index().join("taken")).unwrap().count(), 2);
    release(&place, "a");
    assert_eq!(fs::read_dir(place.index().join("taken")).unwrap().count(), 0);
    assert_eq!(allocate(&place, DUAL, "b"), ["10.0.0.10", "2001:db8::1234:5679"]);
}

#[test]
fn from_the_configuration_to_the_result() {
    let place = Place::new();
    let resolv = place.root.join("resolv.conf");
    fs::write(&resolv, "nameserver 192.0.2.53\n").unwrap();
    let conf = NetConf::parse(
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "net", "ipam": {{"type": "host-local", "dataDir": "{}",
                "resolvConf": "{}", "ranges": [[{{"subnet": "10.0.0.0/24"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}"#,
            place.root.join("data").display(),
            resolv.display()
        )
        .as_bytes(),
    )
    .unwrap();
    let ipam = HostLocal::parse(&conf, &Args::default()).unwrap();
    let attachment = Attachment { network: "net".into(), container_id: "a".into(), ifname: "eth0".into() };
    assert!(!ipam.observe(&attachment, &[], &place.state()).unwrap().is_empty());
    assert_eq!(ipam.usage(&place.state(), |_| false).unwrap()[0].taken, 0);
    let result = ipam.lease(&attachment, &place.state()).unwrap();
    assert_eq!(
        serde_json::to_value(&result).unwrap(),
        serde_json::json!({
            "interfaces": [],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["192.0.2.53"]}
        })
    );
    let other = [ip("10.0.0.2"), ip("192.168.0.1")];
    assert!(ipam.observe(&attachment, &other, &place.state()).unwrap().is_empty());
    assert_eq!(ipam.usage(&place.state(), |_| false).unwrap()[0].taken, 1);
    assert_eq!(
        ipam.store(&place.state()).release(&Owner::of(&attachment), &[], LOCK_TIMEOUT).unwrap().len(),
        1
    );
    fs::remove_file(resolv).unwrap();
    let error = ipam.lease(&attachment, &place.state()).unwrap_err();
    assert_eq!(error.code, 105);
    assert!(error.msg.contains("resolv.conf: No such file or directory (ENOENT)"), "{error}");
}

/// How long a lease and a release take with few and with many neighbours; run by hand:
/// `cargo test --release --lib ipam -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    for neighbours in [10_u32, 10_000] {
        let place = Place::with_fast_state();
        for i in 0..neighbours {
            place.write(&format!("10.2.{}.{}", i / 250, i % 250), &format!("c{i}\r\neth0"));
        }
        let began = Instant::now();
        allocate(&place, &["10.0.0.0/8"], "first");
        let built = began.elapsed();
        let (mut lease, mut free) = (Vec::new(), Vec::new());
        let sets = sets(&["10.0.0.0/8"]);
        for i in 0..2000 {
            let owner = owner(&format!("{i:064}"));
            let began = Instant::now();
            place.lock().allocate(&sets, &[], &owner).unwrap();
            lease.push(began.elapsed());
            let began = Instant::now();
            place.store().release(&owner, &[], LOCK_TIMEOUT).unwrap();
            free.push(began.elapsed());
        }
        lease.sort();
        free.sort();
        println!(
            "{neighbours} neighbours: build {built:?}, lease {:?} (p99 {:?}), release {:?} (p99 {:?})",
            lease[1000], lease[1980], free[1000], free[1980]
        );
    }
}
