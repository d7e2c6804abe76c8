//! System calls that a container's seccomp profile blocks and tells of (seccomp_unotify(2), row C7): each is counted, and
//! answered as if the kernel did not have it.
//!
//! The runtime hands over the filter's descriptor on a socket, as the runtime specification says of `listenerPath`; so
//! does each process that is run in the container later.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{SockFlag, accept4},
};
use wharf_proto::monitor::BlockedCall;

use super::{poll::Poll, poll::Source, sys};
use crate::runtime::seccomp_compile;

/// Answers of one filter before others have their turn.
const TURN: usize = 64;

/// Filters of one container at a time: one for its init, and one for each process that is run in it. Each takes a
/// descriptor.
const MOST: usize = 1024;

/// After the last blocked call the container may live on for so long, so that its end names all of them.
const GRACE: Duration = Duration::from_secs(5);

/// After the first one no longer than this, however often it goes on.
const LIMIT: Duration = Duration::from_secs(30);

/// Time between two reports of counts.
const PAUSE: Duration = Duration::from_millis(250);

/// What is watched for one container.
#[derive(Debug)]
pub struct Notifier {
    path: PathBuf,
    watched: Vec<(u32, Watched)>,
    /// Architecture, number, how often.
    counts: Vec<(u32, u32, u64)>,
    stop: bool,
    stop_at: Option<Instant>,
    /// When the first call was blocked.
    since: Option<Instant>,
    /// Counts that were not told, and when the last ones were.
    untold: bool,
    told_at: Option<Instant>,
    /// The container is being ended because of what it called.
    pub stopping: bool,
}

#[derive(Debug)]
enum Watched {
    /// Where runtimes come.
    Socket(OwnedFd),
    /// A runtime that has not handed over yet.
    Connection(OwnedFd),
    /// A filter.
    Filter(OwnedFd),
}

impl Watched {
    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Socket(fd) | Self::Connection(fd) | Self::Filter(fd) => fd,
        }
    }
}

impl Notifier {
    /// Waits for runtimes at `path`. With `stop` the container is to be ended some seconds after its last blocked call.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open(path: &Path, stop: bool, serial: u32, poll: &Poll) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        let socket = OwnedFd::from(socket);
        poll.add(&socket, Source::Notice(serial))?;
        Ok(Self {
            path: path.to_owned(),
            watched: vec![(serial, Watched::Socket(socket))],
            counts: Vec::new(),
            stop,
            stop_at: None,
            since: None,
            untold: false,
            told_at: None,
            stopping: false,
        })
    }

    /// Whether `serial` is watched here.
    pub fn has(&self, serial: u32) -> bool {
        self.watched.iter().any(|(known, _)| *known == serial)
    }

    /// Something happened on `serial`. `next` gives serials for what is new.
    pub fn ready(&mut self, serial: u32, poll: &Poll, mut next: impl FnMut() -> u32) {
        let Some(at) = self.watched.iter().position(|(known, _)| *known == serial) else {
            return;
        };
        match &self.watched[at].1 {
            Watched::Socket(socket) => {
                // One at a time: the others make the socket ready again.
                let Ok(connection) = accept4(socket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) else {
                    return;
                };
                let serial = next();
                if self.watched.len() < MOST && poll.add(&connection, Source::Notice(serial)).is_ok() {
                    self.watched.push((serial, Watched::Connection(connection)));
                }
            }
            Watched::Connection(connection) => {
                let filter = sys::receive_seccomp_filter(connection.as_fd());
                if matches!(&filter, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                    return;
                }
                self.forget(at, poll);
                if let Ok(filter) = filter {
                    let serial = next();
                    if poll.add(&filter, Source::Notice(serial)).is_ok() {
                        self.watched.push((serial, Watched::Filter(filter)));
                    }
                }
            }
            Watched::Filter(_) => {
                if !self.answer(at) {
                    self.forget(at, poll);
                }
            }
        }
    }

    fn forget(&mut self, at: usize, poll: &Poll) {
        let (_, gone) = self.watched.swap_remove(at);
        poll.remove(gone.fd());
    }

    /// False when no process has the filter any more.
    fn answer(&mut self, at: usize) -> bool {
        for _ in 0..TURN {
            let Watched::Filter(filter) = &self.watched[at].1 else {
                return false;
            };
            // The kernel would wait for the next call, whatever the descriptor's flags.
            let mut ready = [PollFd::new(filter.as_fd(), PollFlags::POLLIN)];
            let events = match poll(&mut ready, PollTimeout::ZERO) {
                Ok(0) | Err(_) => return true,
                Ok(_) => ready[0].revents().unwrap_or(PollFlags::empty()),
            };
            if !events.contains(PollFlags::POLLIN) {
                return !events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
            }
            match sys::refuse_blocked_call(filter.as_fd()) {
                Ok((arch, number)) => self.count(arch, number),
                // The caller was killed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn count(&mut self, arch: u32, number: u32) {
        let known = self.counts.iter_mut().find(|(a, n, _)| (*a, *n) == (arch, number));
        match known {
            Some((.., count)) => *count += 1,
            None => self.counts.push((arch, number, 1)),
        }
        self.untold = true;
        if self.stop && !self.stopping {
            let now = Instant::now();
            let since = *self.since.get_or_insert(now);
            self.stop_at = Some((now + GRACE).min(since + LIMIT));
        }
    }

    /// Whether something is due by the clock.
    pub fn waits(&self) -> bool {
        self.untold || self.stop_at.is_some()
    }

    /// True once, when the container is to be ended.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.stop_at.is_some_and(|at| at <= now);
        if due {
            self.stop_at = None;
            self.stopping = true;
        }
        due
    }

    /// Counts that were not told yet, from time to time.
    pub fn news(&mut self, now: Instant) -> Option<Vec<BlockedCall>> {
        let early = self.told_at.is_some_and(|told| told + PAUSE > now);
        if !self.untold || early {
            return None;
        }
        self.untold = false;
        self.told_at = Some(now);
        Some(self.calls())
    }

    /// All that was blocked, by name.
    pub fn calls(&self) -> Vec<BlockedCall> {
        let mut calls: Vec<_> = self
            .counts
            .iter()
            .map(|(arch, number, count)| BlockedCall {
                name: seccomp_compile::name(*arch, *number).map_or_else(|| format!("call {number}"), str::to_owned),
                count: *count,
            })
            .collect();
        calls.sort_by(|a, b| a.name.cmp(&b.name));
        calls
    }

    /// For a person; empty when nothing was blocked.
    pub fn describe(&self) -> String {
        let calls = self.calls();
        if calls.is_empty() {
            return String::new();
        }
        let text: Vec<_> = calls
            .iter()
            .map(|call| format!("{} ({}x)", call.name, call.count))
            .collect();
        format!("Used forbidden syscalls: {}", text.join(", "))
    }

    /// The container has ended: nothing is watched any more, the counts stay.
    pub fn close(&mut self, poll: &Poll) {
        for (_, gone) in self.watched.drain(..) {
            poll.remove(gone.fd());
        }
        self.stop_at = None;
        self.untold = false;
        let _ = std::fs::remove_file(&self.path);
    }
}
