//! Parts of a large blob that are fetched before their turn, over connections of their own.
//!
//! Where one connection does not get all that the network and the registry have (a limit for each, a long way), several
//! do. Their bytes wait in memory, so the node has a budget for all blobs together; without room in it, or when a
//! registry ignores ranges, a blob comes through one connection as ever. So it does as long as whoever unpacks it has
//! enough to do: each request costs a registry some milliseconds of a processor, and more of one than its bytes do.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE},
};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Endpoint, Session, pace::Pace};
use crate::images::{Error, Result};

/// Blobs from this size on come in parts.
pub(super) const LARGE: u64 = 16 << 20;
/// Bytes of a part.
pub(super) const PART: u64 = 2 << 20;
/// Parts of one blob under way or waiting.
const AHEAD: usize = 4;
/// Bytes that one connection is asked for at first, before it is known whether it brings enough.
pub(super) const FIRST: u64 = 4 * PART;
/// Bytes that it is asked for at once at the most: who reads may become faster, or the network slower.
const LONGEST: u64 = 64 << 20;
/// Bytes by which it is judged whether one connection brings enough.
const PROBE: u64 = 2 << 20;
/// Bytes that all blobs may have waiting: of the 64 MiB that pulls may take, decompressors and channels need the rest.
pub(super) const BUDGET: u64 = 24 << 20;

/// The node's budget for parts; see [`BUDGET`].
pub(super) fn budget(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes / PART).unwrap_or_default()))
}

/// A part that has come, or as much of it as did.
pub(super) struct Part {
    pub from: u64,
    /// Behind its last byte, had it come whole.
    pub end: u64,
    pub pieces: VecDeque<Bytes>,
    pub failure: Option<Error>,
    _room: OwnedSemaphorePermit,
}

/// The parts of one blob that follow what is being read.
pub(super) struct Ahead {
    parts: FuturesOrdered<BoxFuture<'static, Part>>,
    /// Parts that came while something else was waited for.
    ready: VecDeque<Part>,
    /// Where the next part to be asked for begins.
    next: u64,
    size: u64,
    /// How many there may be; less after failures.
    limit: usize,
    /// Bytes that the one connection is asked for next.
    stride: u64,
    /// Of the bytes that came lately, how many were waited for.
    came: u64,
    waited_for: u64,
    /// One connection did not bring enough.
    hungry: bool,
    /// Set by a part whose range was ignored.
    ignored: Arc<AtomicBool>,
}

impl Ahead {
    /// Nothing yet; parts begin at `next`.
    pub fn new(next: u64, size: u64) -> Self {
        Self {
            parts: FuturesOrdered::new(),
            ready: VecDeque::new(),
            next,
            size,
            limit: AHEAD,
            stride: 2 * FIRST,
            came: 0,
            waited_for: 0,
            hungry: false,
            ignored: Arc::default(),
        }
    }

    /// Takes note that `bytes` came, and whether the reader had nothing to do until then. Returns whether it is time for parts.
    pub fn note(&mut self, bytes: u64, waited_for: bool) -> bool {
        self.came += bytes;
        if waited_for {
            self.waited_for += bytes;
        }
        if self.came >= PROBE {
            // Where the processors are what is short, about half is waited for: the registry may be on this machine as well.
            let hungry = self.waited_for > self.came / 8 * 7;
            (self.came, self.waited_for) = (0, 0);
            if hungry && !self.hungry {
                self.hungry = true;
                return true;
            }
        }
        false
    }

    /// What to read through the one connection when no part is under way: from [`Ahead::next`] to what is returned.
    pub fn leave_some(&mut self) -> u64 {
        let some = match (self.limit, self.hungry) {
            (0, _) => u64::MAX,
            (_, true) => FIRST,
            (_, false) => {
                let some = self.stride;
                self.stride = (some * 2).min(LONGEST);
                some
            }
        };
        // What would be left then is not worth a request of its own.
        let left = self.size.saturating_sub(self.next).saturating_sub(some);
        self.next = if left < some { self.size } else { self.next + some };
        self.next
    }

    /// Begins as many parts as there may be, if they are needed.
    pub fn fill(&mut self, session: &Session, endpoint: &Endpoint, digest: &str) {
        if !self.hungry {
            return;
        }
        if self.ignored.load(Ordering::Relaxed) {
            self.limit = 0;
        }
        while self.parts.len() + self.ready.len() < self.limit && self.next < self.size {
            let Ok(room) = session.http().budget.clone().try_acquire_owned() else {
                return;
            };
            let (from, end) = (self.next, (self.next + PART).min(self.size));
            self.next = end;
            let request = Request {
                session: session.clone(),
                endpoint: endpoint.clone(),
                digest: digest.to_owned(),
                from,
                end,
                ignored: self.ignored.clone(),
            };
            self.parts.push_back(request.fetch(room).boxed());
        }
    }

