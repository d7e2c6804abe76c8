//! One pull's view of one repository: authentication, retries and mirrors around single requests.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::{
    BlobStream, MAX_DOCUMENT, auth,
    auth::Credentials,
    challenge::{self, Challenge},
    endpoint::Endpoint,
    token,
    transport::{Answer, Failure, Http, Message, host_of, read},
};
use crate::images::{Error, ErrorKind, Reference, Result, manifest};

/// Longest error document that is looked at.
const MAX_ERROR: usize = 16 << 10;
/// A registry that can't be connected to gets fewer chances than a busy one: kubelet comes again.
const MAX_CONNECTS: u32 = 3;
/// Longest wait that a registry can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A manifest or index as the registry sent it, with the digest of its bytes.
#[derive(Debug, Clone)]
pub(in crate::images) struct Document {
    pub bytes: Bytes,
    pub digest: String,
    /// The header's; what the document says itself counts more.
    pub media_type: String,
}

/// A repository with credentials. Cheap to clone; tokens are shared.
#[derive(Clone)]
pub(in crate::images) struct Session(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    repository: String,
    endpoints: Vec<Endpoint>,
    credentials: Option<Credentials>,
    /// What the endpoints accepted last, by host. Held while a token is fetched, so that layers fetch one together.
    authorizations: Mutex<HashMap<String, HeaderValue>>,
}

impl Session {
    pub(super) fn new(
        http: Arc<Http>,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Self {
        Self(Arc::new(Inner {
            repository: reference.repository.clone(),
            endpoints,
            credentials,
            authorizations: Mutex::default(),
            http,
        }))
    }

    /// The same, with addresses at which a blob is looked for that the registry does not have.
    pub fn beside(&self, urls: &[String]) -> Self {
        if urls.is_empty() {
            return self.clone();
        }
        let more = urls.iter().filter_map(|url| Endpoint::of_blob(url));
        Self(Arc::new(Inner {
            http: self.0.http.clone(),
            repository: self.0.repository.clone(),
            endpoints: self.0.endpoints.iter().cloned().chain(more).collect(),
            credentials: self.0.credentials.clone(),
            authorizations: Mutex::default(),
        }))
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.0.endpoints
    }

    pub(super) fn http(&self) -> &Http {
        &self.0.http
    }

    /// The manifest or index that `selector` (a tag or digest) names. A digest is checked.
    ///
    /// # Errors
    /// Of the registry itself, if all mirrors failed too.
    pub async fn manifest(&self, selector: &str) -> Result<Document> {
        let what = format!("manifest {}:{selector}", self.0.repository).replace(":sha256:", "@sha256:");
        let mut last: Option<Error> = None;
        let by_digest = selector.starts_with("sha256:");
        for endpoint in &self.0.endpoints {
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

    async fn manifest_from(&self, endpoint: &Endpoint, selector: &str, what: &str) -> Result<Document> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPTED));
        let answer = self
            .get(endpoint, &format!("manifests/{selector}"), headers, what)
            .await?;
        let media_type = answer
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_owned();
        let promised = answer
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok())
            .filter(|digest| digest.starts_with("sha256:"))
            .map(ToOwned::to_owned);
        let bytes = read(answer.into_body(), MAX_DOCUMENT, self.0.http.patience.stall)
            .await
            .map_err(|reason| Error::Registry {
                what: what.to_owned(),
                host: endpoint.host.clone(),
                reason,
            })?;
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

