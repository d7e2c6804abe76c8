//! What refers to a manifest: signatures, lists of contents and the like (OCI distribution specification, "Listing referrers").

use super::{Document, Session, digest_of, endpoint::Endpoint};
use crate::images::{Error, ErrorKind, Result, manifest::OCI_INDEX};

impl Session {
    /// The index of manifests that refer to the manifest `digest`, by tag where the registry can't be asked for it; `None` if
    /// there is none.
    ///
    /// # Errors
    /// When no place that may know can be asked.
    pub async fn referrers(&self, digest: &str) -> Result<Option<Document>> {
        let mut unavailable = None;
        // Files that name capabilities may be older than this one: without a host that has it, all are asked.
        let named = self.endpoints().iter().any(|endpoint| endpoint.referrers);
        let asked = |endpoint: &&Endpoint| if named { endpoint.referrers } else { endpoint.digests };
        for endpoint in self.endpoints().iter().filter(asked) {
            match self.referrers_from(endpoint, digest).await {
                Ok(document) => return Ok(Some(document)),
                Err(error) if error.kind() == ErrorKind::RegistryUnavailable => unavailable = Some(error),
                Err(error) => tracing::debug!(%error, "a registry does not tell what refers to a manifest"),
            }
        }
        match self.manifest(&fallback_tag(digest)).await {
            Ok(document) => Ok(Some(document)),
            Err(error) if error.kind() == ErrorKind::NotFound => unavailable.map_or(Ok(None), Err),
            Err(error) => Err(error),
        }
    }

    async fn referrers_from(&self, endpoint: &Endpoint, digest: &str) -> Result<Document> {
        let what = format!("what refers to {digest}");
        let path = format!("referrers/{digest}");
        let (_, bytes) = self.small(endpoint, &path, OCI_INDEX, &what).await?;
        Ok(Document {
            digest: digest_of(&bytes),
            bytes,
            media_type: OCI_INDEX.to_owned(),
        })
    }
}

impl Session {
    /// Notes in a registry that does not do it itself that `document`, an artifact of type `kind`, refers to the manifest
    /// `subject`: in the index under the tag that stands for what refers to it.
    ///
    /// # Errors
    /// When the index can't be read or sent.
    pub async fn add_referrer(
        &self,
        endpoint: &Endpoint,
        subject: &str,
        kind: &str,
        document: &Document,
    ) -> Result<()> {
        let tag = fallback_tag(subject);
        let known = match self.manifest_from(endpoint, &tag, &format!("manifest {tag}")).await {
            Ok(known) => Some(known),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let fresh = || serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
        let mut index = match &known {
            None => fresh(),
            Some(known) => serde_json::from_slice(&known.bytes).unwrap_or_else(|_| fresh()),
        };
        let annotations = serde_json::from_slice::<serde_json::Value>(&document.bytes)
            .ok()
            .and_then(|manifest| manifest.get("annotations").cloned());
        let mut descriptor = serde_json::json!({
            "mediaType": document.media_type, "digest": document.digest, "size": document.bytes.len(), "artifactType": kind,
        });
        if let Some(annotations) = annotations {
            descriptor["annotations"] = annotations;
        }
        let Some(manifests) = index.get_mut("manifests").and_then(serde_json::Value::as_array_mut) else {
            return Err(Error::Registry {
                what: format!("what refers to {subject}"),
                host: endpoint.host.clone(),
                reason: format!("under the tag {tag} is something else than an index"),
            });
        };
        if manifests.iter().any(|one| one["digest"] == document.digest.as_str()) {
            return Ok(());
        }
        manifests.push(descriptor);
        let bytes = index.to_string().into_bytes();
        let digest = digest_of(&bytes);
        self.put_manifest(endpoint, &tag, OCI_INDEX, bytes.into(), &digest)
            .await
            .map(drop)
    }
}

/// The tag that has the index in registries that don't know the question.
fn fallback_tag(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}
