//! Restoring a container: CreateContainer with a checkpoint archive in place of an image, as CRI-O has it.
//!
//! The archive says which image it stands on and how the process was called; the request says all else, and must mount
//! what the archive had mounted. The container is made as any other, its root file system gets the changes, and
//! StartContainer has CRIU bring the processes back instead of running a program. Whoever gives an archive is trusted as
//! whoever may run a privileged container: what CRIU reads decides what the processes may do.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufReader, BufWriter, Read, Write as _},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Container, Error, Result, Tools,
    checkpoint::archive::{CONFIG, DELETED, IMAGES, LOG, ROOTFS_DIFF, SPEC},
};
use crate::{
    images::{
        Image,
        rootfs::remove_tree,
        unpack::{self, Entry, Kind, TarReader},
    },
    store,
};

/// Below the container's directory: what is kept until the start.
const DIRECTORY: &str = "restore";
/// Longest description in an archive, bytes.
const MAX_TEXT: u64 = 8 << 20;

/// Mounts that each container gets anew, wherever it is.
const OWN_MOUNTS: [&str; 9] = [
    "/dev",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
];

/// A checkpoint archive whose descriptions have been read.
#[derive(Debug)]
pub(super) struct Dumped {
    archive: PathBuf,
    config: Config,
    pub spec: Spec,
    deleted: Vec<PathBuf>,
}

/// What is needed of checkpointctl's `ContainerConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    rootfs_image_ref: String,
    rootfs_image_name: String,
}

/// The directory with what StartContainer restores from.
pub(super) fn directory(container: &Container) -> PathBuf {
    container.dir.join(DIRECTORY)
}

/// CRIU's images in that directory.
pub(super) fn images(container: &Container) -> PathBuf {
    directory(container).join(IMAGES)
}

/// The archive that an image's name means: the absolute path of a file.
pub(super) fn archive(image: &str) -> Option<PathBuf> {
    let path = Path::new(image);
    (path.is_absolute() && path.is_file()).then(|| path.to_owned())
}

/// The runtime must be the built-in one, until others are known to put restored processes where they belong.
///
/// # Errors
/// [`Error::Unsupported`] with the handler's name.
pub(super) fn supported(tools: &Tools, container: &Container) -> Result<()> {
    let handler = &container.record.get().runtime_handler;
    match tools.mechanisms.config.get().handler(handler) {
        None => Ok(()),
        Some(command) => Err(Error::Unsupported(format!(
            "restore container {}: not supported with {}, only with the built-in runtime",
            container.id,
            command.path.display()
        ))),
    }
}

/// Reads an archive's descriptions.
///
/// # Errors
/// [`Error::Invalid`] when it is no checkpoint archive.
pub(super) async fn read(container: &Container, archive: PathBuf) -> Result<Dumped> {
    container.blocking(move || Dumped::read(archive)).await
}

impl Dumped {
    fn read(archive: PathBuf) -> Result<Self> {
        let (mut config, mut spec, mut deleted) = (None, None, None);
        each(&archive, |entry, reader| {
            match name(entry).as_deref() {
                Some(CONFIG) => config = Some(json::<Config>(entry, reader)?),
                Some(SPEC) => spec = Some(json::<Spec>(entry, reader)?),
                Some(DELETED) => deleted = Some(json::<Vec<PathBuf>>(entry, reader)?),
                _ => {}
            }
            Ok(())
        })?;
        let missing = |what: &str| invalid(&archive, &format!("it has no {what}"));
        Ok(Self {
            config: config.ok_or_else(|| missing(CONFIG))?,
            spec: spec.ok_or_else(|| missing(SPEC))?,
            deleted: deleted.unwrap_or_default(),
            archive,
        })
    }

