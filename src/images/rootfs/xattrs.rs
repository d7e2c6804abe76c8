//! Extended attributes from one open file to another.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Copies extended attributes between open files or directories. Those that overlayfs keeps for itself are left out, and
/// those that the target's filesystem does not have.
pub fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    let mut names = vec![0u8; 1024];
    let length = loop {
        // SAFETY: the buffer's pointer and length belong together.
        let listed = unsafe { libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
        match Errno::result(listed) {
            Ok(length) => break length.unsigned_abs(),
            // XATTR_LIST_MAX is 64 KiB.
            Err(Errno::ERANGE) if names.len() < 1 << 16 => names.resize(names.len() * 4, 0),
            Err(Errno::EOPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let Some(value) = whole_xattr(from, name)? else {
            continue;
        };
        // SAFETY: the name is NUL-terminated, the value's pointer and length belong together.
        let set = unsafe { libc::fsetxattr(to.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        match Errno::result(set) {
            Ok(_) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// An extended attribute of any length; `None` if it is absent, or says nothing outside its user namespace.
fn whole_xattr(fd: BorrowedFd<'_>, name: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 256];
    loop {
        // SAFETY: the name is NUL-terminated, the buffer's pointer and length belong together.
        let read = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match Errno::result(read) {
            Ok(length) => {
                value.truncate(length.unsigned_abs());
                return Ok(Some(value));
            }
            // XATTR_SIZE_MAX is 64 KiB.
            Err(Errno::ERANGE) if value.len() < 1 << 16 => value.resize(1 << 16, 0),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EOVERFLOW) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}
