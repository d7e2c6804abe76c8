//! Restoring a container: CreateContainer with a checkpoint in place of an image, as CRI-O has it, and RestorePod.
//!
//! The checkpoint is an archive, an image with what an archive holds, or a directory. It says on which image it stands and
//! how the process was called; the request says all else, and must mount what the checkpoint had mounted. The container is
//! made as any other, its files get the changes, and StartContainer has CRIU bring the processes back instead of running a
//! program. Whoever gives a checkpoint is trusted as whoever may run a privileged container: what CRIU reads decides what
//! the processes may do.

mod adopt;
mod binds;
pub(super) mod described;
mod source;

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::Spec;
use wharf_proto::cri::ContainerConfig;

use described::{Descriptions, within};
pub(super) use source::Source;

use super::{
    Container, Error, Result, Tools,
    checkpoint::{
        archive::{CONFIG, IMAGES, LOG, ROOTFS_DIFF, SPEC},
        program,
        volumes::{self, Volume as Dump},
    },
    users::ResolvedUser,
    volumes::Volume,
};
use crate::{
    config::Containers,
    images::{Image, rootfs::remove_tree, unpack},
    runtime::checkpoint::{CRIU_OPTIONS, MOUNTS},
    store,
};

/// Below the container's directory: what is kept until the start.
const DIRECTORY: &str = "restore";
/// Longest description in a checkpoint, bytes.
const MAX_TEXT: u64 = 8 << 20;

/// What RestorePod makes a container from.
#[derive(Debug, Clone)]
pub struct Part {
    /// The directory with the container's part of the checkpoint.
    pub directory: PathBuf,
    /// Digest of the configuration of the image that it stands on.
    pub image_id: String,
}

/// A checkpoint whose descriptions have been read.
#[derive(Debug)]
pub(super) struct Dumped {
    source: Source,
    described: Descriptions,
    spec: Spec,
    /// What the request says of the processes must be so.
    strict: bool,
}

/// The directory with what StartContainer restores from.
pub(super) fn directory(container: &Container) -> PathBuf {
    container.dir.join(DIRECTORY)
}

/// CRIU's images in that directory.
pub(super) fn images(container: &Container) -> PathBuf {
    directory(container).join(IMAGES)
}

/// Tells a runtime program where it finds options for CRIU, which the start writes.
pub(super) fn point_to_options(container: &Container, spec: &mut Spec) {
    let file = directory(container).join(CRIU_OPTIONS).display().to_string();
    let annotations = spec.annotations_mut().get_or_insert_default();
    annotations.insert("org.criu.config".to_owned(), file);
}

/// The archive that an image's name means: the absolute path of a file.
fn archive(image: &str) -> Option<Source> {
    let path = Path::new(image);
    (path.is_absolute() && path.is_file()).then(|| Source::Archive(path.to_owned()))
}

/// The image that a container named `named` stands on, and the checkpoint that it is restored from, if it is: `part` of a
/// pod's checkpoint, or what the name leads to.
///
/// # Errors
/// [`Error::NoImage`]; when the checkpoint can't be read or restored here.
pub(super) async fn find(
    tools: &Tools,
    container: &Container,
    named: String,
    part: Option<Part>,
) -> Result<(Arc<Image>, Option<Arc<Dumped>>)> {
    if let Some(part) = part {
        let image = tools.images.find(&named).ok_or_else(|| Error::NoImage(named.clone()))?;
        let source = Source::Directory(part.directory);
        if image.id != part.image_id {
            let why = format!(
                "the container was of image {}, and {named} is {}",
                part.image_id, image.id
            );
            return Err(source.invalid(&why));
        }
        let dumped = read(container, source, true).await?;
        supported(tools, container).await?;
        return Ok((image, Some(dumped)));
    }
    let source = match archive(&named) {
        Some(source) => source,
        None => match tools.images.find(&named) {
            None => return Err(Error::NoImage(named)),
            Some(image) if !image.checkpoint => return Ok((image, None)),
            Some(image) => Source::Image(named, image),
        },
    };
    let dumped = read(container, source, false).await?;
    supported(tools, container).await?;
    Ok((dumped.image(tools).await?, Some(dumped)))
}

