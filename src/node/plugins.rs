//! NRI plugins: when they hear of what, and what is done upon what they ask for.
//!
//! No lock of a pod or container is held while plugins are told of it: they may ask for other containers to be changed,
//! which takes those containers' locks.

use std::{sync::Arc, time::Duration};

use wharf_proto::{
    cri::LinuxContainerResources,
    nri::{self as pb, ContainerEviction, ContainerUpdate, Event, PodSandbox},
    record::ContainerState,
};

use super::{Error, Node, Result, containers::is_visible, pods};
use crate::{
    containers::{self, Container},
    nri::{Ask, Asks, Nri, State},
    sandbox::{self, Limits, Sandbox},
};

impl Node {
    /// The plugins, where they are served.
    fn plugins(&self) -> Option<&Nri> {
        self.inner.tools.nri.as_ref()
    }

    /// Starts the plugins, and answers what they ask from now on.
    pub(super) async fn start_plugins(&self, mut asks: Asks) -> Result<()> {
        let Some(plugins) = self.plugins() else { return Ok(()) };
        let node = self.clone();
        self.inner.tasks.spawn(async move {
            loop {
                let ask = tokio::select! {
                    ask = asks.recv() => ask,
                    () = node.inner.ending.cancelled() => return,
                };
                let Some(ask) = ask else { return };
                let owner = node.clone();
                node.inner.tasks.spawn(async move { owner.answer(ask).await });
            }
        });
        plugins.start().await.map_err(|error| Error::State(error.to_string()))
    }

    /// Says goodbye to the plugins.
    pub(super) async fn end_plugins(&self) {
        if let Some(plugins) = self.plugins() {
            plugins.shut_down().await;
        }
    }

    async fn answer(&self, ask: Ask) {
        match ask {
            // Whoever asked may have gone.
            Ask::State(sender) => drop(sender.send(self.all_for_plugins().await)),
            Ask::Change {
                plugin,
                updates,
                evictions,
                failed,
            } => drop(failed.send(self.change_for_plugin(&plugin, updates, evictions).await)),
        }
    }

