//! The spec that a runtime handler's containers start from, `base_runtime_spec` of its table, as containerd has it. Of it
//! count what the generated spec does not decide by itself: environment, resource limits, hooks, annotations, and mounts
//! at places where nothing else is mounted.

use std::{
    io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

/// Why the base spec can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("read base_runtime_spec {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no spec.
    #[error("base_runtime_spec {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

/// Reads the base spec. Blocking.
///
/// # Errors
/// When the file can't be read or is no spec.
pub fn load(path: &Path) -> Result<Spec, Error> {
    let text = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Adds hooks, annotations and mounts of `base` to a generated spec, which keeps what it has.
pub fn add(base: &Spec, spec: &mut Spec) {
    if base.hooks().is_some() {
        spec.set_hooks(base.hooks().clone());
    }
    let mut annotations = base.annotations().clone().unwrap_or_default();
    annotations.extend(spec.annotations().clone().unwrap_or_default());
    spec.set_annotations(Some(annotations));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in base.mounts().iter().flatten() {
        if !mounts.iter().any(|known| known.destination() == mount.destination()) {
            mounts.push(mount.clone());
        }
    }
    // A shallower target first, so that none hides another.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}
