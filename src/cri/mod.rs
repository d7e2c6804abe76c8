//! The CRI face: translation between CRI messages and the node, and gRPC status codes. No state, no mechanism.
//!
//! One file per group of calls; `status.rs` is the one place where errors become codes; `server.rs` listens.

mod audit;
mod authority;
mod checkpoints;
mod cni_result;
mod containers;
mod debug;
mod elsewhere;
mod events;
#[cfg(test)]
mod fields;
mod filters;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod gathered;
mod health;
mod image_service;
mod images;
mod info;
mod inout;
mod linger;
mod lists;
mod metrics;
mod networks;
mod own;
mod pods;
mod ready;
mod server;
mod service;
mod stats;
mod status;
mod streaming;
mod streams;
mod update;
mod watched;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

pub use server::{Error as ServerError, Server, Serving};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use wharf_proto::record::Owner;

use crate::{node::Node, streaming::Urls};

/// Metadata key by which Wharf's own command says for whom it asks. Other runtimes ignore it, and kubelet never sends
/// it: so kubelet neither sees nor kills pods that a person started (it kills pods that it does not know).
const OWNER_KEY: &str = "wharf-owner";

/// The services, over a node that may still be recovering. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Face {
    node: Arc<OnceLock<(Node, Arc<Urls>)>>,
    ending: CancellationToken,
}

impl Face {
    /// A face without a node: it answers Version, and `Unavailable` to all else (contract rule 38).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the face its recovered node, and who serves its streams. Only the first call counts.
    pub fn ready(&self, node: Node, urls: Arc<Urls>) {
        let _ = self.node.set((node, urls));
    }

    /// Whether the calls by which kubelet judges a node's health are answered.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.runtime_status(false).is_ok()
    }

    /// Ends the streams that would otherwise go on for ever, so that the server can end in order.
    pub fn end_streams(&self) {
        self.ending.cancel();
        if let Ok(node) = self.node() {
            node.end_events();
        }
    }

    /// Returns when streams are to end.
    async fn ending(&self) {
        self.ending.cancelled().await;
    }

    fn node(&self) -> Result<&Node, Status> {
        Ok(&self.recovered()?.0)
    }

    fn urls(&self) -> Result<&Urls, Status> {
        Ok(&self.recovered()?.1)
    }

    fn recovered(&self) -> Result<&(Node, Arc<Urls>), Status> {
        self.node
            .get()
            .ok_or_else(|| Status::unavailable("wharf is recovering its pods; try again in a moment"))
    }
}

/// For whom a new pod is made.
fn owner<T>(request: &Request<T>) -> Owner {
    match header(request) {
        Some("user") => Owner::User,
        _ => Owner::Cri,
    }
}

/// When an answer must have been found to reach its caller in time; none if the caller waits for ever.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    let limit = time_limit(request.metadata().as_ref())?;
    // The answer has a way to go as well.
    let margin = (limit / 10).min(Duration::from_secs(1));
    Instant::now().checked_add(limit - margin)
}

/// How long the caller waits, by the head of its request.
fn time_limit(headers: &http::HeaderMap) -> Option<Duration> {
    timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Reads gRPC's `grpc-timeout`: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let unit = text.len().checked_sub(1)?;
    let number: u32 = text.get(..unit).filter(|digits| digits.len() <= 8)?.parse().ok()?;
    let number = u64::from(number);
    Some(match text.get(unit..)? {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Whose pods a list shows.
fn owners<T>(request: &Request<T>) -> &'static [Owner] {
    match header(request) {
        Some("all") => &[Owner::Cri, Owner::User],
        Some("user") => &[Owner::User],
        _ => &[Owner::Cri],
    }
}

fn header<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get(OWNER_KEY).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, millis) in [
            ("2S", 2000),
            ("240000m", 240_000),
            ("1H", 3_600_000),
            ("3M", 180_000),
            ("5000u", 5),
        ] {
            assert_eq!(timeout(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "S", "1", "1x", "123456789S", "-1S", "1\u{e9}"] {
            assert_eq!(timeout(text), None, "{text}");
        }
        let mut request = Request::new(());
        assert_eq!(deadline(&request), None);
        request.set_timeout(Duration::from_secs(10));
        let left = deadline(&request).unwrap() - Instant::now();
        assert!(
            left > Duration::from_secs(8) && left <= Duration::from_secs(9),
            "{left:?}"
        );
    }
}
