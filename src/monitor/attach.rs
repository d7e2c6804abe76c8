//! What the monitor keeps of one attached client, and how output gets to it.
//!
//! The client's buffer is the kernel's pipe (1 MiB where the system allows it), so that it costs the monitor nothing. A
//! pipe that is full holds the container up, as a terminal does: a client that reads slowly gets everything. One that
//! has taken nothing for [`PATIENCE`] is cut off, so that it stops neither the log nor the other clients.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use super::{
    poll::{Poll, Source},
    sys,
};

/// How long a client that takes nothing may hold a container up.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Capacity asked for each pipe, bytes; the usual limit of the system.
const CAPACITY: usize = 1 << 20;

/// One attached client.
#[derive(Debug)]
pub struct Attach {
    pub serial: u32,
    pub container_id: String,
    /// Serial of the container; `None` before it was started.
    pub container: Option<u32>,
    pub wants_stdin: bool,
    /// It has been told of the container's input.
    pub introduced: bool,
    /// The client lives as long as this is connected.
    pub control: OwnedFd,
    /// Pipes for stdout and stderr.
    pub sinks: [Option<Sink>; 2],
}

/// The pipe for one stream.
#[derive(Debug)]
pub struct Sink {
    pipe: File,
    /// What had no room: at most what is read at once, or what a container left behind.
    pending: Vec<u8>,
    /// While something is pending: since when nothing was taken. The pipe is in the poll set then.
    stalled: Option<Instant>,
    /// The stream has ended; the pipe is closed when nothing is pending.
    pub ending: bool,
}

impl Sink {
    pub fn new(pipe: OwnedFd) -> io::Result<Sink> {
        sys::set_nonblocking(pipe.as_fd())?;
        sys::set_pipe_capacity(pipe.as_fd(), CAPACITY);
        Ok(Sink {
            pipe: pipe.into(),
            pending: Vec::new(),
            stalled: None,
            ending: false,
        })
    }

    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// The client has taken nothing for too long.
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.stalled.is_some_and(|since| now - since >= PATIENCE)
    }

    /// Gives the client `bytes`; what has no room is kept. Fails when it does not read any more.
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let taken = if self.pending.is_empty() { self.write(bytes)? } else { 0 };
        self.pending.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Gives the client what is kept for it.
    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let taken = self.write(&pending)?;
        if taken > 0 {
            self.stalled = self.stalled.map(|_| Instant::now());
        }
        if taken < pending.len() {
            self.pending = pending;
            self.pending.drain(..taken);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.pipe.write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}

impl Attach {
    pub fn is_stalled(&self) -> bool {
        self.sinks.iter().flatten().any(Sink::is_stalled)
    }

    pub fn is_stuck(&self, now: Instant) -> bool {
        self.sinks.iter().flatten().any(|sink| sink.is_stuck(now))
    }

    /// Works on the pipe of stream `index`; one that fails, or has ended and is empty, is closed.
    fn work(&mut self, poll: &Poll, index: usize, act: impl FnOnce(&mut Sink) -> io::Result<()>) {
        let Some(sink) = &mut self.sinks[index] else { return };
        let acted = act(sink);
        let stalled = !sink.pending.is_empty();
        if stalled && sink.stalled.is_none() {
            sink.stalled = Some(Instant::now());
            let _ = poll.add_writer(&sink.pipe, Source::Sink(self.serial, index));
        }
        let over = acted.is_err() || sink.ending && !stalled;
        if sink.stalled.is_some() && (over || !stalled) {
            sink.stalled = None;
            poll.remove(&sink.pipe);
        }
        if over {
            self.sinks[index] = None;
        }
    }

    /// The pipe of stream `index` has room again, or nobody reads it.
    pub fn relieve(&mut self, poll: &Poll, index: usize) {
        self.work(poll, index, Sink::flush);
    }

    /// Nothing more comes on stream `index`.
    pub fn end(&mut self, poll: &Poll, index: usize) {
        self.work(poll, index, |sink| {
            sink.ending = true;
            Ok(())
        });
    }

    /// Takes everything out of the poll set, before it is dropped.
    pub fn leave(&self, poll: &Poll) {
        poll.remove(&self.control);
        for sink in self.sinks.iter().flatten().filter(|sink| sink.is_stalled()) {
            poll.remove(&sink.pipe);
        }
    }
}

/// Gives a copy of `bytes`, from stream `index` of `container`, to everyone who is attached to it. Says whether all have
/// room for more.
pub fn spread(attaches: &mut [Attach], poll: &Poll, container: u32, index: usize, bytes: &[u8]) -> bool {
    let mut room = true;
    for attach in attaches.iter_mut().filter(|attach| attach.container == Some(container)) {
        attach.work(poll, index, |sink| sink.push(bytes));
        room &= !attach.sinks[index].as_ref().is_some_and(Sink::is_stalled);
    }
    room
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    #[test]
    fn a_full_pipe_keeps_the_rest_and_a_closed_one_is_dropped() {
        let poll = Poll::new().unwrap();
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut attach = Attach {
            serial: 1,
            container_id: "c".into(),
            container: Some(7),
            wants_stdin: false,
            introduced: false,
            control: std::fs::File::open("/dev/null").unwrap().into(),
            sinks: [Some(Sink::new(write).unwrap()), None],
        };
        let capacity = sys::pipe_capacity(read.as_fd());
        let text: Vec<u8> = (0..capacity + 1000).map(|n| n as u8).collect();
        let all = std::slice::from_mut(&mut attach);
        assert!(spread(all, &poll, 8, 0, &text), "another container's output");
        assert!(!spread(all, &poll, 7, 0, &text), "no room for all");
        attach.end(&poll, 0);
        assert!(attach.sinks[0].is_some(), "open until the rest was taken");
        let mut reader = File::from(read);
        let mut got = vec![0; capacity];
        reader.read_exact(&mut got).unwrap();
        let mut ready = Vec::new();
        poll.wait(Some(5000), &mut ready).unwrap();
        assert_eq!(ready, [Source::Sink(1, 0)]);
        attach.relieve(&poll, 0);
        assert!(attach.sinks[0].is_none() && !attach.is_stalled());
        reader.read_to_end(&mut got).unwrap();
        assert!(got == text);

        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        attach.sinks[1] = Some(Sink::new(write).unwrap());
        drop(read);
        assert!(spread(std::slice::from_mut(&mut attach), &poll, 7, 1, b"lost"));
        assert!(attach.sinks[1].is_none());
    }
}
