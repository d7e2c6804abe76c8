//! System calls of the mount API and of statx that neither libc nor nix wraps.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

/// Longest string fsconfig takes, with its NUL.
pub const FSCONFIG_STRING: usize = 256;

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns. It fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens a context to configure a filesystem in.
pub fn fsopen(filesystem: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the string is NUL-terminated; no other memory is passed.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, filesystem.as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(context: &OwnedFd, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> nix::Result<()> {
    let pointer = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings are NUL-terminated or null as the command wants; the last argument is unused by these.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// Sets an option that has a value.
pub fn set_string(context: &OwnedFd, key: &CStr, value: &CStr) -> nix::Result<()> {
    fsconfig(context, FSCONFIG_SET_STRING, Some(key), Some(value))
}

/// Sets an option that has none.
pub fn set_flag(context: &OwnedFd, key: &CStr) -> nix::Result<()> {
    fsconfig(context, FSCONFIG_SET_FLAG, Some(key), None)
}

/// Creates the configured filesystem.
pub fn create(context: &OwnedFd) -> nix::Result<()> {
    fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
}

/// Makes a mount of the created filesystem, attached nowhere yet.
pub fn fsmount(context: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: only integers are passed.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// Attaches a mount at an open directory.
pub fn attach(mount: &OwnedFd, at: &OwnedFd) -> nix::Result<()> {
    let (empty, flags) = (c"".as_ptr(), MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    // SAFETY: the strings are NUL-terminated, the descriptors are borrowed for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty,
            at.as_raw_fd(),
            empty,
            flags,
        )
    };
    Errno::result(done).map(drop)
}

/// Whether `name` below `dir` (or `dir` itself, for an empty name) is the root of a mount. Follows no symlink.
pub fn is_mount_root(dir: BorrowedFd<'_>, name: &CStr) -> nix::Result<bool> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: all-zero is a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // By number: the standard library declares the C function as weak, and in a static binary with link-time
    // optimisation that makes ours a call of address 0.
    // SAFETY: the name is NUL-terminated and the kernel writes no more than the structure.
    let done = unsafe { libc::syscall(libc::SYS_statx, dir.as_raw_fd(), name.as_ptr(), flags, 0, &raw mut stat) };
    Errno::result(done)?;
    Ok(stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// Reads a short extended attribute; `None` if it is absent or not supported.
pub fn xattr(fd: impl AsFd, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let mut value = [0u8; 16];
    // SAFETY: the name is NUL-terminated, the buffer's pointer and length belong together.
    let read = unsafe {
        libc::fgetxattr(
            fd.as_fd().as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match Errno::result(read) {
        Ok(length) => Ok(value.get(..length.unsigned_abs()).map(<[u8]>::to_vec)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ERANGE) => Ok(None),
        Err(errno) => Err(errno),
    }
}
