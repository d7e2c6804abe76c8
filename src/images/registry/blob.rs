//! The bytes of one blob, whatever happens to single connections.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, RANGE},
};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::{
    Session,
    ahead::{Ahead, FIRST, LARGE, Part, bounds, range},
    pace::{Pace, Stalled},
};
use crate::images::{Error, ErrorKind, Result};

/// Connections in a row that may bring nothing.
const MAX_STRIKES: u32 = 4;
/// Connections in all, for registries that send a byte at a time.
const MAX_CONNECTIONS: u32 = 1000;
/// Stretches in a row in which next to nothing came.
const MAX_CRAWLS: u32 = 3;

/// A transfer that goes on by range where a connection broke, on the next endpoint if need be. Yields exactly the
/// promised number of bytes or fails; the digest is the caller's business. A large blob comes in parts, several at once, when
/// its reader waits: see [`BlobStream::note`].
pub(in crate::images) struct BlobStream {
    session: Session,
    digest: String,
    size: u64,
    received: u64,
    /// Where the range ends that the current connection is for.
    until: u64,
    /// What is being handed out of a part that came before its turn, and further ones.
    part: Option<Part>,
    ahead: Option<Ahead>,
    /// Bytes that the current connection repeats because it ignored the range.
    skip: u64,
    body: Option<Incoming>,
    endpoint: usize,
    strikes: u32,
    connections: u32,
    pace: Pace,
    crawls: u32,
    /// Of the blob only what lies before `size` is wanted.
    cut: bool,
    /// What is to come, if it is here already.
    held: Option<Bytes>,
}

impl BlobStream {
    /// The blob's bytes behind the first `from`.
    pub(super) fn new(session: Session, digest: &str, size: u64, from: u64) -> Self {
        let is_large = size.saturating_sub(from) >= LARGE;
        let first = session.endpoints().iter().position(|endpoint| endpoint.digests);
        let pace = Pace::new(session.http().patience.stall);
        let held = session.held().blob(digest, size);
        Self {
            held: held.map(|mut bytes| bytes.split_off(usize::try_from(from).unwrap_or(bytes.len()).min(bytes.len()))),
            session,
            digest: digest.to_owned(),
            size,
            received: from,
            until: if is_large { from + FIRST } else { size },
            part: None,
            ahead: is_large.then(|| Ahead::new(from + FIRST, size)),
            skip: 0,
            body: None,
            // A session without one has failed at the manifest.
            endpoint: first.unwrap_or_default(),
            strikes: 0,
            connections: 0,
            pace,
            crawls: 0,
            cut: false,
        }
    }

    /// The blob's bytes from `from` to before `end`, by one connection at a time.
    pub(super) fn part(session: Session, digest: &str, from: u64, end: u64) -> Self {
        Self {
            until: end,
            ahead: None,
            cut: true,
            ..Self::new(session, digest, end, from)
        }
    }

