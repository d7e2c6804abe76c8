//! The node: the one door for all faces. It owns the pods and containers, joins duplicate requests, keeps the work
//! going when a caller has gone, recovers at start and ends in order.
//!
//! It holds no protocol of a face and touches no mechanism itself: objects (`sandbox`, `containers`) and the image
//! store do. Read `pods.rs` for a pod's life from top to bottom.

mod checkpoints;
mod claims;
mod containers;
mod disk;
mod disk_usage;
pub mod doctor;
mod error;
mod events;
pub mod fsck;
mod history;
mod joined;
mod known;
mod networks;
mod operations;
mod over;
mod pinned;
mod plugins;
mod pods;
mod recovery;
mod sampler;
pub mod stats;
mod streams;
mod update;
mod watch;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

pub use checkpoints::{RestoreOrder, Restored};
pub use disk::Used;
pub use error::{Error, Result};
pub use events::{Event, Moment, Step, Subscription};
pub use history::{Ask, Listener};
use joined::Joined;
use known::Known;
pub use networks::NetworkView;
pub use operations::Operation;
pub use over::{KEEP_LOG, REMOVE};
pub use pinned::Pinned;
pub use sandbox::{HOSTS, Limits, NETWORKS};
pub use streams::{AttachOptions, ExecOptions, Input, Output, Session};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use wharf_proto::{
    api::{PullProgress, pull_progress},
    cri::AuthConfig,
    record::{self, Owner},
};

use crate::{
    config::{Config, Reloaded},
    containers::{Container, Tools},
    images::{self, Images},
    netns::NetworkStatus,
    nri::Asks,
    sandbox::{self, Mechanisms, Row, Sandbox},
    telemetry::carried,
};

/// How long shutdown waits for work in progress.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// What identifies a pod to whoever asks for it: two requests with the same key mean the same pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PodKey {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
    owner: i32,
}

/// What identifies a container within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ContainerKey {
    pod: String,
    name: String,
    attempt: u32,
}

/// A container and a state of it.
pub type Listed = (Arc<Container>, Arc<record::Container>);

/// All that runs on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tools: Arc<Tools>,
    pods: RwLock<HashMap<String, Arc<Sandbox>>>,
    containers: RwLock<Known>,
    pod_jobs: Arc<Joined<PodKey, Result<String>>>,
    container_jobs: Arc<Joined<ContainerKey, Result<String>>>,
    tasks: TaskTracker,
    ending: CancellationToken,
    disk: disk::Disk,
    /// Where the node's work is done, whoever asks for it.
    runtime: tokio::runtime::Handle,
    sampler: sampler::Sampler,
    events: events::Bus,
    operations: operations::Operations,
}

impl Node {
    /// Opens the node's state, takes over what still runs and takes down what is unfinished. `asks` are those of the
    /// plugins, where `tools` has some.
    ///
    /// # Errors
    /// When a room can't be opened. A single broken pod is logged and taken down, never an error.
    pub async fn open(tools: Tools, asks: Option<Asks>) -> Result<Self> {
        let tasks = TaskTracker::new();
        let (run_dir, boot_id) = (tools.mechanisms.roots.run.clone(), tools.mechanisms.boot_id.clone());
        let telemetry = tools.mechanisms.telemetry.clone();
        let owner = tasks.clone();
        let history = tokio::task::spawn_blocking(move || history::History::open(run_dir, &boot_id, &owner));
        let history = history
            .await
            .map_err(|error| Error::Internal(format!("read the events: {error}")))?;
        let node = Self {
            inner: Arc::new(Inner {
                tools: Arc::new(tools),
                pods: RwLock::default(),
                containers: RwLock::default(),
                pod_jobs: Arc::new(Joined::new(tasks.clone())),
                container_jobs: Arc::new(Joined::new(tasks.clone())),
                tasks,
                ending: CancellationToken::new(),
                disk: disk::Disk::default(),
                runtime: tokio::runtime::Handle::current(),
                sampler: sampler::Sampler::default(),
                events: events::Bus::new(history),
                operations: operations::Operations::new(telemetry),
            }),
        };
        node.recover().await?;
        node.follow_images();
        if let Some(asks) = asks {
            node.start_plugins(asks).await?;
        }
        Ok(node)
    }

