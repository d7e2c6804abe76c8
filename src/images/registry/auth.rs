//! Credentials, and how they become an `Authorization` header.

use std::fmt;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderValue;
use wharf_proto::cri;

use super::super::{Error, Result, reference::DEFAULT_REGISTRY};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The user name that Docker's credential helpers use for identity tokens.
const TOKEN_USER: &str = "<token>";

/// What the caller of a pull may show to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::images) enum Credentials {
    /// For basic authentication, or to be exchanged for a token.
    Password { user: String, password: String },
    /// An OAuth 2 refresh token, to be exchanged for a token.
    Identity(String),
    /// A token for the registry itself.
    Registry(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::Identity(_) => "Identity(..)",
            Self::Registry(_) => "Registry(..)",
        })
    }
}

/// Credentials and whom they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    credentials: Option<Credentials>,
    /// The server that they name; empty if none.
    server: String,
    registry: String,
}

impl Given {
    /// `auth`, as it came with a wish for something of `registry`.
    ///
    /// # Errors
    /// When `auth.auth` is not base64 of `user:password`.
    pub fn new(auth: &cri::AuthConfig, registry: &str) -> Result<Self> {
        Ok(Self {
            credentials: Credentials::of(auth, registry)?,
            server: server(&auth.server_address),
            registry: server(registry),
        })
    }

    /// What of this `host` may see, which is a mirror of the registry or stands for it: a mirror only what names it, the
    /// registry nothing that names another server.
    pub fn shown_to(&self, host: &str, mirror: bool) -> Option<&Credentials> {
        let fits = match (self.server.is_empty(), mirror) {
            (true, mirror) => !mirror,
            (false, true) => self.server == server(host),
            (false, false) => self.server == self.registry || self.server == server(host),
        };
        self.credentials.as_ref().filter(|_| fits)
    }
}

impl Credentials {
    /// What `auth` has, if anything.
    fn of(auth: &cri::AuthConfig, registry: &str) -> Result<Option<Self>> {
        if !auth.registry_token.is_empty() {
            return Ok(Some(Self::Registry(auth.registry_token.clone())));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Some(Self::Identity(auth.identity_token.clone())));
        }
        let (user, password) = if !auth.username.is_empty() || !auth.password.is_empty() {
            (auth.username.clone(), auth.password.clone())
        } else if auth.auth.is_empty() {
            return Ok(None);
        } else {
            decode(&auth.auth).ok_or_else(|| Error::BadContent {
                what: format!("credentials for registry {registry}"),
                reason: "the auth field is not base64 of user:password".into(),
            })?
        };
        Ok(Some(if user == TOKEN_USER {
            Self::Identity(password)
        } else {
            Self::Password { user, password }
        }))
    }

    /// The header for basic authentication, if these credentials can do that.
    pub fn basic(&self) -> Option<HeaderValue> {
        match self {
            Self::Password { user, password } => {
                secret(&format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))
            }
            _ => None,
        }
    }
}

/// The header that shows `token`.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn decode(text: &str) -> Option<(String, String)> {
    let bytes = BASE64.decode(text.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The host of a server's address, which may be a URL; Docker Hub's many names are one.
fn server(address: &str) -> String {
    let host = address
        .split_once("://")
        .map_or(address, |(_, rest)| rest)
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" | "hub.docker.com" => {
            DEFAULT_REGISTRY.into()
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(auth: &cri::AuthConfig) -> Option<Credentials> {
        let given = Given::new(auth, "docker.io").unwrap();
        given.shown_to("docker.io", false).cloned()
    }

    #[test]
    fn every_form_of_credentials_is_understood() {
        let password = Credentials::Password {
            user: "u".into(),
            password: "p:q".into(),
        };
        let plain = cri::AuthConfig {
            username: "u".into(),
            password: "p:q".into(),
            ..Default::default()
        };
        let encoded = cri::AuthConfig {
            auth: BASE64.encode("u:p:q\0"),
            server_address: "https://index.docker.io/v1/".into(),
            ..Default::default()
        };
        let helper = cri::AuthConfig {
            username: "<token>".into(),
            password: "i".into(),
            ..Default::default()
        };
        let token = cri::AuthConfig {
            registry_token: "r".into(),
            username: "u".into(),
            ..Default::default()
        };
        assert_eq!(made(&plain), Some(password.clone()));
        assert_eq!(made(&encoded), Some(password.clone()));
        assert_eq!(made(&helper), Some(Credentials::Identity("i".into())));
        assert_eq!(made(&token), Some(Credentials::Registry("r".into())));
        assert_eq!(made(&cri::AuthConfig::default()), None);
        assert_eq!(password.basic().unwrap().to_str().unwrap(), "Basic dTpwOnE=");
    }

    #[test]
    fn credentials_for_another_server_are_not_shown() {
        let auth = cri::AuthConfig {
            username: "u".into(),
            server_address: "other.example".into(),
            ..Default::default()
        };
        assert_eq!(made(&auth), None);
        let given = Given::new(&auth, "docker.io").unwrap();
        assert!(given.shown_to("mirror.example", true).is_none());
        assert!(given.shown_to("other.example", true).is_some());
        // The registry's name may be rewritten to the server's.
        assert!(given.shown_to("other.example", false).is_some());
        let unnamed = cri::AuthConfig {
            server_address: String::new(),
            ..auth
        };
        let given = Given::new(&unnamed, "docker.io").unwrap();
        assert!(given.shown_to("mirror.example", true).is_none());
        assert!(given.shown_to("registry-1.docker.io", false).is_some());
    }

    #[test]
    fn no_secret_is_in_a_debug_print_or_an_error() {
        let auth = cri::AuthConfig {
            auth: "hunter2!".into(),
            ..Default::default()
        };
        let error = Given::new(&auth, "docker.io").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let password = Credentials::Password {
            user: "u".into(),
            password: "hunter2".into(),
        };
        assert!(!format!("{password:?} {:?}", password.basic()).contains("hunter2"));
        assert!(!format!("{:?}", password.basic()).contains("Basic"));
    }
}