    /// All pods and containers, of all owners, and those that wait for somebody to ask for them again.
    async fn all_for_plugins(&self) -> State {
        let mut pods = self.all_pods();
        pods.retain(|pod| pods::is_visible(&pod.record.get()));
        let mut containers = self.all_containers();
        containers.retain(|container| is_visible(&container.record.get()));
        let unset = self.config().unset_seccomp;
        let read = move || State {
            pods: pods.iter().map(|pod| sandbox::nri::message(pod)).collect(),
            containers: containers
                .iter()
                .map(|container| containers::nri::read(container, unset))
                .collect(),
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// Changes and stops containers; the updates that failed and may not.
    async fn change_for_plugin(
        &self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Vec<ContainerUpdate> {
        for eviction in evictions {
            let ContainerEviction { container_id, reason } = eviction;
            tracing::warn!(
                container = container_id,
                plugin,
                reason,
                "stops a container that an NRI plugin evicts"
            );
            let stopped = match self.known_container(&container_id) {
                Ok(container) => containers::stop(&self.inner.tools, &container, Duration::ZERO)
                    .await
                    .map_err(Error::from),
                Err(error) => Err(error),
            };
            if let Err(error) = stopped {
                tracing::error!(container = container_id, %error, "an evicted container could not be stopped");
            }
        }
        let mut failed = Vec::new();
        for update in updates {
            if let Err(error) = self.update_for_plugin(&update).await {
                tracing::warn!(
                    container = update.container_id,
                    plugin,
                    %error,
                    "an update that an NRI plugin wants could not be made"
                );
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }

    /// Plugins know those, too, of which nobody else has been told.
    fn known_container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.all_containers().into_iter().find(|container| container.id == id);
        found.ok_or_else(|| Error::NotFound {
            what: "container",
            id: id.to_owned(),
        })
    }

    async fn update_for_plugin(&self, update: &ContainerUpdate) -> Result<()> {
        let container = self.known_container(&update.container_id)?;
        let limits = update.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let Some(limits) = limits else { return Ok(()) };
        let wanted = containers::nri::wanted(limits)?;
        Ok(containers::update(&self.inner.tools, &container, wanted, Default::default()).await?)
    }

    /// The pod is whole, and seen by nobody yet. Plugins that have heard of it hear of its end when one does not agree.
    pub(super) async fn plugins_agree(&self, pod: &Sandbox) -> Result<()> {
        let Some(plugins) = self.plugins() else { return Ok(()) };
        pod.stage.enter("NRI plugins");
        let agreed = plugins.run_pod(sandbox::nri::message(pod)).await;
        agreed.map_err(|error| Error::State(error.to_string()))
    }

    /// The pod can be found from now on.
    pub(super) fn plugins_find(&self, pod: &Sandbox) {
        if let Some(plugins) = self.plugins() {
            let (plugins, id) = (plugins.clone(), pod.id.clone());
            // It may be somebody else's turn.
            self.inner.tasks.spawn(async move { plugins.seen(&id).await });
        }
    }

    /// The pod's containers have ended; its network is there yet.
    pub(super) async fn plugins_hear_pod_stop(&self, pod: &Arc<Sandbox>) {
        let Some(plugins) = self.plugins() else { return };
        for container in self.containers_of(&pod.id) {
            self.plugins_hear_end(&container).await;
        }
        pod.stage.enter("NRI plugins");
        plugins.stop_pod(&pod.id, || async { sandbox::nri::message(pod) }).await;
    }

    /// The pod is removed.
    pub(super) async fn plugins_hear_pod_removal(&self, pod: &Sandbox) {
        if let Some(plugins) = self.plugins() {
            plugins
                .remove_pod(&pod.id, || async { sandbox::nri::message(pod) })
                .await;
        }
    }

    /// The container is listed.
    pub(super) async fn plugins_hear_created(&self, container: &Arc<Container>) {
        self.plugins_hear(Event::PostCreateContainer, container).await;
    }

    /// The container runs.
    pub(super) async fn plugins_hear_started(&self, container: &Arc<Container>) {
        self.plugins_hear(Event::PostStartContainer, container).await;
    }

    async fn plugins_hear(&self, event: Event, container: &Arc<Container>) {
        let Some(plugins) = self.plugins() else { return };
        let subject = || async {
            let (pod, container) = self.subject(container).await;
            (pod, Some(container))
        };
        plugins.happened(event, &container.id, subject).await;
    }

    /// The container is about to start. One that can't anyway is for nobody's ears.
    pub(super) async fn plugins_let_start(&self, container: &Arc<Container>) -> Result<()> {
        let Some(plugins) = self.plugins() else { return Ok(()) };
        if container.state() != ContainerState::ContainerCreated || !container.sandbox.is_ready() {
            return Ok(());
        }
        container.stage.enter("NRI plugins");
        let subject = || async {
            let (pod, container) = self.subject(container).await;
            (pod, Some(container))
        };
        let allowed = plugins.start_container(subject).await;
        allowed.map_err(|error| Error::State(error.to_string()))
    }

    /// The container has ended, if it has.
    pub(super) async fn plugins_hear_end(&self, container: &Arc<Container>) {
        let Some(plugins) = self.plugins() else { return };
        let ended = [ContainerState::ContainerExited, ContainerState::ContainerRemoving];
        if ended.contains(&container.state()) {
            plugins.stop_container(&container.id, || self.subject(container)).await;
        }
    }

    /// Whom plugins will hear to be removed; what is told of then is gone by the time that it is told.
    pub(super) async fn about_to_go(&self, container: &Arc<Container>) -> Option<(PodSandbox, pb::Container)> {
        match self.plugins() {
            Some(plugins) if plugins.wants(Event::StopContainer) || plugins.wants(Event::RemoveContainer) => {
                Some(self.subject(container).await)
            }
            _ => None,
        }
    }

    /// The container is removed. `before` is what it was.
    pub(super) async fn plugins_hear_removal(
        &self,
        container: &Arc<Container>,
        before: Option<(PodSandbox, pb::Container)>,
    ) {
        let Some(plugins) = self.plugins() else { return };
        let subject = || async {
            match before {
                Some((pod, was)) => {
                    let now = self.subject(container).await.1;
                    let was = pb::Container {
                        state: now.state,
                        exit_code: now.exit_code,
                        finished_at: now.finished_at,
                        ..was
                    };
                    (pod, was)
                }
                None => self.subject(container).await,
            }
        };
        plugins.remove_container(&container.id, subject).await;
    }

    /// What a container's limits shall be when the plugins have been heard.
    pub(super) async fn plugins_update(
        &self,
        container: &Arc<Container>,
        mut wanted: LinuxContainerResources,
    ) -> Result<LinuxContainerResources> {
        let Some(plugins) = self.plugins().filter(|plugins| plugins.wants(Event::UpdateContainer)) else {
            return Ok(wanted);
        };
        if !matches!(
            container.state(),
            ContainerState::ContainerCreated | ContainerState::ContainerRunning
        ) {
            return Ok(wanted);
        }
        let (pod, message) = self.subject(container).await;
        let asked = sandbox::nri::limits(&wanted);
        let answer = plugins
            .update_container(pod, message, asked)
            .await
            .map_err(|error| Error::State(error.to_string()))?;
        // Refuses what can't be said in CRI's words.
        containers::nri::wanted(&answer)?;
        containers::nri::take(&mut wanted, &answer);
        Ok(wanted)
    }

    /// A container's limits have been changed.
    pub(super) async fn plugins_hear_updated(&self, container: &Arc<Container>) {
        self.plugins_hear(Event::PostUpdateContainer, container).await;
    }

    /// A pod's limits are to be changed.
    pub(super) async fn plugins_update_pod(&self, pod: &Sandbox, asked: &Limits) -> Result<()> {
        let Some(plugins) = self.plugins().filter(|plugins| plugins.wants(Event::UpdatePodSandbox)) else {
            return Ok(());
        };
        let limits = |limits: &Option<LinuxContainerResources>| limits.as_ref().map(sandbox::nri::limits);
        let (overhead, resources) = (limits(&asked.overhead), limits(&asked.resources));
        let agreed = plugins
            .update_pod(sandbox::nri::message(pod), overhead, resources)
            .await;
        agreed.map_err(|error| Error::State(error.to_string()))
    }

    /// A pod's limits have been changed.
    pub(super) async fn plugins_hear_pod_updated(&self, pod: &Sandbox) {
        if let Some(plugins) = self.plugins() {
            let subject = || async { (sandbox::nri::message(pod), None) };
            plugins.happened(Event::PostUpdatePodSandbox, &pod.id, subject).await;
        }
    }

    /// A container and its pod, as plugins see them.
    async fn subject(&self, container: &Arc<Container>) -> (PodSandbox, pb::Container) {
        let (owner, unset) = (Arc::clone(container), self.config().unset_seccomp);
        let read = move || containers::nri::read(&owner, unset);
        let message = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        (sandbox::nri::message(&container.sandbox), message)
    }
}
