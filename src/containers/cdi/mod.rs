//! The Container Device Interface: devices that vendors describe in spec files, asked for by qualified name
//! (`vendor/class=device`) in `ContainerConfig.CDI_devices` and in annotations below `cdi.k8s.io/` (feature row D18).
//!
//! Owns: the spec directories as they are now. A change is noticed when a device is next asked for: the kernel has queued
//! what happened by then, so that no task is needed and nothing stale is used. Must never: run anything of what a file
//! says; that is the runtime's part. All of it blocks.

mod apply;
mod catalog;
mod edits;
mod format;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod names;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

pub use apply::apply;
pub use edits::Injection;
pub use names::requested;

use catalog::Catalog;
use watch::Watch;

/// Why devices could not be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for is not a device's name.
    #[error("CDI device {name:?}{place}: {reason}")]
    Name {
        /// As asked for.
        name: String,
        /// The annotation it stands in, if any.
        place: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// No file defines them, or more than one does.
    #[error("unresolvable CDI devices {}", .0.join("; "))]
    Unresolvable(Vec<String>),
    /// What the file says can't be done here.
    #[error("CDI device {device} ({file}): {reason}", file = .file.display())]
    Edit {
        /// Qualified name.
        device: String,
        /// Where it is defined.
        file: PathBuf,
        /// What and why.
        reason: String,
    },
}

/// The devices that spec files define. One for the whole daemon.
#[derive(Debug)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    known: Mutex<Option<(Watch, Arc<Catalog>)>>,
}

impl Registry {
    /// Devices of the files in `dirs`, a later directory before an earlier one. Nothing is read yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            dirs,
            known: Mutex::new(None),
        }
    }

    /// What the named devices bring into a container, in this order.
    ///
    /// # Errors
    /// [`Error::Unresolvable`] names all that no file, a wrong file, or more than one file defines; [`Error::Edit`] what
    /// can't be done.
    pub fn resolve(&self, names: &[String]) -> Result<Injection, Error> {
        if names.is_empty() {
            return Ok(Injection::default());
        }
        let catalog = self.catalog(false);
        let found = match catalog.find(names) {
            Ok(found) => found,
            // What a link in the directory leads to changes without a word; ask again before saying no.
            Err(_) => return edits::collect(self.catalog(true).find(names)?),
        };
        edits::collect(found)
    }

    fn catalog(&self, anew: bool) -> Arc<Catalog> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((watch, catalog)) = known.as_mut()
            && !anew
            && !watch.changed()
        {
            return Arc::clone(catalog);
        }
        // Watched first, so that what changes while the files are read is seen next time.
        let watch = Watch::new(&self.dirs);
        let catalog = Arc::new(Catalog::read(&self.dirs));
        for fault in &catalog.faults {
            tracing::warn!(file = %fault.file.display(), reason = fault.reason, "CDI spec file is not usable");
        }
        *known = Some((watch, Arc::clone(&catalog)));
        catalog
    }
}
