//! What a transparency log (Rekor) has promised about a signature, checked without asking it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{key::PublicKey, proof::Proof, roots::Known, signature::Raw};

/// An entry of the log, and its promise to keep it, or its proof to have it, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Base64, as it was signed.
    pub body: String,
    /// Unix time, seconds.
    pub integrated_time: i64,
    pub log_index: i64,
    /// Digest of the log's key, hex.
    pub log_id: String,
    /// The log's signature of the above, base64; empty without.
    pub promise: String,
    /// That the log has it.
    #[serde(default)]
    pub proof: Option<Proof>,
}

/// What the entry must be about.
pub(super) struct Subject<'a> {
    /// What was signed: the payload, without an envelope's framing.
    pub payload: &'a [u8],
    pub signature: &'a [u8],
    /// Of the signer.
    pub key: &'a PublicKey,
    /// The certificate that has the key, if there is one.
    pub certificate: Option<&'a [u8]>,
}

#[derive(Deserialize)]
struct Body {
    kind: String,
    spec: Spec,
}

/// Of `hashedrekord` and `dsse`, which have no field in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    data: Option<Data>,
    signature: Option<Signature>,
    payload_hash: Option<Hash>,
    signatures: Option<Vec<EnvelopeSignature>>,
    /// The same of logs of the second generation (rekor-tiles, entry types 0.0.2).
    #[serde(rename = "hashedRekordV002")]
    second_hashed: Option<SecondHashed>,
    #[serde(rename = "dsseV002")]
    second_envelope: Option<SecondEnvelope>,
}

#[derive(Deserialize)]
struct SecondHashed {
    data: SecondHash,
    signature: SecondSignature,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecondEnvelope {
    payload_hash: SecondHash,
    signatures: Vec<SecondSignature>,
}

/// Of bytes in base64, where the first generation has hex.
#[derive(Deserialize)]
struct SecondHash {
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct SecondSignature {
    content: String,
    verifier: SecondVerifier,
}

/// Bytes of DER, one of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecondVerifier {
    #[serde(rename = "x509Certificate")]
    certificate: Option<Raw>,
    public_key: Option<Raw>,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    content: String,
    public_key: Verifier,
}

#[derive(Deserialize)]
struct Verifier {
    content: String,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    signature: String,
    verifier: String,
}

impl Entry {
    /// Checks promise and proof, as far as there are such, with `logs`, and that they are about `subject`; returns when the promise
    /// was made, in seconds of Unix time. A proof alone does not say when.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn check(&self, logs: &[Known], subject: &Subject<'_>) -> Result<Option<u64>, String> {
        let bytes = decode(&self.body).ok_or("its log entry is malformed")?;
        let promised = match self.promise.is_empty() {
            true => None,
            false => Some(self.promised(logs)?),
        };
        match &self.proof {
            Some(proof) => proof.check(&bytes, logs)?,
            None if promised.is_none() => return Err("no log has promised to have it".into()),
            None => {}
        }
        let body: Body =
            serde_json::from_slice(&bytes).map_err(|error| format!("its log entry can't be read: {error}"))?;
        match body.is_about(subject) {
            true => Ok(promised),
            false => Err("its log entry is about something else".into()),
        }
    }

    /// When one of the logs has promised to have it.
    fn promised(&self, logs: &[Known]) -> Result<u64, String> {
        // Canonical JSON (RFC 8785): keys in order, no space. Neither value needs escapes, or it is refused.
        if !self.log_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("its log's id is malformed".into());
        }
        let signed = format!(
            r#"{{"body":"{}","integratedTime":{},"logID":"{}","logIndex":{}}}"#,
            self.body, self.integrated_time, self.log_id, self.log_index
        );
        let promise = decode(&self.promise).ok_or("the promise of its log is malformed")?;
        let at = u64::try_from(self.integrated_time).map_err(|_| "its log entry is from before 1970".to_owned())?;
        let promised = |log: &Known| log.is_good_at(at) && log.key.has_signed(signed.as_bytes(), &promise);
        match logs.iter().any(promised) {
            true => Ok(at),
            false => Err("no log that is trusted has promised to have it".into()),
        }
    }
}

impl Body {
    fn is_about(&self, subject: &Subject<'_>) -> bool {
        let spec = &self.spec;
        match self.kind.as_str() {
            "hashedrekord" if spec.second_hashed.is_some() => spec
                .second_hashed
                .as_ref()
                .is_some_and(|entry| entry.data.is_of(subject.payload) && entry.signature.is_of(subject)),
            "dsse" if spec.second_envelope.is_some() => spec.second_envelope.as_ref().is_some_and(|entry| {
                entry.payload_hash.is_of(subject.payload) && entry.signatures.iter().any(|one| one.is_of(subject))
            }),
            "hashedrekord" => {
                spec.data.as_ref().is_some_and(|data| data.hash.is_of(subject.payload))
                    && spec.signature.as_ref().is_some_and(|signature| {
                        same(&signature.content, subject.signature) && is_signer(&signature.public_key.content, subject)
                    })
            }
            "dsse" => {
                spec.payload_hash
                    .as_ref()
                    .is_some_and(|hash| hash.is_of(subject.payload))
                    && spec.signatures.iter().flatten().any(|signature| {
                        same(&signature.signature, subject.signature) && is_signer(&signature.verifier, subject)
                    })
            }
            _ => false,
        }
    }
}

impl Hash {
    fn is_of(&self, bytes: &[u8]) -> bool {
        self.algorithm == "sha256" && self.value == hex::encode(Sha256::digest(bytes))
    }
}

impl SecondHash {
    fn is_of(&self, bytes: &[u8]) -> bool {
        self.algorithm == "SHA2_256" && same(&self.digest, &Sha256::digest(bytes))
    }
}

impl SecondSignature {
    fn is_of(&self, subject: &Subject<'_>) -> bool {
        let signer = match (subject.certificate, &self.verifier) {
            (
                Some(certificate),
                SecondVerifier {
                    certificate: Some(raw), ..
                },
            ) => same(&raw.raw_bytes, certificate),
            (
                None,
                SecondVerifier {
                    public_key: Some(raw), ..
                },
            ) => same(&raw.raw_bytes, subject.key.der()),
            _ => false,
        };
        signer && same(&self.content, subject.signature)
    }
}

fn same(text: &str, bytes: &[u8]) -> bool {
    decode(text).is_some_and(|decoded| decoded == bytes)
}

/// Whether `text`, a PEM in base64, is the subject's certificate or key.
fn is_signer(text: &str, subject: &Subject<'_>) -> bool {
    let Some(pem) = decode(text) else { return false };
    match subject.certificate {
        Some(certificate) => CertificateDer::from_pem_slice(&pem).is_ok_and(|found| found.as_ref() == certificate),
        None => PublicKey::from_pem(&pem).is_ok_and(|found| found.first() == Some(subject.key)),
    }
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok()
}
