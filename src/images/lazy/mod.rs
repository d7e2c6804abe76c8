//! Containers that start before their image is complete.
//!
//! A layer with a table of contents that the manifest vouches for (eStargz, zstd:chunked) need not be here to be mounted: the daemon
//! shows it as a file system of its own, over FUSE, and fetches what is read. Meanwhile the layer is pulled whole as any other; then
//! new containers use it from disk, and what earlier ones read comes from there. An image that is not complete is never
//! written down as one: what is kept of it on disk (`incomplete/`) only says what to pull again after a restart.
//!
//! Each container has a file system of its own (`server`), so that its pod's monitor can hold the device for a daemon that
//! comes after this one, and a `journal` of what the kernel has asked and not heard. `layer` is the content, `table`, `footer` and
//! `chunked` are the formats, `wire` is the kernel's. No thread of the daemon touches what it serves: `rootfs::apart` does.

mod chunked;
mod container;
mod footer;
mod format;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzzing;
mod journal;
mod layer;
mod server;
mod table;
mod wire;
mod workers;

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use tokio::{
    sync::{OnceCell, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_proto::cri;

use super::{
    Error, ErrorKind, Image, Layer, Reference, Result,
    incomplete::Unfinished,
    layers::Pin,
    manifest::{Manifest, Toc},
    pull,
    registry::Session,
    room::Room,
};
use crate::{config::Config, store};
pub(super) use container::{detach, forget, handle, mount, planned, resume, was_served};
pub(super) use layer::LazyLayer;
use layer::Means;

/// Smaller layers are here as soon as their tables would be.
const SMALLEST: u64 = 512 << 10;
/// Whoever waits for the image has the node and the registry for so long before the rest of it is pulled.
const HEAD_START: Duration = Duration::from_secs(1);
/// Wait before a pull that goes on in the background is tried again, doubled each time up to the second figure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Work that goes on when whoever asked has an answer.
pub(super) type Task = BoxFuture<'static, ()>;

/// What the room has for images that are not complete.
pub(super) struct Lazy {
    enabled: bool,
    /// There may be containers that are served, or were.
    used: AtomicBool,
    /// Where the journals are, by container.
    journals: PathBuf,
    /// What the kernel can do, or lacks; known once it matters.
    abilities: OnceCell<std::result::Result<wire::Abilities, String>>,
    means: Means,
    tasks: mpsc::UnboundedSender<Task>,
    served: container::All,
}

impl Lazy {
    /// As the configuration wants it. The future does the work that goes on in the background. Looks at the disk once.
    pub fn new(config: &Config) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (tasks, mut coming) = mpsc::unbounded_channel::<Task>();
        let enabled = config.pull.lazy;
        let journals = config.run_dir.join("lazy");
        let lazy = Self {
            enabled,
            used: AtomicBool::new(enabled || journals.exists()),
            journals,
            abilities: OnceCell::new(),
            means: Means {
                workers: workers::Workers::default(),
                kept: Arc::new(AtomicU64::new(0)),
                patience: Duration::from_secs(config.pull.lazy_timeout_secs),
            },
            tasks,
            served: container::All::default(),
        };
        let work = async move {
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    task = coming.recv() => match task {
                        Some(task) => drop(running.spawn(task)),
                        None => return,
                    },
                    Some(_) = running.join_next() => {}
                }
            }
        };
        (lazy, work)
    }

    /// Whether images are used before they are complete where a pull does not say otherwise.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether there may be something of containers whose images were not complete.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Why no image can be used here before it is complete; none if it can. The kernel is asked once.
    pub async fn obstacle(&self) -> Option<String> {
        self.abilities().await.as_ref().err().cloned()
    }

    /// Whether the files of such an image can be shown to a pod with a user namespace.
    pub async fn maps_owners(&self) -> bool {
        matches!(self.abilities().await, Ok(abilities) if abilities.maps_owners)
    }

    async fn abilities(&self) -> &std::result::Result<wire::Abilities, String> {
        let ask = || async {
            let found = pull::blocking(|| Ok(server::probe())).await;
            let found = found.unwrap_or_else(|error| Err(error.to_string()));
            if let Err(reason) = &found {
                tracing::warn!(
                    reason,
                    "images are pulled whole: this machine can't start containers before that"
                );
            }
            found
        };
        self.abilities.get_or_init(ask).await
    }

    /// For people: whether images are used before they are complete.
    pub fn state(&self) -> String {
        match (self.abilities.get(), self.enabled) {
            (Some(Err(reason)), _) => format!("not possible: {reason}"),
            (_, true) => "on".to_owned(),
            (_, false) => "off, unless a pull asks for it".to_owned(),
        }
    }

    /// Has the place for journals made, and remembers that there may be some.
    async fn begin(&self) -> Result<()> {
        self.used.store(true, Ordering::Relaxed);
        let journals = self.journals.clone();
        pull::blocking(move || Ok(store::create_dir(&journals)?)).await
    }

    /// Where the journal of `container` is.
    fn journal(&self, container: &std::path::Path) -> PathBuf {
        self.journals.join(container.file_name().unwrap_or_default())
    }

    /// Bytes on disk that are kept of layers that are not whole.
    pub fn kept(&self) -> u64 {
        self.means.kept.load(Ordering::Relaxed)
    }

    /// Runs `task` until it ends or the room closes.
    pub fn spawn(&self, task: Task) {
        // Fails only when the room closes.
        let _ = self.tasks.send(task);
    }
}

