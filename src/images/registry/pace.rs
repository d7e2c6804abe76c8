//! Whether a body comes at all: a registry that sends a byte a second holds a pull up for ever as one does that sends none.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::time::timeout;

/// Bytes a second below which nobody gets an image. The slowest modem was faster.
const SLOWEST: u64 = 1 << 10;

/// Watches one body. What the reader does between two frames does not count.
#[derive(Debug)]
pub(super) struct Pace {
    stall: Duration,
    waited: Duration,
    came: u64,
}

/// Why a body counts as broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stalled {
    /// No byte came within the time.
    Silent(Duration),
    /// So many came, which is less than a kilobyte a second.
    Crawls(u64, Duration),
}

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(stall) => write!(f, "no byte came within {stall:?}"),
            Self::Crawls(bytes, stall) => write!(f, "only {bytes} bytes came within {stall:?}"),
        }
    }
}

impl Pace {
    /// Judges each stretch of `stall` of waiting.
    pub(super) fn new(stall: Duration) -> Self {
        Self {
            stall,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// When it does not come in time.
    pub(super) async fn next<T>(&mut self, frame: impl Future<Output = T>) -> Result<T, Stalled> {
        let begun = Instant::now();
        let frame = timeout(self.stall, frame).await;
        self.waited += begun.elapsed();
        frame.map_err(|_| Stalled::Silent(self.stall))
    }

    /// Counts what came.
    ///
    /// # Errors
    /// When that was too little for the time that was waited; the count begins anew.
    pub(super) fn came(&mut self, bytes: usize) -> Result<(), Stalled> {
        self.came += bytes as u64;
        if self.waited < self.stall {
            return Ok(());
        }
        let (came, waited) = (self.came, self.waited);
        *self = Self::new(self.stall);
        // In thousandths: stalls of tests are shorter than a second.
        if u128::from(came) * 1000 < u128::from(SLOWEST) * waited.as_millis() {
            return Err(Stalled::Crawls(came, waited));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_crawls_is_told_from_one_that_flows_and_from_a_slow_reader() {
        let stall = Duration::from_millis(40);
        let mut pace = Pace::new(stall);
        let slow = async |pace: &mut Pace, bytes: usize| {
            let late = tokio::time::sleep(Duration::from_millis(15));
            pace.next(late).await.unwrap();
            pace.came(bytes)
        };
        let mut outcome = Ok(());
        for _ in 0..3 {
            outcome = outcome.and(slow(&mut pace, 1).await);
        }
        assert!(matches!(outcome, Err(Stalled::Crawls(3, _))), "{outcome:?}");
        for _ in 0..6 {
            slow(&mut pace, 1000).await.unwrap();
        }
        for _ in 0..3 {
            tokio::time::sleep(stall).await;
            pace.next(std::future::ready(())).await.unwrap();
            pace.came(1).unwrap();
        }
        let silent = pace.next(std::future::pending::<()>()).await;
        assert_eq!(silent, Err(Stalled::Silent(stall)));
    }
}
