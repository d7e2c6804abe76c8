//! Extended attributes of files, all of them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// All extended attributes of the file at `path`, whose last component is not followed; none where there can be none.
pub fn all(path: &CStr) -> nix::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let list = grown(|buffer| {
        // SAFETY: the path is NUL-terminated, the buffer's pointer and length belong together.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let list = match list {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for name in list.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let value = grown(|buffer| {
            // SAFETY: both strings are NUL-terminated, the buffer's pointer and length belong together.
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        });
        match value {
            Ok(value) => all.push((name.to_bytes().to_vec(), value)),
            // Removed meanwhile.
            Err(Errno::ENODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(all)
}

/// As [`all`], of `name` in `directory`.
pub fn xattrs_at(directory: &OwnedFd, name: &[u8]) -> nix::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // /proc/self/fd/N leads to the open directory itself.
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    all(&CString::new(path).map_err(|_| Errno::EINVAL)?)
}

/// Copies extended attributes between open files or directories. Those that overlayfs keeps for itself are left out, and
/// those that the target's filesystem does not have or that say nothing outside their user namespace.
pub fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    let names = grown(|buffer| {
        // SAFETY: the buffer's pointer and length belong together.
        unsafe { libc::flistxattr(from.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let names = match names {
        Err(Errno::EOPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let value = grown(|buffer| {
            // SAFETY: the name is NUL-terminated, the buffer's pointer and length belong together.
            unsafe {
                libc::fgetxattr(
                    from.as_raw_fd(),
                    name.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            }
        });
        let value = match value {
            Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EOVERFLOW) => continue,
            other => other?,
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

/// What `read` puts into a buffer that is large enough; names and values have at most 64 KiB.
fn grown(read: impl Fn(&mut [u8]) -> isize) -> nix::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match Errno::result(read(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length.unsigned_abs());
                return Ok(buffer);
            }
            Err(Errno::ERANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}
