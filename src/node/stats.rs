//! What pods and containers use. A list is read side by side with a limit for each object: one whose figures don't come
//! keeps what was known of it, or is left out, and holds up nobody (contract rules 33, 35 and 36).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join, stream};
use wharf_proto::record::ContainerState;

use super::{Error, Node, Result};
use crate::{
    containers::{
        self, Container,
        usage::{Figures, metrics, writable_layer},
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
};

/// Objects that are read at once: enough to keep the disk and the cores busy, few enough to need few threads.
const READERS: usize = 16;
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

    /// Stats of those of `containers` that run.
    pub async fn running_stats(&self, containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        let walks = Instant::now() + WALKS_LIMIT;
        let running = containers.into_iter().filter(|container| is_running(container));
        stream::iter(running)
            .map(|container| self.stats_of(container, walks))
            .buffered(READERS)
            // It has ended meanwhile.
            .filter(|stats| std::future::ready(stats.sample.is_some()))
            .collect()
            .await
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
        let walks = Instant::now() + WALKS_LIMIT;
        stream::iter(pods)
            .map(|pod| self.stats_of_pod(pod, walks))
            .buffered(READERS)
            .collect()
            .await
    }

    async fn stats_of_pod(&self, pod: Arc<Sandbox>, walks: Instant) -> PodStats {
        let (mechanisms, tasks) = (self.mechanisms(), &self.inner.tasks);
        let containers = self.running_in(&pod).into_iter();
        let containers = stream::iter(containers).map(|container| self.stats_of(container, walks));
        let containers = containers
            .buffered(READERS)
            .filter(|stats| std::future::ready(stats.sample.is_some()))
            .collect::<Vec<_>>();
        let (network, own) = (
            network(mechanisms, &pod, tasks, limit()),
            own_usage(mechanisms, &pod, tasks, limit()),
        );
        let (containers, (network, own)) = join(containers, join(network, own)).await;
        let (sample, at) = match own {
            Some(taken) => (taken.value.clone(), taken.at),
            None => {
                let usages = containers.iter().filter_map(|stats| {
                    let sample = stats.sample.as_ref()?;
                    Some((stats.container.id.as_str(), &sample.value.usage))
                });
                (summed(&pod, usages), crate::store::now())
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
        stream::iter(pods)
            .map(|pod| async move {
                let containers = stream::iter(self.running_in(&pod))
                    .map(|container| self.metrics_of(container, walks))
                    .buffered(READERS)
                    .filter_map(std::future::ready)
                    .collect::<Vec<_>>();
                let network = network(self.mechanisms(), &pod, &self.inner.tasks, limit());
                let (containers, network) = join(containers, network).await;
                PodMetrics {
                    pod,
                    network,
                    containers,
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

    fn running_in(&self, pod: &Sandbox) -> Vec<Arc<Container>> {
        let mut containers = self.containers_of(&pod.id);
        containers.retain(|container| is_running(container));
        containers.sort_unstable_by_key(|container| container.record.get().created_at);
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

fn is_running(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}

fn limit() -> Instant {
    Instant::now() + COUNTERS_LIMIT
}
