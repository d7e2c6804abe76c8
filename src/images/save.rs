//! Images as archives: Docker's format, which `docker load` and most tools read, and OCI image layouts.
//!
//! Layers go out uncompressed: that is how they can be given back byte for byte, and their diff IDs are their digests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Error, Image, Layer, Reference, Result, manifest, outlet::Outlet, recipe::Archive, registry::digest_of, room::Room,
    tarball::Tarball,
};

/// Bytes of an artifact's file that are read at once.
const PIECE: usize = 128 << 10;

/// How an archive is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As `docker save`: `manifest.json`, `repositories`, a directory for each layer.
    Docker,
    /// An OCI image layout.
    Oci,
}

/// An image and the names under which it was asked for.
pub(super) struct Wanted {
    pub image: Arc<Image>,
    pub names: Vec<Reference>,
}

/// Finds what `specs` name, each image once.
///
/// # Errors
/// When there is no such image.
pub(super) fn wanted(specs: &[String], find: impl Fn(&str) -> Option<Arc<Image>>) -> Result<Vec<Wanted>> {
    let mut all: Vec<Wanted> = Vec::new();
    for spec in specs {
        let image = find(spec).ok_or_else(|| Error::NoImage(spec.clone()))?;
        let reference = Reference::parse(spec).ok();
        // An id or its beginning is a valid name too; it counts as one only if the image has it.
        let name = reference.filter(|name| name.tagged().is_some_and(|tagged| image.tags.contains(&tagged)));
        let at = all.iter().position(|other| other.image.id == image.id);
        let at = at.unwrap_or_else(|| {
            let names = Vec::new();
            all.push(Wanted { image, names });
            all.len() - 1
        });
        if let Some(name) = name
            && !all[at].names.contains(&name)
        {
            all[at].names.push(name);
        }
    }
    Ok(all)
}

/// What can be checked before the first byte: that all layers can be given back, and said in this format.
///
/// # Errors
/// When one can't.
pub(super) fn check(wanted: &[Wanted], format: Format) -> Result<()> {
    let artifact = wanted.iter().find(|wanted| wanted.image.artifact.is_some());
    if let Some(Wanted { image, .. }) = artifact.filter(|_| format == Format::Docker) {
        return Err(Error::BadContent {
            what: format!("artifact {}", image.id),
            reason: "docker's form of an archive has only images; an OCI layout has artifacts too".into(),
        });
    }
    for pin in wanted.iter().flat_map(|wanted| &wanted.image.pins) {
        pin.archive()?;
    }
    Ok(())
}

/// Writes an archive of `wanted`. Blocking.
///
/// # Errors
/// When a layer is damaged, or the reader has gone.
pub(super) fn save(room: &Room, wanted: &[Wanted], format: Format, out: &mut Outlet) -> Result<()> {
    let mut tar = Tarball::new(out);
    match format {
        Format::Docker => docker(room, wanted, &mut tar)?,
        Format::Oci => layout(room, wanted, &mut tar)?,
    }
    tar.finish().map(drop).map_err(sent)
}

fn docker(room: &Room, wanted: &[Wanted], tar: &mut Tarball<&mut Outlet>) -> Result<()> {
    let mut list = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut written = BTreeSet::new();
    for Wanted { image, names } in wanted {
        let config = format!("{}.json", hex(&image.id));
        if written.insert(config.clone()) {
            document(tar, &config, &room.index.config(&image.id)?)?;
        }
        let mut layers = Vec::new();
        for (layer, pin) in image.layers.iter().zip(&image.pins) {
            let path = format!("{}/layer.tar", hex(&layer.diff_id));
            if written.insert(path.clone()) {
                layer_file(tar, &path, layer, pin.archive()?)?;
            }
            layers.push(path);
        }
        let top = image.layers.last().map(|layer| hex(&layer.diff_id)).unwrap_or_default();
        for name in names {
            let tags = repositories.entry(familiar(name)).or_default();
            tags.insert(name.tag.clone().unwrap_or_default(), top.to_owned());
        }
        let tags: Vec<String> = names
            .iter()
            .map(|name| format!("{}:{}", familiar(name), name.tag.as_deref().unwrap_or_default()))
            .collect();
        list.push(json!({ "Config": config, "RepoTags": tags, "Layers": layers }));
    }
    document(tar, "manifest.json", json!(list).to_string().as_bytes())?;
    document(tar, "repositories", json!(repositories).to_string().as_bytes())
}