/// What an image, or a container, uses of layers that may not be here.
pub(super) struct LazyImage {
    /// The name by which it came, with a digest.
    pub reference: Reference,
    /// With what it is asked for. In memory only.
    pub auth: Option<cri::AuthConfig>,
    /// Bottom first.
    pub layers: Vec<Lower>,
    /// How the pull of the rest has ended: why it failed, if it did.
    ended: watch::Sender<Option<std::result::Result<(), Arc<Error>>>>,
    /// Ends that pull with the last who uses this.
    _pull: DropGuard,
}

/// One layer of it.
#[derive(Clone)]
pub(super) enum Lower {
    /// It was here.
    Whole(Pin),
    /// It comes.
    Lazy(Arc<LazyLayer>),
}

impl Lower {
    /// Its files on disk, once they are there.
    pub fn pin(&self) -> Option<&Pin> {
        match self {
            Self::Whole(pin) => Some(pin),
            Self::Lazy(layer) => layer.whole(),
        }
    }
}

impl std::fmt::Debug for LazyImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (incomplete)", self.reference)
    }
}

impl LazyImage {
    /// Of `layers`; the pull of the rest is to end with the token.
    fn new(reference: Reference, auth: Option<cri::AuthConfig>, layers: Vec<Lower>) -> (Arc<Self>, CancellationToken) {
        let token = CancellationToken::new();
        let image = Arc::new(Self {
            reference,
            auth,
            layers,
            ended: watch::Sender::new(None),
            _pull: token.clone().drop_guard(),
        });
        (image, token)
    }

    /// All layers, if they have come.
    pub fn pins(&self) -> Option<Vec<Pin>> {
        self.layers.iter().map(|lower| lower.pin().cloned()).collect()
    }

    /// Bytes of the blobs of `layers`, which are its, that are here, and of all.
    pub fn come(&self, layers: &[Layer]) -> (u64, u64) {
        let here = self.layers.iter().zip(layers).map(|(lower, layer)| match lower {
            Lower::Whole(_) => layer.size,
            Lower::Lazy(lazy) => lazy.come(),
        });
        (here.sum(), layers.iter().map(|layer| layer.size).sum())
    }

    /// The layers that come.
    pub fn coming(&self) -> impl Iterator<Item = &Arc<LazyLayer>> {
        self.layers.iter().filter_map(|lower| match lower {
            Lower::Whole(_) => None,
            Lower::Lazy(layer) => Some(layer),
        })
    }
}

