//! Images out of archives: Docker's (`docker save`) and OCI image layouts, compressed or not.
//!
//! The archive is read once, as it comes, and never stored: `scan` unpacks whatever may be a layer at once, keeps small
//! documents in memory, and `docker` and `layout` see afterwards which of it makes an image. What an archive says about
//! itself counts only as far as digests confirm it; links in it are followed by name, within the archive.

mod docker;
mod layout;
mod scan;
mod spool;

use std::{collections::HashMap, io::Read, sync::Arc};

use bytes::Bytes;

use super::{
    Error, Layer, Reference, Result, artifact,
    extract::{Channel, Source, decoder},
    index::{Arrival, parse_config},
    layers::Pin,
    manifest,
    pull::sync_file_system,
    registry::{MAX_DOCUMENT, digest_of},
    room::Room,
    trust::Evidence,
};
use scan::Contents;

/// An image that an archive has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: String,
    /// Names that it has got, in full.
    pub names: Vec<String>,
}

/// Where images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// No registry may have them.
    Archive,
    /// Another runtime's store, which had them from registries.
    Runtime,
}

/// An image as an archive describes it.
struct Found {
    /// The bytes of the configuration.
    config: Bytes,
    /// Where in the archive the layers are, bottom first.
    layers: Vec<String>,
    /// What the layers' descriptors promise, if there are any: digest and size of each blob.
    promised: Option<Vec<(String, u64)>>,
    /// Index and manifest with their digests, as they are in the archive; may be empty.
    documents: Vec<(String, Bytes)>,
    names: Vec<Reference>,
    /// It is no image but files; the configuration is the manifest, then.
    artifact: Option<manifest::Artifact>,
}

/// Takes all images out of the archive that comes through `source`. Blocking.
///
/// # Errors
/// When there is none, or the archive or an image in it is damaged, hostile or of a kind that is not supported. No image
/// becomes visible then.
pub(super) fn load(room: &Arc<Room>, source: Channel, origin: Origin) -> Result<Vec<Loaded>> {
    let mut source = Source::new(source);
    let mut contents = {
        let mut archive = decoder(&mut source).map_err(|error| refused(format!("it can't be read: {error}")))?;
        let contents = scan::scan(&mut archive, room)?;
        // A cut in what follows the archive's end is one too, and compressors have checksums there.
        std::io::copy(&mut archive.by_ref(), &mut std::io::sink())
            .map_err(|error| refused(format!("it can't be read to its end: {error}")))?;
        contents
    };
    if !source.skip(u64::MAX) {
        return Err(refused("it was cut off"));
    }
    let found = find(&contents)?;
    let mut arrivals = Vec::with_capacity(found.len());
    let mut pins = HashMap::new();
    for image in found {
        let mut arrival = arrival(room, &mut contents, &mut pins, image, origin)?;
        if origin == Origin::Runtime {
            arrival.pinned = false;
            arrival.action = "migrate";
        }
        arrivals.push(arrival);
    }
    drop(contents);
    // The layers must be durable before a record says that they are there.
    sync_file_system(&room.root)?;
    let mut loaded: Vec<Loaded> = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        let names = arrival.names.iter().filter_map(|(name, _)| name.tagged()).collect();
        let id = arrival.id.clone();
        room.index.add(arrival)?;
        loaded.push(Loaded { id, names });
    }
    Ok(loaded)
}

/// The images in the archive, by its layout's index or Docker's manifest; the latter knows names that the former lacks.
fn find(contents: &Contents) -> Result<Vec<Found>> {
    if contents.document("index.json").is_none() {
        return docker::find(contents);
    }
    let mut found = layout::find(contents)?;
    if contents.document("manifest.json").is_some() && found.iter().any(|image| image.names.is_empty()) {
        for other in docker::find(contents)? {
            for image in found.iter_mut().filter(|image| image.config == other.config) {
                image.names.extend(other.names.iter().cloned());
            }
        }
    }
    Ok(found)
}

