//! OCI image layouts (image specification, image-layout.md): `oci-layout`, `index.json`, `blobs/`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    super::{
        Reference, Result,
        manifest::{self, Entry, Parsed},
        platform::Host,
        pull::MAX_DEPTH,
        registry::Document,
    },
    Found, refused,
    scan::{Contents, blob, blob_path},
};

/// What containerd and Docker call an image, in full.
const FULL_NAME: &str = "io.containerd.image.name";
/// A full name, or only a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(flatten)]
    entry: Entry,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// The images for this machine that `index.json` lists; one image under several names is one.
pub(super) fn find(contents: &Contents) -> Result<Vec<Found>> {
    let unreadable = |what: &str, error: serde_json::Error| refused(format!("its {what} can't be read: {error}"));
    let version = contents
        .document("oci-layout")
        .ok_or_else(|| refused("it has an index.json and no oci-layout"))?;
    let version: Version = serde_json::from_slice(version).map_err(|error| unreadable("oci-layout", error))?;
    if !version.version.starts_with("1.") {
        return Err(refused(format!("its layout has version {:?}, not 1", version.version)));
    }
    let index = contents
        .document("index.json")
        .ok_or_else(|| refused("it has no index.json"))?;
    let index: Index = serde_json::from_slice(index).map_err(|error| unreadable("index.json", error))?;
    let host = Host::current();
    let mut found: Vec<Found> = Vec::new();
    for listed in &index.manifests {
        // Attestations, and images for other machines.
        if listed.entry.platform.is_some() && host.choose(std::slice::from_ref(&listed.entry)).is_none() {
            continue;
        }
        let image = image(contents, listed, &host)?;
        match found.iter_mut().find(|other| other.documents == image.documents) {
            Some(other) => other.names.extend(image.names),
            None => found.push(image),
        }
    }
    if found.is_empty() {
        return Err(refused(format!("its index.json lists no image for {host}")));
    }
    Ok(found)
}

fn image(contents: &Contents, listed: &Listed, host: &Host) -> Result<Found> {
    let mut documents = Vec::new();
    let mut digest = listed.entry.digest.clone();
    let mut media_type = listed.entry.media_type.clone();
    for _ in 0..MAX_DEPTH {
        let document = Document {
            bytes: blob(contents, &digest)?,
            digest: digest.clone(),
            media_type: std::mem::take(&mut media_type),
        };
        let parsed = manifest::parse(&document, host)?;
        documents.push((digest, document.bytes));
        match parsed {
            Parsed::Index { chosen } => digest = chosen,
            Parsed::Artifact(artifact) => {
                return Ok(Found {
                    config: documents.last().map(|(_, bytes)| bytes.clone()).unwrap_or_default(),
                    layers: Vec::new(),
                    promised: None,
                    documents,
                    names: name(listed)?.into_iter().collect(),
                    artifact: Some(artifact),
                });
            }
            Parsed::Manifest(manifest) => {
                return Ok(Found {
                    config: blob(contents, &manifest.config.digest)?,
                    layers: manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
                    promised: Some(
                        manifest
                            .layers
                            .into_iter()
                            .map(|layer| (layer.digest, layer.size))
                            .collect(),
                    ),
                    documents,
                    names: name(listed)?.into_iter().collect(),
                    artifact: None,
                });
            }
        }
    }
    Err(refused("its indexes are nested too deep"))
}

/// The image's name, if the annotations have a whole one.
fn name(listed: &Listed) -> Result<Option<Reference>> {
    let get = |key: &str| listed.annotations.as_ref().and_then(|all| all.get(key));
    if let Some(full) = get(FULL_NAME) {
        return Reference::parse(full).map(Some);
    }
    match get(REF_NAME) {
        // A tag alone does not say of what.
        Some(name) if name.contains(['/', ':']) => Reference::parse(name).map(Some),
        _ => Ok(None),
    }
}
