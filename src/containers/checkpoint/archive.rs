//! What a checkpoint archive holds: the files that kubelet's tools, checkpointctl and the peers' importers look for
//! (checkpointctl's lib/metadata.go names them), with containerd's variants where peers differ.
//!
//! ```text
//! config.dump      which container of which image, by which runtime, when
//! spec.dump        its OCI spec
//! status.dump      its CRI status, as Go's encoding/json writes the CRI message
//! bind.mounts      what is bound into it, and whether that is a file or a directory
//! checkpoint/      CRIU's images
//! dump.log, stats-dump
//! rootfs-diff.tar  what it has added to and changed in its image
//! deleted.files    what it has deleted of its image
//! volumes.dump     the volumes that its image declares (Wharf's own, like the next)
//! volume-N.tar     what is in the Nth of them
//! container.log    its log so far
//! ```
//!
//! The checkpoint of a pod has the same files in a directory for each container.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use wharf_proto::record;

use super::{
    Patience,
    output::Limited,
    volumes::{self, VOLUMES, Volume},
};
use crate::{
    containers::{Container, Error, Result},
    images::{
        tarball::{Tarball, empty},
        unpack::{Entry, Kind},
    },
    store,
};

/// Directory of CRIU's images, in the work directory and in the archive.
pub const IMAGES: &str = "checkpoint";
/// Tar of what was added and changed.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// JSON array of what was deleted.
pub const DELETED: &str = "deleted.files";
/// Which container.
pub const CONFIG: &str = "config.dump";
/// Its OCI spec.
pub const SPEC: &str = "spec.dump";

/// What is bound into it.
pub const BIND_MOUNTS: &str = "bind.mounts";

const STATUS: &str = "status.dump";
/// The log so far.
pub const LOG: &str = "container.log";
/// CRIU's own files beside its images.
const CRIU_FILES: [&str; 2] = ["dump.log", "stats-dump"];

/// What goes into an archive besides what lies in the work directory.
pub struct Contents {
    config: Value,
    status: Value,
    spec: PathBuf,
    changed: Changed,
    /// Empty where there is none.
    log: PathBuf,
    time: i64,
}

/// What the container has changed of its files, beside what lies in the work directory.
#[derive(Debug, Default)]
pub struct Changed {
    /// Paths below the root, of its image.
    pub deleted: Vec<PathBuf>,
    /// Volumes of its own, in the order of their archives.
    pub volumes: Vec<Volume>,
}

impl Contents {
    pub fn of(container: &Container, record: &record::Container, handler: &str, changed: Changed) -> Self {
        let time = store::now();
        Self {
            config: config(record, handler, time),
            status: status(record),
            spec: container.dir.join("config.json"),
            changed,
            log: PathBuf::from(&record.log_path),
            time,
        }
    }

    /// When the checkpoint was made: Unix time, nanoseconds.
    pub fn time(&self) -> i64 {
        self.time
    }

    /// Writes the archive from the work directory. Blocks.
    pub fn write<W: Write>(&self, work: &Path, out: W) -> io::Result<()> {
        let mut tar = Tarball::new(out);
        let seconds = self.time / 1_000_000_000;
        for (name, text) in self.descriptions()? {
            bytes(&mut tar, name, &text, seconds)?;
        }
        let directory = Entry {
            kind: Kind::Directory,
            name: format!("{IMAGES}/").into_bytes(),
            mode: 0o700,
            mtime: (seconds, 0),
            ..empty()
        };
        tar.add(&directory, io::empty())?;
        let mut images = fs::read_dir(work.join(IMAGES))?.collect::<io::Result<Vec<_>>>()?;
        images.sort_by_key(fs::DirEntry::file_name);
        for image in images {
            let name = format!("{IMAGES}/{}", image.file_name().to_string_lossy());
            file(&mut tar, &name, &image.path())?;
        }
        file(&mut tar, ROOTFS_DIFF, &work.join(ROOTFS_DIFF))?;
        for number in 0..self.changed.volumes.len() {
            let name = volumes::archive(number);
            file(&mut tar, &name, &work.join(&name))?;
        }
        for name in CRIU_FILES {
            optional(&mut tar, name, &work.join(name))?;
        }
        if !self.log.as_os_str().is_empty() {
            optional(&mut tar, LOG, &self.log)?;
        }
        tar.finish().map(drop)
    }

