//! Small file operations with errors that name the file and the value.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use super::{Error, Result};

/// Counter and limit files are small; a hostile bind mount in their place is not worth reading further.
const MAX_FILE: u64 = 4 << 20;

/// Writes `value` with one write(2), as the kernel demands.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    write_raw(path, value).map_err(|e| Error::io(format!("write {value:?} to"), path, e))
}

/// Like [`write`], for callers that look at the errno.
pub(super) fn write_raw(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    write_all_at_once(&mut file, value.as_bytes())
}

/// One write(2); a short one is an error because the kernel parsed only a part.
pub(super) fn write_all_at_once(file: &mut File, value: &[u8]) -> io::Result<()> {
    loop {
        match file.write(value) {
            Ok(n) if n == value.len() => return Ok(()),
            Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Reads a whole small file.
pub(super) fn read(path: &Path) -> Result<String> {
    read_raw(path).map_err(|e| Error::io("read", path, e))
}

/// Like [`read`], for callers that look at the errno.
pub(super) fn read_raw(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// A file with one number; `max` and v1's "no limit" values are [`u64::MAX`] and whatever the kernel says.
pub(super) fn read_u64(path: &Path) -> Option<u64> {
    let text = read_raw(path).ok()?;
    match text.trim() {
        "max" => Some(u64::MAX),
        n => n.parse().ok(),
    }
}

/// The value of `key` in a file of "key value" lines.
pub(super) fn read_keyed(path: &Path, key: &str) -> Option<u64> {
    keyed(&read_raw(path).ok()?, key)
}

/// The value of `key` in text of "key value" lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key)?.1.trim().parse().ok())
}

/// mkdir that accepts "already there". True if it was made now.
pub(super) fn mkdir(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("create cgroup", path, e)),
    }
}

/// Directories directly below `path`; none if it is gone.
pub(super) fn children(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