/// The layers of an image that can be used before they are whole, in the order of all; none where it is not worth it.
pub(super) async fn find(
    room: &Arc<Room>,
    session: &Session,
    manifest: &Manifest,
    layers: &[Layer],
    reference: &Reference,
) -> Vec<Option<Arc<LazyLayer>>> {
    if room.lazy.obstacle().await.is_some() {
        return Vec::new();
    }
    if let Err(error) = room.lazy.begin().await {
        tracing::warn!(image = %reference, %error, "an image is pulled before it is used");
        return Vec::new();
    }
    let tocs = manifest.layers.iter().map(|descriptor| descriptor.toc.clone());
    let each: Vec<(Layer, Option<Toc>)> = layers.iter().cloned().zip(tocs).collect();
    let tables = each.into_iter().map(|(layer, toc)| {
        let (room, session, name) = (room.clone(), session.clone(), reference.to_string());
        async move {
            let toc = toc.filter(|_| layer.size >= SMALLEST && !room.layers.has(&layer.diff_id))?;
            let (means, scratch) = (&room.lazy.means, room.root.join("tmp"));
            match LazyLayer::find(&session, &layer, &toc, &name, means, &scratch).await {
                Ok(found) => Some(found),
                Err(error) => {
                    tracing::info!(image = name, layer = layer.digest, %error, "a layer is pulled before it is used");
                    None
                }
            }
        }
    });
    stream::iter(tables).buffered(room.parallel_layers).collect().await
}

/// Begins the pull of what of `image` is not here; `id` is that of the image that is then complete, if one is to be.
pub(super) fn complete(
    room: &Arc<Room>,
    image: &Arc<LazyImage>,
    token: CancellationToken,
    session: Session,
    id: Option<String>,
) {
    let coming: Vec<Arc<LazyLayer>> = image.coming().cloned().collect();
    let (owner, waiting, name) = (Arc::downgrade(room), Arc::downgrade(image), image.reference.clone());
    let work = async move {
        let ended = token
            .run_until_cancelled(bring(&owner, &session, &name, &coming))
            .await
            .unwrap_or(Err(Error::ShuttingDown("images")));
        let (Some(room), Some(image)) = (owner.upgrade(), waiting.upgrade()) else {
            return;
        };
        let ended = match (ended, &id) {
            (Ok(()), Some(id)) => show(&room, &image, id).await,
            (ended, _) => ended,
        };
        match (&ended, &id) {
            (Ok(()), _) => tracing::info!(image = %name, "an image that is in use has become complete"),
            (Err(error), id) => {
                tracing::error!(image = %name, %error, "an image that is in use can't be completed");
                // Nobody shall start what can't be had; who runs goes on with what can.
                if let Some(id) = id {
                    let (owner, id) = (room.clone(), id.clone());
                    if let Err(error) = pull::blocking(move || owner.index.give_up(&id)).await {
                        tracing::warn!(%error, "an image that is not complete stays listed");
                    }
                }
            }
        }
        image.ended.send_replace(Some(ended.map_err(Arc::new)));
    };
    room.lazy.spawn(Box::pin(work));
}

