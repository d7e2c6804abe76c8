//! The daemon's side of the monitor: start one, find one again, ask it, hear its events.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;
use wharf_proto::monitor as proto;

use super::Result;

/// The program that monitors run: this process's own executable, seen through a read-only mount of its own, so that
/// no process in a container can write to the file of the host by way of `/proc/PID/exe`. Made once per daemon.
#[derive(Debug)]
pub struct Program {
    #[allow(dead_code)]
    path: PathBuf,
}

impl Program {
    /// Prepares the executable of the running process.
    ///
    /// # Errors
    /// When `/proc/self/exe` can't be opened.
    pub fn current() -> Result<Program> {
        todo!()
    }

    /// Any executable that understands `monitor` as its first argument; for tests.
    #[must_use]
    pub fn at(path: PathBuf) -> Program {
        Program { path }
    }
}

/// What a new monitor is told.
#[derive(Clone, Copy, Debug)]
pub struct SpawnOptions<'a> {
    /// The pod it serves.
    pub pod_id: &'a str,
    /// Where it listens. A stale file is replaced; the directory must exist.
    pub socket: &'a Path,
    /// Hold a PID namespace that the pod's containers share (`HelloReply::pod_init`).
    pub pid_namespace: bool,
    /// cgroup of the monitor below each hierarchy's root; `None` for `/wharf-monitors`.
    pub cgroup: Option<&'a str>,
}

/// Something that happened without being asked for. Dropped by the monitor while no daemon is connected: what was
/// missed stands in the next `HelloReply` (containers) or is gone (execs).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A container's init ended; its exit file is written.
    ContainerExited(proto::ContainerExited),
    /// An exec's process ended.
    ExecExited(proto::ExecExited),
}

/// Events of one monitor, in order. `recv` gives `None` when the connection is closed: by the monitor's end, by a
/// newer connection, or by the drop of the [`Client`].
#[derive(Debug)]
pub struct Events(#[allow(dead_code)] mpsc::UnboundedReceiver<Event>);

impl Events {
    /// The next event; `None` after the connection has closed. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// A connection to one monitor. Requests may be made from many tasks at a time; each waits for its own answer only.
/// Dropping it closes the connection; the monitor and its containers go on.
#[derive(Debug)]
pub struct Client {}

#[allow(clippy::unused_async)]
impl Client {
    /// Starts a monitor and connects to it. It lives on when the daemon dies, and is reaped when it ends first.
    ///
    /// # Errors
    /// When the socket can't be bound, the program can't be run or the monitor does not answer within 10 s.
    pub async fn spawn(program: &Program, options: SpawnOptions<'_>) -> Result<(Client, proto::HelloReply, Events)> {
        let _ = (program, options);
        todo!()
    }

    /// Connects to the monitor at `socket`, replacing any other connection.
    ///
    /// # Errors
    /// When nobody listens there, or no answer comes within `limit`.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<(Client, proto::HelloReply, Events)> {
        let _ = (socket, limit);
        todo!()
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// Kind `START_FAILED` when its process could not be started; others when the monitor could not try.
    pub async fn start(&self, request: proto::Start) -> Result<proto::Started> {
        let _ = request;
        todo!()
    }

    /// Sends a signal to a container's init, or to all its processes. An ended container: kind `WRONG_STATE`.
    ///
    /// # Errors
    /// As the monitor answers.
    pub async fn kill(&self, container_id: &str, signal: i32, all: bool) -> Result<()> {
        let _ = (container_id, signal, all);
        todo!()
    }

    /// Runs a process in a container. `descriptors` are its stdin, stdout and stderr, or with `terminal` one socket
    /// on which the terminal's master is sent back. The end comes as [`Event::ExecExited`], always after this reply.
    ///
    /// # Errors
    /// Kind `START_FAILED` when the process could not be started, `NOT_FOUND`, `WRONG_STATE`.
    pub async fn exec(&self, request: proto::Exec, descriptors: Vec<OwnedFd>) -> Result<i32> {
        let _ = (request, descriptors);
        todo!()
    }

    /// Ends an exec's process and all its descendants. An unknown or ended exec: fine.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn kill_exec(&self, exec_id: &str) -> Result<()> {
        let _ = exec_id;
        todo!()
    }

    /// Opens the container's log file anew after a rotation.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when the container does not run; no file is made then.
    pub async fn reopen_log(&self, container_id: &str) -> Result<()> {
        let _ = container_id;
        todo!()
    }

    /// Makes the monitor forget an ended container and release what the runtime keeps of it. Unknown: fine.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when it runs.
    pub async fn delete(&self, container_id: &str) -> Result<()> {
        let _ = container_id;
        todo!()
    }

    /// Ends the monitor and the pod's init, and waits until the monitor has closed the connection.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` while containers run.
    pub async fn shutdown(&self) -> Result<()> {
        todo!()
    }

    /// Whether the connection has closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        todo!()
    }
}
