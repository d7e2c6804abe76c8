//! A container's life: create, start, stop, remove, exec.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use wharf_proto::{
    cri::{ContainerConfig, PodSandboxConfig},
    record::{self, ContainerState},
};

use super::{
    ContainerKey, Error, Node, Result,
    joined::Callers,
    pods::{absent_is_none, check_size},
};
use crate::{
    containers::{self, Container, Output, Part},
    images::{Order, Outflow},
    sandbox::Sandbox,
    store,
};

/// Lists show containers that were created whole, until their removal is done.
pub(super) fn is_visible(record: &record::Container) -> bool {
    record.state() != ContainerState::ContainerCreating
}

impl ContainerKey {
    pub(super) fn of(record: &record::Container) -> Self {
        let metadata = record
            .config
            .as_ref()
            .and_then(|config| config.metadata.clone())
            .unwrap_or_default();
        Self {
            pod: record.pod_id.clone(),
            name: metadata.name,
            attempt: metadata.attempt,
        }
    }
}

impl Node {
    /// Creates a container in a ready pod and returns its id. Duplicates join (contract rule 7).
    ///
    /// # Errors
    /// When the pod is not ready, the image is absent, or the config is invalid; what was made is then taken down.
    pub async fn create_container(
        &self,
        pod: &str,
        config: ContainerConfig,
        pod_config: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let pod = self.pod(pod)?;
        if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
            return Err(Error::Invalid(
                "the container config has no metadata with a name".into(),
            ));
        }
        check_size("container", &config)?;
        let metadata = config.metadata.clone().unwrap_or_default();
        let key = ContainerKey {
            pod: pod.id.clone(),
            name: metadata.name,
            attempt: metadata.attempt,
        };
        let (node, finder, wanted) = (self.clone(), self.clone(), Some(config.clone()));
        let wanted_key = key.clone();
        let made = self
            .inner
            .container_jobs
            .run(
                key,
                move || finder.finished_container(&wanted_key, wanted.as_ref()),
                move |callers| async move { node.make_container(pod, config, pod_config, None, callers).await },
                |why| Err(Error::Internal(format!("create container: {why}"))),
            )
            .await;
        self.claimed_container(made)
    }

    /// Does `work`, which is `call` on the container, and has it listed meanwhile.
    async fn follow<T>(&self, call: &'static str, container: &Container, work: impl Future<Output = T>) -> T {
        let name = ContainerKey::of(&container.record.get()).name;
        let operations = &self.inner.operations;
        operations
            .follow(call, &container.id, &name, &container.stage, work)
            .await
    }

    /// What an earlier request for this container has made. What nobody was told of is given only for the same config.
    fn finished_container(&self, key: &ContainerKey, config: Option<&ContainerConfig>) -> Option<Result<String>> {
        let container = self
            .containers_of(&key.pod)
            .into_iter()
            .find(|container| ContainerKey::of(&container.record.get()) == *key)?;
        if container.claim.is_hidden() {
            let same = container.record.get().config.as_ref() == config;
            if !(same && container.claim.claim()) {
                return None;
            }
            self.tell_container(&container);
        }
        Some(match container.state() {
            ContainerState::ContainerCreated => Ok(container.id.clone()),
            _ => Err(Error::Exists(format!(
                "container {} has the same name and attempt ({}) in this pod and has been started already",
                container.id, key.attempt
            ))),
        })
    }

    /// Makes a container, of its part of a pod's checkpoint if that is given.
    pub(super) async fn make_container(
        &self,
        pod: Arc<Sandbox>,
        config: ContainerConfig,
        pod_config: Option<PodSandboxConfig>,
        part: Option<Part>,
        callers: Callers,
    ) -> Result<String> {
        let sandbox = Arc::clone(&pod);
        let Ok(_made_here) = sandbox.creations.try_read() else {
            return Err(Error::State(format!("pod sandbox {} is being removed", pod.id)));
        };
        let record = record::Container {
            schema: store::schema(),
            id: store::new_id()?,
            pod_id: pod.id.clone(),
            config: Some(config),
            created_at: store::now(),
            state: ContainerState::ContainerCreating.into(),
            runtime_handler: pod.record.get().runtime_handler.clone(),
            ..Default::default()
        };
        self.finish_unseen_containers(&record).await;
        let container = Arc::new(Container::new(pod, record));
        let others = self.containers_of(&container.sandbox.id);
        let work = containers::create(&self.inner.tools, &container, pod_config, &others, part);
        let made = self.follow("CreateContainer", &container, work).await;
        if made.is_ok() && container.sandbox.is_ready() && callers.are_gone() {
            self.hide_container(&container);
        }
        // Listed even before it is complete, so that a pod stopped meanwhile finds it.
        self.insert_container(&container);
        let made = match made {
            Ok(()) if container.sandbox.is_ready() => {
                self.tell_container(&container);
                self.plugins_hear_created(&container).await;
                // They may have taken their time.
                if callers.are_gone() && !container.claim.is_hidden() {
                    self.hide_container(&container);
                }
                return Ok(container.id.clone());
            }
            Ok(()) => Error::State(format!("pod sandbox {} was stopped meanwhile", container.sandbox.id)),
            Err(error) => error.into(),
        };
        let before = self.about_to_go(&container).await;
        match containers::undo(&self.inner.tools, &container).await {
            Ok(()) => {
                self.plugins_hear_removal(&container, before).await;
                self.forget_container(&container);
            }
            Err(error) => {
                tracing::error!(container = container.id, %error, "container that failed to be created could not be undone");
            }
        }
        Err(made)
    }

    /// A container's root filesystem as an archive; see [`containers::export`].
    ///
    /// # Errors
    /// As there.
    pub async fn export_container(&self, id: &str) -> Result<Outflow> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move { Ok(containers::export(&node.inner.tools, &container).await?) })
            .await
    }

    /// Makes an image of what a container has changed; see [`containers::commit`].
    ///
    /// # Errors
    /// As there.
    pub async fn commit_container(&self, id: &str, order: Order, still: bool) -> Result<String> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move { Ok(containers::commit(&node.inner.tools, &container, order, still).await?) })
            .await
    }

    /// Starts a created container; see [`containers::start`].
    ///
    /// # Errors
    /// As there.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move {
            let others = node.containers_of(&container.sandbox.id);
            let work = async {
                node.plugins_let_start(&container).await?;
                Ok(containers::start(&node.inner.tools, &container, &others).await?)
            };
            let started = node.follow("StartContainer", &container, work).await;
            node.tell_container(&container);
            match &started {
                Ok(()) => {
                    node.sample_new(&container);
                    node.plugins_hear_started(&container).await;
                }
                Err(_) => {
                    node.plugins_hear_end(&container).await;
                    node.remove_if_over(&container.sandbox);
                }
            }
            started
        })
        .await
    }

    /// Stops a container; see [`containers::stop`]. An unknown one is stopped already.
    ///
    /// # Errors
    /// As there.
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        let Some(container) = absent_is_none(self.container(id))? else {
            return Ok(());
        };
        let node = self.clone();
        self.own(async move {
            let work = containers::stop(&node.inner.tools, &container, timeout);
            node.follow("StopContainer", &container, work).await?;
            node.plugins_hear_end(&container).await;
            Ok(())
        })
        .await
    }

    /// Pauses a container; see [`containers::pause`].
    ///
    /// # Errors
    /// As there.
    pub async fn pause_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move { Ok(containers::pause(&node.inner.tools, &container).await?) })
            .await
    }

    /// Lets a paused container go on; see [`containers::resume`].
    ///
    /// # Errors
    /// As there.
    pub async fn unpause_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let node = self.clone();
        self.own(async move { Ok(containers::resume(&node.inner.tools, &container).await?) })
            .await
    }

    /// Removes a container; see [`containers::remove`]. An unknown one is removed already.
    ///
    /// # Errors
    /// As there.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let Some(container) = absent_is_none(self.container(id))? else {
            return Ok(());
        };
        let node = self.clone();
        self.own(async move {
            let before = node.about_to_go(&container).await;
            let work = containers::remove(&node.inner.tools, &container);
            node.follow("RemoveContainer", &container, work).await?;
            node.plugins_hear_removal(&container, before).await;
            node.forget_container(&container);
            Ok(())
        })
        .await
    }

    /// Runs a command in a container; see [`containers::exec_sync`]. A caller that goes away ends it: nobody can ask for
    /// its output any more.
    ///
    /// # Errors
    /// As there.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<Output> {
        let container = self.container(id)?;
        let gone = CancellationToken::new();
        let _caller = gone.clone().drop_guard();
        let drain = Duration::from_secs(self.config().containers.exec_drain_secs);
        self.own(async move { Ok(containers::exec_sync(&container, command, timeout, drain, gone).await?) })
            .await
    }

    /// Makes a container's log continue in a new file; see [`containers::reopen_log`].
    ///
    /// # Errors
    /// As there.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        Ok(containers::reopen_log(&container).await?)
    }
}
