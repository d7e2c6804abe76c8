//! The monitor's loop and what it keeps.

mod attaches;
mod checkpoints;
mod ends;
mod jobs;
mod kept;
mod notices;
mod requests;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::{
        signalfd::SignalFd,
        socket::{SockFlag, accept4},
    },
};
use wharf_proto::monitor::{Reply, reply::Result as Answer};

use super::{
    attach::{self, Attach},
    cgroup::Roots,
    connection::Connection,
    container::{Container, Drained},
    notifier::Notifier,
    pod_init,
    poll::{Poll, Source},
    setup::{self, Notes, Options},
    sys, tree,
};
use crate::failpoint;
use ends::Unnamed;
use jobs::Job;
use kept::Kept;

use crate::memory;

/// Output read at once, bytes; the buffer exists only while there is output.
const READ: usize = 16 << 10;
/// Output taken from one stream before others have their turn, bytes.
const TURN: usize = 128 << 10;
/// Quiet time after which memory is given back.
const IDLE: Duration = Duration::from_secs(1);
/// How long output is read from processes that outlive their container's init.
const LINGER: Duration = Duration::from_secs(5);

/// A process started by Exec that runs.
struct Exec {
    id: String,
    pid: i32,
    /// The connection with which it ends.
    bound_to: Option<u32>,
    /// Of its container.
    cgroup_path: String,
}

impl Exec {
    /// Kills it with all its descendants.
    fn kill(&self, roots: &Roots) {
        tree::kill(self.pid, || match self.cgroup_path.as_str() {
            "" => Vec::new(),
            path => roots.pids(path),
        });
    }
}

/// Which request an answer belongs to. An answer for an older connection is dropped.
#[derive(Clone, Copy, Debug)]
struct Origin {
    connection: u32,
    id: u64,
}

/// The monitor of one pod.
pub struct Monitor {
    pod_id: String,
    socket: PathBuf,
    notes: Notes,
    roots: Roots,
    poll: Poll,
    signals: SignalFd,
    listener: OwnedFd,
    connection: Option<Connection>,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    attaches: Vec<Attach>,
    jobs: Vec<Job>,
    unnamed: Vec<Unnamed>,
    kept: Vec<Kept>,
    /// Pid 1 of the shared PID namespace; 0 without one.
    pod_init: i32,
    /// That pid 1 has ended: no process can be made in the namespace any more, so the pod is over.
    headless: bool,
    /// A Hello that waits for starts under way, and until when.
    greeting: Option<(Origin, Instant)>,
    next_serial: u32,
    buffer: Vec<u8>,
    /// Memory may be given back once nothing happens.
    warm: bool,
    ended: bool,
}

impl Monitor {
    /// Takes over the process.
    ///
    /// # Errors
    /// When the system does not give what a monitor needs.
    pub fn new(options: Options, notes: Notes) -> io::Result<Monitor> {
        let listener = setup::listener(&options.socket)?;
        let roots = Roots::find();
        setup::detach(&options, &roots)?;
        let signals = setup::child_signals()?;
        let pod_init = match (options.pid_namespace, &options.user_namespace) {
            (false, _) => 0,
            (true, None) => pod_init::start()?,
            (true, Some(owner)) => pod_init::start_in(owner)?,
        };
        let poll = Poll::new()?;
        sys::set_nonblocking(listener.as_fd())?;
        poll.add(&signals, Source::Signals)?;
        poll.add(&listener, Source::Listener)?;
        Ok(Monitor {
            pod_id: options.pod_id,
            socket: options.socket,
            notes,
            roots,
            poll,
            signals,
            listener,
            connection: None,
            containers: Vec::new(),
            execs: Vec::new(),
            attaches: Vec::new(),
            jobs: Vec::new(),
            unnamed: Vec::new(),
            kept: Vec::new(),
            pod_init,
            headless: false,
            greeting: None,
            next_serial: 0,
            buffer: Vec::new(),
            warm: true,
            ended: false,
        })
    }

    /// Serves until Shutdown.
    pub fn run(mut self) -> ExitCode {
        let mut ready = Vec::new();
        while !self.ended {
            if let Err(error) = self.poll.wait(self.patience(), &mut ready) {
                self.notes.say(&format!("wait for events: {error}"));
                return ExitCode::FAILURE;
            }
            if ready.is_empty() {
                self.rest();
            }
            let mut children = false;
            for &source in &ready {
                match source {
                    Source::Signals => children = true,
                    Source::Listener => self.accept(),
                    Source::Connection(serial) => self.serve(serial),
                    Source::Stream(serial, index) => self.read_output(serial, index),
                    Source::Job(serial) => self.finish_job(serial),
                    Source::Attach(serial) => self.detach(serial),
                    Source::Sink(serial, index) => self.relieve(serial, index),
                    Source::Notice(serial) => self.notice(serial),
                }
            }
            // Last, so that what a job has just named is known.
            if children {
                self.reap();
            }
            self.keep_time();
            // The ends of its containers come first; the daemon sees by this monitor's end that the pod is not ready.
            if self.headless && self.containers.iter().all(Container::has_exited) {
                self.ended = true;
            }
        }
        self.end()
    }

