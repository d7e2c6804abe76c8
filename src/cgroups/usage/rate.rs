//! How many cores something keeps busy, from a counter that is read now and then.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A rate over less says nothing: the kernel books CPU time in ticks.
const SHORTEST: Duration = Duration::from_millis(100);
/// A rate is taken over at least this if there is a sample that old.
const WISHED: Duration = Duration::from_secs(1);
/// Samples closer than this to the one before are not kept.
const APART: Duration = Duration::from_millis(200);

/// The newest samples of a counter of CPU time. Nobody samples in the background: a node costs nothing that no one asks
/// about.
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
    latest: Option<u64>,
}

impl Rate {
    /// Takes the counter in at `at` and returns the rate up to then, nanoseconds per second. None at the first sample:
    /// a zero would be taken for an idle container by whoever scales by it.
    pub fn add(&mut self, at: Instant, counter: u64) -> Option<u64> {
        if self.samples.back().is_some_and(|&(_, before)| counter < before) {
            self.samples.clear();
            self.latest = None;
        }
        let age = |sample: &(Instant, u64)| at.saturating_duration_since(sample.0);
        let old_enough = self.samples.iter().rev().find(|sample| age(sample) >= WISHED);
        if let Some(base) = old_enough.or(self.samples.front())
            && age(base) >= SHORTEST
        {
            let rate = u128::from(counter - base.1) * 1_000_000_000 / age(base).as_nanos();
            self.latest = Some(u64::try_from(rate).unwrap_or(u64::MAX));
        }
        if self.samples.back().is_none_or(|sample| age(sample) >= APART) {
            self.samples.push_back((at, counter));
        }
        while self.samples.get(1).is_some_and(|sample| age(sample) >= WISHED) {
            self.samples.pop_front();
        }
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_first_sample_gives_no_rate_and_the_second_does() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.add(start, 500 * MS), None);
        assert_eq!(rate.add(start + Duration::from_secs(10), 5500 * MS), Some(500 * MS));
        assert_eq!(
            rate.add(start + Duration::from_secs(20), 5500 * MS),
            Some(0),
            "idle is zero"
        );
    }

    #[test]
    fn samples_close_together_give_the_rate_over_a_second() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(rate.add(at(0), 0), None);
        assert_eq!(rate.add(at(20), 20 * MS), None, "too short to say");
        assert_eq!(rate.add(at(500), 250 * MS), Some(500 * MS));
        assert_eq!(rate.add(at(510), 251 * MS).map(|rate| rate / MS), Some(492));
        // Many callers: the base stays about a second old, and not one sample is kept for each.
        for ms in (520..5000).step_by(10) {
            rate.add(at(ms), ms / 2 * MS);
        }
        assert_eq!(rate.add(at(5000), 2500 * MS), Some(500 * MS));
        assert!(rate.samples.len() < 8, "{}", rate.samples.len());
    }

    #[test]
    fn a_counter_that_went_back_starts_anew() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.add(start, 100);
        rate.add(start + Duration::from_secs(1), 200);
        assert_eq!(rate.add(start + Duration::from_secs(2), 50), None);
        assert_eq!(rate.add(start + Duration::from_secs(3), 150), Some(100));
    }
}
