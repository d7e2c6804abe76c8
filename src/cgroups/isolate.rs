//! CPUs of a cgroup that the scheduler leaves alone.

use std::path::{Path, PathBuf};

use super::{Cgroup, Error, Result, detect::Layout, fsutil};

impl Cgroup {
    /// The files that must name a cgroup's CPUs above it before it can have them for itself, from the top; none on v1,
    /// where whoever owns the cgroups above has to switch balancing off there.
    #[must_use]
    pub fn exclusive_files(&self) -> Vec<PathBuf> {
        let Layout::V2 { root } = &*self.hierarchies.0 else {
            return Vec::new();
        };
        let path = self.path();
        let above = Path::new(path.trim_start_matches('/')).ancestors().skip(1);
        let mut files: Vec<_> = above
            .filter(|dir| !dir.as_os_str().is_empty())
            .map(|dir| root.join(dir).join("cpuset.cpus.exclusive"))
            .collect();
        files.reverse();
        files
    }

    /// The file with its CPU quota; `None` where there is no controller for it.
    #[must_use]
    pub fn quota_file(&self) -> Option<PathBuf> {
        let path = self.path();
        let rel = path.trim_start_matches('/');
        match &*self.hierarchies.0 {
            Layout::V1 { .. } => Some(self.hierarchies.v1_root("cpu")?.join(rel).join("cpu.cfs_quota_us")),
            Layout::V2 { root } => Some(root.join(rel).join("cpu.max")),
        }
    }

    /// Makes the cgroup, with its own CPUs out of the scheduler's balancing: on v1 by `cpuset.sched_load_balance`
    /// (cpusets(7)), on v2 as an isolated partition (Linux 6.7), which [`Cgroup::exclusive_files`] must allow.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a kernel without such partitions, [`Error::InvalidValue`] with the kernel's reason when
    /// the partition can't be.
    pub fn isolate(&self, cpus: &str) -> Result<()> {
        self.create()?;
        let path = self.path();
        let rel = path.trim_start_matches('/');
        match &*self.hierarchies.0 {
            Layout::V1 { .. } => {
                let root = self.hierarchies.v1_root("cpuset").ok_or_else(|| Error::NoController {
                    controller: "cpuset".to_owned(),
                    file: "cpuset.sched_load_balance".to_owned(),
                    path: PathBuf::from(&path),
                })?;
                fsutil::write(&root.join(rel).join("cpuset.sched_load_balance"), "0")
            }
            Layout::V2 { root } => partition(&root.join(rel), cpus),
        }
    }
}

fn partition(dir: &Path, cpus: &str) -> Result<()> {
    let exclusive = dir.join("cpuset.cpus.exclusive");
    if !exclusive.exists() {
        return Err(Error::Unsupported(format!(
            "cgroup {}: CPUs without load balancing need the cpuset controller of Linux 6.7 or newer",
            dir.display()
        )));
    }
    fsutil::write(&dir.join("cpuset.cpus"), cpus)?;
    fsutil::write(&exclusive, cpus)?;
    let file = dir.join("cpuset.cpus.partition");
    fsutil::write(&file, "isolated")?;
    // The kernel takes the word and says afterwards why it does not hold.
    let now = fsutil::read(&file)?;
    match now.trim() {
        "isolated" => Ok(()),
        other => Err(Error::InvalidValue {
            key: "cpuset.cpus.partition".to_owned(),
            value: other.to_owned(),
            reason: "the kernel does not isolate these CPUs",
        }),
    }
}
