//! The daemon's side of the monitor: start one, find one again, ask it, hear its events.

mod keeping;
pub mod passing;
mod program;
mod pulse;
mod queue;
mod spawn;
pub mod wedged;
mod wire;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::UnixStream, process::Child, sync::watch, task::AbortHandle};
use wharf_proto::monitor::{self as proto, ErrorKind, Request, reply::Result as Answer, request::Op};

pub use program::Program;

use super::{Error, OLDEST_PROTOCOL, Result, frame};
use pulse::Pulse;
use spawn::Order;
use wire::{Outgoing, Waiting};

/// How long a new monitor may take until it answers.
const SPAWN_LIMIT: Duration = Duration::from_secs(10);

/// How long a monitor may take to do what needs no other program: signals, files, forgetting. Longer means that it is
/// stopped or stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer may take before the monitor is asked whether it is there, and how long the answer to that.
const SUSPECT: Duration = Duration::from_secs(3);

/// What a new monitor is told.
#[derive(Clone, Copy, Debug)]
pub struct SpawnOptions<'a> {
    /// The pod it serves.
    pub pod_id: &'a str,
    /// Where it listens. A stale file is replaced; the directory must exist.
    pub socket: &'a Path,
    /// Hold a PID namespace that the pod's containers share (`HelloReply::pod_init`).
    pub pid_namespace: bool,
    /// The user namespace that owns it; `None` for the node's.
    pub user_namespace: Option<&'a Path>,
    /// cgroup of the monitor below each hierarchy's root; `None` for `/wharf-monitors`.
    pub cgroup: Option<&'a str>,
}

/// Something that happened without being asked for. Dropped by the monitor while no daemon is connected: what was
/// missed stands in the next `HelloReply` (containers) or is gone (execs).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A container's init ended; its exit file is written.
    ContainerExited(proto::ContainerExited),
    /// A container's seccomp profile has blocked system calls.
    CallsBlocked(proto::CallsBlocked),
    /// An exec's process ended.
    ExecExited(proto::ExecExited),
}

/// Events of one monitor, in order. `recv` gives `None` when the connection is closed: by the monitor's end, by a
/// newer connection, or by the drop of the [`Client`].
#[derive(Debug)]
pub struct Events(queue::Receiver<Event>);

impl Events {
    /// The next event; `None` after the connection has closed. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// A connection to one monitor. Requests may be made from many tasks at a time; each waits for its own answer only.
/// Dropping it closes the connection; the monitor and its containers go on.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    outgoing: queue::Sender<Outgoing>,
    waiting: Arc<Waiting>,
    pulse: Arc<Pulse>,
    next_id: AtomicU64,
    /// True once the connection has closed.
    closed: watch::Receiver<bool>,
    /// True once the process, a child of this one, was waited for. `None`: it is not our child.
    reaped: Option<watch::Receiver<bool>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.waiting.close();
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn io_error(attempt: &'static str, socket: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let object = socket.display().to_string();
    move |source| Error::Io {
        attempt,
        object,
        source,
    }
}

impl Client {
    /// Starts a monitor and connects to it. It lives on when the daemon dies, and is reaped when it ends first.
    ///
    /// # Errors
    /// When the socket can't be bound, the program can't be run or the monitor does not answer within 10 s.
    pub async fn spawn(program: &Program, options: SpawnOptions<'_>) -> Result<(Client, proto::HelloReply, Events)> {
        const ATTEMPT: &str = "start monitor at";
        let order = Order::new(program, options);
        let started = tokio::task::spawn_blocking(move || order.run()).await;
        let (child, stream) = started
            .map_err(std::io::Error::other)
            .and_then(|started| started)
            .map_err(io_error(ATTEMPT, options.socket))?;
        let (mut client, events) = Client::over(stream, options.socket).map_err(io_error(ATTEMPT, options.socket))?;
        client.own(child);
        let hello = client.hello(options.socket, ATTEMPT, SPAWN_LIMIT).await?;
        serves(&hello, options.socket)?;
        Ok((client, hello, events))
    }

    /// Connects to the monitor at `socket`, replacing any other connection. It may be of any version: see [`serves`].
    ///
    /// # Errors
    /// When nobody listens there, or no answer comes within `limit`.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<(Client, proto::HelloReply, Events)> {
        const ATTEMPT: &str = "connect to monitor at";
        let stream = spawn::connect(socket).map_err(io_error(ATTEMPT, socket))?;
        let (client, events) = Client::over(stream, socket).map_err(io_error(ATTEMPT, socket))?;
        let hello = client.hello(socket, ATTEMPT, limit).await?;
        Ok((client, hello, events))
    }

