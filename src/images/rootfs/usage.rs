//! Figures for the kubelet: what a tree uses, and on which filesystem it is.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::sys::statvfs::statvfs;

use super::{FsUsage, Result, io_at, sys};

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Directories held open at once; what is deeper than a sane tree is not counted.
const MAX_DEPTH: usize = 256;

/// Bytes allocated and inodes of the tree at `root`, its own inode included, hard links counted once. Stays on the
/// filesystem of `root`; what vanishes meanwhile is not counted.
///
/// # Errors
/// `root` or a directory in it cannot be read.
pub fn usage(root: &Path) -> Result<FsUsage> {
    let mountpoint = mountpoint(root)?;
    let dir = open(root, DIRECTORY, Mode::empty()).map_err(io_at("open", root))?;
    let stat = fstat(&dir).map_err(io_at("stat", root))?;
    let mut count = Count {
        device: stat.st_dev,
        bytes: 0,
        inodes: 0,
        linked: HashSet::new(),
    };
    count.add(&stat);
    count.tree(dir, 0).map_err(io_at("measure", root))?;
    Ok(FsUsage {
        mountpoint,
        used_bytes: count.bytes,
        inodes_used: count.inodes,
    })
}

/// Usage of what a container has written: into its layer, see [`super::mount`], and into the volumes that its image
/// declares, which lie in the directory `volumes` beside it.
///
/// # Errors
/// As [`usage`]; a container that is being removed has no such directory any more.
pub fn writable_layer(container_dir: &Path) -> Result<FsUsage> {
    let mut layer = usage(&container_dir.join("upper"))?;
    let volumes = container_dir.join("volumes");
    if volumes.is_dir() {
        let volumes = usage(&volumes)?;
        layer.used_bytes += volumes.used_bytes;
        layer.inodes_used += volumes.inodes_used;
    }
    Ok(layer)
}

/// What a filesystem has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The device, or what the filesystem has in its place.
    pub device: String,
    /// Size.
    pub bytes: u64,
    /// Inodes that there can be; 0 where they are not limited.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// What the filesystem that holds `path` has to offer.
///
/// # Errors
/// `path` does not exist.
pub fn space(path: &Path) -> Result<Space> {
    let stat = statvfs(path).map_err(io_at("ask the filesystem of", path))?;
    let mountpoint = mountpoint(path)?;
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The last line is the mount that lies on top.
    let device = table.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        let device = words.next()?;
        (Path::new(words.next()?) == mountpoint).then(|| device.to_owned())
    });
    Ok(Space {
        device: device.unwrap_or_else(|| mountpoint.display().to_string()),
        bytes: stat.blocks() * stat.fragment_size(),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// Where the filesystem that holds `path` is mounted.
///
/// # Errors
/// `path` does not exist.
pub fn mountpoint(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).map_err(|source| super::Error::Io {
        what: "find the mount point of",
        path: path.to_owned(),
        source,
    })?;
    for ancestor in real.ancestors() {
        let name = CString::new(ancestor.as_os_str().as_bytes()).map_err(|_| io_at("stat", path)(Errno::EINVAL))?;
        let here = sys::is_mount_root(nix::fcntl::AT_FDCWD, &name).map_err(io_at("find the mount point of", path))?;
        if here {
            return Ok(ancestor.to_owned());
        }
    }
    Ok(PathBuf::from("/"))
}

struct Count {
    device: libc::dev_t,
    bytes: u64,
    inodes: u64,
    /// Inodes with several links that were counted.
    linked: HashSet<libc::ino_t>,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_dir && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.bytes += stat.st_blocks.unsigned_abs() * 512;
        self.inodes += 1;
    }

    fn tree(&mut self, dir: OwnedFd, depth: usize) -> nix::Result<()> {
        let mut listing = Dir::from_fd(dir)?;
        let mut children = Vec::new();
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let maybe_dir = matches!(entry.file_type(), Some(Type::Directory) | None);
            children.push((name.to_owned(), maybe_dir));
        }
        for (name, maybe_dir) in children {
            let stat = match fstatat(listing.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => continue,
                other => other?,
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.add(&stat);
            if !maybe_dir || depth >= MAX_DEPTH {
                continue;
            }
            match openat(listing.as_fd(), name.as_c_str(), DIRECTORY, Mode::empty()) {
                Ok(child) => self.tree(child, depth + 1)?,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_volumes_count_as_what_a_container_has_written() {
        let dir = std::env::temp_dir().join(format!("wharf-usage-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        let before = writable_layer(&dir).unwrap();
        std::fs::create_dir_all(dir.join("volumes/0")).unwrap();
        std::fs::write(dir.join("volumes/0/data"), vec![1; 1 << 20]).unwrap();
        let after = writable_layer(&dir).unwrap();
        assert!(
            after.used_bytes >= before.used_bytes + (1 << 20),
            "{before:?} {after:?}"
        );
        // The directory of all volumes, the volume, and its file.
        assert_eq!(after.inodes_used, before.inodes_used + 3);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
