//! Bytes of an archive's files that are kept as they come, because they may be an artifact's. Of a layer's archive the recipe
//! gives them back; of what is compressed, and of all that is no archive, nothing does.

use std::{
    fs::File,
    io::{self, Write as _},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::super::{
    Error, Result,
    extract::Feed,
    layers::{Layers, Temporary},
};

const FILE: &str = "content";

/// A file that is being kept.
pub(super) struct Spool {
    directory: Temporary,
    file: File,
    digest: Sha256,
    size: u64,
    /// Bytes that it may still have.
    left: u64,
}

/// A file that was kept; it goes with this.
pub(super) struct Stored {
    directory: Temporary,
    pub digest: String,
    pub size: u64,
}

impl Spool {
    /// An empty one below the room's directory. Blocking.
    pub fn create(layers: &Layers) -> Result<Self> {
        let directory = layers.temporary()?;
        let path = directory.path().join(FILE);
        Ok(Self {
            file: File::create_new(&path).map_err(Error::io("create", path))?,
            directory,
            digest: Sha256::new(),
            size: 0,
            left: layers.limit().unwrap_or(u64::MAX),
        })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is larger than pull.max_layer_size allows",
            )
        })?;
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    pub fn finish(self) -> Stored {
        Stored {
            directory: self.directory,
            digest: format!("sha256:{}", hex::encode(self.digest.finalize())),
            size: self.size,
        }
    }
}

impl Stored {
    /// Its bytes from the first on. Blocking.
    pub fn open(&self) -> Result<File> {
        let path = self.directory.path().join(FILE);
        File::open(&path).map_err(Error::io("open", path))
    }
}

/// Passes bytes on, and keeps them where there is a spool.
pub(super) struct Tee<F> {
    pub feed: F,
    pub spool: Option<Spool>,
}

impl<F: Feed> Feed for Tee<F> {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        let data = self.feed.pull()?;
        if let (Some(data), Some(spool)) = (&data, &mut self.spool) {
            spool.write(data)?;
        }
        Ok(data)
    }
}
