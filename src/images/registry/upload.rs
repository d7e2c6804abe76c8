//! Blobs and manifests on their way to a registry (OCI distribution specification, "Push").
//!
//! Blobs go out in chunks; after a broken connection the registry is asked how far it got, and the upload goes on there.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
    header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use hyper::body::Incoming;

use super::{
    Endpoint, Session,
    session::{Manner, address},
    transport::{CameFrom, Message, resolve},
};
use crate::images::{Error, ErrorKind, Result, pull::blocking};

/// Bytes of one chunk, unless the registry wants more; one is in memory for each upload. Some registries take no more.
const CHUNK: u64 = 4 << 20;
/// Most that a registry may want.
const MAX_CHUNK: u64 = 32 << 20;
/// Chunks that may fail in a row.
const MAX_STRIKES: u32 = 5;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Content that is to be sent, of which any part can be read again.
#[derive(Clone)]
pub(in crate::images) enum Blob {
    /// Small.
    Bytes(Bytes),
    /// A file of this size.
    File(Arc<File>, u64),
}

impl Blob {
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    /// `length` bytes from `from` on.
    async fn part(&self, from: u64, length: u64) -> Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(from as usize..(from + length) as usize)),
            Self::File(file, _) => {
                let file = file.clone();
                blocking(move || {
                    let mut part = vec![0; length as usize];
                    let read = file.read_exact_at(&mut part, from);
                    read.map_err(Error::io("read", "a compressed layer"))?;
                    Ok(part.into())
                })
                .await
            }
        }
    }
}

/// What came of the wish for another repository's blob.
pub(in crate::images) enum Mounted {
    Yes,
    /// The registry has begun an upload instead.
    Begun(Upload),
    No,
}

/// An upload under way.
pub(in crate::images) struct Upload {
    location: Uri,
    chunk: u64,
}

/// How far an upload is by the registry's word.
enum Stand {
    At(Upload, u64),
    /// The registry knows nothing of it.
    Lost,
}

impl Session {
    /// The places that images may be sent to, in the order in which they are tried.
    pub fn destinations(&self) -> Vec<Endpoint> {
        self.endpoints()
            .iter()
            .filter(|endpoint| endpoint.push)
            .cloned()
            .collect()
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// When the registry does not say.
    pub async fn has_blob(&self, endpoint: &Endpoint, digest: &str) -> Result<bool> {
        let what = format!("blob {digest}");
        let uri = address(endpoint, &format!("blobs/{digest}"), &what)?;
        let fine = [StatusCode::OK, StatusCode::NOT_FOUND];
        let message = message(endpoint, Method::HEAD, uri);
        let answer = self.exchange(endpoint, message, &pushing(&fine), &what).await?;
        Ok(answer.status() == StatusCode::OK)
    }

    /// Asks for a blob of the repository `from` in the same registry.
    ///
    /// # Errors
    /// When the registry can't be reached. That it refuses is no error.
    pub async fn mount(&self, endpoint: &Endpoint, digest: &str, from: &str) -> Result<Mounted> {
        let what = format!("blob {digest}");
        let uri = with_query(
            &address(endpoint, "blobs/uploads/", &what)?,
            &format!("mount={digest}&from={from}"),
        );
        let manner = Manner {
            from: Some(from),
            ..pushing(&[StatusCode::CREATED, StatusCode::ACCEPTED])
        };
        let uri = uri.ok_or_else(|| nonsense(endpoint, &what))?;
        match self
            .exchange(endpoint, message(endpoint, Method::POST, uri.clone()), &manner, &what)
            .await
        {
            Ok(answer) if answer.status() == StatusCode::CREATED => Ok(Mounted::Yes),
            Ok(answer) => Ok(begun(&uri, &answer).map_or(Mounted::No, Mounted::Begun)),
            Err(error) if error.kind() == ErrorKind::RegistryUnavailable => Err(error),
            Err(error) => {
                tracing::debug!(%error, digest, from, "a blob can't be mounted");
                Ok(Mounted::No)
            }
        }
    }

    /// Ends an upload that is not needed; nobody hears if that fails.
    pub async fn cancel(&self, endpoint: &Endpoint, upload: Upload) {
        let fine = [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND];
        let message = message(endpoint, Method::DELETE, upload.location);
        let _ = self.exchange(endpoint, message, &pushing(&fine), "an upload").await;
    }

    /// Sends a blob; goes on with `upload` if there is one. `sent` hears how many bytes are there.
    ///
    /// # Errors
    /// When the registry refuses it, or breaks off too often.
    pub async fn upload(
        &self,
        endpoint: &Endpoint,
        digest: &str,
        blob: &Blob,
        upload: Option<Upload>,
        sent: impl Fn(u64),
    ) -> Result<()> {
        let what = format!("blob {digest}");
        let mut upload = match upload {
            Some(upload) => upload,
            None => self.begin(endpoint, &what).await?,
        };
        let (mut at, mut strikes) = (0, 0);
        loop {
            let step = if at < blob.size() {
                self.chunk(endpoint, &upload, blob, at, &what).await
            } else {
                match self.close(endpoint, &upload, digest, &what).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => Ok(Stand::Lost),
                    Err(error) => Err(error),
                }
            };
            let stand = match step {
                Ok(stand) => stand,
                Err(error) if error.kind() != ErrorKind::RegistryUnavailable || strikes >= MAX_STRIKES => {
                    return Err(error);
                }
                Err(error) => {
                    strikes += 1;
                    tracing::debug!(%error, digest, at, "an upload broke off");
                    tokio::time::sleep(self.http().patience.back_off * strikes).await;
                    // The answer may be what was lost.
                    if at >= blob.size() && self.has_blob(endpoint, digest).await? {
                        return Ok(());
                    }
                    self.stand(endpoint, &upload, &what).await?
                }
            };
            match stand {
                Stand::At(now, offset) if offset <= blob.size() => {
                    if offset > at {
                        strikes = 0;
                    } else if offset < at {
                        strikes += 1;
                    }
                    (upload, at) = (now, offset);
                }
                _ => {
                    strikes += 1;
                    (upload, at) = (self.begin(endpoint, &what).await?, 0);
                }
            }
            if strikes > MAX_STRIKES {
                return Err(Error::Registry {
                    what,
                    host: endpoint.host.clone(),
                    reason: "it loses the upload again and again".into(),
                });
            }
            sent(at);
        }
    }

