//! What a repair does, with and without a daemon. Each returns what it has done, or why it could not, as a sentence.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};
use wharf_proto::{api::FsckFinding, record};

use super::{Node, Remedy, Result, blocking};
use crate::{
    cgroups::{self, Cgroup},
    config::Config,
    images::rootfs,
    store,
};

/// What was done, or why it could not be, in words; `Ok(None)` where nothing can be.
pub(super) type Done = std::result::Result<Option<String>, String>;
/// The same of a step.
type Step = std::result::Result<String, String>;

/// Notes in the finding how its repair went.
pub(super) fn told(finding: &mut FsckFinding, done: Done) {
    match done {
        Ok(done) => finding.repaired = done.unwrap_or_default(),
        Err(reason) => finding.unrepaired = reason,
    }
}

/// Repairs without a daemon. Blocking.
pub(super) fn offline(config: &Config, remedy: &Remedy) -> Done {
    let images = config.state_dir.join("images");
    match remedy {
        Remedy::Image(id) => aside(config, &record_of(&images, id)).map(Some),
        Remedy::Layer(name) => images_of(&images, name)
            .iter()
            .try_for_each(|record| aside(config, record).map(drop))
            .and_then(|()| aside(config, &images.join("layers").join(name)))
            .map(|done| Some(format!("{done}, with the images that have it"))),
        other => plain(config, other),
    }
}

impl Node {
    /// Repairs while the node goes on.
    pub(super) async fn mend(&self, remedy: Remedy) -> Result<Done> {
        let images = self.images();
        let done = match remedy {
            Remedy::Image(id) => images.set_aside(&id).await.map_err(|error| error.to_string()),
            Remedy::Layer(name) => images.set_layer_aside(&name).await.map_err(|error| error.to_string()),
            other => {
                let config = self.config();
                return blocking(move || Ok(plain(&config, &other))).await;
            }
        };
        Ok(done.map(Some))
    }
}

/// What is the same with and without a daemon.
fn plain(config: &Config, remedy: &Remedy) -> Done {
    let done = match remedy {
        Remedy::None | Remedy::Newer | Remedy::Image(_) | Remedy::Layer(_) => return Ok(None),
        Remedy::Aside(path) => {
            // What is mounted there would go along.
            let mounted = unmount_below(path)?;
            format!("{}{mounted}", aside(config, path)?)
        }
        Remedy::Unmount(path) => {
            unmount(path)?;
            "unmounted".to_owned()
        }
        Remedy::Remove(path) => {
            fs::remove_file(path).map_err(|error| error.to_string())?;
            "removed".to_owned()
        }
        Remedy::RunDirectory(path) => {
            unmount_below(path)?;
            // Stops at a mount that came meanwhile.
            rootfs::remove_tree(path).map_err(|error| error.to_string())?;
            "removed: nothing in it outlives a pod".to_owned()
        }
        Remedy::Cgroup(path) => {
            let removed = cgroups::detect()
                .and_then(|hierarchies| Cgroup::new(&hierarchies, path))
                .map_err(|error| error.to_string())?
                .remove_if_empty();
            if !removed {
                return Err("something has come into it".to_owned());
            }
            "removed".to_owned()
        }
        Remedy::Own(path) => own(path).map_err(|error| error.to_string())?,
    };
    Ok(Some(done))
}

fn own(path: &Path) -> std::io::Result<String> {
    std::os::unix::fs::lchown(path, Some(0), Some(0))?;
    let meta = path.symlink_metadata()?;
    if !meta.is_symlink() {
        let mode = meta.permissions().mode() & !0o022;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok("it is root's again, and root's to write".to_owned())
}

fn aside(config: &Config, path: &Path) -> Step {
    let now_at = store::set_aside(&config.state_dir, path).map_err(|error| error.to_string())?;
    Ok(format!("moved to {}", now_at.display()))
}

fn unmount(path: &Path) -> std::result::Result<(), String> {
    umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|errno| format!("unmount {}: {errno}", path.display()))
}

/// Unmounts all at or below `path`; says so if there was anything.
fn unmount_below(path: &Path) -> Step {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<&Path> = points.map(Path::new).filter(|point| point.starts_with(path)).collect();
    // The deepest first.
    below.sort_unstable_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in &below {
        unmount(point)?;
    }
    Ok(if below.is_empty() {
        String::new()
    } else {
        ", unmounted before".to_owned()
    })
}

fn record_of(images: &Path, id: &str) -> PathBuf {
    images.join("records").join(id.trim_start_matches("sha256:"))
}

/// The records of the images that have the layer in the directory `name`.
fn images_of(images: &Path, name: &str) -> Vec<PathBuf> {
    let diff_id = format!("sha256:{}", name.split('-').next().unwrap_or_default());
    let records = images.join("records");
    let ids = store::list_dirs(&records).unwrap_or_default();
    ids.iter()
        .map(|id| records.join(id))
        .filter(|path| {
            let image = store::read_versioned::<record::Image>(&path.join("record"));
            image
                .is_ok_and(|image| image.is_some_and(|image| image.layers.iter().any(|layer| layer.diff_id == diff_id)))
        })
        .collect()
}