/// Refuses what would only be found out when the container is started.
///
/// # Errors
/// [`Error::Unsupported`] with what is in the way, [`Error::State`] without CRIU.
async fn supported(tools: &Tools, container: &Container) -> Result<()> {
    let mechanisms = &tools.mechanisms;
    let handler = &container.record.get().runtime_handler;
    let refuse = |why: String| Err(Error::Unsupported(format!("restore container {}: {why}", container.id)));
    let daemon = mechanisms.config.get();
    if let Some(command) = daemon.handler(handler) {
        let name = daemon.resolve_handler(handler);
        if !mechanisms.runtime_features.current(name).await.restores {
            return refuse(format!(
                "{} does not say that it can: its `features` lack an annotation \"...checkpoint.enabled\", as one without \
                 CRIU does",
                command.path.display()
            ));
        }
    }
    if !mechanisms.cgroups.is_v2() {
        return refuse("processes can't be brought back on cgroup v1, only on a node with cgroup v2".into());
    }
    program::find(container).map(drop)
}

/// For the fuzz target: makes `spec` that of what is described, where that can be.
pub(super) fn adopted(mut described: Descriptions, spec: &mut Spec) {
    let Some(was) = described.spec.take() else { return };
    for strict in [false, true] {
        let dumped = Dumped {
            source: Source::Directory("/checkpoint".into()),
            described: Descriptions::default(),
            spec: was.clone(),
            strict,
        };
        let _ = (dumped.had_entries(), dumped.user(&ResolvedUser::default()));
        let _ = dumped.adopt(spec, Path::new("/own"));
    }
}

/// Reads a checkpoint's descriptions.
async fn read(container: &Container, source: Source, strict: bool) -> Result<Arc<Dumped>> {
    let read = container.blocking(move || Dumped::read(source, strict)).await?;
    Ok(Arc::new(read))
}

impl Dumped {
    fn read(source: Source, strict: bool) -> Result<Self> {
        let mut described = Descriptions::default();
        source.each(|name, length, content| {
            if !Descriptions::knows(name) {
                return Ok(());
            }
            let text = source::text(name, length, MAX_TEXT, content)?;
            described.take(name, &text).map_err(|why| source.invalid(&why))
        })?;
        let missing = |what: &str| source.invalid(&format!("it has no {what}"));
        if described.config.is_none() {
            return Err(missing(CONFIG));
        }
        Ok(Self {
            spec: described.spec.take().ok_or_else(|| missing(SPEC))?,
            described,
            source,
            strict,
        })
    }

    /// What the container's status calls it.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// When it was made: Unix time, nanoseconds; 0 if it does not say.
    pub fn made_at(&self) -> i64 {
        let config = self.described.config.as_ref();
        config.map_or(0, described::Config::checkpointed_at)
    }

