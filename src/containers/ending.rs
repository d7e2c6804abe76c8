//! How a container ends: exits seen by the monitor, stop, and remove.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use wharf_proto::{
    monitor::ContainerExited,
    record::{self, ContainerState, Exit},
};

use super::{Container, Error, Result, Tools, cpus, image_volumes, is_gone, pause, signals, start, stuck};
use crate::{cgroups, images::rootfs, monitor, runtime, store};

/// How long a process may take to vanish after SIGKILL before it is reported (it hangs in the kernel).
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take before the log says what keeps it.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// How long after the daemon's start the pod's monitor may take to be reached.
const REACH_LIMIT: Duration = Duration::from_secs(10);

/// Exit code of a container whose true end nobody saw (contract rule 15).
const UNKNOWN_CODE: i32 = 255;

/// Records the end that the monitor tells of. What the container holds is then for [`release`].
///
/// # Errors
/// When the record can't be written; the state is published all the same.
pub async fn ended(container: &Container, told: &ContainerExited) -> Result<()> {
    let path = container.exit_file();
    let written = container.blocking(move || Ok(store::read_record::<Exit>(&path)?)).await;
    let exit = written.ok().flatten().unwrap_or_else(|| Exit {
        code: told.code,
        reason: reason(told.code, told.oom_killed).into(),
        finished_at: told.finished_at,
        ..Default::default()
    });
    finish(container, exit).await
}

/// Why a process with this exit code ended, in CRI's words.
fn reason(code: i32, oom_killed: bool) -> &'static str {
    match code {
        _ if oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    }
}

/// Records the end of a container whose monitor is gone: as the monitor wrote it, or Unknown. What still runs in its
/// cgroup is killed first; what the container holds is then for [`release`].
///
/// # Errors
/// When its processes can't be killed or the record can't be written.
pub async fn lost(tools: &Tools, container: &Container) -> Result<()> {
    let path = container.exit_file();
    let remains = Remains::of(tools, container);
    let written = container
        .blocking(move || {
            remains.clear()?;
            Ok(store::read_record::<Exit>(&path)?)
        })
        .await?;
    let exit = written.unwrap_or_else(|| Exit {
        code: UNKNOWN_CODE,
        reason: "Unknown".into(),
        message: "the pod's monitor ended before it could record how the container ended".into(),
        finished_at: store::now(),
        started_at: container.record.get().started_at,
        ..Default::default()
    });
    finish(container, exit).await
}

/// Publishes the end. A container that was never started, or has ended already, is left as it is.
pub(super) async fn finish(container: &Container, exit: Exit) -> Result<()> {
    let edit = |record: &mut record::Container| {
        if matches!(
            record.state(),
            ContainerState::ContainerStarting | ContainerState::ContainerRunning
        ) {
            record.state = ContainerState::ContainerExited.into();
            if record.started_at == 0 {
                record.started_at = exit.started_at;
            }
            record.exit = Some(exit.clone());
            record.paused = false;
        }
    };
    if let Err(error) = container.record.change(edit).await {
        // A full disk must not turn a dead container into a running one.
        container.record.publish_unwritten(edit);
        return Err(error.into());
    }
    Ok(())
}

/// Lets the monitor forget the ended container and unmounts its root filesystem.
///
/// # Errors
/// When a step fails; the container's removal tries again.
pub async fn release(tools: &Tools, container: &Container) -> Result<()> {
    let _one_at_a_time = container.release.lock().await;
    container.stage.enter("runtime");
    let_go(tools, container).await?;
    container.fail_point("release.let-go").await?;
    cpus::end(tools, container).await?;
    container.stage.enter("unmount");
    unmount(tools, container).await
}

/// Lets the runtime forget the ended container: its cgroup goes, its poststop hooks run. Not its root filesystem, which
/// may take long. To be done before the monitor ends; without one the daemon does what it can.
///
/// # Errors
/// When the monitor refuses, or processes can't be killed; call again.
pub async fn let_go(tools: &Tools, container: &Container) -> Result<()> {
    let _one_at_a_time = container.deletion.lock().await;
    if let Some(monitor) = container.sandbox.monitor() {
        match monitor.delete(&container.id).await {
            Ok(()) => return Ok(()),
            Err(error) if !monitor.is_closed() => return Err(container.monitor_error()(error)),
            Err(_) => {}
        }
    }
    let remains = Remains::of(tools, container);
    container.blocking(move || remains.clear()).await
}

/// What there may be of a container that has no monitor any more: processes in its cgroup, the cgroup, and what its runtime
/// keeps.
struct Remains {
    id: String,
    cgroup: String,
    handler: wharf_proto::monitor::Handler,
    bundle: PathBuf,
}

impl Remains {
    fn of(tools: &Tools, container: &Container) -> Self {
        let record = container.record.get();
        Self {
            id: container.id.clone(),
            cgroup: record.cgroup_path.clone(),
            // One without a command has started nothing.
            handler: start::handler(tools, container, &record).unwrap_or_default(),
            bundle: container.dir.clone(),
        }
    }

    /// Blocking. Nothing there is fine.
    fn clear(self) -> Result<()> {
        let Self {
            id,
            cgroup,
            handler,
            bundle,
        } = self;
        let io = |error: cgroups::Error| Error::Io {
            attempt: format!("end the processes in cgroup {cgroup}"),
            id: id.clone(),
            source: std::io::Error::other(error),
        };
        if !cgroup.is_empty() {
            let cgroup = cgroups::Cgroup::new(&cgroups::detect().map_err(io)?, &cgroup).map_err(io)?;
            cgroup.kill_all().map_err(io)?;
            cgroup.remove().map_err(io)?;
        }
        if let Err(error) = runtime::forget(&handler.path, &handler.root, handler.arguments, &id, &bundle) {
            tracing::warn!(container = id, %error, "the runtime could not release all of a container without a monitor");
        }
        Ok(())
    }
}

