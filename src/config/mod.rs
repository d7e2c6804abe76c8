//! The daemon's configuration: `wharf.toml`, its drop-ins, and defaults with which the daemon runs alone.
//!
//! This room owns the names, ranges and defaults of the settings. It must never look at the machine (that is the
//! doctor's task) and asks no other room. Whoever holds a [`Config`] may rely on its values being in range.
//!
//! `/etc/wharf/wharf.toml` is read first, then `/etc/wharf/wharf.toml.d/*.toml` in the order of their names; a later
//! file overrides single keys of an earlier one, arrays are replaced as a whole.

mod cgroups;
mod containers;
mod handlers;
mod isolation;
mod model;
mod network;
mod nri;
mod observability;
mod reload;
mod source;
mod trust;
mod validate;

use std::path::{Path, PathBuf};

pub use cgroups::{CgroupDriver, Cgroups};
pub use containers::{Containers, ImageVolumes, MissingHostPaths, Ulimit, parse_device};
pub use handlers::{DEVICES, DISK_LIMIT, ExecCpuAffinity, RuntimeHandler, SECCOMP_NOTIFIER, SHM_SIZE, UMASK};
pub use isolation::{CpuIsolation, CpuSet};
pub use model::{
    BUILTIN_RUNTIME, BlockIoClass, Cdi, Config, IpPreference, Log, LogFormat, NetworkMode, Pull, Rdt, Registry,
    SeccompDefault, Streaming, TlsVersion, parse_size,
};
pub use network::{BuiltinNetwork, Cni};
pub use nri::{DefaultValidator, Nri};
pub use observability::{Audit, Metrics, Tracing};
pub use reload::{Reloaded, Settings};
use source::Layers;
pub use trust::{Keyless, ScopePolicy, Trust, TrustScope, Verdict};

/// Where the configuration is looked for when no path is given; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/wharf/wharf.toml";

/// Why a configuration was refused. Every message can be shown to a person as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that must exist can't be read, or a drop-in directory can't be listed.
    #[error("read configuration {path}: {source}", path = path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file is not TOML, or has a key or a value that does not exist or is out of range.
    #[error("{path}:{line}: {message}", path = path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// Line in the file, counted from 1.
        line: usize,
        /// Names the key and what is wrong.
        message: String,
    },
    /// A value is wrong that no file has set, so that no line can be named.
    #[error("configuration: {0}")]
    Value(String),
}

/// What the functions of this room return.
pub type Result<T> = std::result::Result<T, Error>;

/// Reads the configuration file and its drop-ins, and checks every value.
///
/// Without `path` the file is [`DEFAULT_PATH`] and may be absent, as may its drop-ins; a `path` that is given must
/// exist.
///
/// # Errors
/// When a file can't be read, is not TOML, has an unknown key or a value that is not allowed; see [`Error`].
pub fn load(path: Option<&Path>) -> Result<Config> {
    let layers = Layers::read(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some())?;
    resolve(&layers)
}

/// The configuration without any file.
impl Default for Config {
    fn default() -> Self {
        let mut config = model::defaults();
        config.complete();
        config
    }
}

fn resolve(layers: &Layers) -> Result<Config> {
    let mut config = layers.merged()?;
    validate::check(&config).map_err(|fault| layers.locate(&fault))?;
    config.complete();
    Ok(config)
}

#[cfg(test)]
mod tests;
