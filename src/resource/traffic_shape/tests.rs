use proptest::prelude::*;

use super::*;

/// The formulas as the reference has them (pkg netlink's `time2Tick`, the plugin's `buffer` and `limit`), in floating
/// point; `None` where one of its conversions would overflow.
fn by_the_book(limit: Limit) -> Option<Bucket> {
    const TICKS_IN_MICROSECOND: f64 = 1000.0 / 64.0;
    let whole = |number: f64| (0.0..4_294_967_296.0).contains(&number).then_some(number as u32);
    let rate = limit.rate / 8;
    let burst = u32::try_from(limit.burst / 8).ok()?;
    let time = whole(f64::from(burst) * 1e6 / rate as f64)?;
    let buffer = whole(f64::from(time) * TICKS_IN_MICROSECOND)?;
    let limit = whole(rate as f64 * (1e6 * (25.0 / 1000.0)) / 1e6)?.checked_add(burst)?;
    Some(Bucket { rate, buffer, limit })
}

/// Numbers of all magnitudes.
fn magnitudes(most: u32) -> impl Strategy<Value = u64> {
    (3..=most, any::<u64>()).prop_map(|(bits, number)| (1 << bits) | (number & ((1 << bits) - 1)))
}

proptest! {
    #[test]
    fn the_numbers_are_the_references(rate in magnitudes(46), burst in magnitudes(34)) {
        let limit = Limit { rate, burst };
        if let Some(bucket) = by_the_book(limit) {
            prop_assert_eq!(limit.bucket(), bucket);
        }
    }

    #[test]
    fn more_is_never_less(rate in magnitudes(62), burst in magnitudes(62), more in magnitudes(62)) {
        let limit = Limit { rate, burst };
        let larger = Limit { rate, burst: burst.saturating_add(more) };
        prop_assert!(limit.bucket().buffer <= larger.bucket().buffer);
        prop_assert!(limit.bucket().limit <= larger.bucket().limit);
    }

    #[test]
    fn no_number_is_too_large(rate in any::<u64>(), burst in any::<u64>()) {
        let limit = Limit { rate, burst };
        let _ = (limit.bucket(), limit.largest_packet());
    }

    #[test]
    fn a_packet_is_never_larger_than_the_burst(rate in magnitudes(46), burst in magnitudes(34)) {
        let limit = Limit { rate, burst };
        prop_assert!(limit.largest_packet() <= burst / 8);
    }
}

#[test]
fn known_numbers() {
    // As `tc -s -d qdisc show` prints them for the reference 1.9.1.
    for (rate, burst, bucket) in [
        (8_000_000, 800_000, Bucket { rate: 1_000_000, buffer: 1_562_500, limit: 125_000 }),
        (8, 8, Bucket { rate: 1, buffer: 15_625_000, limit: 1 }),
        (
            100_000_000_000_000,
            8_000_000_000,
            // 312,500,000,000 and 1,000,000,000 bytes are more than there may wait.
            Bucket { rate: 12_500_000_000_000, buffer: 1250, limit: u32::MAX },
        ),
    ] {
        assert_eq!(Limit { rate, burst }.bucket(), bucket, "{rate} {burst}");
    }
}

#[test]
fn bursts_of_runtimes_do_not_overflow() {
    // containerd, CRI-O, and what a float makes of the largest number.
    for burst in [u64::from(u32::MAX), u64::from(u32::MAX) * 8 - 1, u64::MAX] {
        // 2^32 ticks are 274.88 s.
        let bucket = Bucket { rate: 125_000, buffer: u32::MAX, limit: 3125 + 34_359_738 };
        assert_eq!(Limit { rate: 1_000_000, burst }.bucket(), bucket, "{burst}");
    }
    let bucket = Bucket { rate: 125_000_000, buffer: 67_108_859, limit: 3_125_000 + 536_870_911 };
    assert_eq!(Limit { rate: 1_000_000_000, burst: u32::MAX.into() }.bucket(), bucket, "4.29 s");
}

#[test]
fn a_bucket_that_holds_nothing_is_known_as_such() {
    assert_eq!(Limit { rate: 100_000_000_000_000, burst: 8 }.largest_packet(), 0);
    assert_eq!(Limit { rate: 8_000_000, burst: 800_000 }.largest_packet(), 100_000);
    assert_eq!(Limit { rate: 0, burst: 800_000 }.largest_packet(), 0);
}
