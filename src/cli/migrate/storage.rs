//! Images of containers/storage, which CRI-O and podman have, with its overlay driver: layers are unpacked, and beside each lies
//! what gives its archive back (tar-split).

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{
    Found,
    layout::{Layout, Top},
};

/// Layers one upon another.
const MAX_LAYERS: usize = 500;

/// Where an image's pieces are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    root: PathBuf,
    id: String,
    /// Bottom first.
    layers: Vec<LayerItem>,
}

#[derive(Deserialize)]
struct ImageItem {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    layer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct LayerItem {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default)]
    diff_digest: String,
}

/// The images below `root`. Blocking.
///
/// # Errors
/// When the lists can't be read.
pub fn list(root: &Path) -> io::Result<Vec<Found>> {
    let images: Vec<ImageItem> = read(&root.join("overlay-images/images.json"))?;
    let layers: Vec<LayerItem> = read(&root.join("overlay-layers/layers.json"))?;
    let layers: HashMap<&str, &LayerItem> = layers.iter().map(|layer| (layer.id.as_str(), layer)).collect();
    let mut all = Vec::new();
    for image in images {
        let mut chain = Vec::new();
        let mut next = image.layer.as_str();
        while let Some(layer) = layers.get(next).filter(|_| chain.len() < MAX_LAYERS) {
            chain.push((*layer).clone());
            next = &layer.parent;
        }
        chain.reverse();
        all.push(Found {
            digest: image.digest,
            names: image.names,
            source: super::Source::Storage(Stored {
                root: root.to_owned(),
                id: image.id,
                layers: chain,
            }),
        });
    }
    Ok(all)
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> io::Result<T> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::read(path) {
        // Nothing was ever stored.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(at(error)),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| at(io::Error::other(error))),
    }
}

impl Stored {
    /// Writes the image `found` as an archive, its layers under their diff IDs. Blocking.
    ///
    /// # Errors
    /// When a piece is missing, or the archive can't be written.
    pub fn write(&self, found: &Found, out: impl Write) -> io::Result<()> {
        let manifest = self
            .piece(&format!("manifest-{}", found.digest))
            .or_else(|_| self.piece("manifest"))?;
        let config = self.piece(&format!("sha256:{}", self.id))?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&manifest)));
        let mut layout = Layout::begin(
            out,
            &Top {
                digest: &digest,
                media_type: &media_type(&manifest),
                size: manifest.len() as u64,
                names: &found.names,
            },
        )?;
        layout.blob(&digest, manifest.len() as u64, manifest.as_slice())?;
        layout.blob(&format!("sha256:{}", self.id), config.len() as u64, config.as_slice())?;
        for layer in &self.layers {
            let at = |error: io::Error| io::Error::new(error.kind(), format!("layer {}: {error}", layer.id));
            let size = Split::open(&self.root, &layer.id).and_then(Split::size).map_err(at)?;
            let archive = Split::open(&self.root, &layer.id).map_err(at)?;
            layout.blob(&layer.diff_digest, size, archive).map_err(at)?;
        }
        layout.finish()
    }

    /// What is kept of the image under `key`.
    fn piece(&self, key: &str) -> io::Result<Vec<u8>> {
        let plain = key
            .bytes()
            .all(|byte| byte == b'.' || byte.is_ascii_digit() || byte.is_ascii_lowercase());
        let name = match plain {
            true => key.to_owned(),
            false => format!("={}", STANDARD.encode(key)),
        };
        let path = self.root.join("overlay-images").join(&self.id).join(name);
        fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }
}

fn media_type(manifest: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed = serde_json::from_slice::<Typed>(manifest).ok();
    typed
        .and_then(|typed| typed.media_type)
        .unwrap_or_else(|| "application/vnd.oci.image.manifest.v1+json".to_owned())
}

/// A layer's archive, put together from the pieces between its files and the files.
struct Split {
    items: Items,
    directory: File,
    current: Piece,
}

type Items = Box<dyn Iterator<Item = serde_json::Result<SplitItem>>>;

enum Piece {
    Bytes(io::Cursor<Vec<u8>>),
    File { data: io::Take<File>, name: String },
}

#[derive(Deserialize)]
struct SplitItem {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    /// The name where it is not UTF-8.
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    payload: Option<String>,
}

/// Kinds of [`SplitItem`].
const FILE: u8 = 1;
const SEGMENT: u8 = 2;

impl Split {
    fn open(root: &Path, layer: &str) -> io::Result<Self> {
        let path = root.join("overlay-layers").join(format!("{layer}.tar-split.gz"));
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let items = io::BufReader::new(flate2::read::GzDecoder::new(File::open(&path).map_err(at)?));
        Ok(Self {
            items: Box::new(serde_json::Deserializer::from_reader(items).into_iter()),
            directory: File::open(root.join("overlay").join(layer).join("diff"))?,
            current: Piece::Bytes(io::Cursor::default()),
        })
    }

    /// Bytes of the archive; no file is read for it.
    fn size(mut self) -> io::Result<u64> {
        self.items.try_fold(0_u64, |sum, item| {
            let item = item.map_err(io::Error::other)?;
            Ok(sum
                + match item.kind {
                    SEGMENT => segment(&item)?.len() as u64,
                    _ => item.size,
                })
        })
    }

    fn next(&mut self) -> io::Result<bool> {
        let Some(item) = self.items.next() else {
            return Ok(false);
        };
        let item = item.map_err(io::Error::other)?;
        self.current = match item.kind {
            SEGMENT => Piece::Bytes(io::Cursor::new(segment(&item)?)),
            FILE if item.size == 0 => Piece::Bytes(io::Cursor::default()),
            FILE => {
                let raw = item.name_raw.as_ref().map(|raw| STANDARD.decode(raw));
                let name = raw
                    .transpose()
                    .map_err(io::Error::other)?
                    .unwrap_or(item.name.into_bytes());
                let shown = String::from_utf8_lossy(&name).into_owned();
                let file = open(&self.directory, &name)
                    .map_err(|error| io::Error::new(error.kind(), format!("file {shown:?}: {error}")))?;
                Piece::File {
                    data: file.take(item.size),
                    name: shown,
                }
            }
            other => {
                return Err(io::Error::other(format!(
                    "its pieces have one of type {other}, which is not known"
                )));
            }
        };
        Ok(true)
    }
}

/// Opens a file of a layer, without following anything out of it.
fn open(directory: &File, name: &[u8]) -> io::Result<File> {
    use std::os::unix::ffi::OsStrExt as _;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let name = std::ffi::OsStr::from_bytes(name);
    Ok(openat2(directory, Path::new(name), how)?.into())
}

fn segment(item: &SplitItem) -> io::Result<Vec<u8>> {
    let payload = item.payload.as_deref().unwrap_or_default();
    STANDARD.decode(payload).map_err(io::Error::other)
}

impl Read for Split {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.current {
                Piece::Bytes(bytes) => bytes.read(buffer)?,
                Piece::File { data, name } => {
                    let read = data.read(buffer)?;
                    if read == 0 && data.limit() > 0 {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            format!("file {name:?} is shorter than it was"),
                        ));
                    }
                    read
                }
            };
            if read > 0 || !self.next()? {
                return Ok(read);
            }
        }
    }
}
