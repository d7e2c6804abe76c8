//! Containers that stand still. It is the same for every handler, because a cgroup is the kernel's.

use std::sync::Arc;

use wharf_proto::record::{self, ContainerState};

use super::{Container, Error, Result, Tools};
use crate::cgroups::{self, Cgroup};

/// Stops every process of the container where it stands. For CRI it goes on running.
///
/// # Errors
/// [`Error::State`] when it does not run or is paused already; when a process does not stand still in time, after
/// which all run on.
pub async fn pause(tools: &Tools, container: &Arc<Container>) -> Result<()> {
    let _one_at_a_time = container.operation.lock().await;
    check(container)?;
    // Else the checkpoint's end would let it go on.
    let _no_checkpoint = container
        .checkpointing
        .try_lock()
        .map_err(|_| Error::State(format!("container {} is being checkpointed", container.id)))?;
    on_cgroup(tools, container, "pause", Cgroup::freeze).await?;
    let edit = |record: &mut record::Container| {
        // It may have ended in between.
        record.paused = record.state() == ContainerState::ContainerRunning;
    };
    if let Err(error) = container.record.change(edit).await {
        on_cgroup(tools, container, "resume", Cgroup::thaw).await?;
        return Err(error.into());
    }
    Ok(())
}

/// Lets a paused container go on.
///
/// # Errors
/// [`Error::State`] when it is not paused.
pub async fn resume(tools: &Tools, container: &Arc<Container>) -> Result<()> {
    let _one_at_a_time = container.operation.lock().await;
    if !container.is_paused() {
        return Err(Error::State(format!("container {} is not paused", container.id)));
    }
    wake(tools, container).await
}

/// Lets the container go on if it is paused.
pub(super) async fn wake(tools: &Tools, container: &Arc<Container>) -> Result<()> {
    if !container.is_paused() {
        return Ok(());
    }
    on_cgroup(tools, container, "resume", Cgroup::thaw).await?;
    container.record.change(|record| record.paused = false).await?;
    Ok(())
}

/// Refuses what would wait for a container that stands still, or does not run at all.
pub(super) fn check(container: &Container) -> Result<()> {
    if container.state() != ContainerState::ContainerRunning {
        return Err(Error::State(format!("container {} is not running", container.id)));
    }
    if container.is_paused() {
        return Err(Error::State(format!("container {} is paused", container.id)));
    }
    Ok(())
}

async fn on_cgroup(
    tools: &Tools,
    container: &Container,
    attempt: &str,
    act: impl FnOnce(&Cgroup) -> cgroups::Result<()> + Send + 'static,
) -> Result<()> {
    let hierarchies = tools.mechanisms.cgroups.clone();
    let path = container.record.get().cgroup_path.clone();
    let failed = container.io(attempt);
    container
        .blocking(move || {
            let cgroup = Cgroup::new(&hierarchies, &path);
            cgroup
                .and_then(|cgroup| act(&cgroup))
                .map_err(|error| failed(std::io::Error::other(error)))
        })
        .await
}
