//! Telling plugins of what happens, in their order.

use std::{future::Future, sync::Arc};

use futures_util::future::join_all;
use wharf_proto::nri::{
    Container, ContainerAdjustment, CreateContainerRequest, CreateContainerResponse, Event, LinuxResources,
    OwningPlugins, PluginInstance, PodSandbox, StopContainerRequest, StopContainerResponse, UpdateContainerRequest,
    UpdateContainerResponse, UpdatePodSandboxRequest, UpdatePodSandboxResponse, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};

use super::{
    Error, Inner, Nri, Result, Turn,
    connection::Fault,
    event,
    merge::{Merge, Wishes},
    plugin::Plugin,
    validator,
};

/// Whom plugins are told of: a container with its pod, or a pod.
pub type Subject = (PodSandbox, Option<Container>);

impl Nri {
    /// A pod is made, and will be seen when all agree. Plugins hear of its end and its removal when one does not.
    ///
    /// # Errors
    /// When a plugin says no.
    pub async fn run_pod(&self, pod: PodSandbox) -> Result<()> {
        let mut turn = self.inner.turn.lock().await;
        turn.told.pod(pod.clone());
        let told = turn.tell(&self.inner, Event::RunPodSandbox, &pod, None).await;
        if told.is_err() {
            turn.pod_ended(&self.inner, &pod, true).await;
        }
        told
    }

    /// The pod or container is found among the others from now on.
    pub async fn seen(&self, id: &str) {
        self.inner.turn.lock().await.told.seen(id);
    }

