//! Root filesystems of containers, views of images for their volumes, and the layers they hold.
//!
//! `<directory>/layers` names what is mounted: the image id in the first line, then the layers' directories, bottom
//! first. After a restart it tells which layers are in use.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Error, Image, Result,
    layers::{Layers, Pin},
    pull::blocking,
    room::Room,
    rootfs,
};
use crate::store;

const FILE: &str = "layers";

/// Who has mounted what.
#[derive(Default)]
pub(super) struct Mounts(Mutex<HashMap<PathBuf, Vec<Pin>>>);

impl Mounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<Pin>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers that a container's root filesystem is made of, top first.
    pub(super) fn layers(&self, container: &Path) -> Option<Vec<PathBuf>> {
        let mounts = self.lock();
        Some(mounts.get(container)?.iter().rev().map(Pin::path).collect())
    }
}

/// A container's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is mounted.
    pub rootfs: PathBuf,
    /// The project whose its writable layer is; 0 without.
    pub project: u32,
}

/// See [`super::Images::mount_rootfs`].
pub(super) async fn mount(
    room: &Arc<Room>,
    image: &Image,
    container: &Path,
    owners: Option<rootfs::Owners>,
    label: Option<String>,
    limit: u64,
) -> Result<Mounted> {
    let (directory, owner) = (container.to_owned(), room.clone());
    hold(room, image, container, move |layers| {
        Ok(owner.projects.assign(&directory, limit, |project| {
            let rootfs = rootfs::mount_labelled(layers, &directory, owners.as_ref(), label.as_deref(), project)?;
            Ok(Mounted { rootfs, project })
        })?)
    })
    .await
}

/// See [`super::Images::mount_view`].
pub(super) async fn mount_view(
    room: &Arc<Room>,
    image: &Image,
    view: &Path,
    owners: Option<rootfs::Owners>,
    label: Option<String>,
) -> Result<PathBuf> {
    if room.mounts.lock().contains_key(view) {
        let directory = view.to_owned();
        if let Some(there) = blocking(move || Ok(rootfs::mounted(&directory)?)).await? {
            return Ok(there);
        }
    }
    let directory = view.to_owned();
    hold(room, image, view, move |layers| {
        Ok(rootfs::mount_read_only(
            layers,
            &directory,
            owners.as_ref(),
            label.as_deref(),
        )?)
    })
    .await
}

/// Notes that `directory` uses the image's layers, and mounts them (top first).
async fn hold<T: Send + 'static>(
    room: &Arc<Room>,
    image: &Image,
    directory: &Path,
    mount: impl FnOnce(&[PathBuf]) -> Result<T> + Send + 'static,
) -> Result<T> {
    let pins = image.pins.clone();
    let mut text = format!("{}\n", image.id);
    for pin in &pins {
        text.push_str(pin.name());
        text.push('\n');
    }
    let top_first: Vec<PathBuf> = pins.iter().rev().map(Pin::path).collect();
    room.mounts.lock().insert(directory.to_owned(), pins);
    let file = directory.join(FILE);
    let mounted = blocking(move || {
        store::write_file(&file, text.as_bytes(), 0o600)?;
        mount(&top_first).inspect_err(|_| {
            let _ = fs::remove_file(&file);
        })
    })
    .await;
    if mounted.is_err() {
        room.mounts.lock().remove(directory);
    }
    mounted
}

/// See [`super::Images::unmount_rootfs`].
pub(super) async fn unmount(room: &Arc<Room>, container: &Path) -> Result<()> {
    let directory = container.to_owned();
    blocking(move || {
        rootfs::unmount(&directory)?;
        let file = directory.join(FILE);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", file)(error)),
            _ => Ok(()),
        }
    })
    .await?;
    let pins = room.mounts.lock().remove(container);
    drop(pins);
    Ok(())
}

/// Takes over what `containers` had mounted before this process began. Blocking.
pub(super) fn adopt(mounts: &Mounts, layers: &Layers, containers: &[PathBuf]) -> Result<()> {
    for container in containers {
        let file = container.join(FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read", file)(error)),
        };
        let pins = text.lines().skip(1).filter_map(|name| layers.pin_name(name)).collect();
        mounts.lock().entry(container.clone()).or_insert(pins);
    }
    Ok(())
}
