//! Which images there are: one record each, and the snapshot that readers see.
//!
//! An image is `records/<hex of its id>/` with `record`, `config` and the manifests it was pulled by. The directory
//! comes and goes by one rename.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use wharf_proto::record;

use super::{
    Error, Image, ImageConfig, Layer, Reference, Result,
    layers::{Layers, Pin},
    lazy::{self, LazyImage},
    manifest::{self, Parsed},
    names::{name, named, names, settle_tags},
    papers,
    platform::Host,
    prepared::Prepared,
    reference::{is_digest, is_hex},
    registry::{Document, digest_of},
    trust::Evidence,
};
use crate::store;

pub(super) type List = Arc<Vec<Arc<Image>>>;

/// Shortest prefix of an id that is taken for one.
const MIN_PREFIX: usize = 4;

/// The images on disk.
pub(super) struct Index {
    root: PathBuf,
    layers: Layers,
    published: RwLock<List>,
    /// Held by those who write records, in blocking threads; readers never take it.
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Told with `entries` held, so that changes are in their order.
    changes: UnboundedSender<Change>,
    heard: Mutex<Option<UnboundedReceiver<Change>>>,
    /// Ids of images of which not all is here: what is known of them lies elsewhere, and is not shown after a restart.
    pub(super) incomplete: RwLock<BTreeSet<String>>,
}

/// An image and what is written of it.
pub(super) struct Entry {
    pub record: record::Image,
    pub image: Arc<Image>,
}

/// An image whose layers are all here, to be made visible.
pub(super) struct Arrival {
    pub id: String,
    pub size: u64,
    pub layers: Vec<Layer>,
    /// One for each layer.
    pub pins: Vec<Pin>,
    /// The bytes of the configuration.
    pub config: Bytes,
    /// Index and manifest, by digest.
    pub documents: Vec<(String, Bytes)>,
    /// What it is called; each name with the digest of what it led to.
    pub names: Vec<(Reference, String)>,
    /// It is files.
    pub artifact: Option<super::Artifact>,
    /// What speaks for it.
    pub evidence: Evidence,
    /// It can't be had again from a registry, so kubelet must spare it.
    pub pinned: bool,
    /// How it came, for [`Change::action`].
    pub action: &'static str,
}

/// Something that has happened to an image, after it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Id of the image.
    pub id: String,
    /// The name that it came with, got or lost; without one, the first of its digests.
    pub name: String,
    /// `pull`, `load`, `migrate`, `import`, `commit`; `tag`, `untag`; `remove`.
    pub action: &'static str,
}

impl Index {
    /// Reads all records below `root`. A bad one is logged and set aside; one that can't be read is an error, as it may be
    /// good. Blocking.
    pub fn open(root: &Path, layers: Layers) -> Result<Self> {
        let directory = root.join("records");
        store::create_dir(&directory)?;
        store::create_dir(&lazy::directory(root))?;
        let mut entries = BTreeMap::new();
        for name in store::list_dirs(&directory)? {
            let path = directory.join(&name);
            match load(&path, &name, &layers)? {
                Ok(entry) => {
                    entries.insert(entry.record.id.clone(), entry);
                }
                Err(Broken { reason, names }) => {
                    let aside = store::set_aside(root.parent().unwrap_or(root), &path)?;
                    let names = names.join(" ");
                    let aside = aside.display();
                    tracing::warn!(image = name, reason, %aside, names, "an image is not whole and was set aside; pull it again");
                }
            }
        }
        let (changes, heard) = unbounded_channel();
        let index = Self {
            root: root.to_owned(),
            layers,
            published: RwLock::default(),
            entries: Mutex::default(),
            changes,
            heard: Mutex::new(Some(heard)),
            incomplete: RwLock::default(),
        };
        settle_tags(&mut entries);
        index.publish(&entries);
        *index.lock() = entries;
        Ok(index)
    }