    /// A pod's limits are to be changed.
    ///
    /// # Errors
    /// When a plugin says no.
    pub async fn update_pod(
        &self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<()> {
        let mut turn = self.inner.turn.lock().await;
        let request = UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        for plugin in turn.plugins_for(Event::UpdatePodSandbox) {
            let answer = plugin
                .ask::<UpdatePodSandboxResponse>(event::method(Event::UpdatePodSandbox), &request)
                .await;
            settle(&plugin, Event::UpdatePodSandbox, answer)?;
        }
        turn.tidy(&self.inner);
        Ok(())
    }

    /// Something has happened that nobody can change any more; a plugin that is not content is logged.
    pub async fn happened<F>(&self, event: Event, id: &str, subject: impl FnOnce() -> F)
    where
        F: Future<Output = Subject> + Send,
    {
        let mut turn = self.inner.turn.lock().await;
        turn.told.seen(id);
        if turn.plugins_for(event).is_empty() || !turn.told.knows(id) {
            return;
        }
        let (pod, container) = subject().await;
        if let Err(error) = turn.tell(&self.inner, event, &pod, container.as_ref()).await {
            tracing::warn!(id, %error, "an NRI plugin objects to what has happened already");
        }
    }

    /// A container is about to start.
    ///
    /// # Errors
    /// When a plugin says no.
    pub async fn start_container<F>(&self, subject: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Subject> + Send,
    {
        let mut turn = self.inner.turn.lock().await;
        if turn.plugins_for(Event::StartContainer).is_empty() {
            return Ok(());
        }
        let (pod, container) = subject().await;
        turn.tell(&self.inner, Event::StartContainer, &pod, container.as_ref())
            .await
    }

    /// A pod's containers have ended, and it is about to be taken down. Told once; a plugin that objects is logged.
    pub async fn stop_pod<F>(&self, id: &str, pod: impl FnOnce() -> F)
    where
        F: Future<Output = PodSandbox> + Send,
    {
        let mut turn = self.inner.turn.lock().await;
        if turn.told.knows(id) {
            let pod = pod().await;
            turn.pod_ended(&self.inner, &pod, false).await;
        }
    }

    /// A pod is removed. Told once, after its end.
    pub async fn remove_pod<F>(&self, id: &str, pod: impl FnOnce() -> F)
    where
        F: Future<Output = PodSandbox> + Send,
    {
        let mut turn = self.inner.turn.lock().await;
        if turn.told.knows(id) {
            let pod = pod().await;
            turn.pod_ended(&self.inner, &pod, true).await;
        }
    }

    /// A container is about to be created; what the plugins want to be different. Other containers have been changed and
    /// stopped as they want when this returns.
    ///
    /// # Errors
    /// When a plugin says no, two contradict each other, or a validator does not allow it. Plugins have then heard of the
    /// container's removal.
    pub async fn create_container(&self, pod: PodSandbox, container: Container) -> Result<ContainerAdjustment> {
        let mut turn = self.inner.turn.lock().await;
        turn.told.container(container.clone());
        let subject = (pod.clone(), container.clone());
        match self.adjusted(&mut turn, pod, container).await {
            Ok((adjustment, wishes)) => {
                self.inner.grant(wishes).await;
                Ok(adjustment)
            }
            Err(error) => {
                turn.container_ended(&self.inner, &subject.0, &subject.1, true).await;
                Err(error)
            }
        }
    }

    async fn adjusted(
        &self,
        turn: &mut Turn,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(ContainerAdjustment, Wishes)> {
        let builtin = &self.inner.settings.default_validator;
        let validators = turn.plugins_for(Event::ValidateContainerAdjustment);
        let pristine = (builtin.enable || !validators.is_empty()).then(|| (pod.clone(), container.clone()));
        let mut merge = Merge::create(container);
        for plugin in turn.plugins_for(Event::CreateContainer) {
            let request = CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(merge.container().clone()),
            };
            let answer = plugin
                .ask::<CreateContainerResponse>(event::method(Event::CreateContainer), &request)
                .await;
            if let Some(answer) = settle(&plugin, Event::CreateContainer, answer)? {
                merge.created(&plugin.name(), answer).map_err(Error::Conflict)?;
            }
        }
        let consulted = turn.plugins.iter().map(|plugin| PluginInstance {
            name: plugin.identity.base.clone(),
            index: plugin.identity.index.clone(),
        });
        let consulted = consulted.collect();
        let (adjustment, wishes, owners) = merge.finish();
        if let Some((pod, container)) = pristine {
            let request = ValidateContainerAdjustmentRequest {
                pod: Some(pod),
                container: Some(container),
                adjust: Some(adjustment.clone()),
                update: wishes.updates.clone(),
                owners: Some(OwningPlugins { owners }),
                plugins: consulted,
            };
            if builtin.enable {
                validator::check(builtin, &request).map_err(|reason| Error::Rejected {
                    validator: "default-validator".into(),
                    reason,
                })?;
            }
            validate(validators, &request).await?;
        }
        turn.tidy(&self.inner);
        Ok((adjustment, wishes))
    }

    /// A container's limits are about to be changed to `wanted`; what they shall be when the plugins have been heard. Other
    /// containers have been changed and stopped as they want when this returns.
    ///
    /// # Errors
    /// When a plugin says no, or two contradict each other.
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        wanted: LinuxResources,
    ) -> Result<LinuxResources> {
        let mut turn = self.inner.turn.lock().await;
        let mut merge = Merge::update(container.id.clone(), wanted);
        for plugin in turn.plugins_for(Event::UpdateContainer) {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(merge.resources().clone()),
            };
            let answer = plugin
                .ask::<UpdateContainerResponse>(event::method(Event::UpdateContainer), &request)
                .await;
            if let Some(answer) = settle(&plugin, Event::UpdateContainer, answer)? {
                merge
                    .updated(&plugin.name(), answer.update, answer.evict)
                    .map_err(Error::Conflict)?;
            }
        }
        turn.tidy(&self.inner);
        let (resources, wishes) = merge.finish_update();
        self.inner.grant(wishes).await;
        Ok(resources)
    }

    /// A container has ended. Told once; other containers have been changed as plugins want when this returns.
    pub async fn stop_container<F>(&self, id: &str, subject: impl FnOnce() -> F)
    where
        F: Future<Output = (PodSandbox, Container)> + Send,
    {
        self.container_ended(id, subject, false).await;
    }

    /// A container is removed. Told once, after its end.
    pub async fn remove_container<F>(&self, id: &str, subject: impl FnOnce() -> F)
    where
        F: Future<Output = (PodSandbox, Container)> + Send,
    {
        self.container_ended(id, subject, true).await;
    }

    async fn container_ended<F>(&self, id: &str, subject: impl FnOnce() -> F, removed: bool)
    where
        F: Future<Output = (PodSandbox, Container)> + Send,
    {
        let mut turn = self.inner.turn.lock().await;
        if !turn.told.knows(id) {
            return;
        }
        let heard = [Event::StopContainer, Event::RemoveContainer];
        if heard.iter().all(|event| turn.plugins_for(*event).is_empty()) {
            turn.told.stop(id);
            if removed {
                turn.told.remove(id);
            }
            return;
        }
        let (pod, container) = subject().await;
        turn.container_ended(&self.inner, &pod, &container, removed).await;
    }
}

