//! Pod sandboxes: the record of a pod, its namespaces, its files, its network and its monitor, from the first
//! directory to the last unmount.
//!
//! The room knows nothing of containers, requests or owners' rights. It asks the mechanisms (`netns`, `monitor`,
//! `store`, `config`) and is asked by `containers` and `node`.

mod cgroup;
mod claim;
pub mod files;
mod lent;
mod listing;
mod measured;
mod membership;
pub mod nri;
mod paths;
mod stage;
mod start;
mod teardown;
mod update;
pub mod usage;
mod users;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

pub use cgroup::{Place, of_container as container_cgroup, parent as cgroup_parent, slice};
pub use claim::Claim;
pub use lent::lend;
pub use listing::{Listing, Row};
pub use lsm::selinux::Labels;
pub use measured::{Measured, Taken};
pub use membership::{HOSTS, HostEntry, NETWORKS, connect, disconnect};
pub use paths::{PodPaths, Roots, container_exit, container_record};
pub use stage::Stage;
pub use start::{bring_up, check, visible_hostname};
pub use teardown::{release_shared_cgroups, remove, tear_down};
use tokio::sync::{oneshot, watch};
pub use update::{Limits, update};
pub use users::{same_users, users};
use wharf_proto::{
    cri::{LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, SeLinuxOption},
    monitor::HelloReply,
    record,
};

use crate::{
    cgroups::Hierarchies,
    config::{Config, Settings},
    failpoint, lsm, monitor,
    monitor::client::{Client, Program},
    netns,
    netns::Networks,
    runtime, store,
    store::{Published, Rendering},
    telemetry::Telemetry,
};

