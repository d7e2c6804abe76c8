//! Manifests and indexes, of OCI and of Docker, checked for what they could do to us.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Error, Layer, Result, platform::Host, reference::is_digest, registry::Document};

/// What is asked for, as an `Accept` header.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Media types of OCI's documents.
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const INDEXES: [&str; 2] = [OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = [OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"];
/// A layer that is not compressed, and one that is.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// overlayfs takes this many lower directories.
const MAX_LAYERS: usize = 500;
/// Longest name of an artifact's file.
const MAX_TITLE: usize = 1024;
/// Addresses beside the registry at which one layer is looked for.
const MAX_URLS: usize = 4;
/// Largest layer, compressed.
const MAX_LAYER: u64 = 1 << 40;

/// What a document turned out to be.
#[derive(Debug)]
pub(super) enum Parsed {
    /// The digest of the manifest in it that fits this machine.
    Index {
        chosen: String,
    },
    Manifest(Manifest),
    Artifact(Artifact),
}

/// The manifest of something that is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    /// Its type.
    pub kind: String,
    pub config: Descriptor,
    /// Files by their names, which are relative paths.
    pub files: Vec<(String, Descriptor)>,
    /// Digest of the manifest that it refers to.
    pub subject: Option<String>,
}

impl Artifact {
    /// Bytes of the blobs.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(_, file)| file.size).sum::<u64>() + self.config.size
    }
}

/// The manifest of one image. Layers have no diff IDs yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub digest: String,
    pub size: u64,
    /// Where else than in the registry a layer is that may not be passed on; few, by HTTPS.
    pub urls: Vec<String>,
    /// A layer's table of contents, with which it can be used before it is here.
    pub toc: Option<Toc>,
}

/// Where a layer's table of contents is, and what vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Toc {
    /// Its place is in the blob's footer; the digest is that of the JSON (stargz-snapshotter, docs/estargz.md).
    EStargz { digest: String },
    /// Bytes of the blob, compressed, whose digest this is, and their length unpacked (containers/storage,
    /// docs/containers-storage-zstd-chunked.md).
    ZstdChunked {
        digest: String,
        offset: u64,
        length: u64,
        unpacked: u64,
    },
}

impl Manifest {
    /// Bytes of the blobs.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum::<u64>() + self.config.size
    }

    /// Where else than in the registry the layer `digest` may be.
    pub fn elsewhere(&self, digest: &str) -> &[String] {
        let layer = self.layers.iter().find(|layer| layer.digest == digest);
        layer.map_or(&[], |layer| &layer.urls)
    }

    /// The layers with their diff IDs, which the configuration gives.
    ///
    /// # Errors
    /// When there are not as many, or one is malformed.
    pub fn with_diff_ids(&self, diff_ids: &[String]) -> Result<Vec<Layer>> {
        let bad = |reason: String| Error::BadContent {
            what: format!("image configuration {}", self.config.digest),
            reason,
        };
        if diff_ids.len() != self.layers.len() {
            return Err(bad(format!(
                "it lists {} layers, the manifest {}",
                diff_ids.len(),
                self.layers.len()
            )));
        }
        if !diff_ids.iter().all(|diff_id| is_digest(diff_id)) {
            return Err(bad("a diff ID is not a sha256 digest".into()));
        }
        Ok(self
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| Layer {
                digest: layer.digest.clone(),
                diff_id: diff_id.clone(),
                size: layer.size,
            })
            .collect())
    }
}

