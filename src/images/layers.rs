//! The layers on disk, and who uses them.
//!
//! A layer is `layers/<name>/` with `fs/` (its files), `recipe` and `aside/` (see [`recipe`]) and `record`. Names are never used twice, so that freeing one and
//! unpacking the same layer again can't meet, and no lock is held while files are removed. Images, pulls and mounted
//! containers hold [`Pin`]s; [`Layers::sweep`] removes what has none.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use wharf_proto::record;

use super::{
    Error, Result,
    recipe::{self, Kept},
    rootfs,
    unpack::{self, Stats},
    verify,
};
use crate::store;

/// What a layer has beside its files and what gives its archive back: its directory, the root of its files, its record.
const OWN_INODES: u64 = 3;

/// All layers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Layers(Arc<Shared>);

struct Shared {
    root: PathBuf,
    /// Bytes that the archive of a new one may have.
    limit: Option<u64>,
    keep_blobs: bool,
    state: Mutex<State>,
    /// Something may be there to sweep.
    wake: Notify,
}

#[derive(Default)]
struct State {
    by_name: HashMap<String, Entry>,
    /// The name under which a diff ID is found.
    by_diff: HashMap<String, String>,
    /// Containers from before the start are known: what has no pin is not needed.
    complete: bool,
}

struct Entry {
    diff_id: String,
    size: Size,
    pins: usize,
}

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    /// Its files.
    pub stats: Stats,
    /// What gives its archive back.
    pub kept: Kept,
}

impl Layers {
    /// Reads what is below `root` (the images room's directory) and moves what is half done to the trash. Blocking.
    /// New layers may have at most `limit` bytes; the blobs of which they are made are kept if `keep_blobs`.
    pub fn open(root: &Path, limit: Option<u64>, keep_blobs: bool) -> Result<Self> {
        for name in ["layers", "tmp", "trash"] {
            store::create_dir(&root.join(name))?;
        }
        // Layers are made there, and stay where they were made when they are moved.
        if let Err(error) = unpack::spread(&root.join("tmp")) {
            tracing::debug!(%error, "the file system puts layers where it likes");
        }
        let shared = Shared {
            root: root.to_owned(),
            limit,
            keep_blobs,
            state: Mutex::default(),
            wake: Notify::new(),
        };
        let mut found = Vec::new();
        for name in store::list_dirs(&root.join("layers"))? {
            match store::read_versioned::<record::UnpackedLayer>(&root.join("layers").join(&name).join("record")) {
                // Before anything is moved. One that can't be read may be good: too many open files, a disk that fails.
                Err(error @ (store::Error::Newer { .. } | store::Error::Io { .. })) => return Err(error.into()),
                read => found.push((name, read)),
            }
        }
        for name in store::list_dirs(&root.join("tmp"))? {
            shared.discard(&root.join("tmp").join(name))?;
        }
        let layers = Self(Arc::new(shared));
        let mut state = State::default();
        for (name, read) in found {
            let layer = match read {
                Ok(Some(layer)) if !layer.diff_id.is_empty() => Some(layer),
                other => layers.mend(&name, &format!("{other:?}"))?,
            };
            if let Some(layer) = layer {
                state.by_diff.insert(layer.diff_id.clone(), name.clone());
                state.by_name.insert(
                    name,
                    Entry {
                        size: Size::of(&layer),
                        diff_id: layer.diff_id,
                        pins: 0,
                    },
                );
            }
        }
        *layers.0.lock() = state;
        Ok(layers)
    }

    /// Writes a new record of a layer that has none that could be read, if the layer is whole. One that is not goes to the trash:
    /// a registry may have it, and a pull that was cut off by a power loss leaves such.
    fn mend(&self, name: &str, problem: &str) -> Result<Option<record::UnpackedLayer>> {
        let directory = self.0.directory(name);
        match verify::mended(&directory, name, &self.temporary()?) {
            Ok(layer) => {
                tracing::warn!(
                    layer = name,
                    problem,
                    "a layer had no usable record; it is whole and has one again"
                );
                store::write_record(&directory.join("record"), &layer)?;
                Ok(Some(layer))
            }
            Err(reason) => {
                tracing::warn!(
                    layer = name,
                    problem,
                    reason,
                    "a layer without a usable record is removed"
                );
                self.0.discard(&directory)?;
                Ok(None)
            }
        }
    }

    /// Holds the layer with `diff_id`, if it is here.
    pub fn pin(&self, diff_id: &str) -> Option<Pin> {
        let mut state = self.0.lock();
        let name = state.by_diff.get(diff_id)?.clone();
        state.by_name.get_mut(&name)?.pins += 1;
        drop(state);
        Some(Pin {
            shared: self.0.clone(),
            name,
        })
    }

