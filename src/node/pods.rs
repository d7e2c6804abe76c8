//! A pod's life: run, stop, remove.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use prost::Message;
use wharf_proto::{
    cri::PodSandboxConfig,
    record::{self, Owner, PodState},
};

use super::{Error, Node, PodKey, Result, joined::Callers};
use crate::{containers, monitor, sandbox, sandbox::Sandbox, store};

/// Lists show pods that were brought up once, until their removal is done.
pub(super) fn is_visible(record: &record::Pod) -> bool {
    record.state() != PodState::PodCreating
}

impl PodKey {
    pub(super) fn of(record: &record::Pod) -> Self {
        let metadata = record
            .config
            .as_ref()
            .and_then(|config| config.metadata.clone())
            .unwrap_or_default();
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
            owner: record.owner,
        }
    }

    /// Whether the two differ in the attempt at most.
    pub(super) fn is_of_the_same_pod(&self, other: &Self) -> bool {
        let Self {
            name,
            namespace,
            uid,
            attempt: _,
            owner,
        } = self;
        (name, namespace, uid, owner) == (&other.name, &other.namespace, &other.uid, &other.owner)
    }
}

impl Node {
    /// Runs a pod sandbox and returns its id once it is ready and has its address. A request for a pod that is being
    /// made joins that work; for one that is ready, it gets its id (contract rules 6 and 7). A network that is not ready is
    /// waited for until `deadline`.
    ///
    /// # Errors
    /// When the config is invalid, the handler is unknown, or a step fails; what was made is then taken down.
    pub async fn run_sandbox(
        &self,
        config: PodSandboxConfig,
        handler: String,
        owner: Owner,
        deadline: Option<Instant>,
    ) -> Result<String> {
        let record = self.new_pod(config, handler, owner).await?;
        let key = PodKey::of(&record);
        let (node, finder, wanted) = (self.clone(), self.clone(), record.config.clone());
        let wanted_key = key.clone();
        let made = self
            .inner
            .pod_jobs
            .run(
                key,
                move || finder.finished_pod(&wanted_key, wanted.as_ref()),
                move |callers| async move { node.create_sandbox(record, deadline, callers).await },
                |why| Err(Error::Internal(format!("run pod sandbox: {why}"))),
            )
            .await;
        self.claimed_pod(made)
    }

