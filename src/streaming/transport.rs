//! The bytes below the protocols: a TCP connection, plain or with TLS, after its HTTP upgrade.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_rustls::server::TlsStream;

/// Room that is made before reading from a socket.
const READ_SIZE: usize = 128 << 10;

/// A client's connection.
#[derive(Debug)]
pub enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The half that reads.
pub enum ReadHalf {
    Tcp(OwnedReadHalf),
    /// With a second descriptor of the socket, if there is a socket.
    Other(Box<dyn AsyncRead + Send + Sync + Unpin>, Option<OwnedFd>),
}

/// The half that writes.
pub enum WriteHalf {
    Tcp(OwnedWriteHalf),
    Other(Box<dyn AsyncWrite + Send + Sync + Unpin>),
}

impl Transport {
    /// Both halves; `early` came before its time, with the upgrade.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn split(self, early: Bytes) -> io::Result<(Source, WriteHalf)> {
        let (read, write) = match self {
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Tls(stream) => {
                let socket = stream.get_ref().0.as_fd().try_clone_to_owned()?;
                let (read, write) = tokio::io::split(*stream);
                (
                    ReadHalf::Other(Box::new(read), Some(socket)),
                    WriteHalf::Other(Box::new(write)),
                )
            }
        };
        let buffer = BytesMut::from(early);
        Ok((Source { read, buffer }, write))
    }
}

/// Bytes that have come, and where more come from.
pub struct Source {
    read: ReadHalf,
    pub buffer: BytesMut,
}

impl Source {
    #[cfg(any(test, fuzzing))]
    pub fn new(read: impl AsyncRead + Send + Sync + Unpin + 'static) -> Self {
        Self {
            read: ReadHalf::Other(Box::new(read), None),
            buffer: BytesMut::new(),
        }
    }

    /// Reads some more into the buffer; false at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.buffer.capacity() - self.buffer.len() < READ_SIZE / 4 {
            self.buffer.reserve(READ_SIZE);
        }
        let count = match &mut self.read {
            ReadHalf::Tcp(read) => read.read_buf(&mut self.buffer).await?,
            ReadHalf::Other(read, _) => read.read_buf(&mut self.buffer).await?,
        };
        Ok(count > 0)
    }

    /// Completes when the client has closed the connection while nothing is read from it: the kernel knows, but tells
    /// readers only when they have read what came before.
    pub async fn hung_up(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let socket: Option<BorrowedFd<'_>> = match &self.read {
                ReadHalf::Tcp(read) => Some(read.as_ref().as_fd()),
                ReadHalf::Other(_, socket) => socket.as_ref().map(AsFd::as_fd),
            };
            if socket.is_some_and(is_hung_up) {
                return;
            }
        }
    }
}

fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let half_closed = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
    let closed = half_closed | PollFlags::POLLHUP | PollFlags::POLLERR;
    let mut fds = [PollFd::new(socket, half_closed)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && fds[0].revents().is_some_and(|events| events.intersects(closed))
}

macro_rules! each {
    ($self:expr, $kind:ident, $half:ident => $call:expr) => {
        match $self {
            $kind::Plain($half) => $call,
            $kind::Tls($half) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self, half => Pin::new(half).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Self, half => Pin::new(half).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self, half => Pin::new(half).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Self, half => Pin::new(half).poll_shutdown(cx))
    }
}
