//! What pods and containers use. A list is read side by side with a limit for each object: one whose figures don't come
//! keeps what was known of it, or is left out, and holds up nobody (contract rules 33, 35 and 36).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join, stream};
use wharf_proto::record::ContainerState;

use super::{Error, Node, Result};
use crate::{
    containers::{
        self, Container,
        usage::{Figures, Recent, metrics, recent, writable_layer},
    },
    images::{
        FsUsage,
        rootfs::{self, Space},
    },
    netns::Counters,
    sandbox::{
        Measured, Sandbox, Taken,
        usage::{Sample, blocking, network, own_usage, summed},
    },
    store,
};

/// Objects that are read at once. The work is the kernel's and needs a core, so more would only cost threads; one that
/// hangs is left behind after its limit.
const READERS: usize = 4;
/// How long one object's counters may take.
const COUNTERS_LIMIT: Duration = Duration::from_secs(2);
/// How long walks of writable layers may hold up one call in all.
const WALKS_LIMIT: Duration = Duration::from_secs(1);

/// What a container uses.
#[derive(Debug)]
pub struct ContainerStats {
    /// Whose.
    pub container: Arc<Container>,
    /// None if it does not run.
    pub sample: Option<Arc<Taken<Sample>>>,
    /// None if it could not be measured yet.
    pub layer: Option<Arc<Taken<FsUsage>>>,
}

/// What a pod uses.
#[derive(Debug)]
pub struct PodStats {
    /// Whose.
    pub pod: Arc<Sandbox>,
    /// When the figures were taken: Unix time, nanoseconds.
    pub at: i64,
    /// Of the pod's own cgroup, else its containers' sum.
    pub sample: Sample,
    /// None for the node's network and for a pod that has ended.
    pub network: Option<Arc<Taken<Vec<Counters>>>>,
    /// Of its running containers.
    pub containers: Vec<ContainerStats>,
}

/// What metrics tell of a pod.
#[derive(Debug)]
pub struct PodMetrics {
    /// Whose.
    pub pod: Arc<Sandbox>,
    /// As [`PodStats::network`].
    pub network: Option<Arc<Taken<Vec<Counters>>>>,
    /// Of its running containers.
    pub containers: Vec<ContainerMetrics>,
}

/// What metrics tell of a container.
#[derive(Debug)]
pub struct ContainerMetrics {
    /// Whose.
    pub container: Arc<Container>,
    /// Counters.
    pub figures: Arc<Taken<Figures>>,
    /// As [`ContainerStats::layer`].
    pub layer: Option<Arc<Taken<FsUsage>>>,
}

/// What was measured of the node's disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    containers: Measured<FsUsage>,
    space: Measured<Space>,
}

impl Node {
    /// Stats of one container, whatever its state.
    pub async fn container_stats(&self, container: Arc<Container>) -> ContainerStats {
        self.stats_of(container, Instant::now() + WALKS_LIMIT).await
    }

    /// Stats of those of `containers` that run. Few are measured now, many a moment ago: see `sampler.rs`.
    pub async fn running_stats(&self, mut containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        containers.retain(|container| is_running(container));
        let age = self.acceptable_age(containers.len());
        let mut all: Vec<Option<ContainerStats>> = containers.iter().map(|container| sampled(container, age)).collect();
        let walks = Instant::now() + WALKS_LIMIT;
        let missing = std::iter::zip(containers, &mut all).filter(|(_, stats)| stats.is_none());
        stream::iter(missing)
            .for_each_concurrent(READERS, async |(container, stats)| {
                *stats = Some(self.stats_of(container, walks).await);
            })
            .await;
        // Those without figures have ended meanwhile.
        all.retain(|stats| stats.as_ref().is_some_and(|stats| stats.sample.is_some()));
        all.into_iter().flatten().collect()
    }

    /// Measures what lists of many tell of a container, if it runs.
    pub(super) async fn sample_container(&self, container: &Arc<Container>) {
        if is_running(container) {
            self.stats_of(Arc::clone(container), Instant::now() + WALKS_LIMIT).await;
        }
    }

    /// Measures what lists of many tell of a pod.
    pub(super) async fn sample_pod(&self, pod: &Sandbox) {
        let (mechanisms, tasks) = (self.mechanisms(), &self.inner.tasks);
        network(mechanisms, pod, Duration::ZERO, tasks, limit()).await;
        own_usage(mechanisms, pod, Duration::ZERO, tasks, limit()).await;
    }

    async fn stats_of(&self, container: Arc<Container>, walks: Instant) -> ContainerStats {
        let tasks = &self.inner.tasks;
        let (sample, layer) = join(
            containers::usage::stats(&self.inner.tools, &container, tasks, limit()),
            writable_layer(&container, tasks, walks),
        )
        .await;
        ContainerStats {
            container,
            sample,
            layer,
        }
    }

