//! The client side of the registry protocol (OCI distribution specification, Docker registry API v2).
//!
//! A [`Client`] knows the configured registries; a [`Session`] is one pull's view of one repository, with its
//! credentials and tokens. What a registry sends is hostile: sizes are bounded, redirects are followed by hand and
//! lose the credentials on the way to another host, and neither addresses' queries nor what registries say in prose
//! ends in a message.

mod ahead;
mod auth;
mod blob;
mod challenge;
mod conf;
mod document;
mod endpoint;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzzing;
mod hosts;
mod noproxy;
mod pace;
mod proxy;
mod referrers;
mod session;
mod settings;
mod tls;
mod token;
mod transport;
mod upload;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use wharf_proto::cri;

pub(super) use blob::BlobStream;
pub(super) use document::{Document, digest_of};
pub(super) use endpoint::Endpoint;
pub(super) use session::Session;
pub(super) use upload::{Blob, Mounted, Upload};

use super::{Error, Reference, Result};
use crate::config::{self, Config};
use conf::Conf;
use endpoint::Sources;

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
pub(super) struct Client(Arc<Inner>);

struct Inner {
    http: Arc<transport::Http>,
    registries: BTreeMap<String, config::Registry>,
    pull: config::Pull,
    /// `registries.conf` as last read.
    conf: RwLock<Arc<Conf>>,
}

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
        Self(Arc::new(Inner {
            http: Arc::new(transport::Http::new(patience)),
            registries: config.registries.clone(),
            pull: config.pull.clone(),
            conf: RwLock::default(),
        }))
    }

    /// A view of the repository of `reference`. Reads the node's files about registries, so that a change counts from
    /// the next pull on.
    ///
    /// # Errors
    /// When `auth` is malformed, a file can't be used, or the registry is blocked.
    pub async fn session(&self, reference: &Reference, auth: Option<&cri::AuthConfig>) -> Result<Session> {
        let credentials = auth
            .map(|auth| auth::Given::new(auth, &reference.registry))
            .transpose()?;
        let (client, name) = (self.clone(), reference.clone());
        let endpoints = super::pull::blocking(move || {
            let conf = client.reload()?;
            let sources = Sources {
                registries: &client.0.registries,
                trees: &client.0.pull.hosts_dirs,
                conf: &conf,
            };
            endpoint::endpoints(&sources, &name).map_err(|reason| Error::BadContent {
                what: format!("registry {}", name.registry),
                reason,
            })
        })
        .await?;
        Ok(Session::new(self.0.http.clone(), endpoints, reference, credentials))
    }

    /// What all blobs together may have in memory before its turn.
    #[cfg(test)]
    pub fn budget(&self) -> Arc<tokio::sync::Semaphore> {
        self.0.http.budget.clone()
    }

    /// The full references that `text` may stand for by `registries.conf`; just itself if nothing is said about it.
    ///
    /// # Errors
    /// When the file can't be used, or leaves open what is meant.
    pub async fn names(&self, text: &str) -> Result<Vec<String>> {
        let client = self.clone();
        let conf = super::pull::blocking(move || client.reload()).await?;
        let expanded = conf.expand(text).map_err(|reason| Error::BadContent {
            what: "image reference".into(),
            reason,
        })?;
        Ok(expanded.unwrap_or_else(|| vec![text.to_owned()]))
    }

    /// The same as last read, for lookups: no file is touched.
    pub fn known_names(&self, text: &str) -> Vec<String> {
        let conf = self.0.conf.read().unwrap_or_else(PoisonError::into_inner).clone();
        conf.expand(text).ok().flatten().unwrap_or_default()
    }

    /// Reads `registries.conf`. Blocking.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn reload(&self) -> Result<Arc<Conf>> {
        let conf = Conf::read(&self.0.pull.registries_conf).map_err(|reason| Error::BadContent {
            what: "registries.conf".into(),
            reason,
        })?;
        let conf = Arc::new(conf);
        *self.0.conf.write().unwrap_or_else(PoisonError::into_inner) = conf.clone();
        Ok(conf)
    }
}