    /// The image that the container stood on; pulled when it is not on the node.
    ///
    /// # Errors
    /// When there is none and it can't be pulled.
    pub async fn image(&self, tools: &Tools) -> Result<Arc<Image>> {
        let names = [&self.config.rootfs_image_ref, &self.config.rootfs_image_name];
        let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
        if let Some(image) = names.iter().find_map(|name| tools.images.find(name)) {
            return Ok(image);
        }
        let Some(name) = names.first() else {
            return Err(invalid(
                &self.archive,
                "it does not say of which image the container was",
            ));
        };
        let id = tools.images.pull(name, None, None).await.map_err(|error| {
            Error::State(format!(
                "the image {name} of the checkpoint {} is not on this node and can't be pulled: {error}",
                self.archive.display()
            ))
        })?;
        tools.images.find(&id).ok_or(Error::NoImage(id))
    }

    /// Puts the changes into the mounted root file system, and keeps what the start needs.
    ///
    /// # Errors
    /// When the archive is broken or something can't be written.
    pub async fn apply(self: &Arc<Self>, container: &Container, rootfs: &Path, log: &str) -> Result<()> {
        let (dumped, dir, rootfs, log) = (
            Arc::clone(self),
            directory(container),
            rootfs.to_owned(),
            log.to_owned(),
        );
        container
            .blocking(move || {
                store::remove_dir(&dir)?;
                store::create_dir(&dir.join(IMAGES))?;
                dumped.unpack(&dir, Path::new(&log))?;
                dumped.change(&dir.join(ROOTFS_DIFF), &rootfs)
            })
            .await
    }

    fn unpack(&self, dir: &Path, log: &Path) -> Result<()> {
        let mut complete = false;
        each(&self.archive, |entry, reader| {
            let Some(name) = name(entry).filter(|_| entry.kind == Kind::File) else {
                return Ok(());
            };
            let target = match name.strip_prefix("checkpoint/") {
                // CRIU's images have no directories.
                Some(image) if !image.contains('/') && !image.is_empty() => {
                    complete |= image == "inventory.img";
                    dir.join(IMAGES).join(image)
                }
                None if name == ROOTFS_DIFF => dir.join(ROOTFS_DIFF),
                None if name == LOG && log.is_absolute() && !log.exists() => {
                    if let Some(parent) = log.parent() {
                        store::create_dir(parent)?;
                    }
                    log.to_owned()
                }
                _ => return Ok(()),
            };
            save(reader, &target).map_err(|error| invalid(&self.archive, &error))
        })?;
        if complete {
            Ok(())
        } else {
            Err(invalid(&self.archive, "it has no images of CRIU"))
        }
    }

