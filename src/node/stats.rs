//! What pods and containers use. A list of few is read side by side with a limit for each object: one whose figures don't
//! come keeps what was known of it, or is left out, and holds up nobody (contract rules 33, 35 and 36). A list of many tells
//! what is known, and waits for nothing: see `sampler.rs`.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join, stream};
use wharf_proto::record::ContainerState;

use super::{
    Node,
    sampler::{Ask, Topic},
};
use crate::{
    cgroups::Usage,
    containers::{
        self, Container,
        usage::{Figures, metrics, writable_layer},
    },
    images::rootfs::ContainerDisk,
    netns::Counters,
    sandbox::{
        self, Sandbox, Taken,
        usage::{Sample, network, own_usage, summed},
    },
    store,
};

/// Objects that are read at once. The work is the kernel's and needs a core, so more would only cost threads; one that
/// hangs is left behind after its limit.
const READERS: usize = 4;
/// How long one object's counters may take.
const COUNTERS_LIMIT: Duration = Duration::from_secs(2);
/// How long walks of writable layers may hold up one call in all.
pub(super) const WALKS_LIMIT: Duration = Duration::from_secs(1);

/// What a container uses.
#[derive(Debug)]
pub struct ContainerStats {
    /// Whose.
    pub container: Arc<Container>,
    /// None if it does not run.
    pub sample: Option<Arc<Taken<Sample>>>,
    /// None if it could not be measured yet.
    pub layer: Option<Arc<Taken<ContainerDisk>>>,
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
    pub layer: Option<Arc<Taken<ContainerDisk>>>,
}

impl Node {
    /// Stats of one container, whatever its state.
    pub async fn container_stats(&self, container: Arc<Container>) -> ContainerStats {
        self.stats_of(container, Instant::now() + WALKS_LIMIT).await
    }

    /// Stats of those of `containers` that run.
    pub async fn running_stats(&self, mut containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        containers.retain(|container| is_running(container));
        match self.ask_figures(Topic::Stats, containers.len()) {
            Ask::Newest => containers.into_iter().filter_map(known_stats).collect(),
            Ask::Within(age) => {
                let node = self.clone();
                self.measuring(async move { node.measured_stats(containers, age).await })
                    .await
            }
        }
    }

    async fn measured_stats(&self, containers: Vec<Arc<Container>>, age: Duration) -> Vec<ContainerStats> {
        let walks = Instant::now() + WALKS_LIMIT;
        let all = stream::iter(containers).map(async |container| {
            match containers::usage::is_recent(&container, age) {
                true => known_stats(container),
                // Those without figures have ended meanwhile.
                false => Some(self.stats_of(container, walks).await).filter(|stats| stats.sample.is_some()),
            }
        });
        all.buffered(READERS).filter_map(std::future::ready).collect().await
    }

