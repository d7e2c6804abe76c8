//! What a container has changed of its image: as a tar of what it wrote and a list of what it deleted, the form in which
//! checkpoints carry it.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use super::{sys, xattrs};
use crate::images::tarball::Tarball;
use crate::images::unpack::{Entry, Kind};

/// Directories within each other that are followed; deeper trees are an error.
const MAX_DEPTH: usize = 1024;

/// The changes of one container. Nothing may write to its root filesystem while they are read.
#[derive(Debug)]
pub struct Changes {
    upper: PathBuf,
    /// Top first.
    layers: Vec<PathBuf>,
}

impl Changes {
    pub(in crate::images) fn new(container_dir: &Path, layers: Vec<PathBuf>) -> Self {
        Self {
            upper: container_dir.join("upper"),
            layers,
        }
    }

    /// All that is in a directory without layers below it.
    #[must_use]
    pub fn whole(directory: &Path) -> Self {
        Self {
            upper: directory.to_owned(),
            layers: Vec::new(),
        }
    }

    /// Writes what was added or changed to `out`, with the directories above it, and returns the paths, without a
    /// leading slash, of what was deleted. Paths in `without` are left out with all that is below them. Blocks.
    ///
    /// # Errors
    /// When a file can't be read or `out` can't be written.
    pub fn write<W: Write>(&self, without: &HashSet<PathBuf>, out: W) -> io::Result<Vec<PathBuf>> {
        let mut walk = Walk {
            changes: self,
            without,
            tar: Tarball::new(out),
            names: HashMap::new(),
            deleted: Vec::new(),
        };
        walk.directory(Path::new(""), 0)?;
        walk.tar.finish()?;
        Ok(walk.deleted)
    }
}

struct Walk<'a, W> {
    changes: &'a Changes,
    without: &'a HashSet<PathBuf>,
    tar: Tarball<W>,
    /// First name of each file that has several.
    names: HashMap<(u64, u64), PathBuf>,
    deleted: Vec<PathBuf>,
}

