//! What can go wrong in this room, in words that name the attempt and the object.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a namespace could not be made or a network could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of the configuration can't be used.
    #[error("network setting {setting}: {reason}")]
    Setting {
        /// Name of the setting, as in `wharf.toml`.
        setting: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A file operation failed.
    #[error("{attempt} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A system call on a namespace failed.
    #[error("{attempt}: {source}")]
    Kernel {
        /// What was tried.
        attempt: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel refused a request made over netlink.
    #[error("{attempt}: {source}{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Netlink {
        /// What was tried, with the object's name.
        attempt: String,
        /// The error number.
        source: std::io::Error,
        /// The kernel's own sentence, where it gave one.
        detail: Option<String>,
    },
    /// A sysctl that may not be set for a pod.
    #[error("sysctl {name}: {reason}")]
    Sysctl {
        /// Name with dots, as it was asked for.
        name: String,
        /// Why it was refused.
        reason: String,
    },
    /// Every address of the subnet is in use.
    #[error("no free address in {subnet}")]
    NoAddress {
        /// The subnet, as configured.
        subnet: String,
    },
    /// There is no named network of that name.
    #[error("there is no network {0:?}")]
    NoSuchNetwork(String),
    /// There is one already.
    #[error("network {0:?} exists already")]
    NetworkExists(String),
    /// Pods are on it.
    #[error("network {name:?} is in use by {pods}")]
    NetworkInUse {
        /// The network.
        name: String,
        /// Ids of the pods.
        pods: String,
    },
    /// A named network that can't be, or can't be used so.
    #[error("network {name:?}: {reason}")]
    BadNetwork {
        /// The network.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A device of a bridge's name was not made by this daemon.
    #[error("device {bridge} belongs to {owner}: Wharf needs a bridge of that name for itself")]
    ForeignBridge {
        /// The device.
        bridge: String,
        /// What is known of its owner.
        owner: String,
    },
    /// A host port belongs to another pod.
    #[error("host port {port} is held by pod {holder}")]
    PortTaken {
        /// Protocol and port, for example `tcp/8080`, with the host address where one was asked for.
        port: String,
        /// Id of the pod that has it.
        holder: String,
    },
    /// A port mapping can't be served.
    #[error("port mapping {mapping}: {reason}")]
    PortMapping {
        /// The mapping as it was asked for.
        mapping: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No CNI configuration is there to attach a pod with.
    #[error("network plugin is not ready: {0}")]
    NotReady(String),
    /// A CNI configuration can't be used.
    #[error("CNI configuration {origin}: {reason}")]
    CniConfig {
        /// The file, or the record that holds it.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A CNI plugin could not be started or answered with an error or with garbage.
    #[error("CNI {command} by plugin {plugin}{}: {reason}", inside(netns))]
    CniPlugin {
        /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC` or `VERSION`.
        command: &'static str,
        /// The plugin's type.
        plugin: String,
        /// Path of the network namespace; empty where there is none.
        netns: String,
        /// The plugin's own message, its standard error, or what was wrong with its answer.
        reason: String,
    },
    /// A CNI plugin did not answer in time and was killed.
    #[error("CNI {command} by plugin {plugin}{} did not end within {limit:?} and was killed{}", inside(netns),
        if stderr.is_empty() { String::new() } else { format!(", it wrote: {stderr}") })]
    CniTimeout {
        /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC` or `VERSION`.
        command: &'static str,
        /// The plugin's type.
        plugin: String,
        /// Path of the network namespace; empty where there is none.
        netns: String,
        /// The time that it had.
        limit: Duration,
        /// What it had written to standard error.
        stderr: String,
    },
    /// A network device of the node's that a pod can't have.
    #[error("network device {name:?}: {reason}")]
    Device {
        /// What it is called on the node.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers on a port of a pod.
    #[error("connect to port {port} of localhost: {source}")]
    Connect {
        /// The TCP port.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread of this room could not be started, or ended without an answer.
    #[error("{0}")]
    Thread(String),
}

fn inside(netns: &str) -> String {
    match netns {
        "" => String::new(),
        netns => format!(" in {netns}"),
    }
}

/// What the functions of this room return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(attempt: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            attempt,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn kernel(attempt: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Kernel {
            attempt: attempt.into(),
            source: source.into(),
        }
    }

    /// The error number that the kernel gave, if the error came from there.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Kernel { source, .. } | Self::Netlink { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}
