//! How much a container may log.

/// Bytes that may be written, growing with time: an account that a line overdraws at most once.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// Bytes; below zero after a line that was longer than what was left.
    left: i64,
    /// Unix time, nanoseconds.
    counted_at: i64,
    /// Whole lines left out since the last notice.
    pub dropped: u64,
}

impl Rate {
    /// An account with one second's worth in it. `per_second` is above zero.
    #[must_use]
    pub fn new(per_second: u64) -> Rate {
        Rate {
            per_second,
            left: i64::try_from(per_second).unwrap_or(i64::MAX),
            counted_at: 0,
            dropped: 0,
        }
    }

    /// Whether `length` bytes may be written at `now` (Unix time, nanoseconds); they are then taken off.
    pub fn take(&mut self, now: i64, length: usize) -> bool {
        let full = i128::from(self.per_second);
        // A clock that was set back gives nothing and takes nothing.
        let passed = i128::from(now.saturating_sub(self.counted_at).max(0));
        let gained = passed.saturating_mul(full) / 1_000_000_000;
        if gained > 0 || now < self.counted_at {
            self.left = i64::try_from((i128::from(self.left) + gained).min(full)).unwrap_or(i64::MAX);
            self.counted_at = now;
        }
        if self.left <= 0 {
            return false;
        }
        self.left = self.left.saturating_sub_unsigned(length as u64);
        true
    }

    /// What is to be said of the lines left out, if there are any.
    pub fn notice(&mut self) -> Option<String> {
        let count = std::mem::take(&mut self.dropped);
        (count > 0).then(|| {
            format!(
                "wharf: {count} lines left out, more than {} bytes a second",
                self.per_second
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_second_fills_the_account_and_no_more_than_that_is_saved() {
        let mut rate = Rate::new(100);
        let start = 1000 * SECOND;
        assert!(rate.take(start, 60) && rate.take(start, 60), "overdrawn once");
        assert!(!rate.take(start, 1));
        assert!(!rate.take(start + SECOND / 10, 1), "10 of 20 are paid back");
        assert!(rate.take(start + SECOND, 60));
        assert!(rate.take(start + 3600 * SECOND, 100));
        assert!(!rate.take(start + 3600 * SECOND, 1), "an hour is not saved up");
    }

    #[test]
    fn small_steps_of_the_clock_add_up_and_a_step_back_does_no_harm() {
        let mut rate = Rate::new(1000);
        let start = 1000 * SECOND;
        assert!(rate.take(start, 1000));
        let taken = (1..=1000)
            .filter(|step| rate.take(start + step * SECOND / 1000, 1))
            .count();
        assert!((990..=1000).contains(&taken), "{taken}");
        rate.take(start - 500 * SECOND, 1);
        assert!(rate.take(start - 499 * SECOND, 1));
    }
}
