//! Which images are let in, and which may run: signatures, and programs that are asked.
//!
//! The closest scope of an image's name says what is required: those of `wharf.toml`, then those of `policy.json`, then the
//! defaults. What speaks for an image is looked for when it is pulled and kept beside it ([`Evidence`]); whether it is enough
//! is asked again for every container and volume, so that a policy holds for what is there already, without a network.

mod certificate;
mod der;
mod evidence;
mod gather;
mod gpg;
mod key;
mod log;
mod lookaside;
mod policy;
mod policy_json;
mod proof;
mod roots;
mod sct;
mod signature;
#[cfg(test)]
mod tests;
mod timestamp;
mod verifiers;
mod vouch;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
pub(super) use evidence::Evidence;

use super::{
    Error, Reference, Result,
    pull::blocking,
    registry::{Document, Session},
    room::Room,
};
use crate::config::{Config, Verdict};
use evidence::Judgement;
use policy::{By, Requirement, Scopes, Signed};
use policy_json::PolicyJson;
use verifiers::Verifiers;

/// Reasons that are told of one image.
const MAX_REASONS: usize = 3;

/// What the configuration says about trust.
pub(super) struct Trust {
    own: Scopes,
    default: Option<Verdict>,
    policy_json: PathBuf,
    verifiers_dir: PathBuf,
    patience: Duration,
    registries_d: PathBuf,
    /// The directory of the images room.
    root: PathBuf,
    /// `policy.json` as last read.
    read: Mutex<Option<(Stamp, Option<PolicyJson>)>>,
}

/// Another one when the file has changed: inode, size, time.
type Stamp = Option<(u64, u64, SystemTime)>;

/// What holds now.
struct Rules {
    policy: Option<PolicyJson>,
    verifiers: Verifiers,
}

impl Trust {
    pub fn new(config: &Config) -> Self {
        Self {
            own: policy::own(&config.trust),
            default: config.trust.default,
            policy_json: config.trust.policy_json.clone(),
            verifiers_dir: config.trust.verifiers_dir.clone(),
            patience: Duration::from_secs(config.trust.verifier_timeout_secs),
            registries_d: config.trust.registries_d.clone(),
            root: config.state_dir.join("images"),
            read: Mutex::default(),
        }
    }

    /// Reads the node's files. Blocking.
    ///
    /// # Errors
    /// A sentence about one that can't be used.
    fn rules(&self) -> std::result::Result<Rules, String> {
        let verifiers = match self.verifiers_dir.as_os_str().is_empty() {
            true => Verifiers::default(),
            false => verifiers::find(&self.verifiers_dir)?,
        };
        Ok(Rules {
            policy: self.policy()?,
            verifiers,
        })
    }