fn layout(room: &Room, wanted: &[Wanted], tar: &mut Tarball<&mut Outlet>) -> Result<()> {
    let mut list = Vec::new();
    let mut blobs = BTreeMap::new();
    for Wanted { image, names } in wanted {
        let config = room.index.config(&image.id)?;
        let descriptor = if let Some(artifact) = &image.artifact {
            let (digest, own) = artifact_config(room, image, &config)?;
            let descriptor = json!({
                "mediaType": manifest::media_type(&config), "digest": image.id, "size": config.len(),
                "artifactType": artifact.kind,
            });
            blobs.insert(digest, own);
            descriptor
        } else {
            let manifest = as_is(room, image)?.map_or_else(|| described(image, config.len() as u64), Ok)?;
            let descriptor = json!({
                "mediaType": manifest::OCI_MANIFEST, "digest": digest_of(&manifest), "size": manifest.len(),
                "platform": { "os": "linux", "architecture": image.config.architecture },
            });
            blobs.insert(digest_of(&manifest), manifest);
            descriptor
        };
        blobs.insert(image.id.clone(), config);
        if names.is_empty() {
            list.push(descriptor.clone());
        }
        for name in names {
            let mut named = descriptor.clone();
            named["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag,
            });
            list.push(named);
        }
    }
    document(tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({ "schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": list });
    document(tar, "index.json", index.to_string().as_bytes())?;
    for (digest, bytes) in &blobs {
        document(tar, &format!("blobs/sha256/{}", hex(digest)), bytes)?;
    }
    // An artifact's file may be the same as its configuration.
    let mut written: BTreeSet<&String> = blobs.keys().collect();
    for image in wanted.iter().map(|wanted| &wanted.image) {
        for (at, (layer, pin)) in image.layers.iter().zip(&image.pins).enumerate() {
            if let Some(name) = image.artifact.as_ref().and_then(|artifact| artifact.files.get(at)) {
                if written.insert(&layer.digest) {
                    artifact_file(tar, layer, &pin.path().join(name))?;
                }
            } else if written.insert(&layer.diff_id) {
                let path = format!("blobs/sha256/{}", hex(&layer.diff_id));
                layer_file(tar, &path, layer, pin.archive()?)?;
            }
        }
    }
    Ok(())
}

/// The configuration of an artifact with this manifest, and its digest.
fn artifact_config(room: &Room, image: &Image, manifest: &[u8]) -> Result<(String, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct Described {
        config: manifest::Entry,
    }
    let bad = |reason: String| Error::BadContent {
        what: format!("artifact {}", image.id),
        reason,
    };
    let described: Described =
        serde_json::from_slice(manifest).map_err(|error| bad(format!("its manifest can't be read: {error}")))?;
    let digest = described.config.digest;
    let document = room.index.document(&image.id, &digest)?;
    let document = document.ok_or_else(|| bad("its configuration is not here; pull it again".into()))?;
    Ok((digest, document.bytes.to_vec()))
}

/// Writes a file of an artifact, which must have its digest.
fn artifact_file(tar: &mut Tarball<&mut Outlet>, layer: &Layer, path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut checked = Checked::new(io::BufReader::with_capacity(PIECE, file), &layer.digest);
    tar.file(
        &format!("blobs/sha256/{}", hex(&layer.digest)),
        layer.size,
        &mut checked,
    )
    .map_err(sent)?;
    checked.check().map_err(sent)
}

/// The manifest that the image came by, if it is an OCI one of the same uncompressed layers.
fn as_is(room: &Room, image: &Image) -> Result<Option<Vec<u8>>> {
    if image.layers.iter().any(|layer| layer.digest != layer.diff_id) {
        return Ok(None);
    }
    let document = room.index.manifest(&image.id)?;
    Ok(document
        .filter(manifest::is_oci)
        .map(|document| document.bytes.to_vec()))
}