    /// Asks the registry itself whether it accepts the credentials.
    ///
    /// # Errors
    /// When it does not, or does not answer.
    pub async fn check(&self) -> Result<()> {
        let repository = format!("/{}", self.0.repository);
        let mut last = None;
        for endpoint in self.0.endpoints.iter().filter(|endpoint| !endpoint.mirror) {
            let mut endpoint = endpoint.clone();
            if let Some(root) = endpoint.base.strip_suffix(&repository) {
                endpoint.base = root.to_owned();
            }
            match self.get(&endpoint, "", HeaderMap::new(), "the registry").await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::RegistryUnavailable => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(Error::NotFound {
            what: "the registry".into(),
            host: String::new(),
        }))
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
        let answer = match self.0.http.send(Message::get(uri, Arc::default())).await {
            Ok(answer) => answer.response,
            Err(Failure::Network { host, reason }) => return Err(Error::RegistryUnavailable { host, reason }),
            Err(Failure::Refused { host, reason }) => return Err(bad(host, reason)),
        };
        match answer.status() {
            StatusCode::OK => {
                let read = read(answer.into_body(), limit, self.0.http.patience.stall).await;
                read.map(|bytes| Some(bytes.to_vec()))
                    .map_err(|reason| bad(host, reason))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status if status.is_server_error() => Err(Error::RegistryUnavailable {
                host,
                reason: format!("it answered {status}"),
            }),
            status => Err(bad(host, format!("it answered {status}"))),
        }
    }

    /// The bytes of a blob of `size` bytes, not hashed yet.
    pub fn blob_from(&self, digest: &str, size: u64, from: u64) -> BlobStream {
        BlobStream::new(self.clone(), digest, size, from)
    }

    /// The blob's bytes from `from` to before `end`, not hashed.
    ///
    /// # Errors
    /// When no endpoint has them, or none knows ranges.
    pub async fn part(&self, digest: &str, from: u64, end: u64) -> Result<Vec<u8>> {
        let mut stream = BlobStream::part(self.clone(), digest, from, end);
        let mut bytes = Vec::with_capacity(usize::try_from(end.saturating_sub(from)).unwrap_or_default());
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// The hosts that are asked for blobs, for messages.
    pub fn hosts(&self) -> String {
        let hosts: Vec<&str> = self.0.endpoints.iter().map(|endpoint| endpoint.host.as_str()).collect();
        hosts.join(", ")
    }

    /// GETs `path` below the repository, with authentication and retries; the status is 200 or 206.
    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: HeaderMap,
        what: &str,
    ) -> Result<http::Response<hyper::body::Incoming>> {
        let mut message = Message::get(address(endpoint, path, what)?, endpoint.settings.clone());
        message.headers = headers;
        let fine = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        self.exchange(endpoint, message, &Manner::reading(&fine), what).await
    }

    /// Sends `message`, with authentication and retries; the status is one that `manner` takes.
    pub(super) async fn exchange(
        &self,
        endpoint: &Endpoint,
        mut message: Message,
        manner: &Manner<'_>,
        what: &str,
    ) -> Result<http::Response<hyper::body::Incoming>> {
        let patience = &self.0.http.patience;
        // A registry may have uploads sent elsewhere, where its credentials are not shown.
        let abroad = message.uri.authority().map(http::uri::Authority::as_str) != authority(&endpoint.base);
        let mut attempt = 0;
        let mut asked = false;
        loop {
            attempt += 1;
            message.authorization = if abroad || endpoint.blob_only {
                None
            } else {
                self.authorization(endpoint).await
            };
            let (reason, wait) = match self.0.http.send(message.clone()).await {
                Err(Failure::Network { host, reason }) => {
                    if !manner.again || attempt >= patience.attempts.min(MAX_CONNECTS) {
                        return Err(Error::RegistryUnavailable { host, reason });
                    }
                    (reason, None)
                }
                Err(Failure::Refused { host, reason }) => {
                    return Err(Error::Registry {
                        what: what.to_owned(),
                        host,
                        reason,
                    });
                }
                Ok(Answer { response, foreign }) => match response.status() {
                    status if manner.fine.contains(&status) => return Ok(response),
                    StatusCode::UNAUTHORIZED if !foreign && !abroad && !endpoint.blob_only => {
                        if std::mem::replace(&mut asked, true) {
                            return Err(self.denied(endpoint, response, manner.action, what).await);
                        }
                        let headers = response.headers();
                        self.authenticate(endpoint, &message, headers, manner, what).await?;
                        attempt -= 1;
                        continue;
                    }
                    status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                        (format!("it answered {status}"), retry_after(response.headers()))
                    }
                    // The address that we were redirected to has expired.
                    status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if foreign => {
                        (format!("the host that it redirects to answered {status}"), None)
                    }
                    _ => return Err(self.refused(endpoint, response, manner.action, what).await),
                },
            };
            if !manner.again {
                tokio::time::sleep(wait.unwrap_or_default()).await;
            }
            if !manner.again || attempt >= patience.attempts {
                return Err(Error::RegistryUnavailable {
                    host: endpoint.host.clone(),
                    reason,
                });
            }
            tracing::debug!(host = endpoint.host, reason, attempt, "a registry request is repeated");
            let wait = wait.unwrap_or(patience.back_off * 2_u32.saturating_pow(attempt - 1));
            tokio::time::sleep(wait).await;
        }
    }

    /// What to show to `endpoint` without having been asked.
    async fn authorization(&self, endpoint: &Endpoint) -> Option<HeaderValue> {
        if let Some(known) = self.0.authorizations.lock().await.get(&endpoint.host) {
            return Some(known.clone());
        }
        match self.credentials(endpoint) {
            Some(Credentials::Registry(token)) => auth::bearer(token),
            _ => None,
        }
    }

    /// Mirrors get no credentials: they were given for the registry.
    fn credentials(&self, endpoint: &Endpoint) -> Option<&Credentials> {
        self.0.credentials.as_ref().filter(|_| !endpoint.mirror)
    }