async fn unmount(tools: &Tools, container: &Container) -> Result<()> {
    tools
        .images
        .unmount_rootfs(&container.dir)
        .await
        .map_err(|source| Error::Rootfs {
            id: container.id.clone(),
            source,
        })?;
    image_volumes::release(tools, container).await
}

/// Stops the container: sends its stop signal once, waits for `timeout`, then kills; returns when the end is recorded.
/// A later call can only shorten the time. Not running: done.
///
/// # Errors
/// When the monitor refuses, or the process is still there a minute after SIGKILL.
pub async fn stop(tools: &Tools, container: &Arc<Container>, timeout: Duration) -> Result<()> {
    let mut changes = container.record.subscribe();
    {
        // A start in progress is let finish: before it there is nothing to signal.
        container.stage.enter("start in progress");
        let _one_at_a_time = container.operation.lock().await;
        if container.state() != ContainerState::ContainerRunning {
            return Ok(());
        }
        // What stands still takes no signal.
        pause::wake(tools, container).await?;
    }
    if !timeout.is_zero() {
        if !container.signalled.swap(true, Ordering::SeqCst) {
            let signal = signals::number(&container.record.get().stop_signal).unwrap_or(libc::SIGTERM);
            tracing::debug!(container = container.id, signal, "sends the stop signal");
            send(container, signal, false).await?;
        }
        container.stage.enter("stop signal");
        let gone = changes.wait_for(|record| record.state() != ContainerState::ContainerRunning);
        if tokio::time::timeout(timeout, gone).await.is_ok() {
            return Ok(());
        }
    }
    container.fail_point("stop.kill").await?;
    // It may have been paused while it was waited for.
    pause::wake(tools, container).await?;
    container.stage.enter("SIGKILL");
    send(container, libc::SIGKILL, true).await?;
    let gone = changes.wait_for(|record| record.state() != ContainerState::ContainerRunning);
    tokio::pin!(gone);
    if tokio::time::timeout(REPORT_AFTER, &mut gone).await.is_ok() {
        return Ok(());
    }
    let left = left_of(tools, container).await?;
    tracing::warn!(
        container = container.id,
        left,
        "a container does not end after SIGKILL; state D waits in the kernel"
    );
    let ended = tokio::time::timeout(KILL_LIMIT.saturating_sub(REPORT_AFTER), gone)
        .await
        .is_ok();
    if ended {
        return Ok(());
    }
    Err(Error::Deadline(format!(
        "container {} did not end within {} s of SIGKILL; what is left: {}",
        container.id,
        KILL_LIMIT.as_secs(),
        left_of(tools, container).await?
    )))
}

/// The processes that are left of the container, for a person (row B7).
async fn left_of(tools: &Tools, container: &Container) -> Result<String> {
    let hierarchies = tools.mechanisms.cgroups.clone();
    let path = container.record.get().cgroup_path.clone();
    container
        .blocking(move || Ok(stuck::describe(&hierarchies, &path)))
        .await
}

async fn send(container: &Container, signal: i32, all: bool) -> Result<()> {
    let mut changes = container.record.subscribe();
    let reached = tokio::select! {
        monitor = container.sandbox.monitor_within(REACH_LIMIT) => monitor,
        _ = changes.wait_for(|record| record.state() != ContainerState::ContainerRunning) => return Ok(()),
    };
    let answer = match reached {
        Some(monitor) => monitor.kill(&container.id, signal, all).await,
        // It runs, and nobody has reached its monitor since the daemon's start.
        None => return wedged(container).await,
    };
    match answer {
        // It ended in between, and the event is on its way.
        Err(error) if is_gone(&error) => Ok(()),
        Err(monitor::Error::Timeout { .. }) => wedged(container).await,
        other => other.map_err(container.monitor_error()),
    }
}

/// The monitor does not answer: only its end lets the container be ended, and the node settles it then.
async fn wedged(container: &Container) -> Result<()> {
    let killed = container.sandbox.end_wedged_monitor().await;
    killed.map_err(|error| Error::State(format!("stop container {}: {error}", container.id)))
}

/// Removes the container, killing it first when it runs. Its log is kubelet's and stays (contract rule 18).
///
/// # Errors
/// When a step fails; the container stays listed and the next call goes on.
pub async fn remove(tools: &Tools, container: &Arc<Container>) -> Result<()> {
    stop(tools, container, Duration::ZERO).await?;
    let _one_at_a_time = container.operation.lock().await;
    if !container.dir.exists() {
        return Ok(());
    }
    if container.state() == ContainerState::ContainerRunning {
        return Err(Error::State(format!(
            "container {} was started while it was being removed",
            container.id
        )));
    }
    container
        .record
        .change_regardless(|record| record.state = ContainerState::ContainerRemoving.into())
        .await;
    container.fail_point("remove.begin").await?;
    // One that is being made ends with the container, and cleans up after itself.
    drop(container.checkpointing.lock().await);
    release(tools, container).await?;
    container.fail_point("remove.released").await?;
    remove_files(container).await?;
    container.fail_point("remove.gone").await
}

/// Removes the container's directory, and the limit of what may be in it.
pub(super) async fn remove_files(container: &Arc<Container>) -> Result<()> {
    let (dir, id, project) = (
        container.dir.clone(),
        container.id.clone(),
        container.record.get().project,
    );
    container
        .blocking(move || {
            // The next one with the same project sets its own.
            if let Err(error) = rootfs::lift_limit(&dir, project) {
                tracing::warn!(container = id, %error, "the disk limit stays on record with the file system");
            }
            Ok(store::remove_dir(&dir)?)
        })
        .await
}