/// Makes `image` ready to become visible: its layers belong to the store then.
fn arrival(
    room: &Room,
    contents: &mut Contents,
    pins: &mut HashMap<String, Pin>,
    image: Found,
    origin: Origin,
) -> Result<Arrival> {
    if let Some(artifact) = image.artifact {
        return files(room, contents, artifact, image.config, image.documents, image.names);
    }
    let id = digest_of(&image.config);
    let config = parse_config(&image.config, &id)?;
    let bad = |reason: String| Error::BadContent {
        what: format!("image {id} in the archive"),
        reason,
    };
    if !config.is_for_linux() {
        return Err(bad(format!("it is for {:?}, not for Linux", config.os)));
    }
    if config.diff_ids.len() != image.layers.len() {
        return Err(bad(format!(
            "its configuration lists {} layers, its manifest {}",
            config.diff_ids.len(),
            image.layers.len()
        )));
    }
    let mut layers = Vec::with_capacity(image.layers.len());
    let mut held = Vec::with_capacity(image.layers.len());
    for (at, (path, diff_id)) in image.layers.iter().zip(&config.diff_ids).enumerate() {
        let by_diff_id = scan::blob_path(diff_id);
        // The diff ID, which the image's id vouches for, says as much about the content as the blob's digest.
        let replaced = origin == Origin::Runtime && !contents.has(path) && contents.has(&by_diff_id);
        let layer = contents.layer(if replaced { &by_diff_id } else { path })?;
        if layer.diff_id != *diff_id {
            return Err(Error::Mismatch {
                what: format!("layer {path} of image {id} in the archive"),
                expected: diff_id.clone(),
                got: layer.diff_id.clone(),
            });
        }
        let promised = image.promised.as_ref().and_then(|all| all.get(at));
        if let Some((digest, size)) = promised
            && !replaced
            && (*digest != layer.digest || *size != layer.size)
        {
            return Err(Error::Mismatch {
                what: format!("layer {path} of image {id} in the archive"),
                expected: format!("{digest} of {size} bytes"),
                got: format!("{} of {} bytes", layer.digest, layer.size),
            });
        }
        let (digest, size) = match promised {
            Some((digest, size)) => (digest.clone(), *size),
            None => (layer.digest.clone(), layer.size),
        };
        layers.push(Layer {
            digest,
            diff_id: diff_id.clone(),
            size,
        });
        let pin = match pins.get(diff_id) {
            Some(pin) => pin.clone(),
            None => layer.keep(&room.layers)?,
        };
        pins.insert(diff_id.clone(), pin.clone());
        held.push(pin);
    }
    let mut documents = image.documents;
    if documents.is_empty() {
        let manifest = manifest::compose(&id, image.config.len() as u64, &layers);
        documents.push((digest_of(&manifest), manifest.into()));
    }
    let top = documents.first().map(|(digest, _)| digest.clone()).unwrap_or_default();
    let size = layers.iter().map(|layer| layer.size).sum::<u64>() + image.config.len() as u64;
    Ok(Arrival {
        id,
        size,
        layers,
        pins: held,
        config: image.config,
        documents,
        names: image.names.into_iter().map(|name| (name, top.clone())).collect(),
        pinned: true,
        artifact: None,
        evidence: Evidence::default(),
        action: "load",
    })
}

/// Makes an artifact ready to become visible, whose manifest is `bytes`.
fn files(
    room: &Room,
    contents: &Contents,
    artifact: manifest::Artifact,
    bytes: Bytes,
    mut documents: Vec<(String, Bytes)>,
    names: Vec<Reference>,
) -> Result<Arrival> {
    let checked = |what: &str, blob: &manifest::Descriptor| {
        let raw = contents.raw(&scan::blob_path(&blob.digest), &room.layers)?;
        if (&raw.digest, raw.size) == (&blob.digest, blob.size) {
            return Ok(raw.content);
        }
        Err(Error::Mismatch {
            what: format!("{what} of an artifact in the archive"),
            expected: format!("{} of {} bytes", blob.digest, blob.size),
            got: format!("{} of {} bytes", raw.digest, raw.size),
        })
    };
    let mut config = Vec::new();
    checked("the configuration", &artifact.config)?
        .take(MAX_DOCUMENT as u64)
        .read_to_end(&mut config)
        .map_err(|error| refused(format!("the configuration of an artifact can't be read: {error}")))?;
    if config.len() as u64 != artifact.config.size {
        return Err(refused(format!(
            "{} bytes are too many for a configuration",
            artifact.config.size
        )));
    }
    let (mut layers, mut pins) = (Vec::new(), Vec::new());
    for (name, blob) in &artifact.files {
        let (layer, pin) = artifact::take(room, name, blob, checked(&format!("file {name:?}"), blob)?)?;
        layers.push(layer);
        pins.push(pin);
    }
    let top = documents.first().map(|(digest, _)| digest.clone()).unwrap_or_default();
    // A push needs it, and nothing else has it.
    documents.push((artifact.config.digest.clone(), config.into()));
    Ok(Arrival {
        id: digest_of(&bytes),
        size: artifact.size(),
        layers,
        pins,
        config: bytes,
        documents,
        names: names.into_iter().map(|name| (name, top.clone())).collect(),
        pinned: true,
        artifact: Some(super::Artifact {
            kind: artifact.kind,
            files: artifact.files.into_iter().map(|(name, _)| name).collect(),
        }),
        evidence: Evidence::default(),
        action: "load",
    })
}

/// The error about the archive as a whole.
fn refused(reason: impl Into<String>) -> Error {
    Error::BadContent {
        what: "the archive".into(),
        reason: reason.into(),
    }
}
