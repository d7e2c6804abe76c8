//! The OCI spec of a container, as a pure function of what CRI asked for and what is known of the machine.
//!
//! Owns: every decision of what a container may see and do. Must never: read the machine, the clock or the environment;
//! [`super::host`] has done so before. May ask: `caps`, `seccomp`, `users` for their tables.

mod command;
mod devices;
mod input;
mod mounts;
mod namespaces;
#[cfg(test)]
mod properties;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod whole;

pub use input::{Pins, PodFiles, Policy, PrivilegedDevices, SpecInput};
pub use resources::{no_limits, to_oci as resources_to_oci};
pub use security::{ProfileChoice, seccomp_choice};
pub use whole::generate;

use super::caps;

/// Why a config cannot become a spec.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request contradicts itself or the machine.
    #[error("{0}")]
    Invalid(String),
    /// Valid in CRI, but not yet there.
    #[error("{0}")]
    Unsupported(String),
    /// kubelet looks for this word at the head.
    #[error("RROUnsupported: mount at {0} cannot be made recursively read-only: Linux 5.12 or newer is needed")]
    RroUnsupported(String),
    /// A capability that does not exist.
    #[error(transparent)]
    Capability(#[from] caps::UnknownCapability),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}
