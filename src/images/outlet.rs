//! Bytes that a blocking thread makes and a task takes, a few pieces ahead at most.

use std::io::{self, Write};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::Result;

/// Size of a piece, and how many wait to be taken.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// The taking end. The thread ends soon after this is dropped.
pub type Outflow = mpsc::Receiver<Result<Bytes>>;

/// Runs `produce` on a blocking thread; what it writes flows out, and at last its error, if it fails.
pub(super) fn outflow(produce: impl FnOnce(&mut Outlet) -> Result<()> + Send + 'static) -> Outflow {
    let (sender, receiver) = mpsc::channel(WAITING);
    spawn_blocking(move || {
        let mut outlet = Outlet {
            sender,
            piece: Vec::with_capacity(PIECE),
        };
        let done = produce(&mut outlet);
        let done = done.and_then(|()| outlet.flush().map_err(super::Error::io("send", "the stream")));
        if let Err(error) = done {
            // Whoever has gone does not want to know.
            let _ = outlet.sender.blocking_send(Err(error));
        }
    });
    receiver
}

/// The writing end.
pub(super) struct Outlet {
    sender: mpsc::Sender<Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.piece.len();
        let length = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let sent = self.sender.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has gone"))
    }
}
