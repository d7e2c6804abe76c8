//! The way to the client. Data waits for its turn, which is how a slow client slows what it reads down; answers to the
//! client's frames never wait, or client and daemon could wait for each other.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::{Mutex, Notify},
    time::Instant,
};

use super::{transport::WriteHalf, websocket};

/// Bytes of answers that may wait. A client that asks for more without reading is refused.
const URGENT_LIMIT: usize = 64 << 10;

/// When the client was last heard, or took something.
#[derive(Debug)]
pub struct Activity {
    begin: Instant,
    last: AtomicU64,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    pub fn touch(&self) {
        self.last
            .store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Completes when nothing has moved for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let end = self.begin + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Whether frames are written as they are, or each write as a binary message of a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    None,
    WebSocket,
}

/// One connection's way out, shared by all that write to it.
pub struct Outgoing {
    line: Mutex<Line>,
    urgent: StdMutex<Vec<u8>>,
    wake: Notify,
    envelope: Envelope,
    activity: Arc<Activity>,
}

struct Line {
    write: WriteHalf,
    /// A frame was begun and not ended: what follows would be read as its rest.
    torn: bool,
}

impl Outgoing {
    pub fn new(write: WriteHalf, envelope: Envelope, activity: Arc<Activity>) -> Arc<Self> {
        Arc::new(Self {
            line: Mutex::new(Line { write, torn: false }),
            urgent: StdMutex::default(),
            wake: Notify::new(),
            envelope,
            activity,
        })
    }

    /// Queues short frames before all data. They go out when data does, or by [`Outgoing::run`].
    ///
    /// # Errors
    /// When the client does not take the answers that it asks for.
    pub fn urgent(&self, frames: &[u8]) -> io::Result<()> {
        let mut queue = self.urgent.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() + frames.len() > URGENT_LIMIT {
            return Err(io::Error::other("the client asks without reading the answers"));
        }
        if self.envelope == Envelope::WebSocket {
            let (head, length) = websocket::head(websocket::Opcode::Binary, frames.len());
            queue.extend_from_slice(&head[..length]);
        }
        queue.extend_from_slice(frames);
        self.wake.notify_one();
        Ok(())
    }

    /// Queues frames of the outer protocol.
    ///
    /// # Errors
    /// As [`Outgoing::urgent`].
    pub fn urgent_outer(&self, frames: &[u8]) -> io::Result<()> {
        let mut queue = self.urgent.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() + frames.len() > URGENT_LIMIT {
            return Err(io::Error::other("the client asks without reading the answers"));
        }
        queue.extend_from_slice(frames);
        self.wake.notify_one();
        Ok(())
    }

    /// Writes one frame: its head, and its body from where it lies.
    ///
    /// # Errors
    /// When the connection is broken, or a frame before was not ended.
    pub async fn data(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut line = self.line.lock().await;
        line.begin()?;
        let urgent = self.take_urgent();
        let (outer, outer_length) = match self.envelope {
            Envelope::None => ([0; websocket::HEAD], 0),
            Envelope::WebSocket => websocket::head(websocket::Opcode::Binary, head.len() + body.len()),
        };
        let mut parts = [
            IoSlice::new(&urgent),
            IoSlice::new(&outer[..outer_length]),
            IoSlice::new(head),
            IoSlice::new(body),
        ];
        line.write_all(&mut parts).await?;
        self.activity.touch();
        Ok(())
    }

    /// Writes what is urgent, for as long as the connection lives.
    ///
    /// # Errors
    /// When it is broken.
    pub async fn run(&self) -> io::Result<()> {
        loop {
            self.wake.notified().await;
            self.flush().await?;
        }
    }

    async fn flush(&self) -> io::Result<()> {
        let mut line = self.line.lock().await;
        let urgent = self.take_urgent();
        if urgent.is_empty() {
            return Ok(());
        }
        line.begin()?;
        line.write_all(&mut [IoSlice::new(&urgent)]).await?;
        self.activity.touch();
        Ok(())
    }

    /// Writes what is urgent, and tells the client that nothing follows.
    pub async fn close(&self) {
        let _ = self.flush().await;
        let mut line = self.line.lock().await;
        let _ = match &mut line.write {
            WriteHalf::Tcp(write) => write.shutdown().await,
            WriteHalf::Other(write) => write.shutdown().await,
        };
    }

    fn take_urgent(&self) -> Vec<u8> {
        std::mem::take(&mut *self.urgent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Line {
    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    }

    async fn write_all(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        match &mut self.write {
            WriteHalf::Tcp(write) => all(write, parts).await?,
            WriteHalf::Other(write) => {
                all(write, parts).await?;
                // TLS keeps what it could not write at once.
                write.flush().await?;
            }
        }
        self.torn = false;
        Ok(())
    }
}

async fn all(write: &mut (impl AsyncWrite + Unpin), mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let count = write.write_vectored(parts).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        IoSlice::advance_slices(&mut parts, count);
    }
    Ok(())
}