    /// Finds what `endpoint` wants after it answered `refused` with 401.
    async fn authenticate(
        &self,
        endpoint: &Endpoint,
        refused: &Message,
        headers: &HeaderMap,
        manner: &Manner<'_>,
        what: &str,
    ) -> Result<()> {
        let mut known = self.0.authorizations.lock().await;
        if known
            .get(&endpoint.host)
            .is_some_and(|now| Some(now) != refused.authorization.as_ref())
        {
            // Another request has renewed it meanwhile.
            return Ok(());
        }
        known.remove(&endpoint.host);
        let unauthorized = |reason: &str| Error::Unauthorized {
            action: manner.action,
            what: what.to_owned(),
            host: endpoint.host.clone(),
            reason: reason.to_owned(),
        };
        let credentials = self.credentials(endpoint);
        let value = match challenge::best(headers) {
            None => return Err(unauthorized("it does not say how to authenticate")),
            Some(Challenge::Basic) => credentials
                .and_then(Credentials::basic)
                .ok_or_else(|| unauthorized("it wants a user name and password"))?,
            Some(Challenge::Bearer { realm, service, scope }) => {
                if let Some(Credentials::Registry(_)) = credentials {
                    return Err(unauthorized("the registry token is not accepted"));
                }
                let own = || format!("repository:{}:{}", self.0.repository, manner.scope());
                let mut scopes = vec![scope.unwrap_or_else(own)];
                scopes.extend(manner.from.map(|from| format!("repository:{from}:pull")));
                let request = token::request(
                    &refused.uri,
                    &realm,
                    service.as_deref(),
                    &scopes,
                    credentials,
                    &endpoint.settings,
                )
                .ok_or_else(|| unauthorized("its token server has an address that can't be used"))?;
                let token = token::fetch(&self.0.http, request, manner.action, what).await?;
                auth::bearer(&token).ok_or_else(|| unauthorized("its token server sent a malformed token"))?
            }
        };
        known.insert(endpoint.host.clone(), value);
        Ok(())
    }

    async fn denied(
        &self,
        endpoint: &Endpoint,
        response: http::Response<hyper::body::Incoming>,
        action: &'static str,
        what: &str,
    ) -> Error {
        let status = response.status();
        let code = self.error_code(response).await;
        Error::Unauthorized {
            action,
            what: what.to_owned(),
            host: endpoint.host.clone(),
            reason: format!("it answered {status}{code}"),
        }
    }

    async fn refused(
        &self,
        endpoint: &Endpoint,
        response: http::Response<hyper::body::Incoming>,
        action: &'static str,
        what: &str,
    ) -> Error {
        let (what, host) = (what.to_owned(), endpoint.host.clone());
        match response.status() {
            StatusCode::NOT_FOUND => Error::NotFound { what, host },
            StatusCode::FORBIDDEN => self.denied(endpoint, response, action, &what).await,
            status => {
                let code = self.error_code(response).await;
                Error::Registry {
                    what,
                    host,
                    reason: format!("it answered {status}{code}"),
                }
            }
        }
    }

    /// The code in an error document, such as ` (DENIED)`. What it says in prose is not repeated: it can be anything.
    async fn error_code(&self, response: http::Response<hyper::body::Incoming>) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<OneError>,
        }
        #[derive(Deserialize)]
        struct OneError {
            code: String,
        }
        let code = async {
            let body = read(response.into_body(), MAX_ERROR, self.0.http.patience.stall)
                .await
                .ok()?;
            let first = serde_json::from_slice::<Errors>(&body)
                .ok()?
                .errors
                .into_iter()
                .next()?
                .code;
            let sane = first.len() <= 40 && first.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            sane.then(|| format!(" ({first})"))
        };
        code.await.unwrap_or_default()
    }
}

/// How a request is made.
pub(super) struct Manner<'a> {
    /// Answers that are no errors.
    pub fine: &'a [StatusCode],
    /// It may be repeated after a failure without asking what has become of it.
    pub again: bool,
    /// `pull` or `push`.
    pub action: &'static str,
    /// Another repository that is read from.
    pub from: Option<&'a str>,
}

impl<'a> Manner<'a> {
    pub fn reading(fine: &'a [StatusCode]) -> Self {
        Self {
            fine,
            again: true,
            action: "pull",
            from: None,
        }
    }

    /// The right that is needed, as token servers name it.
    fn scope(&self) -> &'static str {
        if self.action == "push" { "pull,push" } else { "pull" }
    }
}

/// The address of `path` below the repository at `endpoint`.
pub(super) fn address(endpoint: &Endpoint, path: &str, what: &str) -> Result<Uri> {
    let text = match endpoint.blob_only {
        true => endpoint.base.clone(),
        false => format!("{}/{path}{}", endpoint.base, endpoint.query),
    };
    text.parse().map_err(|_| Error::Registry {
        what: what.to_owned(),
        host: endpoint.host.clone(),
        reason: "its address is malformed".into(),
    })
}

/// `host[:port]` of a URL.
fn authority(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split('/').next()
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// `sha256:...` of `bytes`.
pub(in crate::images) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
