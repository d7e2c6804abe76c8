//! What a client has sent on one stream and nobody has read yet: a bounded queue of pieces.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes after which one stream is full. It is what the client may send before it must wait.
pub const STREAM_LIMIT: usize = 256 << 10;
/// Bytes after which a connection is full, however many streams it has.
pub const CONNECTION_LIMIT: usize = 2 << 20;

/// How long a full stream stops the client before more is taken after all. Only then can a client that is gone be told
/// from one that waits: its end comes behind what it had sent, which the kernels of both sides hold.
const STALL: Duration = Duration::from_secs(5);
/// What a connection may hold then: more than two kernels do.
const STALLED_LIMIT: usize = 16 << 20;
/// What all connections of a server may hold when one takes more for that reason.
const POOL_LIMIT: usize = 64 << 20;

/// The client broke the stream off, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client broke the stream off")]
pub struct Broken;

/// What all connections of a server hold together.
#[derive(Debug, Default)]
pub struct Pool(AtomicUsize);

/// What all inboxes of one connection hold together.
#[derive(Debug, Default)]
pub struct Budget {
    held: AtomicUsize,
    freed: Notify,
    pool: Arc<Pool>,
}

impl Budget {
    pub fn of(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            ..Self::default()
        })
    }

    fn add(&self, count: usize) {
        self.held.fetch_add(count, Ordering::Relaxed);
        self.pool.0.fetch_add(count, Ordering::Relaxed);
    }

    fn free(&self, count: usize) {
        self.held.fetch_sub(count, Ordering::Relaxed);
        self.pool.0.fetch_sub(count, Ordering::Relaxed);
        self.freed.notify_one();
    }

    /// Whether a stream that has been full for long may take more.
    fn is_patient(&self) -> bool {
        self.held.load(Ordering::Relaxed) < STALLED_LIMIT && self.pool.0.load(Ordering::Relaxed) < POOL_LIMIT
    }
}

/// One stream's queue. One side pushes, one reads.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    readable: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    held: usize,
    end: Option<End>,
    /// Nobody will read again: what comes is dropped.
    unread: bool,
    /// It was full for [`STALL`].
    stalled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Broken,
}

impl Inbox {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            state: Mutex::default(),
            readable: Notify::new(),
            budget,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece over; false when nobody will read it.
    pub fn push(&self, piece: Bytes) -> bool {
        let mut state = self.state();
        if state.unread || state.end.is_some() {
            return false;
        }
        if !piece.is_empty() {
            state.held += piece.len();
            self.budget.add(piece.len());
            state.pieces.push_back(piece);
            self.readable.notify_one();
        }
        true
    }

    /// Waits until the stream and its connection may take more. Only the connection's reader calls it.
    pub async fn room(&self) {
        let stall = tokio::time::sleep(STALL);
        tokio::pin!(stall);
        while self.is_full() {
            let stalled = self.state().stalled;
            if stalled && self.budget.is_patient() {
                return;
            }
            tokio::select! {
                () = self.budget.freed.notified() => {}
                () = &mut stall, if !stall.is_elapsed() => self.state().stalled = true,
                // Others may have made room in the pool.
                () = tokio::time::sleep(STALL), if stalled => {}
            }
        }
        self.state().stalled = false;
    }

    pub fn is_full(&self) -> bool {
        let state = self.state();
        !state.unread
            && (state.held >= STREAM_LIMIT
                // A stream of a full connection may still take something when it holds nothing: it is being read.
                || (state.held > 0 && self.budget.held.load(Ordering::Relaxed) >= CONNECTION_LIMIT))
    }

    /// The client has half-closed the stream.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// The client has reset the stream or is gone.
    pub fn break_off(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.readable.notify_one();
    }

    /// Whether the client has ended its side, in whatever way.
    pub fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// Drops what is there and what comes.
    pub fn discard(&self) {
        let mut state = self.state();
        state.unread = true;
        state.pieces.clear();
        self.budget.free(std::mem::take(&mut state.held));
    }

    /// The next piece; `None` when the client has half-closed the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the client broke off, after all that came before.
    pub async fn read(&self) -> Result<Option<Bytes>, Broken> {
        loop {
            {
                let mut state = self.state();
                if let Some(piece) = state.pieces.pop_front() {
                    state.held -= piece.len();
                    self.budget.free(piece.len());
                    return Ok(Some(piece));
                }
                match state.end {
                    Some(End::Finished) => return Ok(None),
                    Some(End::Broken) => return Err(Broken),
                    None => {}
                }
            }
            self.readable.notified().await;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_come_in_order_and_then_the_end() {
        let inbox = Inbox::new(Arc::default());
        assert!(inbox.push(Bytes::from_static(b"a")) && inbox.push(Bytes::from_static(b"b")));
        inbox.finish();
        inbox.break_off();
        assert_eq!(inbox.read().await.unwrap().unwrap(), "a");
        assert_eq!(inbox.read().await.unwrap().unwrap(), "b");
        assert_eq!(inbox.read().await, Ok(None), "the first end counts");
    }

    #[tokio::test]
    async fn a_full_stream_waits_for_its_reader_only() {
        let budget = Arc::<Budget>::default();
        let (full, free) = (Inbox::new(budget.clone()), Inbox::new(budget.clone()));
        full.push(Bytes::from(vec![0; STREAM_LIMIT]));
        assert!(full.is_full() && !free.is_full());
        tokio::join!(full.room(), full.read()).1.unwrap();
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_full_takes_somewhat_more_to_see_whether_its_client_lives() {
        let inbox = Inbox::new(Arc::default());
        let mut held = 0;
        while tokio::time::timeout(2 * STALL, inbox.room()).await.is_ok() {
            inbox.push(Bytes::from(vec![0; STREAM_LIMIT]));
            held += STREAM_LIMIT;
        }
        assert_eq!(held, STALLED_LIMIT);
        while inbox.state().held > 0 {
            inbox.read().await.unwrap();
        }
        inbox.room().await;
        inbox.push(Bytes::from(vec![0; STREAM_LIMIT]));
        let early = tokio::time::timeout(STALL / 2, inbox.room()).await;
        assert!(early.is_err(), "patience begins anew");
    }

    #[tokio::test]
    async fn a_full_connection_is_free_again_when_its_streams_are_dropped() {
        let budget = Arc::<Budget>::default();
        let streams: Vec<_> = (0..10).map(|_| Inbox::new(budget.clone())).collect();
        for stream in &streams {
            stream.push(Bytes::from(vec![0; CONNECTION_LIMIT / 10 + 1]));
        }
        assert!(streams[0].is_full());
        assert!(!Inbox::new(budget.clone()).is_full(), "an idle stream is not held up");
        drop(streams);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_stay_full_share_what_they_take_more() {
        let pool = Arc::<Pool>::default();
        let streams: Vec<_> = (0..10).map(|_| Inbox::new(Budget::of(pool.clone()))).collect();
        for stream in &streams {
            while tokio::time::timeout(3 * STALL, stream.room()).await.is_ok() {
                stream.push(Bytes::from(vec![0; STREAM_LIMIT]));
            }
        }
        let held = pool.0.load(Ordering::Relaxed);
        assert!(held <= POOL_LIMIT + 10 * STREAM_LIMIT, "{held}");
        drop(streams);
        assert_eq!(pool.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_kept() {
        let inbox = Inbox::new(Arc::default());
        inbox.push(Bytes::from(vec![0; STREAM_LIMIT]));
        inbox.discard();
        assert!(!inbox.is_full() && !inbox.push(Bytes::from_static(b"x")));
    }
}
