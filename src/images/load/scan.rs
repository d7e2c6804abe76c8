//! Reads an archive of images from its first byte to its last.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    io::{self, Read},
};

use bytes::Bytes;

use super::{
    super::{
        Error, Result,
        extract::{self, Feed, Source, Unpacked},
        layers::{Layers, Pin},
        manifest::{self, Parsed},
        platform::Host,
        recipe,
        reference::is_hex,
        registry::{Document, MAX_DOCUMENT, digest_of},
        room::Room,
        unpack::{self, Kind, TarReader},
    },
    refused,
    spool::{Spool, Stored, Tee},
};

/// Files and links that are remembered.
const MAX_ITEMS: usize = 65_536;
/// Entries of any kind.
const MAX_ENTRIES: usize = 1_000_000;
/// Bytes of all documents, which are held in memory.
const MAX_DOCUMENTS: usize = 32 << 20;
/// Links one after another.
const MAX_LINKS: usize = 16;

/// What is in an archive.
pub(super) struct Contents {
    items: BTreeMap<String, Item>,
}

enum Item {
    Document(Bytes),
    Layer(Layered),
    /// It may have been meant as a layer, or as an artifact's file.
    Useless(String, Option<Stored>),
    /// Another name in the archive; or why there can't be one.
    Link(std::result::Result<String, &'static str>),
}

impl Item {
    /// Whether two entries are the same file or link.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Document(one), Self::Document(other)) => one == other,
            (Self::Layer(one), Self::Layer(other)) => one.digest == other.digest,
            (Self::Link(one), Self::Link(other)) => one == other,
            _ => false,
        }
    }
}

/// A layer of the archive.
pub(super) struct Layered {
    /// Of the blob as it lay in the archive.
    pub digest: String,
    /// Bytes of the same.
    pub size: u64,
    pub diff_id: String,
    held: Option<Held>,
    /// The blob, where it may be an artifact's file.
    raw: Option<Stored>,
}

enum Held {
    /// Unpacked now.
    New(Unpacked),
    /// It was here before.
    Known(Pin),
}

impl Layered {
    /// Makes the layer part of the store.
    pub fn keep(&mut self, layers: &Layers) -> Result<Pin> {
        match self.held.take() {
            Some(Held::Known(pin)) => Ok(pin),
            Some(Held::New(new)) => match layers.pin(&self.diff_id) {
                // A pull has brought it meanwhile.
                Some(pin) => Ok(pin),
                None => layers.add(new.directory, &new.diff_id, new.size),
            },
            // It was kept for another image, which holds it.
            None => layers
                .pin(&self.diff_id)
                .ok_or_else(|| refused(format!("layer {} is used twice", self.diff_id))),
        }
    }
}

