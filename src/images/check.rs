//! Whether the images on disk are what they are taken for. Looks at files only, whether a daemon runs or not: what is moved
//! away meanwhile is no fault.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use wharf_proto::record;

use super::{
    Error, ImageConfig, Result,
    layers::{BLOB, Temporary},
    papers,
    reference::{is_digest, is_hex},
    registry::digest_of,
    verify,
};
use crate::store;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is concerned.
    pub what: Broken,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong, in a sentence without a full stop.
    pub problem: String,
    /// Names of the images that are not whole by this, for a pull.
    pub names: Vec<String>,
}

/// What can be broken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Broken {
    /// An image, by its id.
    Image(String),
    /// A layer, by the name of its directory.
    Layer(String),
    /// A file or directory that belongs to nothing.
    Stray,
    /// What a newer version has written, which is to be left alone.
    Newer,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Images looked at.
    pub images: u64,
    /// Layers looked at.
    pub layers: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// Checks all images and layers below `root`, the images room's directory: every record, configuration and manifest, and of
/// every layer the content and all that is known of its files. Blocking, and reads all of it.
///
/// # Errors
/// When a directory of the room's own can't be listed, or there is no room for a comparison.
pub fn check(root: &Path) -> Result<Report> {
    let mut report = Report::default();
    let layers = layers(root, &mut report)?;
    images(root, &layers, &mut report)?;
    name_images_of_broken_layers(root, &mut report)?;
    // Removed while they were looked at.
    report.faults.retain(|fault| fault.path.symlink_metadata().is_ok());
    Ok(report)
}

/// Diff IDs of the layers that are there.
fn layers(root: &Path, report: &mut Report) -> Result<HashSet<String>> {
    let directory = root.join("layers");
    let mut known = HashSet::new();
    for (name, is_dir) in entries(&directory)? {
        let path = directory.join(&name);
        if !is_dir {
            report.stray(path, "a file among the layers that no version of wharf puts there");
            continue;
        }
        report.layers += 1;
        let broken = |problem: String| Fault {
            what: Broken::Layer(name.clone()),
            path: path.clone(),
            problem,
            names: Vec::new(),
        };
        match store::read_versioned::<record::UnpackedLayer>(&path.join("record")) {
            Ok(Some(layer)) if is_digest(&layer.diff_id) => {
                let faults = verify::layer(&path, &layer.diff_id, &scratch(root)?)?;
                if !faults.is_empty() {
                    report.faults.push(broken(faults.join("; ")));
                }
                for (name, stray) in beside(&path)? {
                    match name.strip_prefix(BLOB) {
                        None => report.stray(stray, "a file beside a layer that no version of wharf puts there"),
                        Some(hex) if sum(&stray)?.is_none_or(|found| found == hex) => {}
                        Some(_) => report.stray(
                            stray,
                            "a kept blob that is damaged; a push makes one of the files in its place",
                        ),
                    }
                }
                known.insert(layer.diff_id);
            }
            other => {
                // Told once, not again with each image that has it.
                known.insert(format!("sha256:{}", name.split('-').next().unwrap_or_default()));
                match other {
                    Ok(Some(_)) => report.faults.push(broken("its record names no layer".into())),
                    Ok(None) => report.faults.push(broken("it has no record".into())),
                    Err(error) => report.unreadable(Broken::Layer(name.clone()), path.clone(), error),
                }
            }
        }
    }
    Ok(known)
}

fn images(root: &Path, layers: &HashSet<String>, report: &mut Report) -> Result<()> {
    let directory = root.join("records");
    for (name, is_dir) in entries(&directory)? {
        let path = directory.join(&name);
        if !is_dir || name.len() != 64 || !is_hex(&name) {
            report.stray(path, "a file among the images that no version of wharf puts there");
            continue;
        }
        report.images += 1;
        let id = format!("sha256:{name}");
        let image = match store::read_versioned::<record::Image>(&path.join("record")) {
            Ok(Some(image)) => image,
            Ok(None) => {
                report.broken_image(&id, &path, "it has no record", &[]);
                continue;
            }
            Err(error) => {
                report.unreadable(Broken::Image(id), path, error);
                continue;
            }
        };
        let names = super::names::names(&image);
        for problem in image_problems(&path, &image, &id, layers) {
            report.broken_image(&id, &path, &problem, &names);
        }
        for (file, _) in entries(&path)? {
            let is_document = file.len() == 64 && is_hex(&file);
            if is_document && digest_of(&read(&path.join(&file))?) != format!("sha256:{file}") {
                report.broken_image(&id, &path, &format!("its manifest {file} is damaged"), &names);
            } else if !is_document
                && !matches!(
                    file.as_str(),
                    "record" | "config" | "record.new" | papers::EVIDENCE | "signatures.new"
                )
            {
                report.stray(
                    path.join(&file),
                    "a file in an image that no version of wharf puts there",
                );
            }
        }
    }
    Ok(())
}

