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

use super::{FsUsage, Result, io_at, quota, sys};

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The kernel counts blocks of so many bytes, whatever the filesystem's are.
const BLOCK: u64 = 512;
/// Below a container's directory: its writable layer.
const UPPER: &str = "upper";
/// Below a container's directory: where overlayfs makes what it then moves to the writable layer.
const WORK: &str = "work";
/// Below a container's directory: the volumes that its image declares.
const VOLUMES: &str = "volumes";
/// Directories held open at once; what is deeper than a sane tree is not counted.
const MAX_DEPTH: usize = 256;

/// Bytes allocated and inodes of the tree at `root`, its own inode included, hard links counted once. Stays on the
/// filesystem of `root`; what vanishes meanwhile is not counted.
///
/// # Errors
/// `root` or a directory in it cannot be read.
pub fn usage(root: &Path) -> Result<FsUsage> {
    let Amount { bytes, inodes } = measure(root, &[])?;
    Ok(FsUsage {
        mountpoint: mountpoint(root)?,
        used_bytes: bytes,
        inodes_used: inodes,
    })
}

/// Disk space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Allocated.
    pub bytes: u64,
    /// Files, directories and all else.
    pub inodes: u64,
}

/// What a container's directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDisk {
    /// What the container has written: into its layer, see [`super::mount`], and into volumes that its image declares.
    pub layer: FsUsage,
    /// All else, its record for instance.
    pub beside: Amount,
}

/// Usage of a container's directory. What its `project` takes is asked of the file system, in a time that does not depend on how
/// much it is; that of one without (0) is a walk.
///
/// # Errors
/// As [`usage`]; a container that is being removed has no writable layer any more.
pub fn container_disk(container_dir: &Path, project: u32) -> Result<ContainerDisk> {
    if project != 0 {
        let Amount { bytes, inodes } = quota::project_usage(container_dir, project)?;
        let counted = [UPPER, WORK, VOLUMES].map(|name| (name, Except::Whole));
        return Ok(ContainerDisk {
            layer: FsUsage {
                mountpoint: mountpoint(container_dir)?,
                used_bytes: bytes,
                inodes_used: inodes,
            },
            beside: measure(container_dir, &counted)?,
        });
    }
    let mut layer = usage(&container_dir.join(UPPER))?;
    let mut beside = measure(container_dir, &[(UPPER, Except::Whole)])?;
    let volumes = container_dir.join(VOLUMES);
    if volumes.is_dir() {
        let volumes = measure(&volumes, &[])?;
        layer.used_bytes += volumes.bytes;
        layer.inodes_used += volumes.inodes;
        // They may have grown since.
        beside.bytes = beside.bytes.saturating_sub(volumes.bytes);
        beside.inodes = beside.inodes.saturating_sub(volumes.inodes);
    }
    Ok(ContainerDisk { layer, beside })
}

/// As [`usage`], without what is in the directory `name` below `root`.
///
/// # Errors
/// As [`usage`].
pub fn usage_beside(root: &Path, name: &str) -> Result<Amount> {
    measure(root, &[(name, Except::Content)])
}

/// The directory `root` itself, without what is in it.
///
/// # Errors
/// `root` does not exist.
pub fn directory_alone(root: &Path) -> Result<FsUsage> {
    let stat = fstatat(nix::fcntl::AT_FDCWD, root, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io_at("stat", root))?;
    Ok(FsUsage {
        mountpoint: mountpoint(root)?,
        used_bytes: stat.st_blocks.unsigned_abs() * BLOCK,
        inodes_used: 1,
    })
}

/// What is left out below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Except {
    Whole,
    Content,
}

fn measure(root: &Path, except: &[(&str, Except)]) -> Result<Amount> {
    let dir = open(root, DIRECTORY, Mode::empty()).map_err(io_at("open", root))?;
    let stat = fstat(&dir).map_err(io_at("stat", root))?;
    let mut count = Count {
        device: stat.st_dev,
        amount: Amount::default(),
        linked: HashSet::new(),
    };
    count.add(&stat);
    count.tree(dir, 0, except).map_err(io_at("measure", root))?;
    Ok(count.amount)
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
    amount: Amount,
    /// Inodes with several links that were counted.
    linked: HashSet<libc::ino_t>,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_dir && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.amount.bytes += stat.st_blocks.unsigned_abs() * BLOCK;
        self.amount.inodes += 1;
    }

    fn tree(&mut self, dir: OwnedFd, depth: usize, except: &[(&str, Except)]) -> nix::Result<()> {
        let mut listing = Dir::from_fd(dir)?;
        let mut children = Vec::new();
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let out = except.iter().find(|(except, _)| name.to_bytes() == except.as_bytes());
            if out.is_some_and(|(_, except)| *except == Except::Whole) {
                continue;
            }
            let maybe_dir = matches!(entry.file_type(), Some(Type::Directory) | None);
            children.push((name.to_owned(), maybe_dir && out.is_none()));
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
                Ok(child) => self.tree(child, depth + 1, &[])?,
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
        let before = container_disk(&dir, 0).unwrap().layer;
        std::fs::create_dir_all(dir.join("volumes/0")).unwrap();
        std::fs::write(dir.join("volumes/0/data"), vec![1; 1 << 20]).unwrap();
        let after = container_disk(&dir, 0).unwrap().layer;
        assert!(
            after.used_bytes >= before.used_bytes + (1 << 20),
            "{before:?} {after:?}"
        );
        // The directory of all volumes, the volume, and its file.
        assert_eq!(after.inodes_used, before.inodes_used + 3);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
