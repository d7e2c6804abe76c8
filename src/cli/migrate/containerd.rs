//! Images of containerd: its metadata say what they are called, its content store has their blobs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Found,
    bolt::{Db, Item},
    layout::{Layout, Top},
};

/// Largest manifest or index that is looked into.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes in indexes.
const MAX_DEPTH: usize = 4;

/// Where an image's description is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    content: PathBuf,
    media_type: String,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

/// The images in the containerd namespace `namespace`; `root` is containerd's directory. Blocking.
///
/// # Errors
/// When the metadata can't be read.
pub fn list(root: &Path, namespace: &str) -> io::Result<Vec<Found>> {
    let path = root.join("io.containerd.metadata.v1.bolt/meta.db");
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let db = Db::copy(&path).map_err(at)?;
    let content = root.join("io.containerd.content.v1.content/blobs");
    let mut all: BTreeMap<String, Found> = BTreeMap::new();
    let Some(images) = db.bucket(&["v1", namespace, "images"]).map_err(at)? else {
        return Ok(Vec::new());
    };
    for (name, item) in images.entries().map_err(at)? {
        let Item::Bucket(image) = item else { continue };
        let Some(Item::Bucket(target)) = image.get("target").map_err(at)? else {
            continue;
        };
        let (Some(digest), Some(media_type)) = (
            target.text("digest").map_err(at)?,
            target.text("mediatype").map_err(at)?,
        ) else {
            continue;
        };
        let found = all.entry(digest.clone()).or_insert_with(|| Found {
            digest,
            names: Vec::new(),
            source: super::Source::Containerd(Target {
                content: content.clone(),
                media_type,
            }),
        });
        // CRI's plugin has the id as a name as well.
        let name = String::from_utf8_lossy(name).into_owned();
        if !name.starts_with("sha256:") {
            found.names.push(name);
        }
    }
    Ok(all.into_values().collect())
}

impl Target {
    /// Writes the image `found` as an archive. Blocking.
    ///
    /// # Errors
    /// When a blob is not there, or the archive can't be written.
    pub fn write(&self, found: &Found, out: impl Write) -> io::Result<()> {
        let size = fs::metadata(self.path(&found.digest)?)
            .map_err(|error| missing(&found.digest, &error))?
            .len();
        let mut layout = Layout::begin(
            out,
            &Top {
                digest: &found.digest,
                media_type: &self.media_type,
                size,
                names: &found.names,
            },
        )?;
        self.document(&found.digest, MAX_DEPTH, true, &mut layout)?;
        layout.finish()
    }

    /// Writes a manifest or index and what it leads to. Of an index containerd mostly has what is for this machine.
    fn document(&self, digest: &str, depth: usize, wanted: bool, layout: &mut Layout<impl Write>) -> io::Result<()> {
        let path = self.path(digest)?;
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !wanted => return Ok(()),
            Err(error) => return Err(missing(digest, &error)),
            Ok(about) => about.len(),
        };
        if size > MAX_DOCUMENT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{digest} is too large for a manifest"),
            ));
        }
        let bytes = fs::read(&path).map_err(|error| missing(digest, &error))?;
        layout.blob(digest, bytes.len() as u64, bytes.as_slice())?;
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("manifest {digest}: {error}")))?;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its indexes are nested too deep",
            ));
        };
        for manifest in &document.manifests {
            self.document(&manifest.digest, depth, false, layout)?;
        }
        let blobs: Vec<&str> = document
            .config
            .iter()
            .chain(&document.layers)
            .map(|one| one.digest.as_str())
            .collect();
        // Of another machine's image only the manifest may be there.
        let is_there = |digest: &&str| self.path(digest).is_ok_and(|path| path.exists());
        if !wanted
            && !blobs.iter().all(is_there)
            && !document
                .config
                .as_ref()
                .is_some_and(|one| is_there(&one.digest.as_str()))
        {
            return Ok(());
        }
        for digest in blobs {
            let file = File::open(self.path(digest)?).map_err(|error| missing(digest, &error))?;
            let size = file.metadata()?.len();
            layout.blob(digest, size, file)?;
        }
        Ok(())
    }

    fn path(&self, digest: &str) -> io::Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex =
            hex.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("digest {digest:?} is not sha256")))?;
        Ok(self.content.join("sha256").join(hex))
    }
}

fn missing(digest: &str, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; containerd has let go of it (discard_unpacked_layers), so it has to be pulled",
        _ => "",
    };
    io::Error::new(
        error.kind(),
        format!("blob {digest} of the content store: {error}{hint}"),
    )
}
