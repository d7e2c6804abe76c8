//! The system calls of the extraction, each relative to a directory that is already open.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::sys::time::TimeSpec;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// `FS_TOPDIR_FL` (linux/fs.h).
const TOP_OF_HIERARCHIES: libc::c_int = 0x2_0000;

/// Asks the file system to put each directory that will be made in this one into a part of the disk of its own, with all that
/// will be in it (ext4's "top of directory hierarchies", `chattr +T`). Otherwise all layers share one, with the tables of
/// all that was removed lately: where ext4 has no journal it looks at each such entry whenever it makes a file. Only ext2, 3 and
/// 4 know it.
///
/// # Errors
/// When the file system does not.
pub fn spread(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the request writes one int (whatever its number says, ioctl_iflags(2)), which outlives the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) };
    Errno::result(done)?;
    flags |= TOP_OF_HIERARCHIES;
    // SAFETY: the request reads one int, which outlives the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) };
    Errno::result(done)?;
    Ok(())
}

/// Has the kernel begin to write what the file has, without waiting for it: who syncs later waits for less. A failure is no
/// matter here, and is told to whoever syncs.
pub fn begin_writing(file: &File) {
    // SAFETY: no memory is passed; the descriptor is borrowed for the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Opens a child directory, never through a symlink.
pub fn open_dir(parent: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens a directory below `root` by a path whose symlinks are resolved as if `root` were `/`, on one filesystem.
pub fn open_in_root(root: &OwnedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let path = if path.is_empty() { b"." } else { path };
    loop {
        // EAGAIN: a rename elsewhere raced with the walk.
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
}

/// Where an open directory is now; `None` if the path is longer than the kernel tells.
pub fn path_of(directory: &OwnedFd) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
    Some(path.into_os_string().into_vec())
}

/// Creates a regular file for writing; nothing of that name may exist.
pub fn create(parent: &OwnedFd, name: &[u8], mode: u32) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::from_bits_truncate(mode))
}

/// What is at that name, not what it points to.
pub fn stat(parent: &OwnedFd, name: &[u8]) -> nix::Result<FileStat> {
    fstatat(parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Whether the thing is overlayfs' whiteout.
pub fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// Whether the thing is a directory.
pub fn is_dir(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// A modification time for the kernel.
pub fn time((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanos))
}

/// Sets an extended attribute on an open file or directory.
pub fn fsetxattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is NUL-terminated, the value's pointer and length belong together, the descriptor is borrowed.
    let done = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// Sets an extended attribute on what has no descriptor to write through: symlinks and devices.
pub fn setxattr_at(parent: &OwnedFd, file: &[u8], name: &[u8], value: &[u8]) -> nix::Result<()> {
    // The kernel has setxattrat only since 6.13. /proc/self/fd/N leads to the open directory itself, and the last
    // component is not followed.
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(file);
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both strings are NUL-terminated, the value's pointer and length belong together.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// Removes an extended attribute; absent or not supported is success.
pub fn fremovexattr(fd: impl AsFd, name: &std::ffi::CStr) -> nix::Result<()> {
    // SAFETY: the name is NUL-terminated and the descriptor is borrowed for the call.
    let done = unsafe { libc::fremovexattr(fd.as_fd().as_raw_fd(), name.as_ptr()) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The process's file mode creation mask, read without changing it (threads share it).
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Unknown: assume that every bit may be masked, which costs a chmod a file and nothing else.
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or(0o777)
}
