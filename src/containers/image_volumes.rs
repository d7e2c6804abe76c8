//! Images as volumes: what is in an image, mounted for reading in the containers of a pod.
//!
//! A pod has one view of an image, below `image-volumes` in its directory, however many of its containers mount it. The
//! view's `users` directory has a file for each of these containers; who takes the last one away unmounts the view.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use wharf_proto::cri::{self, ContainerConfig, IdMapping};

use super::{Container, Error, Result, Tools, asked};
use crate::{
    images::{
        Image,
        rootfs::{self, Owners},
    },
    sandbox::{Labels, Sandbox},
    store,
};

/// What a mount of the config shows.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Digest of the image's configuration.
    pub(super) image_id: String,
    /// The directory to mount, on the node.
    pub(super) path: PathBuf,
}

/// Mounts the images that `config` wants as volumes; by place in its mounts, none for others. What is mounted is
/// released by [`release`], after a failure too.
///
/// # Errors
/// Begins with `ImageVolumeMountFailed`, as kubelet knows it, and says which mount can't be and why.
pub(super) async fn mount(
    tools: &Tools,
    container: &Container,
    config: &ContainerConfig,
    owners: Option<&Owners>,
    labels: Option<&Labels>,
) -> Result<Vec<Option<View>>> {
    let mut views = vec![None; config.mounts.len()];
    if config.mounts.iter().all(|mount| mount.image.is_none()) {
        return Ok(views);
    }
    let _one_at_a_time = container.sandbox.image_volumes.lock().await;
    for (view, mount) in views.iter_mut().zip(&config.mounts) {
        if let Some(spec) = &mount.image {
            check(mount, owners)?;
            let name = &spec.image;
            let image = tools
                .images
                .find(name)
                .filter(|_| !name.is_empty())
                .ok_or_else(|| Error::State(failed(mount, format!("image {name:?} is not on this node"))))?;
            if !mount.readonly && image.artifact.is_none() {
                return Err(Error::Invalid(failed(mount, "an image can only be mounted readonly")));
            }
            // Kubelet knows the beginning of the text.
            tools
                .images
                .vouch(&image, asked::written(spec))
                .await
                .map_err(Error::Image)?;
            *view = Some(mount_one(tools, container, mount, &image, owners.cloned(), labels).await?);
        }
    }
    Ok(views)
}

fn failed(mount: &cri::Mount, why: impl std::fmt::Display) -> String {
    format!("ImageVolumeMountFailed: {why} (mount at {})", mount.container_path)
}

/// What the API says of mounts with an image, and how its users are mapped: as the pod's.
fn check(mount: &cri::Mount, owners: Option<&Owners>) -> Result<()> {
    let mapped = |mappings: &[IdMapping], of: fn(&Owners) -> IdMapping| {
        mappings.is_empty() || owners.is_some_and(|owners| mappings == [of(owners)])
    };
    let wrong = if !mount.host_path.is_empty() {
        "it has both an image and a host_path"
    } else if mount.propagation != 0 {
        "an image can only be mounted with private propagation"
    } else if !mapped(&mount.uid_mappings, |owners| owners.uids) || !mapped(&mount.gid_mappings, |owners| owners.gids) {
        "its id mappings are not those of the pod"
    } else if Path::new(&mount.image_sub_path)
        .components()
        .any(|part| matches!(part, Component::ParentDir | Component::RootDir))
        || mount.image_sub_path.contains('\0')
    {
        "image_sub_path must be relative and must not contain \"..\": path escapes from parent"
    } else {
        return Ok(());
    };
    Err(Error::Invalid(failed(mount, wrong)))
}

