//! Public keys and signatures by them: ECDSA on P-256 and P-384, Ed25519, RSA.

use std::{fs, path::PathBuf};

use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};

use super::der::{BIT_STRING, Reader, SEQUENCE};

/// Largest file of keys or certificates that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where keys or certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Material {
    File(PathBuf),
    /// PEM.
    Data(Vec<u8>),
}

impl Material {
    /// The PEM text. Blocking.
    ///
    /// # Errors
    /// A sentence about the file.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Data(pem) => Ok(pem.clone()),
            Self::File(path) => {
                let failed = |error: std::io::Error| format!("read {}: {error}", path.display());
                if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
                    return Err(format!("{} is too large for a file of keys", path.display()));
                }
                fs::read(path).map_err(failed)
            }
        }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Data(_) => "the policy's own data".to_owned(),
        }
    }
}

/// A public key: a SubjectPublicKeyInfo (RFC 5280, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// The keys in `material`, at least one. Blocking.
    ///
    /// # Errors
    /// A sentence about the file.
    pub fn read(material: &Material) -> Result<Vec<Self>, String> {
        let pem = material.read()?;
        let keys = Self::from_pem(&pem).map_err(|reason| format!("{}: {reason}", material.name()))?;
        if keys.is_empty() {
            return Err(format!("{} has no public key", material.name()));
        }
        Ok(keys)
    }

    /// The keys in a PEM text.
    ///
    /// # Errors
    /// When it is damaged, or a key is of no known kind.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<Self>, String> {
        let keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        keys.map(|key| {
            let key = key.map_err(|error| error.to_string())?;
            Self::from_der(key.as_ref()).ok_or_else(|| "a public key is of a kind that is not supported".to_owned())
        })
        .collect()
    }

    /// The key in a SubjectPublicKeyInfo, if signatures by it can be checked.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let key = Self(der.to_vec());
        let (algorithm, _) = key.parts()?;
        algorithms()
            .iter()
            .any(|known| known.public_key_alg_id().as_ref() == algorithm)
            .then_some(key)
    }

    /// The SubjectPublicKeyInfo.
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// The algorithm's identifier and the bits of the key.
    fn parts(&self) -> Option<(&[u8], &[u8])> {
        let mut outer = Reader::new(&self.0);
        let mut inner = outer.next_if(SEQUENCE)?.inner();
        let algorithm = inner.next_if(SEQUENCE)?.content;
        let bits = inner.next_if(BIT_STRING)?.content;
        // The first byte counts unused bits.
        let (unused, bits) = bits.split_first()?;
        (*unused == 0 && inner.is_empty() && outer.is_empty()).then_some((algorithm, bits))
    }

    /// Whether `signature` is this key's of `message`, by whatever algorithm the key allows.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some((algorithm, bits)) = self.parts() else {
            return false;
        };
        algorithms().iter().any(|known| {
            known.public_key_alg_id().as_ref() == algorithm && known.verify_signature(bits, message, signature).is_ok()
        })
    }
}

/// Algorithms of signatures, all with SHA-256 or more.
pub(super) fn algorithms() -> &'static [&'static dyn rustls::pki_types::SignatureVerificationAlgorithm] {
    static ALL: std::sync::OnceLock<&[&dyn rustls::pki_types::SignatureVerificationAlgorithm]> =
        std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .all
    })
}
