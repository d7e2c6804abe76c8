//! Whether a layer is still what was unpacked.
//!
//! The content of its files is known by the digest of its archive, which the recipe gives back. All else (names, types,
//! owners, modes, targets, attributes, and that nothing came in addition) is compared with what the same archive makes when
//! it is unpacked once more, with files that have their size and no content.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsString},
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use wharf_proto::record;

use super::{
    Result,
    layers::Temporary,
    recipe::{self, Archive},
    reference::is_hex,
    rootfs,
    unpack::{self, Stats},
};
use crate::store;

/// Differences of one layer that are told one by one.
const TOLD: usize = 10;

/// What is wrong with the layer in `directory`, which is to have `diff_id`; nothing if it is whole. `scratch` gets a copy of
/// its tree without content. Blocking, and reads all of the layer.
///
/// # Errors
/// When the comparison itself fails.
pub(super) fn layer(directory: &Path, diff_id: &str, scratch: &Temporary) -> Result<Vec<String>> {
    match content(directory, diff_id, scratch) {
        Ok(_) => differences(&scratch.path().join("fs"), &directory.join("fs")),
        Err(reason) => Ok(vec![reason]),
    }
}

/// Unpacks the layer's archive without content into `scratch/fs`, and checks its digest.
fn content(directory: &Path, diff_id: &str, scratch: &Temporary) -> std::result::Result<Stats, String> {
    let target = scratch.path().join("fs");
    fs::create_dir(&target).map_err(|error| format!("make {}: {error}", target.display()))?;
    let archive = Archive::open(directory).map_err(|error| error.to_string())?;
    let mut hashing = Hashing {
        archive,
        digest: Sha256::new(),
    };
    let options = unpack::Options {
        layer: diff_id.to_owned(),
        hollow: true,
        ..Default::default()
    };
    let stats = unpack::unpack_tar(&mut hashing, &target, &options).map_err(|error| error.to_string())?;
    let got = format!("sha256:{}", hex::encode(hashing.digest.finalize()));
    if got == diff_id {
        Ok(stats)
    } else {
        Err(format!("its content has the digest {got}"))
    }
}

/// The record of the layer in `directory`, whose own can't be read: `name`, the directory's, says which layer it is. Blocking,
/// and reads all of the layer.
///
/// # Errors
/// A sentence, when the layer is not whole either.
pub(super) fn mended(
    directory: &Path,
    name: &str,
    scratch: &Temporary,
) -> std::result::Result<record::UnpackedLayer, String> {
    let hex = name.split('-').next().filter(|hex| hex.len() == 64 && is_hex(hex));
    let diff_id = format!("sha256:{}", hex.ok_or("its name is not that of a layer")?);
    let stats = content(directory, &diff_id, scratch)?;
    let faults = differences(&scratch.path().join("fs"), &directory.join("fs")).map_err(|error| error.to_string())?;
    if let Some(fault) = faults.first() {
        return Err(fault.clone());
    }
    let kept = kept(directory).map_err(|error| format!("measure it: {error}"))?;
    Ok(record::UnpackedLayer {
        schema: store::schema(),
        diff_id,
        bytes: stats.bytes,
        inodes: stats.inodes,
        kept_bytes: kept.0,
        kept_inodes: kept.1,
    })
}

/// Bytes and inodes of what gives the archive back. Files moved aside that have other names count here, which the layer's
/// unpacking did not: a few in a thousand layers have one.
fn kept(directory: &Path) -> io::Result<(u64, u64)> {
    let (mut bytes, mut inodes) = (fs::metadata(directory.join(recipe::FILE))?.len(), 1);
    let mut todo = vec![directory.join(recipe::ASIDE)];
    while let Some(path) = todo.pop() {
        let meta = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        inodes += 1;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        } else if meta.is_file() {
            bytes += meta.len();
        }
    }
    Ok((bytes, inodes))
}

/// How the tree `found` differs from `wanted`, in sentences. Times of directories are left out: those that no entry of an
/// archive describes have the time of their unpacking.
fn differences(wanted: &Path, found: &Path) -> Result<Vec<String>> {
    let mut faults = Faults::default();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        let (want, have) = (names(&wanted.join(&below)), names(&found.join(&below)));
        let (want, have) = match (want, have) {
            (Ok(want), Ok(have)) => (want, have),
            (Err(error), _) => return Err(super::Error::io("list", wanted.join(&below))(error)),
            (_, Err(error)) => {
                faults.add(&below, &format!("can't be listed: {error}"));
                continue;
            }
        };
        for name in want.union(&have) {
            let path = below.join(name);
            match (want.contains(name), have.contains(name)) {
                (true, false) => faults.add(&path, "is missing"),
                (false, true) => faults.add(&path, "is not of the layer"),
                _ => {
                    if let Some(what) = compare(&wanted.join(&path), &found.join(&path)) {
                        faults.add(&path, &what);
                    } else if found.join(&path).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                        todo.push(path);
                    }
                }
            }
        }
    }
    Ok(faults.told())
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

/// What differs between two things of the same name.
fn compare(wanted: &Path, found: &Path) -> Option<String> {
    let stat = |path: &Path| {
        path.symlink_metadata()
            .map_err(|error| format!("can't be looked at: {error}"))
    };
    let (want, have) = match (stat(wanted), stat(found)) {
        (Ok(want), Ok(have)) => (want, have),
        (Err(reason), _) | (_, Err(reason)) => return Some(reason),
    };
    if want.file_type() != have.file_type() {
        return Some(format!("is a {} instead of a {}", kind(&have), kind(&want)));
    }
    let mode = |meta: &Metadata| meta.mode() & 0o7777;
    if mode(&want) != mode(&have) {
        return Some(format!("has mode {:o} instead of {:o}", mode(&have), mode(&want)));
    }
    if (want.uid(), want.gid()) != (have.uid(), have.gid()) {
        let (is, was) = ((have.uid(), have.gid()), (want.uid(), want.gid()));
        return Some(format!("belongs to {}:{} instead of {}:{}", is.0, is.1, was.0, was.1));
    }
    if want.is_file() && (want.len(), want.mtime()) != (have.len(), have.mtime()) {
        return Some("has another size or time than it was unpacked with".to_owned());
    }
    if want.rdev() != have.rdev() {
        return Some("is another device".to_owned());
    }
    if want.is_symlink() && fs::read_link(wanted).ok() != fs::read_link(found).ok() {
        return Some("leads elsewhere".to_owned());
    }
    (attributes(wanted) != attributes(found)).then(|| "has other extended attributes".to_owned())
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match kind {
        _ if kind.is_dir() => "directory",
        _ if kind.is_file() => "file",
        _ if kind.is_symlink() => "symlink",
        _ if kind.is_fifo() => "pipe",
        _ if kind.is_socket() => "socket",
        _ => "device",
    }
}

/// Extended attributes, without the label that SELinux gives by where a file lies.
fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return BTreeMap::new();
    };
    let all = rootfs::xattrs(&path).unwrap_or_default();
    all.into_iter()
        .filter(|(name, _)| name != b"security.selinux")
        .collect()
}

#[derive(Default)]
struct Faults {
    told: Vec<String>,
    more: usize,
}

impl Faults {
    fn add(&mut self, path: &Path, what: &str) {
        if self.told.len() < TOLD {
            self.told.push(format!("{:?} {what}", Path::new("/").join(path)));
        } else {
            self.more += 1;
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more differences", self.more));
        }
        self.told
    }
}

/// An archive that is hashed while it is read.
struct Hashing {
    archive: Archive,
    digest: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.archive.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}
