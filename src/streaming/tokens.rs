//! URLs with single-use tokens.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustls::crypto::ring;
use tokio::time::Instant;

use super::Error;
use crate::node::{AttachOptions, ExecOptions};

/// How long a token is good for.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait for their use.
const MOST: usize = 1000;

/// What the holder of a token may do, once.
#[derive(Debug, Clone)]
pub enum Grant {
    /// Run a command in a container.
    Exec {
        /// The container's full id.
        id: String,
        /// The command and its streams.
        options: ExecOptions,
    },
    /// Attach to a container.
    Attach {
        /// The container's full id.
        id: String,
        /// Its streams.
        options: AttachOptions,
    },
    /// Reach ports of a pod.
    PortForward {
        /// The pod's full id.
        id: String,
        /// Empty is any.
        ports: Vec<u16>,
    },
}

impl Grant {
    /// The word for it in a URL.
    fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Gives out the URLs of a running server.
#[derive(Debug)]
pub struct Urls {
    base: String,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    grants: HashMap<String, Grant>,
    /// In the order in which they expire.
    ends: VecDeque<(Instant, String)>,
}

impl Waiting {
    fn expire(&mut self, now: Instant) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, token)) = self.ends.pop_front() {
                self.grants.remove(&token);
            }
        }
    }
}

impl Urls {
    pub(super) fn new(address: SocketAddr, tls: bool) -> Self {
        Self {
            base: format!("{}://{address}", if tls { "https" } else { "http" }),
            waiting: Mutex::default(),
        }
    }

    /// A URL under which `grant` is served once, within a minute (contract rule 21).
    ///
    /// # Errors
    /// [`Error::TooMany`] when too many wait for their use.
    pub fn url(&self, grant: Grant) -> Result<String, Error> {
        let token = token()?;
        let path = grant.path();
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire(now);
        if waiting.grants.len() >= MOST {
            return Err(Error::TooMany(MOST));
        }
        let url = format!("{}/{path}/{token}", self.base);
        waiting.ends.push_back((now + LIFETIME, token.clone()));
        waiting.grants.insert(token, grant);
        Ok(url)
    }

    /// How many URLs wait for their use.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire(Instant::now());
        waiting.grants.len()
    }

    /// What the path of a request grants; it grants it no second time.
    pub(super) fn redeem(&self, path: &str) -> Option<Grant> {
        let (word, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire(Instant::now());
        let grant = waiting.grants.remove(token)?;
        // Used tokens must not pile up for a minute when many are used.
        if waiting.ends.len() > 2 * MOST {
            let Waiting { grants, ends } = &mut *waiting;
            ends.retain(|(_, token)| grants.contains_key(token));
        }
        (grant.path() == word).then_some(grant)
    }
}

/// 128 random bits.
fn token() -> Result<String, Error> {
    let mut bytes = [0; 16];
    ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls() -> Urls {
        Urls::new("127.0.0.1:4321".parse().unwrap(), false)
    }

    fn grant() -> Grant {
        Grant::PortForward {
            id: "pod".into(),
            ports: vec![80],
        }
    }

    fn path(url: &str) -> &str {
        url.strip_prefix("http://127.0.0.1:4321").expect("an absolute URL")
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_its_own_purpose() {
        let urls = urls();
        let url = urls.url(grant()).unwrap();
        assert!(urls.redeem("/portforward/0123").is_none());
        assert!(urls.redeem(path(&url)).is_some());
        assert!(urls.redeem(path(&url)).is_none(), "a second time");
        let other = urls.url(grant()).unwrap().replace("portforward", "exec");
        assert!(urls.redeem(path(&other)).is_none(), "for another purpose");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_expires_after_a_minute() {
        let urls = urls();
        let (early, late) = (urls.url(grant()).unwrap(), urls.url(grant()).unwrap());
        tokio::time::advance(LIFETIME - Duration::from_millis(1)).await;
        assert!(urls.redeem(path(&early)).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(urls.redeem(path(&late)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_thousand_and_first_token_is_refused_until_one_is_used_or_expired() {
        let urls = urls();
        let given: Vec<_> = (0..MOST).map(|_| urls.url(grant()).unwrap()).collect();
        assert!(matches!(urls.url(grant()), Err(Error::TooMany(1000))));
        urls.redeem(path(&given[500])).unwrap();
        urls.url(grant()).unwrap();
        assert!(urls.url(grant()).is_err());
        tokio::time::advance(LIFETIME).await;
        urls.url(grant()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn used_tokens_do_not_pile_up() {
        let urls = urls();
        for _ in 0..10 * MOST {
            let url = urls.url(grant()).unwrap();
            urls.redeem(path(&url)).unwrap();
        }
        assert!(urls.waiting.lock().unwrap().ends.len() <= 2 * MOST + 1);
    }
}
