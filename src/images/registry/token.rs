//! Tokens, which registries have fetched from a server of their own choice (Docker's token authentication).

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, StatusCode, Uri, header::CONTENT_TYPE};
use serde::Deserialize;

use super::{
    auth::Credentials,
    session::{may_pass, retry_after},
    settings::Settings,
    transport::{Answer, Failure, Http, Message, host_of, read},
};
use crate::images::{Error, Result};

/// Longest answer of a token server.
const MAX_TOKEN: usize = 1 << 20;
/// Longest wait that a token server can ask for: all requests to the registry wait for the token.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Sends `request` and reads the token in the answer.
///
/// # Errors
/// When the token server refuses, does not answer or makes no sense.
pub(super) async fn fetch(http: &Http, request: Message, action: &'static str, what: &str) -> Result<String> {
    let host = host_of(&request.uri);
    let patience = &http.patience;
    let mut attempt = 1;
    let response = loop {
        let mut wait = None;
        let reason = match http.send(request.clone()).await {
            Ok(Answer { response, .. }) if response.status() == StatusCode::OK => break response,
            Ok(Answer { response, .. }) if !may_pass(response.status()) => {
                return Err(Error::Unauthorized {
                    action,
                    what: what.to_owned(),
                    host,
                    reason: format!("the token server answered {}", response.status()),
                });
            }
            Ok(Answer { response, .. }) => {
                wait = retry_after(response.headers());
                format!("the token server answered {}", response.status())
            }
            Err(Failure::Network { reason, .. } | Failure::Refused { reason, .. }) => reason,
        };
        attempt += 2;
        if attempt > patience.attempts || wait.is_some_and(|wait| wait > MAX_WAIT) {
            return Err(Error::RegistryUnavailable { host, reason });
        }
        tokio::time::sleep(wait.unwrap_or(patience.back_off * attempt)).await;
    };
    let unusable = |reason: String| Error::Registry {
        what: "token".into(),
        host: host.clone(),
        reason,
    };
    let body = read(response.into_body(), MAX_TOKEN, patience.stall)
        .await
        .map_err(|unread| unusable(unread.to_string()))?;
    let answer: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| unusable("the token server's answer can't be read".into()))?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| unusable("the token server sent no token".into()))
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The request for a token: POST with an identity token, else GET, with the password if there is one. A token server
/// on plain HTTP is accepted only from a registry on plain HTTP.
pub(super) fn request(
    registry: &Uri,
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    credentials: Option<&Credentials>,
    settings: &Arc<Settings>,
) -> Option<Message> {
    let uri: Uri = realm.parse().ok()?;
    uri.authority()?;
    let settings = if uri.authority() == registry.authority() {
        settings.clone()
    } else {
        Arc::new(settings.abroad())
    };
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if registry.scheme_str() == Some("http") => {}
        _ => return None,
    }
    let mut form = Form::default();
    if let Some(service) = service {
        form.add("service", service);
    }
    if let Some(Credentials::Identity(token)) = credentials {
        if !scopes.is_empty() {
            form.add("scope", &scopes.join(" "));
        }
        form.add("grant_type", "refresh_token");
        form.add("client_id", "wharf");
        form.add("refresh_token", token);
        let mut message = Message::get(uri, settings);
        message.method = Method::POST;
        message.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        message.body = form.0.into();
        return Some(message);
    }
    for scope in scopes {
        form.add("scope", scope);
    }
    if let Some(Credentials::Password { user, .. }) = credentials {
        form.add("account", user);
    }
    let separator = if realm.contains('?') { '&' } else { '?' };
    let mut message = Message::get(format!("{realm}{separator}{}", form.0).parse().ok()?, settings);
    message.authorization = credentials.and_then(Credentials::basic);
    Some(message)
}

/// `application/x-www-form-urlencoded`.
#[derive(Default)]
struct Form(String);

impl Form {
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                self.0.push(char::from(byte));
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }
}
