//! Root filesystems of containers: overlay mounts over unpacked layers, their removal, and the figures of the
//! filesystem below. Owns what is under a container's directory named `rootfs`, `upper`, `work`, `empty`; never knows
//! images or records. All of it blocks: run it with `spawn_blocking`.

use std::path::{Path, PathBuf};

/// Usage of a filesystem or of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// Where the filesystem that holds the tree is mounted.
    pub mountpoint: PathBuf,
    /// Bytes allocated.
    pub used_bytes: u64,
    /// Inodes in use.
    pub inodes_used: u64,
}

/// Why a root filesystem could not be mounted, unmounted, measured or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Mounts `layers` (top first; may be empty) at `container_dir/rootfs` with a fresh or kept `upper`. Returns that path.
pub fn mount(_layers: &[PathBuf], _container_dir: &Path) -> Result<PathBuf> {
    todo!()
}

/// Unmounts `container_dir/rootfs`. Nothing mounted, or no such directory, is success.
pub fn unmount(_container_dir: &Path) -> Result<()> {
    todo!()
}

/// Bytes and inodes of the tree at `root`, which stays on its filesystem, and where that one is mounted.
pub fn usage(_root: &Path) -> Result<FsUsage> {
    todo!()
}

/// Where the filesystem that holds `path` is mounted.
pub fn mountpoint(_path: &Path) -> Result<PathBuf> {
    todo!()
}

/// Removes `path` and all below it. Follows no symlink and refuses to enter a mount. Absent is success.
pub fn remove_tree(_path: &Path) -> Result<()> {
    todo!()
}
