//! What one container needs of an image that is not complete: its file system, and what a later daemon must know to serve it.

use std::{
    collections::HashMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use wharf_proto::cri;

use super::{
    LazyImage, Lower, complete,
    format::Place,
    journal::Journal,
    layer::LazyLayer,
    server::{self, Server},
};
use crate::{
    images::{Error, Layer, Reference, Result, mounts, pull::blocking, room::Room},
    store,
};

/// In a container's directory: what is served, the tables of contents, and where the file system is mounted until it has
/// become part of the container's root.
const PLAN: &str = "lazy";
const MOUNT: &str = "lazy-mount";

fn table(container: &Path, number: usize) -> PathBuf {
    container.join(format!("lazy-table-{number}"))
}

/// By containers' directories.
pub(super) type All = Mutex<HashMap<PathBuf, Served>>;

/// What a container is served.
pub(in crate::images) struct Served {
    device: OwnedFd,
    image: Arc<LazyImage>,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    /// The image's name, with a digest.
    reference: String,
    /// Bottom first.
    layers: Vec<PlannedLayer>,
}

#[derive(Serialize, Deserialize)]
struct PlannedLayer {
    digest: String,
    diff_id: String,
    size: u64,
    /// Set if it is served.
    place: Option<Place>,
}

/// Serves the layers of `image` that come, for `container`, until nobody uses them any more. Returns where each layer is to be
/// mounted from, bottom first; [`detach`] once that is done. `None` when this kernel can't.
///
/// # Errors
/// When files can't be written.
pub(in crate::images) async fn mount(
    room: &Arc<Room>,
    image: &Arc<LazyImage>,
    layers: &[Layer],
    container: &Path,
) -> Result<Option<Vec<PathBuf>>> {
    let coming: Vec<Arc<LazyLayer>> = image.coming().cloned().collect();
    // What the daemon itself reads at once must not wait for a registry while the kernel waits for us.
    for layer in &coming {
        for path in ["etc/passwd", "etc/group"] {
            let node = layer.table.find(path);
            if let Some(node) = node.filter(|node| layer.table.is_file(*node)) {
                let read = layer.read(node, 0, 1 << 20).await;
                read.map_err(|errno| Error::io("read", path)(std::io::Error::from_raw_os_error(errno)))?;
            }
        }
    }
    let (at, plan, served) = (container.to_owned(), plan(image, layers), coming.clone());
    let journal = room.lazy.journal(container);
    room.lazy.begin().await?;
    let attached = blocking(move || {
        let written = || -> Result<()> {
            store::write_file(&at.join(PLAN), plan.as_bytes(), 0o600)?;
            for (number, layer) in served.iter().enumerate() {
                let path = table(&at, number);
                let toc = layer.toc().map_err(Error::io("read the table of", &path))?;
                store::write_file(&path, &toc, 0o600)?;
            }
            store::create_dir(&at.join(MOUNT))?;
            Ok(())
        };
        written()?;
        let kept = Journal::create(&journal).map_err(Error::io("make", &journal))?;
        Ok(server::attach(&at.join(MOUNT)).map(|device| (device, kept)))
    })
    .await?;
    let give_up = |reason: String| async move {
        tracing::info!(%reason, "containers can't be started before their images are complete; this one waits");
        forget(room, container).await?;
        Ok(None)
    };
    let (device, journal) = match attached {
        Ok(attached) => attached,
        Err(error) => return give_up(format!("mount a FUSE file system: {error}")).await,
    };
    let kept = device.try_clone().map_err(Error::io("keep", "/dev/fuse"))?;
    let (able, can) = oneshot::channel();
    serve(room, coming, device, journal, Some(able), container);
    if !can.await.unwrap_or(false) {
        drop(kept);
        return give_up("the kernel's FUSE is older than that of Linux 5.1".into()).await;
    }
    let served = Served {
        device: kept,
        image: image.clone(),
    };
    lock(&room.lazy.served).insert(container.to_owned(), served);
    let mut number = 0;
    let lowers = image.layers.iter().map(|lower| match lower {
        Lower::Whole(pin) => pin.path(),
        Lower::Lazy(_) => {
            number += 1;
            container.join(MOUNT).join((number - 1).to_string())
        }
    });
    Ok(Some(lowers.collect()))
}

/// The file system is part of the container's root: it is not needed by its own name any more. Blocking.
///
/// # Errors
/// When the kernel refuses.
pub(in crate::images) fn detach(container: &Path) -> Result<()> {
    let path = container.join(MOUNT);
    server::detach(&path).map_err(Error::io("unmount", &path))?;
    match fs::remove_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// The container's root is unmounted: what was kept for it goes. Nothing there is fine.
///
/// # Errors
/// When files can't be removed.
pub(in crate::images) async fn forget(room: &Arc<Room>, container: &Path) -> Result<()> {
    let served = lock(&room.lazy.served).remove(container);
    drop(served);
    let (at, journal) = (container.to_owned(), room.lazy.journal(container));
    blocking(move || {
        // The first that is made, and the last that goes.
        let plan = at.join(PLAN);
        if !plan.exists() {
            return Ok(());
        }
        detach(&at)?;
        let gone = |path: PathBuf| match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", path)(error)),
        };
        let mut number = 0;
        while gone(table(&at, number))? {
            number += 1;
        }
        gone(journal)?;
        gone(plan).map(drop)
    })
    .await
}

fn serve(
    room: &Arc<Room>,
    layers: Vec<Arc<LazyLayer>>,
    device: OwnedFd,
    journal: Journal,
    able: Option<oneshot::Sender<bool>>,
    container: &Path,
) {
    let name = container.file_name().unwrap_or_default().to_string_lossy().into_owned();
    room.lazy.spawn(Box::pin(async move {
        if let Err(error) = Server::new(layers).serve(device, journal, able).await {
            tracing::error!(container = name, %error, "the files of an image that is not complete can't be served any more");
        }
    }));
}

fn plan(image: &LazyImage, layers: &[Layer]) -> String {
    let planned = image.layers.iter().zip(layers).map(|(lower, layer)| PlannedLayer {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        size: layer.size,
        place: match lower {
            Lower::Whole(_) => None,
            Lower::Lazy(lazy) => Some(lazy.place.clone()),
        },
    });
    let plan = Plan {
        reference: image.reference.to_string(),
        layers: planned.collect(),
    };
    serde_json::to_string(&plan).unwrap_or_default()
}

impl Served {
    /// The device, and a note for a later daemon, with credentials: both only for the memory of the pod's monitor.
    ///
    /// # Errors
    /// When no more files can be open.
    pub fn handle(&self) -> std::io::Result<(OwnedFd, Vec<u8>)> {
        let note = self.image.auth.as_ref().map(cri::AuthConfig::encode_to_vec);
        Ok((self.device.try_clone()?, note.unwrap_or_default()))
    }
}

/// What `container` is served, for its pod's monitor to hold.
///
/// # Errors
/// When no more files can be open.
pub(in crate::images) fn handle(room: &Room, container: &Path) -> Result<Option<(OwnedFd, Vec<u8>)>> {
    let served = lock(&room.lazy.served);
    let handle = served.get(container).map(Served::handle).transpose();
    handle.map_err(Error::io("copy", "/dev/fuse"))
}

/// Diff IDs of the layers that `container` is served; none if that can't be read. Blocking.
pub(in crate::images) fn planned(container: &Path) -> Vec<String> {
    let plan = fs::read(container.join(PLAN)).ok();
    let plan: Option<Plan> = plan.and_then(|plan| serde_json::from_slice(&plan).ok());
    let layers = plan.map(|plan| plan.layers).unwrap_or_default();
    let served = layers.into_iter().filter(|layer| layer.place.is_some());
    served.map(|layer| layer.diff_id).collect()
}

/// Whether a daemon before this one has served `container`. Blocking.
pub(in crate::images) fn was_served(container: &Path) -> bool {
    container.join(PLAN).exists()
}

/// Goes on with serving `container`, whose device and note a daemon before this one left with the monitor.
///
/// # Errors
/// When what it has written can't be read, or the kernel refuses.
pub(in crate::images) async fn resume(room: &Arc<Room>, container: &Path, device: OwnedFd, note: &[u8]) -> Result<()> {
    let bad = |reason: String| Error::BadContent {
        what: format!("what is served to {}", container.display()),
        reason,
    };
    let auth = if note.is_empty() {
        None
    } else {
        Some(cri::AuthConfig::decode(note).map_err(|error| bad(error.to_string()))?)
    };
    let at = container.to_owned();
    let (plan, tables) = blocking(move || {
        let read = |path: PathBuf| fs::read(&path).map_err(Error::io("read", path));
        let plan: Plan = serde_json::from_slice(&read(at.join(PLAN))?).map_err(|error| Error::BadContent {
            what: at.join(PLAN).display().to_string(),
            reason: error.to_string(),
        })?;
        let count = plan.layers.iter().filter(|layer| layer.place.is_some()).count();
        let tables: Vec<Vec<u8>> = (0..count)
            .map(|number| read(table(&at, number)))
            .collect::<Result<_>>()?;
        Ok((plan, tables))
    })
    .await?;
    let reference = Reference::parse(&plan.reference)?;
    let session = room.client.session(&reference, auth.as_ref()).await?;
    let mut tables = tables.into_iter();
    let (mut lowers, mut coming) = (Vec::new(), Vec::new());
    for planned in plan.layers {
        let layer = Layer {
            digest: planned.digest,
            diff_id: planned.diff_id,
            size: planned.size,
        };
        let here = room.layers.pin(&layer.diff_id);
        let (Some(place), Some(toc)) = (planned.place.clone(), planned.place.and_then(|_| tables.next())) else {
            let pin = here.ok_or_else(|| bad(format!("layer {} is missing", layer.diff_id)))?;
            lowers.push(Lower::Whole(pin));
            continue;
        };
        let lazy = LazyLayer::open(
            &session,
            &layer,
            place,
            toc,
            &plan.reference,
            &room.lazy.means,
            &room.root.join("tmp"),
        )
        .await?;
        if let Some(pin) = here {
            lazy.complete(pin).await;
        }
        coming.push(lazy.clone());
        lowers.push(Lower::Lazy(lazy));
    }
    let (image, token) = LazyImage::new(reference, auth, lowers);
    let kept = device.try_clone().map_err(Error::io("keep", "/dev/fuse"))?;
    mounts::served(room, container, &image);
    let served = Served {
        device: kept,
        image: image.clone(),
    };
    lock(&room.lazy.served).insert(container.to_owned(), served);
    room.lazy.begin().await?;
    let path = room.lazy.journal(container);
    let (journal, is_new) = blocking(move || match Journal::open(&path) {
        Ok(journal) => Ok((journal, false)),
        // Its daemon has kept none.
        Err(error) => {
            tracing::info!(journal = %path.display(), %error, "what was asked and not answered is asked for again");
            Ok((Journal::create(&path).map_err(Error::io("make", &path))?, true))
        }
    })
    .await?;
    let again = device.try_clone().map_err(Error::io("keep", "/dev/fuse"))?;
    serve(room, coming, device, journal, None, container);
    if is_new && let Err(error) = server::ask_again(&again) {
        let name = container.file_name().unwrap_or_default().to_string_lossy();
        tracing::warn!(container = %name, %error, "the kernel can't ask again: reads that an earlier daemon has not answered wait until the container's file system goes");
    }
    complete(room, &image, token, session, None);
    Ok(())
}

fn lock(all: &All) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Served>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}
