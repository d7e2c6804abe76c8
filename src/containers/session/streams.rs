//! The ends of a session's streams: pipes, or the master of a terminal.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

/// A descriptor that never waits, shared by those who read, write and resize it.
pub(super) type Shared = Arc<AsyncFd<OwnedFd>>;

/// What a process reads. [`AsyncWrite::poll_shutdown`] tells it that nothing more comes, where its kind has an end: a
/// pipe does, a terminal does not, and neither does the stdin of a container that outlives its clients (no
/// `stdin_once`); there the session ends soon after. Writing to a process that reads no more fails with `BrokenPipe`.
#[derive(Debug)]
pub struct Input {
    fd: Writing,
    ended: Option<CancellationToken>,
}

#[derive(Debug)]
enum Writing {
    Open(Shared),
    /// For [`AsFd`] after the shutdown: a pipe that nobody reads.
    Closed(OwnedFd),
}

/// What a process writes, until all who could write have gone.
#[derive(Debug)]
pub struct Output(Shared);

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes `fd` one that tokio can wait for.
fn shared(fd: OwnedFd, interest: Interest) -> io::Result<Shared> {
    set_nonblocking(&fd)?;
    // SAFETY: an `OwnedFd` is open, and is the same descriptor, until it is dropped; nothing replaces it in there.
    let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
    Ok(Arc::new(fd))
}

/// A descriptor to read from.
///
/// # Errors
/// When the kernel can't poll it.
pub(super) fn reader(fd: OwnedFd) -> io::Result<Shared> {
    shared(fd, Interest::READABLE)
}

/// A descriptor to write to.
///
/// # Errors
/// As [`reader`].
pub(super) fn writer(fd: OwnedFd) -> io::Result<Shared> {
    shared(fd, Interest::WRITABLE)
}

/// A terminal that no one else reads.
///
/// # Errors
/// As [`reader`].
pub(super) fn reader_and_writer(fd: OwnedFd) -> io::Result<Shared> {
    shared(fd, Interest::READABLE | Interest::WRITABLE)
}

/// The writing end of a pipe that nobody reads.
fn unread() -> io::Result<OwnedFd> {
    Ok(pipe2(OFlag::O_CLOEXEC)?.1)
}

impl Input {
    pub(super) fn new(fd: Shared) -> Self {
        Self {
            fd: Writing::Open(fd),
            ended: None,
        }
    }

    /// The input of a process that has none: writing fails with `BrokenPipe`.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn absent() -> io::Result<Self> {
        Ok(Self {
            fd: Writing::Closed(unread()?),
            ended: None,
        })
    }

    /// Cancels `ended` when it is shut down.
    pub(super) fn telling(mut self, ended: CancellationToken) -> Self {
        self.ended = Some(ended);
        self
    }
}

impl Output {
    pub(super) fn new(fd: Shared) -> Self {
        Self(fd)
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Writing::Open(fd) => fd.get_ref().as_fd(),
            Writing::Closed(fd) => fd.as_fd(),
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Writing::Open(fd) = &self.fd else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            let mut ready = ready!(fd.poll_write_ready(context))?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that nobody has open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.fd, Writing::Open(_)) {
            self.fd = Writing::Closed(unread()?);
        }
        if let Some(ended) = &self.ended {
            ended.cancel();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), room)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // How a terminal says that nobody has it open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}