    /// The next bytes, never empty; `None` once all have come.
    ///
    /// # Errors
    /// When no endpoint has the rest.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.held.take().filter(|bytes| !bytes.is_empty()) {
            self.received = self.size;
            return Ok(Some(bytes));
        }
        loop {
            if let Some(part) = &mut self.part {
                if let Some(piece) = part.pieces.pop_front() {
                    self.received += piece.len() as u64;
                    return Ok(Some(piece));
                }
                if let Some(error) = &part.failure {
                    tracing::debug!(%error, from = part.from, "a part of a blob failed; the rest of it comes in turn");
                }
                self.until = part.end;
                self.part = None;
                self.fill();
                continue;
            }
            let Some(body) = &mut self.body else {
                if self.received == self.size {
                    return Ok(None);
                }
                if self.received == self.until
                    && let Some(ahead) = &mut self.ahead
                {
                    match ahead.first().await {
                        Some(part) => {
                            self.part = Some(part);
                            continue;
                        }
                        None => self.until = ahead.leave_some(),
                    }
                }
                let mut ahead = self.ahead.take();
                let connected = match &mut ahead {
                    Some(ahead) => ahead.beside(self.connect()).await,
                    None => self.connect().await,
                };
                match connected {
                    Ok(true) => {
                        self.ahead = ahead;
                        self.fill();
                    }
                    // Without ranges all of the rest comes here.
                    Ok(false) => self.until = self.size,
                    Err(error) => {
                        self.ahead = ahead;
                        // A registry that was there a moment ago may be back soon.
                        if self.received > 0 && error.kind() == ErrorKind::RegistryUnavailable {
                            self.broken(error).await?;
                        } else {
                            self.next_endpoint(error)?;
                        }
                    }
                }
                continue;
            };
            let frame = self.pace.next(body.frame());
            let frame = match &mut self.ahead {
                Some(ahead) => ahead.beside(frame).await,
                None => frame.await,
            };
            match frame {
                Ok(Some(Ok(frame))) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let skipped = self.skip.min(data.len() as u64);
                    self.skip -= skipped;
                    data.advance(usize::try_from(skipped).unwrap_or(data.len()));
                    if data.is_empty() {
                        continue;
                    }
                    self.received += data.len() as u64;
                    if self.received > self.until {
                        return Err(self.mismatch(format!("at least {} bytes", self.received)));
                    }
                    self.strikes = 0;
                    if self.received == self.until && body.is_end_stream() {
                        self.body = None;
                    }
                    match self.pace.came(data.len()) {
                        Ok(()) => {}
                        Err(crawls) if self.received < self.size => self.crawl(crawls).await?,
                        Err(_) => {}
                    }
                    return Ok(Some(data));
                }
                Ok(None) if self.received == self.until => self.body = None,
                Ok(None) => {
                    let error = self.mismatch(format!("{} bytes", self.received));
                    self.broken(error).await?;
                }
                _ if self.received == self.until => self.body = None,
                Ok(Some(Err(error))) => {
                    let error = self.cut(&error.to_string());
                    self.broken(error).await?;
                }
                Err(silent) => {
                    let error = self.cut(&silent.to_string());
                    self.broken(error).await?;
                }
            }
        }
    }

    /// Takes note of whether the reader had nothing to do until these bytes came.
    pub fn note(&mut self, bytes: u64, waited_for: bool) {
        if self.ahead.as_mut().is_some_and(|ahead| ahead.note(bytes, waited_for)) {
            self.fill();
        }
    }

    /// Has parts fetched that will be needed soon.
    fn fill(&mut self) {
        if let Some(ahead) = &mut self.ahead {
            ahead.fill(&self.session, &self.session.endpoints()[self.endpoint], &self.digest);
        }
    }

    /// Asks the current endpoint for what is missing; false if it sends the whole blob whatever it is asked for.
    async fn connect(&mut self) -> Result<bool> {
        self.connections += 1;
        let what = format!("blob {}", self.digest);
        let whole = self.until == self.size && !self.cut;
        let headers = if whole {
            rest(self.received)
        } else {
            range(self.received, self.until)
        };
        let endpoint = self.session.endpoints()[self.endpoint].clone();
        let path = format!("blobs/{}", self.digest);
        let answer = self.session.get(&endpoint, &path, headers, &what).await?;
        let ranged = answer.status() == StatusCode::PARTIAL_CONTENT;
        let (begins, ends) = if ranged {
            let (begins, ends) = bounds(answer.headers()).unwrap_or((u64::MAX, u64::MAX));
            if begins != self.received || ends != self.until {
                return Err(Error::Registry {
                    what,
                    host: endpoint.host,
                    reason: "it sent another range than was asked for".into(),
                });
            }
            (begins, ends)
        } else if self.cut {
            return Err(Error::Registry {
                what,
                host: endpoint.host,
                reason: "it ignores ranges".into(),
            });
        } else {
            (0, self.size)
        };
        if let Some(length) = length(answer.headers())
            && length != ends - begins
        {
            return Err(self.mismatch(format!("{} bytes", begins.saturating_add(length))));
        }
        self.skip = self.received - begins;
        self.body = Some(answer.into_body());
        Ok(ranged || whole)
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

    /// Leaves a connection by which next to nothing comes, at first for another one.
    async fn crawl(&mut self, how: Stalled) -> Result<()> {
        self.crawls += 1;
        let error = self.cut(&how.to_string());
        if self.crawls < MAX_CRAWLS {
            return self.broken(error).await;
        }
        self.body = None;
        self.crawls = 0;
        self.next_endpoint(error)
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

/// Headers that ask for the bytes from `from` on.
fn rest(from: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if from > 0
        && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
    {
        headers.insert(RANGE, range);
    }
    headers
}
