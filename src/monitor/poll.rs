//! What the monitor waits for: epoll with typed sources.

use std::{io, os::fd::AsFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What became ready. Numbers are the monitor's own serials, never reused, so that a late event of something closed
/// finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Signals,
    Listener,
    Connection(u32),
    /// Output of a container: 0 is stdout or the terminal, 1 is stderr.
    Stream(u32, usize),
    /// A runtime operation.
    Job(u32),
    /// The socket of an attached client.
    Attach(u32),
    /// A pipe to an attached client that has room again, index as for `Stream`.
    Sink(u32, usize),
    /// A seccomp filter with a blocked call, or what leads to one.
    Notice(u32),
}

impl Source {
    fn token(self) -> u64 {
        let (kind, index, serial) = match self {
            Source::Signals => (0, 0, 0),
            Source::Listener => (1, 0, 0),
            Source::Connection(serial) => (2, 0, serial),
            Source::Stream(serial, index) => (3, index as u64 & 1, serial),
            Source::Job(serial) => (4, 0, serial),
            Source::Attach(serial) => (5, 0, serial),
            Source::Sink(serial, index) => (6, index as u64 & 1, serial),
            Source::Notice(serial) => (7, 0, serial),
        };
        kind << 40 | index << 32 | u64::from(serial)
    }

    fn from_token(token: u64) -> Option<Source> {
        #[allow(clippy::cast_possible_truncation)]
        let (index, serial) = ((token >> 32 & 1) as usize, token as u32);
        Some(match token >> 40 {
            0 => Source::Signals,
            1 => Source::Listener,
            2 => Source::Connection(serial),
            3 => Source::Stream(serial, index),
            4 => Source::Job(serial),
            5 => Source::Attach(serial),
            6 => Source::Sink(serial, index),
            7 => Source::Notice(serial),
            _ => return None,
        })
    }
}

/// The set of sources. Descriptors must be removed before they are closed: a helper that was just forked may hold a
/// copy, and would keep them alive in here.
#[derive(Debug)]
pub struct Poll(Epoll);

impl Poll {
    pub fn new() -> io::Result<Poll> {
        Ok(Poll(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))?)
    }

    /// Waits for room to write, and for nothing else.
    pub fn add_writer(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT, source.token()))?)
    }

    /// Whether to wait for room to write as well.
    pub fn want_write(&self, fd: impl AsFd, source: Source, write: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, write);
        Ok(self.0.modify(fd, &mut EpollEvent::new(flags, source.token()))?)
    }

    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Waits for at most `limit` milliseconds (for ever without), and puts what is ready into `ready`.
    pub fn wait(&self, limit: Option<u16>, ready: &mut Vec<Source>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        ready.clear();
        match self
            .0
            .wait(&mut events, limit.map_or(EpollTimeout::NONE, EpollTimeout::from))
        {
            Ok(count) => ready.extend(
                events[..count]
                    .iter()
                    .filter_map(|event| Source::from_token(event.data())),
            ),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Connection(7),
            Source::Stream(u32::MAX, 1),
            Source::Stream(3, 0),
            Source::Job(u32::MAX),
            Source::Attach(9),
            Source::Sink(8, 1),
            Source::Notice(6),
        ] {
            assert_eq!(Source::from_token(source.token()), Some(source));
        }
        assert_eq!(Source::from_token(u64::MAX), None);
    }
}
