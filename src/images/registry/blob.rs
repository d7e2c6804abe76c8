//! The bytes of one blob, whatever happens to single connections.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE},
};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use super::Session;
use crate::images::{Error, ErrorKind, Result};

/// Connections in a row that may bring nothing.
const MAX_STRIKES: u32 = 4;
/// Connections in all, for registries that send a byte at a time.
const MAX_CONNECTIONS: u32 = 1000;

/// A transfer that goes on by range where a connection broke, on the next endpoint if need be. Yields exactly the
/// promised number of bytes or fails; the digest is the caller's business.
pub(in crate::images) struct BlobStream {
    session: Session,
    digest: String,
    size: u64,
    received: u64,
    /// Bytes that the current connection repeats because it ignored the range.
    skip: u64,
    body: Option<Incoming>,
    endpoint: usize,
    strikes: u32,
    connections: u32,
}

impl BlobStream {
    pub(super) fn new(session: Session, digest: &str, size: u64) -> Self {
        let first = session.endpoints().iter().position(|endpoint| endpoint.digests);
        Self {
            session,
            digest: digest.to_owned(),
            size,
            received: 0,
            skip: 0,
            body: None,
            // A session without one has failed at the manifest.
            endpoint: first.unwrap_or_default(),
            strikes: 0,
            connections: 0,
        }
    }

    /// The next bytes, never empty; `None` once all have come.
    ///
    /// # Errors
    /// When no endpoint has the rest.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(body) = &mut self.body else {
                if self.received == self.size {
                    return Ok(None);
                }
                match self.connect().await {
                    Ok(()) => {}
                    // A registry that was there a moment ago may be back soon.
                    Err(error) if self.received > 0 && error.kind() == ErrorKind::RegistryUnavailable => {
                        self.broken(error).await?;
                    }
                    Err(error) => self.next_endpoint(error)?,
                }
                continue;
            };
            match timeout(self.session.http().patience.stall, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let skipped = self.skip.min(data.len() as u64);
                    self.skip -= skipped;
                    data.advance(usize::try_from(skipped).unwrap_or(data.len()));
                    if data.is_empty() {
                        continue;
                    }
                    self.received += data.len() as u64;
                    if self.received > self.size {
                        return Err(self.mismatch(format!("at least {} bytes", self.received)));
                    }
                    self.strikes = 0;
                    if self.received == self.size && body.is_end_stream() {
                        self.body = None;
                    }
                    return Ok(Some(data));
                }
                Ok(None) if self.received == self.size => self.body = None,
                Ok(None) => {
                    let error = self.mismatch(format!("{} bytes", self.received));
                    self.broken(error).await?;
                }
                _ if self.received == self.size => self.body = None,
                Ok(Some(Err(error))) => {
                    let error = self.cut(&error.to_string());
                    self.broken(error).await?;
                }
                Err(_) => {
                    let stall = self.session.http().patience.stall;
                    let error = self.cut(&format!("no byte came within {stall:?}"));
                    self.broken(error).await?;
                }
            }
        }
    }

    /// Asks the current endpoint for what is missing.
    async fn connect(&mut self) -> Result<()> {
        self.connections += 1;
        let what = format!("blob {}", self.digest);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.received > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.received))
        {
            headers.insert(RANGE, range);
        }
        let endpoint = self.session.endpoints()[self.endpoint].clone();
        let path = format!("blobs/{}", self.digest);
        let answer = self.session.get(&endpoint, &path, headers, &what).await?;
        let begins = if answer.status() == StatusCode::PARTIAL_CONTENT {
            let begins = first_byte(answer.headers()).unwrap_or(u64::MAX);
            if begins != self.received {
                return Err(Error::Registry {
                    what,
                    host: endpoint.host,
                    reason: "it sent another range than was asked for".into(),
                });
            }
            begins
        } else {
            0
        };
        if let Some(length) = length(answer.headers())
            && length != self.size - begins
        {
            return Err(self.mismatch(format!("{} bytes", begins.saturating_add(length))));
        }
        self.skip = self.received - begins;
        self.body = Some(answer.into_body());
        Ok(())
    }

    /// Gives the current endpoint another chance after a broken connection, or goes on to the next.
    async fn broken(&mut self, error: Error) -> Result<()> {
        self.body = None;
        self.strikes += 1;
        tracing::debug!(%error, received = self.received, "a transfer broke off");
        if self.strikes > MAX_STRIKES || self.connections > MAX_CONNECTIONS {
            return self.next_endpoint(error);
        }
        let wait: Duration = self.session.http().patience.back_off * (self.strikes - 1);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Turns to the next endpoint; the last one's failure is final.
    fn next_endpoint(&mut self, error: Error) -> Result<()> {
        let mut rest = self.session.endpoints().iter().enumerate().skip(self.endpoint + 1);
        let Some((next, _)) = rest.find(|(_, endpoint)| endpoint.digests) else {
            return Err(error);
        };
        self.endpoint = next;
        self.strikes = 0;
        Ok(())
    }

    fn mismatch(&self, got: String) -> Error {
        Error::Mismatch {
            what: format!("blob {}", self.digest),
            expected: format!("{} bytes", self.size),
            got,
        }
    }

    fn cut(&self, reason: &str) -> Error {
        Error::RegistryUnavailable {
            host: self.session.endpoints()[self.endpoint].host.clone(),
            reason: format!(
                "transfer of blob {} broke off at {} of {} bytes: {reason}",
                self.digest, self.received, self.size
            ),
        }
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The first byte of `bytes 5-9/10`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
