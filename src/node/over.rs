//! Pods that a person wants removed when their containers have ended (`wharf run -d --rm`): nobody waits for those, so
//! the node does it, across its own restarts too.

use std::{path::Path, sync::Arc};

use wharf_proto::record::{ContainerState, Owner};

use super::Node;
use crate::{containers::Container, sandbox::Sandbox};

/// Annotation of a person's pod that is removed once all its containers have ended.
pub const REMOVE: &str = "wharf.run/remove";
/// Annotation of a container whose log directory was chosen by a person: its log is left alone.
pub const KEEP_LOG: &str = "wharf.run/keep-log";

impl Node {
    /// Removes the pod, with its containers' logs, if that is wanted and its time has come.
    pub(super) fn remove_if_over(&self, pod: &Arc<Sandbox>) {
        let record = pod.record.get();
        let wanted = record.owner() == Owner::User
            && record
                .config
                .as_ref()
                .is_some_and(|config| config.annotations.contains_key(REMOVE));
        let containers = self.containers_of(&pod.id);
        let over = |container: &Arc<Container>| container.state() == ContainerState::ContainerExited;
        if !wanted || containers.is_empty() || !containers.iter().all(over) {
            return;
        }
        let (node, pod) = (self.clone(), Arc::clone(pod));
        self.inner.tasks.spawn(async move {
            if let Err(error) = node.remove_pod(&pod).await {
                tracing::error!(pod = pod.id, %error, "could not remove a pod that is over");
                return;
            }
            let removal = tokio::task::spawn_blocking(move || containers.iter().for_each(|one| remove_log(one)));
            if let Err(error) = removal.await {
                tracing::error!(pod = pod.id, %error, "could not remove the logs of a pod that is over");
            }
        });
    }
}

/// Removes the log, and its directory when nothing else lies there.
fn remove_log(container: &Container) {
    let record = container.record.get();
    let kept = record
        .config
        .as_ref()
        .is_some_and(|config| config.annotations.contains_key(KEEP_LOG));
    let path = Path::new(&record.log_path);
    if !kept && path.is_absolute() && std::fs::remove_file(path).is_ok() {
        // Fails when something else lies there, which is then not ours.
        let _ = path.parent().map(std::fs::remove_dir);
    }
}
