//! Whether a network is fit for pods, as kubelet is told: a fault that passes (a plugin's upgrade) is not told at once.

use std::time::{Duration, Instant};

/// What was seen of a network so far.
#[derive(Debug, Default)]
pub(super) struct Health {
    ready: bool,
    /// Since when it is found not to be fit.
    bad_since: Option<Instant>,
    /// The newest fault; empty if there is none.
    message: String,
}

impl Health {
    /// Takes in what was seen at `now`. A network that was ready stays so until it has been unfit for `grace`.
    pub(super) fn saw(&mut self, verdict: Result<(), String>, now: Instant, grace: Duration) {
        match verdict {
            Ok(()) => {
                *self = Self {
                    ready: true,
                    ..Self::default()
                }
            }
            Err(message) => {
                let since = *self.bad_since.get_or_insert(now);
                self.message = message;
                if now.duration_since(since) >= grace {
                    self.ready = false;
                }
            }
        }
    }

    /// Whether it is told to be ready.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The newest fault, also while it is not told.
    pub(super) fn fault(&self) -> &str {
        &self.message
    }

    /// When a fault that is not told yet will be.
    pub(super) fn due(&self, grace: Duration) -> Option<Instant> {
        self.bad_since.filter(|_| self.ready).map(|since| since + grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_when_it_lasts_and_forgotten_when_it_passes() {
        let (start, grace) = (Instant::now(), Duration::from_secs(60));
        let mut health = Health::default();
        let mut at = |seconds: u64, verdict: Result<(), &str>| {
            health.saw(
                verdict.map_err(str::to_owned),
                start + Duration::from_secs(seconds),
                grace,
            );
            (health.is_ready(), health.due(grace).map(|due| (due - start).as_secs()))
        };
        // Never fit yet: nothing to be patient about.
        assert_eq!(at(0, Err("no file")), (false, None));
        assert_eq!(at(1, Ok(())), (true, None));
        assert_eq!(at(10, Err("upgrade")), (true, Some(70)));
        assert_eq!(at(69, Err("upgrade")), (true, Some(70)));
        assert_eq!(at(69, Ok(())), (true, None));
        assert_eq!(at(100, Err("gone")), (true, Some(160)));
        assert_eq!(at(160, Err("gone")), (false, None));
        assert_eq!(at(161, Err("gone")), (false, None));
        assert_eq!(at(162, Ok(())), (true, None));
    }
}
