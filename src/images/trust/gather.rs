//! Signatures where registries keep them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::signature::Signature;
use crate::images::{ErrorKind, Result, reference::is_digest, registry::Session};

const SIMPLE_LAYER: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Signatures of one manifest that are looked at, and bytes of one.
const MAX_SIGNATURES: usize = 32;
const MAX_SIZE: u64 = 256 << 10;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Referrers {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn is_sane(&self) -> bool {
        is_digest(&self.digest) && self.size <= MAX_SIZE
    }
}

/// What is attached to the manifest `digest` of the session's repository. What is malformed is left out: anybody who can
/// write there could else keep good signatures from being seen.
///
/// # Errors
/// When the registry can't be asked.
pub(super) async fn gather(session: &Session, digest: &str) -> Result<Vec<Signature>> {
    let mut found = tagged(session, digest).await?;
    found.extend(referring(session, digest).await?);
    Ok(found)
}

/// By the tag that cosign gives them.
async fn tagged(session: &Session, digest: &str) -> Result<Vec<Signature>> {
    let tag = format!("{}.sig", digest.replacen(':', "-", 1));
    let Some(document) = absent_is_none(session.manifest(&tag).await)? else {
        return Ok(Vec::new());
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&document.bytes) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let layers = manifest
        .layers
        .iter()
        .filter(|layer| layer.media_type == SIMPLE_LAYER && layer.is_sane());
    for layer in layers.take(MAX_SIGNATURES) {
        let Some(payload) = absent_is_none(session.document(&layer.digest, layer.size).await)? else {
            continue;
        };
        found.extend(Signature::from_layer(
            &payload,
            layer.annotations.as_ref().unwrap_or(&BTreeMap::new()),
        ));
    }
    Ok(found)
}

/// By what refers to the manifest.
async fn referring(session: &Session, digest: &str) -> Result<Vec<Signature>> {
    let Some(document) = session.referrers(digest).await? else {
        return Ok(Vec::new());
    };
    let Ok(referrers) = serde_json::from_slice::<Referrers>(&document.bytes) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let bundles = referrers
        .manifests
        .iter()
        .filter(|manifest| manifest.artifact_type.starts_with(BUNDLE) && manifest.is_sane());
    for manifest in bundles.take(MAX_SIGNATURES) {
        let Some(document) = absent_is_none(session.manifest(&manifest.digest).await)? else {
            continue;
        };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&document.bytes) else {
            continue;
        };
        let bundle = manifest
            .layers
            .iter()
            .find(|layer| layer.media_type.starts_with(BUNDLE) && layer.is_sane());
        let Some(layer) = bundle else { continue };
        if let Some(json) = absent_is_none(session.document(&layer.digest, layer.size).await)? {
            found.extend(Signature::from_bundle(&json));
        }
    }
    Ok(found)
}

/// Absent and damaged is the same as none; a registry that can't be asked is not.
fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::RegistryUnavailable | ErrorKind::Unauthorized) => Err(error),
        Err(error) => {
            tracing::debug!(%error, "a signature can't be used");
            Ok(None)
        }
    }
}
