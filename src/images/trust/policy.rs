//! Which requirements an image's name has to meet.

use std::collections::BTreeMap;

use super::{
    gpg,
    key::{Material, PublicKey},
    roots::{self, Known, Roots, Trusted},
    signature::Claim,
};
use crate::{
    config::{self, ScopePolicy, Verdict},
    images::Reference,
};

/// One requirement. An image must meet all that its scope has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    Accept,
    Reject,
    Signed(Signed),
    /// One that can't be checked here, so that no image meets it.
    Unsupported(String),
}

/// A signature by one of several signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    pub by: Vec<By>,
    pub name: NameRule,
}

/// A signer as the policy describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum By {
    Keys {
        keys: Vec<Material>,
        /// The log must have promised to have the signature.
        log: Option<Vec<Material>>,
    },
    Identity {
        roots: Roots,
        issuer: Pattern,
        identity: Pattern,
    },
    /// GPG keys.
    Gpg(Vec<Material>),
}

/// The same with its files read.
pub(super) enum Signer {
    Keys {
        keys: Vec<PublicKey>,
        log: Option<Vec<Known>>,
    },
    Identity {
        trusted: Trusted,
        issuer: Pattern,
        identity: Pattern,
    },
    Gpg(gpg::Keys),
}

/// How the name in a signature has to be related to the image's. See containers-policy.json(5), `signedIdentity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameRule {
    Exact,
    RepositoryIfDigest,
    Repository,
    ExactReference(String),
    ExactRepository(String),
    Remap {
        prefix: String,
        signed_prefix: String,
    },
    /// The image's own repository, or one that fits; a signature of the digest alone will do.
    OwnOr(Vec<Pattern>),
}

/// A text in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(pub String);

impl Pattern {
    /// Whether all of `text` has this form.
    pub fn fits(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl By {
    /// Reads keys and certificates. Blocking.
    ///
    /// # Errors
    /// A sentence about a file.
    pub fn load(&self) -> Result<Signer, String> {
        let keys = |all: &[Material]| -> Result<Vec<PublicKey>, String> {
            let read: Result<Vec<_>, _> = all.iter().map(PublicKey::read).collect();
            Ok(read?.into_iter().flatten().collect())
        };
        Ok(match self {
            Self::Keys { keys: wanted, log } => Signer::Keys {
                keys: keys(wanted)?,
                log: log.as_deref().map(roots::logs).transpose()?,
            },
            Self::Identity {
                roots,
                issuer,
                identity,
            } => Signer::Identity {
                trusted: roots.load()?,
                issuer: issuer.clone(),
                identity: identity.clone(),
            },
            Self::Gpg(all) => Signer::Gpg(gpg::Keys::read(all)?),
        })
    }
}

impl NameRule {
    /// Whether a signature that makes `claim` may speak for `image`.
    pub fn allows(&self, claim: &Claim, image: &Reference) -> bool {
        let Some(named) = &claim.name else {
            return matches!(self, Self::OwnOr(_));
        };
        let Ok(named) = Reference::parse(named) else {
            return false;
        };
        let same_repository = |name: &str| named.name() == name;
        let exact = |name: &str| match (Reference::parse(name), name.contains('@')) {
            (Ok(name), false) => name.name() == named.name() && name.tag == named.tag,
            _ => false,
        };
        // The name of a signature without a tag is not one with "latest".
        let has_tag = claim.name.as_ref().is_some_and(|name| {
            name.rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':') && !last.contains('@'))
        });
        let own = |image_name: &str| match (&image.tag, &image.digest) {
            (Some(tag), None) => has_tag && exact(&format!("{image_name}:{tag}")),
            _ => same_repository(image_name),
        };
        match self {
            Self::Exact => image.digest.is_none() && own(&image.name()),
            Self::RepositoryIfDigest => own(&image.name()),
            Self::Repository => same_repository(&image.name()),
            Self::ExactReference(name) => has_tag && exact(name),
            Self::ExactRepository(name) => {
                Reference::parse(name).is_ok_and(|repository| same_repository(&repository.name()))
            }
            Self::Remap { prefix, signed_prefix } => own(&remapped(&image.name(), prefix, signed_prefix)),
            Self::OwnOr(others) => {
                same_repository(&image.name()) || others.iter().any(|other| other.fits(&named.name()))
            }
        }
    }
}

/// `name` with `prefix` replaced, where it is a whole part of it.
fn remapped(name: &str, prefix: &str, signed_prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed_prefix}{rest}"),
        _ => name.to_owned(),
    }
}

/// Requirements by scope, from one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scopes(pub BTreeMap<String, Vec<Requirement>>);

impl Scopes {
    /// Those of the closest scope, with its name.
    pub fn find(&self, image: &Reference) -> Option<(&str, &[Requirement])> {
        let get = |scope: &str| {
            let (name, found) = self.0.get_key_value(scope)?;
            Some((name.as_str(), found.as_slice()))
        };
        let name = image.name();
        let whole = match (&image.digest, &image.tag) {
            (Some(digest), _) => format!("{name}@{digest}"),
            (None, Some(tag)) => format!("{name}:{tag}"),
            (None, None) => name.clone(),
        };
        let mut part = name.as_str();
        let mut found = get(&whole).or_else(|| get(part));
        while let (None, Some((parent, _))) = (found, part.rsplit_once('/')) {
            part = parent;
            found = get(part);
        }
        let host = image
            .registry
            .rsplit_once(':')
            .map_or(image.registry.as_str(), |(host, _)| host);
        let mut domain = host;
        while let (None, Some((_, parent))) = (found, domain.split_once('.')) {
            domain = parent;
            found = get(&format!("*.{domain}"));
        }
        found
    }
}