fn image_problems(path: &Path, image: &record::Image, id: &str, layers: &HashSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    if image.id != id {
        problems.push(format!("its record is that of image {}", image.id));
    }
    match fs::read(path.join("config")) {
        Err(error) => problems.push(format!("its configuration can't be read: {error}")),
        Ok(bytes) if digest_of(&bytes) != id => problems.push("its configuration is damaged".to_owned()),
        Ok(bytes) => {
            let own: Vec<&String> = image.layers.iter().map(|layer| &layer.diff_id).collect();
            match ImageConfig::parse(&bytes) {
                // Of an artifact the manifest stands there, which knows no archives.
                Ok(_) if !image.artifact_type.is_empty() => {}
                Ok(config) if config.diff_ids.iter().collect::<Vec<_>>() == own => {}
                Ok(_) => problems.push("its record has other layers than its configuration".to_owned()),
                Err(error) => problems.push(format!("its configuration can't be read: {error}")),
            }
        }
    }
    let missing = image.layers.iter().filter(|layer| !layers.contains(&layer.diff_id));
    problems.extend(missing.map(|layer| format!("its layer {} is missing", layer.diff_id)));
    problems
}

/// Tells with each broken layer which images it takes along.
fn name_images_of_broken_layers(root: &Path, report: &mut Report) -> Result<()> {
    let directory = root.join("records");
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for name in store::list_dirs(&directory)? {
        if let Ok(Some(image)) = store::read_versioned::<record::Image>(&directory.join(name).join("record")) {
            for layer in &image.layers {
                let called = super::names::names(&image)
                    .into_iter()
                    .next()
                    .unwrap_or_else(|| image.id.clone());
                users.entry(layer.diff_id.clone()).or_default().push(called);
            }
        }
    }
    for fault in &mut report.faults {
        if let Broken::Layer(name) = &fault.what {
            let diff_id = format!("sha256:{}", name.split('-').next().unwrap_or_default());
            fault.names = users.get(&diff_id).cloned().unwrap_or_default();
        }
    }
    Ok(())
}

/// A directory for a comparison, on the file system of the layers: others may lack their attributes.
fn scratch(root: &Path) -> Result<Temporary> {
    Temporary::create(root)
}

/// What lies in a layer's directory and does not belong there.
fn beside(layer: &Path) -> Result<Vec<(String, PathBuf)>> {
    let known = ["fs", "record", "recipe", "aside", "packed", "record.new", "packed.new"];
    let others = entries(layer)?;
    Ok(others
        .into_iter()
        .filter(|(name, _)| !known.contains(&name.as_str()))
        .map(|(name, _)| (name.clone(), layer.join(name)))
        .collect())
}

/// SHA-256 of a file, hex; `None` if it is absent, as one that was removed meanwhile.
fn sum(path: &Path) -> Result<Option<String>> {
    let failed = || Error::io("read", path);
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed())?,
    };
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 128 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(hex::encode(digest.finalize()))),
            Ok(read) => digest.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed()(error)),
        }
    }
}

/// Names in a directory, and which are directories; none if it is absent, as one that was removed meanwhile.
fn entries(directory: &Path) -> Result<Vec<(String, bool)>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(Error::io("list", directory))?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(Error::io("list", directory))?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        names.push((entry.file_name().to_string_lossy().into_owned(), is_dir));
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        // Removed meanwhile, or a directory where a file belongs, which has no digest either.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        bytes => bytes.map_err(Error::io("read", path)),
    }
}

impl Report {
    fn stray(&mut self, path: PathBuf, problem: &str) {
        self.faults.push(Fault {
            what: Broken::Stray,
            path,
            problem: problem.to_owned(),
            names: Vec::new(),
        });
    }

    fn broken_image(&mut self, id: &str, path: &Path, problem: &str, names: &[String]) {
        self.faults.push(Fault {
            what: Broken::Image(id.to_owned()),
            path: path.to_owned(),
            problem: problem.to_owned(),
            names: names.to_vec(),
        });
    }

    fn unreadable(&mut self, what: Broken, path: PathBuf, error: store::Error) {
        let what = if matches!(error, store::Error::Newer { .. }) {
            Broken::Newer
        } else {
            what
        };
        self.faults.push(Fault {
            what,
            path,
            problem: error.to_string(),
            names: Vec::new(),
        });
    }
}
