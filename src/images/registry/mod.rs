//! The client side of the registry protocol (OCI distribution specification, Docker registry API v2).
//!
//! A [`Client`] knows the configured registries; a [`Session`] is one pull's view of one repository, with its
//! credentials and tokens. What a registry sends is hostile: sizes are bounded, redirects are followed by hand and
//! lose the credentials on the way to another host, and neither addresses' queries nor what registries say in prose
//! ends in a message.

mod auth;
mod blob;
pub(super) mod challenge;
mod endpoint;
mod session;
mod tls;
mod transport;

use std::{sync::Arc, time::Duration};

use wharf_proto::cri;

pub(super) use auth::Credentials;
pub(super) use blob::BlobStream;
pub(super) use session::{Document, Session, digest_of};

use super::{Reference, Result};
use crate::config::Config;

/// Largest manifest, index or image configuration that is read.
pub(super) const MAX_DOCUMENT: usize = 4 << 20;

/// How patient the client is.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Silence after which a transfer counts as broken.
    pub stall: Duration,
    /// Wait before the second attempt; doubled for each further one.
    pub back_off: Duration,
    /// Attempts of one request.
    pub attempts: u32,
}

/// All registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client(Arc<transport::Http>);

impl Client {
    /// A client for the registries in `config`. Reads no file yet.
    pub fn new(config: &Config) -> Self {
        Self::with_patience(
            config,
            Patience {
                stall: Duration::from_secs(config.pull.stall_timeout_secs.max(1)),
                back_off: Duration::from_millis(300),
                attempts: 5,
            },
        )
    }

    pub fn with_patience(config: &Config, patience: Patience) -> Self {
        Self(Arc::new(transport::Http::new(config.registries.clone(), patience)))
    }

    /// A view of the repository of `reference`.
    ///
    /// # Errors
    /// When `auth` is malformed.
    pub fn session(&self, reference: &Reference, auth: Option<&cri::AuthConfig>) -> Result<Session> {
        let credentials = auth
            .map(|auth| Credentials::for_registry(auth, &reference.registry))
            .transpose()?
            .flatten();
        Ok(Session::new(self.0.clone(), reference, credentials))
    }
}