    /// Stats of `pods` and their running containers.
    pub async fn pod_stats(&self, pods: Vec<Arc<Sandbox>>) -> Vec<PodStats> {
        let age = self.acceptable_age(pods.len());
        let containers = self.running_stats(self.running_in(&pods)).await;
        let mut containers = by_pod(containers, |stats| &stats.container);
        stream::iter(pods)
            .map(|pod| {
                let containers = containers.remove(&pod.id).unwrap_or_default();
                self.stats_of_pod(pod, containers, age)
            })
            .buffered(READERS)
            .collect()
            .await
    }

    async fn stats_of_pod(&self, pod: Arc<Sandbox>, containers: Vec<ContainerStats>, age: Duration) -> PodStats {
        let (mechanisms, tasks) = (self.mechanisms(), &self.inner.tasks);
        let (network, own) = join(
            network(mechanisms, &pod, age, tasks, limit()),
            own_usage(mechanisms, &pod, age, tasks, limit()),
        )
        .await;
        let (sample, at) = match own {
            Some(taken) => (taken.value.clone(), taken.at),
            None => {
                let usages = containers.iter().filter_map(|stats| {
                    let sample = stats.sample.as_ref()?;
                    Some((stats.container.id.as_str(), &sample.value.usage))
                });
                (summed(&pod, usages), store::now())
            }
        };
        PodStats {
            pod,
            at,
            sample,
            network,
            containers,
        }
    }

    /// Metrics of `pods` and their running containers.
    pub async fn pod_metrics(&self, pods: Vec<Arc<Sandbox>>) -> Vec<PodMetrics> {
        let walks = Instant::now() + WALKS_LIMIT;
        let containers = stream::iter(self.running_in(&pods))
            .map(|container| self.metrics_of(container, walks))
            .buffered(READERS)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        let mut containers = by_pod(containers, |metrics| &metrics.container);
        stream::iter(pods)
            .map(|pod| {
                let containers = containers.remove(&pod.id).unwrap_or_default();
                async move {
                    let network = network(self.mechanisms(), &pod, Duration::ZERO, &self.inner.tasks, limit()).await;
                    PodMetrics {
                        pod,
                        network,
                        containers,
                    }
                }
            })
            .buffered(READERS)
            .collect()
            .await
    }

    async fn metrics_of(&self, container: Arc<Container>, walks: Instant) -> Option<ContainerMetrics> {
        let tasks = &self.inner.tasks;
        let (figures, layer) = join(
            metrics(&self.inner.tools, &container, tasks, limit()),
            writable_layer(&container, tasks, walks),
        )
        .await;
        Some(ContainerMetrics {
            container,
            figures: figures?,
            layer,
        })
    }

    /// The running containers of `pods`, oldest first.
    fn running_in(&self, pods: &[Arc<Sandbox>]) -> Vec<Arc<Container>> {
        let pods: HashSet<&str> = pods.iter().map(|pod| pod.id.as_str()).collect();
        let all = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        let wanted =
            |container: &&Arc<Container>| pods.contains(container.sandbox.id.as_str()) && is_running(container);
        let mut containers: Vec<_> = all.values().filter(wanted).cloned().collect();
        drop(all);
        containers.sort_by_cached_key(|container| container.record.get().created_at);
        containers
    }

    /// Disk that containers take, with their writable layers. The first measurement is waited for; later ones for a
    /// second, then the one before is the answer.
    ///
    /// # Errors
    /// When their directories can't be read.
    pub async fn containers_usage(&self) -> Result<Arc<Taken<FsUsage>>> {
        let disk = &self.inner.disk.containers;
        let patience = match disk.newest() {
            Some(_) => WALKS_LIMIT,
            None => Duration::from_secs(24 * 3600),
        };
        let root = self.mechanisms().roots.pods();
        let walk = || {
            blocking(move || {
                rootfs::usage(&root)
                    .inspect_err(|error| tracing::warn!(%error, "the disk that containers take can't be measured"))
                    .ok()
            })
        };
        let taken = disk.thriftily(&self.inner.tasks, Instant::now() + patience, walk).await;
        taken.ok_or_else(|| Error::Internal("the disk that containers take can't be measured".into()))
    }

    /// What the filesystem that containers write to has to offer; None if it does not answer.
    pub async fn space(&self) -> Option<Arc<Taken<Space>>> {
        let root = self.mechanisms().roots.pods();
        let ask = || blocking(move || rootfs::space(&root).ok());
        self.inner.disk.space.now(&self.inner.tasks, limit(), ask).await
    }
}

/// Stats of a container that were measured at most `age` ago.
fn sampled(container: &Arc<Container>, age: Duration) -> Option<ContainerStats> {
    let Recent { sample, layer } = recent(container, age)?;
    Some(ContainerStats {
        container: Arc::clone(container),
        sample: Some(sample),
        layer: Some(layer),
    })
}

/// Sorts what was read of containers by their pods.
fn by_pod<T>(read: Vec<T>, container: fn(&T) -> &Arc<Container>) -> HashMap<String, Vec<T>> {
    let mut pods: HashMap<String, Vec<T>> = HashMap::new();
    for one in read {
        pods.entry(container(&one).sandbox.id.clone()).or_default().push(one);
    }
    pods
}

fn is_running(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}

fn limit() -> Instant {
    Instant::now() + COUNTERS_LIMIT
}
