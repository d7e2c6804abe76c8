//! What a container uses: its cgroup, its writable layer, its processes' descriptors. Nothing here waits for a lock of
//! the container; what does not answer in time is left at what was known before.

mod processes;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub use processes::Descriptors;
use tokio_util::task::TaskTracker;
use wharf_proto::record::{self, ContainerState};

use super::{Container, Tools};
use crate::{
    cgroups::{Cgroup, Depth, Rate},
    images::rootfs::{self, ContainerDisk, Space},
    sandbox::{
        Measured, Taken,
        usage::{Sample, blocking, sample},
    },
};

/// How long a caller waits for a walk of a writable layer when an older figure is there.
const WALK_PATIENCE: Duration = Duration::from_millis(100);

/// What was measured of a container.
#[derive(Debug, Default)]
pub struct Meter {
    stats: Measured<Sample>,
    metrics: Measured<Figures>,
    rate: Arc<Mutex<Rate>>,
    layer: Measured<ContainerDisk>,
}

/// What CRI's metrics are made from.
#[derive(Debug)]
pub struct Figures {
    /// The cgroup, read to the full depth.
    pub sample: Sample,
    /// What its processes hold open.
    pub descriptors: Descriptors,
    /// What the filesystem that it writes to had to offer shortly before.
    pub space: Option<Arc<Taken<Space>>>,
}

/// Usage of the container's cgroup; None if it does not run.
pub async fn stats(
    tools: &Tools,
    container: &Container,
    tasks: &TaskTracker,
    until: Instant,
) -> Option<Arc<Taken<Sample>>> {
    let cgroup = cgroup(tools, container)?;
    let rate = Arc::clone(&container.meter.rate);
    let read = || blocking(move || sample(&cgroup, &rate, Depth::Stats));
    container.meter.stats.now(tasks, until, read).await
}

/// What a list of stats tells of a container: its state, and two measurements.
pub type Told = (Arc<record::Container>, Arc<Taken<Sample>>, Arc<Taken<ContainerDisk>>);

/// What a list of metrics tells of a container.
pub type MetricsTold = (
    Arc<record::Container>,
    Arc<Taken<Figures>>,
    Option<Arc<Taken<ContainerDisk>>>,
);

/// What was measured last.
#[derive(Debug)]
pub struct Newest {
    /// By [`stats`].
    pub sample: Option<Arc<Taken<Sample>>>,
    /// By [`metrics`].
    pub figures: Option<Arc<Taken<Figures>>>,
    /// By [`writable_layer`].
    pub layer: Option<Arc<Taken<ContainerDisk>>>,
}

/// What was measured last, whenever that was.
#[must_use]
pub fn newest(container: &Container) -> Newest {
    let meter = &container.meter;
    Newest {
        sample: meter.stats.newest(),
        figures: meter.metrics.newest(),
        layer: meter.layer.newest(),
    }
}

/// Whether its [`stats`] were measured at most `age` ago, and its writable layer ever: that is repeated as often as it is
/// cheap.
#[must_use]
pub fn is_recent(container: &Container, age: Duration) -> bool {
    container.meter.stats.recent(age).is_some() && container.meter.layer.newest().is_some()
}

/// Whether its [`metrics`] were measured at most `age` ago.
#[must_use]
pub fn has_recent_metrics(container: &Container, age: Duration) -> bool {
    container.meter.metrics.recent(age).is_some()
}

/// As [`stats`], with all that metrics tell beside.
pub async fn metrics(
    tools: &Tools,
    container: &Container,
    space: Option<Arc<Taken<Space>>>,
    tasks: &TaskTracker,
    until: Instant,
) -> Option<Arc<Taken<Figures>>> {
    let cgroup = cgroup(tools, container)?;
    let (rate, init) = (Arc::clone(&container.meter.rate), container.pid());
    let read = || {
        blocking(move || {
            Some(Figures {
                sample: sample(&cgroup, &rate, Depth::Metrics)?,
                descriptors: processes::descriptors(init, &cgroup.pids()),
                space,
            })
        })
    };
    container.meter.metrics.now(tasks, until, read).await
}

/// Disk that the container has written, and all else in its directory. Where the file system counts, that is one question. Else a layer of few files is measured anew at each call; a big one as often as its
/// size allows, in the background, and the figure before is told meanwhile, with its time.
pub async fn writable_layer(
    container: &Container,
    tasks: &TaskTracker,
    until: Instant,
) -> Option<Arc<Taken<ContainerDisk>>> {
    let until = match container.meter.layer.newest() {
        Some(_) => until.min(Instant::now() + WALK_PATIENCE),
        None => until,
    };
    let (dir, id, project) = (
        container.dir.clone(),
        container.id.clone(),
        container.record.get().project,
    );
    let walk = || {
        blocking(move || match rootfs::container_disk(&dir, project) {
            Ok(usage) => Some(usage),
            // It is being removed.
            Err(error) => {
                tracing::debug!(container = id, %error, "the writable layer can't be measured");
                None
            }
        })
    };
    container.meter.layer.thriftily(tasks, until, walk).await
}

fn cgroup(tools: &Tools, container: &Container) -> Option<Cgroup> {
    let record = container.record.get();
    if record.state() != ContainerState::ContainerRunning {
        return None;
    }
    Cgroup::new(&tools.mechanisms.cgroups, &record.cgroup_path).ok()
}