    /// Milliseconds to wait for events.
    fn patience(&self) -> Option<u16> {
        let waiting = |c: &Container| {
            let notices = c.notifier.as_ref().is_some_and(Notifier::waits);
            c.drain_until.is_some() || c.exit_unsaved || c.start_until.is_some() || notices
        };
        if self.greeting.is_some()
            || self.containers.iter().any(waiting)
            || self.attaches.iter().any(Attach::is_stalled)
        {
            Some(500)
        } else {
            self.warm.then_some(u16::try_from(IDLE.as_millis()).unwrap_or(u16::MAX))
        }
    }

    /// Nothing happens: memory goes back.
    fn rest(&mut self) {
        if self.warm {
            self.warm = false;
            self.buffer = Vec::new();
            self.attaches.shrink_to_fit();
            self.execs.shrink_to_fit();
            self.jobs.shrink_to_fit();
            self.kept.shrink_to_fit();
            for container in &mut self.containers {
                container.shrink();
            }
            memory::give_back();
        }
    }

    fn serial(&mut self) -> u32 {
        self.next_serial = self.next_serial.wrapping_add(1);
        self.next_serial
    }

    fn accept(&mut self) {
        loop {
            let socket = match accept4(&self.listener, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(socket) => socket,
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                Err(_) => return,
            };
            self.disconnect();
            let connection = Connection::new(self.serial(), socket);
            if self
                .poll
                .add(&connection, Source::Connection(connection.serial))
                .is_ok()
            {
                self.connection = Some(connection);
            }
        }
    }

    fn disconnect(&mut self) {
        if let Some(old) = self.connection.take() {
            self.poll.remove(&old);
            self.abandon_starting(old.serial);
            self.thaw_all_of(old.serial);
            for exec in self.execs.iter().filter(|exec| exec.bound_to == Some(old.serial)) {
                exec.kill(&self.roots);
            }
        }
    }

    /// Reads requests from, and writes answers to, the connection `serial`.
    fn serve(&mut self, serial: u32) {
        self.warm = true;
        loop {
            let Some(connection) = self.connection.as_mut().filter(|c| c.serial == serial) else {
                return;
            };
            let received = connection.flush().and_then(|()| connection.receive());
            match received {
                Ok(Some((request, descriptors))) => {
                    let origin = Origin {
                        connection: serial,
                        id: request.id,
                    };
                    self.request(origin, request.op, descriptors);
                }
                Ok(None) => break,
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.notes.say(&format!("connection given up: {error}"));
                    }
                    self.disconnect();
                    return;
                }
            }
        }
        self.watch_writable();
    }

    fn watch_writable(&self) {
        if let Some(connection) = &self.connection {
            let source = Source::Connection(connection.serial);
            let _ = self.poll.want_write(connection, source, connection.has_backlog());
        }
    }

    fn answer(&mut self, origin: Origin, result: Answer) {
        if self.connection.as_ref().is_some_and(|c| c.serial == origin.connection) {
            self.send(origin.id, result);
        }
    }

    /// Sends an answer or, with id 0, an event to whoever is connected.
    fn send(&mut self, id: u64, result: Answer) {
        self.warm = true;
        let reply = Reply {
            id,
            result: Some(result),
        };
        match self.connection.as_mut().map(|c| c.send(&reply)) {
            Some(Ok(())) => self.watch_writable(),
            Some(Err(_)) => self.disconnect(),
            None => {}
        }
    }

    /// Where a test can make the monitor hang or die; see [`failpoint`].
    fn fail_point(&self, name: &str) {
        if let Err(error) = failpoint::reach_now(name) {
            self.notes.say(&error.to_string());
        }
    }

    fn container(&mut self, serial: u32) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.serial == serial)
    }

    fn read_output(&mut self, serial: u32, index: usize) {
        self.warm = true;
        self.buffer.resize(READ, 0);
        let (attaches, poll) = (&mut self.attaches, &self.poll);
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return;
        };
        let pass = |bytes: &[u8]| attach::spread(attaches, poll, serial, index, bytes);
        match container.drain(index, TURN, &mut self.buffer, pass) {
            Drained::Open => {}
            Drained::Stalled => self.pause(serial, index),
            Drained::End => self.close_output(serial, index),
        }
    }

    fn close_output(&mut self, serial: u32, index: usize) {
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return;
        };
        if let Some(fd) = container.output_fd(index) {
            self.poll.remove(fd);
        }
        container.close_output(index);
        self.end_sinks(serial, index);
    }

    /// What is due by the clock.
    fn keep_time(&mut self) {
        let now = Instant::now();
        self.greet_late(now);
        self.keep_attaches(now);
        self.keep_notices(now);
        for at in 0..self.containers.len() {
            let container = &mut self.containers[at];
            if container.exit_unsaved {
                container.save_exit();
            }
            let open = container.outputs.iter().any(Option::is_some);
            if container.drain_until.is_some_and(|end| end <= now || !open) {
                container.drain_until = None;
                let serial = container.serial;
                self.close_output(serial, 0);
                self.close_output(serial, 1);
            }
        }
    }

    /// After Shutdown: the pod's init ends with its namespace, the socket goes.
    fn end(mut self) -> ExitCode {
        if let Some(connection) = &mut self.connection {
            let _ = connection.flush();
        }
        if self.pod_init > 0 {
            let _ = sys::kill(self.pod_init, libc::SIGKILL);
            // The namespace has ended when its init can be waited for: 2 s are far too long for that.
            for _ in 0..200 {
                self.reap();
                if self.pod_init == 0 {
                    break;
                }
                let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], 10u8);
            }
        }
        let _ = std::fs::remove_file(&self.socket);
        ExitCode::SUCCESS
    }
}
