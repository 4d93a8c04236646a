use proptest::prelude::*;

use super::*;

fn conf(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeConf {
    let address = |s: &str| (!s.is_empty()).then(|| s.parse().unwrap());
    RangeConf {
        subnet: Some(subnet.parse().unwrap()),
        range_start: address(start),
        range_end: address(end),
        gateway: address(gateway),
    }
}

fn set(confs: &[RangeConf]) -> RangeSet {
    RangeSet::new(confs, "ipam.ranges[0]").unwrap()
}

fn refused(confs: &[RangeConf]) -> String {
    let error = RangeSet::new(confs, "ipam.ranges[0]").unwrap_err();
    assert_eq!(error.code, 7);
    error.msg
}

/// The addresses in order of allocation, gateways left out, as the store walks them.
fn order(set: &RangeSet, last: &str) -> Vec<String> {
    let like = set.ranges()[0].subnet().address();
    set.stretches_after(last.parse().ok())
        .iter()
        .flat_map(|s| (s.first..=s.last).filter(|&n| n != s.gateway()))
        .map(|n| to_address(n, like).to_string())
        .collect()
}

#[test]
fn defaults() {
    for (subnet, text, gateway) in [
        ("192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.1"),
        ("192.0.2.128/25", "192.0.2.129-192.0.2.254", "192.0.2.129"),
        ("2001:db8:1::/64", "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
        ("0.0.0.0/0", "0.0.0.1-255.255.255.254", "0.0.0.1"),
        ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
    ] {
        let range = Range::new(&conf(subnet, "", "", ""), "k").unwrap();
        assert_eq!((range.to_string(), range.gateway().to_string()), (text.into(), gateway.into()));
    }
}

#[test]
fn errors_name_key_value_and_remedy() {
    assert_eq!(
        refused(&[conf("192.0.2.12/24", "", "", "")]),
        "ipam.ranges[0][0].subnet: 192.0.2.12/24 has host bits set; the network is 192.0.2.0/24"
    );
    assert!(refused(&[conf("192.0.2.0/31", "", "", "")]).contains("too small"));
    assert!(refused(&[conf("2001:db8::/127", "", "", "")]).contains("at most 126"));
    assert!(
        refused(&[conf("192.0.2.0/24", "192.0.3.1", "", "")])
            .contains("rangeStart: 192.0.3.1 is not in network 192.0.2.0/24")
    );
    assert!(refused(&[conf("192.0.2.0/24", "", "192.0.3.1", "")]).contains("rangeEnd: 192.0.3.1"));
    assert!(refused(&[conf("192.0.2.0/24", "", "2001:db8::1", "")]).contains("rangeEnd: 2001:db8::1"));
    assert!(
        refused(&[conf("192.0.2.0/24", "192.0.2.50", "192.0.2.40", "")]).contains("rangeStart: 192.0.2.50")
    );
    assert!(refused(&[conf("192.0.2.0/24", "", "", "2001:db8::1")]).contains("different families"));
    assert!(refused(&[RangeConf::default()]).contains("subnet: is missing"));
    assert!(refused(&[]).contains("empty range set"));
    assert!(
        refused(&[conf("192.0.2.0/24", "", "", ""), conf("2001:db8::/64", "", "", "")])
            .contains("mixed address families")
    );
    assert!(
        refused(&[conf("192.0.2.0/24", "", "", ""), conf("192.0.2.128/25", "", "", "")]).contains("overlaps")
    );
}

#[test]
fn a_gateway_may_lie_outside() {
    let range = Range::new(&conf("192.0.2.0/24", "192.0.2.9", "192.0.2.11", "192.0.9.1"), "k").unwrap();
    assert_eq!(range.size(), 3);
}

#[test]
fn sets_are_checked_together() {
    let sets = |list: &[&str]| -> Vec<(String, RangeSet)> {
        list.iter()
            .enumerate()
            .map(|(i, s)| (format!("ipam.ranges[{i}]"), set(&[conf(s, "", "", "")])))
            .collect()
    };
    let old = Version::V0_2_0;
    assert_eq!(check_sets(&[], old).unwrap_err().msg, "no IP ranges specified");
    check_sets(&sets(&["192.0.2.0/24", "2001:db8::/64"]), old).unwrap();
    let two = sets(&["192.0.2.0/24", "198.51.100.0/24"]);
    assert_eq!(
        check_sets(&two, old).unwrap_err().msg,
        "CNI version 0.2.0 does not support more than 1 address per family"
    );
    check_sets(&two, Version::V0_3_0).unwrap();
    let error = check_sets(&sets(&["192.0.0.0/16", "192.0.2.0/24"]), Version::V1_0_0).unwrap_err();
    assert_eq!(
        error.msg,
        "ipam.ranges[1]: range 192.0.2.1-192.0.2.254 overlaps with 192.0.0.1-192.0.255.254 of ipam.ranges[0]"
    );
}

#[test]
fn round_robin() {
    let one = set(&[conf("10.0.0.0/29", "", "", "")]);
    assert_eq!(order(&one, ""), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(order(&one, "10.0.0.4"), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    assert_eq!(order(&one, "10.0.0.6"), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(order(&one, "10.0.9.9"), order(&one, ""));
    assert_eq!(order(&one, "2001:db8::1"), order(&one, ""));
    let two = set(&[conf("10.0.0.0/30", "", "", ""), conf("10.0.1.0/29", "10.0.1.3", "10.0.1.5", "")]);
    assert_eq!(order(&two, "10.0.1.5"), ["10.0.0.2", "10.0.1.3", "10.0.1.4", "10.0.1.5"]);
    assert_eq!(order(&two, "10.0.1.3"), ["10.0.1.4", "10.0.1.5", "10.0.0.2", "10.0.1.3"]);
    assert_eq!(order(&two, "10.0.0.2"), ["10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.0.2"]);
}

#[test]
fn as_many_ranges_as_a_configuration_has_room_for_are_compared_in_no_time() {
    let subnet = |i: u32| Prefix::new(IpAddr::V4((0x0a00_0000 + 4 * i).into()), 30);
    let confs: Vec<RangeConf> =
        (0..40_000).map(|i| RangeConf { subnet: subnet(i), ..RangeConf::default() }).collect();
    let begin = std::time::Instant::now();
    let (one, other) = (set(&confs[..20_000]), set(&confs[20_000..]));
    check_sets(&[("one".into(), one), ("other".into(), other)], Version::V1_1_0).unwrap();
    assert!(begin.elapsed() < std::time::Duration::from_secs(2), "{:?}", begin.elapsed());
}

proptest! {
    #[test]
    fn ranges_are_refused_if_two_of_them_overlap(
        offsets in proptest::collection::vec((0u32..200, 0u32..20), 1..8),
        cut in 0usize..8,
    ) {
        let at = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let confs: Vec<RangeConf> = offsets
            .iter()
            .map(|&(start, len)| RangeConf {
                subnet: Some("10.0.0.0/16".parse().unwrap()),
                range_start: Some(at(start)),
                range_end: Some(at(start + len)),
                gateway: None,
            })
            .collect();
        let overlap = |some: &[(u32, u32)]| (0..some.len()).any(|i| {
            (0..i).any(|j| some[i].0 <= some[j].0 + some[j].1 && some[j].0 <= some[i].0 + some[i].1)
        });
        prop_assert_eq!(RangeSet::new(&confs, "k").is_err(), overlap(&offsets));
        let cut = cut.min(confs.len());
        let sets: Vec<(String, RangeSet)> = [&confs[..cut], &confs[cut..]]
            .iter()
            .filter_map(|confs| Some(("k".to_owned(), RangeSet::new(confs, "k").ok()?)))
            .collect();
        if sets.len() == 2 {
            prop_assert_eq!(check_sets(&sets, Version::V1_1_0).is_err(), overlap(&offsets));
        }
    }

    #[test]
    fn any_range_is_refused_or_in_order(bits: u128, len in 0u8..=128, start: u128, end: u128, v4: bool) {
        let like: IpAddr = if v4 { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        let len = if v4 { len % 33 } else { len };
        let subnet = Prefix::new(to_address(bits, like), len).unwrap().network();
        let conf = RangeConf {
            subnet: Some(subnet),
            range_start: Some(to_address(start, like)).filter(|_| start % 2 == 0),
            range_end: Some(to_address(end, like)).filter(|_| end % 2 == 0),
            gateway: None,
        };
        if let Ok(range) = Range::new(&conf, "k") {
            prop_assert!(to_number(range.start) <= to_number(range.end));
            prop_assert!(subnet.contains(range.start) && subnet.contains(range.end));
        }
    }

    #[test]
    fn every_address_is_tried_once_and_the_last_one_last(
        offsets in proptest::collection::vec((0u32..40, 1u32..20), 1..4),
        last in 0u32..300,
    ) {
        let confs: Vec<RangeConf> = offsets
            .iter()
            .enumerate()
            .map(|(i, &(start, len))| {
                let at = |n: u32| IpAddr::V4((0x0a00_0000 + 100 * i as u32 + n).into());
                RangeConf {
                    subnet: Some("10.0.0.0/16".parse().unwrap()),
                    range_start: Some(at(start)),
                    range_end: Some(at(start + len)),
                    gateway: None,
                }
            })
            .collect();
        let set = set(&confs);
        let last = IpAddr::V4((0x0a00_0000 + last).into());
        let tried: Vec<IpAddr> = set
            .stretches_after(Some(last))
            .iter()
            .flat_map(|s| s.first..=s.last)
            .map(|n| to_address(n, last))
            .collect();
        let mut sorted = tried.clone();
        sorted.sort();
        sorted.dedup();
        prop_assert_eq!(sorted.len(), tried.len());
        let offered: u32 = offsets.iter().map(|&(_, len)| len + 1).sum();
        prop_assert_eq!(tried.len(), offered as usize);
        if set.range_of(last).is_some() {
            prop_assert_eq!(tried.last(), Some(&last));
        }
    }
}
