//! Cgroups, v1 and v2, through the file system (the `cgroupfs` driver), and on v2 by systemd (the `systemd` driver).
//!
//! Owns: finding the mounted hierarchies, making and removing cgroups, writing limits, reading counters, killing what is
//! inside. Plain synchronous code, so that the monitor can use it as well as the daemon (from `spawn_blocking`).
//! Must never: touch a cgroup that it was not given by path, or know what a pod is. May ask: no other room.
//!
//! - [`detect`] reads the mount table once; [`Hierarchies`] is cheap to clone.
//! - [`Cgroup`] is one path below the roots of all hierarchies.
//! - On a hybrid machine (v1 controllers and a cgroup2 mount beside them) the v1 side rules. The v2 side is made only for
//!   what lives there alone, such as huge page limits.

mod bpf;
mod cgroup;
mod convert;
mod detect;
mod devices;
mod freeze;
mod fsutil;
mod isolate;
mod kill;
mod mounts;
mod path;
pub mod systemd;
#[cfg(test)]
mod tests;
mod update;
mod usage;
mod v1;
mod v2;

pub use cgroup::{Cgroup, Joiner};
pub use convert::cpu_shares_to_weight;
pub use detect::{Hierarchies, detect};
pub use update::Undo;
pub use usage::{Cpu, Depth, DeviceIo, HugePages, Memory, Psi, Rate, Stall, Swap, Tasks, Throttling, Usage};

use std::{io, path::PathBuf};

/// What went wrong, with the attempt and the object in the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine mounts no cgroup hierarchy that can be used.
    #[error("find cgroup hierarchies: none is mounted (looked at /proc/self/mountinfo)")]
    NoHierarchy,
    /// A path that is not a plain absolute path.
    #[error("cgroup path {path:?}: {reason}")]
    InvalidPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A value in the resources that no cgroup file can take.
    #[error("cgroup {key}: invalid value {value:?}: {reason}")]
    InvalidValue {
        /// Which setting.
        key: String,
        /// The value as given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The request is understood, but this machine or this version of Wharf cannot do it.
    #[error("Unsupported: {0}")]
    Unsupported(String),
    /// A controller that a limit needs is not there.
    #[error("set {file} of cgroup {path}: the {controller} controller is not available there")]
    NoController {
        /// Name of the controller.
        controller: String,
        /// The file that is missing.
        file: String,
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// A memory limit that would have the kernel kill at once.
    #[error("cannot decrease memory limit of cgroup {path} to {limit}: {used} bytes are in use")]
    BelowUsage {
        /// The cgroup.
        path: String,
        /// What was asked for, bytes.
        limit: u64,
        /// What is in use and can't easily be had back, bytes.
        used: u64,
    },
    /// A change failed, and so did taking back what had been changed by then.
    #[error("{error}; then, taking back what was done by then: {second}")]
    HalfDone {
        /// Why the change failed.
        error: Box<Error>,
        /// Why it could not be taken back.
        second: Box<Error>,
    },
    /// The cgroup still has processes in it after the time allowed.
    #[error("remove cgroup {path}: still in use by processes {pids:?}")]
    Busy {
        /// The cgroup's directory.
        path: PathBuf,
        /// Some of the processes inside.
        pids: Vec<i32>,
    },
    /// The kernel refused a file operation.
    #[error("{attempt} {path}: {source}")]
    Io {
        /// What was tried, as a verb ("write \"max\" to").
        attempt: String,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn io(attempt: impl Into<String>, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::Io {
            attempt: attempt.into(),
            path: path.into(),
            source,
        }
    }

    /// The errno behind this error, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
