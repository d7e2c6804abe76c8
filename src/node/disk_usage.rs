//! What images and containers take on disk, for people (`wharf system df`).

use std::collections::HashMap;

use futures_util::{StreamExt as _, stream};
use wharf_proto::{
    api::{ContainerUsage, DiskUsageResponse, ImageUsage},
    record::{ContainerState, Owner},
};

use super::Node;

/// Containers that are measured at once.
const READERS: usize = 4;

impl Node {
    /// What each image and each container takes. Images from memory, containers by a walk of what they have written, each
    /// with the limit that stats have.
    pub async fn disk_usage(&self) -> DiskUsageResponse {
        let containers = self.containers(&[Owner::Cri, Owner::User]);
        let mut users: HashMap<String, u64> = HashMap::new();
        for container in &containers {
            *users.entry(container.record.get().image_id.clone()).or_default() += 1;
        }
        let pinned = self.pinned();
        let (sizes, layers_bytes) = self.images().sizes();
        let images = sizes.into_iter().map(|size| ImageUsage {
            id: size.image.id.clone(),
            names: size.image.tags.iter().chain(&size.image.digests).cloned().collect(),
            unique: size.unique,
            shared: size.shared,
            transferred: size.image.size,
            containers: users.get(&size.image.id).copied().unwrap_or_default(),
            pinned: pinned.has(&size.image),
            pulled_at: size.image.pulled_at,
        });
        let images = images.collect();
        let mut measured: Vec<ContainerUsage> = stream::iter(containers)
            .map(|container| async move {
                let layer = self.container_stats(container.clone()).await.layer;
                let record = container.record.get();
                let config = record.config.clone().unwrap_or_default();
                ContainerUsage {
                    id: container.id.clone(),
                    name: config.metadata.unwrap_or_default().name,
                    image_id: record.image_id.clone(),
                    running: record.state() == ContainerState::ContainerRunning,
                    measured_at: layer.as_ref().map_or(0, |layer| layer.at),
                    bytes: layer.as_ref().map_or(0, |layer| layer.value.layer.used_bytes),
                    inodes: layer.as_ref().map_or(0, |layer| layer.value.layer.inodes_used),
                    created_at: record.created_at,
                }
            })
            .buffer_unordered(READERS)
            .collect()
            .await;
        measured.sort_by_key(|usage| std::cmp::Reverse(usage.created_at));
        DiskUsageResponse {
            images,
            containers: measured,
            layers_bytes,
        }
    }
}
