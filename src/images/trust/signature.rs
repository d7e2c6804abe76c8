//! One signature as sigstore's tools make them, and what it takes to believe it.
//!
//! There are two forms. A manifest under the tag `sha256-HEX.sig` has layers with a "simple signing" payload, which names a
//! repository and a manifest's digest, and annotations with the signature. A bundle, which refers to the image's manifest, has
//! an envelope (DSSE) around a statement (in-toto) with the digest alone.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{
    certificate,
    evidence::Annotated,
    key::PublicKey,
    log::{Entry, Subject, decode},
    policy::Signer,
    proof::Proof,
    roots::{Authority, Known},
    timestamp,
};

const STATEMENT: &str = "application/vnd.in-toto+json";
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
/// Timestamps of one signature that are looked at.
const MAX_STAMPS: usize = 8;
const SIMPLE: &str = "cosign container image signature";

/// A signature that was found, not believed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signature {
    /// What is signed, base64.
    payload: String,
    /// Of the envelope; empty for a simple payload.
    payload_type: String,
    /// Base64.
    signature: String,
    /// The signer's certificate first, then those between it and its authority; DER in base64. Empty with a key.
    certificates: Vec<String>,
    log: Option<Entry>,
    /// Authorities' responses about when they were shown it (RFC 3161), base64.
    #[serde(default)]
    stamps: Vec<String>,
}

/// What a signature says that was checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Of a manifest.
    pub digest: String,
    /// The image's name, as far as the signature has one.
    pub name: Option<String>,
}

