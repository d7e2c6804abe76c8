//! Listening to the monitors: exits, and monitors that end.

use std::sync::Arc;

use wharf_proto::{
    monitor::ContainerExited,
    record::{ContainerState, PodState},
};

use super::Node;
use crate::{
    containers,
    containers::Container,
    monitor::client::{Event, Events},
    sandbox::Sandbox,
};

impl Node {
    /// Follows the monitor of `pod` until it ends or the node does.
    pub(super) fn watch(&self, pod: &Arc<Sandbox>, mut events: Events) {
        let (node, pod) = (self.clone(), Arc::clone(pod));
        self.inner.tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = node.inner.ending.cancelled() => return,
                };
                match event {
                    Some(Event::ContainerExited(exit)) => node.exited(exit),
                    Some(Event::CallsBlocked(told)) => {
                        if let Ok(container) = node.container(&told.container_id) {
                            container.set_blocked(told.calls);
                        }
                    }
                    Some(Event::ExecExited(exec)) => pod.exec_ended(&exec.exec_id, exec.code),
                    None => break,
                }
            }
            // A box of its own: the task waits here all the pod's life, and would have room for this from the beginning.
            Box::pin(node.monitor_ended(&pod)).await;
        });
    }

    /// Handles one exit in a task of its own, so that a slow unmount delays no other container's.
    fn exited(&self, exit: ContainerExited) {
        let Ok(container) = self.container(&exit.container_id) else {
            tracing::warn!(
                container = exit.container_id,
                "a container ended that is not known here"
            );
            return;
        };
        let node = self.clone();
        self.inner.tasks.spawn(async move {
            tracing::info!(
                container = container.id,
                code = exit.code,
                oom = exit.oom_killed,
                "container ended"
            );
            node.container_ended(&container, &exit).await;
        });
    }

    /// Records and tells how a container ended, then releases what it held.
    pub(super) async fn container_ended(&self, container: &Arc<Container>, exit: &ContainerExited) {
        if let Err(error) = containers::ended(container, exit).await {
            tracing::error!(container = container.id, %error, "could not record how a container ended");
        }
        self.release_ended(container).await;
    }

    async fn release_ended(&self, container: &Arc<Container>) {
        self.tell_container(container);
        // Neither waits for the other.
        let (released, ()) = tokio::join!(
            containers::release(&self.inner.tools, container),
            self.plugins_hear_end(container)
        );
        if let Err(error) = released {
            tracing::error!(container = container.id, %error, "could not release all of an ended container");
        }
        self.remove_if_over(&container.sandbox);
    }

    /// A monitor that ended while its pod was ready has crashed or was killed: the pod can't go on.
    pub(super) async fn monitor_ended(&self, pod: &Arc<Sandbox>) {
        pod.forget_monitor();
        let containers = self.containers_of(&pod.id);
        let in_use = pod.is_ready() || containers.iter().any(|container| is_unsettled(container));
        if in_use && pod.record.get().boot_id == self.mechanisms().boot_id {
            // Its helpers could go on making a container that nobody knows any more.
            if let Err(error) = pod.end_helpers().await {
                tracing::error!(pod = pod.id, %error, "could not end what the pod's monitor had begun");
            }
        }
        if pod.is_ready() {
            tracing::error!(
                pod = pod.id,
                "the pod's monitor ended unexpectedly; the pod is not ready any more"
            );
            let edit = |record: &mut wharf_proto::record::Pod| record.state = PodState::PodNotReady.into();
            if let Err(error) = pod.record.change(edit).await {
                tracing::error!(pod = pod.id, %error, "could not record that the pod is not ready");
            }
        }
        self.tell_pod(pod);
        for container in containers {
            self.container_lost(&container).await;
        }
    }

    /// Settles a container that was running and has no monitor any more.
    pub(super) async fn container_lost(&self, container: &Arc<Container>) {
        if !is_unsettled(container) {
            return;
        }
        match containers::lost(&self.inner.tools, container).await {
            Ok(()) => self.release_ended(container).await,
            Err(error) => {
                tracing::error!(container = container.id, %error, "could not settle a container whose monitor ended");
            }
        }
    }
}

/// Runs or is about to, as far as anybody knows.
fn is_unsettled(container: &Container) -> bool {
    matches!(
        container.state(),
        ContainerState::ContainerStarting | ContainerState::ContainerRunning
    )
}
