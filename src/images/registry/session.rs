//! One pull's view of one repository: authentication, retries and mirrors around single requests.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header::RETRY_AFTER};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    BlobStream, auth,
    auth::{Credentials, Given},
    challenge::{self, Challenge},
    document::Held,
    endpoint::Endpoint,
    token,
    transport::{Answer, Failure, Http, Message, read},
};
use crate::images::{Error, ErrorKind, Reference, Result};

/// Longest error document that is looked at.
const MAX_ERROR: usize = 16 << 10;
/// A registry that can't be connected to gets fewer chances than a busy one: kubelet comes again.
pub(super) const MAX_CONNECTS: u32 = 3;
/// Longest wait that a registry can ask for; kubelet and people come again sooner than after more.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// A repository with credentials. Cheap to clone; tokens are shared.
#[derive(Clone)]
pub(in crate::images) struct Session(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    repository: String,
    endpoints: Vec<Endpoint>,
    credentials: Option<Given>,
    /// Content that came within descriptors.
    held: Arc<Held>,
    /// What the endpoints accepted last, by host. Held while a token is fetched, so that layers fetch one together.
    authorizations: Mutex<HashMap<String, HeaderValue>>,
}

impl Session {
    pub(super) fn new(
        http: Arc<Http>,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        credentials: Option<Given>,
    ) -> Self {
        Self(Arc::new(Inner {
            repository: reference.repository.clone(),
            endpoints,
            credentials,
            held: Arc::default(),
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
            held: self.0.held.clone(),
            authorizations: Mutex::default(),
        }))
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.0.endpoints
    }

    pub(super) fn http(&self) -> &Http {
        &self.0.http
    }

    pub(super) fn repository(&self) -> &str {
        &self.0.repository
    }

    pub(super) fn held(&self) -> &Held {
        &self.0.held
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
            let what = "the registry";
            let message = Message::get(address(&endpoint, "", what)?, endpoint.settings.clone());
            let manner = Manner {
                action: LOGIN,
                ..Manner::reading(&[StatusCode::OK])
            };
            match self.exchange(&endpoint, message, &manner, what).await {
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
                    status if may_pass(status) => (format!("it answered {status}"), retry_after(response.headers())),
                    // The address that we were redirected to has expired.
                    status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if foreign => {
                        (format!("the host that it redirects to answered {status}"), None)
                    }
                    _ => return Err(self.refused(endpoint, response, manner.action, what).await),
                },
            };
            let unavailable = |reason: String| Error::RegistryUnavailable {
                host: endpoint.host.clone(),
                reason,
            };
            if let Some(wait) = wait.filter(|wait| *wait > MAX_RETRY_AFTER) {
                return Err(unavailable(format!(
                    "{reason}, and wants to be left alone for {wait:?}"
                )));
            }
            if !manner.again {
                tokio::time::sleep(wait.unwrap_or_default()).await;
            }
            if !manner.again || attempt >= patience.attempts {
                return Err(unavailable(reason));
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

    /// Mirrors get those only that name them: others were given for the registry.
    fn credentials(&self, endpoint: &Endpoint) -> Option<&Credentials> {
        self.0.credentials.as_ref()?.shown_to(&endpoint.host, endpoint.mirror)
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
                // Who only logs in wants nothing of any repository, which may not be there.
                let mut scopes: Vec<String> = scope
                    .or_else(|| (manner.action != LOGIN).then(own))
                    .into_iter()
                    .collect();
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

/// The action of one who wants to know only whether the credentials are right.
const LOGIN: &str = "login";

/// Whether another attempt may find the registry in a better state.
pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// How a request is made.
pub(super) struct Manner<'a> {
    /// Answers that are no errors.
    pub fine: &'a [StatusCode],
    /// It may be repeated after a failure without asking what has become of it.
    pub again: bool,
    /// `pull`, `push` or `login`.
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

/// How long a registry wants to be left alone: seconds, or until a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    Some(match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(std::time::SystemTime::now())
            .unwrap_or_default(),
    })
}