    /// Ends the node's work in order. Pods keep running.
    pub async fn shut_down(&self) {
        self.inner.ending.cancel();
        self.inner.tasks.close();
        self.inner.events.history().end();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.inner.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                unfinished = self.inner.tasks.len(),
                "work did not end in time; the next start finishes it"
            );
        }
        // What was under way has been seen by them.
        self.end_plugins().await;
        // What all pods share is kept between them: taking it down takes longer than a pod's stop.
        if let Err(error) = self.mechanisms().networks.release_unused().await {
            tracing::warn!(%error, "could not take down the network that no pod uses");
        }
        let pods_left = !self
            .inner
            .pods
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if !pods_left && let Err(error) = sandbox::release_shared_cgroups().await {
            tracing::warn!(%error, "could not remove the cgroups that no pod uses");
        }
    }

    /// Has the history told what happens to images.
    fn follow_images(&self) {
        let Some(mut changes) = self.images().happenings() else {
            return;
        };
        let (history, ending) = (self.inner.events.history().clone(), self.inner.ending.clone());
        self.inner.tasks.spawn(async move {
            loop {
                tokio::select! {
                    change = changes.recv() => match change {
                        Some(change) => history.image(change),
                        None => return,
                    },
                    // What happens from here on is told by the next daemon.
                    () = ending.cancelled() => return,
                }
            }
        });
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.inner.tools.images
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.mechanisms().config.get()
    }

    /// Takes over what of a configuration can change while the daemon runs.
    pub fn reload(&self, wanted: &Config) -> Reloaded {
        self.mechanisms().config.reload(wanted)
    }

    /// How many listen to what happens to pods.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.inner.events.listeners()
    }

    /// How many of its own tasks have not ended.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Whether systemd makes the cgroups of new pods.
    #[must_use]
    pub fn has_systemd_cgroups(&self) -> bool {
        self.mechanisms().slice.is_some()
    }

    /// Whether pods of a handler (empty for the default) can get a user namespace.
    #[must_use]
    pub fn has_user_namespaces(&self, handler: &str) -> bool {
        let mechanisms = self.mechanisms();
        let features = mechanisms
            .runtime_features
            .known(mechanisms.config.get().resolve_handler(handler));
        features.user_namespaces() && self.inner.tools.host.user_namespaces()
    }

    /// Whether containers can have mounts that are read-only all the way down, whatever their handler.
    #[must_use]
    pub fn has_recursive_read_only(&self) -> bool {
        self.inner.tools.host.recursive_read_only()
    }

    /// Whether pods can get a network.
    #[must_use]
    pub fn network_status(&self) -> NetworkStatus {
        self.mechanisms().networks.status()
    }

    /// Operations under way, the oldest first.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.inner.operations.list()
    }

    /// Pulls an image; see [`Images::pull`]. `listener` hears how far it is; `lazily` counts more than the configuration, see
    /// [`Images::pull_until`].
    ///
    /// # Errors
    /// As there.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<AuthConfig>,
        listener: Option<UnboundedSender<PullProgress>>,
        lazily: Option<bool>,
    ) -> images::Result<String> {
        let stage = sandbox::Stage::default();
        let (progress, mut told) = unbounded_channel();
        let images = self.images();
        let pull = async {
            match lazily {
                None => images.pull(reference, auth, Some(progress)).await,
                Some(lazily) => images.pull_until(reference, auth, Some(progress), lazily).await,
            }
        };
        let hear = |progress: PullProgress| {
            match &progress.event {
                Some(pull_progress::Event::Resolved(_)) => stage.enter("layers"),
                Some(pull_progress::Event::Done(_)) => stage.enter("done"),
                _ => {}
            }
            // Whoever listened may have gone; others may still wait for the pull.
            listener.as_ref().map(|listener| listener.send(progress));
        };
        let work = async {
            tokio::pin!(pull);
            let pulled = loop {
                tokio::select! {
                    biased;
                    Some(progress) = told.recv() => hear(progress),
                    pulled = &mut pull => break pulled,
                }
            };
            while let Ok(progress) = told.try_recv() {
                hear(progress);
            }
            pulled
        };
        let since = std::time::Instant::now();
        let operations = &self.inner.operations;
        let pulled = operations.follow("PullImage", reference, "", &stage, work).await;
        self.mechanisms().telemetry.pull(pulled.is_ok(), since.elapsed());
        pulled
    }

    /// Every complete pod of the given owners. Waits for nothing.
    #[must_use]
    pub fn pods(&self, owners: &[Owner]) -> Vec<Arc<Sandbox>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values()
            .filter(|pod| owners.contains(&pod.owner) && pods::is_visible(&pod.record.get()) && !pod.claim.is_hidden())
            .cloned()
            .collect()
    }

    /// Every complete container in pods of the given owners. Waits for nothing.
    #[must_use]
    pub fn containers(&self, owners: &[Owner]) -> Vec<Arc<Container>> {
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers
            .values()
            .filter(|container| {
                owners.contains(&container.sandbox.owner)
                    && containers::is_visible(&container.record.get())
                    && !container.claim.is_hidden()
            })
            .cloned()
            .collect()
    }

    /// As [`Node::containers`], each with the state in which it was found; with `pod` only that pod's.
    #[must_use]
    pub fn listed(&self, owners: &[Owner], pod: Option<&str>) -> Vec<Listed> {
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        let listed = |container: &Arc<Container>| {
            let record = container.record.get();
            let wanted = owners.contains(&container.sandbox.owner)
                && containers::is_visible(&record)
                && !container.claim.is_hidden();
            wanted.then(|| (Arc::clone(container), record))
        };
        match pod {
            Some(pod) => containers.of_pod(pod).iter().filter_map(listed).collect(),
            None => {
                let mut all = Vec::with_capacity(containers.len());
                all.extend(containers.values().filter_map(listed));
                all
            }
        }
    }

    /// The rows of all containers that [`Node::containers`] has, pod by pod; with `pod` only that pod's. `encode` makes a state's
    /// bytes, when it is a new one.
    #[must_use]
    pub fn rows(
        &self,
        owners: &[Owner],
        pod: Option<&str>,
        encode: impl Fn(&record::Container, &mut Vec<u8>),
    ) -> Vec<Arc<Vec<Row>>> {
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        let rows = |of_pod: &[Arc<Container>]| {
            let sandbox = &of_pod.first()?.sandbox;
            let states = || {
                let shown = of_pod.iter().filter(|container| !container.claim.is_hidden());
                shown
                    .map(|container| container.record.get())
                    .filter(|record| containers::is_visible(record))
                    .collect()
            };
            owners
                .contains(&sandbox.owner)
                .then(|| sandbox.listing.rows(states, &encode))
        };
        match pod {
            Some(pod) => rows(containers.of_pod(pod)).into_iter().collect(),
            None => containers.pods().filter_map(rows).collect(),
        }
    }

    /// How many containers there are, of all owners, complete or not.
    fn containers_count(&self) -> usize {
        self.inner
            .containers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The pod with this id or unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Invalid`] when several ids begin so.
    pub fn pod(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = by_id(
            &self.inner.pods.read().unwrap_or_else(PoisonError::into_inner),
            "pod sandbox",
            id,
        );
        claims::told("pod sandbox", id, found?)
    }

    /// The container with this id or unambiguous beginning of an id.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = by_id(
            &self.inner.containers.read().unwrap_or_else(PoisonError::into_inner),
            "container",
            id,
        );
        claims::told("container", id, found?)
    }

    /// Takes the node's pod CIDR from kubelet: a CNI configuration is made of it if there is a template and no
    /// configuration.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not a list of ranges, or the template can't be used.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let set = self.mechanisms().networks.set_pod_cidr(cidr).await;
        set.map_err(|error| Error::Invalid(error.to_string()))
    }

    fn mechanisms(&self) -> &Mechanisms {
        &self.inner.tools.mechanisms
    }

    /// Every pod, complete or not.
    fn all_pods(&self) -> Vec<Arc<Sandbox>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// Every container, complete or not.
    fn all_containers(&self) -> Vec<Arc<Container>> {
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.values().cloned().collect()
    }

    /// The containers of one pod, complete or not.
    fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.of_pod(pod).to_vec()
    }

    /// Process id of the pod's oldest running container; 0 when none runs.
    #[must_use]
    pub fn first_pid(&self, pod: &Sandbox) -> i32 {
        let mut running: Vec<_> = self
            .containers_of(&pod.id)
            .into_iter()
            .filter(|container| container.pid() > 0)
            .collect();
        running.sort_by_key(|container| container.record.get().started_at);
        running.first().map_or(0, |container| container.pid())
    }

    fn insert_pod(&self, pod: &Arc<Sandbox>) {
        self.inner
            .pods
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.id.clone(), Arc::clone(pod));
    }

    fn forget_pod(&self, pod: &Sandbox) {
        self.inner
            .pods
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pod.id);
        self.tell_pod(pod);
    }

    fn insert_container(&self, container: &Arc<Container>) {
        let mut containers = self.inner.containers.write().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container);
    }

    fn forget_container(&self, container: &Container) {
        self.inner
            .containers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&container.id);
        self.tell_container(container);
    }

    /// Does on the node's own threads what takes a while; ends it when nobody waits for it any more.
    ///
    /// # Errors
    /// [`Error::Internal`] if it dies.
    pub async fn aside<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let task = AbortOnDropHandle::new(self.inner.runtime.spawn(work));
        task.await
            .map_err(|error| Error::Internal(format!("the operation's task ended: {error}")))
    }

    /// Tasks of the node and of all else that shares its threads.
    #[must_use]
    pub fn alive_tasks(&self) -> usize {
        self.inner.runtime.metrics().num_alive_tasks()
    }

    /// Runs `work` as the node's own: a caller that goes away does not end it (contract rule 37).
    async fn own<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        match self.inner.tasks.spawn_on(carried(work), &self.inner.runtime).await {
            Ok(result) => result,
            Err(error) => Err(Error::Internal(format!("the operation's task ended: {error}"))),
        }
    }
}

fn by_id<T>(objects: &HashMap<String, Arc<T>>, what: &'static str, id: &str) -> Result<Arc<T>> {
    if let Some(object) = objects.get(id) {
        return Ok(Arc::clone(object));
    }
    let absent = || Error::NotFound {
        what,
        id: id.to_owned(),
    };
    if id.is_empty() {
        return Err(absent());
    }
    let mut matches = objects.iter().filter(|(full, _)| full.starts_with(id));
    let (_, object) = matches.next().ok_or_else(absent)?;
    if matches.next().is_some() {
        return Err(Error::Invalid(format!("several {what} ids begin with {id:?}")));
    }
    Ok(Arc::clone(object))
}