    /// Whether the layer with `diff_id` is here.
    pub fn has(&self, diff_id: &str) -> bool {
        self.0.lock().by_diff.contains_key(diff_id)
    }

    /// Holds the layer with the directory `name`, if it is here.
    pub fn pin_name(&self, name: &str) -> Option<Pin> {
        self.0.lock().by_name.get_mut(name)?.pins += 1;
        Some(Pin {
            shared: self.0.clone(),
            name: name.to_owned(),
        })
    }

    /// Bytes that the archive of a new layer may have.
    pub fn limit(&self) -> Option<u64> {
        self.0.limit
    }

    /// Whether the blobs of new layers are kept.
    pub fn keep_blobs(&self) -> bool {
        self.0.keep_blobs
    }

    /// A new directory below `tmp`. Blocking.
    pub fn temporary(&self) -> Result<Temporary> {
        Temporary::create(&self.0.root)
    }

    /// Makes the files in `temporary/fs` the layer `diff_id`. Blocking.
    pub fn add(&self, temporary: Temporary, diff_id: &str, size: Size) -> Result<Pin> {
        let layer = record::UnpackedLayer {
            schema: store::schema(),
            diff_id: diff_id.to_owned(),
            bytes: size.stats.bytes,
            inodes: size.stats.inodes,
            kept_bytes: size.kept.bytes,
            kept_inodes: size.kept.inodes,
        };
        store::write_record(&temporary.path().join("record"), &layer)?;
        let name = format!("{}-{:08x}", diff_id.trim_start_matches("sha256:"), unique() >> 32);
        temporary.keep_as(&self.0.directory(&name))?;
        let mut state = self.0.lock();
        state.by_diff.insert(diff_id.to_owned(), name.clone());
        state.by_name.insert(
            name.clone(),
            Entry {
                diff_id: layer.diff_id,
                size,
                pins: 1,
            },
        );
        drop(state);
        Ok(Pin {
            shared: self.0.clone(),
            name,
        })
    }

    /// From now on layers without a pin may go.
    pub fn all_users_known(&self) {
        self.0.lock().complete = true;
        self.0.wake.notify_one();
    }

    /// Nobody's use of a layer is known any more: none may go.
    pub fn close(&self) {
        self.0.lock().complete = false;
    }

    /// Moves `path` out of sight, to be removed by the next sweep. Absent is fine. Blocking, but quick.
    pub fn discard(&self, path: &Path) -> Result<()> {
        self.0.discard(path)
    }

    /// Has nobody find the layer in the directory `name` any more: the next pull unpacks it anew, under another name. The pin
    /// keeps it from the sweep when its images let go of it.
    pub fn hide(&self, name: &str) -> Option<Pin> {
        self.0.lock().by_diff.retain(|_, shown| shown != name);
        self.pin_name(name)
    }

    /// Moves the layer in the directory `name` aside, unless somebody beside `hidden` holds it; returns where it is then.
    /// Blocking.
    pub fn set_aside(&self, name: &str, hidden: Option<&Pin>) -> Result<Option<PathBuf>> {
        {
            let mut state = self.0.lock();
            let ours = usize::from(hidden.is_some());
            if state.by_name.get(name).is_some_and(|entry| entry.pins > ours) {
                return Ok(None);
            }
            // The sweep finds it no more.
            state.by_name.remove(name);
        }
        let state_dir = self.0.root.parent().unwrap_or(&self.0.root);
        Ok(Some(store::set_aside(state_dir, &self.0.directory(name))?))
    }

    /// Returns when there may be something to sweep.
    pub async fn wait(&self) {
        self.0.wake.notified().await;
    }

    /// Removes layers without a pin and everything in the trash. Blocking, and may take long.
    pub fn sweep(&self) -> Result<()> {
        let unused: Vec<String> = {
            let mut state = self.0.lock();
            let names = if state.complete {
                let free = state.by_name.iter().filter(|(_, entry)| entry.pins == 0);
                free.map(|(name, _)| name.clone()).collect()
            } else {
                Vec::new()
            };
            for name in &names {
                if let Some(entry) = state.by_name.remove(name)
                    && state.by_diff.get(&entry.diff_id) == Some(name)
                {
                    state.by_diff.remove(&entry.diff_id);
                }
            }
            names
        };
        for name in unused {
            self.0.discard(&self.0.directory(&name))?;
        }
        let trash = self.0.root.join("trash");
        for entry in fs::read_dir(&trash).map_err(Error::io("list", &trash))? {
            let entry = entry.map_err(Error::io("list", &trash))?;
            rootfs::remove_tree(&entry.path())?;
        }
        Ok(())
    }