    /// Sends a manifest under `tag`; returns whether the registry has noted what the manifest refers to.
    ///
    /// # Errors
    /// When the registry refuses it, or takes it for another.
    pub async fn put_manifest(
        &self,
        endpoint: &Endpoint,
        tag: &str,
        media_type: &str,
        bytes: Bytes,
        digest: &str,
    ) -> Result<bool> {
        let what = format!("manifest {tag}");
        let uri = address(endpoint, &format!("manifests/{tag}"), &what)?;
        let mut message = message(endpoint, Method::PUT, uri);
        let media_type = HeaderValue::from_str(media_type).map_err(|_| nonsense(endpoint, &what))?;
        message.headers.insert(CONTENT_TYPE, media_type);
        message.body = bytes;
        let fine = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let answer = self.exchange(endpoint, message, &pushing(&fine), &what).await?;
        match text(answer.headers(), "docker-content-digest") {
            Some(got) if got != digest => Err(Error::Mismatch {
                what,
                expected: digest.to_owned(),
                got: got.to_owned(),
            }),
            _ => Ok(text(answer.headers(), "oci-subject").is_some()),
        }
    }

    async fn begin(&self, endpoint: &Endpoint, what: &str) -> Result<Upload> {
        let uri = address(endpoint, "blobs/uploads/", what)?;
        let fine = [StatusCode::ACCEPTED];
        let message = message(endpoint, Method::POST, uri.clone());
        let answer = self.exchange(endpoint, message, &pushing(&fine), what).await?;
        begun(&uri, &answer).ok_or_else(|| nonsense(endpoint, what))
    }