/// Reads `document` and, in an index, chooses what fits `host`.
///
/// # Errors
/// When it is neither, is ambiguous, has nothing for this machine, or has values out of bounds.
pub(super) fn parse(document: &Document, host: &Host) -> Result<Parsed> {
    let bad = |reason: String| Error::BadContent {
        what: format!("manifest {}", document.digest),
        reason,
    };
    let file: File =
        serde_json::from_slice(&document.bytes).map_err(|error| bad(format!("it can't be read: {error}")))?;
    // A document that is both could be read in two ways under one digest.
    if file.manifests.is_some() && (file.layers.is_some() || file.config.is_some()) {
        return Err(bad("it is both an index and a manifest".into()));
    }
    let media_type = file.media_type.as_deref().unwrap_or(&document.media_type);
    let known = INDEXES.contains(&media_type) || MANIFESTS.contains(&media_type);
    if file.schema_version == 1 || media_type.contains("docker.distribution.manifest.v1+") {
        return Err(bad(
            "it has schema 1, Docker's before version 1.10, which is not supported: push the image again with a newer tool".into(),
        ));
    }
    if file.schema_version != 2 || (!known && file.media_type.is_some()) {
        return Err(bad(format!("media type {media_type:?} is not supported")));
    }
    if let Some(manifests) = file.manifests {
        if MANIFESTS.contains(&media_type) {
            return Err(bad("it says that it is a manifest and is an index".into()));
        }
        let chosen = host
            .choose(&manifests)
            .ok_or_else(|| bad(format!("it has no image for {host}")))?;
        let digest = chosen.digest.clone();
        return if is_digest(&digest) {
            Ok(Parsed::Index { chosen: digest })
        } else {
            Err(bad(other_digest(&digest)))
        };
    }
    if INDEXES.contains(&media_type) {
        return Err(bad("it says that it is an index and is none".into()));
    }
    let (Some(config), Some(layers)) = (file.config, file.layers) else {
        return Err(bad("it has no configuration or no layers".into()));
    };
    let descriptor = |entry: &Entry| {
        if !is_digest(&entry.digest) {
            return Err(bad(other_digest(&entry.digest)));
        }
        match u64::try_from(entry.size) {
            Ok(size) if size <= MAX_LAYER => Ok(Descriptor {
                digest: entry.digest.clone(),
                size,
                urls: entry.elsewhere(),
                toc: entry.toc(),
            }),
            _ => Err(bad(format!("a size of {} bytes is out of bounds", entry.size))),
        }
    };
    if layers.len() > MAX_LAYERS {
        return Err(bad(format!("{} layers are too many", layers.len())));
    }
    // Docker's first manifests of schema 2 called the configuration that.
    let early = media_type == MANIFESTS[1]
        && config.media_type == "application/octet-stream"
        && layers.iter().all(|layer| is_layer(&layer.media_type));
    if !early && !config.media_type.is_empty() && !CONFIGS.contains(&config.media_type.as_str()) {
        let mut files: Vec<(String, Descriptor)> = Vec::with_capacity(layers.len());
        for layer in &layers {
            let blob = descriptor(layer)?;
            let name = file_name(layer, &blob).map_err(|reason| bad(format!("file {:?} {reason}", layer.title())))?;
            if files.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("it has two files named {name:?}")));
            }
            files.push((name, blob));
        }
        if files.is_empty() {
            return Err(bad("it is no image, and has no files".into()));
        }
        return Ok(Parsed::Artifact(Artifact {
            kind: file
                .artifact_type
                .filter(|kind| !kind.is_empty())
                .unwrap_or(config.media_type.clone()),
            config: descriptor(&config)?,
            files,
            subject: file
                .subject
                .map(|subject| subject.digest)
                .filter(|digest| is_digest(digest)),
        }));
    }
    if let Some(layer) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(bad(format!("layer media type {:?} is not supported", layer.media_type)));
    }
    Ok(Parsed::Manifest(Manifest {
        config: descriptor(&config)?,
        layers: layers.iter().map(descriptor).collect::<Result<_>>()?,
    }))
}

/// Whether the annotations of a manifest or index say that it is of a container's checkpoint: CRI-O's key, or those of
/// checkpointctl (lib/annotations.go), which containerd writes too.
pub(super) fn is_checkpoint(document: &[u8]) -> bool {
    let annotated: Option<Annotated> = serde_json::from_slice(document).ok();
    let annotations = annotated.and_then(|annotated| annotated.annotations);
    annotations
        .unwrap_or_default()
        .keys()
        .any(|key| key == "io.kubernetes.cri-o.annotations.checkpoint.name" || key.starts_with("org.criu.checkpoint."))
}

