//! Where CRIU is.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::containers::{Container, Error, Result};

/// The program `criu` in the daemon's search path.
///
/// # Errors
/// [`Error::State`], with what to install.
pub fn find(container: &Container) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("criu"))
        .find(|file| is_program(file));
    found.ok_or_else(|| {
        Error::State(format!(
            "container {}: checkpoint and restore need the program criu, which is not in PATH; Debian's package is named \
             criu",
            container.id
        ))
    })
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
