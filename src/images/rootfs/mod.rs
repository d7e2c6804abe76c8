//! Root filesystems of containers: overlay mounts over unpacked layers, their removal, and the figures of the
//! filesystem below. Owns what a directory has under `rootfs`, `upper`, `work`, `empty`, `empty2` and `mapped`; never knows
//! images or records, never follows a symlink a container made. All of it blocks: run it with `spawn_blocking`.

pub mod apart;
pub mod changes;
mod copy;
mod inside;
mod mapped;
mod overlay;
mod quota;
mod remove;
mod sys;
#[cfg(test)]
mod tests;
mod usage;
mod xattrs;

use std::io;
use std::path::{Path, PathBuf};

pub use apart::Root;
pub use copy::copy_directory;
pub use inside::{directory_in, open_directory_in};
pub use mapped::Owners;
#[cfg(test)]
pub use overlay::mount;
pub use overlay::{mount_labelled, mount_read_only, mounted, unmount, view};
pub use quota::{Projects, has_quotas, join_project, lift_limit};
pub use remove::{remove_at, remove_tree};
pub use usage::{
    Amount, ContainerDisk, Space, container_disk, directory_alone, mountpoint, space, usage, usage_beside,
};
pub use xattrs::{all as xattrs, xattrs_at};

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
    /// The kernel said no.
    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// overlayfs said no; `log` is what it explained, if anything.
    #[error("mount overlay of {layers} layers at {}: {source}{}{log}", path.display(), if log.is_empty() { "" } else { ": " })]
    Overlay {
        path: PathBuf,
        layers: usize,
        log: String,
        source: io::Error,
    },
    /// The file system that holds the layer can't show its files as others' (ext4, xfs, btrfs and tmpfs can).
    #[error("map the owners of layer {}: {source}; its file system must support id-mapped mounts", layer.display())]
    Map { layer: PathBuf, source: io::Error },
    /// Something is mounted there already.
    #[error("mount overlay at {}: it is a mount point already", path.display())]
    AlreadyMounted { path: PathBuf },
    /// A limit was asked for, and the file system can't hold anybody to one.
    #[error("limit what the container writes to {limit} bytes: the file system at {} {why}", mountpoint.display())]
    NoQuota {
        limit: u64,
        mountpoint: PathBuf,
        why: &'static str,
    },
    /// There is no project left for one more container.
    #[error("count what the container writes: all project ids from {first} to {last} are in use on the file system at {}", mountpoint.display())]
    NoProject { first: u32, last: u32, mountpoint: PathBuf },
}

pub type Result<T> = std::result::Result<T, Error>;

/// For `map_err`: an errno with the attempt and the object.
fn io_at(what: &'static str, path: &Path) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |errno| Error::Io {
        what,
        path: path.to_owned(),
        source: errno.into(),
    }
}
