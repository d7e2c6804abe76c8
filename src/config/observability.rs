//! Settings of who watches the daemon: `[metrics]` and `[audit]`.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// `[metrics]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where figures are read by Prometheus; unset, nothing is counted.
    pub address: Option<SocketAddr>,
}

/// `[audit]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Gets a line for each call that changes something; unset, nobody notes them. Absolute.
    pub file: Option<PathBuf>,
    /// Calls that only read get one too.
    pub reads: bool,
}
