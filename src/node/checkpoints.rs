//! Checkpoints of containers and pods, and pods that come back from them.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration, time::Instant};

use tokio_util::sync::CancellationToken;
use wharf_proto::{
    cri::{ContainerConfig, PodSandboxConfig},
    record::{self, ContainerState, Owner},
};

use super::{ContainerKey, Error, Node, PodKey, Result, joined::Callers, pods::check_size};
use crate::{
    containers::{self, Container, Part, Patience, pod_checkpoint::Description},
    sandbox::Sandbox,
};

/// What RestorePod asks for.
#[derive(Debug)]
pub struct RestoreOrder {
    /// Directory of the checkpoint, absolute.
    pub checkpoint: String,
    /// Of the new pod.
    pub config: PodSandboxConfig,
    /// Name of its handler; empty for the default.
    pub handler: String,
    /// Of all containers in the checkpoint, which are told apart by the names in their metadata.
    pub containers: Vec<ContainerConfig>,
}

/// A pod that was restored.
#[derive(Debug)]
pub struct Restored {
    /// Its id.
    pub pod: String,
    /// Names and ids of its containers, in the order of the request.
    pub containers: Vec<(String, String)>,
}

impl Node {
    /// Writes a checkpoint of a container; see [`containers::checkpoint`].
    ///
    /// # Errors
    /// As there.
    pub async fn checkpoint(&self, id: &str, location: String, timeout: Duration) -> Result<()> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move { Ok(containers::checkpoint(&node.inner.tools, &container, &location, timeout).await?) })
            .await
    }

    /// Writes a checkpoint of running containers of a pod to the directory `output`; see [`containers::checkpoint_pod`]. A
    /// caller that goes away, or whose `deadline` passes, ends it, and the containers run on.
    ///
    /// # Errors
    /// As there; [`Error::Invalid`] when the containers are none, are given twice or are not the pod's.
    pub async fn checkpoint_pod(
        &self,
        id: &str,
        output: String,
        ids: &[String],
        deadline: Option<Instant>,
    ) -> Result<()> {
        let pod = self.pod(id)?;
        if !pod.is_ready() {
            return Err(Error::State(format!("pod sandbox {} is not ready", pod.id)));
        }
        if ids.is_empty() {
            return Err(Error::Invalid("the request names no container to checkpoint".into()));
        }
        let mut chosen: Vec<Arc<Container>> = Vec::new();
        for id in ids {
            let container = self.container(id)?;
            let problem = match () {
                () if container.sandbox.id != pod.id => "is of another pod",
                () if chosen.iter().any(|other| other.id == container.id) => "is named twice",
                () => {
                    chosen.push(container);
                    continue;
                }
            };
            return Err(Error::Invalid(format!("container {} {problem}", container.id)));
        }
        let gone = CancellationToken::new();
        let _caller = gone.clone().drop_guard();
        let end = deadline.unwrap_or_else(|| Instant::now() + containers::CHECKPOINT_LIMIT);
        let patience = Patience::until(tokio::time::Instant::from_std(end), gone);
        let node = self.clone();
        self.own(async move {
            let work = containers::checkpoint_pod(&node.inner.tools, &pod, &chosen, &output, patience);
            let name = PodKey::of(&pod.record.get()).name;
            let operations = &node.inner.operations;
            Ok(operations
                .follow("CheckpointPod", &pod.id, &name, &pod.stage, work)
                .await?)
        })
        .await
    }

    /// Makes a pod and its containers from a checkpoint; they are created and have not run. What a caller that has gone
    /// asked for is there for who asks again, as long as no container has been started.
    ///
    /// # Errors
    /// When the checkpoint is none, is not of these containers or can't be restored by this handler, or the pod is there
    /// already. Of what was made nothing is left then.
    pub async fn restore_pod(&self, order: RestoreOrder, owner: Owner, deadline: Option<Instant>) -> Result<Restored> {
        let names = names(&order.containers)?;
        for config in &order.containers {
            check_size("container", config)?;
        }
        let record = self.new_pod(order.config, order.handler, owner).await?;
        let checkpoint = PathBuf::from(&order.checkpoint);
        let directory = checkpoint.clone();
        let read = tokio::task::spawn_blocking(move || Description::read(&directory)).await;
        let description = read.map_err(|error| Error::Internal(format!("read the checkpoint: {error}")))??;
        let parts = self.parts(&description, order.containers, &record, &checkpoint)?;

        let key = PodKey::of(&record);
        let (node, finder, wanted) = (self.clone(), self.clone(), record.config.clone());
        let wanted_key = key.clone();
        let pod = self
            .inner
            .pod_jobs
            .run(
                key,
                move || finder.finished_pod(&wanted_key, wanted.as_ref()),
                move |_| async move { node.make_again(record, deadline, description, checkpoint, parts).await },
                |why| Err(Error::Internal(format!("restore pod: {why}"))),
            )
            .await?;
        self.restored(pod, &names)
    }

    /// Each container's config with its part of the checkpoint.
    fn parts(
        &self,
        description: &Description,
        configs: Vec<ContainerConfig>,
        record: &record::Pod,
        checkpoint: &std::path::Path,
    ) -> Result<Vec<(ContainerConfig, Part)>> {
        let invalid = |why: String| {
            Err(Error::Invalid(format!(
                "the pod checkpoint {}: {why}",
                checkpoint.display()
            )))
        };
        let daemon = self.config();
        let handler = daemon.resolve_handler(&record.runtime_handler);
        if description.runtime_handler != handler {
            return invalid(format!(
                "it was made by runtime handler {:?}, and the request names {handler:?}",
                description.runtime_handler
            ));
        }
        let wanted: HashSet<_> = configs.iter().map(name_of).collect();
        let has: HashSet<_> = description
            .containers
            .iter()
            .map(|member| member.name.clone())
            .collect();
        if wanted != has {
            let mut differ: Vec<_> = wanted.symmetric_difference(&has).cloned().collect();
            differ.sort();
            return invalid(format!(
                "its containers are not those of the request, which differ in {}",
                differ.join(", ")
            ));
        }
        let parts = configs.into_iter().filter_map(|config| {
            let name = name_of(&config);
            let member = description.containers.iter().find(|member| member.name == name)?;
            let part = Part {
                directory: member.place(checkpoint),
                image_id: member.image_id.clone(),
            };
            Some((config, part))
        });
        Ok(parts.collect())
    }

    /// The work of [`Node::restore_pod`].
    async fn make_again(
        &self,
        record: record::Pod,
        deadline: Option<Instant>,
        description: Description,
        checkpoint: PathBuf,
        parts: Vec<(ContainerConfig, Part)>,
    ) -> Result<String> {
        let id = self.create_sandbox(record, deadline, Callers::always()).await?;
        let pod = self.pod(&id)?;
        let Err(error) = self.make_parts(&pod, deadline, description, checkpoint, parts).await else {
            return Ok(id);
        };
        if let Err(leftover) = self.remove_pod(&pod).await {
            tracing::error!(pod = pod.id, error = %leftover, "a pod that could not be restored could not be removed either");
        }
        Err(error)
    }

    async fn make_parts(
        &self,
        pod: &Arc<Sandbox>,
        deadline: Option<Instant>,
        description: Description,
        checkpoint: PathBuf,
        parts: Vec<(ContainerConfig, Part)>,
    ) -> Result<()> {
        let (shm, id) = (pod.paths.shm(), pod.id.clone());
        let unpacked = tokio::task::spawn_blocking(move || description.restore_shm(&checkpoint, &id, &shm)).await;
        unpacked.map_err(|error| Error::Internal(format!("restore the shared memory: {error}")))??;
        for (config, part) in parts {
            self.make_container(Arc::clone(pod), config, None, Some(part), Callers::always())
                .await?;
            // Nobody waits for it any more, and the caller must find nothing.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(containers::Error::Deadline(format!(
                    "pod sandbox {} could not be restored in the time that was given",
                    pod.id
                ))
                .into());
            }
        }
        Ok(())
    }

    /// What is there of a pod that was restored.
    fn restored(&self, pod: String, names: &[String]) -> Result<Restored> {
        let there = self.containers_of(&pod);
        let id = |name: &String| {
            let fits = |container: &&Arc<Container>| {
                let record = container.record.get();
                record.restore
                    && record.state() == ContainerState::ContainerCreated
                    && ContainerKey::of(&record).name == *name
            };
            Some((name.clone(), there.iter().find(fits)?.id.clone()))
        };
        let containers: Option<Vec<_>> = names.iter().map(id).collect();
        match containers.filter(|containers| containers.len() == there.len()) {
            Some(containers) => Ok(Restored { pod, containers }),
            None => Err(Error::Exists(format!(
                "pod sandbox {pod} has the same name, namespace, uid and attempt and is not that of this checkpoint with \
                 containers that have not run"
            ))),
        }
    }
}

fn name_of(config: &ContainerConfig) -> String {
    config.metadata.clone().unwrap_or_default().name
}

/// The names of the containers, each given and each once.
fn names(configs: &[ContainerConfig]) -> Result<Vec<String>> {
    let names: Vec<_> = configs.iter().map(name_of).collect();
    let mut seen = HashSet::new();
    match names.iter().find(|name| name.is_empty() || !seen.insert(name.as_str())) {
        _ if names.is_empty() => Err(Error::Invalid("the request has no container configs".into())),
        Some(name) if name.is_empty() => Err(Error::Invalid("a container config has no name".into())),
        Some(name) => Err(Error::Invalid(format!("two container configs have the name {name:?}"))),
        None => Ok(names),
    }
}
