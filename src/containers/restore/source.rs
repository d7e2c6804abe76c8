//! Where a checkpoint's files are: in an archive, in a directory, or in the layers of an image. None of them is trusted
//! with a path: names are looked up without symbolic links, and only files count.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    containers::{Error, Result, checkpoint::archive::IMAGES},
    images::{
        Image,
        unpack::{Kind, TarReader},
    },
    sys,
};

/// A checkpoint.
#[derive(Debug, Clone)]
pub enum Source {
    /// A tar archive.
    Archive(PathBuf),
    /// A directory, as CheckpointPod makes it.
    Directory(PathBuf),
    /// An image that holds what an archive would, and the name by which it was asked for.
    Image(String, Arc<Image>),
}

/// The content of one file.
pub enum Content<'a> {
    Tar(&'a mut TarReader<File>),
    File(File),
}

impl Content<'_> {
    /// Writes it to `out`.
    pub fn copy(&mut self, out: &mut dyn Write) -> std::result::Result<(), String> {
        match self {
            Content::File(file) => io::copy(file, out).map(drop).map_err(|error| error.to_string()),
            Content::Tar(reader) => loop {
                let piece = reader.data().map_err(|error| error.to_string())?;
                if piece.is_empty() {
                    return Ok(());
                }
                out.write_all(piece).map_err(|error| error.to_string())?;
            },
        }
    }

    /// Writes it to the new file `target`, which only root may read.
    pub fn save(&mut self, target: &Path) -> std::result::Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("write {}: {error}", target.display());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
        let mut file = io::BufWriter::new(file.map_err(|error| failed(&error))?);
        self.copy(&mut file).map_err(|error| failed(&error))?;
        file.flush().map_err(|error| failed(&error))
    }
}

impl Source {
    /// What errors and the container's status call it.
    pub fn name(&self) -> String {
        match self {
            Self::Archive(path) | Self::Directory(path) => path.display().to_string(),
            Self::Image(name, _) => name.clone(),
        }
    }

    /// An error about it.
    pub fn invalid(&self, why: &str) -> Error {
        let what = match self {
            Self::Archive(_) => "archive",
            Self::Directory(_) => "directory",
            Self::Image(..) => "image",
        };
        Error::Invalid(format!("the checkpoint {what} {}: {why}", self.name()))
    }

    /// Calls `f` for each file at the top and in the directory of CRIU's images, with its name and length. Blocks.
    ///
    /// # Errors
    /// What `f` says; [`Error::Invalid`] when the source can't be read.
    pub fn each(&self, mut f: impl FnMut(&str, u64, &mut Content) -> Result<()>) -> Result<()> {
        let bad = |error: &dyn std::fmt::Display| self.invalid(&error.to_string());
        let roots = match self {
            Self::Archive(path) => {
                let mut reader = TarReader::new(File::open(path).map_err(|error| bad(&error))?);
                while let Some(entry) = reader.next_entry().map_err(|error| bad(&error))? {
                    let Ok(name) = std::str::from_utf8(&entry.name) else {
                        continue;
                    };
                    if entry.kind == Kind::File {
                        f(
                            name.trim_start_matches("./"),
                            entry.size,
                            &mut Content::Tar(&mut reader),
                        )?;
                    }
                }
                return Ok(());
            }
            Self::Directory(path) => vec![path.clone()],
            Self::Image(_, image) => image.layer_directories(),
        };
        for (name, root) in names(&roots).map_err(|error| bad(&error))? {
            let Some(file) = open(&root, Path::new(&name)).map_err(|error| bad(&format!("{name}: {error}")))? else {
                continue;
            };
            let length = file.metadata().map_err(|error| bad(&error))?.len();
            f(&name, length, &mut Content::File(file))?;
        }
        Ok(())
    }
}

/// What is in the trees, top first, and in which of them.
fn names(roots: &[PathBuf]) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for root in roots {
        for (below, prefix) in [("", String::new()), (IMAGES, format!("{IMAGES}/"))] {
            let directory = root.join(below);
            // Neither absent nor a link that leads elsewhere.
            if !below.is_empty() && !fs::symlink_metadata(&directory).is_ok_and(|meta| meta.is_dir()) {
                continue;
            }
            for entry in fs::read_dir(&directory)? {
                if let Ok(name) = entry?.file_name().into_string() {
                    // What an upper layer deletes is there as a device, which is no file.
                    found.entry(format!("{prefix}{name}")).or_insert_with(|| root.clone());
                }
            }
        }
    }
    Ok(found)
}

/// None for what is no file.
fn open(root: &Path, name: &Path) -> io::Result<Option<File>> {
    let directory = File::open(root)?;
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    // A fifo would wait for its writer, and a device do what devices do when they are opened.
    let place = match sys::openat2(directory.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0, resolve) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOENT)) => return Ok(None),
        other => File::from(other?),
    };
    let meta = place.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    let file = sys::openat2(directory.as_fd(), name, libc::O_RDONLY | libc::O_NONBLOCK, 0, resolve)?;
    let file = File::from(file);
    let same = file.metadata()?;
    Ok(((same.dev(), same.ino()) == (meta.dev(), meta.ino())).then_some(file))
}

/// Reads a description of at most `most` bytes.
///
/// # Errors
/// [`Error::Invalid`] with its name when it is longer or can't be read.
pub fn text(name: &str, length: u64, most: u64, content: &mut Content) -> Result<Vec<u8>> {
    if length > most {
        return Err(Error::Invalid(format!("{name} of a checkpoint is {length} bytes long")));
    }
    let mut text = Vec::new();
    match content {
        // It may have grown since.
        Content::File(file) => file
            .take(most)
            .read_to_end(&mut text)
            .map(drop)
            .map_err(|error| error.to_string()),
        tar @ Content::Tar(_) => tar.copy(&mut text),
    }
    .map_err(|error| Error::Invalid(format!("{name} of a checkpoint: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_without_its_links_and_devices() {
        let dir = std::env::temp_dir().join(format!("wharf-source-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("c").join(IMAGES)).unwrap();
        fs::create_dir_all(dir.join("c/other")).unwrap();
        let root = dir.join("c");
        fs::write(dir.join("secret"), "secret").unwrap();
        fs::write(root.join("config.dump"), "{}").unwrap();
        fs::write(root.join(IMAGES).join("inventory.img"), "i").unwrap();
        fs::write(root.join("other/file"), "").unwrap();
        std::os::unix::fs::symlink(dir.join("secret"), root.join("spec.dump")).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join(IMAGES).join("link.img")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let mut seen = Vec::new();
        let source = Source::Directory(root);
        source
            .each(|name, length, _| {
                seen.push((name.to_owned(), length));
                Ok(())
            })
            .unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let want = [("checkpoint/inventory.img", 1), ("config.dump", 2)];
        assert_eq!(seen, want.map(|(name, length)| (name.to_owned(), length)));
    }
}
