//! Containers in CRI's words.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Status};
use wharf_proto::{
    cri::{
        Container as Item, ContainerConfig, ContainerFilter, ContainerResources, ContainerState, ContainerStatus,
        ContainerStatusRequest, ContainerStatusResponse, ContainerUser, CreateContainerRequest, ExecSyncRequest,
        ExecSyncResponse, ImageSpec, ListContainersRequest, Mount, ReopenContainerLogRequest, StopContainerRequest,
    },
    json, record,
};

use super::{
    Face, checkpoints,
    filters::{id_matches, labels_match, whole_id},
    owners,
    status::status,
};
use crate::{
    containers::{Container, signals},
    node::Listed,
};

impl Face {
    pub(super) async fn create(&self, request: CreateContainerRequest) -> Result<String, Status> {
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the request has no container config"))?;
        if config.windows.is_some() {
            return Err(Status::invalid_argument(
                "the container config has windows options, on a Linux node",
            ));
        }
        self.node()?
            .create_container(&request.pod_sandbox_id, config, request.sandbox_config)
            .await
            .map_err(|error| status(&error))
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Status> {
        self.node()?.start_container(id).await.map_err(|error| status(&error))
    }

    pub(super) async fn stop(&self, request: StopContainerRequest) -> Result<(), Status> {
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        self.node()?
            .stop_container(&request.container_id, timeout)
            .await
            .map_err(|error| status(&error))
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), Status> {
        self.node()?.remove_container(id).await.map_err(|error| status(&error))
    }

    pub(super) async fn exec(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let output = self
            .node()?
            .exec_sync(&request.container_id, request.cmd, timeout)
            .await
            .map_err(|error| status(&error))?;
        Ok(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        })
    }

    pub(super) async fn reopen(&self, request: ReopenContainerLogRequest) -> Result<(), Status> {
        self.node()?
            .reopen_log(&request.container_id)
            .await
            .map_err(|error| status(&error))
    }

