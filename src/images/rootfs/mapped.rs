//! Layers whose files belong to other users than on disk: for pods with a user namespace. Nothing is copied or changed.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use wharf_proto::cri::IdMapping;

use super::{Error, Result, io_at, remove_tree};
use crate::sys::{self, MountAttr};

/// Whose a root filesystem is: the ids in an image are those of this user namespace.
#[derive(Debug, Clone)]
pub struct Owners {
    /// Where the user namespace is pinned.
    pub namespace: PathBuf,
    /// Its users.
    pub uids: IdMapping,
    /// Its groups.
    pub gids: IdMapping,
}

impl Owners {
    /// The node's numbers for a file's owner in the image; what is out of range belongs to nobody.
    #[must_use]
    pub fn on_node(&self, owner: (u32, u32)) -> (u32, u32) {
        let map = |id: u32, mapping: &IdMapping| match id.checked_sub(mapping.container_id) {
            Some(offset) if offset < mapping.length => mapping.host_id + offset,
            _ => NOBODY,
        };
        (map(owner.0, &self.uids), map(owner.1, &self.gids))
    }
}

/// The kernel's overflow id.
const NOBODY: u32 = 65_534;

/// Mapped mounts of layers, below a directory of the container; overlayfs keeps its own copies, so these may go as
/// soon as it is mounted.
pub(super) struct Mapped {
    dir: PathBuf,
    /// In the order of the layers given.
    pub(super) layers: Vec<PathBuf>,
}

impl Mapped {
    pub(super) fn new(layers: &[PathBuf], owners: &Owners, container_dir: &Path) -> Result<Self> {
        release(container_dir)?;
        let mut mapped = Self {
            dir: directory(container_dir),
            layers: Vec::with_capacity(layers.len()),
        };
        let made = |source, path: &Path| Error::Io {
            what: "make directory",
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir(&mapped.dir).map_err(|source| made(source, &mapped.dir))?;
        let namespace = std::fs::File::open(&owners.namespace).map_err(|source| Error::Io {
            what: "open user namespace",
            path: owners.namespace.clone(),
            source,
        })?;
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_IDMAP,
            userns: u64::from(std::os::fd::AsRawFd::as_raw_fd(&namespace).unsigned_abs()),
            ..MountAttr::default()
        };
        for (number, layer) in layers.iter().enumerate() {
            let at = mapped.dir.join(number.to_string());
            std::fs::create_dir(&at).map_err(|source| made(source, &at))?;
            let target = std::fs::File::open(&at).map_err(|source| made(source, &at))?;
            sys::clone_tree(layer, false)
                .and_then(|tree| {
                    sys::mount_setattr(tree.as_fd(), false, &attr)?;
                    sys::move_mount(tree.as_fd(), target.as_fd())
                })
                .map_err(|source| Error::Map {
                    layer: layer.clone(),
                    source,
                })?;
            mapped.layers.push(at);
        }
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(container) = self.dir.parent() {
            // What stays is released with the container's root filesystem.
            let _ = release(container);
        }
    }
}

fn directory(container_dir: &Path) -> PathBuf {
    container_dir.join("mapped")
}

/// Removes mapped mounts that are there, for example since a daemon was killed while it mounted.
pub(super) fn release(container_dir: &Path) -> Result<()> {
    let dir = directory(container_dir);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::Io {
                what: "list",
                path: dir,
                source,
            });
        }
    };
    for entry in entries.flatten() {
        let at = entry.path();
        match umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: no mount point.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(io_at("unmount", &at)(errno)),
        }
    }
    remove_tree(&dir)
}
