//! Taking a pod down from whatever is found of it (design decision 7). Each step tolerates "already gone".

use std::{sync::Arc, time::Duration};

use nix::mount::{MntFlags, umount2};
use wharf_proto::record;

use super::{DEFAULT_CGROUP_PARENT, Error, Mechanisms, Result, Sandbox, start::blocking};
use crate::{
    cgroups,
    monitor::{self, client::Client},
    store,
};

/// How long a monitor may take to answer.
const MONITOR_LIMIT: Duration = Duration::from_secs(5);

/// Releases all that the pod holds but its record and its containers' directories: network, namespaces, monitor,
/// shared memory. Its containers must have ended. Idempotent.
///
/// # Errors
/// The first step that failed is returned after all others were tried; the next call starts over (contract rule 9).
pub async fn tear_down(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>) -> Result<()> {
    let record = sandbox.record.get();
    if record.teardown_done {
        return Ok(());
    }
    // A pod that was never complete stays so: nobody has seen it, and nobody shall while it is undone.
    if record.state() == record::PodState::PodReady {
        sandbox
            .record
            .change_regardless(|pod| pod.state = record::PodState::PodNotReady.into())
            .await;
    }
    sandbox.fail_point("down.begin").await?;
    sandbox.stage.enter("network");
    // The kernel takes its time over devices and namespaces, in which the monitor can end.
    let network = async {
        let network = detach(mechanisms, sandbox, record.network.as_ref()).await;
        sandbox.fail_point("down.detached").await?;
        let back = mechanisms
            .networks
            .take_back(&sandbox.paths.namespaces(), record.lent.clone())
            .await
            .map_err(sandbox.network_error());
        sandbox.stage.enter("namespaces");
        let namespaces = mechanisms
            .networks
            .remove_namespaces(&sandbox.paths.namespaces())
            .await
            .map_err(sandbox.network_error());
        sandbox.fail_point("down.namespaces").await?;
        // What is waited for then, if anything.
        sandbox.stage.enter("monitor");
        network.and(back).and(namespaces)
    };
    let monitor = async {
        let monitor = end_monitor(sandbox).await;
        sandbox.fail_point("down.monitor").await?;
        monitor
    };
    let (network, monitor) = tokio::join!(network, monitor);
    sandbox.stage.enter("files");
    let pod = Arc::clone(sandbox);
    let files = blocking(sandbox, move || release_files(&pod)).await;
    network.and(monitor).and(files)?;
    sandbox.fail_point("down.files").await?;
    if let Some(selinux) = &mechanisms.selinux {
        selinux.release(&record.selinux_level);
    }
    sandbox.record.change_regardless(|pod| pod.teardown_done = true).await;
    Ok(())
}

async fn detach(mechanisms: &Mechanisms, sandbox: &Sandbox, network: Option<&record::Network>) -> Result<()> {
    match network {
        Some(network) if network.attempted => mechanisms
            .networks
            .detach(&sandbox.pod_network(&mechanisms.config.get()), network)
            .await
            .map_err(sandbox.network_error()),
        _ => Ok(()),
    }
}

/// Ends the monitor. One that was started before a crash of the daemon but never connected to is found by its socket.
/// One that does not answer is killed.
async fn end_monitor(sandbox: &Sandbox) -> Result<()> {
    if sandbox.refusal().is_some() {
        // Its words for the way down are not known; what it held is found by the kernel's means.
        return sandbox.end_wedged_monitor().await;
    }
    let client = match sandbox.monitor() {
        Some(client) => client,
        None => match Client::connect(&sandbox.paths.monitor(), MONITOR_LIMIT).await {
            Ok((client, _, _)) => Arc::new(client),
            Err(monitor::Error::Timeout { .. }) => return sandbox.end_wedged_monitor().await,
            // Nobody listens: it has ended.
            Err(_) => return Ok(()),
        },
    };
    match client.shutdown().await {
        Err(monitor::Error::Timeout { .. }) => sandbox.end_wedged_monitor().await?,
        Err(source) if !client.is_closed() => {
            return Err(Error::Monitor {
                pod: sandbox.id.clone(),
                source,
            });
        }
        _ => {}
    }
    sandbox.forget_monitor();
    Ok(())
}

fn release_files(sandbox: &Sandbox) -> Result<()> {
    let shm = sandbox.paths.shm();
    match umount2(&shm, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: not a mount point; ENOENT: gone.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(sandbox.io("unmount /dev/shm")(errno.into())),
    }
    store::remove_dir(&sandbox.paths.run)?;
    Ok(())
}

/// Removes the cgroups that all pods share, if nothing is in them: for when the last pod has gone.
///
/// # Errors
/// When the cgroup hierarchies can't be found.
pub async fn release_shared_cgroups() -> Result<()> {
    let release = || -> cgroups::Result<()> {
        let hierarchies = cgroups::detect()?;
        for path in [DEFAULT_CGROUP_PARENT, monitor::DEFAULT_CGROUP] {
            cgroups::Cgroup::new(&hierarchies, path)?.remove_if_empty();
        }
        Ok(())
    };
    match tokio::task::spawn_blocking(release).await {
        Ok(Err(error)) => Err(Error::Invalid(format!("release the cgroups that pods share: {error}"))),
        _ => Ok(()),
    }
}

/// Removes what [`tear_down`] left: the record and the files. The pod's containers must have been removed.
///
/// # Errors
/// When something can't be removed; the record goes last, so that the pod stays known until then.
pub async fn remove(sandbox: &Arc<Sandbox>) -> Result<()> {
    sandbox.fail_point("forget.begin").await?;
    let pod = Arc::clone(sandbox);
    blocking(sandbox, move || {
        store::remove_dir(&pod.paths.containers())?;
        store::remove_dir(&pod.paths.state)?;
        Ok(())
    })
    .await?;
    sandbox.fail_point("forget.gone").await
}
