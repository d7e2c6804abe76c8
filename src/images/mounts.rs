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
    lazy::{self, LazyImage},
    pull::blocking,
    room::Room,
    rootfs,
};
use crate::store;

const FILE: &str = "layers";

/// Stands in that file for a layer that has not come whole.
const LAZY: &str = "lazy";

/// Who has mounted what.
#[derive(Default)]
pub(super) struct Mounts(Mutex<HashMap<PathBuf, Held>>);

/// Layers, bottom first.
enum Held {
    Whole(Vec<Pin>),
    /// Not all of them were here.
    Lazy(Arc<LazyImage>),
    /// The same, by a daemon before this one; those that were.
    Left {
        _pins: Vec<Pin>,
    },
}

impl Mounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers that a container's root filesystem is made of, top first.
    pub(super) fn layers(&self, container: &Path) -> Option<Vec<PathBuf>> {
        let mounts = self.lock();
        match mounts.get(container)? {
            Held::Whole(pins) => Some(pins.iter().rev().map(Pin::path).collect()),
            Held::Lazy(image) => {
                let lowers = image.layers.iter().rev();
                lowers.map(|lower| lower.pin().map(Pin::path)).collect()
            }
            Held::Left { .. } => None,
        }
    }
}

/// A container's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is mounted.
    pub rootfs: PathBuf,
    /// The project whose its writable layer is; 0 without.
    pub project: u32,
    /// A part of it is served by this daemon, whose own threads must not touch it: see [`rootfs::apart`].
    pub served: bool,
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
    if let Some(lazy) = image.lazy.as_ref().filter(|lazy| lazy.pins().is_none()) {
        let obstacle = match room.lazy.obstacle().await {
            Some(lack) => Some(lack),
            None if !image.config.volumes.is_empty() => {
                Some("the image declares volumes, which begin with a copy of what is there".to_owned())
            }
            None if owners.is_some() && !room.lazy.maps_owners().await => Some(
                "its pod has a user namespace, and files on demand can be mapped from Linux 6.12 on only".to_owned(),
            ),
            None => None,
        };
        if let Some(reason) = obstacle {
            let name = container.file_name().unwrap_or_default().to_string_lossy();
            tracing::info!(container = %name, image = %lazy.reference, reason, "the container waits until its image is complete");
        } else if let Some(lowers) = lazy::mount(room, lazy, &image.layers, container).await? {
            let mounted = mount_lazily(room, (image, lazy), container, lowers, owners, label, limit).await;
            if mounted.is_err() {
                lazy::forget(room, container).await?;
            }
            return mounted;
        }
    }
    let (directory, owner) = (container.to_owned(), room.clone());
    hold(room, image, container, move |layers| {
        writable(
            &owner,
            layers,
            &directory,
            owners.as_ref(),
            label.as_deref(),
            limit,
            false,
        )
    })
    .await
}

/// Mounts `layers` (top first), some of which may be `served`, at `directory` so that no more than `limit` bytes can be written.
/// Blocking.
fn writable(
    room: &Room,
    layers: &[PathBuf],
    directory: &Path,
    owners: Option<&rootfs::Owners>,
    label: Option<&str>,
    limit: u64,
    served: bool,
) -> Result<Mounted> {
    Ok(room.projects.assign(directory, limit, |project| {
        let mount = if served {
            rootfs::apart::mount_served
        } else {
            rootfs::mount_labelled
        };
        Ok(Mounted {
            rootfs: mount(layers, directory, owners, label, project)?,
            project,
            served,
        })
    })?)
}

async fn mount_lazily(
    room: &Arc<Room>,
    (image, lazy): (&Image, &Arc<LazyImage>),
    container: &Path,
    mut lowers: Vec<PathBuf>,
    owners: Option<rootfs::Owners>,
    label: Option<String>,
    limit: u64,
) -> Result<Mounted> {
    let names = lazy.layers.iter().map(|lower| match lower {
        lazy::Lower::Whole(pin) => pin.name(),
        lazy::Lower::Lazy(_) => LAZY,
    });
    let text = noted(image, names);
    lowers.reverse();
    let (directory, owner) = (container.to_owned(), room.clone());
    let mount = move || {
        let (owners, label) = (owners.as_ref(), label.as_deref());
        writable(&owner, &lowers, &directory, owners, label, limit, true)
    };
    let mounted = note(room, container, text, Held::Lazy(lazy.clone()), mount).await?;
    // overlayfs has its own hold of it.
    let directory = container.to_owned();
    let detached = blocking(move || lazy::detach(&directory)).await;
    if detached.is_err() {
        room.mounts.lock().remove(container);
    }
    detached.map(|()| mounted)
}

/// `container`, which a daemon before this one had mounted, has `image`.
pub(super) fn served(room: &Room, container: &Path, image: &Arc<LazyImage>) {
    let lazy = Held::Lazy(image.clone());
    let before = room.mounts.lock().insert(container.to_owned(), lazy);
    drop(before);
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
    let pins = match &image.lazy {
        None => image.pins.clone(),
        Some(lazy) => match lazy.pins() {
            Some(pins) => pins,
            None => lazy::whole(room, image).await?.pins.clone(),
        },
    };
    let text = noted(image, pins.iter().map(Pin::name));
    let top_first: Vec<PathBuf> = pins.iter().rev().map(Pin::path).collect();
    note(room, directory, text, Held::Whole(pins), move || mount(&top_first)).await
}

/// What is written of a mount of `image`, whose layers have these `names`, bottom first.
fn noted<'a>(image: &Image, names: impl Iterator<Item = &'a str>) -> String {
    let mut text = format!("{}\n", image.id);
    for name in names {
        text.push_str(name);
        text.push('\n');
    }
    text
}

/// Writes `text` of what `directory` uses, which is `held`, and does `mount`; when that fails nothing is used.
async fn note<T: Send + 'static>(
    room: &Room,
    directory: &Path,
    text: String,
    held: Held,
    mount: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    room.mounts.lock().insert(directory.to_owned(), held);
    let file = directory.join(FILE);
    let mounted = blocking(move || {
        store::write_file(&file, text.as_bytes(), 0o600)?;
        mount().inspect_err(|_| {
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
    let mounted = room.mounts.lock().remove(container);
    match mounted {
        // One look at the disk less.
        Some(Held::Whole(_)) => Ok(()),
        None if !room.lazy.is_used() => Ok(()),
        mounted => {
            drop(mounted);
            lazy::forget(room, container).await
        }
    }
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
        let mut pins: Vec<Pin> = text.lines().skip(1).filter_map(|name| layers.pin_name(name)).collect();
        let lazy = text.lines().skip(1).any(|name| name == LAZY);
        if lazy {
            // What has come whole meanwhile is read from there, whatever has become of the image.
            pins.extend(
                lazy::planned(container)
                    .iter()
                    .filter_map(|diff_id| layers.pin(diff_id)),
            );
        }
        let mounted = if lazy {
            Held::Left { _pins: pins }
        } else {
            Held::Whole(pins)
        };
        mounts.lock().entry(container.clone()).or_insert(mounted);
    }
    Ok(())
}
