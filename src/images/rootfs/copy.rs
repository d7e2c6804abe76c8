//! Copies of directories with all that belongs to their files: owners, modes, times, extended attributes, hard links,
//! symlinks as they are, device nodes. For volumes that an image declares, which begin with the image's content.
//!
//! Directories are opened one at a time by their path from the top, never through a symlink, so that neither depth nor
//! hostile names take more than a few descriptors or lead elsewhere.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat},
};

use super::{Error, Result, inside::open_directory_in, xattrs};
use crate::sys;

/// Makes the empty directory `target` a copy of the directory `path` in the tree `root`, whose symlinks are followed
/// as a process with that root would. False: there is no such directory, and nothing was changed. Sockets are left out.
///
/// # Errors
/// What the kernel refuses, with the name of the file; part of the copy may be there then. ENOTDIR: what is there is no
/// directory.
pub fn copy_directory(root: &Path, path: &Path, target: &Path) -> Result<bool> {
    let at = |path: &Path, source: io::Error| Error::Io {
        what: "copy",
        path: path.to_owned(),
        source,
    };
    let source = match open_directory_in(root, path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at(path, error)),
    };
    let target = File::open(target).map_err(|error| at(target, error))?;
    let mut copy = Copy {
        source,
        target: target.into(),
        links: HashMap::new(),
        times: Vec::new(),
    };
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let children = copy.directory(&directory).map_err(|(name, errno)| {
            let shown = path.join(&directory).join(OsStr::from_bytes(name.as_bytes()));
            at(&shown, errno.into())
        })?;
        waiting.extend(children.into_iter().map(|name| directory.join(name)));
    }
    copy.set_times()
        .map_err(|(name, errno)| at(&path.join(name), errno.into()))?;
    Ok(true)
}

struct Copy {
    source: OwnedFd,
    target: OwnedFd,
    /// Where the first name of a file with several was copied to, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Of directories: set last, as copying into them changes them.
    times: Vec<(PathBuf, FileStat)>,
}

impl Copy {
    /// Copies what is directly in `directory` and returns its child directories, which have been made.
    fn directory(&mut self, directory: &Path) -> std::result::Result<Vec<PathBuf>, (CString, Errno)> {
        let itself = |errno| (CString::default(), errno);
        let from = open_below(&self.source, directory).map_err(itself)?;
        let to = open_below(&self.target, directory).map_err(itself)?;
        let stat = fstat(&from).map_err(itself)?;
        attributes(from.as_fd(), to.as_fd(), &stat).map_err(itself)?;
        self.times.push((directory.to_owned(), stat));
        let mut children = Vec::new();
        let listed = from.try_clone().map_err(|_| itself(Errno::EMFILE))?;
        for entry in Dir::from_fd(listed).map_err(itself)?.iter() {
            let entry = entry.map_err(itself)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let child = directory.join(OsStr::from_bytes(name.to_bytes()));
            let is_directory = self
                .entry(&from, &to, name, &child)
                .map_err(|errno| (name.to_owned(), errno))?;
            if is_directory {
                children.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
            }
        }
        Ok(children)
    }

    /// Copies one entry; says whether it is a directory, whose content is still to be copied.
    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path) -> nix::Result<bool> {
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            mkdirat(to, name, Mode::S_IRWXU)?;
            return Ok(true);
        }
        if kind == SFlag::S_IFSOCK {
            return Ok(false);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                linkat(&self.target, first.as_path(), to, name, AtFlags::empty())?;
                return Ok(false);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        if kind == SFlag::S_IFREG {
            return file(from, to, name, &stat).map(|()| false);
        }
        if kind == SFlag::S_IFLNK {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
        } else {
            mknodat(to, name, kind, mode(&stat), stat.st_rdev)?;
        }
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(to, name, Some(owner), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind != SFlag::S_IFLNK {
            // mknod was subject to the umask.
            let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(to, name, mode(&stat), flags)?;
        }
        let (accessed, modified) = times(&stat);
        utimensat(to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
        Ok(false)
    }

    fn set_times(&self) -> std::result::Result<(), (PathBuf, Errno)> {
        for (path, stat) in &self.times {
            let set = open_below(&self.target, path).and_then(|directory| {
                let (accessed, modified) = times(stat);
                futimens(&directory, &accessed, &modified)
            });
            set.map_err(|errno| (path.clone(), errno))?;
        }
        Ok(())
    }
}

fn open_below(top: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    sys::openat2(top.as_fd(), path, libc::O_RDONLY | libc::O_DIRECTORY, 0, resolve).map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &FileStat) -> nix::Result<()> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut source = File::from(openat(from, name, read, Mode::empty())?);
    let mut target = File::from(openat(to, name, write, Mode::S_IRUSR | Mode::S_IWUSR)?);
    io::copy(&mut source, &mut target).map_err(errno)?;
    attributes(source.as_fd(), target.as_fd(), stat)?;
    let (accessed, modified) = times(stat);
    futimens(&target, &accessed, &modified)
}

/// Owner, mode and extended attributes. In this order: a change of owner takes setuid bits and capabilities away.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &FileStat) -> nix::Result<()> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, mode(stat))?;
    xattrs::copy_xattrs(from, to)
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o7777)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}