impl<W: Write> Walk<'_, W> {
    fn directory(&mut self, at: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("{} is too deep", at.display())));
        }
        let dir = self.changes.upper.join(at);
        let mut entries = fs::read_dir(&dir)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(named(&dir))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        if is_opaque(&dir)? {
            let kept: HashSet<_> = entries.iter().map(fs::DirEntry::file_name).collect();
            self.hidden(at, &|name| kept.contains(name))?;
        }
        for entry in entries {
            let path = at.join(entry.file_name());
            if !self.without.contains(&path) {
                let meta = entry.metadata().map_err(named(&entry.path()))?;
                self.one(&path, &meta, depth).map_err(named(&path))?;
            }
        }
        Ok(())
    }

    fn one(&mut self, path: &Path, meta: &Metadata, depth: usize) -> io::Result<()> {
        let kind = meta.file_type();
        let on_disk = self.changes.upper.join(path);
        if kind.is_char_device() && meta.rdev() == 0 {
            self.deleted.push(path.to_owned());
            return Ok(());
        }
        let device = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        let (major, minor) = (device.0 as u32, device.1 as u32);
        let mut entry = Entry {
            kind: Kind::File,
            name: path.as_os_str().as_bytes().to_vec(),
            link: Vec::new(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            size: 0,
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
            xattrs: attributes(&on_disk)?,
        };
        if kind.is_dir() {
            entry.kind = Kind::Directory;
            entry.name.push(b'/');
            self.tar.add(&entry, io::empty())?;
            return self.directory(path, depth + 1);
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.names.get(&(meta.dev(), meta.ino())) {
                entry.kind = Kind::HardLink;
                entry.link = first.as_os_str().as_bytes().to_vec();
                entry.xattrs = Vec::new();
                return self.tar.add(&entry, io::empty());
            }
            self.names.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        entry.kind = match () {
            () if kind.is_file() => {
                entry.size = meta.len();
                return self.tar.add(&entry, File::open(&on_disk)?);
            }
            () if kind.is_symlink() => {
                entry.link = fs::read_link(&on_disk)?.into_os_string().as_bytes().to_vec();
                Kind::Symlink
            }
            () if kind.is_char_device() => Kind::CharDevice { major, minor },
            () if kind.is_block_device() => Kind::BlockDevice { major, minor },
            () if kind.is_fifo() => Kind::Fifo,
            // A socket's name means nothing without the process that listens.
            () => return Ok(()),
        };
        self.tar.add(&entry, io::empty())
    }

    /// Counts as deleted what the layers have in a directory that the container has made anew.
    fn hidden(&mut self, at: &Path, kept: &dyn Fn(&OsStr) -> bool) -> io::Result<()> {
        let mut seen = HashSet::new();
        for layer in &self.changes.layers {
            let Some(dir) = directory_in(layer, at) else { break };
            for entry in fs::read_dir(&dir).map_err(named(&dir))? {
                let entry = entry?;
                let name = entry.file_name();
                let meta = entry.metadata()?;
                let whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
                if seen.insert(name.clone()) && !whiteout && !kept(&name) {
                    self.deleted.push(at.join(name));
                }
            }
            if is_opaque(&dir)? {
                break;
            }
        }
        Ok(())
    }
}

/// The directory `at` of a layer, if it is one: a symbolic link on the way would lead elsewhere.
fn directory_in(layer: &Path, at: &Path) -> Option<PathBuf> {
    let mut dir = layer.to_owned();
    for part in at.components() {
        let Component::Normal(name) = part else { return None };
        dir.push(name);
        fs::symlink_metadata(&dir).ok().filter(Metadata::is_dir)?;
    }
    Some(dir)
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| {
        let text = error.to_string();
        if text.contains(&path) {
            error
        } else {
            io::Error::new(error.kind(), format!("{path}: {text}"))
        }
    }
}

/// Whether what lower layers have in the directory is hidden.
fn is_opaque(directory: &Path) -> io::Result<bool> {
    Ok(sys::xattr(File::open(directory)?, c"trusted.overlay.opaque")?.is_some())
}

/// Extended attributes other than overlayfs' own.
fn attributes(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = xattrs::all(&CString::new(path.as_os_str().as_bytes())?)?;
    let kept_elsewhere = |name: &[u8]| matches!(name, b"trusted.overlay.redirect" | b"trusted.overlay.metacopy");
    if found.iter().any(|(name, _)| kept_elsewhere(name)) {
        let message = "overlayfs keeps its content elsewhere (redirect_dir or metacopy), which can't be read here";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    found.retain(|(name, _)| !name.starts_with(b"trusted.overlay."));
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::TarReader;

    #[test]
    fn what_was_written_and_what_was_deleted() {
        let dir = tempfile_dir("changes");
        let (upper, lower) = (dir.join("upper"), dir.join("lower"));
        for path in ["upper/new", "upper/etc", "upper/again", "lower/again/deep", "lower/etc"] {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        fs::write(upper.join("new/file"), "text").unwrap();
        fs::hard_link(upper.join("new/file"), upper.join("new/link")).unwrap();
        std::os::unix::fs::symlink("/x", upper.join("sym")).unwrap();
        fs::write(upper.join("etc/hosts"), "").unwrap();
        fs::write(upper.join("again/kept"), "").unwrap();
        for path in ["again/kept", "again/gone", "etc/passwd"] {
            fs::write(lower.join(path), "").unwrap();
        }
        let whiteout = upper.join("etc/passwd");
        nix::sys::stat::mknod(
            &whiteout,
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::empty(),
            0,
        )
        .unwrap();
        let opaque = CString::new(upper.join("again").as_os_str().as_bytes()).unwrap();
        // SAFETY: NUL-terminated strings, and one byte at the pointer.
        let set = unsafe {
            libc::lsetxattr(
                opaque.as_ptr(),
                c"trusted.overlay.opaque".as_ptr(),
                b"y".as_ptr().cast(),
                1,
                0,
            )
        };
        assert_eq!(set, 0, "set the attribute: {}", io::Error::last_os_error());

        let changes = Changes {
            upper,
            layers: vec![lower],
        };
        let mut tar = Vec::new();
        let mut deleted = changes.write(&HashSet::from(["etc/hosts".into()]), &mut tar).unwrap();
        deleted.sort();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(deleted, ["again/deep", "again/gone", "etc/passwd"].map(PathBuf::from));
        let mut reader = TarReader::new(tar.as_slice());
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            seen.push((String::from_utf8(entry.name).unwrap(), entry.kind));
        }
        let want = [
            ("again/", Kind::Directory),
            ("again/kept", Kind::File),
            ("etc/", Kind::Directory),
            ("new/", Kind::Directory),
            ("new/file", Kind::File),
            ("new/link", Kind::HardLink),
            ("sym", Kind::Symlink),
        ];
        assert_eq!(seen, want.map(|(name, kind)| (name.to_owned(), kind)));
    }

    fn tempfile_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("wharf-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}
