//! Whom it takes to believe somebody without a key that lasts: authorities, logs of signatures, logs of certificates. In files of
//! their own, or in sigstore's `trusted_root.json`, which says for each since when and until when it counts.

use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    certificate,
    key::{Material, PublicKey},
    log::decode,
    signature::{Chain, LogId},
};

/// Where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// One kind to a file.
    Files {
        authorities: Material,
        logs: Vec<Material>,
        /// Of certificates; none is asked where there is none.
        certificate_logs: Vec<Material>,
    },
    /// `application/vnd.dev.sigstore.trustedroot+json`.
    Trusted(Material),
}

/// They themselves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trusted {
    pub authorities: Vec<Authority>,
    pub logs: Vec<Known>,
    /// Of certificates; none is asked where there is none.
    pub certificate_logs: Vec<Known>,
    /// Who says when it was shown a signature.
    pub timestamp_authorities: Vec<Authority>,
}

/// A log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub key: PublicKey,
    /// The digest of its key, or what it is called instead.
    pub id: Vec<u8>,
    time: Time,
}

/// An authority, with those between it and whom it knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub chain: Vec<CertificateDer<'static>>,
    time: Time,
}

/// When it counts: seconds of Unix time, the last one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    from: i64,
    until: i64,
}

const ALWAYS: Time = Time {
    from: i64::MIN,
    until: i64::MAX,
};

impl Time {
    fn has(self, second: u64) -> bool {
        i64::try_from(second).is_ok_and(|second| (self.from..=self.until).contains(&second))
    }
}

impl Known {
    /// A log that always counts, named by its key's digest.
    pub fn by_key(key: PublicKey) -> Self {
        Self {
            id: Sha256::digest(key.der()).to_vec(),
            key,
            time: ALWAYS,
        }
    }

    /// Whether it counted at that second of Unix time.
    pub fn is_good_at(&self, second: u64) -> bool {
        self.time.has(second)
    }
}

impl Authority {
    /// One that always counts.
    #[cfg(test)]
    pub fn always(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, time: ALWAYS }
    }

    /// Whether it counted at that second of Unix time.
    pub fn is_good_at(&self, second: u64) -> bool {
        self.time.has(second)
    }
}

/// The logs whose keys are in these files. Blocking.
///
/// # Errors
/// A sentence about a file.
pub(super) fn logs(all: &[Material]) -> Result<Vec<Known>, String> {
    let read: Result<Vec<_>, _> = all.iter().map(PublicKey::read).collect();
    Ok(read?.into_iter().flatten().map(Known::by_key).collect())
}

impl Roots {
    /// Reads the files. Blocking.
    ///
    /// # Errors
    /// A sentence about one.
    pub fn load(&self) -> Result<Trusted, String> {
        match self {
            Self::Files {
                authorities,
                logs: of_signatures,
                certificate_logs,
            } => Ok(Trusted {
                authorities: vec![Authority {
                    chain: certificate::read(authorities)?,
                    time: ALWAYS,
                }],
                logs: logs(of_signatures)?,
                certificate_logs: logs(certificate_logs)?,
                timestamp_authorities: Vec::new(),
            }),
            Self::Trusted(material) => {
                let json = material.read()?;
                parse(&json).map_err(|reason| format!("{}: {reason}", material.name()))
            }
        }
    }
}

/// What is read of the file: other fields are for others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    media_type: String,
    #[serde(default)]
    tlogs: Vec<Log>,
    #[serde(default)]
    certificate_authorities: Vec<JsonAuthority>,
    #[serde(default)]
    ctlogs: Vec<Log>,
    #[serde(default)]
    timestamp_authorities: Vec<JsonAuthority>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    public_key: Key,
    log_id: Option<LogId>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    raw_bytes: String,
    valid_for: Option<Range>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonAuthority {
    cert_chain: Chain,
    valid_for: Option<Range>,
}

/// Times as RFC 3339 has them.
#[derive(Deserialize)]
struct Range {
    start: Option<String>,
    end: Option<String>,
}

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.trustedroot";

