//! Images: references, pulls from registries, the layers on disk, and what containers mount of them.
//!
//! The room owns everything below `<state_dir>/images`. It shows an image only once it is whole and durable, and frees a
//! layer only when neither an image nor a container uses it. It must never let a registry's word stand unchecked (every
//! byte is hashed before it counts), never put a credential into an error, a log or a debug print, and never make a
//! reader wait: [`Images::list`] and [`Images::find`] read a published snapshot. It may ask `config` and `store`.

mod error;
mod image;
mod manifest;
mod platform;
pub mod reference;
mod registry;
pub mod rootfs;
pub mod unpack;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use wharf_proto::{api, cri};

pub use error::{Error, ErrorKind, Result};
pub use image::{Image, ImageConfig, Layer};
pub use reference::Reference;
pub use rootfs::FsUsage;

use crate::config::Config;

/// The images of this node. Cheap to clone; all clones are the same room.
#[derive(Clone, Debug)]
pub struct Images {}

impl Images {
    /// Opens the images below `cfg.state_dir`, and removes what pulls that were cut off left behind.
    ///
    /// # Errors
    /// When the directory can't be made or read. A single bad record is logged and dropped, not an error.
    pub async fn open(_cfg: &Config) -> Result<Self> {
        todo!()
    }

    /// Tells which containers exist, so that their layers are kept; frees layers that nobody uses. Called once, after
    /// [`Images::open`]: until then no layer is freed.
    ///
    /// # Errors
    /// When a container's list of layers can't be read.
    pub async fn adopt(&self, _container_dirs: &[PathBuf]) -> Result<()> {
        todo!()
    }

    /// Pulls `reference` and returns the image id (`sha256:...`). Equal calls at the same time share one transfer. When
    /// every caller has dropped its future, the pull ends and leaves nothing.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::kind`] sorts them.
    pub async fn pull(
        &self,
        _reference: &str,
        _auth: Option<cri::AuthConfig>,
        _progress: Option<tokio::sync::mpsc::UnboundedSender<api::PullProgress>>,
    ) -> Result<String> {
        todo!()
    }

    /// All images, as last published.
    #[must_use]
    pub fn list(&self) -> Arc<Vec<Arc<Image>>> {
        todo!()
    }

    /// The image that `spec` names: an id with or without `sha256:`, a unique prefix of one, `name[:tag]` or
    /// `name@digest`.
    #[must_use]
    pub fn find(&self, _spec: &str) -> Option<Arc<Image>> {
        todo!()
    }

    /// Removes the image that `spec` names with all its tags and digests; absent is fine. It is invisible at once; the
    /// disk is freed in the background, for layers that containers mount once they are gone.
    ///
    /// # Errors
    /// When the record can't be removed.
    pub async fn remove(&self, _spec: &str) -> Result<()> {
        todo!()
    }

    /// Mounts a writable root filesystem of `image` at `container_dir/rootfs` and returns that path. The layers are kept
    /// until [`Images::unmount_rootfs`].
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub async fn mount_rootfs(&self, _image: &Image, _container_dir: &Path) -> Result<PathBuf> {
        todo!()
    }

    /// Undoes [`Images::mount_rootfs`]; nothing mounted is fine.
    ///
    /// # Errors
    /// When the kernel refuses to unmount.
    pub async fn unmount_rootfs(&self, _container_dir: &Path) -> Result<()> {
        todo!()
    }

    /// Disk that images take, without walking it.
    ///
    /// # Errors
    /// None today.
    pub async fn fs_usage(&self) -> Result<FsUsage> {
        todo!()
    }
}