async fn mount_one(
    tools: &Tools,
    container: &Container,
    mount: &cri::Mount,
    image: &Arc<Image>,
    owners: Option<Owners>,
    labels: Option<&Labels>,
) -> Result<View> {
    let view = view_of(&container.sandbox, &image.id);
    let (directory, user) = (view.clone(), container.id.clone());
    container
        .blocking(move || {
            for directory in [&directory, &users(&directory)] {
                store::create_dir(directory)?;
            }
            Ok(store::write_file(&users(&directory).join(user), b"", 0o600)?)
        })
        .await?;
    let root = tools
        .images
        .mount_view(image, &view, owners, labels.map(|labels| labels.files.clone()))
        .await
        .map_err(|error| Error::State(failed(mount, error)))?;
    let sub_path = PathBuf::from(&mount.image_sub_path);
    let path = container
        .blocking(move || Ok(rootfs::directory_in(&root, &sub_path)))
        .await?;
    let path = path.map_err(|error| {
        let sub_path = &mount.image_sub_path;
        let why = match error.kind() {
            io::ErrorKind::NotFound => format!(
                "sub path {sub_path:?} does not exist in {} volume {}: no such file or directory",
                if image.artifact.is_some() {
                    "OCI artifact"
                } else {
                    "image"
                },
                image.id
            ),
            io::ErrorKind::NotADirectory => {
                format!(
                    "sub path {sub_path:?} of image {} is not a directory, and only directory subpath is supported",
                    image.id
                )
            }
            _ => format!("sub path {sub_path:?} of image {}: {error}", image.id),
        };
        Error::Invalid(failed(mount, why))
    })?;
    Ok(View {
        image_id: image.id.clone(),
        path,
    })
}

fn view_of(sandbox: &Sandbox, image_id: &str) -> PathBuf {
    let name = image_id.split_once(':').map_or(image_id, |(_, digest)| digest);
    sandbox.paths.image_volumes().join(name)
}

fn users(view: &Path) -> PathBuf {
    view.join("users")
}

/// Releases what the container uses; what no other of its pod uses is unmounted. Nothing mounted is fine.
///
/// # Errors
/// When a view can't be unmounted or removed; call again.
pub(super) async fn release(tools: &Tools, container: &Container) -> Result<()> {
    let mounts_none = |config: &ContainerConfig| config.mounts.iter().all(|mount| mount.image.is_none());
    // A record that could not be read says nothing.
    if container.record.get().config.as_ref().is_some_and(mounts_none) {
        return Ok(());
    }
    let (directory, user) = (container.sandbox.paths.image_volumes(), container.id.clone());
    let io_error = container.io("release an image volume");
    let _one_at_a_time = container.sandbox.image_volumes.lock().await;
    let unused = move || {
        let mut unused = Vec::new();
        for name in store::list_dirs(&directory)? {
            let view = directory.join(name);
            match give_up(&view, &user) {
                Ok(true) => unused.push(view),
                Ok(false) => {}
                Err(error) => return Err(io_error(error)),
            }
        }
        Ok(unused)
    };
    for view in container.blocking(unused).await? {
        tools.images.remove_view(&view).await.map_err(|source| Error::Rootfs {
            id: container.id.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Ends a container's use of a view; says whether nobody uses it any more.
fn give_up(view: &Path, user: &str) -> io::Result<bool> {
    let absent_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    absent_is_fine(fs::remove_file(users(view).join(user)))?;
    match absent_is_fine(fs::remove_dir(users(view))) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        other => other.map(|()| true),
    }
}

/// Releases every view of the pod, whoever uses it: for when its containers have been removed, and for what a daemon
/// that was killed left of them.
///
/// # Errors
/// When a view can't be unmounted or removed; call again.
pub async fn release_all(tools: &Tools, sandbox: &Sandbox) -> Result<()> {
    let _one_at_a_time = sandbox.image_volumes.lock().await;
    let directory = sandbox.paths.image_volumes();
    for view in views_in(directory).await? {
        tools.images.remove_view(&view).await.map_err(|source| Error::Rootfs {
            id: format!("of pod {}", sandbox.id),
            source,
        })?;
    }
    Ok(())
}

async fn views_in(directory: PathBuf) -> Result<Vec<PathBuf>> {
    let list = move || -> store::Result<Vec<PathBuf>> {
        let names = store::list_dirs(&directory)?;
        Ok(names.into_iter().map(|name| directory.join(name)).collect())
    };
    let listed = tokio::task::spawn_blocking(list).await;
    Ok(listed.map_err(|error| Error::State(format!("list image volumes: {error}")))??)
}
