//! Waiting for a container's end.

use std::time::{Duration, Instant};

use tonic::Code;
use wharf_proto::cri::{self, ContainerState};

use super::client::Client;
use super::error::Result;

/// First and longest pause between two looks. CRI has no call that waits for an exit, and its event stream is
/// optional, so the status is asked for: often at first, for short commands, then less.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How long the daemon may be away, for example for an upgrade, before waiting is given up.
const AWAY: Duration = Duration::from_secs(60);

/// Returns when the container no longer runs: its last status, or `None` if it was removed.
pub async fn exited(client: &Client, id: &str) -> Result<Option<cri::ContainerStatus>> {
    let mut pause = PAUSES.0;
    let mut answered = Instant::now();
    loop {
        match client.container_status(id, false).await {
            Ok(answer) => {
                answered = Instant::now();
                let status = answer.status.unwrap_or_default();
                if !matches!(
                    status.state(),
                    ContainerState::ContainerRunning | ContainerState::ContainerCreated
                ) {
                    return Ok(Some(status));
                }
            }
            Err(problem) if problem.status() == Some(Code::NotFound) => return Ok(None),
            // The daemon restarts; the container goes on without it.
            Err(problem) if problem.status() == Some(Code::Unavailable) && answered.elapsed() < AWAY => {}
            Err(problem) => return Err(problem),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
}