    /// Completes the work directory, which is then the checkpoint. Blocks.
    pub fn complete(&self, work: &Path, patience: &Patience) -> io::Result<()> {
        for (name, text) in self.descriptions()? {
            Limited::new(create(&work.join(name))?, patience).write_all(&text)?;
        }
        if !self.log.as_os_str().is_empty() && self.log.is_file() {
            let log = File::open(&self.log)?;
            let length = log.metadata()?.len();
            io::copy(
                &mut log.take(length),
                &mut Limited::new(create(&work.join(LOG))?, patience),
            )?;
        }
        Ok(())
    }

    fn descriptions(&self) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let spec = fs::read(&self.spec)?;
        let binds = bind_mounts(&serde_json::from_slice(&spec)?);
        let deleted: Vec<_> = self.changed.deleted.iter().map(|path| path.to_string_lossy()).collect();
        let values = [
            (CONFIG, self.config.clone()),
            (STATUS, self.status.clone()),
            (BIND_MOUNTS, binds),
            (DELETED, json!(deleted)),
            (VOLUMES, json!(self.changed.volumes)),
        ];
        let mut all = vec![(SPEC, spec)];
        for (name, value) in values {
            all.push((name, serde_json::to_vec_pretty(&value)?));
        }
        Ok(all)
    }
}

/// A new file for nobody but root.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn bytes<W: Write>(tar: &mut Tarball<W>, name: &str, bytes: &[u8], time: i64) -> io::Result<()> {
    tar.add(&root_only(name, bytes.len() as u64, time), bytes)
}

/// A file that only root may read.
fn root_only(name: &str, size: u64, time: i64) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        mode: 0o600,
        size,
        mtime: (time, 0),
        ..empty()
    }
}

fn optional<W: Write>(tar: &mut Tarball<W>, name: &str, path: &Path) -> io::Result<()> {
    if path.is_file() { file(tar, name, path) } else { Ok(()) }
}

/// As long as it is now: a log grows meanwhile.
fn file<W: Write>(tar: &mut Tarball<W>, name: &str, path: &Path) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(named)?;
    let meta = file.metadata().map_err(named)?;
    if !meta.is_file() {
        return Err(named(io::Error::other("not a file")));
    }
    tar.add(&root_only(name, meta.len(), meta.mtime()), file).map_err(named)
}

pub fn read_spec(path: &Path) -> Result<Spec> {
    Spec::load(path).map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
}

/// As checkpointctl's `ContainerConfig`.
fn config(record: &record::Container, handler: &str, now: i64) -> Value {
    let config = record.config.clone().unwrap_or_default();
    let image = config.image.unwrap_or_default();
    let name = [image.user_specified_image, image.image]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default();
    json!({
        "id": record.id,
        "name": config.metadata.unwrap_or_default().name,
        "rootfsImage": name,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": name,
        "rootfsImageID": record.image_id,
        "runtime": handler,
        "createdTime": time(record.created_at),
        "checkpointedTime": time(now),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

fn status(record: &record::Container) -> Value {
    let config = record.config.clone().unwrap_or_default();
    let (metadata, image) = (config.metadata.unwrap_or_default(), config.image.unwrap_or_default());
    json!({
        "id": record.id,
        "metadata": { "name": metadata.name, "attempt": metadata.attempt },
        "state": i32::from(wharf_proto::cri::ContainerState::ContainerRunning),
        "created_at": record.created_at,
        "started_at": record.started_at,
        "image": { "image": image.image, "user_specified_image": image.user_specified_image },
        "image_ref": record.image_ref,
        "image_id": record.image_id,
        "labels": config.labels,
        "annotations": config.annotations,
        "log_path": record.log_path,
    })
}

/// RFC 3339, of nanoseconds since 1970.
pub fn time(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanos.into()).map_or_else(|_| String::new(), |time| time.to_string())
}

/// As CRI-O's `ExternalBindMount`: whoever restores elsewhere must know what to make in place of what is missing.
fn bind_mounts(spec: &Spec) -> Value {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let binds = mounts.iter().filter(|mount| mount.typ().as_deref() == Some("bind"));
    let described = binds.filter_map(|mount| {
        let source = mount.source().as_ref()?;
        let meta = fs::metadata(source).ok()?;
        Some(json!({
            "source": source,
            "destination": mount.destination(),
            "file_type": if meta.is_dir() { "directory" } else { "file" },
            "permissions": meta.permissions().mode() & 0o777,
        }))
    });
    Value::Array(described.collect())
}