impl Signature {
    /// A layer of a manifest of signatures: its payload and annotations. `None` if it is not signed.
    pub fn from_layer(payload: &[u8], annotations: &BTreeMap<String, String>) -> Option<Self> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let get = |key: &str| annotations.get(key).filter(|value| !value.is_empty());
        let mut certificates = Vec::new();
        for key in ["dev.sigstore.cosign/certificate", "dev.sigstore.cosign/chain"] {
            if let Some(pem) = get(key) {
                let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
                certificates.extend(found.ok()?.iter().map(|der| STANDARD.encode(der)));
            }
        }
        let log = match get("dev.sigstore.cosign/bundle") {
            Some(json) => Some(serde_json::from_str::<Annotated>(json).ok()?.into()),
            None => None,
        };
        let stamp = match get("dev.sigstore.cosign/rfc3161timestamp") {
            Some(json) => Some(serde_json::from_str::<AnnotatedStamp>(json).ok()?.response),
            None => None,
        };
        Some(Self {
            stamps: stamp.into_iter().collect(),
            payload: STANDARD.encode(payload),
            payload_type: String::new(),
            signature: get("dev.cosignproject.cosign/signature")?.clone(),
            certificates,
            log,
        })
    }

    /// A bundle (`application/vnd.dev.sigstore.bundle`). `None` if it is none, or has no envelope.
    pub fn from_bundle(json: &[u8]) -> Option<Self> {
        let bundle: Bundle = serde_json::from_slice(json).ok()?;
        let material = bundle.verification_material;
        let certificates = match (material.certificate, material.chain) {
            (Some(one), _) => vec![one.raw_bytes],
            (None, Some(chain)) => chain.certificates.into_iter().map(|one| one.raw_bytes).collect(),
            (None, None) => Vec::new(),
        };
        let log = material.tlog_entries.into_iter().find_map(|entry| {
            Some(Entry {
                body: entry.canonicalized_body,
                integrated_time: entry.integrated_time.map_or(Some(0), |text| text.parse().ok())?,
                log_index: entry.log_index.parse().ok()?,
                log_id: hex::encode(decode(&entry.log_id.key_id)?),
                promise: entry
                    .inclusion_promise
                    .map(|promise| promise.signed_entry_timestamp)
                    .unwrap_or_default(),
                proof: match entry.inclusion_proof {
                    Some(proof) => Some(proof.read()?),
                    None => None,
                },
            })
        });
        let stamps = material.timestamps.unwrap_or_default().all.into_iter();
        Some(Self {
            stamps: stamps.take(MAX_STAMPS).map(|one| one.response).collect(),
            payload: bundle.dsse_envelope.payload,
            payload_type: bundle.dsse_envelope.payload_type,
            signature: bundle.dsse_envelope.signatures.into_iter().next()?.sig,
            certificates,
            log,
        })
    }

    /// Checks that `signer` has made it; returns what it says.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn check(&self, signer: &Signer) -> Result<Vec<Claim>, String> {
        let malformed = || "it is malformed".to_owned();
        let payload = decode(&self.payload).ok_or_else(malformed)?;
        let bytes = decode(&self.signature).ok_or_else(malformed)?;
        let message = if self.payload_type.is_empty() {
            payload.clone()
        } else {
            // The envelope's framing, "pre-authentication encoding".
            let kind = &self.payload_type;
            let mut framed = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
            framed.extend_from_slice(&payload);
            framed
        };
        match signer {
            Signer::Keys { keys, log } => {
                let key = keys
                    .iter()
                    .find(|key| key.has_signed(&message, &bytes))
                    .ok_or("it is not by a key that is trusted")?;
                if let Some(log) = log {
                    self.logged(log, &payload, &bytes, key, None)?;
                }
            }
            Signer::Identity {
                trusted,
                issuer,
                identity,
            } => {
                let chain: Option<Vec<Vec<u8>>> = self.certificates.iter().map(|one| decode(one)).collect();
                let chain = chain.ok_or_else(malformed)?;
                let leaf = chain.first().ok_or("it has no certificate")?;
                let said = certificate::said(leaf)?;
                if !said.key.has_signed(&message, &bytes) {
                    return Err("it is not by the key of its certificate".into());
                }
                // Its certificate was good for minutes.
                let at = match self.logged(&trusted.logs, &payload, &bytes, &said.key, Some(leaf))? {
                    Some(at) => at,
                    None => self.stamped(&trusted.timestamp_authorities, &bytes)?,
                };
                certificate::check(&chain, trusted, at)?;
                let vouched = said.issuer.as_deref().unwrap_or_default();
                if !issuer.fits(vouched) {
                    return Err(format!("it is of somebody for whom {vouched:?} has vouched"));
                }
                if !said.identities.iter().any(|name| identity.fits(name)) {
                    return Err(format!("it is of {:?}", said.identities.join(", ")));
                }
            }
            Signer::Gpg(_) => return Err("it is not by GPG".into()),
        }
        self.claims(&payload)
    }

    /// When the log has got it, if it says so.
    fn logged(
        &self,
        logs: &[Known],
        payload: &[u8],
        signature: &[u8],
        key: &PublicKey,
        certificate: Option<&[u8]>,
    ) -> Result<Option<u64>, String> {
        let entry = self.log.as_ref().ok_or("no log has promised to have it")?;
        entry.check(
            logs,
            &Subject {
                payload,
                signature,
                key,
                certificate,
            },
        )
    }

    /// When one of `authorities` was shown it.
    fn stamped(&self, authorities: &[Authority], signature: &[u8]) -> Result<u64, String> {
        let mut reason = "its log has it, but nobody who is trusted has signed when it got it".to_owned();
        if !self.stamps.is_empty() && authorities.is_empty() {
            return Err(format!(
                "{reason}: it has a timestamp (RFC 3161), and trusted_root names no timestamp authority"
            ));
        }
        for stamp in &self.stamps {
            let response = decode(stamp).ok_or("its timestamp is malformed")?;
            match timestamp::check(&response, signature, authorities) {
                Ok(at) => return Ok(at),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }

    fn claims(&self, payload: &[u8]) -> Result<Vec<Claim>, String> {
        let unreadable = |error: serde_json::Error| format!("what it signs can't be read: {error}");
        if self.payload_type.is_empty() {
            return claims(payload, SIMPLE);
        }
        if self.payload_type != STATEMENT {
            return Err(format!("it signs something of type {:?}", self.payload_type));
        }
        let statement: Statement = serde_json::from_slice(payload).map_err(unreadable)?;
        // A signed list of contents or of tests is no word for the image itself.
        if statement.predicate_type != SIGNED {
            return Err(format!("it signs a statement of type {:?}", statement.predicate_type));
        }
        let claim = |subject: Named| {
            Some(Claim {
                digest: format!("sha256:{}", subject.digest.get("sha256")?),
                name: (!subject.name.is_empty()).then_some(subject.name),
            })
        };
        Ok(statement.subject.into_iter().filter_map(claim).collect())
    }
}

/// What a "simple signing" payload of this type says.
///
/// # Errors
/// When it is something else.
pub(super) fn claims(payload: &[u8], kind: &str) -> Result<Vec<Claim>, String> {
    let simple: Simple =
        serde_json::from_slice(payload).map_err(|error| format!("what it signs can't be read: {error}"))?;
    let critical = simple.critical;
    if critical.kind != kind {
        return Err(format!("it signs something of type {:?}", critical.kind));
    }
    Ok(vec![Claim {
        digest: critical.image.digest,
        name: Some(critical.identity.reference),
    }])
}

#[derive(Deserialize)]
struct Simple {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: SimpleImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct SimpleImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    subject: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    verification_material: BundleMaterial,
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleMaterial {
    certificate: Option<Raw>,
    #[serde(rename = "x509CertificateChain")]
    chain: Option<Chain>,
    #[serde(default)]
    tlog_entries: Vec<BundleEntry>,
    #[serde(rename = "timestampVerificationData")]
    timestamps: Option<Stamps>,
}

#[derive(Deserialize, Default)]
struct Stamps {
    #[serde(rename = "rfc3161Timestamps", default)]
    all: Vec<Stamp>,
}

#[derive(Deserialize)]
struct Stamp {
    #[serde(rename = "signedTimestamp")]
    response: String,
}

#[derive(Deserialize)]
struct AnnotatedStamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    response: String,
}

/// Certificates as sigstore's messages have them, the first one's issuer after it.
#[derive(Deserialize)]
pub(super) struct Chain {
    pub certificates: Vec<Raw>,
}

/// Bytes as sigstore's messages have them, base64.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Raw {
    pub raw_bytes: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleEntry {
    log_index: String,
    log_id: LogId,
    integrated_time: Option<String>,
    inclusion_promise: Option<Promise>,
    inclusion_proof: Option<BundleProof>,
    canonicalized_body: String,
}

/// What a log is called, base64.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogId {
    pub key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleProof {
    log_index: String,
    tree_size: String,
    root_hash: String,
    #[serde(default)]
    hashes: Vec<String>,
    checkpoint: Checkpoint,
}

#[derive(Deserialize)]
struct Checkpoint {
    envelope: String,
}

impl BundleProof {
    fn read(self) -> Option<Proof> {
        Some(Proof {
            index: self.log_index.parse().ok()?,
            size: self.tree_size.parse().ok()?,
            root: self.root_hash,
            hashes: self.hashes,
            checkpoint: self.checkpoint.envelope,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}
