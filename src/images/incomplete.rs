//! Images that are shown before all of them is here.
//!
//! What is known of one lies in `incomplete/` as others' records lie in `records/`, and moves there when it is complete. After
//! a restart such an image is not shown until it has been pulled again, which begins at once.

use std::{collections::BTreeMap, fs, io::ErrorKind, sync::PoisonError};

use wharf_proto::record;

use super::{
    Reference, Result,
    index::{Entry, Index, file_name, sync},
    layers::{Pin, Temporary},
    lazy,
    names::names,
};
use crate::store;

/// An image that a daemon before this one had not completed: its id, a name by digest, and its tags.
pub(super) type Unfinished = (String, Reference, Vec<String>);

impl Index {
    /// Puts what was written of the image `id` where it belongs. Durable on return.
    pub(super) fn place(&self, temporary: Temporary, id: &str, incomplete: bool) -> Result<()> {
        // What an earlier daemon has left of the same image counts no more.
        let left = self.incomplete_directory(id);
        self.layers().discard(&left)?;
        let mut all = self.incomplete.write().unwrap_or_else(PoisonError::into_inner);
        if incomplete {
            all.insert(id.to_owned());
        } else {
            all.remove(id);
        }
        drop(all);
        let target = self.directory(id);
        temporary.keep_as(&target)?;
        sync(target.parent().unwrap_or(self.root()))
    }

    /// The image `id` is complete with `pins`, which are durable. One that is so already, or was removed, is fine. Blocking.
    pub(super) fn complete(&self, id: &str, pins: Vec<Pin>) -> Result<()> {
        let mut entries = self.lock();
        self.complete_locked(&mut entries, id, &pins)
    }

    pub(super) fn complete_locked(&self, entries: &mut BTreeMap<String, Entry>, id: &str, pins: &[Pin]) -> Result<()> {
        let Some(entry) = entries.get_mut(id) else {
            return Ok(());
        };
        if entry.image.is_complete() || pins.len() != entry.image.layers.len() {
            return Ok(());
        }
        let from = self.incomplete_directory(id);
        let to = self.root().join("records").join(file_name(id));
        for file in fs::read_dir(&from).map_err(super::Error::io("list", &from))? {
            sync(&file.map_err(super::Error::io("list", &from))?.path())?;
        }
        fs::rename(&from, &to).map_err(super::Error::io("rename to", &to))?;
        sync(&self.root().join("records"))?;
        self.incomplete
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        entry.image = std::sync::Arc::new(entry.completed(pins.to_vec()));
        self.publish(entries);
        Ok(())
    }

    /// Shows the image `id`, which can't be completed, no more, and forgets that it was wanted. Blocking.
    pub(super) fn give_up(&self, id: &str) -> Result<()> {
        let incomplete = {
            let entries = self.lock();
            entries.get(id).is_none_or(|entry| !entry.image.is_complete())
        };
        if !incomplete {
            return Ok(());
        }
        self.remove(id)?;
        self.layers().discard(&self.incomplete_directory(id))
    }

    /// What a daemon before this one had not completed. Blocking; to be asked before anything is pulled.
    pub(super) fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let directory = lazy::directory(self.root());
        let mut found = Vec::new();
        for name in store::list_dirs(&directory)? {
            let path = directory.join(&name);
            let record = match store::read_versioned::<record::Image>(&path.join("record")) {
                Ok(Some(record)) => record,
                Err(error @ (store::Error::Newer { .. } | store::Error::Io { .. })) => return Err(error.into()),
                // It can be pulled by whoever wants it.
                _ => {
                    self.layers().discard(&path)?;
                    continue;
                }
            };
            let by_digest = record.digests.iter().find_map(|name| Reference::parse(name).ok());
            match by_digest.filter(|_| file_name(&record.id) == name) {
                Some(reference) => {
                    let tags = record.tags.iter().map(|tag| tag.name.clone()).collect();
                    tracing::info!(image = %reference, names = names(&record).join(" "), "an image was not complete; it is pulled again");
                    found.push((record.id.clone(), reference, tags));
                }
                None => self.layers().discard(&path)?,
            }
        }
        Ok(found)
    }

    /// Gives the image `id`, which was pulled again, the names that it had, as far as nobody else has got them meanwhile.
    /// Blocking.
    pub(super) fn name_again(&self, id: &str, tags: &[String]) -> Result<()> {
        for tag in tags {
            let reference = Reference::parse(tag)?;
            if self.find(tag).is_none() {
                self.name(id, &reference, None)?;
            }
        }
        // What was left of an image that was here, complete, all the time.
        if self.get(id).is_some_and(|image| image.is_complete()) {
            let left = self.incomplete_directory(id);
            match fs::symlink_metadata(&left) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                _ => self.layers().discard(&left)?,
            }
        }
        Ok(())
    }
}