/// The scopes of `wharf.toml`.
pub(super) fn own(trust: &config::Trust) -> Scopes {
    let files = |paths: &[std::path::PathBuf]| paths.iter().cloned().map(Material::File).collect();
    let requirement = |scope: &config::TrustScope| match scope.policy {
        ScopePolicy::Accept => Requirement::Accept,
        ScopePolicy::Reject => Requirement::Reject,
        ScopePolicy::Signed => {
            let mut by = Vec::new();
            if !scope.keys.is_empty() {
                by.push(By::Keys {
                    keys: files(&scope.keys),
                    log: None,
                });
            }
            by.extend(scope.keyless.iter().map(|keyless| By::Identity {
                roots: match (&keyless.trusted_root, &keyless.roots) {
                    (Some(file), _) => Roots::Trusted(Material::File(file.clone())),
                    (None, authorities) => Roots::Files {
                        // A configuration that was checked has one of both.
                        authorities: Material::File(authorities.clone().unwrap_or_default()),
                        logs: files(&keyless.log_keys),
                        certificate_logs: files(&keyless.ct_keys),
                    },
                },
                issuer: Pattern(keyless.issuer.clone()),
                identity: Pattern(keyless.identity.clone()),
            }));
            Requirement::Signed(Signed {
                by,
                name: NameRule::OwnOr(scope.signed_as.iter().cloned().map(Pattern).collect()),
            })
        }
    };
    let scopes = trust.scopes.iter();
    Scopes(
        scopes
            .map(|(name, scope)| (name.clone(), vec![requirement(scope)]))
            .collect(),
    )
}

/// What a verdict without conditions requires.
pub(super) fn verdict(verdict: Verdict) -> Vec<Requirement> {
    vec![match verdict {
        Verdict::Accept => Requirement::Accept,
        Verdict::Reject => Requirement::Reject,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_texts() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            (
                "https://ci.example/*@refs/heads/main",
                "https://ci.example/x@refs/heads/main",
                true,
            ),
            (
                "https://ci.example/*@refs/heads/main",
                "https://evil.example/x@refs/heads/main",
                false,
            ),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(Pattern(pattern.into()).fits(text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn the_closest_scope_counts() {
        let names = [
            "r.example:5000",
            "r.example:5000/team",
            "r.example:5000/team/app",
            "*.example",
            "r.example:5000/team/app:v1",
        ];
        let scopes = Scopes(
            names
                .into_iter()
                .map(|name| (name.to_owned(), vec![Requirement::Reject]))
                .collect(),
        );
        for (image, scope) in [
            ("r.example:5000/team/app:v1", Some("r.example:5000/team/app:v1")),
            ("r.example:5000/team/app:v2", Some("r.example:5000/team/app")),
            ("r.example:5000/team/other", Some("r.example:5000/team")),
            ("r.example:5000/teamwork", Some("r.example:5000")),
            ("deep.r.example/x", Some("*.example")),
            ("r.example:1/x", Some("*.example")),
            ("busybox", None),
        ] {
            let found = scopes.find(&Reference::parse(image).unwrap());
            assert_eq!(found.map(|found| found.0), scope, "{image}");
        }
    }

    #[test]
    fn a_signature_speaks_for_the_names_that_the_rule_allows() {
        let remap = NameRule::Remap {
            prefix: "m.example/vendor".into(),
            signed_prefix: "v.example".into(),
        };
        let own = || NameRule::OwnOr(vec![Pattern("v.example/*".into())]);
        let digest = format!("r.example/app@sha256:{}", "a".repeat(64));
        for (rule, signed, image, allowed) in [
            (NameRule::Exact, Some("r.example/app:v1"), "r.example/app:v1", true),
            (NameRule::Exact, Some("r.example/app"), "r.example/app:latest", false),
            (NameRule::Exact, Some("r.example/app:v1"), digest.as_str(), false),
            (
                NameRule::RepositoryIfDigest,
                Some("r.example/app:v1"),
                digest.as_str(),
                true,
            ),
            (
                NameRule::RepositoryIfDigest,
                Some("r.example/app:v2"),
                "r.example/app:v1",
                false,
            ),
            (NameRule::Repository, Some("r.example/app"), "r.example/app:v1", true),
            (NameRule::Repository, Some("r.example/other"), "r.example/app:v1", false),
            (
                NameRule::ExactRepository("busybox".into()),
                Some("index.docker.io/library/busybox"),
                "m.example/b",
                true,
            ),
            (
                NameRule::ExactReference("v.example/a:1".into()),
                Some("v.example/a:1"),
                "m.example/b",
                true,
            ),
            (
                NameRule::ExactReference("v.example/a:1".into()),
                Some("v.example/a"),
                "m.example/b",
                false,
            ),
            (remap.clone(), Some("v.example/p/a:1"), "m.example/vendor/p/a:1", true),
            (remap.clone(), Some("v.example/p/a:1"), "m.example/vendor/p/b:1", false),
            (remap, Some("m.example/vendors/a:1"), "m.example/vendors/a:1", true),
            (own(), Some("r.example/app"), "r.example/app:v1", true),
            (own(), Some("v.example/app"), "r.example/app:v1", true),
            (own(), Some("evil.example/app"), "r.example/app:v1", false),
            (own(), None, "r.example/app:v1", true),
            (NameRule::Repository, None, "r.example/app:v1", false),
        ] {
            let claim = Claim {
                digest: String::new(),
                name: signed.map(ToOwned::to_owned),
            };
            let image = Reference::parse(image).unwrap();
            assert_eq!(rule.allows(&claim, &image), allowed, "{rule:?} {signed:?} {image}");
        }
    }
}
