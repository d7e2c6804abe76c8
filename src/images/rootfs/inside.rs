//! Paths inside a root filesystem, whose symlinks are not to be trusted.

use std::{
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::sys;

/// Opens the directory `path` of the tree `root`, whose symlinks are followed as a process with that root would: none
/// leads out of it.
///
/// # Errors
/// Absent (ENOENT), not a directory (ENOTDIR), or whatever else the kernel refuses.
pub fn open_directory_in(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let root = std::fs::File::open(root)?;
    // Like openat(2), openat2 takes an empty path for an error.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    sys::openat2(root.as_fd(), path, flags, 0, resolve)
}

/// Where the directory `path` of the tree `root` really is: without symlinks, inside of `root`.
///
/// # Errors
/// As [`open_directory_in`].
pub fn directory_in(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let directory = open_directory_in(root, path)?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    // Renamed or unmounted meanwhile, it would be elsewhere.
    if real.starts_with(root.canonicalize()?) {
        Ok(real)
    } else {
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }
}

/// The text of the file `path` of the tree `root`, of at most `most` bytes; empty if it is not there. Symbolic links resolve
/// inside of `root`; bytes that are no UTF-8 are replaced: a stray Latin-1 comment must not make the rest unusable.
///
/// # Errors
/// When it is no regular file, or larger, or can't be read.
pub fn read_text_in(root: &Path, path: &str, most: u64) -> io::Result<String> {
    let root = std::fs::File::open(root)?;
    // Without waiting on a FIFO.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    let opened = match sys::openat2(root.as_fd(), Path::new(path), flags, 0, resolve) {
        Ok(opened) => std::fs::File::from(opened),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let metadata = opened.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    let mut bytes = Vec::new();
    opened.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn no_symlink_leads_out() {
        let base = std::env::temp_dir().join(format!("wharf-inside-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let root = base.join("root");
        fs::create_dir_all(root.join("etc/deep")).unwrap();
        fs::create_dir_all(base.join("etc/deep/secret")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for (link, target) in [
            ("absolute", "/etc/deep"),
            ("up", "../../../../etc/deep"),
            ("chain", "absolute"),
            ("loop", "loop"),
            ("magic", "/proc/self/root"),
            ("dangling", "/nowhere"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let at = |path: &str| directory_in(&root, Path::new(path));
        let real = root.canonicalize().unwrap();
        for inside in [
            "etc/deep",
            "/etc/deep",
            "absolute",
            "up",
            "chain",
            "../etc/deep",
            "etc/./deep/../deep/",
        ] {
            assert_eq!(at(inside).unwrap(), real.join("etc/deep"), "{inside}");
        }
        assert_eq!(at("").unwrap(), real);
        assert_eq!(at("..").unwrap(), real);
        let error = |path: &str| at(path).unwrap_err().raw_os_error().unwrap();
        assert_eq!(error("absolute/secret"), libc::ENOENT);
        assert_eq!(error("magic"), libc::ENOENT);
        assert_eq!(error("dangling"), libc::ENOENT);
        assert_eq!(error("file"), libc::ENOTDIR);
        assert_eq!(error("loop"), libc::ELOOP);
        fs::remove_dir_all(&base).unwrap();
    }
}
