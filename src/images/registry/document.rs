//! Manifests, configurations and other small documents, whole and checked.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE},
};
use sha2::{Digest as _, Sha256};

use super::{
    MAX_DOCUMENT, Session,
    endpoint::Endpoint,
    session::MAX_CONNECTS,
    transport::{Failure, Message, Unread, host_of, read},
};
use crate::images::{Error, ErrorKind, Result, carried, manifest};

/// A manifest or index as the registry sent it, with the digest of its bytes.
#[derive(Debug, Clone)]
pub(in crate::images) struct Document {
    pub bytes: Bytes,
    pub digest: String,
    /// The header's; what the document says itself counts more.
    pub media_type: String,
}

/// Documents and blobs that came within descriptors (`data`, image specification, descriptor.md): they need not be asked
/// for.
#[derive(Default)]
pub(super) struct Held(Mutex<HashMap<String, Document>>);

impl Held {
    fn get(&self, digest: &str) -> Option<Document> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(digest)
            .cloned()
    }

    /// The blob `digest` of `size` bytes.
    pub fn blob(&self, digest: &str, size: u64) -> Option<Bytes> {
        let found = self.get(digest)?.bytes;
        (found.len() as u64 == size).then_some(found)
    }
}

impl Session {
    /// Keeps what `document` has within its descriptors, as far as digests and sizes confirm it.
    pub fn hold(&self, document: &Document) {
        let carried = carried::carried(document);
        let mut held = self.held().0.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend(carried.into_iter().map(|one| (one.digest.clone(), one)));
    }

    /// The manifest or index that `selector` (a tag or digest) names. A digest is checked.
    ///
    /// # Errors
    /// Of the registry itself, if all mirrors failed too.
    pub async fn manifest(&self, selector: &str) -> Result<Document> {
        let by_digest = selector.starts_with("sha256:");
        if by_digest && let Some(held) = self.held().get(selector) {
            return Ok(held);
        }
        let what = format!("manifest {}:{selector}", self.repository()).replace(":sha256:", "@sha256:");
        let mut last: Option<Error> = None;
        for endpoint in self.endpoints() {
            if !(if by_digest { endpoint.digests } else { endpoint.tags }) {
                continue;
            }
            match self.manifest_from(endpoint, selector, &what).await {
                Ok(document) => return Ok(document),
                Err(error) => {
                    if endpoint.mirror {
                        tracing::debug!(%error, mirror = endpoint.host, "a mirror does not help");
                    }
                    // What a registry said tells more than that it can't be reached in another way too.
                    if last.is_none() || endpoint.mirror || error.kind() != ErrorKind::RegistryUnavailable {
                        last = Some(error);
                    } else if let Some(last) = &mut last
                        && last.kind() == ErrorKind::RegistryUnavailable
                    {
                        *last = error;
                    }
                }
            }
        }
        Err(last.unwrap_or(Error::NotFound {
            what,
            host: String::new(),
        }))
    }

    /// The same, of one endpoint.
    pub(super) async fn manifest_from(&self, endpoint: &Endpoint, selector: &str, what: &str) -> Result<Document> {
        let (headers, bytes) = self
            .small(endpoint, &format!("manifests/{selector}"), manifest::ACCEPTED, what)
            .await?;
        let media_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_owned();
        let promised = headers
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok())
            .filter(|digest| digest.starts_with("sha256:"))
            .map(ToOwned::to_owned);
        let digest = digest_of(&bytes);
        let expected = if selector.starts_with("sha256:") {
            Some(selector.to_owned())
        } else {
            promised
        };
        match expected {
            Some(expected) if expected != digest => Err(Error::Mismatch {
                what: what.to_owned(),
                expected,
                got: digest,
            }),
            _ => Ok(Document {
                bytes,
                digest,
                media_type,
            }),
        }
    }

    /// Headers and body of what is at `path` below the repository, asked for again when the body breaks off.
    pub(super) async fn small(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accepted: &'static str,
        what: &str,
    ) -> Result<(HeaderMap, Bytes)> {
        let patience = &self.http().patience;
        let mut attempt = 1;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accepted));
            let answer = self.get(endpoint, path, headers, what).await?;
            let headers = answer.headers().clone();
            let host = endpoint.host.clone();
            match read(answer.into_body(), MAX_DOCUMENT, patience.stall).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(Unread::Broken(reason)) if attempt >= patience.attempts.min(MAX_CONNECTS) => {
                    return Err(Error::RegistryUnavailable {
                        host,
                        reason: format!("{what} broke off: {reason}"),
                    });
                }
                Err(Unread::Broken(reason)) => tracing::debug!(host, reason, what, "a document broke off"),
                Err(large @ Unread::Large(_)) => {
                    return Err(Error::Registry {
                        what: what.to_owned(),
                        host,
                        reason: large.to_string(),
                    });
                }
            }
            tokio::time::sleep(patience.back_off * attempt).await;
            attempt += 1;
        }
    }

    /// A small blob, whole and checked.
    ///
    /// # Errors
    /// When it is larger than [`MAX_DOCUMENT`], can't be had or has another digest.
    pub async fn document(&self, digest: &str, size: u64) -> Result<Bytes> {
        if size > MAX_DOCUMENT as u64 {
            return Err(Error::BadContent {
                what: format!("blob {digest}"),
                reason: format!("{size} bytes are too many for a configuration"),
            });
        }
        let mut stream = self.blob_from(digest, size, 0);
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let got = digest_of(&bytes);
        if got != digest {
            return Err(Error::Mismatch {
                what: format!("blob {digest}"),
                expected: digest.to_owned(),
                got,
            });
        }
        Ok(bytes.into())
    }

    /// A small document at an address that is no registry's, asked for without credentials; `None` if it is not there.
    ///
    /// # Errors
    /// When it can't be asked for, or is larger than `limit` bytes.
    pub async fn elsewhere(&self, address: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let bad = |host: String, reason: String| Error::Registry {
            what: "a signature".into(),
            host,
            reason,
        };
        let uri: Uri = address
            .parse()
            .ok()
            .filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
            .ok_or_else(|| bad(String::new(), "its address is malformed".into()))?;
        let host = host_of(&uri);
        let answer = match self.http().send(Message::get(uri, std::sync::Arc::default())).await {
            Ok(answer) => answer.response,
            Err(Failure::Network { host, reason }) => return Err(Error::RegistryUnavailable { host, reason }),
            Err(Failure::Refused { host, reason }) => return Err(bad(host, reason)),
        };
        match answer.status() {
            StatusCode::OK => {
                let read = read(answer.into_body(), limit, self.http().patience.stall).await;
                read.map(|bytes| Some(bytes.to_vec()))
                    .map_err(|unread| bad(host, unread.to_string()))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status if status.is_server_error() => Err(Error::RegistryUnavailable {
                host,
                reason: format!("it answered {status}"),
            }),
            status => Err(bad(host, format!("it answered {status}"))),
        }
    }
}

/// `sha256:...` of `bytes`.
pub(in crate::images) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