    /// Bytes of the files of the layer `diff_id`, if it is here.
    pub fn bytes(&self, diff_id: &str) -> Option<u64> {
        let state = self.0.lock();
        let name = state.by_diff.get(diff_id)?;
        state.by_name.get(name).map(|entry| entry.size.stats.bytes)
    }

    /// What the layer `diff_id` takes on disk, if it is here.
    pub fn size(&self, diff_id: &str) -> Option<Size> {
        let state = self.0.lock();
        let name = state.by_diff.get(diff_id)?;
        state.by_name.get(name).map(|entry| entry.size)
    }

    /// Bytes and inodes of all layers.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.0.lock();
        let entries = state.by_name.values();
        entries.fold((0, 0), |(bytes, inodes), Entry { size, .. }| {
            (
                bytes + size.stats.bytes + size.kept.bytes,
                inodes + size.stats.inodes + size.kept.inodes + OWN_INODES,
            )
        })
    }
}

impl Size {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.stats.bytes + self.kept.bytes
    }

    fn of(layer: &record::UnpackedLayer) -> Self {
        Self {
            stats: Stats {
                bytes: layer.bytes,
                inodes: layer.inodes,
            },
            kept: Kept {
                bytes: layer.kept_bytes,
                inodes: layer.kept_inodes,
            },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join("layers").join(name)
    }

    fn discard(&self, path: &Path) -> Result<()> {
        let target = self.root.join("trash").join(format!("{:016x}", unique()));
        match fs::rename(path, target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("move to trash", path)(error)),
            _ => {
                self.wake.notify_one();
                Ok(())
            }
        }
    }
}

/// Keeps a layer on disk until dropped.
pub(super) struct Pin {
    shared: Arc<Shared>,
    name: String,
}

impl Pin {
    /// Name of the layer's directory, good for [`Layers::pin_name`] after a restart.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layer's diff ID.
    pub fn diff_id(&self) -> String {
        let state = self.shared.lock();
        // A layer that is held stays on record, unless it is set aside: then its name says it, too.
        let hex = self.name.split('-').next().unwrap_or_default();
        let known = state.by_name.get(&self.name).map(|entry| entry.diff_id.clone());
        known.unwrap_or_else(|| format!("sha256:{hex}"))
    }

    /// The layer's files.
    pub fn path(&self) -> PathBuf {
        self.shared.directory(&self.name).join("fs")
    }

    /// The layer's directory, with `fs` in it.
    pub fn directory(&self) -> PathBuf {
        self.shared.directory(&self.name)
    }

    /// The blob `digest` of `size` bytes of which the layer was made, if it was kept. Blocking.
    pub fn blob(&self, digest: &str, size: u64) -> Option<fs::File> {
        let file = fs::File::open(self.directory().join(blob_name(digest))).ok()?;
        file.metadata().is_ok_and(|about| about.len() == size).then_some(file)
    }

    /// The layer's archive, byte for byte. Blocking, as is reading it.
    ///
    /// # Errors
    /// When the layer's recipe is absent or damaged.
    pub fn archive(&self) -> Result<recipe::Archive> {
        Ok(recipe::Archive::open(&self.shared.directory(&self.name))?)
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        if let Some(entry) = self.shared.lock().by_name.get_mut(&self.name) {
            entry.pins += 1;
        }
        Self {
            shared: self.shared.clone(),
            name: self.name.clone(),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let free = match self.shared.lock().by_name.get_mut(&self.name) {
            Some(entry) => {
                entry.pins -= 1;
                entry.pins == 0
            }
            None => false,
        };
        if free {
            self.shared.wake.notify_one();
        }
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A directory that is removed when dropped, which blocks.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// A new directory below `tmp` of the images room's directory. Blocking.
    pub fn create(root: &Path) -> Result<Self> {
        let path = root.join("tmp").join(format!("{:016x}", unique()));
        store::create_dir(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves the directory to `target`, where it stays.
    pub fn keep_as(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.0, target).map_err(Error::io("rename to", target))?;
        self.0 = PathBuf::new();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = rootfs::remove_tree(&self.0)
        {
            tracing::warn!(%error, "a temporary directory stays until the next start");
        }
    }
}

/// How names of kept blobs begin.
pub(super) const BLOB: &str = "blob-";

/// What the blob `digest` is called in its layer's directory.
pub(super) fn blob_name(digest: &str) -> String {
    format!("{BLOB}{}", digest.trim_start_matches("sha256:"))
}

/// A number that no other call returns, for names.
fn unique() -> u64 {
    RandomState::new().build_hasher().finish()
}
