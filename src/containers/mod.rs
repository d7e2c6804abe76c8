//! Containers: the record of a container, its bundle, and what happens to it from create to remove.
//!
//! The room turns a CRI config into an OCI bundle (a pure function, `spec`) and asks the pod's monitor to run it. It
//! knows no requests and no lists. It asks `sandbox`, `images`, `monitor`, `runtime`, `cgroups` and `store`.

mod access;
mod archive;
mod asked;
pub mod base;
mod bound;
mod bundle;
pub mod caps;
pub mod cdi;
mod checkpoint;
pub mod cpus;
mod create;
mod disk_limit;
mod ending;
mod exec;
pub mod fuzzing;
pub mod hooks;
pub mod host;
mod image_volumes;
mod lazy;
mod limits;
pub mod nri;
mod passwd;
mod pause;
pub mod process;
mod rdt;
mod restore;
pub mod seccomp;
pub mod session;
pub mod signals;
pub mod spec;
mod start;
mod stuck;
mod update;
pub mod usage;
pub mod users;
mod volumes;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

pub use archive::{commit, export};
pub use checkpoint::{
    Patience, checkpoint,
    patience::DEFAULT_LIMIT as CHECKPOINT_LIMIT,
    pod::{self as pod_checkpoint, checkpoint_pod},
};
pub use create::{create, undo};
pub use ending::{ended, let_go, lost, release, remove, stop};
pub use exec::{Output, exec_sync};
pub use image_volumes::release_all as release_image_volumes;
pub use lazy::take_back;
pub use pause::{pause, resume};
pub use restore::Part;
pub use start::{reopen_log, start};
pub use update::update;
use wharf_proto::{
    monitor::{BlockedCall, ErrorKind, LogCountersReply},
    record,
};