#[derive(Deserialize)]
struct Annotated {
    annotations: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// What is wrong with a digest that is no SHA-256 of the right form.
fn other_digest(digest: &str) -> String {
    let shown: String = digest.chars().take(20).collect();
    format!("the digest {shown:?}... is not sha256 and 64 lower-case hex digits; other kinds are not supported")
}

/// What a file of an artifact is called: its title, or its digest.
///
/// # Errors
/// Why it can't be called so.
fn file_name(entry: &Entry, blob: &Descriptor) -> std::result::Result<String, &'static str> {
    let title = entry.title();
    if title.is_empty() {
        return Ok(blob.digest.trim_start_matches("sha256:").to_owned());
    }
    if title.len() > MAX_TITLE {
        return Err("has a name that is too long");
    }
    for part in title.split('/') {
        match part {
            "" | "." | ".." => return Err("is not named by a relative path"),
            // overlayfs would take it for the absence of another.
            part if part.starts_with(".wh.") => return Err("has a name that means something else in a layer"),
            part if part.contains(char::is_control) => return Err("has a name that nobody could read"),
            _ => {}
        }
    }
    Ok(title.to_owned())
}

/// An OCI manifest for an image that has none.
pub(super) fn compose(config: &str, config_size: u64, layers: &[Layer]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let media_type = if layer.digest == layer.diff_id {
                LAYER
            } else {
                GZIP_LAYER
            };
            serde_json::json!({ "mediaType": media_type, "digest": layer.digest, "size": layer.size })
        })
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": { "mediaType": CONFIGS[0], "digest": config, "size": config_size },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// What a document says that it is; of OCI's a manifest, if it says nothing.
pub(super) fn media_type(bytes: &[u8]) -> String {
    let file: Option<File> = serde_json::from_slice(bytes).ok();
    file.and_then(|file| file.media_type)
        .unwrap_or_else(|| OCI_MANIFEST.to_owned())
}

/// Whether `document` is an OCI manifest rather than one of Docker's.
pub(super) fn is_oci(document: &Document) -> bool {
    let file: Option<File> = serde_json::from_slice(&document.bytes).ok();
    file.is_some_and(|file| file.media_type.is_none_or(|media_type| media_type == OCI_MANIFEST))
}

/// Archives, however compressed: what they are is seen from their first bytes. Encrypted ones and other things are not.
fn is_layer(media_type: &str) -> bool {
    let plain = media_type
        .strip_suffix("+gzip")
        .or_else(|| media_type.strip_suffix("+zstd"))
        .or_else(|| media_type.strip_suffix(".gzip"))
        .or_else(|| media_type.strip_suffix(".zstd"))
        .unwrap_or(media_type);
    matches!(
        plain,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Entry>>,
    config: Option<Entry>,
    layers: Option<Vec<Entry>>,
    artifact_type: Option<String>,
    subject: Option<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: String,
}

/// A descriptor as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: i64,
    pub platform: Option<super::platform::Platform>,
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    pub urls: Option<Vec<String>>,
}

impl Entry {
    /// Where a layer is that registries need not have (`nondistributable`, Docker's `foreign`): addresses in its descriptor. Of other
    /// things they do not count.
    fn elsewhere(&self) -> Vec<String> {
        if !self.media_type.contains(".nondistributable.") && !self.media_type.contains(".foreign.") {
            return Vec::new();
        }
        let urls = self.urls.iter().flatten().filter(|url| url.starts_with("https://"));
        urls.take(MAX_URLS).cloned().collect()
    }

    /// The table of contents that the descriptor tells of; none if what it says of it makes no sense.
    fn toc(&self) -> Option<Toc> {
        let annotations = self.annotations.as_ref()?;
        let digest = |key: &str| annotations.get(key).filter(|digest| is_digest(digest)).cloned();
        if self.media_type.ends_with("+zstd") {
            let digest = digest("io.github.containers.zstd-chunked.manifest-checksum")?;
            let position = annotations.get("io.github.containers.zstd-chunked.manifest-position")?;
            let mut numbers = position.split(':').map(|number| number.parse::<u64>().ok());
            let mut number = || numbers.next().flatten();
            let (offset, length, unpacked, kind) = (number()?, number()?, number()?, number()?);
            // The only kind that there is: JSON as that of eStargz.
            return (kind == 1 && numbers.next().is_none()).then_some(Toc::ZstdChunked {
                digest,
                offset,
                length,
                unpacked,
            });
        }
        let digest = digest("containerd.io/snapshot/stargz/toc.digest")?;
        Some(Toc::EStargz { digest })
    }

    /// The name that it was given.
    fn title(&self) -> &str {
        let annotations = self.annotations.as_ref();
        annotations
            .and_then(|all| all.get("org.opencontainers.image.title"))
            .map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests;
