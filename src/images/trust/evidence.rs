//! What speaks for an image: kept beside it, so that it can be checked again without a registry.

use serde::{Deserialize, Serialize};

use super::{log::Entry, signature::Signature};

/// Signatures that are kept for an image, and judgements of programs.
const MAX_SIGNATURES: usize = 64;
const MAX_JUDGEMENTS: usize = 16;
/// Digests of manifests.
const MAX_DIGESTS: usize = 64;

/// What speaks for an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::images) struct Evidence {
    /// Of manifests and indexes that were seen to lead to the image.
    pub(super) digests: Vec<String>,
    /// Found in the registry, whoever they are of.
    pub(super) signatures: Vec<Signature>,
    /// The same by GPG, base64.
    pub(super) gpg: Vec<String>,
    /// That all verifiers took the image.
    pub(super) judgements: Vec<Judgement>,
}

/// All programs that were there took an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Judgement {
    /// The image's name, and the digest that it led to.
    pub name: String,
    pub digest: String,
    /// Which programs.
    pub programs: String,
}

impl Evidence {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.signatures.is_empty() && self.gpg.is_empty() && self.judgements.is_empty()
    }

    /// Whether the programs with this fingerprint took the image under this name.
    pub(super) fn was_taken(&self, name: &str, digest: &str, programs: &str) -> bool {
        self.judgements
            .iter()
            .any(|one| one.name == name && one.digest == digest && one.programs == programs)
    }

    /// Adds what `other` has; of too many the oldest go.
    pub fn merge(&mut self, other: Self) {
        add(&mut self.digests, other.digests, MAX_DIGESTS);
        add(&mut self.signatures, other.signatures, MAX_SIGNATURES);
        add(&mut self.gpg, other.gpg, MAX_SIGNATURES);
        add(&mut self.judgements, other.judgements, MAX_JUDGEMENTS);
    }

    /// Reads what [`Evidence::to_bytes`] has written.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// For a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Texts and numbers can always be written.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn add<T: PartialEq>(all: &mut Vec<T>, more: Vec<T>, limit: usize) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    let surplus = all.len().saturating_sub(limit);
    all.drain(..surplus);
}

/// The log entry of an annotation `dev.sigstore.cosign/bundle`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Annotated {
    signed_entry_timestamp: String,
    payload: AnnotatedPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnnotatedPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

impl From<Annotated> for Entry {
    fn from(found: Annotated) -> Self {
        Self {
            body: found.payload.body,
            integrated_time: found.payload.integrated_time,
            log_index: found.payload.log_index,
            log_id: found.payload.log_id,
            promise: found.signed_entry_timestamp,
            proof: None,
        }
    }
}