impl Contents {
    /// The document at `path`, links not followed.
    pub fn document(&self, path: &str) -> Option<&Bytes> {
        match self.items.get(path) {
            Some(Item::Document(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Whether there is a file or link at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.items.contains_key(path)
    }

    /// The path at which the file is that `path` names, through links.
    pub fn resolve(&self, path: &str) -> Result<String> {
        let mut path = normal(path.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.items.get(&path) {
                Some(Item::Link(Ok(target))) => path.clone_from(target),
                Some(Item::Link(Err(reason))) => return Err(refused(format!("{path:?} is a link that {reason}"))),
                Some(_) => return Ok(path),
                None => return Err(refused(format!("it has no file {path:?}"))),
            }
        }
        Err(refused(format!("{path:?} is one of too many links in a row")))
    }

    /// The layer at `path`, links not followed.
    pub fn layer(&mut self, path: &str) -> Result<&mut Layered> {
        match self.items.get_mut(path) {
            Some(Item::Layer(layer)) => Ok(layer),
            Some(Item::Link(_)) => Err(refused(format!("layer {path:?} is a link"))),
            Some(Item::Document(_)) => Err(refused(format!("layer {path:?} is no archive"))),
            Some(Item::Useless(reason, _)) => Err(refused(format!("layer {path:?}: {reason}"))),
            None => Err(refused(format!("it has no file {path:?}"))),
        }
    }
}

/// A file of the archive as it lay there.
pub(super) struct Raw {
    pub digest: String,
    pub size: u64,
    pub content: Box<dyn Read>,
}

impl Contents {
    /// The file at `path`, links not followed.
    pub fn raw(&self, path: &str, layers: &Layers) -> Result<Raw> {
        let stored = |stored: &Stored| -> Result<Raw> {
            Ok(Raw {
                digest: stored.digest.clone(),
                size: stored.size,
                content: Box::new(stored.open()?),
            })
        };
        match self.items.get(path) {
            Some(Item::Document(bytes)) => Ok(Raw {
                digest: digest_of(bytes),
                size: bytes.len() as u64,
                content: Box::new(io::Cursor::new(bytes.clone())),
            }),
            Some(Item::Useless(_, Some(kept)) | Item::Layer(Layered { raw: Some(kept), .. })) => stored(kept),
            Some(Item::Layer(layer)) if layer.digest == layer.diff_id => {
                let archive = match &layer.held {
                    Some(Held::Known(pin)) => pin.archive()?,
                    Some(Held::New(new)) => recipe::Archive::open(new.directory.path())?,
                    None => layers
                        .pin(&layer.diff_id)
                        .ok_or_else(|| refused(format!("file {path:?} has gone meanwhile")))?
                        .archive()?,
                };
                Ok(Raw {
                    digest: layer.digest.clone(),
                    size: layer.size,
                    content: Box::new(archive),
                })
            }
            Some(Item::Link(_)) => Err(refused(format!("file {path:?} is a link"))),
            Some(Item::Layer(_) | Item::Useless(..)) => Err(refused(format!(
                "file {path:?} was no artifact's by what came before it"
            ))),
            None => Err(refused(format!("it has no file {path:?}"))),
        }
    }
}

/// Reads `archive` to the end of the tar stream.
pub(super) fn scan(archive: impl Read, room: &Room) -> Result<Contents> {
    let mut scan = Scan {
        room,
        blobs: room
            .index
            .list()
            .iter()
            // An artifact's blob is a file, around which an archive was put.
            .filter(|image| image.artifact.is_none())
            .flat_map(|image| image.layers.iter())
            .map(|layer| (layer.digest.clone(), layer.diff_id.clone()))
            .collect(),
        documents: 0,
        contents: Contents { items: BTreeMap::new() },
    };
    let mut reader = TarReader::new(archive);
    for _ in 0..MAX_ENTRIES {
        let next = reader.next_entry();
        let next = next.map_err(|error| refused(format!("near byte {}: {error}", reader.header_at())))?;
        let Some(entry) = next else { return Ok(scan.contents) };
        scan.entry(&entry, &mut reader)?;
    }
    Err(refused("it has too many entries"))
}

struct Scan<'a> {
    room: &'a Room,
    /// Diff IDs of layers that are here, by the digests of the blobs that they came as.
    blobs: HashMap<String, String>,
    documents: usize,
    contents: Contents,
}

impl Scan<'_> {
    fn entry<R: Read>(&mut self, entry: &unpack::Entry, reader: &mut TarReader<R>) -> Result<()> {
        let path = normal(&entry.name)?;
        let item = match entry.kind {
            Kind::Directory => return Ok(()),
            Kind::File => {
                let Some(item) = self.file(&path, entry.size, reader)? else {
                    return Ok(());
                };
                item
            }
            Kind::Symlink => Item::Link(target(&path, &entry.link)),
            Kind::HardLink => Item::Link(target("", &entry.link)),
            Kind::Fifo | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
                return Err(refused(format!("{path:?} is a device or a pipe")));
            }
        };
        if self.contents.items.len() >= MAX_ITEMS {
            return Err(refused("it has too many files"));
        }
        match self.contents.items.entry(path) {
            Entry::Vacant(place) => {
                place.insert(item);
            }
            // Tools that build archives out of parts put what several parts have into them several times.
            Entry::Occupied(there) if there.get().is_same(&item) => {}
            Entry::Occupied(there) => {
                return Err(refused(format!(
                    "it has two entries named {:?} that differ",
                    there.key()
                )));
            }
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &str, size: u64, reader: &mut TarReader<R>) -> Result<Option<Item>> {
        let mut source = Source::new(Tee {
            feed: EntryFeed(reader),
            spool: None,
        });
        let unreadable = |error: io::Error| refused(format!("read {path:?}: {error}"));
        let head = source.peek(unpack::BLOCK).map_err(unreadable)?;
        let compressed = matches!(
            head,
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
        );
        let is_layer = compressed || head.try_into().is_ok_and(unpack::is_archive);
        let empty = head.is_empty();
        let first = head.iter().copied().find(|byte| !byte.is_ascii_whitespace());
        let is_document = !is_layer && matches!(first, Some(b'{' | b'[')) && size <= MAX_DOCUMENT as u64;
        if path.starts_with("blobs/") && !is_document && (!is_layer || compressed && self.may_be_file(path)) {
            let mut spool = Spool::create(&self.room.layers)?;
            let (tee, come) = source.feed();
            spool.write(come).map_err(unreadable)?;
            tee.spool = Some(spool);
        }
        if is_layer {
            return self.layer(path, &mut source).map(Some);
        }
        if !is_document {
            let reason = match first {
                _ if empty => "it is empty".to_owned(),
                Some(b'{' | b'[') => format!("{size} bytes are too many for a document"),
                _ => "it is no archive".to_owned(),
            };
            return Ok(Some(Item::Useless(reason, stored(path, &mut source)?)));
        }
        self.documents += size as usize;
        if self.documents > MAX_DOCUMENTS {
            return Err(refused("its documents are too large"));
        }
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(unreadable)?;
        Ok(Some(Item::Document(bytes.into())))
    }

    /// Whether the blob at `path` may be an artifact's file, as far as the archive has said what is in it.
    fn may_be_file(&self, path: &str) -> bool {
        #[derive(serde::Deserialize)]
        struct Index {
            manifests: Vec<manifest::Entry>,
        }
        let Some(index) = self.contents.document("index.json") else {
            return true;
        };
        // What can't be read is refused when all is there.
        let Ok(index) = serde_json::from_slice::<Index>(index) else {
            return false;
        };
        index.manifests.iter().any(|listed| {
            let Some(bytes) = self.contents.document(&blob_path(&listed.digest)) else {
                return true;
            };
            let document = Document {
                bytes: bytes.clone(),
                digest: listed.digest.clone(),
                media_type: listed.media_type.clone(),
            };
            match manifest::parse(&document, &Host::current()) {
                Ok(Parsed::Artifact(artifact)) => {
                    artifact.files.iter().any(|(_, blob)| blob_path(&blob.digest) == path)
                }
                Ok(Parsed::Index { .. }) => true,
                Ok(Parsed::Manifest(_)) | Err(_) => false,
            }
        })
    }

    fn layer<F: Feed>(&self, path: &str, source: &mut Source<Tee<F>>) -> Result<Item> {
        if let Some((promised, diff_id, pin)) = self.known(path) {
            if !source.skip(u64::MAX) {
                return Err(refused("it was cut off"));
            }
            let (digest, size) = source.sum();
            let raw = stored(path, source)?;
            return Ok(if digest == promised {
                let held = Some(Held::Known(pin));
                Item::Layer(Layered {
                    digest,
                    size,
                    diff_id,
                    held,
                    raw,
                })
            } else {
                Item::Useless(format!("its digest is {digest}"), raw)
            });
        }
        let unpacked = match extract::unpack(source, path, &self.room.layers) {
            Ok(unpacked) => unpacked,
            // Not everything that looks like a layer is one; it matters when an image wants it.
            Err(
                error @ (Error::BadContent { .. }
                | Error::Unpack(unpack::Error::Read { .. } | unpack::Error::Refused { .. })),
            ) => {
                return Ok(Item::Useless(error.to_string(), stored(path, source)?));
            }
            Err(error) => return Err(error),
        };
        let (digest, size) = source.sum();
        Ok(Item::Layer(Layered {
            digest,
            size,
            diff_id: unpacked.diff_id.clone(),
            held: Some(Held::New(unpacked)),
            raw: stored(path, source)?,
        }))
    }

    /// A layer that is here already, if `path` says which one it is: its blob's digest, diff ID and files.
    fn known(&self, path: &str) -> Option<(String, String, Pin)> {
        let name = path.split('/').map(|part| part.split('.').next().unwrap_or_default());
        let hex = name.rev().find(|name| name.len() == 64 && is_hex(name))?;
        let digest = format!("sha256:{hex}");
        if let Some(pin) = self.room.layers.pin(&digest) {
            return Some((digest.clone(), digest, pin));
        }
        let diff_id = self.blobs.get(&digest)?;
        let pin = self.room.layers.pin(diff_id)?;
        Some((digest, diff_id.clone(), pin))
    }
}

/// What was kept of the file at `path`, read to its end.
fn stored<F: Feed>(path: &str, source: &mut Source<Tee<F>>) -> Result<Option<Stored>> {
    if source.feed().0.spool.is_none() {
        return Ok(None);
    }
    if !source.skip(u64::MAX) {
        return Err(refused(format!("{path:?} can't be kept, or was cut off")));
    }
    Ok(source.feed().0.spool.take().map(Spool::finish))
}

/// The data of an archive's current entry.
struct EntryFeed<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Feed for EntryFeed<'_, R> {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        let data = self.0.data().map_err(io::Error::other)?;
        Ok((!data.is_empty()).then(|| Bytes::copy_from_slice(data)))
    }
}

