//! What an image has beside its layers and its record, written before anybody can find it.

use std::path::PathBuf;

use super::{
    Result,
    index::{Arrival, Index, file_name, sync},
    layers::Temporary,
    papers,
};
use crate::store;

/// Files that are written, and perhaps not on the disk yet.
pub(super) struct Prepared {
    pub temporary: Temporary,
    files: Vec<PathBuf>,
}

impl Prepared {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.temporary.path().join(name);
        store::write_file(&path, bytes, 0o600)?;
        self.files.push(path);
        Ok(())
    }

    /// Has them on the disk. Blocking.
    pub fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(|path| sync(path))
    }
}

impl Index {
    /// Writes configuration, manifests and evidence of an image. They must be synced before [`Index::add_prepared`]. Blocking.
    pub(super) fn prepare(&self, arrival: &Arrival) -> Result<Prepared> {
        let mut prepared = Prepared {
            temporary: self.layers().temporary()?,
            files: Vec::new(),
        };
        prepared.write("config", &arrival.config)?;
        for (digest, bytes) in &arrival.documents {
            prepared.write(file_name(digest), bytes)?;
        }
        if !arrival.evidence.is_empty() {
            prepared.write(papers::EVIDENCE, &arrival.evidence.to_bytes())?;
        }
        Ok(prepared)
    }
}
