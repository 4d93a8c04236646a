//! The few statistics that the report quotes.

use std::time::Duration;

/// Median and 90th percentile of one kind of call, with its beginning and its end apart. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Half of the calls took no longer.
    pub(crate) median: f64,
    /// Nine tenths of the calls took no longer.
    pub(crate) p90: f64,
    /// Median of the first tenth of each batch.
    pub(crate) first: f64,
    /// Median of the last tenth of each batch.
    pub(crate) last: f64,
}

/// The figures of all batches together; `None` if there are no calls.
pub(crate) fn figures(batches: &[Vec<Duration>]) -> Option<Figures> {
    let tenth = |batch: &[Duration]| batch.len().div_ceil(10);
    let first = batches.iter().flat_map(|batch| &batch[..tenth(batch)]);
    let last = batches.iter().flat_map(|batch| &batch[batch.len() - tenth(batch)..]);
    let all = sorted(batches.iter().flatten());
    Some(Figures {
        median: percentile(&all, 50)?,
        p90: percentile(&all, 90)?,
        first: percentile(&sorted(first), 50)?,
        last: percentile(&sorted(last), 50)?,
    })
}

/// Median in milliseconds; `None` of nothing.
pub(crate) fn median(durations: impl IntoIterator<Item = Duration>) -> Option<f64> {
    let all: Vec<Duration> = durations.into_iter().collect();
    percentile(&sorted(&all), 50)
}

/// In milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn sorted<'a>(durations: impl IntoIterator<Item = &'a Duration>) -> Vec<Duration> {
    let mut sorted: Vec<Duration> = durations.into_iter().copied().collect();
    sorted.sort_unstable();
    sorted
}

/// By nearest rank: the smallest value that `percent` of all do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().map(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank_and_tenths() {
        let batch: Vec<_> = (1..=20).map(Duration::from_millis).collect();
        let expected = Figures { median: 10.0, p90: 18.0, first: 1.0, last: 19.0 };
        assert_eq!(figures(&[batch]), Some(expected));
        assert_eq!(figures(&[]), None);
        assert_eq!(figures(&[Vec::new()]), None);
        assert_eq!(median([Duration::from_millis(7)]), Some(7.0));
    }
}