fn parse(json: &[u8]) -> Result<Trusted, String> {
    let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    // With a version behind it, in one of two forms.
    if !file.media_type.starts_with(MEDIA_TYPE) {
        return Err(format!("it is of type {:?}, not a trusted root", file.media_type));
    }
    let logs = |logs: Vec<Log>, what: &str| -> Result<Vec<Known>, String> {
        // A log with a key of a kind that is not known here is nobody's reason to believe.
        let known = logs.into_iter().filter_map(|one| log(one, what).transpose());
        known.collect()
    };
    let trusted = Trusted {
        authorities: file
            .certificate_authorities
            .into_iter()
            .map(authority)
            .collect::<Result<_, _>>()?,
        logs: logs(file.tlogs, "tlogs")?,
        certificate_logs: logs(file.ctlogs, "ctlogs")?,
        timestamp_authorities: file
            .timestamp_authorities
            .into_iter()
            .map(authority)
            .collect::<Result<_, _>>()?,
    };
    if trusted.authorities.is_empty() || trusted.logs.is_empty() {
        return Err("it names no authority, or no log whose key can be used".into());
    }
    // Without any, promises in certificates would be asked of nobody.
    if trusted.certificate_logs.is_empty() {
        return Err("it names no log of certificates (ctlogs) whose key can be used".into());
    }
    Ok(trusted)
}

fn log(log: Log, what: &str) -> Result<Option<Known>, String> {
    let key = decode(&log.public_key.raw_bytes).ok_or_else(|| format!("a key of {what} is not base64"))?;
    let Some(key) = PublicKey::from_der(&key) else {
        return Ok(None);
    };
    let mut known = Known::by_key(key);
    if let Some(id) = log.log_id {
        known.id = decode(&id.key_id).ok_or_else(|| format!("an id of {what} is not base64"))?;
    }
    known.time = time(log.public_key.valid_for)?;
    Ok(Some(known))
}

fn authority(authority: JsonAuthority) -> Result<Authority, String> {
    let chain = authority
        .cert_chain
        .certificates
        .iter()
        .map(|raw| decode(&raw.raw_bytes).map(CertificateDer::from));
    let chain: Option<Vec<_>> = chain.collect();
    Ok(Authority {
        chain: chain
            .filter(|chain| !chain.is_empty())
            .ok_or("an authority has no certificate, or one that is not base64")?,
        time: time(authority.valid_for)?,
    })
}

fn time(range: Option<Range>) -> Result<Time, String> {
    let Some(range) = range else { return Ok(ALWAYS) };
    let second = |text: Option<String>, absent: i64| match text {
        None => Ok(absent),
        Some(text) => text
            .parse::<jiff::Timestamp>()
            .map(jiff::Timestamp::as_second)
            .map_err(|_| format!("{text:?} is not a time")),
    };
    Ok(Time {
        from: second(range.start, i64::MIN)?,
        until: second(range.end, i64::MAX)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trusted_root_that_leaves_something_out_is_refused() {
        for (json, reason) in [
            ("{}", "mediaType"),
            (r#"{"mediaType":"application/json"}"#, "not a trusted root"),
            (
                r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}"#,
                "no authority",
            ),
            (
                r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json","tlogs":[{"publicKey":{"rawBytes":"%"}}]}"#,
                "base64",
            ),
            (
                r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json",
                    "certificateAuthorities":[{"certChain":{"certificates":[]}}]}"#,
                "no certificate",
            ),
            (
                r#"{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json",
                    "certificateAuthorities":[{"certChain":{"certificates":[{"rawBytes":"YQ=="}]},"validFor":{"start":"soon"}}]}"#,
                "not a time",
            ),
        ] {
            let error = parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn a_time_has_both_its_ends() {
        let range = time(Some(Range {
            start: Some("2021-01-12T11:53:27.000Z".into()),
            end: Some("2022-01-12T11:53:27Z".into()),
        }))
        .unwrap();
        let start = 1_610_452_407;
        assert!(range.has(start) && !range.has(start - 1));
        assert!(range.has(start + 365 * 24 * 3600) && !range.has(start + 365 * 24 * 3600 + 1));
        assert!(ALWAYS.has(0) && !ALWAYS.has(u64::MAX));
    }
}