    fn change(&self, diff: &Path, rootfs: &Path) -> Result<()> {
        let failed = |error: String| invalid(&self.archive, &format!("change the root file system: {error}"));
        if diff.exists() {
            let file = File::open(diff).map_err(|error| failed(error.to_string()))?;
            let options = unpack::Options {
                layer: format!("{ROOTFS_DIFF} of {}", self.archive.display()),
                plain: false,
                hollow: false,
            };
            unpack::unpack_tar(BufReader::new(file), rootfs, &options).map_err(|error| failed(error.to_string()))?;
            fs::remove_file(diff).map_err(|error| failed(error.to_string()))?;
        }
        for path in &self.deleted {
            let place = within(rootfs, path).ok_or_else(|| failed(format!("{} leads elsewhere", path.display())))?;
            remove_tree(&place).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Makes `spec` that of the processes that come back: how they were called and as whom they run. What the archive
    /// had mounted must be mounted again, and nothing besides.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the mounts that are missing or too many.
    pub fn adopt(&self, spec: &mut Spec) -> Result<()> {
        let (had, has) = (mounts(&self.spec), mounts(spec));
        let list = |paths: Vec<&PathBuf>| {
            let texts: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            texts.join(", ")
        };
        let missing: Vec<_> = had.difference(&has).collect();
        if !missing.is_empty() {
            let what = format!("the container has mounts at {}, which the request lacks", list(missing));
            return Err(invalid(&self.archive, &what));
        }
        let added: Vec<_> = has.difference(&had).collect();
        if !added.is_empty() {
            let what = format!("the request has mounts at {}, which the container lacks", list(added));
            return Err(invalid(&self.archive, &what));
        }
        let was = self.spec.process().clone();
        let was = was.ok_or_else(|| invalid(&self.archive, "its spec has no process"))?;
        if let Some(process) = spec.process_mut() {
            process
                .set_args(was.args().clone())
                .set_env(was.env().clone())
                .set_cwd(was.cwd().clone())
                .set_user(was.user().clone());
        }
        Ok(())
    }
}

fn mounts(spec: &Spec) -> BTreeSet<PathBuf> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let points = mounts.iter().map(|mount| mount.destination().clone());
    points
        .filter(|point| {
            let own = OWN_MOUNTS.iter().any(|own| point == Path::new(own));
            !own && !point.starts_with("/sys/fs/cgroup")
        })
        .collect()
}

fn invalid(archive: &Path, why: &str) -> Error {
    Error::Invalid(format!("the checkpoint archive {}: {why}", archive.display()))
}

/// Calls `f` for each entry of an archive.
fn each(archive: &Path, mut f: impl FnMut(&Entry, &mut TarReader<File>) -> Result<()>) -> Result<()> {
    let bad = |error: &dyn std::fmt::Display| invalid(archive, &error.to_string());
    let file = File::open(archive).map_err(|error| bad(&error))?;
    let mut reader = TarReader::new(file);
    while let Some(entry) = reader.next_entry().map_err(|error| bad(&error))? {
        f(&entry, &mut reader)?;
    }
    Ok(())
}

/// An entry's name without a leading `./`; none if it is not text.
fn name(entry: &Entry) -> Option<String> {
    let name = std::str::from_utf8(&entry.name).ok()?;
    Some(name.trim_start_matches("./").to_owned())
}

fn json<T: DeserializeOwned>(entry: &Entry, reader: &mut TarReader<File>) -> Result<T> {
    let what = || name(entry).unwrap_or_default();
    if entry.size > MAX_TEXT {
        return Err(Error::Invalid(format!(
            "{} of a checkpoint is {} bytes long",
            what(),
            entry.size
        )));
    }
    let mut text = Vec::new();
    loop {
        let piece = reader
            .data()
            .map_err(|error| Error::Invalid(format!("{}: {error}", what())))?;
        if piece.is_empty() {
            break;
        }
        text.extend_from_slice(piece);
    }
    serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{} of a checkpoint: {error}", what())))
}

fn save<R: Read>(reader: &mut TarReader<R>, target: &Path) -> std::result::Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |error: &dyn std::fmt::Display| format!("write {}: {error}", target.display());
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)
        .map_err(|error| failed(&error))?;
    let mut file = BufWriter::new(file);
    loop {
        let piece = reader.data().map_err(|error| failed(&error))?;
        if piece.is_empty() {
            break;
        }
        file.write_all(piece).map_err(|error| failed(&error))?;
    }
    file.flush().map_err(|error| failed(&error))
}

/// `path` below `rootfs`, unless a link on the way leads out of it.
fn within(rootfs: &Path, path: &Path) -> Option<PathBuf> {
    let mut place = rootfs.to_owned();
    let mut parts = path.components().filter(|part| *part != Component::RootDir).peekable();
    parts.peek()?;
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return None };
        place.push(name);
        let is_last = parts.peek().is_none();
        if !is_last && fs::symlink_metadata(&place).is_ok_and(|meta| !meta.is_dir()) {
            return None;
        }
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_is_below_the_root() {
        let root = Path::new("/nowhere/rootfs");
        assert_eq!(within(root, Path::new("/etc/x")), Some("/nowhere/rootfs/etc/x".into()));
        assert_eq!(within(root, Path::new("etc/../../x")), None);
        assert_eq!(within(root, Path::new("/")), None);
        assert_eq!(within(root, Path::new("")), None);
    }

    #[test]
    fn only_the_path_of_a_file_is_an_archive() {
        assert!(archive("/proc/version").is_some());
        for other in ["busybox", "127.0.0.1:5000/busybox:latest", "/proc", "proc/version", ""] {
            assert!(archive(other).is_none(), "{other}");
        }
    }
}