    /// The image that the container stood on; pulled when it is not on the node.
    async fn image(&self, tools: &Tools) -> Result<Arc<Image>> {
        let config = self.described.config.clone().unwrap_or_default();
        let names = [&config.rootfs_image_ref, &config.rootfs_image_name];
        let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
        if let Some(image) = names.iter().find_map(|name| tools.images.find(name)) {
            return Ok(image);
        }
        // CRI-O's reference is an id, which no registry knows.
        let is_id = |name: &&&String| {
            let digits = name.strip_prefix("sha256:").unwrap_or(name);
            digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let Some(name) = names.iter().find(|name| !is_id(name)) else {
            return Err(self.source.invalid(match names.first() {
                None => "it does not say of which image the container was",
                Some(_) => "the image of the container is not on this node, and its name is not known",
            }));
        };
        let id = tools.images.pull(name, None, None).await.map_err(|error| {
            Error::State(format!(
                "the image {name} of the checkpoint {} is not on this node and can't be pulled: {error}",
                self.source.name()
            ))
        })?;
        tools.images.find(&id).ok_or(Error::NoImage(id))
    }

    /// Puts the changes into the mounted root file system, and keeps what the start needs. `builtin` is the runtime that will
    /// restore it.
    ///
    /// # Errors
    /// When the checkpoint is broken or another runtime's, or something can't be written.
    pub async fn apply(self: &Arc<Self>, container: &Container, rootfs: &Path, log: &str, builtin: bool) -> Result<()> {
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
                if builtin && !dir.join(IMAGES).join(MOUNTS).is_file() {
                    return Err(Error::Unsupported(format!(
                        "the checkpoint {} was not made by the built-in runtime, which needs its own notes of mounts ({MOUNTS}); \
                         restore it with the handler that made it",
                        dumped.name()
                    )));
                }
                dumped.change(&dir.join(ROOTFS_DIFF), &rootfs)
            })
            .await
    }

    fn unpack(&self, dir: &Path, log: &Path) -> Result<()> {
        let archives: Vec<_> = (0..self.described.volumes.len()).map(volumes::archive).collect();
        let mut complete = false;
        self.source.each(|name, _, content| {
            let target = match name.strip_prefix("checkpoint/") {
                // CRIU's images have no directories.
                Some(image) if !image.contains('/') && !image.is_empty() => {
                    complete |= image == "inventory.img";
                    dir.join(IMAGES).join(image)
                }
                None if name == ROOTFS_DIFF || archives.iter().any(|archive| archive == name) => dir.join(name),
                None if name == LOG && log.is_absolute() && !log.exists() => {
                    if let Some(parent) = log.parent() {
                        store::create_dir(parent)?;
                    }
                    log.to_owned()
                }
                _ => return Ok(()),
            };
            content.save(&target).map_err(|error| self.source.invalid(&error))
        })?;
        if complete {
            Ok(())
        } else {
            Err(self.source.invalid("it has no images of CRIU"))
        }
    }

    fn change(&self, diff: &Path, rootfs: &Path) -> Result<()> {
        let failed = |error: String| self.source.invalid(&format!("change the root file system: {error}"));
        if diff.exists() {
            let file = File::open(diff).map_err(|error| failed(error.to_string()))?;
            let options = unpack::Options {
                layer: format!("{ROOTFS_DIFF} of {}", self.source.name()),
                plain: false,
                hollow: false,
            };
            unpack::unpack_tar(BufReader::new(file), rootfs, &options).map_err(|error| failed(error.to_string()))?;
            fs::remove_file(diff).map_err(|error| failed(error.to_string()))?;
        }
        for path in &self.described.deleted {
            let place = within(rootfs, path).ok_or_else(|| failed(format!("{} leads elsewhere", path.display())))?;
            remove_tree(&place).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Makes what the mounts of `config` lack on the node, as what it was; see [`binds::make`]. Blocks.
    ///
    /// # Errors
    /// As there.
    pub fn make_sources(&self, config: &ContainerConfig, settings: &Containers) -> Result<()> {
        binds::make(&self.described, config, settings)
    }

    /// Gives the new container's own volumes what was in those of the one that was dumped. Blocks.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an archive is missing or broken.
    pub fn fill(&self, container: &Container, own: &[Volume]) -> Result<()> {
        for (number, was) in self.described.volumes.iter().enumerate() {
            // Where the request mounts something else, the volume is not of the container's own any more.
            let Some(volume) = own.iter().find(|volume| volume.target == was.destination) else {
                continue;
            };
            let archive = directory(container).join(volumes::archive(number));
            Dump::restore(was, &archive, &volume.source).map_err(|error| {
                let what = volume.target.display();
                self.source.invalid(&format!("bring back the volume {what}: {error}"))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_of_a_file_is_an_archive() {
        assert!(archive("/proc/version").is_some());
        for other in ["busybox", "127.0.0.1:5000/busybox:latest", "/proc", "proc/version", ""] {
            assert!(archive(other).is_none(), "{other}");
        }
    }
}
