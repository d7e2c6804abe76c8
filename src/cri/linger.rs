//! Closes a connection after its client.
//!
//! When the server has said all that it had to say, the client may not have read it yet, and may still write: a measure of the
//! way (PING), room for more (WINDOW_UPDATE), its own farewell. A socket that is closed already answers that with EPIPE, which
//! clients take for the end of all that they wait for, the answers that have come and that they have not read with it.
//! So only the sending side is closed at first, and what still comes is dropped until the client closes, or
//! [`LINGER`] is over.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tonic::transport::server::Connected;

/// How long a client has for reading the end.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// A connection whose shutdown ends when both sides are closed.
#[derive(Debug)]
pub(super) struct Lingering<S> {
    inner: S,
    /// Runs once our side is closed.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<S> Lingering<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, limit: None }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.limit.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let limit = this.limit.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut room = [0; 4096];
        loop {
            let mut dropped = ReadBuf::new(&mut room);
            // However it ends, all is said.
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut dropped)) {
                Ok(()) if !dropped.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, out)
    }
}

impl<S: Connected> Connected for Lingering<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn a_client_can_write_until_it_has_read_the_end() {
        let (server, mut client) = UnixStream::pair().unwrap();
        let mut server = Lingering::new(server);
        server.write_all(b"answer").await.unwrap();
        client.write_all(b"not read by anybody").await.unwrap();
        let closing = tokio::spawn(async move { server.shutdown().await });
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        for _ in 0..100 {
            client.write_all(&[0; 1000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert!(!closing.is_finished());
        drop(client);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stays_is_left() {
        let (server, client) = UnixStream::pair().unwrap();
        let begun = tokio::time::Instant::now();
        Lingering::new(server).shutdown().await.unwrap();
        assert!(begun.elapsed() >= LINGER);
        drop(client);
    }
}