    async fn chunk(&self, endpoint: &Endpoint, upload: &Upload, blob: &Blob, at: u64, what: &str) -> Result<Stand> {
        let length = upload.chunk.min(blob.size() - at);
        let mut message = message(endpoint, Method::PATCH, upload.location.clone());
        message.body = blob.part(at, length).await?;
        message.headers.insert(CONTENT_TYPE, OCTETS);
        if let Ok(range) = HeaderValue::from_str(&format!("{at}-{}", at + length - 1)) {
            message.headers.insert(CONTENT_RANGE, range);
        }
        let fine = [
            StatusCode::ACCEPTED,
            StatusCode::CREATED,
            StatusCode::NO_CONTENT,
            StatusCode::NOT_FOUND,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        let manner = Manner {
            again: false,
            ..pushing(&fine)
        };
        let answer = self.exchange(endpoint, message, &manner, what).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(Stand::Lost),
            StatusCode::RANGE_NOT_SATISFIABLE => self.stand(endpoint, upload, what).await,
            _ => {
                let next = begun(&upload.location, &answer).unwrap_or_else(|| upload.again());
                let there = range_end(answer.headers()).filter(|there| *there > 0);
                Ok(Stand::At(next, there.unwrap_or(at + length)))
            }
        }
    }

    /// Ends an upload whose bytes are all there; false if the registry knows nothing of it.
    async fn close(&self, endpoint: &Endpoint, upload: &Upload, digest: &str, what: &str) -> Result<bool> {
        let uri = with_query(&upload.location, &format!("digest={digest}")).ok_or_else(|| nonsense(endpoint, what))?;
        let mut message = message(endpoint, Method::PUT, uri);
        message.headers.insert(CONTENT_TYPE, OCTETS);
        let fine = [StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::NOT_FOUND];
        let manner = Manner {
            again: false,
            ..pushing(&fine)
        };
        let answer = self.exchange(endpoint, message, &manner, what).await?;
        Ok(answer.status() != StatusCode::NOT_FOUND)
    }

    /// Asks the registry how far an upload is.
    async fn stand(&self, endpoint: &Endpoint, upload: &Upload, what: &str) -> Result<Stand> {
        let fine = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::NOT_FOUND];
        let message = message(endpoint, Method::GET, upload.location.clone());
        let answer = match self.exchange(endpoint, message, &pushing(&fine), what).await {
            Ok(answer) if answer.status() != StatusCode::NOT_FOUND => answer,
            Err(error) if matches!(error.kind(), ErrorKind::RegistryUnavailable | ErrorKind::Unauthorized) => {
                return Err(error);
            }
            // There are registries that don't tell.
            Ok(_) | Err(_) => return Ok(Stand::Lost),
        };
        let next = begun(&upload.location, &answer).unwrap_or_else(|| upload.again());
        Ok(Stand::At(next, range_end(answer.headers()).unwrap_or_default()))
    }
}

impl Upload {
    fn again(&self) -> Self {
        Self {
            location: self.location.clone(),
            chunk: self.chunk,
        }
    }
}

fn pushing(fine: &[StatusCode]) -> Manner<'_> {
    Manner {
        action: "push",
        ..Manner::reading(fine)
    }
}

fn message(endpoint: &Endpoint, method: Method, uri: Uri) -> Message {
    Message {
        method,
        ..Message::get(uri, endpoint.settings.clone())
    }
}

/// Where an upload goes on, as `answer` to a request to `base` says. Never from HTTPS to plain HTTP: of a host that does not
/// know that it is behind TLS, and says so of itself, the rest of the address is taken.
fn begun(base: &Uri, answer: &Response<Incoming>) -> Option<Upload> {
    let base = answer.extensions().get::<CameFrom>().map_or(base, |from| &from.0);
    let mut location = resolve(base, text(answer.headers(), LOCATION.as_str())?)?;
    if base.scheme_str() == Some("https") && location.scheme_str() != Some("https") {
        if location.authority() != base.authority() {
            return None;
        }
        location = format!("https{}", location.to_string().strip_prefix("http")?)
            .parse()
            .ok()?;
    }
    let wanted = text(answer.headers(), "oci-chunk-min-length").and_then(|text| text.parse().ok());
    Some(Upload {
        location,
        chunk: CHUNK.max(wanted.unwrap_or(0)).min(MAX_CHUNK),
    })
}

/// Bytes that are there by `Range: 0-N`. Of none at all registries say `0-0`.
fn range_end(headers: &HeaderMap) -> Option<u64> {
    let text = text(headers, RANGE.as_str())?;
    let (_, last) = text.rsplit_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

fn with_query(uri: &Uri, more: &str) -> Option<Uri> {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{separator}{more}").parse().ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn nonsense(endpoint: &Endpoint, what: &str) -> Error {
    Error::Registry {
        what: what.to_owned(),
        host: endpoint.host.clone(),
        reason: "it names no usable address to upload to".into(),
    }
}