/// A manifest for the layers as they go out.
fn described(image: &Image, config_size: u64) -> Result<Vec<u8>> {
    let layers: Vec<Layer> = image
        .layers
        .iter()
        .zip(&image.pins)
        .map(|(layer, pin)| {
            Ok(Layer {
                digest: layer.diff_id.clone(),
                diff_id: layer.diff_id.clone(),
                size: pin.archive()?.length(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(manifest::compose(&image.id, config_size, &layers))
}

fn document(tar: &mut Tarball<&mut Outlet>, path: &str, bytes: &[u8]) -> Result<()> {
    tar.file(path, bytes.len() as u64, bytes).map_err(sent)
}

/// Writes a layer's archive, which must have its digest.
fn layer_file(tar: &mut Tarball<&mut Outlet>, path: &str, layer: &Layer, archive: Archive) -> Result<()> {
    let length = archive.length();
    let mut checked = Checked::new(archive, &layer.diff_id);
    tar.file(path, length, &mut checked).map_err(sent)?;
    checked.check().map_err(sent)
}

/// A layer's archive on its way out, of which nobody may get the whole unless it is the right one.
pub(super) struct Checked<R> {
    archive: R,
    digest: Sha256,
    expected: String,
    /// What was read and is held back until more is there, or the digest is known to be right.
    held: Option<u8>,
    done: bool,
}

impl<R: Read> Checked<R> {
    pub fn new(archive: R, diff_id: &str) -> Self {
        Self {
            archive,
            digest: Sha256::new(),
            expected: diff_id.to_owned(),
            held: None,
            done: false,
        }
    }

    /// Whether all has been read and was right.
    ///
    /// # Errors
    /// If not.
    pub fn check(&mut self) -> io::Result<()> {
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a layer is longer than it was",
            )),
        }
    }

    fn verify(&mut self) -> io::Result<()> {
        self.done = true;
        let got = format!("sha256:{}", hex::encode(std::mem::take(&mut self.digest).finalize()));
        if got == self.expected {
            return Ok(());
        }
        Err(io::Error::other(Error::Mismatch {
            what: "a layer that is given back".into(),
            expected: self.expected.clone(),
            got,
        }))
    }
}

impl<R: Read> Read for Checked<R> {
    /// The last byte comes only with the right digest.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || (self.done && self.held.is_none()) {
            return Ok(0);
        }
        let mut one = [0];
        loop {
            // A buffer of one byte must still make progress.
            let into: &mut [u8] = if buffer.len() > 1 { &mut buffer[1..] } else { &mut one };
            let read = if self.done { 0 } else { self.archive.read(into)? };
            self.digest.update(&into[..read]);
            if read == 0 {
                if !self.done {
                    self.verify()?;
                }
                return Ok(match self.held.take() {
                    Some(byte) => {
                        buffer[0] = byte;
                        1
                    }
                    None => 0,
                });
            }
            let last = into[read - 1];
            match self.held.replace(last) {
                Some(byte) => {
                    buffer[0] = byte;
                    return Ok(read);
                }
                None if read > 1 => {
                    buffer.copy_within(1..read, 0);
                    return Ok(read - 1);
                }
                None => {}
            }
        }
    }
}

/// The error of writing to the stream; what is ours comes back as it was.
pub(super) fn sent(error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or_else(|| Error::ShuttingDown("images"), |inner| *inner);
    }
    if error.get_ref().is_some_and(|inner| inner.is::<super::recipe::Error>()) {
        let inner = error
            .into_inner()
            .and_then(|inner| inner.downcast::<super::recipe::Error>().ok());
        return inner.map_or_else(|| Error::ShuttingDown("images"), |inner| Error::Recipe(*inner));
    }
    Error::BadContent {
        what: "the stream".into(),
        reason: error.to_string(),
    }
}

/// As people write a name: without Docker Hub's host and its default namespace.
fn familiar(name: &Reference) -> String {
    let full = name.name();
    let short = full.strip_prefix("docker.io/").unwrap_or(&full);
    short
        .strip_prefix("library/")
        .filter(|rest| !rest.contains('/'))
        .unwrap_or(short)
        .to_owned()
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_comes_only_with_the_right_digest() {
        for content in [&b""[..], b"a", b"ab", &[7; 5000]] {
            for size in [1, 2, 3, 4096] {
                let digest = digest_of(content);
                let read_all = |digest: &str| {
                    let mut checked = Checked::new(content, digest);
                    let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
                    loop {
                        match checked.read(&mut buffer) {
                            Ok(0) => return (all, checked.check()),
                            Ok(read) => all.extend_from_slice(&buffer[..read]),
                            Err(error) => return (all, Err(error)),
                        }
                    }
                };
                let (all, end) = read_all(&digest);
                end.unwrap();
                assert_eq!(all, content);
                let (all, end) = read_all("sha256:0");
                assert!(end.is_err() && (all.len() < content.len() || content.is_empty()));
            }
        }
    }

    #[test]
    fn names_are_as_people_write_them() {
        for (name, short) in [
            ("busybox", "busybox"),
            ("a/b:1", "a/b"),
            ("localhost:5000/library/x", "localhost:5000/library/x"),
        ] {
            assert_eq!(familiar(&Reference::parse(name).unwrap()), short);
        }
    }
}