use crate::{
    failpoint,
    images::{self, Images},
    monitor,
    monitor::client::Client,
    nri::Nri,
    sandbox::{Claim, Mechanisms, Sandbox, Stage, container_exit, container_record},
    store,
    store::{Published, Rendering},
};

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for can't be.
    #[error("{0}")]
    Invalid(String),
    /// Valid in CRI and not built yet.
    #[error("{0}")]
    Unsupported(String),
    /// The container, its pod or its image is not in the state that the operation needs.
    #[error("{0}")]
    State(String),
    /// The image is not on this node.
    #[error("image {0:?} is not on this node")]
    NoImage(String),
    /// The process could not be started; the container is EXITED with code 128 and reason StartError.
    #[error("start container {id}: {message}")]
    Start {
        /// The container's id.
        id: String,
        /// What the runtime said.
        message: String,
    },
    /// The command in the container could not be run.
    #[error("exec in container {id}: {message}")]
    Exec {
        /// The container's id.
        id: String,
        /// What the runtime said.
        message: String,
    },
    /// CRIU could not do it.
    #[error("checkpoint container {id}: {message}")]
    Checkpoint {
        /// The container's id.
        id: String,
        /// What it said.
        message: String,
    },
    /// A file of a pod's checkpoint.
    #[error("{attempt} for pod sandbox {id}: {source}")]
    Pod {
        /// What was tried.
        attempt: String,
        /// The pod's id.
        id: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The time given is over.
    #[error("{0}")]
    Deadline(String),
    /// A command has ended, and what it left running holds its output open.
    #[error("{0}")]
    HeldOpen(String),
    /// A record or directory of the container.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The image can't be used.
    #[error(transparent)]
    Image(images::Error),
    /// Root filesystem.
    #[error("root filesystem of container {id}: {source}")]
    Rootfs {
        /// The container's id.
        id: String,
        /// What the images room said.
        source: images::Error,
    },
    /// The pod's monitor.
    #[error("container {id}: {source}")]
    Monitor {
        /// The container's id.
        id: String,
        /// What the client said.
        source: monitor::Error,
    },
    /// A file of the container.
    #[error("{attempt} for container {id}: {source}")]
    Io {
        /// What was tried.
        attempt: String,
        /// The container's id.
        id: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What containers are made with. One for the whole daemon.
#[derive(Debug)]
pub struct Tools {
    /// What pods are made with.
    pub mechanisms: Arc<Mechanisms>,
    /// Images and root filesystems.
    pub images: Images,
    /// What the machine has, read once.
    pub host: host::Host,
    /// Devices that vendors describe.
    pub cdi: cdi::Registry,
    /// What is changed on the node's CPUs for single containers.
    pub cpus: Arc<cpus::Ledger>,
    /// Plugins, where they are served.
    pub nri: Option<Nri>,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made: Unix time, nanoseconds.
    pub created_at: i64,
    /// Its directory, which is also its OCI bundle.
    pub dir: PathBuf,
    /// The pod that it belongs to.
    pub sandbox: Arc<Sandbox>,
    /// Its record and newest state.
    pub record: Published<record::Container>,
    /// What its creation is at.
    pub stage: Stage,
    /// Whether anybody has been told of it.
    pub claim: Claim,
    /// Its line in lists of stats.
    pub stats_listed: Rendering<usage::Told>,
    /// Its part in lists of metrics.
    pub metrics_listed: Rendering<usage::MetricsTold>,
    meter: usage::Meter,
    /// Held while the container is started or removed.
    operation: tokio::sync::Mutex<()>,
    /// Held while a checkpoint is made.
    checkpointing: tokio::sync::Mutex<()>,
    /// Held while what an ended container holds is released: its exit and its removal both do so.
    release: tokio::sync::Mutex<()>,
    /// Held while the runtime forgets it: its release and its pod's stop both see to that.
    deletion: tokio::sync::Mutex<()>,
    /// Process id of its init as the node sees it; 0 when it does not run.
    pid: AtomicI32,
    /// System calls that its seccomp profile has blocked.
    blocked: Mutex<Vec<BlockedCall>>,
    /// The stop signal has been sent; it is sent once (contract rule 17).
    signalled: AtomicBool,
}

impl Container {
    /// A container as its record says.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, record: record::Container) -> Self {
        let dir = sandbox.paths.container(&record.id);
        Self {
            id: record.id.clone(),
            created_at: record.created_at,
            record: Published::ringing(container_record(&dir), record, sandbox.listing.bell.clone()),
            dir,
            stage: Stage::default(),
            claim: Claim::ringing(sandbox.listing.bell.clone()),
            sandbox,
            stats_listed: Rendering::default(),
            metrics_listed: Rendering::default(),
            meter: usage::Meter::default(),
            operation: tokio::sync::Mutex::new(()),
            checkpointing: tokio::sync::Mutex::new(()),
            release: tokio::sync::Mutex::new(()),
            deletion: tokio::sync::Mutex::new(()),
            pid: AtomicI32::new(0),
            blocked: Mutex::default(),
            signalled: AtomicBool::new(false),
        }
    }

    /// The newest state.
    pub fn state(&self) -> record::ContainerState {
        self.record.get().state()
    }

    /// Process id of its init as the node sees it; 0 when it does not run.
    pub fn pid(&self) -> i32 {
        if self.state() == record::ContainerState::ContainerRunning {
            self.pid.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// Its processes stand still.
    pub fn is_paused(&self) -> bool {
        self.record.get().paused
    }

    /// Somebody starts, removes or releases it.
    pub fn is_busy(&self) -> bool {
        self.operation.try_lock().is_err() || self.release.try_lock().is_err()
    }

    /// Takes over what the monitor says of its init.
    pub fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Takes over what the monitor says of blocked system calls.
    pub fn set_blocked(&self, calls: Vec<BlockedCall>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = calls;
    }

    /// System calls that its seccomp profile has blocked, where that is told.
    pub fn blocked(&self) -> Vec<BlockedCall> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its runtime hands over the seccomp filter that tells of blocked calls. As short as the monitor's own socket:
    /// the kernel takes 107 bytes.
    fn seccomp_socket(&self) -> PathBuf {
        let id = self.id.get(..11).unwrap_or(&self.id);
        self.sandbox.paths.run.join(format!("n{id}"))
    }

    fn exit_file(&self) -> PathBuf {
        container_exit(&self.dir)
    }

    fn io(&self, attempt: &str) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let (attempt, id) = (attempt.to_owned(), self.id.clone());
        move |source| Error::Io { attempt, id, source }
    }

    /// Where a test can make this container's work fail; see [`failpoint`].
    async fn fail_point(&self, name: &str) -> Result<()> {
        failpoint::reach(name).await.map_err(self.io("go on"))
    }

    fn monitor_error(&self) -> impl FnOnce(monitor::Error) -> Error + '_ {
        |source| Error::Monitor {
            id: self.id.clone(),
            source,
        }
    }

    /// What its log has taken and given; none when nobody can be asked any more, or answers within a second.
    pub async fn log_counters(&self) -> Option<LogCountersReply> {
        let monitor = self.sandbox.monitor()?;
        let asked = monitor.log_counters(&self.id);
        tokio::time::timeout(COUNTERS_LIMIT, asked).await.ok()?.ok()
    }

    /// The connection to the pod's monitor.
    fn monitor(&self) -> Result<Arc<Client>> {
        self.sandbox.monitor().ok_or_else(|| {
            let (pod, id) = (&self.sandbox.id, &self.id);
            Error::State(match self.sandbox.refusal() {
                Some(reason) => format!("container {id}: {reason}"),
                None => format!("the pod {pod} of container {id} has ended"),
            })
        })
    }

    /// Runs file work off the runtime's threads.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(self.io("run a step")(std::io::Error::other(error))),
        }
    }
}

/// How long a reader waits for counters.
const COUNTERS_LIMIT: Duration = Duration::from_secs(1);

/// Whether a monitor's answer means that the container has ended, or is not known any more.
fn is_gone(error: &monitor::Error) -> bool {
    matches!(
        error,
        monitor::Error::Refused {
            kind: ErrorKind::NotFound | ErrorKind::WrongState,
            ..
        }
    )
}

impl From<spec::Error> for Error {
    fn from(error: spec::Error) -> Self {
        match error {
            spec::Error::Unsupported(text) => Self::Unsupported(text),
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl From<cdi::Error> for Error {
    fn from(error: cdi::Error) -> Self {
        match error {
            cdi::Error::Name { .. } => Self::Invalid(error.to_string()),
            // The next try may find what a device plugin has written by then.
            cdi::Error::Unresolvable(_) | cdi::Error::Edit { .. } => Self::State(error.to_string()),
        }
    }
}

/// What a config names and the machine or the image does not have.
macro_rules! invalid_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Invalid(error.to_string())
            }
        })*
    };
}
invalid_from!(users::Error, host::Error, process::Error);

/// What the node's administrator has laid down and cannot be used: not the request's fault, and soon repaired.
macro_rules! state_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::State(error.to_string())
            }
        })*
    };
}
state_from!(base::Error, hooks::Error);
