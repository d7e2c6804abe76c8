//! All devices of all spec files, as they are at one moment.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Error,
    format::{self, SpecFile},
};

/// A file that could not be used.
#[derive(Debug)]
pub(super) struct Fault {
    pub file: PathBuf,
    pub reason: String,
}

/// A spec file and where it lies.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub file: SpecFile,
}

/// A device that was asked for and found.
#[derive(Debug)]
pub(super) struct Found {
    pub name: String,
    pub source: Arc<Source>,
    /// Its place in the file.
    pub at: usize,
}

#[derive(Debug)]
struct Entry {
    /// Place of the directory: a later one wins.
    priority: usize,
    at: usize,
    source: Arc<Source>,
    /// Files of the same priority that define it as well, which makes it unusable.
    rivals: Vec<PathBuf>,
}

/// Devices by qualified name.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    devices: HashMap<String, Entry>,
    pub faults: Vec<Fault>,
}

impl Catalog {
    /// Reads all `.json` and `.yaml` files in the directories; absent ones are empty.
    pub(super) fn read(dirs: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        for (priority, dir) in dirs.iter().enumerate() {
            match files(dir) {
                Ok(files) => files.into_iter().for_each(|path| catalog.add_file(path, priority)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => catalog.fault(dir.clone(), error.to_string()),
            }
        }
        catalog
    }

    fn fault(&mut self, file: PathBuf, reason: String) {
        self.faults.push(Fault { file, reason });
    }

    fn add_file(&mut self, path: PathBuf, priority: usize) {
        let yaml = path.extension().is_some_and(|extension| extension == "yaml");
        let parsed = read_text(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| format::parse(&text, yaml));
        let source = match parsed {
            Ok(file) => Arc::new(Source { path, file }),
            Err(reason) => return self.fault(path, reason),
        };
        for (at, device) in source.file.devices.iter().enumerate() {
            let name = format!("{}={}", source.file.kind, device.name);
            let entry = Entry {
                priority,
                at,
                source: Arc::clone(&source),
                rivals: Vec::new(),
            };
            match self.devices.get_mut(&name) {
                Some(other) if other.priority == priority => other.rivals.push(source.path.clone()),
                // Directories are read in rising priority.
                _ => drop(self.devices.insert(name, entry)),
            }
        }
    }

    /// The devices of these names, all or an error that says why each missing one is missing.
    pub(super) fn find(&self, names: &[String]) -> Result<Vec<Found>, Error> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match self.devices.get(name) {
                Some(entry) if entry.rivals.is_empty() => found.push(Found {
                    name: name.clone(),
                    source: Arc::clone(&entry.source),
                    at: entry.at,
                }),
                Some(entry) => {
                    let rivals: Vec<_> = std::iter::once(&entry.source.path)
                        .chain(&entry.rivals)
                        .map(|path| path.display().to_string())
                        .collect();
                    missing.push(format!("{name}: defined by each of {}", rivals.join(", ")));
                }
                None => missing.push(format!("{name}: no CDI spec file defines it")),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        // The device may be in a file that can't be read; who asks can't know which.
        for fault in &self.faults {
            missing.push(format!("{} is not usable: {}", fault.file.display(), fault.reason));
        }
        Err(Error::Unresolvable(missing))
    }
}

/// The spec files of a directory, by name; those in directories below do not count.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let named = path.extension().is_some_and(|e| e == "json" || e == "yaml");
        if named && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Not waiting on a pipe that someone has put there.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > format::MAX_FILE {
        return Err(io::Error::other(format!("larger than {} bytes", format::MAX_FILE)));
    }
    let mut text = String::new();
    file.take(format::MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}
