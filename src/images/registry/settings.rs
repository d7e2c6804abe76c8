//! How one host is spoken to: what the node's configuration says about its certificates, headers and patience.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue};

use crate::config::Registry;

/// The settings of one host. The default is TLS with the system's authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::images) struct Settings {
    /// Any certificate will do.
    pub skip_verify: bool,
    /// PEM files of authorities beside the system's.
    pub authorities: Vec<PathBuf>,
    /// Certificates that the client shows, with the file of the key if that is another one.
    pub clients: Vec<(PathBuf, Option<PathBuf>)>,
    /// Sent with every request to the host itself; marked as sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Limit of a connection attempt.
    pub dial_timeout: Option<Duration>,
}

impl Settings {
    /// What `wharf.toml` says about a host.
    pub fn of(registry: &Registry) -> Self {
        Self {
            skip_verify: registry.skip_verify,
            authorities: registry.ca.iter().cloned().collect(),
            ..Self::default()
        }
    }

    /// What of this is for a host that was redirected to: it gets neither headers nor the client's certificate.
    pub fn abroad(&self) -> Self {
        Self {
            clients: Vec::new(),
            headers: Vec::new(),
            ..self.clone()
        }
    }

    /// Whether TLS is as the system has it.
    pub fn has_tls(&self) -> bool {
        self.skip_verify || !self.authorities.is_empty() || !self.clients.is_empty()
    }

    /// Names connections with these settings; another text after a file has changed, so that a new certificate is used
    /// without a restart. Reads the files' times.
    pub fn key(&self) -> String {
        let mut key = format!("{}|{:?}", self.skip_verify, self.dial_timeout);
        let files = self.clients.iter().flat_map(|(cert, key)| [Some(cert), key.as_ref()]);
        for file in self.authorities.iter().chain(files.flatten()) {
            let _ = write!(key, "|{}{}", file.display(), stamp(file));
        }
        key
    }
}

/// Changes whenever the file does.
fn stamp(file: &Path) -> String {
    fs::metadata(file).map_or_else(
        |_| String::new(),
        |about| {
            format!(
                ":{}:{}.{}:{}",
                about.ino(),
                about.mtime(),
                about.mtime_nsec(),
                about.size()
            )
        },
    )
}