    fn over(stream: std::os::unix::net::UnixStream, socket: &Path) -> std::io::Result<(Client, Events)> {
        let (reader, writer) = UnixStream::from_std(stream)?.into_split();
        let (outgoing, frames) = queue::new();
        let (event_sender, events) = queue::new();
        let (close, closed) = watch::channel(false);
        let waiting = Arc::new(Waiting::new());
        let pulse = Arc::new(Pulse::new());
        let (shared, heard) = (Arc::clone(&waiting), Arc::clone(&pulse));
        let read = tokio::spawn(async move {
            wire::read(reader, &shared, &heard, event_sender).await;
            let _ = close.send(true);
        });
        let write = tokio::spawn(wire::write(writer, frames));
        let client = Client {
            socket: socket.to_owned(),
            outgoing,
            waiting,
            pulse,
            next_id: AtomicU64::new(1),
            closed,
            reaped: None,
            tasks: vec![read.abort_handle(), write.abort_handle()],
        };
        Ok((client, Events(events)))
    }

    /// Waits for the child in the background, so that it leaves no zombie. When the task is dropped first, the child
    /// is handed to the runtime's own reaper.
    fn own(&mut self, mut child: Child) {
        let (reap, reaped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let _ = child.wait().await;
            let _ = reap.send(true);
        });
        self.reaped = Some(reaped);
        self.tasks.push(task.abort_handle());
    }

    async fn hello(&self, socket: &Path, attempt: &'static str, limit: Duration) -> Result<proto::HelloReply> {
        let object = socket.display().to_string();
        let hello = Op::Hello(proto::Hello { version: version() });
        let answer = tokio::time::timeout(limit, self.ask(attempt, &object, hello, Vec::new())).await;
        match answer {
            Ok(Ok(Answer::Hello(hello))) => Ok(hello),
            Ok(Ok(_)) => Err(unexpected(attempt, &object)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                attempt,
                path: socket.to_owned(),
                seconds: limit.as_secs_f32(),
            }),
        }
    }

    async fn ask(&self, attempt: &'static str, object: &str, op: Op, descriptors: Vec<OwnedFd>) -> Result<Answer> {
        let closed = || Error::Closed {
            attempt,
            object: object.to_owned(),
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request { id, op: Some(op) };
        let mut bytes = Vec::new();
        frame::encode(&request, &mut bytes);
        if bytes.len() > frame::MAX_FRAME {
            return Err(Error::Protocol {
                attempt,
                object: object.to_owned(),
                message: format!("the request is {} bytes long", bytes.len()),
            });
        }
        let answer = self.waiting.expect(id).ok_or_else(closed)?;
        self.outgoing
            .send(Outgoing { bytes, descriptors })
            .map_err(|_| closed())?;
        match self.watched(answer).await {
            Ok(Answer::Error(error)) => Err(Error::Refused {
                attempt,
                object: object.to_owned(),
                kind: error.kind(),
                message: error.message,
            }),
            Ok(answer) => Ok(answer),
            Err(_) => Err(closed()),
        }
    }

    /// Waits for an answer. When it takes long, the monitor is asked whether it is there: starting a container may take
    /// any time, but a monitor never waits for it.
    async fn watched<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        let mut asked: Option<Instant> = None;
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = tokio::time::sleep(SUSPECT) => {}
            }
            match asked {
                Some(then) if !self.pulse.heard_since(then) => self.note_silence(then),
                _ => {
                    asked = Some(Instant::now());
                    self.tell(whether_there());
                }
            }
        }
    }

    fn note_silence(&self, asked: Instant) {
        if self.pulse.miss(asked) {
            tracing::error!(
                monitor = %self.socket.display(),
                "a pod's monitor does not answer: its process is stopped or stuck"
            );
        }
    }

    /// Asks the monitor whether it is there; false when it says nothing within `limit`. One that has ended is not silent.
    pub async fn answers(&self, limit: Duration) -> bool {
        let asked = Instant::now();
        let question = self.ask(
            "ask whether it is there",
            "the pod's monitor",
            whether_there(),
            Vec::new(),
        );
        let answered = tokio::time::timeout(limit, question).await.is_ok();
        if !answered {
            self.note_silence(asked);
        }
        answered
    }

    /// How long the monitor has not answered; `None` as far as it does.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.pulse.silent_for()
    }

    async fn ask_done(&self, attempt: &'static str, object: &str, op: Op) -> Result<()> {
        match tokio::time::timeout(ANSWER_LIMIT, self.ask(attempt, object, op, Vec::new())).await {
            Ok(Ok(Answer::Done(_))) => Ok(()),
            Ok(Ok(_)) => Err(unexpected(attempt, object)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                attempt,
                path: self.socket.clone(),
                seconds: ANSWER_LIMIT.as_secs_f32(),
            }),
        }
    }

    /// Creates and starts a container. When it can't be started, its exit file is written all the same (code 128,
    /// reason StartError) and it stands in `HelloReply` as ended until it is deleted.
    ///
    /// # Errors
    /// Kind `START_FAILED` when its process could not be started; others when the monitor could not try.
    pub async fn start(&self, request: proto::Start) -> Result<proto::Started> {
        const ATTEMPT: &str = "start container";
        let id = request.container_id.clone();
        match self.ask(ATTEMPT, &id, Op::Start(request), Vec::new()).await? {
            Answer::Started(started) => Ok(started),
            _ => Err(unexpected(ATTEMPT, &id)),
        }
    }

    /// Sends a signal to a container's init, or to all its processes. An ended container: kind `WRONG_STATE`.
    ///
    /// # Errors
    /// As the monitor answers.
    pub async fn kill(&self, container_id: &str, signal: i32, all: bool) -> Result<()> {
        let kill = proto::Kill {
            container_id: container_id.to_owned(),
            signal,
            all,
        };
        self.ask_done("kill container", container_id, Op::Kill(kill)).await
    }

    /// Runs a process in a container and gives its pid. `descriptors` are its stdin, stdout and stderr, or with
    /// `terminal` one socket on which the terminal's master is sent back, before this answer. The end comes as
    /// [`Event::ExecExited`], always after the answer.
    ///
    /// # Errors
    /// Kind `START_FAILED` when the process could not be started, `NOT_FOUND`, `WRONG_STATE`.
    pub async fn exec(&self, request: proto::Exec, descriptors: Vec<OwnedFd>) -> Result<i32> {
        const ATTEMPT: &str = "exec in container";
        let id = request.container_id.clone();
        match self.ask(ATTEMPT, &id, Op::Exec(request), descriptors).await? {
            Answer::ExecStarted(started) => Ok(started.pid),
            _ => Err(unexpected(ATTEMPT, &id)),
        }
    }

    /// Ends an exec's process and all its descendants. An unknown or ended exec: fine.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn kill_exec(&self, exec_id: &str) -> Result<()> {
        let kill = proto::KillExec {
            exec_id: exec_id.to_owned(),
        };
        self.ask_done("kill exec", exec_id, Op::KillExec(kill)).await
    }

    /// As [`Client::kill_exec`], without waiting for it: the request is sent in the order of the others.
    pub fn kill_exec_soon(&self, exec_id: &str) {
        self.tell(Op::KillExec(proto::KillExec {
            exec_id: exec_id.to_owned(),
        }));
    }

    /// Sends a request whose answer nobody waits for. A monitor that has gone has nothing left to be told about.
    fn tell(&self, op: Op) {
        let request = Request {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            op: Some(op),
        };
        let mut bytes = Vec::new();
        frame::encode(&request, &mut bytes);
        let _ = self.outgoing.send(Outgoing {
            bytes,
            descriptors: Vec::new(),
        });
    }

    /// Connects a client to a container's streams. `descriptors` are a socket, on which [`passing::hear`] tells what the
    /// monitor says, and the writing ends of the pipes for what is wanted of stdout and stderr.
    ///
    /// # Errors
    /// Kind `NOT_FOUND`, `WRONG_STATE` when the container has ended, `UNKNOWN_OPERATION` by an older monitor.
    pub async fn attach(&self, request: proto::Attach, descriptors: Vec<OwnedFd>) -> Result<()> {
        const ATTEMPT: &str = "attach to container";
        let id = request.container_id.clone();
        match self.ask(ATTEMPT, &id, Op::Attach(request), descriptors).await? {
            Answer::Done(_) => Ok(()),
            _ => Err(unexpected(ATTEMPT, &id)),
        }
    }

    /// Freezes a running container and dumps it. It stays frozen, when that succeeds, until [`Client::thaw`]; the
    /// monitor thaws it when this connection ends or the container is sent a signal.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when it does not run or is being checkpointed, `FAILED` with the reason; it then runs on.
    pub async fn checkpoint(&self, request: proto::Checkpoint) -> Result<()> {
        const ATTEMPT: &str = "checkpoint container";
        let id = request.container_id.clone();
        match self.ask(ATTEMPT, &id, Op::Checkpoint(request), Vec::new()).await? {
            Answer::Done(_) => Ok(()),
            _ => Err(unexpected(ATTEMPT, &id)),
        }
    }

    /// Freezes a running container until [`Client::thaw`], for a checkpoint that says so; the monitor thaws it when this
    /// connection ends or the container is sent a signal.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when it does not run or is being checkpointed, `FAILED` when a process does not stand still,
    /// `UNKNOWN_OPERATION` by an older monitor.
    pub async fn freeze(&self, container_id: &str) -> Result<()> {
        let freeze = proto::Freeze {
            container_id: container_id.to_owned(),
        };
        self.ask_done("freeze container", container_id, Op::Freeze(freeze))
            .await
    }

    /// Lets a frozen container go on; gives up a checkpoint that is being made. Not frozen: fine.
    ///
    /// # Errors
    /// As the monitor answers.
    pub async fn thaw(&self, container_id: &str) -> Result<()> {
        let thaw = proto::Thaw {
            container_id: container_id.to_owned(),
        };
        self.ask_done("thaw container", container_id, Op::Thaw(thaw)).await
    }

    /// As [`Client::thaw`], without waiting for it.
    pub fn thaw_soon(&self, container_id: &str) {
        self.tell(Op::Thaw(proto::Thaw {
            container_id: container_id.to_owned(),
        }));
    }

    /// Opens the container's log file anew after a rotation.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when the container does not run; no file is made then.
    pub async fn reopen_log(&self, container_id: &str) -> Result<()> {
        let reopen = proto::ReopenLog {
            container_id: container_id.to_owned(),
        };
        self.ask_done("reopen log of container", container_id, Op::ReopenLog(reopen))
            .await
    }

    /// What a container's log has taken and given.
    ///
    /// # Errors
    /// Kind `NOT_FOUND`, `UNKNOWN_OPERATION` by an older monitor.
    pub async fn log_counters(&self, container_id: &str) -> Result<proto::LogCountersReply> {
        const ATTEMPT: &str = "ask for log counters of container";
        let request = Op::LogCounters(proto::LogCounters {
            container_id: container_id.to_owned(),
        });
        let asked = self.ask(ATTEMPT, container_id, request, Vec::new());
        match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(Ok(Answer::LogCounters(counters))) => Ok(counters),
            Ok(Ok(_)) => Err(unexpected(ATTEMPT, container_id)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                attempt: ATTEMPT,
                path: self.socket.clone(),
                seconds: ANSWER_LIMIT.as_secs_f32(),
            }),
        }
    }

    /// Makes the monitor forget an ended container and release what the runtime keeps of it. Unknown: fine.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` when it runs.
    pub async fn delete(&self, container_id: &str) -> Result<()> {
        let delete = proto::Delete {
            container_id: container_id.to_owned(),
        };
        self.ask_done("delete container", container_id, Op::Delete(delete))
            .await
    }

    /// Ends the monitor and the pod's init, and waits until they are gone.
    ///
    /// # Errors
    /// Kind `WRONG_STATE` while containers run.
    pub async fn shutdown(&self) -> Result<()> {
        self.ask_done("shut down", "the pod's monitor", Op::Shutdown(proto::Shutdown {}))
            .await?;
        for ended in [Some(&self.closed), self.reaped.as_ref()].into_iter().flatten() {
            // An error means that the sending task has ended: as good.
            let _ = ended.clone().wait_for(|ended| *ended).await;
        }
        Ok(())
    }

    /// Whether the connection has closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.waiting.is_closed()
    }
}

