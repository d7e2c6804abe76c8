//! Definitions of named networks on disk: a file each, durable before anybody is told of it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use wharf_proto::record::NamedNetwork;

use crate::netns::{Error, Result};

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Store(PathBuf);

impl Store {
    /// Opens the directory, and makes it if it is absent.
    ///
    /// # Errors
    /// When it can't be made.
    pub(super) fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join("networks");
        fs::create_dir_all(&dir).map_err(|source| Error::io("create directory", &dir, source))?;
        Ok(Self(dir))
    }

    /// All definitions that can be read. One that can't be is told in the log and stays where it is: it costs its own network
    /// and no other, and `wharf fsck` sets it aside.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub(super) fn all(&self) -> Result<Vec<NamedNetwork>> {
        let wrong = |source| Error::io("list networks in", &self.0, source);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with('.') {
                // Left by a daemon that was killed while it wrote; nobody was told of it.
                let _ = fs::remove_file(&path);
                continue;
            }
            let bytes = fs::read(&path).map_err(|source| Error::io("read network", &path, source))?;
            match NamedNetwork::decode(bytes.as_slice()) {
                Ok(network) if network.name == name => all.push(network),
                Ok(network) => {
                    tracing::error!(path = %path.display(), "not the definition of this network but of {:?}", network.name);
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the definition of a network can't be read")
                }
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Whether something lies where the definition of that name would.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// Writes a definition. It is there after a loss of power when this has returned.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn put(&self, network: &NamedNetwork) -> Result<()> {
        let path = self.0.join(&network.name);
        let new = self.0.join(format!(".{}", network.name));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&network.encode_to_vec())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&new);
            Error::io("write network", &path, source)
        })
    }

    /// Removes a definition; one that is gone is no error.
    ///
    /// # Errors
    /// When it can't be removed.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        let remove = || {
            fs::remove_file(&path)?;
            File::open(&self.0)?.sync_all()
        };
        match remove() {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove network", &path, source)),
            _ => Ok(()),
        }
    }
}