    /// The first part, when it has come; `None` if none is under way.
    pub async fn first(&mut self) -> Option<Part> {
        let part = match self.ready.pop_front() {
            Some(part) => part,
            None => self.parts.next().await?,
        };
        if part.failure.is_some() {
            self.limit /= 2;
        }
        Some(part)
    }

    /// Lets the parts go on until `work` is done.
    pub async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            while let Poll::Ready(Some(part)) = self.parts.poll_next_unpin(context) {
                self.ready.push_back(part);
            }
            work.as_mut().poll(context)
        })
        .await
    }
}

struct Request {
    session: Session,
    endpoint: Endpoint,
    digest: String,
    from: u64,
    end: u64,
    ignored: Arc<AtomicBool>,
}

impl Request {
    async fn fetch(self, room: OwnedSemaphorePermit) -> Part {
        let mut pieces = VecDeque::new();
        let failure = self.collect(&mut pieces).await.err();
        Part {
            from: self.from,
            end: self.end,
            pieces,
            failure,
            _room: room,
        }
    }

    async fn collect(&self, pieces: &mut VecDeque<Bytes>) -> Result<()> {
        let what = format!("blob {}", self.digest);
        let refused = |reason: &str| Error::Registry {
            what: what.clone(),
            host: self.endpoint.host.clone(),
            reason: reason.to_owned(),
        };
        let headers = range(self.from, self.end);
        let path = format!("blobs/{}", self.digest);
        let answer = self.session.get(&self.endpoint, &path, headers, &what).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            self.ignored.store(true, Ordering::Relaxed);
            return Err(refused("it ignores ranges"));
        }
        if bounds(answer.headers()) != Some((self.from, self.end)) {
            return Err(refused("it sent another range than was asked for"));
        }
        let stall = self.session.http().patience.stall;
        let mut pace = Pace::new(stall);
        let (mut body, mut left) = (answer.into_body(), self.end - self.from);
        while left > 0 {
            match pace.next(body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if data.len() as u64 > left {
                        return Err(refused("it sent more than was asked for"));
                    }
                    left -= data.len() as u64;
                    pace.came(data.len())
                        .map_err(|how| refused(&format!("a part stalled: {how}")))?;
                    if !data.is_empty() {
                        pieces.push_back(data);
                    }
                }
                Ok(Some(Err(error))) => return Err(refused(&format!("a part broke off: {error}"))),
                Ok(None) => return Err(refused("a part ended too early")),
                Err(how) => return Err(refused(&format!("a part stalled: {how}"))),
            }
        }
        // The connection can be used again only when its end was seen.
        let _ = timeout(stall, body.frame()).await;
        Ok(())
    }
}

/// Headers that ask for the bytes from `from` to before `end`.
pub(super) fn range(from: u64, end: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-{}", end.saturating_sub(1))) {
        headers.insert(RANGE, range);
    }
    headers
}

/// First byte, and behind the last one, of `bytes 5-9/10`.
pub(super) fn bounds(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, last) = text.strip_prefix("bytes ")?.split('/').next()?.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some((first.trim().parse().ok()?, last.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_for_readers_that_wait() {
        let mut ahead = Ahead::new(FIRST, 1 << 30);
        for _ in 0..100 {
            assert!(!ahead.note(PROBE / 4, false));
        }
        // The first bytes are always waited for.
        assert!(!ahead.note(PROBE / 4, true));
        assert!(!ahead.note(PROBE / 4, false) && !ahead.note(PROBE / 2, false));
        assert!(!ahead.note(PROBE / 2, true));
        assert!(ahead.note(PROBE / 2, true));
        assert!(!ahead.note(2 * PROBE, true), "it is told once");
        assert!(!ahead.note(2 * PROBE, false) && ahead.hungry, "and holds for the blob");
    }

    #[test]
    fn one_connection_is_asked_for_more_and_more_and_for_all_of_a_short_rest() {
        let mut ahead = Ahead::new(FIRST, 27 << 20);
        assert_eq!(ahead.leave_some(), 27 << 20);
        let mut ahead = Ahead::new(FIRST, 1 << 30);
        assert_eq!(ahead.leave_some(), 24 << 20);
        assert_eq!(ahead.leave_some(), 56 << 20);
        assert_eq!(ahead.leave_some(), 120 << 20);
        assert_eq!(ahead.leave_some(), 184 << 20, "not more than that");
        ahead.hungry = true;
        assert_eq!(ahead.leave_some(), 192 << 20, "there may soon be room for parts");
        ahead.limit = 0;
        assert_eq!(ahead.leave_some(), 1 << 30, "ranges are of no use");
    }
}
