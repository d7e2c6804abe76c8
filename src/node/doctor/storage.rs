//! Where images and containers lie.

use std::path::Path;

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use wharf_proto::api::Finding;

use super::{failure, ok, warning};
use crate::{config::Config, images::rootfs::has_quotas};

/// Free bytes under which a warning is due, and under which nothing can be pulled.
const LOW: u64 = 5 << 30;
const TOO_LOW: u64 = 256 << 20;
/// Free inodes under which a warning is due: a large image has some ten thousand files.
const FEW_INODES: u64 = 100_000;

/// The overlay file system, and whether it can lie on that of the state directory.
pub fn overlay(state_dir: &Path) -> Vec<Finding> {
    const CHECK: &str = "overlayfs";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.split_whitespace().any(|name| name == "overlay") && !module_exists("overlay") {
        let advice = "Load it (modprobe overlay), or use a kernel with CONFIG_OVERLAY_FS.";
        return vec![failure(CHECK, "the kernel has none", advice)];
    }
    let place = existing(state_dir);
    match statfs(place) {
        Ok(fs) if fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC => vec![failure(
            CHECK,
            format!(
                "{} lies on an overlay itself, which the kernel doesn't stack",
                state_dir.display()
            ),
            "Put state_dir on a disk or a tmpfs (in a container: on a volume).",
        )],
        Ok(_) => vec![ok(CHECK, "available")],
        Err(error) => vec![warning(
            CHECK,
            format!("{}: {error}", place.display()),
            "Check the state directory.",
        )],
    }
}

/// Whether the file system counts and limits what single containers write.
pub fn quotas(config: &Config) -> Finding {
    const CHECK: &str = "project quotas";
    const ADVICE: &str = "Mount the file system of state_dir with prjquota (ext4: after `tune2fs -O quota,project`).";
    match (has_quotas(existing(&config.state_dir)), config.containers.disk_limit) {
        ((_, true), _) => ok(CHECK, "what each container writes is counted and can be limited"),
        ((_, false), 1..) => failure(
            CHECK,
            "there are none, and containers.disk_limit wants them: no container can be made",
            ADVICE,
        ),
        ((true, false), 0) => ok(CHECK, "what each container writes is counted, not limited"),
        ((false, false), 0) => ok(
            CHECK,
            "there are none: what a container writes is measured by a walk, and not limited",
        ),
    }
}

/// Whether modprobe would find a module: the kernel loads file systems by itself when they are mounted.
fn module_exists(name: &str) -> bool {
    let Ok(names) = nix::sys::utsname::uname() else {
        return false;
    };
    let list = Path::new("/lib/modules").join(names.release()).join("modules.dep");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    list.lines().filter_map(|line| line.split_once(':')).any(|(path, _)| {
        Path::new(path)
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.split('.').next())
            == Some(name)
    })
}

/// Free space for the state directory.
pub fn space(state_dir: &Path) -> Finding {
    const CHECK: &str = "disk";
    let place = existing(state_dir);
    let free = match statvfs(place) {
        Ok(fs) => fs,
        Err(error) => {
            return warning(
                CHECK,
                format!("{}: {error}", place.display()),
                "Check the state directory.",
            );
        }
    };
    let unit: u64 = free.fragment_size();
    let bytes = free.blocks_available().saturating_mul(unit);
    // Some file systems count no inodes.
    let inodes = (free.files() > 0).then(|| free.files_available());
    judge_space(&state_dir.display().to_string(), bytes, inodes)
}

fn judge_space(place: &str, bytes: u64, inodes: Option<u64>) -> Finding {
    const CHECK: &str = "disk";
    let advice = "Remove images that nothing uses (`wharf images`, `wharf rmi`), or move state_dir.";
    let found = format!("{:.1} GiB free in {place}", bytes as f64 / f64::from(1 << 30));
    if bytes < TOO_LOW {
        return failure(CHECK, found, advice);
    }
    if bytes < LOW {
        return warning(CHECK, found, advice);
    }
    match inodes {
        Some(inodes) if inodes < FEW_INODES => warning(CHECK, format!("{inodes} inodes free in {place}"), advice),
        _ => ok(CHECK, found),
    }
}

/// The directory, or the nearest one above it that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_proto::api::Severity;

    #[test]
    fn little_space_is_a_warning_and_none_a_failure() {
        let severity = |bytes, inodes| judge_space("/x", bytes, inodes).severity();
        assert_eq!(severity(100 << 30, Some(1 << 20)), Severity::Ok);
        assert_eq!(severity(100 << 30, None), Severity::Ok);
        assert_eq!(severity(100 << 30, Some(10)), Severity::Warning);
        assert_eq!(severity(1 << 30, None), Severity::Warning);
        assert_eq!(severity(1 << 20, None), Severity::Failure);
        assert_eq!(judge_space("/x", 10 << 30, None).found, "10.0 GiB free in /x");
    }

    #[test]
    fn a_directory_still_to_be_made_is_judged_by_its_parent() {
        assert_eq!(existing(Path::new("/tmp/not/there")), Path::new("/tmp"));
    }
}