    async fn measuring<T: Default + Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let done = self.aside(work).await;
        done.inspect_err(|error| tracing::error!(%error, "figures could not be measured"))
            .unwrap_or_default()
    }

    /// Measures what lists of many tell of a container.
    pub(super) async fn sample_container(&self, container: &Arc<Container>, topic: Topic) {
        let (walks, owned) = (Instant::now() + WALKS_LIMIT, Arc::clone(container));
        match topic {
            Topic::Stats if is_running(container) => drop(self.stats_of(owned, walks).await),
            Topic::Metrics if is_running(container) => drop(self.metrics_of(owned, walks).await),
            Topic::Disk => drop(writable_layer(container, &self.inner.tasks, walks).await),
            Topic::Stats | Topic::Metrics => {}
        }
    }

    /// Measures what lists of many tell of a pod, after its containers.
    pub(super) async fn sample_pod(&self, pod: &Arc<Sandbox>, topic: Topic) {
        let (mechanisms, tasks) = (self.mechanisms(), &self.inner.tasks);
        match topic {
            Topic::Stats => {
                network(mechanisms, pod, Duration::ZERO, tasks, limit()).await;
                if own_usage(mechanisms, pod, Duration::ZERO, tasks, limit())
                    .await
                    .is_none()
                {
                    let stats: Vec<_> = self
                        .running_in(std::slice::from_ref(pod))
                        .into_iter()
                        .filter_map(known_stats)
                        .collect();
                    sandbox::usage::keep_sum(pod, summed(pod, usages(&stats)), tasks).await;
                }
            }
            Topic::Metrics => drop(network(mechanisms, pod, Duration::ZERO, tasks, limit()).await),
            Topic::Disk => drop(sandbox::usage::files(pod, tasks, limit()).await),
        }
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

    /// Stats of one pod and its running containers, measured now.
    pub async fn pod_stats_now(&self, pod: Arc<Sandbox>) -> Option<PodStats> {
        let pods = vec![pod];
        let containers = self.running_in(&pods);
        self.measured_pod_stats(pods, containers, Duration::ZERO).await.pop()
    }

    /// Stats of `pods` and their running containers.
    pub async fn pod_stats(&self, pods: Vec<Arc<Sandbox>>) -> Vec<PodStats> {
        let containers = self.running_in(&pods);
        match self.ask_figures(Topic::Stats, pods.len() + containers.len()) {
            Ask::Newest => {
                let mut containers = by_pod(containers.into_iter().filter_map(known_stats), |stats| &stats.container);
                let stats = |pod: Arc<Sandbox>| {
                    let containers = containers.remove(&address(&pod)).unwrap_or_default();
                    known_pod_stats(pod, containers)
                };
                pods.into_iter().map(stats).collect()
            }
            Ask::Within(age) => {
                let node = self.clone();
                self.measuring(async move { node.measured_pod_stats(pods, containers, age).await })
                    .await
            }
        }
    }

    async fn measured_pod_stats(
        &self,
        pods: Vec<Arc<Sandbox>>,
        containers: Vec<Arc<Container>>,
        age: Duration,
    ) -> Vec<PodStats> {
        let containers = self.measured_stats(containers, age).await;
        let mut containers = by_pod(containers.into_iter(), |stats| &stats.container);
        stream::iter(pods)
            .map(|pod| {
                let containers = containers.remove(&address(&pod)).unwrap_or_default();
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
        pod_with(pod, containers, own, network)
    }

    /// Metrics of `pods` and their running containers.
    pub async fn pod_metrics(&self, pods: Vec<Arc<Sandbox>>) -> Vec<PodMetrics> {
        let containers = self.running_in(&pods);
        match self.ask_figures(Topic::Metrics, pods.len() + containers.len()) {
            Ask::Newest => {
                let containers = containers.into_iter().filter_map(known_metrics);
                let mut containers = by_pod(containers, |metrics| &metrics.container);
                let metrics = |pod: Arc<Sandbox>| PodMetrics {
                    containers: containers.remove(&address(&pod)).unwrap_or_default(),
                    network: sandbox::usage::newest(&pod).network,
                    pod,
                };
                pods.into_iter().map(metrics).collect()
            }
            Ask::Within(age) => {
                let node = self.clone();
                self.measuring(async move { node.measured_metrics(pods, containers, age).await })
                    .await
            }
        }
    }

    async fn measured_metrics(
        &self,
        pods: Vec<Arc<Sandbox>>,
        containers: Vec<Arc<Container>>,
        age: Duration,
    ) -> Vec<PodMetrics> {
        self.space().await;
        let walks = Instant::now() + WALKS_LIMIT;
        let containers: Vec<_> = stream::iter(containers)
            .map(
                async |container| match containers::usage::has_recent_metrics(&container, age) {
                    true => known_metrics(container),
                    false => self.metrics_of(container, walks).await,
                },
            )
            .buffered(READERS)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let mut containers = by_pod(containers.into_iter(), |metrics| &metrics.container);
        stream::iter(pods)
            .map(|pod| {
                let containers = containers.remove(&address(&pod)).unwrap_or_default();
                async move {
                    let network = network(self.mechanisms(), &pod, age, &self.inner.tasks, limit()).await;
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
            metrics(&self.inner.tools, &container, self.newest_space(), tasks, limit()),
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
        let all = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        let of_pods = pods.iter().flat_map(|pod| all.of_pod(&pod.id));
        let mut containers: Vec<_> = of_pods.filter(|container| is_running(container)).cloned().collect();
        drop(all);
        containers.sort_unstable_by_key(|container| container.created_at);
        containers
    }
}

/// What was measured of a container last; None if that was not done yet.
fn known_stats(container: Arc<Container>) -> Option<ContainerStats> {
    let newest = containers::usage::newest(&container);
    Some(ContainerStats {
        sample: Some(newest.sample?),
        layer: newest.layer,
        container,
    })
}

/// As [`known_stats`].
fn known_metrics(container: Arc<Container>) -> Option<ContainerMetrics> {
    let newest = containers::usage::newest(&container);
    Some(ContainerMetrics {
        figures: newest.figures?,
        layer: newest.layer,
        container,
    })
}

fn known_pod_stats(pod: Arc<Sandbox>, containers: Vec<ContainerStats>) -> PodStats {
    let newest = sandbox::usage::newest(&pod);
    pod_with(pod, containers, newest.sample, newest.network)
}

fn pod_with(
    pod: Arc<Sandbox>,
    containers: Vec<ContainerStats>,
    own: Option<Arc<Taken<Sample>>>,
    network: Option<Arc<Taken<Vec<Counters>>>>,
) -> PodStats {
    let (sample, at) = match own {
        Some(taken) => (taken.value.clone(), taken.at),
        None => (summed(&pod, usages(&containers)), store::now()),
    };
    PodStats {
        pod,
        at,
        sample,
        network,
        containers,
    }
}

fn usages(stats: &[ContainerStats]) -> impl Iterator<Item = (&str, &Usage)> {
    stats.iter().filter_map(|stats| {
        let sample = stats.sample.as_ref()?;
        Some((stats.container.id.as_str(), &sample.value.usage))
    })
}

/// Sorts what was read of containers by their pods.
fn by_pod<T>(read: impl Iterator<Item = T>, container: fn(&T) -> &Arc<Container>) -> HashMap<usize, Vec<T>> {
    let mut pods: HashMap<_, Vec<T>> = HashMap::new();
    for one in read {
        pods.entry(address(&container(&one).sandbox)).or_default().push(one);
    }
    pods
}

/// There is one of each pod, so that this tells them apart.
fn address(pod: &Arc<Sandbox>) -> usize {
    Arc::as_ptr(pod).addr()
}

fn is_running(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}

pub(super) fn limit() -> Instant {
    Instant::now() + COUNTERS_LIMIT
}