/// Why a pod could not be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for can't be.
    #[error("{0}")]
    Invalid(String),
    /// Valid in CRI and not built yet.
    #[error("{0}")]
    Unsupported(String),
    /// A record or directory of the pod.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// SELinux.
    #[error(transparent)]
    Selinux(#[from] lsm::selinux::Error),
    /// Namespaces or network.
    #[error("network of pod {pod}: {source}")]
    Network {
        /// The pod's id.
        pod: String,
        /// What the network room said.
        source: Box<netns::Error>,
    },
    /// The pod's monitor.
    #[error("monitor of pod {pod}: {source}")]
    Monitor {
        /// The pod's id.
        pod: String,
        /// What the client said.
        source: monitor::Error,
    },
    /// A file or mount of the pod.
    #[error("{attempt} for pod {pod}: {source}")]
    Io {
        /// What was tried.
        attempt: String,
        /// The pod's id.
        pod: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Parent of the cgroups of containers whose pod names none.
pub const DEFAULT_CGROUP_PARENT: &str = "/wharf";

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What pods are made with. One for the whole daemon.
#[derive(Debug)]
pub struct Mechanisms {
    /// The daemon's configuration, of which some may change.
    pub config: Settings,
    /// Where state lives.
    pub roots: Roots,
    /// Namespaces and networks.
    pub networks: Networks,
    /// The machine's cgroup hierarchies.
    pub cgroups: Hierarchies,
    /// SELinux, where containers get labels.
    pub selinux: Option<lsm::selinux::Selinux>,
    /// Wharf's own slice, where systemd makes the cgroups; None with the cgroupfs driver.
    pub slice: Option<String>,
    /// What monitors run.
    pub monitor_program: Program,
    /// What each runtime handler can do.
    pub runtime_features: runtime::features::Catalog,
    /// This boot of the kernel.
    pub boot_id: String,
    /// What is counted.
    pub telemetry: Telemetry,
}

/// Process ids of what runs for a pod beside its containers.
#[derive(Debug, Clone, Copy)]
pub struct Processes {
    /// The monitor.
    pub monitor: i32,
    /// The init of a shared PID namespace; 0 when the containers have their own.
    pub init: i32,
}

/// One pod.
#[derive(Debug)]
pub struct Sandbox {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Whose it is.
    pub owner: record::Owner,
    /// When it was made: Unix time, nanoseconds.
    pub created_at: i64,
    /// Where it is on disk.
    pub paths: PodPaths,
    /// Its record and newest state.
    pub record: Published<record::Pod>,
    /// Held while the pod is stopped or removed, so that only one teardown runs.
    pub teardown: tokio::sync::Mutex<()>,
    /// Held for reading while a container of the pod is made, and made undone; for writing while the pod's files go.
    pub creations: tokio::sync::RwLock<()>,
    /// What its creation is at.
    pub stage: Stage,
    /// Whether anybody has been told of it.
    pub claim: Claim,
    /// Its line in lists.
    pub listed: Rendering<Arc<record::Pod>>,
    /// Its part in lists of containers.
    pub listing: Listing,
    /// How figures name it.
    pub attributes: Rendering<Arc<record::Pod>>,
    /// Held while an image is mounted as a volume of the pod, or such a volume is released.
    pub image_volumes: tokio::sync::Mutex<()>,
    meter: usage::Meter,
    monitor: watch::Sender<Option<(Arc<Client>, Processes)>>,
    /// A monitor that this version can't serve, and why. The connection tells of its end.
    foreign: Mutex<Option<(Arc<Client>, String)>>,
    /// Since when its monitor has been waited for after the daemon's start.
    unreached: Mutex<Option<Instant>>,
    /// Commands that run in the pod's containers, and who waits for their exit code.
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
}

impl Sandbox {
    /// A pod as its record says, without a monitor yet.
    #[must_use]
    pub fn new(roots: &Roots, record: record::Pod) -> Self {
        let paths = roots.pod(&record.id);
        Self {
            id: record.id.clone(),
            owner: record.owner(),
            created_at: record.created_at,
            record: Published::new(paths.record(), record),
            paths,
            teardown: tokio::sync::Mutex::new(()),
            creations: tokio::sync::RwLock::new(()),
            stage: Stage::default(),
            claim: Claim::default(),
            listed: Rendering::default(),
            listing: Listing::default(),
            attributes: Rendering::default(),
            image_volumes: tokio::sync::Mutex::new(()),
            meter: usage::Meter::default(),
            monitor: watch::Sender::new(None),
            foreign: Mutex::default(),
            unreached: Mutex::default(),
            execs: Mutex::default(),
        }
    }

    /// The connection to the pod's monitor, while it has one.
    pub fn monitor(&self) -> Option<Arc<Client>> {
        self.monitor.borrow().as_ref().map(|(client, _)| Arc::clone(client))
    }

    /// The connection to the pod's monitor, waiting for it after the daemon's start; none when it does not come in time.
    pub async fn monitor_within(&self, limit: Duration) -> Option<Arc<Client>> {
        if self.refusal().is_some() {
            return None;
        }
        let mut changes = self.monitor.subscribe();
        let known = tokio::time::timeout(limit, changes.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.as_ref().map(|(client, _)| Arc::clone(client))
    }

    /// Remembers the connection to the pod's monitor and what it said of itself.
    pub fn set_monitor(&self, client: Arc<Client>, hello: &HelloReply) {
        let processes = Processes {
            monitor: hello.pid,
            init: hello.pod_init,
        };
        self.monitor.send_replace(Some((client, processes)));
        *self.unreached.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Notes that the monitor, which should be there, did not answer since `then`.
    pub fn note_unreached(&self, then: Instant) {
        let mut unreached = self.unreached.lock().unwrap_or_else(PoisonError::into_inner);
        unreached.get_or_insert(then);
    }

    /// How long the monitor has not answered; `None` when it does, or when there is none.
    #[must_use]
    pub fn monitor_silent_for(&self) -> Option<Duration> {
        match self.monitor() {
            Some(client) => client.silent_for(),
            None => {
                let unreached = self.unreached.lock().unwrap_or_else(PoisonError::into_inner);
                unreached.map(|since| since.elapsed())
            }
        }
    }

    /// Leaves the monitor at the other end of `client` alone, for the reason given. Its pod runs on, and can be taken down.
    pub fn refuse_monitor(&self, client: Arc<Client>, reason: String) {
        *self.foreign.lock().unwrap_or_else(PoisonError::into_inner) = Some((client, reason));
    }

    /// Why the pod's monitor is left alone, if it is.
    pub fn refusal(&self) -> Option<String> {
        let foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        foreign.as_ref().map(|(_, reason)| reason.clone())
    }

    /// Forgets the monitor, which has ended.
    pub fn forget_monitor(&self) {
        *self.foreign.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.monitor.send_replace(None);
        *self.unreached.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Nobody will tell of their end any more.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Kills a monitor that lives and does not answer. Whoever follows it settles its containers.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn end_wedged_monitor(&self) -> Result<()> {
        tracing::error!(
            pod = self.id,
            "the pod's monitor does not answer and is killed; its containers end with it"
        );
        monitor::client::wedged::kill(&self.id, &self.paths.monitor())
            .await
            .map_err(self.io("kill the monitor that does not answer"))
    }

    /// Kills what a monitor that has ended had forked for an operation under way.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn end_helpers(&self) -> Result<()> {
        monitor::client::wedged::kill(&self.id, &self.paths.monitor())
            .await
            .map_err(self.io("kill the helpers of a monitor that has ended"))
    }

    /// The pod's own processes, while it has a monitor.
    pub fn processes(&self) -> Option<Processes> {
        self.monitor.borrow().as_ref().map(|(_, processes)| *processes)
    }

    /// Announces a command, before it is started: the receiver gets its exit code, or nothing if the monitor ends.
    pub fn expect_exec(&self, exec_id: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(exec_id.to_owned(), sender);
        receiver
    }

    /// Passes on the end of a command. One that nobody waits for any more is forgotten.
    pub fn exec_ended(&self, exec_id: &str, code: i32) {
        if let Some(waiting) = self
            .execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(exec_id)
        {
            let _ = waiting.send(code);
        }
    }

    /// Forgets a command that could not be started.
    pub fn forget_exec(&self, exec_id: &str) {
        self.execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(exec_id);
    }

    /// READY in CRI's sense: complete and not stopped.
    pub fn is_ready(&self) -> bool {
        self.record.get().state() == record::PodState::PodReady
    }

    fn io<'a>(&'a self, attempt: impl Into<String> + 'a) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io {
            attempt: attempt.into(),
            pod: self.id.clone(),
            source,
        }
    }

    /// Where a test can make this pod's work fail; see [`failpoint`].
    async fn fail_point(&self, name: &str) -> Result<()> {
        failpoint::reach(name).await.map_err(self.io("go on"))
    }

    fn network_error(&self) -> impl FnOnce(netns::Error) -> Error + '_ {
        |source| match source {
            // Wrong in what was asked for, not in the machine.
            netns::Error::Sysctl { .. }
            | netns::Error::Setting { .. }
            | netns::Error::PortMapping { .. }
            | netns::Error::Device { .. }
            | netns::Error::BadNetwork { .. } => Error::Invalid(source.to_string()),
            source => Error::Network {
                pod: self.id.clone(),
                source: Box::new(source),
            },
        }
    }

    /// What the network room needs to know of the pod.
    #[must_use]
    pub fn pod_network(&self, config: &Config) -> netns::PodNetwork {
        let handler = config.resolve_handler(&self.record.get().runtime_handler).to_owned();
        let record = self.record.get();
        let config = record.config.clone().unwrap_or_default();
        let metadata = config.metadata.unwrap_or_default();
        netns::PodNetwork {
            pod_id: self.id.clone(),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            netns: self.paths.namespaces().join("net"),
            hostname: config.hostname,
            port_mappings: config.port_mappings,
            dns: config.dns_config,
            annotations: config.annotations,
            labels: config.labels,
            cgroup_parent: cgroup::parent(&record).unwrap_or_default(),
            handler,
            ips: Vec::new(),
            mac: None,
            // Checked when the pod was asked for.
            networks: membership::networks(&record).unwrap_or_default(),
        }
    }
}

/// The namespace options of a pod; CRI's defaults (all per pod) when none are given.
#[must_use]
pub fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// The labels of the pod's own files and, with what it asks for itself, of a container in it. None without SELinux, and where
/// there is nothing to keep apart: a privileged pod, or one that sees the node's processes or shared memory.
///
/// # Errors
/// When what is asked for is no label.
pub fn labels(mechanisms: &Mechanisms, pod: &record::Pod, asked: Option<&SeLinuxOption>) -> Result<Option<Labels>> {
    match (&mechanisms.selinux, pod.selinux_level.as_str()) {
        (None, _) | (_, "") => Ok(None),
        (Some(selinux), level) => {
            let of_pod = security(pod.config.as_ref()).and_then(|context| context.selinux_options.as_ref());
            Ok(Some(selinux.labels(level, asked.or(of_pod))?))
        }
    }
}

fn security(config: Option<&PodSandboxConfig>) -> Option<&LinuxSandboxSecurityContext> {
    config?.linux.as_ref()?.security_context.as_ref()
}

/// The pod uses the node's network.
#[must_use]
pub fn host_network(config: &PodSandboxConfig) -> bool {
    namespace_options(config).network() == NamespaceMode::Node
}

/// The pod uses the node's IPC namespace and /dev/shm.
#[must_use]
pub fn host_ipc(config: &PodSandboxConfig) -> bool {
    namespace_options(config).ipc() == NamespaceMode::Node
}
