//! The disk below pods and containers (feature row I14): what they take of it, and what it has to offer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wharf_proto::record::Owner;

use super::{
    Error, Node, Result,
    sampler::{Ask, Topic},
    stats::{WALKS_LIMIT, limit},
};
use crate::{
    containers,
    images::{
        FsUsage,
        rootfs::{self, ContainerDisk, Space},
    },
    sandbox::{self, Measured, Taken, usage::blocking},
};

/// What was measured of the node's disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// All that is below the directory of pods.
    whole: Measured<FsUsage>,
    /// That directory alone, when a pass began.
    root: Measured<FsUsage>,
    space: Measured<Space>,
}

/// Disk in use.
#[derive(Debug)]
pub struct Used {
    /// How much, and where.
    pub usage: FsUsage,
    /// Since when it was so at the latest: Unix time, nanoseconds.
    pub at: i64,
}

impl Node {
    /// Disk that pods and containers take, with their writable layers. Of few it is measured: the first time that is waited
    /// for, later for a second, then the measurement before is the answer. Of many it is the sum of what passes have found,
    /// and waits for nothing.
    ///
    /// # Errors
    /// When their directories can't be read.
    pub async fn containers_usage(&self) -> Result<Used> {
        let count = self.containers_count();
        if self.ask_figures(Topic::Disk, count) == Ask::Newest
            && let Some(root) = self.inner.disk.root.newest()
        {
            return Ok(self.known_usage(&root));
        }
        let node = self.clone();
        self.own(async move { node.measured_usage().await }).await
    }

    fn known_usage(&self, root: &Taken<FsUsage>) -> Used {
        let everybody = &[Owner::Cri, Owner::User];
        let mut usage = root.value.clone();
        for pod in self.pods(everybody) {
            if let Some(files) = sandbox::usage::newest(&pod).files {
                usage.used_bytes += files.value.bytes;
                usage.inodes_used += files.value.inodes;
            }
        }
        for container in self.containers(everybody) {
            if let Some(disk) = containers::usage::newest(&container).layer {
                let ContainerDisk { layer, beside } = &disk.value;
                usage.used_bytes += layer.used_bytes + beside.bytes;
                usage.inodes_used += layer.inodes_used + beside.inodes;
            }
        }
        Used { usage, at: root.at }
    }

    async fn measured_usage(&self) -> Result<Used> {
        let disk = &self.inner.disk.whole;
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
        let taken = taken.ok_or_else(|| Error::Internal("the disk that containers take can't be measured".into()))?;
        Ok(Used {
            usage: taken.value.clone(),
            at: taken.at,
        })
    }

    /// Measures what lists of many tell of the node, before a pass over its pods.
    pub(super) async fn sample_node(&self, topics: &[Topic]) {
        if topics.contains(&Topic::Metrics) {
            self.space().await;
        }
        if topics.contains(&Topic::Disk) {
            let root = self.mechanisms().roots.pods();
            let look = || blocking(move || rootfs::directory_alone(&root).ok());
            self.inner.disk.root.now(&self.inner.tasks, limit(), look).await;
        }
    }

    /// What the filesystem that containers write to has to offer; None if it does not answer.
    pub async fn space(&self) -> Option<Arc<Taken<Space>>> {
        let root = self.mechanisms().roots.pods();
        let ask = || blocking(move || rootfs::space(&root).ok());
        self.inner.disk.space.now(&self.inner.tasks, limit(), ask).await
    }

    /// As [`Node::space`], as it was found last.
    pub(super) fn newest_space(&self) -> Option<Arc<Taken<Space>>> {
        self.inner.disk.space.newest()
    }
}
