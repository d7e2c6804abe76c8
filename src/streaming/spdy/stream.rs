//! One stream of a connection.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
};

use bytes::Bytes;

use super::{
    connection::Shared,
    frame::{self, Reset},
    headers::Headers,
};
use crate::streaming::inbox::{Broken, Budget, Inbox};

/// Longest data frame that is sent: others get their turn after it.
const FRAME_LIMIT: usize = 256 << 10;

/// What the connection knows of a stream.
#[derive(Debug)]
pub struct Entry {
    pub number: u32,
    pub inbox: Inbox,
    /// What we may still send, where the client has windows.
    pub window: AtomicI64,
    pub unacknowledged: AtomicU32,
    /// Ended by the client, or with the connection.
    pub is_reset: AtomicBool,
    /// We have sent our last frame.
    pub is_finished: AtomicBool,
}

impl Entry {
    pub fn new(number: u32, window: i64, budget: Arc<Budget>) -> Self {
        Self {
            number,
            inbox: Inbox::new(budget),
            window: AtomicI64::new(window),
            unacknowledged: AtomicU32::new(0),
            is_reset: AtomicBool::new(false),
            is_finished: AtomicBool::new(false),
        }
    }
}

/// A stream that the client opened. Dropping it resets it, unless both sides have finished.
pub struct Stream {
    headers: Headers,
    entry: Arc<Entry>,
    shared: Arc<Shared>,
}

impl Stream {
    pub(super) fn new(headers: Headers, entry: Arc<Entry>, shared: Arc<Shared>) -> Self {
        shared.alive.fetch_add(1, Ordering::Relaxed);
        Self { headers, entry, shared }
    }

    /// Its number: odd, and larger than those of all streams before it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.entry.number
    }

    /// A header that the client sent with it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The next piece that the client has sent; `None` after its half-close. Cancel-safe.
    ///
    /// # Errors
    /// When the client reset it or is gone.
    pub async fn read(&self) -> Result<Option<Bytes>, Broken> {
        let piece = self.entry.inbox.read().await?;
        if let Some(piece) = &piece {
            self.shared.acknowledge(Some(&self.entry), piece.len());
        }
        Ok(piece)
    }

    /// What the client sends from now on is dropped.
    pub fn discard(&self) {
        self.entry.inbox.discard();
    }

    /// Sends all of `data`, as fast as the client takes it.
    ///
    /// # Errors
    /// When the stream has ended or the connection is broken.
    pub async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let opened = self.shared.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.has_ended() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            let count = self.shared.take(&self.entry, data.len().min(FRAME_LIMIT));
            if count == 0 {
                opened.await;
                continue;
            }
            let (now, later) = data.split_at(count);
            let head = frame::data(self.entry.number, false, now.len());
            self.shared.outgoing.data(&head, now).await?;
            data = later;
        }
        Ok(())
    }

    /// Half-closes: the client has everything that it will get.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn finish(&self) -> io::Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        self.shared
            .outgoing
            .data(&frame::data(self.entry.number, true, 0), &[])
            .await?;
        self.entry.is_finished.store(true, Ordering::Relaxed);
        if self.entry.inbox.has_ended() {
            self.shared.forget(self.entry.number);
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.entry.is_reset.load(Ordering::Relaxed) || self.entry.is_finished.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let finished = self.entry.is_finished.load(Ordering::Relaxed) && self.entry.inbox.has_ended();
        if !finished && !self.entry.is_reset.load(Ordering::Relaxed) {
            let mut frames = Vec::new();
            frame::reset(&mut frames, self.entry.number, Reset::Cancel);
            let _ = self.shared.outgoing.urgent(&frames);
        }
        self.entry.inbox.discard();
        self.shared.forget(self.entry.number);
        self.shared.alive.fetch_sub(1, Ordering::Relaxed);
    }
}
