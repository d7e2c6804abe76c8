//! What a container has changed of its image: as a tar of what it wrote and a list of what it deleted, the form in which
//! checkpoints carry it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use super::sys;
use crate::images::tarball::Tarball;
use crate::images::tree::{self, Deletions, Marks, View};

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
        let root = File::open(&self.upper).map_err(named(&self.upper))?;
        let mut tar = Tarball::new(out);
        let mut deleted = Deleted {
            layers: &self.layers,
            without,
            paths: Vec::new(),
        };
        let view = View {
            ids: None,
            marks: Marks::Told(&mut deleted),
        };
        tree::write(root.into(), &mut tar, view).map_err(named(&self.upper))?;
        tar.finish()?;
        Ok(deleted.paths)
    }
}

/// What the walk of the upper directory tells.
struct Deleted<'a> {
    layers: &'a [PathBuf],
    without: &'a HashSet<PathBuf>,
    paths: Vec<PathBuf>,
}

impl Deletions for Deleted<'_> {
    fn leaves_out(&self, path: &[u8]) -> bool {
        self.without.contains(Path::new(OsStr::from_bytes(path)))
    }

    fn deleted(&mut self, path: &[u8]) {
        self.paths.push(OsStr::from_bytes(path).into());
    }

    /// Counts as deleted what the layers have in a directory that the container has made anew.
    fn hides(&mut self, path: &[u8], names: &[Vec<u8>]) -> io::Result<()> {
        let at = Path::new(OsStr::from_bytes(path));
        let kept: HashSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let mut seen = HashSet::new();
        for layer in self.layers {
            let Some(dir) = directory_in(layer, at) else { break };
            for entry in fs::read_dir(&dir).map_err(named(&dir))? {
                let entry = entry?;
                let name = entry.file_name();
                let meta = entry.metadata()?;
                let whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
                if seen.insert(name.clone()) && !whiteout && !kept.contains(name.as_bytes()) {
                    self.paths.push(at.join(name));
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;
    use crate::images::unpack::{Kind, TarReader};

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
