//! Who may say that an image is good.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::validate::{Check, absolute, fault, range};

/// Which images are let in and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// What becomes of images that no scope here or in `policy_json` covers; unset is what `policy_json` says by default, or else
    /// [`Verdict::Accept`].
    pub default: Option<Verdict>,
    /// A `policy.json` as CRI-O, podman and skopeo read it; absent is fine, empty is none. Absolute.
    pub policy_json: PathBuf,
    /// Files that say where signatures by GPG lie, as podman and skopeo read them; absent is fine. Absolute.
    pub registries_d: PathBuf,
    /// Programs that are asked about each image, as containerd calls them; absent is fine, empty is none. Absolute.
    pub verifiers_dir: PathBuf,
    /// Seconds that one of them may take; 1 to 600.
    pub verifier_timeout_secs: u64,
    /// Rules by `host[:port]`, a path below it, a repository, or one image of it; `*.domain` stands for all hosts below a domain.
    /// The closest counts.
    pub scopes: BTreeMap<String, TrustScope>,
}

/// What becomes of images where nothing is said about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They are taken as they are.
    Accept,
    /// They are refused.
    Reject,
}

/// What is asked of the images of a scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustScope {
    /// Whether a signature is wanted.
    pub policy: ScopePolicy,
    /// PEM files with public keys; a signature by one of them is enough. Absolute.
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    /// Identities one of which is enough.
    #[serde(default)]
    pub keyless: Vec<Keyless>,
    /// Repositories that a signature may name beside the image's own; `*` stands for any text.
    #[serde(default)]
    pub signed_as: Vec<String>,
}

/// What becomes of the images of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopePolicy {
    /// They are taken as they are.
    Accept,
    /// They are refused.
    Reject,
    /// They need a signature by a key or an identity.
    Signed,
}

/// Somebody whom an authority knows by a name, and who signed with a key that was good for minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyless {
    /// sigstore's `trusted_root.json`, which names authorities and logs of both kinds, in place of the next three. Absolute.
    pub trusted_root: Option<PathBuf>,
    /// PEM file with the authorities' certificates. Absolute.
    pub roots: Option<PathBuf>,
    /// PEM files with the public keys of the logs one of which must have promised to have the signature. Absolute.
    #[serde(default)]
    pub log_keys: Vec<PathBuf>,
    /// PEM files with the public keys of the logs of certificates one of which must have promised to have the certificate; none is
    /// asked where none is named. Absolute.
    #[serde(default)]
    pub ct_keys: Vec<PathBuf>,
    /// Who has vouched for the name: a URL; `*` stands for any text.
    pub issuer: String,
    /// An e-mail address or URL; `*` stands for any text.
    pub identity: String,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            default: None,
            policy_json: "/etc/containers/policy.json".into(),
            registries_d: "/etc/containers/registries.d".into(),
            verifiers_dir: "/opt/containerd/image-verifier/bin".into(),
            verifier_timeout_secs: 10,
            scopes: BTreeMap::new(),
        }
    }
}

pub(super) fn check(trust: &Trust) -> Check {
    for (key, path) in [
        ("policy_json", &trust.policy_json),
        ("verifiers_dir", &trust.verifiers_dir),
        ("registries_d", &trust.registries_d),
    ] {
        if !path.as_os_str().is_empty() {
            absolute(&["trust", key], path)?;
        }
    }
    range(&["trust", "verifier_timeout_secs"], trust.verifier_timeout_secs, 1, 600)?;
    for (name, scope) in &trust.scopes {
        let at = |key| ["trust", "scopes", name, key];
        if name.is_empty() || name.contains("://") || name.ends_with('/') || name.chars().any(char::is_whitespace) {
            return fault(
                &["trust", "scopes", name],
                "is neither host[:port], a path below one, nor *.domain; a scheme is not part of it",
            );
        }
        let signers = scope.keys.len() + scope.keyless.len();
        match scope.policy {
            ScopePolicy::Signed if signers == 0 => {
                return fault(&at("policy"), "\"signed\" needs keys or keyless: nobody could sign");
            }
            ScopePolicy::Accept | ScopePolicy::Reject if signers + scope.signed_as.len() > 0 => {
                return fault(&at("policy"), "takes keys, keyless and signed_as only with \"signed\"");
            }
            _ => {}
        }
        scope.keys.iter().try_for_each(|path| absolute(&at("keys"), path))?;
        for keyless in &scope.keyless {
            let files = keyless
                .trusted_root
                .iter()
                .chain(&keyless.roots)
                .chain(&keyless.log_keys)
                .chain(&keyless.ct_keys);
            files.clone().try_for_each(|path| absolute(&at("keyless"), path))?;
            let alone = keyless.trusted_root.is_some();
            if alone && files.count() > 1 {
                return fault(
                    &at("keyless"),
                    "takes trusted_root or roots, log_keys and ct_keys, not both",
                );
            }
            if !alone && (keyless.roots.is_none() || keyless.log_keys.is_empty()) {
                return fault(
                    &at("keyless"),
                    "needs trusted_root, or roots and log_keys: without a log nobody knows when a signature was made",
                );
            }
            if keyless.issuer.is_empty() || keyless.identity.is_empty() {
                return fault(
                    &at("keyless"),
                    "needs issuer and identity: else it would be anybody's signature",
                );
            }
        }
    }
    Ok(())
}
