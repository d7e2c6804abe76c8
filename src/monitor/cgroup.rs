//! What the monitor itself does with cgroups: step into its own, and ask what happened in a container's.
//!
//! Finds the hierarchies without reading the mount table, which is long on a node with many pods.

use std::{
    ffi::CString,
    fs,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::sys;
use crate::cgroups::systemd::{self, Scope};

const ROOT: &str = "/sys/fs/cgroup";

/// Roots of the mounted hierarchies.
#[derive(Debug, Default)]
pub struct Roots {
    v1: Vec<PathBuf>,
    v2: Option<PathBuf>,
}

fn magic(path: &Path) -> i64 {
    CString::new(path.as_os_str().as_bytes())
        .ok()
        .and_then(|path| sys::file_system(&path).ok())
        .unwrap_or(0)
}

impl Roots {
    /// Looks below /sys/fs/cgroup.
    pub fn find() -> Roots {
        let root = PathBuf::from(ROOT);
        #[allow(clippy::unnecessary_cast)]
        let (one, two) = (libc::CGROUP_SUPER_MAGIC as i64, libc::CGROUP2_SUPER_MAGIC as i64);
        if magic(&root) == two {
            return Roots {
                v1: Vec::new(),
                v2: Some(root),
            };
        }
        let mut roots = Roots::default();
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            // Links such as cpu,cpuacct lead to a directory that is listed anyway.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                match magic(&entry.path()) {
                    kind if kind == one => roots.v1.push(entry.path()),
                    kind if kind == two => roots.v2 = Some(entry.path()),
                    _ => {}
                }
            }
        }
        roots
    }

    /// Puts this process into the cgroup `path` of every hierarchy that takes it. Best effort: a monitor elsewhere is
    /// worse accounted for, but works. "0" in `tasks` moves the calling thread, which spares the kernel a lock over all
    /// processes of the machine.
    pub fn join(&self, path: &str) {
        for root in &self.v1 {
            let dir = below(root, path);
            if fs::create_dir_all(&dir).is_ok() {
                fill_cpuset(root, &dir);
                let _ = put(&dir.join("tasks"), b"0");
            }
        }
        // Beside version 1 there is a second place to leave only if somebody counts or ends what is in it, as systemd does;
        // in the root nobody does. A move there takes the lock that the others are spared, and with it a grace period of
        // the kernel's RCU: 10 ms, which was most of what a pod's start took.
        if !self.v1.is_empty() && is_in_root_of_v2(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default()) {
            return;
        }
        if let Some(root) = &self.v2 {
            let procs = below(root, path).join("cgroup.procs");
            match Scope::at(path) {
                // The first monitor begins the scope, which is gone again when the last has ended.
                Some(scope) => {
                    if put(&procs, b"0").is_err() && systemd::start(&scope, "Monitors of Wharf's pods").is_err() {
                        // Another was faster.
                        let _ = put(&procs, b"0");
                    }
                }
                None => {
                    let _ = fs::create_dir_all(below(root, path));
                    let _ = put(&procs, b"0");
                }
            }
        }
    }

    /// How often the kernel's OOM killer ended a process of the cgroup `path` or below it; None when that is not known, as
    /// when the cgroup is gone.
    pub fn oom_kills(&self, path: &str) -> Option<u64> {
        let memory = self.v1.iter().find(|root| root.ends_with("memory"));
        let file = match (memory, &self.v2) {
            (Some(root), _) => below(root, path).join("memory.oom_control"),
            (None, Some(root)) => below(root, path).join("memory.events"),
            _ => return None,
        };
        let text = fs::read_to_string(file).ok()?;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        Some(count.unwrap_or(0))
    }

    /// Lets the processes of the cgroup `path` go on. Fine if they do, or if it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self, path: &str) -> std::io::Result<()> {
        let (file, value): (_, &[u8]) = match (self.v1.iter().find(|root| root.ends_with("freezer")), &self.v2) {
            (Some(root), _) => (below(root, path).join("freezer.state"), b"THAWED"),
            (None, Some(root)) => (below(root, path).join("cgroup.freeze"), b"0"),
            (None, None) => return Ok(()),
        };
        match put(&file, value) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// Whether processes are left in the cgroup `path`.
    pub fn is_populated(&self, path: &str) -> bool {
        self.procs(path).is_some_and(|text| !text.is_empty())
    }

    /// Processes in the cgroup `path`, not in those below it.
    pub fn pids(&self, path: &str) -> Vec<i32> {
        let text = self.procs(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn procs(&self, path: &str) -> Option<String> {
        let root = self
            .v1
            .iter()
            .find(|root| root.ends_with("pids"))
            .or(self.v1.first())
            .or(self.v2.as_ref())?;
        fs::read_to_string(below(root, path).join("cgroup.procs")).ok()
    }
}

/// Whether the process whose /proc/PID/cgroup this is, is in the root of version 2. See cgroups(7): `0::PATH`.
fn is_in_root_of_v2(cgroups: &str) -> bool {
    cgroups.lines().any(|line| line == "0::/")
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn put(file: &Path, value: &[u8]) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(value)
}

/// A new cpuset takes no process until it has CPUs and memory nodes: those of the parent, level by level.
fn fill_cpuset(root: &Path, dir: &Path) {
    if !root.ends_with("cpuset") {
        return;
    }
    let mut parent = root.to_owned();
    for part in dir.strip_prefix(root).into_iter().flat_map(Path::components) {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read(child.join(file)).is_ok_and(|value| value.trim_ascii().is_empty())
                && let Ok(value) = fs::read(parent.join(file))
            {
                let _ = put(&child.join(file), value.trim_ascii());
            }
        }
        parent = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_version_2_is_told_from_other_cgroups() {
        assert!(is_in_root_of_v2("9:name=systemd:/\n8:pids:/a\n0::/\n"));
        assert!(!is_in_root_of_v2("9:name=systemd:/\n0::/system.slice/wharf.service\n"));
        assert!(!is_in_root_of_v2("9:name=systemd:/\n"));
    }
}