/// A path within the archive as this module writes it: no `.`, no leading or doubled `/`.
fn normal(name: &[u8]) -> Result<String> {
    let shown = || String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
    let parts = unpack::components(name).map_err(|error| refused(format!("entry {:?}: {error}", shown())))?;
    let path = String::from_utf8(parts.join(&b'/'));
    path.map_err(|_| refused(format!("entry {:?}: the name is not UTF-8", shown())))
}

/// Where a link at `path` leads, by name.
fn target(path: &str, link: &[u8]) -> std::result::Result<String, &'static str> {
    let link = std::str::from_utf8(link).map_err(|_| "is not UTF-8")?;
    if link.starts_with('/') && !path.is_empty() {
        return Err("leads out of the archive");
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or("leads out of the archive")?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The document with `digest`, which a layout has under that name; checked.
pub(super) fn blob(contents: &Contents, digest: &str) -> Result<Bytes> {
    let path = blob_path(digest);
    let bytes = contents
        .document(&path)
        .ok_or_else(|| refused(format!("it has no document {path:?}")))?;
    let got = digest_of(bytes);
    if got == digest {
        return Ok(bytes.clone());
    }
    Err(Error::Mismatch {
        what: format!("document {path} in the archive"),
        expected: digest.to_owned(),
        got,
    })
}

/// Where a layout has the blob with `digest`.
pub(super) fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}
