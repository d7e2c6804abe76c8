//! The door of the room: what the rest of Wharf calls.

use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};
use wharf_proto::{api, cri};

use super::{
    Error, ErrorKind, FsUsage, Image, Reference, Result, flight, index, layers, lazy, mounts, paused, progress, pull,
    registry, rootfs, trust,
};
use crate::config::Config;

/// The images of this node. Cheap to clone; all clones are the same room.
#[derive(Clone)]
pub struct Images {
    pub(super) room: Arc<Room>,
    /// Frees disk in the background; ends with the last clone.
    _janitor: Arc<JoinSet<()>>,
}

/// What an image takes on disk: its unpacked layers, and what gives their archives back.
#[derive(Debug, Clone)]
pub struct DiskSize {
    /// Which.
    pub image: Arc<Image>,
    /// Bytes of layers that no other image has: what its removal frees, unless containers run on it.
    pub unique: u64,
    /// Bytes of layers that others have as well.
    pub shared: u64,
}

/// What the parts of the room share.
pub(super) struct Room {
    pub(super) root: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) parallel_layers: usize,
    pub(super) client: registry::Client,
    pub(super) trust: trust::Trust,
    pub(super) layers: layers::Layers,
    pub(super) index: index::Index,
    pub(super) mounts: mounts::Mounts,
    pub(super) projects: rootfs::Projects,
    pub(super) lazy: lazy::Lazy,
    pub(super) pulls: flight::Flights<pull::PullKey, pull::PullResult, Arc<progress::Progress>>,
    pub(super) paused: paused::Paused,
    pub(super) transfers: flight::Flights<(String, String), pull::LayerResult, Arc<progress::Meter>>,
}

impl Drop for Room {
    /// With the room its images and mounts let go of their layers. That is the end of this process's knowledge, not of
    /// theirs: the janitor, which may come once more before it ends, must not take them for unused.
    fn drop(&mut self) {
        self.layers.close();
    }
}

impl Images {
    /// Opens the images below `cfg.state_dir`, and removes what pulls that were cut off left behind.
    ///
    /// # Errors
    /// When the directory can't be made or read. A single bad record is logged and dropped, not an error.
    pub async fn open(cfg: &Config) -> Result<Self> {
        Self::open_with(cfg, registry::Client::new(cfg)).await
    }

    pub(super) async fn open_with(cfg: &Config, client: registry::Client) -> Result<Self> {
        let root = cfg.state_dir.join("images");
        let parallel_layers = cfg.pull.max_parallel_layers.max(1);
        let max_layer = Some(cfg.pull.max_layer_size).filter(|limit| *limit > 0);
        let keep_blobs = cfg.pull.keep_blobs;
        let trust = trust::Trust::new(cfg);
        let paused = paused::Paused::new(Duration::from_secs(cfg.pull.keep_partial_secs));
        let expiring = paused.clone();
        let projects = rootfs::Projects::new(cfg.project_ids());
        let (lazy, coming) = lazy::Lazy::new(cfg);
        let room = pull::blocking(move || {
            let layers = layers::Layers::open(&root, max_layer, keep_blobs)?;
            Ok(Room {
                mountpoint: rootfs::mountpoint(&root)?,
                parallel_layers,
                client,
                trust,
                index: index::Index::open(&root, layers.clone())?,
                layers,
                mounts: mounts::Mounts::default(),
                projects,
                lazy,
                paused,
                pulls: flight::Flights::new(),
                transfers: flight::Flights::new(),
                root,
            })
        })
        .await?;
        let mut janitor = JoinSet::new();
        janitor.spawn(sweep(room.layers.clone()));
        janitor.spawn(expiring.expire());
        janitor.spawn(coming);
        let room = Arc::new(room);
        if room.lazy.is_enabled() {
            // So that who looks at the daemon's state sees it.
            let _ = room.lazy.obstacle().await;
        }
        let index = room.clone();
        let unfinished = pull::blocking(move || index.index.unfinished()).await?;
        lazy::again(&room, unfinished);
        Ok(Self {
            room,
            _janitor: Arc::new(janitor),
        })
    }

