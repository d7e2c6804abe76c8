//! Requests to one host or the hosts that it redirects to, without knowledge of registries.

use std::{collections::HashMap, error::Error as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, LOCATION, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    Patience, ahead,
    pace::Pace,
    proxy::{Connector, Proxies},
    settings::Settings,
    tls,
};

type Connections = Client<HttpsConnector<Connector>, Full<Bytes>>;

const MAX_REDIRECTS: usize = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Kinds of connections that are kept: a certificate that is renewed every minute must not fill the memory.
const MAX_KINDS: usize = 64;
/// Bytes a second that a request's body must go out with.
const SLOWEST: u64 = 32 << 10;
const AGENT: &str = concat!("wharf/", env!("CARGO_PKG_VERSION"));

/// Why there is no response.
#[derive(Debug)]
pub(super) enum Failure {
    /// The host can't be reached or broke the connection; it may work later.
    Network { host: String, reason: String },
    /// Something that another attempt does not cure.
    Refused { host: String, reason: String },
}

/// The address that a response came from, which is among its extensions where it is not the one that was asked.
#[derive(Debug, Clone)]
pub(super) struct CameFrom(pub Uri);

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// It has more bytes than this.
    #[error("it is larger than {0} bytes")]
    Large(usize),
    /// It may be whole the next time.
    #[error("{0}")]
    Broken(String),
}

/// A response and where it came from.
pub(super) struct Answer {
    pub response: Response<Incoming>,
    /// It came from another host than the one that was asked.
    pub foreign: bool,
}

/// What is sent.
#[derive(Clone)]
pub(super) struct Message {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// Sent to the host of `uri` only.
    pub authorization: Option<HeaderValue>,
    pub body: Bytes,
    /// Of the host of `uri`.
    pub settings: Arc<Settings>,
}

impl Message {
    pub fn get(uri: Uri, settings: Arc<Settings>) -> Self {
        Self {
            settings,
            method: Method::GET,
            uri,
            headers: HeaderMap::new(),
            authorization: None,
            body: Bytes::new(),
        }
    }
}

/// Connections to all hosts, with the settings of each.
pub(super) struct Http {
    pub patience: Patience,
    /// What all blobs together may have in memory before its turn.
    pub budget: Arc<Semaphore>,
    proxies: Proxies,
    /// By scheme and [`Settings::key`].
    connections: Mutex<HashMap<String, Connections>>,
}

impl Http {
    pub fn new(patience: Patience) -> Self {
        Self::with_proxies(patience, Proxies::from_env())
    }

    pub fn with_proxies(patience: Patience, proxies: Proxies) -> Self {
        Self {
            patience,
            budget: ahead::budget(ahead::BUDGET),
            proxies,
            connections: Mutex::default(),
        }
    }