    pub fn list(&self) -> List {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn get(&self, id: &str) -> Option<Arc<Image>> {
        let list = self.list();
        let at = list.binary_search_by(|image| image.id.as_str().cmp(id)).ok()?;
        Some(list[at].clone())
    }

    /// See [`super::Images::find`].
    pub fn find(&self, spec: &str) -> Option<Arc<Image>> {
        let hex = spec.strip_prefix("sha256:").unwrap_or(spec);
        let is_id = !hex.is_empty() && is_hex(hex);
        if is_id && hex.len() == 64 {
            return self.get(&format!("sha256:{hex}"));
        }
        let list = self.list();
        if let Ok(reference) = Reference::parse(spec)
            && let Some(image) = named(&list, &reference)
        {
            return Some(image);
        }
        if !is_id || hex.len() < MIN_PREFIX {
            return None;
        }
        let prefix = format!("sha256:{hex}");
        let mut fitting = list.iter().filter(|image| image.id.starts_with(&prefix));
        let found = fitting.next()?;
        fitting.next().is_none().then(|| found.clone())
    }

    /// Makes `arrival` visible. Durable on return, if its layers are. Blocking.
    pub fn add(&self, arrival: Arrival) -> Result<()> {
        self.add_with(arrival, None)
    }

    /// As [`Index::add`]; with `lazy` of an image that is not all here.
    pub(super) fn add_with(&self, arrival: Arrival, lazy: Option<Arc<LazyImage>>) -> Result<()> {
        let prepared = self.prepare(&arrival)?;
        prepared.sync()?;
        self.add_prepared(arrival, prepared, lazy)
    }

    /// As [`Index::add_with`], once all that is in `prepared` is on the disk.
    pub(super) fn add_prepared(
        &self,
        arrival: Arrival,
        prepared: Prepared,
        lazy: Option<Arc<LazyImage>>,
    ) -> Result<()> {
        let Prepared { temporary, .. } = prepared;
        let config = parse_config(&arrival.config, &arrival.id)?;
        let mut entries = self.lock();
        if lazy.is_none() {
            self.complete_locked(&mut entries, &arrival.id, &arrival.pins)?;
        }
        if entries.contains_key(&arrival.id) {
            // It was here, or another reference brought it meanwhile.
            papers::add(&self.directory(&arrival.id), arrival.evidence)?;
            for (reference, digest) in &arrival.names {
                self.name_locked(&mut entries, &arrival.id, reference, Some(digest))?;
            }
            return Ok(());
        }
        let mut record = record::Image {
            schema: store::schema(),
            id: arrival.id.clone(),
            size: arrival.size,
            layers: arrival.layers.iter().map(Layer::to_record).collect(),
            pulled_at: now(),
            pinned: arrival.pinned,
            artifact_type: arrival
                .artifact
                .as_ref()
                .map_or_else(String::new, |one| one.kind.clone()),
            files: arrival.artifact.map(|one| one.files).unwrap_or_default(),
            ..Default::default()
        };
        for (reference, digest) in &arrival.names {
            name(&mut record, reference, Some(digest));
        }
        store::write_record(&temporary.path().join("record"), &record)?;
        sync(&temporary.path().join("record"))?;
        self.place(temporary, &arrival.id, lazy.is_some())?;
        let checkpoint = arrival
            .documents
            .iter()
            .any(|(_, bytes)| manifest::is_checkpoint(bytes));
        let image = Arc::new(image(&record, config, arrival.pins, checkpoint, lazy));
        let tags: Vec<String> = record.tags.iter().map(|tag| tag.name.clone()).collect();
        let first = names(&record).into_iter().next().unwrap_or_default();
        entries.insert(arrival.id.clone(), Entry { record, image });
        self.tell(&arrival.id, &first, arrival.action);
        tags.iter().skip(1).for_each(|tag| self.tell(&arrival.id, tag, "tag"));
        self.untag_others(&mut entries);
        self.publish(&entries);
        Ok(())
    }

    fn tell(&self, id: &str, name: &str, action: &'static str) {
        // Nobody may want to know.
        let _ = self.changes.send(Change {
            id: id.to_owned(),
            name: name.to_owned(),
            action,
        });
    }

    /// All changes from the opening on; none for a second caller.
    pub fn changes(&self) -> Option<UnboundedReceiver<Change>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The configuration of the image `id`, as it came. Blocking.
    pub fn config(&self, id: &str) -> Result<Vec<u8>> {
        let path = self.directory(id).join("config");
        fs::read(&path).map_err(Error::io("read", path))
    }

    /// The manifest by which the image `id` came here, as it came. Blocking.
    pub fn manifest(&self, id: &str) -> Result<Option<Document>> {
        let directory = self.directory(id);
        let failed = || Error::io("list", &directory);
        for entry in fs::read_dir(&directory).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let Some(name) = name.to_str().filter(|name| name.len() == 64 && is_hex(name)) else {
                continue;
            };
            let path = directory.join(name);
            let document = Document {
                bytes: fs::read(&path).map_err(Error::io("read", path))?.into(),
                digest: format!("sha256:{name}"),
                media_type: String::new(),
            };
            if let Ok(Parsed::Manifest(manifest)) = manifest::parse(&document, &Host::current())
                && manifest.config.digest == id
            {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// The document with `digest` that the image `id` came by, if it was kept. Blocking.
    pub fn document(&self, id: &str, digest: &str) -> Result<Option<Document>> {
        papers::document(&self.directory(id).join(file_name(digest)), digest)
    }

    /// What speaks for the image `id`. Blocking.
    pub fn evidence(&self, id: &str) -> Result<Evidence> {
        papers::evidence(&self.directory(id))
    }

    /// Adds to what speaks for the image `id`; absent is fine. Blocking.
    pub fn keep_evidence(&self, id: &str, evidence: Evidence) -> Result<()> {
        let entries = self.lock();
        match entries.contains_key(id) {
            true => papers::add(&self.directory(id), evidence),
            false => Ok(()),
        }
    }

    /// Notes that `name@digest` leads to the image `id`; absent is fine. Blocking.
    pub fn add_digest(&self, id: &str, reference: &Reference, digest: &str) -> Result<()> {
        let by_digest = Reference {
            digest: Some(digest.to_owned()),
            ..reference.clone()
        };
        self.name(id, &by_digest, Some(digest)).map(drop)
    }

    /// Gives the image `id` another name, and the one with the digest that the name led to in a registry; false if it is
    /// not here. Blocking.
    pub fn name(&self, id: &str, reference: &Reference, digest: Option<&str>) -> Result<bool> {
        let mut entries = self.lock();
        if !entries.contains_key(id) {
            return Ok(false);
        }
        self.name_locked(&mut entries, id, reference, digest)?;
        Ok(true)
    }

    /// Makes the image `id` invisible, durably; absent is fine. Blocking.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut entries = self.lock();
        if entries.contains_key(id) {
            let directory = self.directory(id);
            self.layers.discard(&directory)?;
            self.forget(&mut entries, id);
            drop(entries);
            // Else a power loss could bring back what its caller knows to be gone.
            sync(directory.parent().unwrap_or(&self.root))?;
        }
        Ok(())
    }

    /// Makes the image `id` invisible and moves its record aside, whether it is shown or not; returns where it is. Blocking.
    pub fn set_aside(&self, id: &str) -> Result<PathBuf> {
        let mut entries = self.lock();
        let now_at = store::set_aside(self.root.parent().unwrap_or(&self.root), &self.directory(id))?;
        self.forget(&mut entries, id);
        Ok(now_at)
    }

    fn forget(&self, entries: &mut BTreeMap<String, Entry>, id: &str) {
        self.incomplete
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        if let Some(entry) = entries.remove(id) {
            let name = names(&entry.record).into_iter().next().unwrap_or_default();
            self.tell(id, &name, "remove");
            self.publish(entries);
        }
    }

    /// Sets whether kubelet must spare the image `id`; absent is fine. Blocking.
    pub fn pin(&self, id: &str, pinned: bool) -> Result<()> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(id)
            && entry.record.pinned != pinned
        {
            let mut record = entry.record.clone();
            record.pinned = pinned;
            self.rewrite(entry, record)?;
            self.publish(&entries);
        }
        Ok(())
    }

    fn name_locked(
        &self,
        entries: &mut BTreeMap<String, Entry>,
        id: &str,
        reference: &Reference,
        digest: Option<&str>,
    ) -> Result<()> {
        let Some(entry) = entries.get_mut(id) else {
            return Ok(());
        };
        let mut record = entry.record.clone();
        if name(&mut record, reference, digest) {
            let had: Vec<String> = entry.image.tags.clone();
            self.rewrite(entry, record)?;
            let new: Vec<String> = entry
                .image
                .tags
                .iter()
                .filter(|tag| !had.contains(tag))
                .cloned()
                .collect();
            new.iter().for_each(|tag| self.tell(id, tag, "tag"));
            self.untag_others(entries);
            self.publish(entries);
        }
        Ok(())
    }

    /// Takes tags from those who lost them, in memory and on disk. A failure to write is mended at the next start.
    fn untag_others(&self, entries: &mut BTreeMap<String, Entry>) {
        for (id, lost) in settle_tags(entries) {
            lost.iter().for_each(|tag| self.tell(&id, tag, "untag"));
            if let Some(entry) = entries.get(&id) {
                let path = self.directory(&id).join("record");
                if let Err(error) = store::write_record(&path, &entry.record) {
                    tracing::warn!(%error, "an image keeps a tag on disk that has moved");
                }
            }
        }
    }

    fn rewrite(&self, entry: &mut Entry, record: record::Image) -> Result<()> {
        let path = self.directory(&record.id).join("record");
        store::write_record(&path, &record)?;
        sync(&path)?;
        entry.image = Arc::new(entry.again(&record));
        entry.record = record;
        Ok(())
    }

    pub(super) fn publish(&self, entries: &BTreeMap<String, Entry>) {
        let list = Arc::new(entries.values().map(|entry| entry.image.clone()).collect());
        let old = std::mem::replace(
            &mut *self.published.write().unwrap_or_else(PoisonError::into_inner),
            list,
        );
        // Outside of the lock: this may be what frees layers.
        drop(old);
    }

    pub(super) fn directory(&self, id: &str) -> PathBuf {
        let incomplete = self.incomplete.read().unwrap_or_else(PoisonError::into_inner);
        match incomplete.contains(id) {
            true => self.incomplete_directory(id),
            false => self.root.join("records").join(file_name(id)),
        }
    }

    pub(super) fn incomplete_directory(&self, id: &str) -> PathBuf {
        lazy::directory(&self.root).join(file_name(id))
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with an image.
struct Broken {
    reason: String,
    /// What the image was called, if that can be read.
    names: Vec<String>,
}

/// The image in `path`, or why it is not whole.
///
/// # Errors
/// When a newer version has written it, or a file can't be read: it may be good.
fn load(path: &Path, name: &str, layers: &Layers) -> Result<std::result::Result<Entry, Broken>> {
    let broken = |reason: String| {
        Ok(Err(Broken {
            reason,
            names: Vec::new(),
        }))
    };
    let record: record::Image = match store::read_versioned(&path.join("record")) {
        Ok(Some(record)) => record,
        Ok(None) => return broken("it has no record".into()),
        Err(error @ (store::Error::Newer { .. } | store::Error::Io { .. })) => return Err(error.into()),
        Err(error) => return broken(error.to_string()),
    };
    if !is_digest(&record.id) || file_name(&record.id) != name {
        return broken("its record is that of another image".into());
    }
    Ok(match complete(path, &record, layers)? {
        Ok(image) => Ok(Entry { image, record }),
        Err(reason) => Err(Broken {
            reason,
            names: names(&record),
        }),
    })
}

/// The image of `record`, if all that it needs is here; else what is not.
///
/// # Errors
/// When a file can't be read.
fn complete(path: &Path, record: &record::Image, layers: &Layers) -> Result<std::result::Result<Arc<Image>, String>> {
    let directory = path;
    let path = path.join("config");
    let config = match fs::read(&path) {
        Ok(config) => config,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err("it has no configuration".into())),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    if digest_of(&config) != record.id {
        return Ok(Err("its configuration is damaged".into()));
    }
    let config = match parse_config(&config, &record.id) {
        Ok(config) => config,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let pin = |layer: &record::ImageLayer| {
        layers
            .pin(&layer.diff_id)
            .ok_or_else(|| format!("layer {} is missing", layer.diff_id))
    };
    let pins: std::result::Result<Vec<_>, _> = record.layers.iter().map(pin).collect();
    let checkpoint = has_checkpoint(directory)?;
    Ok(pins.map(|pins| Arc::new(image(record, config, pins, checkpoint, None))))
}

/// Whether a manifest in an image's directory says that it is a checkpoint.
fn has_checkpoint(directory: &Path) -> Result<bool> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        if name.to_str().is_some_and(|name| name.len() == 64 && is_hex(name)) {
            let path = directory.join(name);
            let document = fs::read(&path).map_err(Error::io("read", path))?;
            if manifest::is_checkpoint(&document) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

impl Entry {
    /// The same image, as `record` has it by now.
    pub fn again(&self, record: &record::Image) -> Image {
        let known = &self.image;
        let (pins, lazy) = (known.pins.clone(), known.lazy.clone());
        image(record, known.config.clone(), pins, known.checkpoint, lazy)
    }

    /// The same image with all its layers.
    pub fn completed(&self, pins: Vec<Pin>) -> Image {
        let known = &self.image;
        image(&self.record, known.config.clone(), pins, known.checkpoint, None)
    }
}

fn image(
    record: &record::Image,
    config: ImageConfig,
    pins: Vec<Pin>,
    checkpoint: bool,
    lazy: Option<Arc<LazyImage>>,
) -> Image {
    Image {
        id: record.id.clone(),
        tags: record.tags.iter().map(|tag| tag.name.clone()).collect(),
        digests: record.digests.clone(),
        size: record.size.max(1),
        config,
        layers: record.layers.iter().map(Layer::of).collect(),
        artifact: super::Artifact::of(record),
        pinned: record.pinned,
        checkpoint,
        pulled_at: record.pulled_at,
        lazy,
        pins,
    }
}

/// Reads the configuration of the image `id`.
pub(super) fn parse_config(json: &[u8], id: &str) -> Result<ImageConfig> {
    ImageConfig::parse(json).map_err(|error| Error::BadContent {
        what: format!("image configuration {id}"),
        reason: format!("it can't be read: {error}"),
    })
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    store::write_file(path, bytes, 0o600)?;
    sync(path)
}

pub(super) fn sync(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("sync", path))
}

pub(super) fn file_name(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or_default()
}
