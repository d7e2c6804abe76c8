//! Labels for a tree in which a container may be at work: every step goes by descriptors and follows no link, so that nothing
//! outside of it gets a label, whatever is put in the place of what.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use super::Error;
use crate::sys;

/// Directories in each other. Nobody's volume is deeper, unless to use up descriptors.
const DEEPEST: usize = 1000;

/// A directory on the way down.
struct Level {
    dir: OwnedFd,
    entries: fs::ReadDir,
    path: PathBuf,
}

/// Gives `path` and all below it the attribute. What is gone meanwhile is fine.
pub fn set_below(path: &Path, attribute: &CStr, value: &str) -> Result<(), Error> {
    let mut levels: Vec<Level> = Vec::new();
    // SAFETY: the special number for the current directory is valid at all times; the path is absolute.
    let here = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };
    levels.extend(one(here, path, path.to_owned(), attribute, value)?);
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(failed(&level.path))?;
        let below = level.path.join(entry.file_name());
        let found = one(
            level.dir.as_fd(),
            Path::new(&entry.file_name()),
            below,
            attribute,
            value,
        )?;
        if let Some(found) = found {
            if levels.len() == DEEPEST {
                return Err(failed(&found.path)(io::Error::other(format!(
                    "more than {DEEPEST} directories are in each other"
                ))));
            }
            levels.push(found);
        }
    }
    Ok(())
}

/// Whether `path` has the attribute with that value.
pub fn has(path: &Path, attribute: &CStr, value: &str) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let mut found = vec![0u8; value.len() + 1];
    // SAFETY: both names are C strings that outlive the call; the buffer is told with its length.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            attribute.as_ptr(),
            found.as_mut_ptr().cast(),
            found.len(),
        )
    };
    let found = usize::try_from(length).ok().and_then(|length| found.get(..length));
    // The kernel may tell the string's end as well.
    found.is_some_and(|found| found.strip_suffix(b"\0").unwrap_or(found) == value.as_bytes())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Relabel {
        path: path.clone(),
        source,
    }
}

/// Gives one file the attribute; answers with the directory, if it is one. `path` is for words.
fn one(at: BorrowedFd, name: &Path, path: PathBuf, attribute: &CStr, value: &str) -> Result<Option<Level>, Error> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = match sys::openat2(at, name, flags, 0, libc::RESOLVE_NO_MAGICLINKS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed(&path))?,
    };
    let own = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match set(&own, attribute, value) {
        // A file system without labels.
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(None),
        other => other.map_err(failed(&path))?,
    }
    let stat = nix::sys::stat::fstat(&file)
        .map_err(io::Error::from)
        .map_err(failed(&path))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return Ok(None);
    }
    Ok(Some(Level {
        entries: fs::read_dir(&own).map_err(failed(&path))?,
        dir: file,
        path,
    }))
}

/// On what a link in /proc/self/fd leads to, itself a link or not.
fn set(path: &Path, attribute: &CStr, value: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: both names are C strings that outlive the call; the value is told with its length.
    let result = unsafe { libc::setxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
