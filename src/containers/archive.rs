//! A container's files as an archive, and as an image.

use std::sync::Arc;

use super::{Container, Error, Result, Tools, create, pause};
use crate::images::{Changed, Order, Outflow};

/// The container's root filesystem as an archive; it may run or have ended.
///
/// # Errors
/// When its image is gone, or its root filesystem can't be mounted.
pub async fn export(tools: &Tools, container: &Container) -> Result<Outflow> {
    let changed = changed(tools, container)?;
    // It must not be unmounted just now.
    let _one_at_a_time = container.release.lock().await;
    tools.images.export(changed).await.map_err(failed(container))
}

/// Makes an image of the container's image and of what the container has changed; returns its id. If it runs and
/// `still` is set, it is paused meanwhile.
///
/// # Errors
/// When its image is gone, the order makes no sense, the changes can't be said in a layer, or it can't be paused.
pub async fn commit(tools: &Tools, container: &Arc<Container>, order: Order, still: bool) -> Result<String> {
    let changed = changed(tools, container)?;
    let paused = still && pause::check(container).is_ok();
    if paused {
        match pause::pause(tools, container).await {
            // It has ended, or somebody else has paused it.
            Ok(()) | Err(Error::State(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let made = tools.images.commit(changed, order).await.map_err(failed(container));
    if paused {
        pause::wake(tools, container).await?;
    }
    made
}

fn changed(tools: &Tools, container: &Container) -> Result<Changed> {
    let record = container.record.get();
    let config = record.config.clone().unwrap_or_default();
    let pod = container.sandbox.record.get().config.clone().unwrap_or_default();
    let image = tools.images.find(&record.image_id);
    let owners = create::owners(container, &pod, &config)?;
    let env = config.envs.into_iter().map(|env| match String::from_utf8(env.value) {
        Ok(value) => Ok((env.key, value)),
        Err(_) => Err(Error::Invalid(format!(
            "variable {} of container {} is not UTF-8, as an image's must be",
            env.key, container.id
        ))),
    });
    let env = env.collect::<Result<_>>()?;
    Ok(Changed {
        image: image.ok_or_else(|| Error::NoImage(record.image_id.clone()))?,
        directory: container.dir.clone(),
        owners,
        entrypoint: config.command,
        cmd: config.args,
        env,
        working_dir: config.working_dir,
    })
}

fn failed(container: &Container) -> impl FnOnce(crate::images::Error) -> Error {
    let id = container.id.clone();
    move |source| Error::Rootfs { id, source }
}