/// Pulls `layers`, for as long as it takes.
async fn bring(room: &Weak<Room>, session: &Session, name: &Reference, layers: &[Arc<LazyLayer>]) -> Result<()> {
    let closed = || Error::ShuttingDown("images");
    // What its maker says is wanted first.
    for layer in layers {
        for group in 0..layer.table.first {
            if layer.ensure(group).await.is_err() {
                break;
            }
        }
    }
    tokio::time::sleep(HEAD_START).await;
    let all = layers.to_vec();
    let each = all.into_iter().map(|layer| {
        let (room, session, name) = (room.clone(), session.clone(), name.clone());
        async move {
            let mut wait = BACK_OFF.0;
            loop {
                let owner = room.upgrade().ok_or_else(closed)?;
                let (wanted, progress) = (layer.layer.clone(), layer.progress.clone());
                match pull::fetch(owner, session.clone(), &name.registry, wanted, progress).await {
                    Ok(pin) => {
                        layer.complete(pin).await;
                        return Ok(());
                    }
                    Err(error) if error.kind() == ErrorKind::RegistryUnavailable => {
                        tracing::warn!(image = %name, layer = layer.layer.digest, %error, "the rest of an image that is in use is asked for again");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(BACK_OFF.1);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    });
    let at_once = room.upgrade().map_or(1, |room| room.parallel_layers);
    let mut coming = stream::iter(each).buffered(at_once);
    while let Some(done) = coming.next().await {
        done?;
    }
    Ok(())
}

/// Makes the image `id` one like others.
async fn show(room: &Arc<Room>, image: &LazyImage, id: &str) -> Result<()> {
    let pins: Vec<Pin> = image.layers.iter().filter_map(|lower| lower.pin().cloned()).collect();
    let (room, id) = (room.clone(), id.to_owned());
    pull::blocking(move || {
        // As with any image: its layers are durable before a record says that they are there.
        pull::sync_file_system(&room.root)?;
        room.index.complete(&id, pins)
    })
    .await
}

/// `image` with all that belongs to it on disk; waits for it.
///
/// # Errors
/// When it can't be completed, or is removed meanwhile.
pub(super) async fn whole(room: &Room, image: &Image) -> Result<Arc<Image>> {
    let missing = || Error::NoImage(image.id.clone());
    let Some(lazy) = &image.lazy else {
        return room.index.get(&image.id).ok_or_else(missing);
    };
    let mut ended = lazy.ended.subscribe();
    let ended = ended.wait_for(Option::is_some).await;
    match ended.ok().and_then(|ended| ended.clone()) {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(Error::Shared(error)),
        None => return Err(Error::ShuttingDown("images")),
    }
    let now = room.index.get(&image.id).filter(|image| image.lazy.is_none());
    now.ok_or_else(missing)
}

/// An image that is used before it is complete, of the layers that are here and those that come.
pub(super) fn begin(
    reference: &Reference,
    top: &str,
    auth: Option<&cri::AuthConfig>,
    layers: Vec<Lower>,
) -> (Arc<LazyImage>, CancellationToken) {
    let by_digest = Reference {
        digest: Some(top.to_owned()),
        ..reference.clone()
    };
    LazyImage::new(by_digest, auth.cloned(), layers)
}

/// Pulls again what a daemon before this one had not completed: by which name, and what it was called.
pub(super) fn again(room: &Arc<Room>, unfinished: Vec<Unfinished>) {
    for (id, reference, tags) in unfinished {
        let owner = Arc::downgrade(room);
        room.lazy.spawn(Box::pin(async move {
            let mut wait = BACK_OFF.0;
            while let Some(room) = owner.upgrade() {
                let (pull, _) = pull::start(room.clone(), reference.clone(), None, true);
                let pulled = pull.await;
                match pulled {
                    Ok(_) => {
                        let named = pull::blocking(move || room.index.name_again(&id, &tags)).await;
                        if let Err(error) = named {
                            tracing::warn!(image = %reference, %error, "an image has lost its names");
                        }
                        return;
                    }
                    Err(error) if error.kind() == ErrorKind::RegistryUnavailable => {
                        drop(room);
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(BACK_OFF.1);
                    }
                    Err(error) => {
                        tracing::warn!(image = %reference, %error, "an image that was not complete can't be pulled again without being asked for");
                        let dropped = pull::blocking(move || room.index.give_up(&id)).await;
                        if let Err(error) = dropped {
                            tracing::warn!(%error, "what is known of it stays until the next start");
                        }
                        return;
                    }
                }
            }
        }));
    }
}

/// Where what is known of an image that is not complete lies.
pub(super) fn directory(root: &std::path::Path) -> PathBuf {
    root.join("incomplete")
}