    fn policy(&self) -> std::result::Result<Option<PolicyJson>, String> {
        if self.policy_json.as_os_str().is_empty() {
            return Ok(None);
        }
        use std::os::unix::fs::MetadataExt as _;
        let about = std::fs::metadata(&self.policy_json).ok();
        let stamp = about.and_then(|about| Some((about.ino(), about.size(), about.modified().ok()?)));
        // Not held while the file is read: who waits for a slow disk should hold up nobody.
        let read = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, policy)) = &*read()
            && *known == stamp
        {
            return Ok(policy.clone());
        }
        let policy = policy_json::read(&self.policy_json)?;
        *read() = Some((stamp, policy.clone()));
        Ok(policy)
    }

    /// What is required of `image`, and where that stands; of one without a name what holds for all.
    fn requirements(&self, policy: Option<&PolicyJson>, image: Option<&Reference>) -> (String, Vec<Requirement>) {
        if let Some((scope, found)) = image.and_then(|image| self.own.find(image)) {
            return (format!("scope {scope:?} of the configuration"), found.to_vec());
        }
        let file = self.policy_json.display();
        if let Some((scope, found)) = image.and_then(|image| policy?.scopes.find(image)) {
            return (format!("scope {scope:?} of {file}"), found.to_vec());
        }
        if let Some(found) = policy
            .filter(|_| image.is_some())
            .and_then(|policy| policy.transport.as_ref())
        {
            return (format!("scope \"\" of {file}"), found.clone());
        }
        if let Some(default) = self.default {
            return ("trust.default of the configuration".into(), policy::verdict(default));
        }
        match policy {
            Some(policy) => (format!("the default of {file}"), policy.default.clone()),
            None => (String::new(), vec![Requirement::Accept]),
        }
    }

    /// Lets the image `reference`, which `documents` (index and manifest) describe, in or not; returns what speaks for it.
    ///
    /// # Errors
    /// [`Error::Untrusted`], or when the registry can't be asked for signatures.
    pub async fn admit(
        &self,
        room: &std::sync::Arc<Room>,
        session: &Session,
        reference: &Reference,
        documents: &[Document],
    ) -> Result<Evidence> {
        let refused = |reason: String| Error::Untrusted {
            what: reference.to_string(),
            reason,
        };
        let owner = room.clone();
        let rules = blocking(move || Ok(owner.trust.rules())).await?.map_err(refused)?;
        let (place, wanted) = self.requirements(rules.policy.as_ref(), Some(reference));
        let mut evidence = Evidence {
            digests: documents.iter().map(|document| document.digest.clone()).collect(),
            ..Evidence::default()
        };
        let signers = || {
            wanted.iter().flat_map(|one| match one {
                Requirement::Signed(signed) => signed.by.as_slice(),
                _ => &[],
            })
        };
        let by_gpg = signers().any(|by| matches!(by, By::Gpg(_)));
        let by_others = signers().any(|by| !matches!(by, By::Gpg(_)));
        let signed = by_gpg || by_others;
        let mut verdict = Ok(());
        // Who signs an index signs what is in it.
        for document in documents {
            if by_others {
                evidence.merge(Evidence {
                    signatures: gather::gather(session, &document.digest).await?,
                    ..Evidence::default()
                });
            }
            if by_gpg {
                let found = lookaside::gather(session, &self.registries_d, reference, &document.digest).await?;
                evidence.merge(Evidence {
                    gpg: found.iter().map(|bytes| STANDARD.encode(bytes)).collect(),
                    ..Evidence::default()
                });
            }
            let (name, wanted, known) = (reference.clone(), wanted.clone(), evidence.clone());
            let root = self.root.clone();
            verdict = blocking(move || Ok(meets(&wanted, Some(&name), &known, &root))).await?;
            if verdict.is_ok() || !signed {
                break;
            }
        }
        verdict.map_err(|reason| refused(format!("{reason} ({place})")))?;
        let Some(top) = documents.first().filter(|_| !rules.verifiers.is_empty()) else {
            return Ok(evidence);
        };
        let judgement = self.ask(&rules.verifiers, &reference.to_string(), top).await;
        evidence.judgements.push(judgement.map_err(refused)?);
        Ok(evidence)
    }

    async fn ask(
        &self,
        verifiers: &Verifiers,
        name: &str,
        document: &Document,
    ) -> std::result::Result<Judgement, String> {
        verifiers.ask(name, document, self.patience).await?;
        Ok(Judgement {
            name: name.to_owned(),
            digest: document.digest.clone(),
            programs: verifiers.fingerprint.clone(),
        })
    }
}

/// Whether `image` meets all that is `wanted` by what is known of it. Reads keys; blocking. `root` is the directory of the images
/// room.
///
/// # Errors
/// The first requirement that it does not meet.
fn meets(
    wanted: &[Requirement],
    image: Option<&Reference>,
    evidence: &Evidence,
    root: &Path,
) -> std::result::Result<(), String> {
    wanted.iter().try_for_each(|requirement| match requirement {
        Requirement::Accept => Ok(()),
        Requirement::Reject => Err("images of this name are refused".to_owned()),
        Requirement::Unsupported(what) => Err(format!("the policy {what}, which is not supported")),
        Requirement::Signed(signed) => is_signed(signed, image, evidence, root),
    })
}

fn is_signed(
    signed: &Signed,
    image: Option<&Reference>,
    evidence: &Evidence,
    root: &Path,
) -> std::result::Result<(), String> {
    let image = image.ok_or("it has no name that a signature could be for")?;
    let mut reasons: Vec<String> = Vec::new();
    let mut none = true;
    for by in &signed.by {
        // A file that can't be read is no reason to believe, and none to look no further.
        let signer = match by.load() {
            Ok(signer) => signer,
            Err(reason) => {
                none &= evidence.signatures.is_empty() && evidence.gpg.is_empty();
                reasons.push(reason);
                continue;
            }
        };
        let checked: Vec<_> = match &signer {
            policy::Signer::Gpg(keys) => {
                let signatures = evidence.gpg.iter().filter_map(|text| log::decode(text));
                signatures.map(|signature| keys.check(&signature, root)).collect()
            }
            _ => evidence
                .signatures
                .iter()
                .map(|signature| signature.check(&signer))
                .collect(),
        };
        none &= checked.is_empty();
        for checked in checked {
            let why = match checked {
                Err(reason) => reason,
                Ok(claims) => {
                    let of_image = |digest: &String| evidence.digests.contains(digest);
                    match claims.iter().find(|claim| of_image(&claim.digest)) {
                        None => "it is of another image".to_owned(),
                        Some(claim) if signed.name.allows(claim, image) => return Ok(()),
                        Some(claim) => format!("it is for the name {:?}", claim.name.as_deref().unwrap_or_default()),
                    }
                }
            };
            reasons.push(format!("a signature does not count: {why}"));
        }
    }
    if none {
        reasons.insert(0, "it has no signature".to_owned());
    }
    reasons.dedup();
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    Err(reasons.join("; "))
}