    /// Tells which directories had something mounted, containers' and views, so that their layers are kept; frees layers
    /// that nobody uses. Called once, after [`Images::open`]: until then no layer is freed.
    ///
    /// # Errors
    /// When a list of layers can't be read; then no layer is freed.
    pub async fn adopt(&self, directories: &[PathBuf]) -> Result<()> {
        let (room, containers) = (self.room.clone(), directories.to_vec());
        pull::blocking(move || mounts::adopt(&room.mounts, &room.layers, &containers)).await?;
        self.room.layers.all_users_known();
        Ok(())
    }

    /// Pulls `reference` and returns the image id (`sha256:...`). Equal calls at the same time share one transfer. When
    /// every caller has dropped its future, the pull ends; what it has unpacked is kept for a while, for the next try. `progress` ends with `PullDone` if the
    /// pull succeeds, and is dropped in any case. Where the configuration says so, this returns when the image can be used,
    /// which may be before it is complete.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::kind`] sorts them.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<cri::AuthConfig>,
        progress: Option<UnboundedSender<api::PullProgress>>,
    ) -> Result<String> {
        let lazily = self.room.lazy.is_enabled();
        self.pull_until(reference, auth, progress, lazily).await
    }

    /// As [`Images::pull`], whatever the configuration says: until the image can be used if `lazily`, else until it is
    /// complete.
    ///
    /// # Errors
    /// As there.
    pub async fn pull_until(
        &self,
        reference: &str,
        auth: Option<cri::AuthConfig>,
        progress: Option<UnboundedSender<api::PullProgress>>,
        lazily: bool,
    ) -> Result<String> {
        let names = self.room.client.names(reference).await?;
        let mut last = None;
        for name in names {
            match self
                .pull_one(Reference::parse(&name)?, auth.clone(), progress.clone(), lazily)
                .await
            {
                // A short name may be in the next registry.
                Err(error) if !matches!(error.kind(), ErrorKind::Other | ErrorKind::Untrusted) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or(Error::InvalidReference {
            reference: reference.to_owned(),
            reason: "it stands for no full name",
        }))
    }

    async fn pull_one(
        &self,
        reference: Reference,
        auth: Option<cri::AuthConfig>,
        progress: Option<UnboundedSender<api::PullProgress>>,
        lazily: bool,
    ) -> Result<String> {
        let key = pull::key(&reference, auth.as_ref(), lazily);
        let start = || pull::start(self.room.clone(), reference, auth, lazily);
        let (pull, heard, _) = self.room.pulls.join(key, start);
        if let Some(listener) = progress {
            heard.listen(listener);
        }
        pull.await.map_err(Error::Shared)
    }

    /// Shows `auth` to `registry`.
    ///
    /// # Errors
    /// When the registry does not accept it, or does not answer.
    pub async fn login(&self, registry: &str, auth: cri::AuthConfig) -> Result<()> {
        // Any repository will do: what is asked for is above it.
        let reference = Reference::parse(&format!("{registry}/login"))?;
        if reference.registry != registry {
            return Err(Error::InvalidReference {
                reference: registry.to_owned(),
                reason: "it is not a registry's host or host:port",
            });
        }
        self.room.client.session(&reference, Some(&auth)).await?.check().await
    }

    /// All images by id, as last published.
    #[must_use]
    pub fn list(&self) -> Arc<Vec<Arc<Image>>> {
        self.room.index.list()
    }

    /// What happens to images from the opening on, in its order; none for a second caller.
    #[must_use]
    pub fn happenings(&self) -> Option<UnboundedReceiver<super::Change>> {
        self.room.index.changes()
    }

    /// What each image takes on disk, and all together; reads no disk.
    #[must_use]
    pub fn sizes(&self) -> (Vec<DiskSize>, u64) {
        let images = self.list();
        let mut users: HashMap<&str, usize> = HashMap::new();
        for image in images.iter() {
            let own: HashSet<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
            own.into_iter()
                .for_each(|diff_id| *users.entry(diff_id).or_default() += 1);
        }
        let size = |image: &Arc<Image>| {
            let (mut unique, mut shared) = (0, 0);
            let own: HashSet<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
            for diff_id in own {
                let bytes = self.room.layers.size(diff_id).map_or(0, |size| size.bytes());
                match users.get(diff_id) {
                    Some(1) => unique += bytes,
                    _ => shared += bytes,
                }
            }
            DiskSize {
                image: image.clone(),
                unique,
                shared,
            }
        };
        let bytes = |diff_id: &&str| self.room.layers.size(diff_id).map_or(0, |size| size.bytes());
        (images.iter().map(size).collect(), users.keys().map(bytes).sum())
    }

    /// The image that `spec` names: an id with or without `sha256:`, a unique prefix of one, `name[:tag]` or
    /// `name@digest`.
    #[must_use]
    pub fn find(&self, spec: &str) -> Option<Arc<Image>> {
        let full = self.room.client.known_names(spec);
        let named = full.iter().find_map(|name| self.room.index.find(name));
        named.or_else(|| self.room.index.find(spec))
    }

    /// Gives the image that `spec` names another name; returns it in full.
    ///
    /// # Errors
    /// When there is no such image, `name` is no reference with a tag, or the record can't be written.
    pub async fn tag(&self, spec: &str, name: &str) -> Result<String> {
        let image = self.find(spec).ok_or_else(|| Error::NoImage(spec.to_owned()))?;
        let reference = Reference::parse(name)?;
        let tagged = reference.tagged().ok_or_else(|| Error::InvalidReference {
            reference: name.to_owned(),
            reason: "a name to give can't have a digest",
        })?;
        let room = self.room.clone();
        let found = pull::blocking(move || room.index.name(&image.id, &reference, None)).await?;
        if found {
            Ok(tagged)
        } else {
            Err(Error::NoImage(spec.to_owned()))
        }
    }

    /// How the image that `spec` names was made, newest step first.
    ///
    /// # Errors
    /// When there is no such image, or its configuration can't be read.
    pub async fn history(&self, spec: &str) -> Result<Vec<api::HistoryStep>> {
        let image = self.find(spec).ok_or_else(|| Error::NoImage(spec.to_owned()))?;
        let room = self.room.clone();
        pull::blocking(move || {
            let config = room.index.config(&image.id)?;
            super::history::steps(&config, &image, &room.layers)
        })
        .await
    }

    /// Removes the image that `spec` names with all its tags and digests; absent is fine. It is invisible at once; the
    /// disk is freed in the background, for layers that containers mount once they are gone.
    ///
    /// # Errors
    /// When the record can't be removed.
    pub async fn remove(&self, spec: &str) -> Result<()> {
        let Some(image) = self.find(spec) else {
            return Ok(());
        };
        let room = self.room.clone();
        pull::blocking(move || room.index.remove(&image.id)).await
    }

    /// Makes the image `id`, which is damaged, invisible and moves its record aside; says what was done.
    ///
    /// # Errors
    /// When it can't be moved.
    pub async fn set_aside(&self, id: &str) -> Result<String> {
        let (room, id) = (self.room.clone(), id.to_owned());
        pull::blocking(move || {
            let now_at = room.index.set_aside(&id)?;
            Ok(format!("moved to {}", now_at.display()))
        })
        .await
    }

    /// Has the damaged layer in the directory `name` used by no pull or image any more, and moves it aside, as the records of
    /// the images that have it; says what was done. Where containers mount it, it stays until they end.
    ///
    /// # Errors
    /// When something can't be moved.
    pub async fn set_layer_aside(&self, name: &str) -> Result<String> {
        let (room, name) = (self.room.clone(), name.to_owned());
        pull::blocking(move || {
            let diff_id = format!("sha256:{}", name.split('-').next().unwrap_or_default());
            let hidden = room.layers.hide(&name);
            let images = room.index.list();
            let with = images
                .iter()
                .filter(|image| image.layers.iter().any(|layer| layer.diff_id == diff_id));
            for image in with {
                room.index.set_aside(&image.id)?;
            }
            drop(images);
            Ok(match room.layers.set_aside(&name, hidden.as_ref())? {
                Some(now_at) => format!("moved to {}, with the images that have it", now_at.display()),
                None => "containers use it until they end; the images that have it are set aside".to_owned(),
            })
        })
        .await
    }

    /// Mounts a writable root filesystem of `image` at `container_dir/rootfs`. The layers are kept
    /// until [`Images::unmount_rootfs`]. With `owners` its files belong to the users of their namespace, with `label` they
    /// have that SELinux label. No more than `limit` bytes can be written to it; 0 is no limit.
    ///
    /// # Errors
    /// When the kernel refuses the mount, or its file system can't limit.
    pub async fn mount_rootfs(
        &self,
        image: &Image,
        container_dir: &Path,
        owners: Option<super::rootfs::Owners>,
        label: Option<String>,
        limit: u64,
    ) -> Result<mounts::Mounted> {
        mounts::mount(&self.room, image, container_dir, owners, label, limit).await
    }

    /// `image` with all of it on this node; waits until it is.
    ///
    /// # Errors
    /// When it can't be completed, or was removed.
    pub async fn whole(&self, image: Arc<Image>) -> Result<Arc<Image>> {
        if image.is_complete() {
            return Ok(image);
        }
        lazy::whole(&self.room, &image).await
    }

    /// Whether images are used here before they are complete, for people.
    #[must_use]
    pub fn lazy_state(&self) -> String {
        self.room.lazy.state()
    }

    /// What a later daemon needs to go on showing the files of the container in `container_dir`, whose image was not complete
    /// when it was mounted: a descriptor and a note, which has credentials. None for others.
    ///
    /// # Errors
    /// When no more files can be open.
    pub fn lazy_handle(&self, container_dir: &Path) -> Result<Option<(OwnedFd, Vec<u8>)>> {
        lazy::handle(&self.room, container_dir)
    }

    /// Whether [`Images::resume_lazy`] is wanted for the container in `container_dir`. Blocking.
    #[must_use]
    pub fn was_lazy(container_dir: &Path) -> bool {
        lazy::was_served(container_dir)
    }

    /// Goes on showing files to the container in `container_dir`, with what [`Images::lazy_handle`] gave to an earlier daemon.
    ///
    /// # Errors
    /// When what was written of it can't be read, or the kernel refuses.
    pub async fn resume_lazy(&self, container_dir: &Path, device: OwnedFd, note: &[u8]) -> Result<()> {
        lazy::resume(&self.room, container_dir, device, note).await
    }

    /// What the container in `container_dir` has changed of its root filesystem; `None` when none is mounted.
    #[must_use]
    pub fn changes(&self, container_dir: &Path) -> Option<super::rootfs::changes::Changes> {
        let layers = self.room.mounts.layers(container_dir)?;
        Some(super::rootfs::changes::Changes::new(container_dir, layers))
    }

    /// Mounts what is in `image` at `dir/rootfs` for reading only and returns that path; mounted there already is fine.
    /// The layers are kept until [`Images::remove_view`]. With `owners` its files belong to the users of their
    /// namespace. Not to be called twice at once for one `dir`.
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub async fn mount_view(
        &self,
        image: &Image,
        dir: &Path,
        owners: Option<super::rootfs::Owners>,
        label: Option<String>,
    ) -> Result<PathBuf> {
        mounts::mount_view(&self.room, image, dir, owners, label).await
    }

    /// Undoes [`Images::mount_view`] and removes the directory; nothing there is fine.
    ///
    /// # Errors
    /// When the kernel refuses to unmount or to remove.
    pub async fn remove_view(&self, dir: &Path) -> Result<()> {
        mounts::unmount(&self.room, dir).await?;
        let dir = dir.to_owned();
        pull::blocking(move || Ok(rootfs::remove_tree(&dir)?)).await
    }

    /// Undoes [`Images::mount_rootfs`]; nothing mounted is fine.
    ///
    /// # Errors
    /// When the kernel refuses to unmount.
    pub async fn unmount_rootfs(&self, container_dir: &Path) -> Result<()> {
        mounts::unmount(&self.room, container_dir).await
    }

    /// Sets whether kubelet's garbage collection must spare the image `id`; absent is fine.
    ///
    /// # Errors
    /// When the record can't be written.
    pub async fn set_pinned(&self, id: &str, pinned: bool) -> Result<()> {
        let (room, id) = (self.room.clone(), id.to_owned());
        pull::blocking(move || room.index.pin(&id, pinned)).await
    }

    /// Disk that layers take, without walking it.
    ///
    /// # Errors
    /// None today.
    pub async fn fs_usage(&self) -> Result<FsUsage> {
        let (used_bytes, inodes_used) = self.room.layers.usage();
        Ok(FsUsage {
            mountpoint: self.room.mountpoint.clone(),
            used_bytes: used_bytes + self.room.lazy.kept(),
            inodes_used,
        })
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("root", &self.room.root)
            .finish_non_exhaustive()
    }
}

async fn sweep(layers: layers::Layers) {
    loop {
        layers.wait().await;
        let all = layers.clone();
        if let Err(error) = pull::blocking(move || all.sweep()).await {
            tracing::warn!(%error, "unused layers can't be removed; they are tried again with the next");
        }
    }
}