    /// Sends `message` and follows redirects. The credentials do not follow to another host.
    pub async fn send(&self, mut message: Message) -> Result<Answer, Failure> {
        let mut foreign = false;
        for _ in 0..=MAX_REDIRECTS {
            let host = host_of(&message.uri);
            let mut response = self.once(&message, &host).await?;
            let follows = match response.status() {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
                // Of other requests these make a GET, which is no upload.
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
                    matches!(message.method, Method::GET | Method::HEAD)
                }
                _ => false,
            };
            if !follows {
                response.extensions_mut().insert(CameFrom(message.uri));
                return Ok(Answer { response, foreign });
            }
            let refused = |reason: &str| Failure::Refused {
                host: host.clone(),
                reason: reason.to_owned(),
            };
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|location| resolve(&message.uri, location))
                .ok_or_else(|| refused("it redirects to an address that can't be read"))?;
            if message.uri.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return Err(refused("it redirects from HTTPS to plain HTTP"));
            }
            if target.authority() != message.uri.authority() || target.scheme() != message.uri.scheme() {
                message.authorization = None;
                message.settings = Arc::new(message.settings.abroad());
                foreign = true;
            }
            message.uri = target;
        }
        Err(Failure::Refused {
            host: host_of(&message.uri),
            reason: "it redirects too often".into(),
        })
    }

    async fn once(&self, message: &Message, host: &str) -> Result<Response<Incoming>, Failure> {
        let refused = |reason: String| Failure::Refused {
            host: host.to_owned(),
            reason,
        };
        let mut request = Request::new(Full::new(message.body.clone()));
        *request.method_mut() = message.method.clone();
        *request.uri_mut() = message.uri.clone();
        *request.headers_mut() = message.headers.clone();
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, value) in &message.settings.headers {
            request.headers_mut().append(name.clone(), value.clone());
        }
        if let Some(authorization) = &message.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(secret) = self.proxies.authorization(&message.uri) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, secret);
        }
        let connections = self.connections(message).await.map_err(refused)?;
        let network = |reason: String| Failure::Network {
            host: host.to_owned(),
            reason,
        };
        // The answer comes after the request's body has gone.
        let patience = self.patience.stall + Duration::from_secs(message.body.len() as u64 / SLOWEST);
        match timeout(patience, connections.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(network(chain(&error))),
            Err(_) => Err(network(format!("no answer within {patience:?}"))),
        }
    }

    async fn connections(&self, message: &Message) -> Result<Connections, String> {
        let plain = message.uri.scheme_str() == Some("http");
        let settings = message.settings.clone();
        let dial = settings.dial_timeout;
        let key = if plain {
            format!("http|{dial:?}")
        } else if *settings == Settings::default() {
            String::new()
        } else {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || settings.key())
                .await
                .map_err(|error| error.to_string())?
        };
        let mut all = self.connections.lock().await;
        if let Some(found) = all.get(&key) {
            return Ok(found.clone());
        }
        let tls = if plain {
            tls::none()?
        } else {
            // Reads certificate files.
            tokio::task::spawn_blocking(move || tls::config(&settings))
                .await
                .map_err(|error| error.to_string())??
        };
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_connect_timeout(Some(dial.unwrap_or(CONNECT_TIMEOUT).min(self.patience.stall)));
        direct.set_nodelay(true);
        let connector = Connector {
            direct,
            proxies: self.proxies.clone(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let made = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .build(connector);
        if all.len() >= MAX_KINDS {
            all.clear();
        }
        all.insert(key, made.clone());
        Ok(made)
    }
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// When it has more, breaks off or stalls.
pub(super) async fn read(body: Incoming, limit: usize, stall: Duration) -> Result<Bytes, Unread> {
    let mut limited = http_body_util::Limited::new(body, limit);
    let mut bytes = Vec::new();
    let mut pace = Pace::new(stall);
    loop {
        match pace.next(limited.frame()).await {
            Err(how) => return Err(Unread::Broken(how.to_string())),
            Ok(None) => return Ok(bytes.into()),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    bytes.extend_from_slice(&data);
                    pace.came(data.len()).map_err(|how| Unread::Broken(how.to_string()))?;
                }
            }
            Ok(Some(Err(error))) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(Unread::Large(limit));
            }
            Ok(Some(Err(error))) => return Err(Unread::Broken(error.to_string())),
        }
    }
}

/// `host[:port]` of an address, for messages: no path, no query, no user.
pub(super) fn host_of(uri: &Uri) -> String {
    uri.authority().map_or_else(String::new, |authority| {
        authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
    })
}

/// `location` as seen from `base`.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    // A fragment is not sent.
    let uri: Uri = text.split('#').next()?.parse().ok()?;
    uri.authority().is_some().then_some(uri)
}

/// An error with its causes. hyper's messages name no address.
fn chain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base: Uri = "https://a:1/v2/x/blobs/y?q".parse().unwrap();
        for (location, expected) in [
            ("https://b/c?d#e", "https://b/c?d"),
            ("//b/c", "https://b/c"),
            ("/c", "https://a:1/c"),
            ("z", "https://a:1/v2/x/blobs/z"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected);
        }
        assert!(resolve(&base, "https://").is_none());
    }

    #[test]
    fn a_host_shows_neither_user_nor_query() {
        assert_eq!(host_of(&"https://user:secret@h:1/p?token=x".parse().unwrap()), "h:1");
    }
}