    pub(super) fn list_containers(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Item>, Status> {
        let wanted = self.wanted_containers(request)?;
        Ok(wanted.iter().map(|(_, record)| item(record)).collect())
    }

    /// As [`Face::list_containers`], each item encoded.
    pub(super) fn encoded_containers(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Bytes>, Status> {
        let filter = request.get_ref().filter.clone().unwrap_or_default();
        let encode = |record: &record::Container, to: &mut Vec<u8>| {
            // A vector grows: there is always room.
            let _ = item(record).encode(to);
        };
        let rows = self
            .node()?
            .rows(owners(request), whole_id(&filter.pod_sandbox_id), encode);
        let all = filter == ContainerFilter::default();
        let mut wanted: Vec<(i64, Bytes)> = Vec::with_capacity(rows.iter().map(|of_pod| of_pod.len()).sum());
        for row in rows.iter().flat_map(|of_pod| of_pod.iter()) {
            // What an unfiltered list does not look at stays out of the processor's caches.
            if all || is_wanted(&row.record, &filter) {
                wanted.push((row.created_at, row.item.clone()));
            }
        }
        wanted.sort_by_key(|(created_at, _)| std::cmp::Reverse(*created_at));
        Ok(wanted.into_iter().map(|(_, item)| item).collect())
    }

    /// Containers that the filter lets through, the newest first.
    fn wanted_containers(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Listed>, Status> {
        let filter = request.get_ref().filter.clone().unwrap_or_default();
        let mut wanted: Vec<_> = self
            .node()?
            .listed(owners(request), whole_id(&filter.pod_sandbox_id))
            .into_iter()
            .filter(|(_, record)| is_wanted(record, &filter))
            .collect();
        wanted.sort_unstable_by_key(|(container, _)| std::cmp::Reverse(container.created_at));
        Ok(wanted)
    }

    pub(super) async fn container_status(
        &self,
        request: &ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        let container = self
            .node()?
            .container(&request.container_id)
            .map_err(|error| status(&error))?;
        let info = if request.verbose {
            verbose(&container).await
        } else {
            HashMap::new()
        };
        Ok(ContainerStatusResponse {
            status: Some(full(&container.record.get())),
            info,
        })
    }
}

/// Whether the filter lets it through.
fn is_wanted(record: &record::Container, filter: &ContainerFilter) -> bool {
    let wanted = filter.state.as_ref().map(|wanted| wanted.state);
    id_matches(&filter.id, &record.id)
        && id_matches(&filter.pod_sandbox_id, &record.pod_id)
        && wanted.is_none_or(|wanted| wanted == i32::from(state(record)))
        && record
            .config
            .as_ref()
            .is_none_or(|config| labels_match(&filter.label_selector, &config.labels))
}

fn state(record: &record::Container) -> ContainerState {
    match record.state() {
        record::ContainerState::ContainerCreating | record::ContainerState::ContainerCreated => {
            ContainerState::ContainerCreated
        }
        // Its process may run already; it is RUNNING when StartContainer returns.
        record::ContainerState::ContainerStarting => ContainerState::ContainerCreated,
        record::ContainerState::ContainerRunning => ContainerState::ContainerRunning,
        record::ContainerState::ContainerExited => ContainerState::ContainerExited,
        record::ContainerState::ContainerRemoving if record.exit.is_some() => ContainerState::ContainerExited,
        record::ContainerState::ContainerRemoving => ContainerState::ContainerCreated,
    }
}

/// Takes of the config only what the list shows: the rest is most of it.
fn item(record: &record::Container) -> Item {
    let none = ContainerConfig::default();
    let config = record.config.as_ref().unwrap_or(&none);
    Item {
        id: record.id.clone(),
        pod_sandbox_id: record.pod_id.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: record.image_id.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub(super) fn full(record: &record::Container) -> ContainerStatus {
    let config = record.config.clone().unwrap_or_default();
    let exit = record.exit.clone().unwrap_or_default();
    ContainerStatus {
        id: record.id.clone(),
        metadata: config.metadata,
        state: state(record).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.finished_at,
        exit_code: exit.code,
        image: config.image.map(|image| named(image, &record.image_name)),
        image_ref: record.image_ref.clone(),
        reason: exit.reason,
        message: exit.message,
        labels: config.labels,
        annotations: config.annotations,
        mounts: mounts(config.mounts, &record.mounted_images),
        log_path: record.log_path.clone(),
        resources: Some(ContainerResources {
            linux: record.resources.clone(),
            windows: None,
        }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser {
            linux: record.user.clone(),
        }),
        stop_signal: signals::to_cri(&record.stop_signal).into(),
    }
}

/// Kubelet asks by the image's id and shows people what is told here, so that is a name, as with both peers.
fn named(mut image: ImageSpec, name: &str) -> ImageSpec {
    if !name.is_empty() {
        name.clone_into(&mut image.image);
    }
    image
}

/// As asked for, with the image behind each image volume (KEP-5365): what PullImage answered for it, by which kubelet knows that
/// it is used.
fn mounts(mut mounts: Vec<Mount>, images: &[String]) -> Vec<Mount> {
    for (mount, id) in mounts.iter_mut().zip(images) {
        if let Some(image) = &mut mount.image {
            image.image_ref.clone_from(id);
            image.image.clone_from(id);
        }
    }
    mounts
}

/// The keys that users of crictl script against.
async fn verbose(container: &Container) -> HashMap<String, String> {
    let record = container.record.get();
    let config = record.config.clone().unwrap_or_default();
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let privileged = context.is_some_and(|context| context.privileged);
    let config = json::to_value("runtime.v1.ContainerConfig", &config, false).unwrap_or_default();
    let spec = tokio::fs::read(container.dir.join("config.json"))
        .await
        .unwrap_or_default();
    let log = container.log_counters().await.map(|counters| {
        serde_json::json!({
            "bytesIn": counters.bytes_in,
            "entries": counters.entries,
            "bytesOut": counters.bytes_out,
            "partial": counters.partial,
            "leftOut": counters.left_out,
            "lost": counters.lost,
            "unjournaled": counters.unjournaled,
        })
    });
    let info = serde_json::json!({
        "sandboxID": record.pod_id,
        "pid": container.pid(),
        "config": config,
        "runtimeSpec": serde_json::from_slice::<serde_json::Value>(&spec).unwrap_or_default(),
        "runtimeHandler": record.runtime_handler,
        "cgroupPath": record.cgroup_path,
        "paused": record.paused,
        "privileged": privileged,
        "restored": record.restore,
        "checkpointedAt": checkpoints::time(record.checkpointed_at),
        "checkpointArchive": record.checkpoint_archive,
        "log": log,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