    /// The record of a pod that is to be made.
    ///
    /// # Errors
    /// When the config is invalid, or the handler unknown or not able to meet it.
    pub(super) async fn new_pod(&self, config: PodSandboxConfig, handler: String, owner: Owner) -> Result<record::Pod> {
        if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
            return Err(Error::Invalid(
                "the pod sandbox config has no metadata with a name".into(),
            ));
        }
        check_size("pod sandbox", &config)?;
        sandbox::check(self.mechanisms(), &config)?;
        self.check_handler(&handler)?;
        self.check_users(&config, &handler).await?;
        let slice = sandbox::slice(self.mechanisms(), &config)?;
        Ok(record::Pod {
            schema: store::schema(),
            id: store::new_id()?,
            owner: owner.into(),
            config: Some(config),
            runtime_handler: handler,
            created_at: store::now(),
            state: PodState::PodCreating.into(),
            boot_id: self.mechanisms().boot_id.clone(),
            slice,
            ..Default::default()
        })
    }

    fn check_handler(&self, handler: &str) -> Result<()> {
        if self.config().has_handler(handler) {
            return Ok(());
        }
        let known = self.config().handler_names().join(", ");
        Err(Error::Invalid(format!(
            "no runtime handler {handler:?} is configured (known: {known})"
        )))
    }

    /// A user namespace takes a runtime and a kernel that show files as others' than they are (row C4).
    async fn check_users(&self, config: &PodSandboxConfig, handler: &str) -> Result<()> {
        if sandbox::users(config)?.is_none() {
            return Ok(());
        }
        if !self.inner.tools.host.user_namespaces() {
            return Err(Error::Invalid(
                "a pod with a user namespace needs Linux 5.19 or newer, with user namespaces".into(),
            ));
        }
        let mechanisms = self.mechanisms();
        let config = mechanisms.config.get();
        let name = config.resolve_handler(handler);
        if !mechanisms.runtime_features.current(name).await.user_namespaces() {
            return Err(Error::Invalid(format!(
                "runtime handler {name:?} does not support user namespaces, by its features"
            )));
        }
        Ok(())
    }

    /// What an earlier request for this pod has made. What nobody was told of is given only for the same config.
    pub(super) fn finished_pod(&self, key: &PodKey, config: Option<&PodSandboxConfig>) -> Option<Result<String>> {
        let pod = self.all_pods().into_iter().find(|pod| {
            let record = pod.record.get();
            is_visible(&record) && PodKey::of(&record) == *key
        })?;
        if pod.claim.is_hidden() {
            let same = pod.record.get().config.as_ref() == config;
            if !(same && pod.is_ready() && pod.claim.claim()) {
                return None;
            }
            self.tell_pod(&pod);
        }
        Some(if pod.is_ready() {
            Ok(pod.id.clone())
        } else {
            Err(Error::Exists(format!(
                "pod sandbox {} has the same name, namespace, uid and attempt ({}) and is not ready; remove it first",
                pod.id, key.attempt
            )))
        })
    }

    pub(super) async fn create_sandbox(
        &self,
        record: record::Pod,
        deadline: Option<Instant>,
        callers: Callers,
    ) -> Result<String> {
        self.finish_unseen(&record).await?;
        let pod = Arc::new(Sandbox::new(&self.mechanisms().roots, record));
        let work = async {
            let events = sandbox::bring_up(self.mechanisms(), &pod, deadline).await?;
            self.plugins_agree(&pod).await?;
            Ok(events)
        };
        let name = name_of(&pod);
        let operations = &self.inner.operations;
        match operations
            .follow("RunPodSandbox", &pod.id, &name, &pod.stage, work)
            .await
        {
            Ok(events) => {
                if callers.are_gone() {
                    self.hide_pod(&pod);
                }
                self.insert_pod(&pod);
                self.plugins_find(&pod);
                self.tell_pod(&pod);
                self.watch(&pod, events);
                tracing::info!(pod = pod.id, "pod sandbox is ready");
                Ok(pod.id.clone())
            }
            Err(error) => {
                tracing::warn!(pod = pod.id, %error, "pod sandbox could not be brought up");
                if let Err(leftover) = self.discard(&pod).await {
                    tracing::error!(pod = pod.id, error = %leftover, "and could not be taken down whole");
                    self.show_broken(&pod).await;
                    self.insert_pod(&pod);
                    self.tell_pod(&pod);
                }
                Err(error)
            }
        }
    }

    /// Lists a pod that could not be undone as not ready, so that Stop and Remove can finish it (contract rule 6).
    pub(super) async fn show_broken(&self, pod: &Arc<Sandbox>) {
        let edit = |record: &mut record::Pod| {
            if record.state() == PodState::PodCreating {
                record.state = PodState::PodNotReady.into();
            }
        };
        pod.record.change_regardless(edit).await;
    }

    async fn discard(&self, pod: &Arc<Sandbox>) -> Result<()> {
        sandbox::tear_down(self.mechanisms(), pod).await?;
        sandbox::remove(pod).await?;
        Ok(())
    }

    /// Stops a pod: kills its containers, then releases network and namespaces. An unknown pod is stopped already.
    ///
    /// # Errors
    /// When a container can't be killed or something can't be released; the next call goes on.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Some(pod) = absent_is_none(self.pod(id))? else {
            return Ok(());
        };
        let node = self.clone();
        self.own(async move {
            let work = node.stop_pod(&pod);
            let operations = &node.inner.operations;
            operations
                .follow("StopPodSandbox", &pod.id, &name_of(&pod), &pod.stage, work)
                .await
        })
        .await
    }

    pub(super) async fn stop_pod(&self, pod: &Arc<Sandbox>) -> Result<()> {
        let _one_at_a_time = pod.teardown.lock().await;
        // From here on no container is created or started in it (contract rule 19).
        if pod.is_ready() {
            pod.record
                .change_regardless(|record| record.state = PodState::PodNotReady.into())
                .await;
        }
        pod.stage.enter("containers");
        let running = self.containers_of(&pod.id);
        let stops = join_all(
            running
                .iter()
                .map(|container| containers::stop(&self.inner.tools, container, Duration::ZERO)),
        )
        .await;
        stops.into_iter().collect::<containers::Result<()>>()?;
        // The monitor goes next, and with it the way to the runtime.
        let gone = join_all(
            running
                .iter()
                .map(|container| containers::let_go(&self.inner.tools, container)),
        )
        .await;
        for result in gone {
            match result {
                // A monitor that does not answer is ended by the teardown.
                Err(containers::Error::Monitor {
                    source: monitor::Error::Timeout { .. },
                    ..
                }) => {}
                other => other?,
            }
        }
        self.plugins_hear_pod_stop(pod).await;
        let down = sandbox::tear_down(self.mechanisms(), pod).await;
        self.tell_pod(pod);
        Ok(down?)
    }

    /// Removes a pod with all its containers, stopping it first when needed. An unknown pod is removed already.
    ///
    /// # Errors
    /// When a step fails; the pod stays listed and the next call goes on.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Some(pod) = absent_is_none(self.pod(id))? else {
            return Ok(());
        };
        let node = self.clone();
        self.own(async move {
            let work = node.remove_pod(&pod);
            let operations = &node.inner.operations;
            operations
                .follow("RemovePodSandbox", &pod.id, &name_of(&pod), &pod.stage, work)
                .await
        })
        .await
    }

    pub(super) async fn remove_pod(&self, pod: &Arc<Sandbox>) -> Result<()> {
        self.stop_pod(pod).await?;
        let _one_at_a_time = pod.teardown.lock().await;
        pod.stage.enter("creations");
        // What is half made has mounts that nobody has listed. It goes by itself, as the pod is not ready any more.
        let Ok(_none_is_made) = tokio::time::timeout(CREATIONS_LIMIT, pod.creations.write()).await else {
            return Err(Error::State(format!(
                "pod sandbox {}: a container is being made in it and does not get on; remove the pod again when that has ended",
                pod.id
            )));
        };
        // One that hangs in an unmount does not keep the others.
        pod.stage.enter("containers");
        let containers = self.containers_of(&pod.id);
        let removals = containers.iter().map(|container| async {
            let before = self.about_to_go(container).await;
            (before, containers::remove(&self.inner.tools, container).await)
        });
        let mut outcome = Ok(());
        for (container, (before, removed)) in containers.iter().zip(join_all(removals).await) {
            match removed {
                Ok(()) => {
                    self.plugins_hear_removal(container, before).await;
                    self.forget_container(container);
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome?;
        pod.stage.enter("image volumes and files");
        containers::release_image_volumes(&self.inner.tools, pod).await?;
        sandbox::remove(pod).await?;
        self.plugins_hear_pod_removal(pod).await;
        self.forget_pod(pod);
        tracing::info!(pod = pod.id, "pod sandbox is removed");
        Ok(())
    }
}

/// How long a pod's removal waits for containers that are being made in it.
const CREATIONS_LIMIT: Duration = Duration::from_secs(10);

/// A pod's name in Kubernetes.
fn name_of(pod: &Sandbox) -> String {
    PodKey::of(&pod.record.get()).name
}

/// Largest config that a pod or container may have, encoded. What is beyond could be kept, but no list could show it:
/// clients take messages of 16 MiB. Kubernetes' own limit for all of an object is less than 2 MiB.
const LARGEST_CONFIG: usize = 8 << 20;

/// Refuses a config that is larger than any list can show.
pub(super) fn check_size(what: &str, config: &impl Message) -> Result<()> {
    match config.encoded_len() {
        length if length > LARGEST_CONFIG => Err(Error::Invalid(format!(
            "the {what} config has {length} bytes; at most {LARGEST_CONFIG} are taken"
        ))),
        _ => Ok(()),
    }
}

/// For operations that succeed on what is not there (contract rule 1).
pub(super) fn absent_is_none<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
