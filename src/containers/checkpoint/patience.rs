//! How long a checkpoint may take: until its time is over, or whoever asked for it has gone.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containers::Error;

/// How long a checkpoint may take when the caller says nothing.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(600);

/// For whom a checkpoint is made, and until when it is of use.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    end: Instant,
    gone: CancellationToken,
}

impl Patience {
    /// From now on for `limit`; zero means ten minutes.
    pub fn new(limit: Duration) -> Self {
        let limit = if limit.is_zero() { DEFAULT_LIMIT } else { limit };
        Self::until(Instant::now() + limit, CancellationToken::new())
    }

    /// Until `end`, or until `gone`.
    pub fn until(end: Instant, gone: CancellationToken) -> Self {
        let limit = end.saturating_duration_since(Instant::now());
        Self { limit, end, gone }
    }

    /// Returns when the time is over or nobody waits any more.
    pub async fn over(&self) {
        tokio::select! {
            () = tokio::time::sleep_until(self.end) => {}
            () = self.gone.cancelled() => {}
        }
    }

    pub fn is_over(&self) -> bool {
        self.gone.is_cancelled() || Instant::now() >= self.end
    }

    /// A step of the checkpoint of `what` that the end has cut off says so, whatever it failed with.
    pub fn explain(&self, what: &str, error: Error) -> Error {
        if !self.is_over() || matches!(error, Error::Checkpoint { .. }) {
            return error;
        }
        Error::Deadline(if self.gone.is_cancelled() {
            format!("the checkpoint of {what} was given up: whoever asked for it has gone")
        } else {
            format!(
                "the checkpoint of {what} took longer than {} s and was given up",
                self.limit.as_secs()
            )
        })
    }
}
