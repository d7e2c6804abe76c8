//! What was made for callers that have all given up: it is hidden, given to whoever asks for the same again, and otherwise
//! undone (row A3). So a deadline that is too short neither leaves pods that nobody knows nor has work begin anew.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use wharf_proto::record;

use super::{Error, Node, PodKey, Result};
use crate::{
    containers::{self, Container},
    sandbox::{Claim, Sandbox},
};

/// What can be hidden.
pub(super) trait Claimed {
    /// Whether anybody has been told of it.
    fn claim(&self) -> &Claim;
}

impl Claimed for Sandbox {
    fn claim(&self) -> &Claim {
        &self.claim
    }
}

impl Claimed for Container {
    fn claim(&self) -> &Claim {
        &self.claim
    }
}

/// `found`, unless nobody has been told of it: then nothing can be done with it (contract rule 1 is about what has gone).
pub(super) fn told<T: Claimed>(what: &str, id: &str, found: Arc<T>) -> Result<Arc<T>> {
    if found.claim().is_hidden() {
        return Err(Error::State(format!(
            "{what} {id} was made for a caller that gave up; ask for the same again to get it"
        )));
    }
    Ok(found)
}

/// `known` where it had just been hidden and is claimed by this: somebody is to be told of it.
fn claimed<T: Claimed>(what: &str, id: &str, known: Option<Arc<T>>) -> Result<Option<Arc<T>>> {
    let hidden = known.filter(|object| object.claim().is_hidden());
    if hidden.as_ref().is_some_and(|object| !object.claim().claim()) {
        return Err(Error::State(format!(
            "{what} {id} is being removed, as nobody waited for it; ask for it again"
        )));
    }
    Ok(hidden)
}

impl Node {
    /// Has nobody see `pod` until it is asked for again.
    pub(super) fn hide_pod(&self, pod: &Arc<Sandbox>) {
        pod.claim.hide();
        tracing::info!(
            pod = pod.id,
            "nobody waits for this pod sandbox any more; it waits to be asked for again"
        );
        let (node, pod) = (self.clone(), Arc::clone(pod));
        self.inner.tasks.spawn(async move {
            node.unclaimed_time().await;
            if pod.claim.give_up() {
                tracing::info!(
                    pod = pod.id,
                    "nobody has asked for this pod sandbox again; it is removed"
                );
                if let Err(error) = node.remove_pod(&pod).await {
                    tracing::error!(pod = pod.id, %error, "and could not be removed whole");
                    // Listed, so that its stop and removal can go on.
                    pod.claim.show();
                    node.tell_pod(&pod);
                }
            }
        });
    }

    /// The same for a container.
    pub(super) fn hide_container(&self, container: &Arc<Container>) {
        container.claim.hide();
        tracing::info!(
            container = container.id,
            "nobody waits for this container any more; it waits to be asked for again"
        );
        let (node, container) = (self.clone(), Arc::clone(container));
        self.inner.tasks.spawn(async move {
            node.unclaimed_time().await;
            if container.claim.give_up() {
                tracing::info!(
                    container = container.id,
                    "nobody has asked for this container again; it is removed"
                );
                node.drop_hidden(&container).await;
            }
        });
    }

    /// For a caller that joined a creation at its very end, when it had just been found that nobody waits.
    pub(super) fn claimed_pod(&self, made: Result<String>) -> Result<String> {
        let id = made?;
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        let known = pods.get(&id).cloned();
        drop(pods);
        if let Some(pod) = claimed("pod sandbox", &id, known)? {
            self.tell_pod(&pod);
        }
        Ok(id)
    }

    /// The same for a container.
    pub(super) fn claimed_container(&self, made: Result<String>) -> Result<String> {
        let id = made?;
        let containers = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
        let known = containers.get(&id).cloned();
        drop(containers);
        if let Some(container) = claimed("container", &id, known)? {
            self.tell_container(&container);
        }
        Ok(id)
    }

    /// Removes a container that nobody was told of. What can't be removed goes with its pod.
    async fn drop_hidden(&self, container: &Arc<Container>) {
        let before = self.about_to_go(container).await;
        match containers::remove(&self.inner.tools, container).await {
            Ok(()) => {
                self.plugins_hear_removal(container, before).await;
                self.forget_container(container);
            }
            Err(error) => {
                tracing::error!(container = container.id, %error, "a container that nobody asked for again could not be removed");
            }
        }
    }

    /// As long as what nobody waits for is kept; ends with the daemon, which leaves nothing that nobody knows.
    async fn unclaimed_time(&self) {
        let limit = Duration::from_secs(self.config().unclaimed_secs);
        tokio::select! {
            () = tokio::time::sleep(limit) => {}
            () = self.inner.ending.cancelled() => {}
        }
    }

    /// Removes what nobody was told of and `wanted` takes the place of: the same pod by another config, or another attempt at it,
    /// which may need the same host ports; and what a daemon that was killed had begun for it.
    pub(super) async fn finish_unseen(&self, wanted: &record::Pod) -> Result<()> {
        let key = PodKey::of(wanted);
        let stale = |pod: &Arc<Sandbox>| {
            let record = pod.record.get();
            // The one with this config has been claimed before.
            let hidden = pod.claim.is_hidden() && PodKey::of(&record).is_of_the_same_pod(&key);
            hidden || (!super::pods::is_visible(&record) && PodKey::of(&record) == key)
        };
        for pod in self.all_pods().into_iter().filter(stale) {
            pod.claim.give_up();
            self.remove_pod(&pod).await?;
        }
        Ok(())
    }

    /// The same for a container that is about to be made.
    pub(super) async fn finish_unseen_containers(&self, wanted: &record::Container) {
        let name = |record: &record::Container| {
            let metadata = record.config.as_ref().and_then(|config| config.metadata.as_ref());
            metadata.map(|metadata| metadata.name.clone())
        };
        for container in self.containers_of(&wanted.pod_id) {
            if container.id != wanted.id && container.claim.is_hidden() && name(&container.record.get()) == name(wanted)
            {
                container.claim.give_up();
                self.drop_hidden(&container).await;
            }
        }
    }
}
