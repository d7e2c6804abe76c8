//! Where what came out of a container is put.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// A directory of our own on the destination's file system, removed when dropped.
pub struct Place(PathBuf);

impl Place {
    /// Makes one beside, or in, the directory `to`.
    pub fn beside(to: &Path) -> io::Result<Self> {
        let parent = match to.is_dir() {
            true => to.to_owned(),
            false => to
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned(),
        };
        let dir = parent.join(format!(".wharf-cp-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Moves `base` to `to`: into it if that is a directory, under that name if not. With `contents`, what is in `base`.
    pub fn settle(&self, base: &str, to: &Path, contents: bool) -> io::Result<()> {
        let from = if base == "." { self.0.clone() } else { self.0.join(base) };
        if contents {
            if !to.exists() {
                fs::create_dir(to)?;
            }
            return merge(&from, to, Some(&self.0));
        }
        let target = if to.is_dir() { to.join(base) } else { to.to_owned() };
        put(&from, &target)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Moves a file or directory; directories that are there already are filled, files replaced.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    match (is_directory(from), is_directory(to)) {
        (true, true) => merge(from, to, None),
        (false, true) => Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            format!("{} is a directory and should become a file", to.display()),
        )),
        _ => fs::rename(from, to),
    }
}

fn merge(from: &Path, to: &Path, but: Option<&Path>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if Some(entry.path().as_path()) != but {
            put(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_where_docker_puts_them() {
        let dir = std::env::temp_dir().join(format!("wharf-cp-test-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("there/base")).unwrap();
        fs::write(dir.join("there/base/old"), "old").unwrap();
        let copy = |to: &Path, contents: bool| {
            let place = Place::beside(to).unwrap();
            fs::create_dir_all(place.dir().join("base")).unwrap();
            fs::write(place.dir().join("base/new"), "new").unwrap();
            place.settle("base", to, contents).unwrap();
        };
        copy(&dir.join("there"), false);
        assert!(dir.join("there/base/new").exists() && dir.join("there/base/old").exists());
        copy(&dir.join("renamed"), false);
        assert!(dir.join("renamed/new").exists());
        copy(&dir.join("there"), true);
        assert!(dir.join("there/new").exists());
        let left = fs::read_dir(&dir).unwrap().count() + fs::read_dir(dir.join("there")).unwrap().count();
        assert_eq!(left, 2 + 2, "nothing of ours stays");
        fs::remove_dir_all(dir).unwrap();
    }
}