/// Whether a daemon of this version can serve the monitor that listens at `socket` and said `hello`.
///
/// # Errors
/// [`Error::Version`] when it is newer, or older than any that is served.
pub fn serves(hello: &proto::HelloReply, socket: &Path) -> Result<()> {
    let (theirs, ours) = (hello.version, version());
    if (OLDEST_PROTOCOL..=ours).contains(&theirs) {
        return Ok(());
    }
    Err(Error::Version {
        object: socket.display().to_string(),
        theirs,
        ours,
    })
}

/// The daemon's version of the protocol. In debug builds the environment's `WHARF_PROTOCOL_VERSION` is taken instead, for
/// tests of daemons beside monitors that are older or newer.
fn version() -> u32 {
    #[cfg(debug_assertions)]
    {
        static OTHER: std::sync::LazyLock<Option<u32>> =
            std::sync::LazyLock::new(|| std::env::var("WHARF_PROTOCOL_VERSION").ok()?.parse().ok());
        if let Some(other) = *OTHER {
            return other;
        }
    }
    super::PROTOCOL_VERSION
}

/// A question that every monitor answers at once, if only with an error: no container has an empty id.
fn whether_there() -> Op {
    Op::LogCounters(proto::LogCounters {
        container_id: String::new(),
    })
}

fn unexpected(attempt: &'static str, object: &str) -> Error {
    Error::Protocol {
        attempt,
        object: object.to_owned(),
        message: "an answer to something else".to_owned(),
    }
}

impl Error {
    /// The kind that the monitor gave, when it was the monitor that refused.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Error::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}
