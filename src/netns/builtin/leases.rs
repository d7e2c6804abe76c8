//! Who holds what: one file per address, named after it, with the holder inside.
//!
//! The file system is the lock: a file is created or it exists. Nothing is scanned to take or release one, and a kill
//! at any moment leaves either a file with a pod's id or an empty one, both of which recovery understands.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::netns::ports::HOST_PORTS;
use crate::netns::{Error, Result};

/// A lease as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) name: String,
    /// Empty if the daemon was killed between creating and writing.
    pub(super) holder: String,
}

/// A lease, for who checks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The file.
    pub path: PathBuf,
    /// The address.
    pub name: String,
    /// Id of the pod that has it; empty if the daemon was killed between creating and writing.
    pub holder: String,
    /// The name is one that a lease can have.
    pub is_usable: bool,
}

/// The leases of all built-in networks below `state_dir`, also of bridges that are not configured any more.
///
/// # Errors
/// When a directory or file can't be read.
pub fn reserved(state_dir: &Path) -> Result<Vec<Reserved>> {
    let root = state_dir.join("ipam");
    let networks = match std::fs::read_dir(&root) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        networks => networks.map_err(|source| Error::io("list networks in", &root, source))?,
    };
    let mut all = Vec::new();
    for network in networks {
        let dir = network
            .map_err(|source| Error::io("list networks in", &root, source))?
            .path();
        // Host ports are a file for each pod, of the pod's name.
        if !dir.is_dir() || dir.ends_with(HOST_PORTS) {
            continue;
        }
        for lease in Leases(dir.clone()).all()? {
            all.push(Reserved {
                path: dir.join(&lease.name),
                is_usable: lease.name.parse::<std::net::IpAddr>().is_ok(),
                name: lease.name,
                holder: lease.holder,
            });
        }
    }
    Ok(all)
}

/// The directory of leases of one network.
#[derive(Debug, Clone)]
pub(super) struct Leases(PathBuf);

impl Leases {
    /// Opens the directory, and makes it if it is absent.
    ///
    /// # Errors
    /// When it can't be made.
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).map_err(|source| Error::io("create directory", &dir, source))?;
        Ok(Self(dir))
    }

    /// Takes the lease unless someone has it. Tells whether it was taken.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn take(&self, name: &str, holder: &str) -> Result<bool> {
        let path = self.0.join(name);
        let mut file: File = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(source) if source.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(source) => return Err(Error::io("create lease", &path, source)),
        };
        file.write_all(format!("{holder} ").as_bytes()).map_err(|source| {
            // Without a holder it would be in nobody's way for ever.
            let _ = std::fs::remove_file(&path);
            Error::io("write lease", &path, source)
        })?;
        Ok(true)
    }

    /// The lease of that name, if there is one.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn get(&self, name: &str) -> Result<Option<Lease>> {
        let path = self.0.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                // A holder that was not written to its end is none.
                let (holder, _) = text.split_once(' ').unwrap_or_default();
                Ok(Some(Lease {
                    name: name.to_owned(),
                    holder: holder.to_owned(),
                }))
            }
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read lease", &path, source)),
        }
    }

    /// Gives the lease back if `holder` has it.
    ///
    /// # Errors
    /// When the file can't be read or removed.
    pub(super) fn release(&self, name: &str, holder: &str) -> Result<()> {
        if self.get(name)?.is_none_or(|lease| lease.holder != holder) {
            return Ok(());
        }
        let path = self.0.join(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove lease", &path, source)),
            _ => Ok(()),
        }
    }

    /// All leases; for the start of the daemon.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub(super) fn all(&self) -> Result<Vec<Lease>> {
        let wrong = |source| Error::io("list leases in", &self.0, source);
        let mut leases = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(wrong)? {
            if let Ok(name) = entry.map_err(wrong)?.file_name().into_string() {
                leases.extend(self.get(&name)?);
            }
        }
        Ok(leases)
    }
}
