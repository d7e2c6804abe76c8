//! Removal of trees that containers wrote: of any depth, with any symlinks, never into another mount.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, open, openat2, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Error, Result, io_at};

/// Directories held open at once. What is deeper is first moved up to the top.
const MAX_DEPTH: usize = 48;

/// Removes `path` and all below it. Absent is success.
///
/// # Errors
/// EXDEV if something is mounted inside, whatever else the kernel refuses; the rest of the tree may be gone by then.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io_at("remove", path)(Errno::EINVAL));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let removed = match open(parent, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => Err(errno),
        Ok(parent) => remove(parent.as_fd(), name.as_bytes()),
    };
    removed.map_err(|errno| Error::Io {
        what: "remove",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// `remove_tree` of one name in an open directory.
///
/// # Errors
/// As `remove_tree`.
pub fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<()> {
    remove(parent, name).map_err(Into::into)
}

fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = match open_child(parent, name) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let mut moved = 0;
    loop {
        let before = moved;
        let removed = empty(&top, &top, 0, &mut moved)?;
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            // Deep parts were moved up, or the listing was disturbed by the removal: once more while it goes forward.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if removed > 0 || moved > before => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Opens a directory that is on the same mount as its parent and no symlink.
fn open_child(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    loop {
        // EAGAIN: a rename elsewhere raced with the walk.
        match openat2(parent, name, how) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
}

/// Removes what is in `dir` and says how many entries went.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> nix::Result<u64> {
    let mut removed = 0;
    let mut listing = Dir::from_fd(open_child(dir.as_fd(), b".")?)?;
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let directory = match entry.file_type() {
            Some(Type::Directory) => true,
            _ => match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => false,
                // A filesystem that does not tell types.
                Err(Errno::EISDIR) => true,
                Err(errno) => return Err(errno),
            },
        };
        if !directory || remove_dir(dir, name, top, depth, moved)? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes a directory inside `dir`, or moves it up if it is deep; says whether it is gone.
fn remove_dir(dir: &OwnedFd, name: &CStr, top: &OwnedFd, depth: usize, moved: &mut u64) -> nix::Result<bool> {
    if depth >= MAX_DEPTH {
        move_up(dir, name, top, moved)?;
        return Ok(false);
    }
    let child = match open_child(dir.as_fd(), name.to_bytes()) {
        Err(Errno::ENOENT) => return Ok(true),
        other => other?,
    };
    loop {
        let removed = empty(&child, top, depth + 1, moved)?;
        match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if removed > 0 => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn move_up(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> nix::Result<()> {
    loop {
        *moved += 1;
        let to = format!(".wharf-removed-{moved}");
        match renameat2(dir, name, top, to.as_str(), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}
