//! What a pod uses beside its containers' figures: its own cgroup, where kubelet made it one, and its network.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::task::TaskTracker;
use wharf_proto::record::{Pod, PodState};

use super::{Measured, Mechanisms, Sandbox, Taken, host_network, paths::CONTAINERS};
use crate::{
    cgroups::{Cgroup, Depth, Rate, Usage},
    images::rootfs::{self, Amount},
    netns::Counters,
};

/// How long a sum may take that is made already.
const SUM_LIMIT: Duration = Duration::from_secs(1);

/// What was read of a cgroup.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// The kernel's counters.
    pub usage: Usage,
    /// Cores in use since the sample before, in billionths; None at the first.
    pub nano_cores: Option<u64>,
}

/// What was measured of a pod.
#[derive(Debug, Default)]
pub struct Meter {
    cgroup: Measured<Sample>,
    rate: Arc<Mutex<Rate>>,
    network: Measured<Vec<Counters>>,
    files: Measured<Amount>,
    /// CPU time of every container that the pod has had: their sum must not fall when one is removed.
    spent: Mutex<BTreeMap<String, u64>>,
}

/// What was measured of a pod last.
#[derive(Debug)]
pub struct Newest {
    /// By [`own_usage`], or [`keep_sum`].
    pub sample: Option<Arc<Taken<Sample>>>,
    /// By [`network`].
    pub network: Option<Arc<Taken<Vec<Counters>>>>,
    /// By [`files`].
    pub files: Option<Arc<Taken<Amount>>>,
}

/// What was measured last, whenever that was.
#[must_use]
pub fn newest(sandbox: &Sandbox) -> Newest {
    Newest {
        sample: sandbox.meter.cgroup.newest(),
        network: sandbox.meter.network.newest(),
        files: sandbox.meter.files.newest(),
    }
}

/// Reads a cgroup and its rate; None if it is gone.
#[must_use]
pub fn sample(cgroup: &Cgroup, rate: &Mutex<Rate>, depth: Depth) -> Option<Sample> {
    let at = Instant::now();
    let usage = cgroup.usage(depth);
    if usage.is_empty() {
        return None;
    }
    let nano_cores = usage.cpu.and_then(|cpu| {
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.add(at, cpu.usage_ns)
    });
    Some(Sample { usage, nano_cores })
}

/// Usage of the pod's own cgroup, measured at most `age` ago; None where it has none, and its containers' sum must do.
pub async fn own_usage(
    mechanisms: &Mechanisms,
    sandbox: &Sandbox,
    age: Duration,
    tasks: &TaskTracker,
    until: Instant,
) -> Option<Arc<Taken<Sample>>> {
    let record = sandbox.record.get();
    let cgroup = Cgroup::new(&mechanisms.cgroups, &own_cgroup(&record)?).ok()?;
    let rate = Arc::clone(&sandbox.meter.rate);
    let read = || blocking(move || sample(&cgroup, &rate, Depth::Stats));
    sandbox.meter.cgroup.within(age, tasks, until, read).await
}

/// The sum of what the containers use, by their ids, as the usage of a pod without a cgroup of its own.
#[must_use]
pub fn summed<'a>(sandbox: &Sandbox, containers: impl Iterator<Item = (&'a str, &'a Usage)>) -> Sample {
    let at = Instant::now();
    let mut usage = Usage::default();
    let mut spent = sandbox.meter.spent.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, one) in containers {
        usage.add(one);
        if let Some(cpu) = one.cpu {
            spent.insert(id.to_owned(), cpu.usage_ns);
        }
    }
    let counter = spent.values().sum();
    if counter > 0 {
        // All of them may have ended.
        usage.cpu.get_or_insert_default();
    }
    let nano_cores = usage.cpu.as_mut().and_then(|cpu| {
        cpu.usage_ns = counter;
        let mut rate = sandbox.meter.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.add(at, counter)
    });
    Sample { usage, nano_cores }
}

/// Keeps [`summed`] as what was measured last.
pub async fn keep_sum(sandbox: &Sandbox, sum: Sample, tasks: &TaskTracker) {
    let sum = || std::future::ready(Some(sum));
    sandbox.meter.cgroup.now(tasks, Instant::now() + SUM_LIMIT, sum).await;
}

/// Disk that the pod takes beside its containers.
pub async fn files(sandbox: &Sandbox, tasks: &TaskTracker, until: Instant) -> Option<Arc<Taken<Amount>>> {
    let dir = sandbox.paths.state.clone();
    let walk = || blocking(move || rootfs::usage_beside(&dir, CONTAINERS).ok());
    sandbox.meter.files.thriftily(tasks, until, walk).await
}

/// Counters of the pod's network devices, read at most `age` ago; None for the node's network, whose figures are the
/// node's.
pub async fn network(
    mechanisms: &Mechanisms,
    sandbox: &Sandbox,
    age: Duration,
    tasks: &TaskTracker,
    until: Instant,
) -> Option<Arc<Taken<Vec<Counters>>>> {
    let record = sandbox.record.get();
    if record.state() != PodState::PodReady || record.config.as_ref().is_none_or(host_network) {
        return None;
    }
    let (networks, pod) = (mechanisms.networks.clone(), sandbox.id.clone());
    let netns = sandbox.paths.namespaces().join("net");
    let read = || async move {
        match networks.counters(netns).await {
            Ok(counters) => Some(counters),
            // It was stopped meanwhile, or its namespace is lost, which its next status tells.
            Err(error) => {
                tracing::debug!(pod, %error, "no network counters");
                None
            }
        }
    };
    sandbox.meter.network.within(age, tasks, until, read).await
}

/// Kubelet makes a cgroup for each pod and names it after the pod's uid. Any other parent may be shared: its usage would
/// be that of strangers too.
fn own_cgroup(record: &Pod) -> Option<String> {
    let metadata = record.config.as_ref()?.metadata.as_ref()?;
    let uid = metadata.uid.as_str();
    let path = super::cgroup::parent(record)?;
    let name = path.rsplit('/').next()?;
    // Shorter ones may be part of a name by chance. A slice's name has no dashes but those that part its levels.
    let is_own = uid.len() >= 8 && (name.contains(uid) || name.contains(&uid.replace('-', "_")));
    is_own.then_some(path)
}

/// Runs blocking work off the runtime's threads; None if it dies.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};

    use super::*;

    #[test]
    fn only_a_cgroup_that_bears_the_pods_uid_is_its_own() {
        let config = |uid: &str, parent: &str| Pod {
            config: Some(PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    uid: uid.into(),
                    ..Default::default()
                }),
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: parent.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let uid = "0b3c1f3e-8a5c-4d2e-9f6a-1c2d3e4f5a6b";
        let plain = format!("/kubepods/burstable/pod{uid}");
        let slice = format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"));
        for own in [&plain, &slice] {
            assert_eq!(own_cgroup(&config(uid, own)).as_deref(), Some(own.as_str()));
        }
        for (uid, foreign) in [(uid, "/system.slice"), (uid, ""), ("", &plain), ("1", "/pods/1")] {
            assert_eq!(own_cgroup(&config(uid, foreign)), None, "{foreign} of {uid:?}");
        }
    }
}
