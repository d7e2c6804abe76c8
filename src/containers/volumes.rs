//! Volumes that an image declares: for each a directory of the container's own, which begins with what the image has
//! there and goes with the container.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Component, Path, PathBuf},
};

use wharf_proto::cri;

use super::{Error, Result};
use crate::images::rootfs::{self, Owners};

/// A volume and where the container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// The directory on the node.
    pub source: PathBuf,
}

/// Where volumes can't be: the kernel's file systems belong to the runtime, whatever an image says.
const RESERVED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Makes the volumes of an image in `directory`, which must not exist or be empty. `rootfs` is mounted and nothing has
/// run in it. Those that a mount of the config covers are left out. What is in them counts for `project`. Blocking.
///
/// # Errors
/// A declaration that can't be met, or what the kernel refuses.
pub(super) fn make(
    id: &str,
    declared: &[String],
    mounts: &[cri::Mount],
    rootfs: &Path,
    directory: &Path,
    owners: Option<&Owners>,
    project: u32,
) -> Result<Vec<Volume>> {
    let targets = targets(declared, mounts)?;
    if project != 0 && !targets.is_empty() {
        let failed = |source| Error::Io {
            attempt: "make the directory of volumes".into(),
            id: id.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(failed)?;
        rootfs::join_project(directory, project).map_err(|error| failed(io::Error::other(error)))?;
    }
    let mut volumes = Vec::with_capacity(targets.len());
    for (number, target) in targets.into_iter().enumerate() {
        let source = directory.join(number.to_string());
        let failed = |attempt: &str| {
            let (attempt, id) = (format!("{attempt} of volume {}", target.display()), id.to_owned());
            move |source| Error::Io { attempt, id, source }
        };
        fs::create_dir_all(&source).map_err(failed("make the directory"))?;
        match rootfs::copy_directory(rootfs, &target, &source) {
            Ok(true) => {}
            Ok(false) => fresh(&source, owners).map_err(failed("set the owner"))?,
            Err(rootfs::Error::Io { source: error, .. }) if error.kind() == io::ErrorKind::NotADirectory => {
                tracing::warn!(container = id, volume = %target.display(), "no directory in the image: not a volume");
                fs::remove_dir(&source).map_err(failed("remove the directory"))?;
                continue;
            }
            Err(error) => return Err(failed("copy the content")(io::Error::other(error))),
        }
        volumes.push(Volume { target, source });
    }
    Ok(volumes)
}

/// A directory as the runtime would make a missing mount point: root's, for all to read.
fn fresh(directory: &Path, owners: Option<&Owners>) -> io::Result<()> {
    let (user, group) = owners.map_or((0, 0), |owners| owners.on_node((0, 0)));
    chown(directory, Some(user), Some(group))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// Where volumes are to be, each once.
fn targets(declared: &[String], mounts: &[cri::Mount]) -> Result<Vec<PathBuf>> {
    let covering: Vec<_> = mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let mut targets: Vec<PathBuf> = Vec::new();
    for text in declared {
        let target = clean(text);
        if target == Path::new("/") || text.contains('\0') {
            return Err(Error::Invalid(format!(
                "the image declares a volume at {text:?}, where none can be"
            )));
        }
        let reserved = RESERVED.iter().any(|place| target.starts_with(place));
        if !reserved && !targets.contains(&target) && !covering.iter().any(|mount| target.starts_with(mount)) {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(declared: &[&str], mounts: &[&str]) -> Result<Vec<PathBuf>> {
        let declared: Vec<_> = declared.iter().map(|path| (*path).to_owned()).collect();
        let mounts: Vec<_> = mounts
            .iter()
            .map(|path| cri::Mount {
                container_path: (*path).to_owned(),
                ..Default::default()
            })
            .collect();
        targets(&declared, &mounts)
    }

    #[test]
    fn what_a_mount_covers_is_no_volume() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let declared = ["/data", "/data/", "relative/../var//lib", "/srv/deep"];
        assert_eq!(at(&declared, &[]).unwrap(), paths(&["/data", "/var/lib", "/srv/deep"]));
        assert_eq!(at(&declared, &["/data/"]).unwrap(), paths(&["/var/lib", "/srv/deep"]));
        assert_eq!(
            at(&declared, &["/srv", "/database"]).unwrap(),
            paths(&["/data", "/var/lib"])
        );
        assert_eq!(at(&declared, &["/data/below"]).unwrap().len(), 3);
    }

    #[test]
    fn an_image_can_neither_replace_the_root_nor_the_kernels_file_systems() {
        assert!(
            at(&["/proc", "/sys/fs/cgroup", "/dev/shm", "/../proc/sys"], &[])
                .unwrap()
                .is_empty()
        );
        assert_eq!(at(&["/process"], &[]).unwrap().len(), 1);
        for root in ["/", "", "..", "/a/.."] {
            assert!(
                at(&[root], &[]).unwrap_err().to_string().contains("where none can be"),
                "{root}"
            );
        }
    }
}