impl Turn {
    fn plugins_for(&self, event: Event) -> Vec<Arc<Plugin>> {
        let open = self.plugins.iter().filter(|plugin| !plugin.is_closed());
        open.filter(|plugin| plugin.wants(event)).cloned().collect()
    }

    /// Tells all that want to hear it, one after the other, until one says no.
    async fn tell(
        &mut self,
        inner: &Inner,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in self.plugins_for(event) {
            let answer = plugin.tell(event, pod, container).await;
            outcome = settle(&plugin, event, answer).map(drop);
            if outcome.is_err() {
                break;
            }
        }
        self.tidy(inner);
        outcome
    }

    /// As [`Turn::tell`], for what nobody can prevent: all are told.
    async fn tell_regardless(&mut self, inner: &Inner, event: Event, pod: &PodSandbox, container: Option<&Container>) {
        for plugin in self.plugins_for(event) {
            let answer = plugin.tell(event, pod, container).await;
            if let Err(error) = settle(&plugin, event, answer) {
                tracing::warn!(pod = pod.id, %error, "an NRI plugin objects to what goes on all the same");
            }
        }
        self.tidy(inner);
    }

    async fn pod_ended(&mut self, inner: &Inner, pod: &PodSandbox, removed: bool) {
        if self.told.stop(&pod.id) {
            self.tell_regardless(inner, Event::StopPodSandbox, pod, None).await;
        }
        if removed && self.told.remove(&pod.id) {
            self.tell_regardless(inner, Event::RemovePodSandbox, pod, None).await;
        }
    }

    async fn container_ended(&mut self, inner: &Inner, pod: &PodSandbox, container: &Container, removed: bool) {
        if self.told.stop(&container.id) {
            let mut merge = Merge::stop();
            let request = StopContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
            };
            for plugin in self.plugins_for(Event::StopContainer) {
                let answer = plugin
                    .ask::<StopContainerResponse>(event::method(Event::StopContainer), &request)
                    .await;
                let merged = settle(&plugin, Event::StopContainer, answer).and_then(|answer| {
                    let updates = answer.unwrap_or_default().update;
                    merge
                        .updated(&plugin.name(), updates, Vec::new())
                        .map_err(Error::Conflict)
                });
                if let Err(error) = merged {
                    tracing::warn!(container = container.id, %error, "an NRI plugin objects to a container's end");
                }
            }
            self.tidy(inner);
            inner.grant(merge.finish_stop()).await;
        }
        if removed && self.told.remove(&container.id) {
            self.tell_regardless(inner, Event::RemoveContainer, pod, Some(container))
                .await;
        }
    }
}

impl Inner {
    /// Does what plugins want of other containers. What fails is logged: nothing can be refused for it any more.
    pub(super) async fn grant(&self, wishes: Wishes) {
        for failed in self.change("", wishes.updates, wishes.evictions).await {
            tracing::warn!(
                container = failed.container_id,
                "an update that an NRI plugin wants could not be made"
            );
        }
    }
}

/// A plugin's answer; none from one that can't be used any more, which is cut off and passed over.
fn settle<T>(plugin: &Plugin, event: Event, answer: std::result::Result<T, Fault>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(fault) if fault.is_fatal() => {
            let event = event::method(event);
            tracing::error!(plugin = plugin.name(), event, %fault, "an NRI plugin is cut off");
            plugin.close();
            Ok(None)
        }
        Err(fault) => Err(Error::Refused {
            plugin: plugin.name(),
            event: event::method(event),
            message: match fault {
                Fault::Refused { message, .. } => message,
                other => other.to_string(),
            },
        }),
    }
}

/// Asks all validators at once. One that can't be asked has not agreed.
async fn validate(validators: Vec<Arc<Plugin>>, request: &ValidateContainerAdjustmentRequest) -> Result<()> {
    let verdicts = validators.iter().map(|validator| async move {
        let method = event::method(Event::ValidateContainerAdjustment);
        let answer = validator
            .ask::<ValidateContainerAdjustmentResponse>(method, request)
            .await;
        let reason = match answer {
            Ok(verdict) if !verdict.reject => return Ok(()),
            Ok(verdict) if verdict.reason.is_empty() => "no reason given".to_owned(),
            Ok(verdict) => verdict.reason,
            Err(fault) => {
                if fault.is_fatal() {
                    validator.close();
                }
                fault.to_string()
            }
        };
        Err(Error::Rejected {
            validator: validator.name(),
            reason,
        })
    });
    join_all(verdicts).await.into_iter().collect()
}
