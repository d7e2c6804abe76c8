//! Settings of who watches the daemon: `[metrics]`, `[tracing]` and `[audit]`.

use std::{net::SocketAddr, path::PathBuf};

use http::Uri;
use serde::{Deserialize, Serialize};

use super::validate::{Check, fault};

/// `[metrics]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where figures are read by Prometheus; unset, nothing is counted.
    pub address: Option<SocketAddr>,
}

/// `[tracing]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// A collector that takes spans by OTLP/gRPC: `http://`, `https://` or `unix://`; unset, nothing is traced.
    pub endpoint: Option<String>,
    /// `service.name` of the spans.
    pub service_name: String,
    /// Of a million calls whose caller does not say whether it is traced, so many are; 0 to 1000000.
    pub samples_per_million: u32,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: None,
            service_name: "wharf".into(),
            samples_per_million: 1_000_000,
        }
    }
}

/// Whether values are in range.
pub(super) fn check(tracing: &Tracing) -> Check {
    if tracing.samples_per_million > 1_000_000 {
        return fault(
            &["tracing", "samples_per_million"],
            format!("{} is more than 1000000", tracing.samples_per_million),
        );
    }
    if tracing.service_name.is_empty() {
        return fault(&["tracing", "service_name"], "is empty");
    }
    let Some(endpoint) = &tracing.endpoint else {
        return Ok(());
    };
    let is_url = match endpoint.strip_prefix("unix://") {
        Some(path) => path.starts_with('/'),
        None => endpoint
            .parse::<Uri>()
            .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()),
    };
    if is_url {
        return Ok(());
    }
    fault(
        &["tracing", "endpoint"],
        format!("\"{endpoint}\" is no address such as \"http://127.0.0.1:4317\" or \"unix:///run/otel.sock\""),
    )
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
