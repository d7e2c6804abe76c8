//! Switches of the kernel's network, below `/proc/sys/net` of the thread's namespace.

use std::path::Path;

use super::{Error, Result};

/// The value of a switch.
///
/// # Errors
/// When it can't be read.
pub(super) fn get(name: &str) -> Result<String> {
    let path = Path::new("/proc/sys/net").join(name);
    std::fs::read_to_string(&path).map_err(|source| Error::io("read", &path, source))
}

/// Writes only what differs: a file system that is read-only is fine where all is set up.
///
/// # Errors
/// When it can't be read or written.
pub(super) fn set(name: &str, value: &str) -> Result<()> {
    if get(name)?.trim() == value {
        return Ok(());
    }
    let path = Path::new("/proc/sys/net").join(name);
    std::fs::write(&path, value).map_err(|source| Error::io("write", &path, source))
}
