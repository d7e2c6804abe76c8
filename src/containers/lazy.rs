//! Containers of images that are not complete: their files are shown by the daemon, whichever it is.

use std::{path::Path, sync::Arc};

use super::{Container, Error, Result, Tools};
use crate::{
    images::{Image, Images, Mounted, rootfs::Owners},
    monitor::{self, Client},
};

/// Has the pod's monitor hold what a later daemon needs to go on showing the files of the root filesystem that was `mounted`.
/// Where it can't, waits for the image and mounts it anew, with the same `owners`, `label` and `limit`. Returns what is mounted
/// in the end.
///
/// # Errors
/// When the monitor does not answer, or the image can't be completed or mounted.
pub(super) async fn hand_over(
    tools: &Tools,
    container: &Arc<Container>,
    image: &Arc<Image>,
    mounted: Mounted,
    owners: Option<Owners>,
    label: Option<String>,
    limit: u64,
) -> Result<Mounted> {
    let failed = |source| Error::Rootfs {
        id: container.id.clone(),
        source,
    };
    let Some((device, note)) = tools.images.lazy_handle(&container.dir).map_err(failed)? else {
        return Ok(mounted);
    };
    let Some(monitor) = container.sandbox.monitor() else {
        return Err(Error::State(format!(
            "pod sandbox {} has no monitor",
            container.sandbox.id
        )));
    };
    match monitor.keep(&container.id, device, note).await {
        Ok(()) => return Ok(mounted),
        Err(error) if error.kind() == Some(wharf_proto::monitor::ErrorKind::UnknownOperation) => {
            tracing::info!(
                container = container.id,
                "the pod's monitor is older than this; the container waits for its image"
            );
        }
        Err(error) => return Err(container.monitor_error()(error)),
    }
    tools.images.unmount_rootfs(&container.dir).await.map_err(failed)?;
    let image = tools.images.whole(Arc::clone(image)).await.map_err(failed)?;
    let mounted = tools.images.mount_rootfs(&image, &container.dir, owners, label, limit);
    mounted.await.map_err(failed)
}

/// Goes on with what a daemon before this one has shown to `containers`, whose pod's monitor answers. What fails is logged: the
/// container then gets errors for what it reads of its image, as with a disk that is gone.
pub async fn take_back(tools: &Tools, client: &Client, containers: &[Arc<Container>]) {
    for container in containers {
        let dir = container.dir.clone();
        let was = container.blocking(move || Ok(Images::was_lazy(&dir))).await;
        if !was.unwrap_or(false) {
            continue;
        }
        if let Err(error) = resume(tools, client, &container.id, &container.dir).await {
            tracing::error!(
                container = container.id,
                error,
                "files of an image that is not complete can't be shown any more"
            );
        }
    }
}

async fn resume(tools: &Tools, client: &Client, id: &str, dir: &Path) -> std::result::Result<(), String> {
    let (device, note) = client
        .give_back(id)
        .await
        .map_err(|error: monitor::Error| error.to_string())?;
    let resumed = tools.images.resume_lazy(dir, device, &note).await;
    resumed.map_err(|error| error.to_string())
}
