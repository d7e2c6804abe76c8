//! Puts the many small writes of an HTTP/2 connection together.
//!
//! A client's frames are of 16 KiB at most unless it says otherwise (RFC 9113, section 4.2), and h2 writes and flushes each
//! one by itself: 48 system calls for the list of a thousand containers, each of which wakes the client. Here they are
//! copied into a buffer that is written when it is full, or when a flush comes with nothing new since the flush before.
//! h2 ends a burst with such a flush; should it not, the connection's task was woken to come to one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// So much is written at once: seven frames with their headers, and less than what malloc asks the kernel for.
const MANY: usize = 7 * (16384 + 9);
/// A write of so much is part of a burst: what comes alone is smaller, and not worth a copy.
const BURST: usize = 4096;

/// A connection whose writes are gathered.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    inner: S,
    /// What is to be written.
    held: Vec<u8>,
    /// How much of it has been.
    written: usize,
    /// The last write was large, and no flush has come since.
    in_burst: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            held: Vec::new(),
            written: 0,
            in_burst: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.held.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        this.in_burst = length >= BURST;
        if this.held.is_empty() && !this.in_burst {
            return Pin::new(&mut this.inner).poll_write_vectored(cx, parts);
        }
        if this.held.len() + length > MANY {
            ready!(this.poll_empty(cx))?;
        }
        if this.held.is_empty() {
            this.held.reserve(MANY);
        }
        // A frame longer than all that is held is taken in pieces.
        let before = this.held.len();
        for part in parts {
            let room = MANY - this.held.len();
            this.held.extend_from_slice(&part[..part.len().min(room)]);
        }
        Poll::Ready(Ok(this.held.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if std::mem::take(&mut this.in_burst) {
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_empty(cx))?;
        // A connection that rests holds no memory.
        this.held = Vec::new();
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, out)
    }
}

impl<S: Connected> Connected for Gathered<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::task::noop_waker_ref;

    use super::*;

    /// What was written, call by call; takes at most so many bytes, then none until it is given more room.
    #[derive(Debug, Clone, Default)]
    struct Wire(Arc<Mutex<(Vec<Vec<u8>>, usize)>>);

    impl Wire {
        fn with_room(room: usize) -> Self {
            Self(Arc::new(Mutex::new((Vec::new(), room))))
        }

        fn lengths(&self) -> Vec<usize> {
            self.0.lock().unwrap().0.iter().map(Vec::len).collect()
        }

        fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().0.concat()
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let (calls, room) = &mut *self.0.lock().unwrap();
            let count = bytes.len().min(*room);
            if count == 0 {
                return Poll::Pending;
            }
            *room -= count;
            calls.push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes and flushes as h2 does: each frame by itself, and a last flush.
    fn send(to: &mut Gathered<Wire>, frames: &[Vec<u8>]) {
        let mut cx = Context::from_waker(noop_waker_ref());
        for frame in frames {
            let mut left = frame.as_slice();
            while !left.is_empty() {
                let parts = [IoSlice::new(left)];
                let Poll::Ready(count) = Pin::new(&mut *to).poll_write_vectored(&mut cx, &parts) else {
                    panic!("there is room");
                };
                left = &left[count.unwrap()..];
            }
            assert!(Pin::new(&mut *to).poll_flush(&mut cx).is_ready());
        }
        assert!(Pin::new(&mut *to).poll_flush(&mut cx).is_ready());
    }

    fn frames(count: u8, length: usize) -> Vec<Vec<u8>> {
        (0..count).map(|n| vec![n; length]).collect()
    }

    #[test]
    fn a_burst_is_written_in_few_calls_and_in_order() {
        let wire = Wire::with_room(usize::MAX);
        let mut gathered = Gathered::new(wire.clone());
        let mut sent = frames(16, 16384 + 9);
        sent.push(vec![200; 30]);
        send(&mut gathered, &sent);
        assert_eq!(wire.bytes(), sent.concat());
        assert_eq!(wire.lengths(), [MANY, MANY, 2 * (16384 + 9) + 30]);
        assert_eq!(gathered.held.capacity(), 0, "nothing is kept");
    }

    #[test]
    fn what_comes_alone_is_written_at_once() {
        let wire = Wire::with_room(usize::MAX);
        let mut gathered = Gathered::new(wire.clone());
        send(&mut gathered, &frames(3, 100));
        assert_eq!(wire.lengths(), [100; 3]);
    }

    #[test]
    fn a_frame_larger_than_the_buffer_goes_in_pieces() {
        let wire = Wire::with_room(usize::MAX);
        let sent = frames(1, MANY + 1000);
        send(&mut Gathered::new(wire.clone()), &sent);
        assert_eq!(wire.bytes(), sent.concat());
    }

    #[test]
    fn a_wire_that_is_full_is_waited_for() {
        let wire = Wire::with_room(10_000);
        let mut gathered = Gathered::new(wire.clone());
        let mut cx = Context::from_waker(noop_waker_ref());
        let sent = vec![7; 16384];
        let parts = [IoSlice::new(&sent)];
        assert!(Pin::new(&mut gathered).poll_write_vectored(&mut cx, &parts).is_ready());
        // The first flush after a write waits for more; the second is meant.
        assert!(Pin::new(&mut gathered).poll_flush(&mut cx).is_ready());
        assert!(Pin::new(&mut gathered).poll_flush(&mut cx).is_pending());
        wire.0.lock().unwrap().1 = 10_000;
        assert!(Pin::new(&mut gathered).poll_flush(&mut cx).is_ready());
        assert_eq!(wire.bytes(), sent);
    }
}
