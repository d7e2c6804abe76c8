//! One cgroup: a path below the roots of all hierarchies.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use oci_spec::runtime::LinuxResources;

use super::{Depth, Error, Hierarchies, Result, Usage, detect::Layout, fsutil, kill, path, systemd, usage, v1, v2};

/// How long [`Cgroup::remove`] waits for the last processes to leave.
const REMOVE_WAIT: Duration = Duration::from_secs(2);

/// A cgroup, whether it exists or not. Holds no file descriptor.
#[derive(Debug, Clone)]
pub struct Cgroup {
    pub(super) hierarchies: Hierarchies,
    /// Below each root, without leading slash; never empty.
    rel: String,
}

impl Cgroup {
    /// The cgroup at `path` (absolute, cgroupfs syntax). Touches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] for the root, a path with `..`, a systemd path, or a relative one.
    pub fn new(hierarchies: &Hierarchies, path: &str) -> Result<Cgroup> {
        let rel = path::sanitise(path)?;
        if rel.is_empty() {
            return Err(Error::InvalidPath {
                path: path.to_owned(),
                reason: "the root cgroup belongs to the machine",
            });
        }
        Ok(Cgroup {
            hierarchies: hierarchies.clone(),
            rel,
        })
    }

    /// The cgroup that a spec's `cgroupsPath` names: a path, or `slice:prefix:name` for a scope of systemd's. Touches nothing.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] as for [`Cgroup::new`]; [`Error::Unsupported`] for a scope on cgroup v1.
    pub fn of_spec(hierarchies: &Hierarchies, path: &str) -> Result<Cgroup> {
        if path.starts_with('/') || !path.contains(':') {
            return Cgroup::new(hierarchies, path);
        }
        if !hierarchies.is_v2() {
            return Err(Error::Unsupported(format!(
                "cgroup {path}: systemd's scopes on cgroup v1"
            )));
        }
        Cgroup::new(hierarchies, &systemd::Scope::of_spec(path)?.path()?)
    }

    /// The scope that this is the cgroup of, by its path.
    fn scope(&self) -> Option<systemd::Scope> {
        self.hierarchies.is_v2().then(|| systemd::Scope::at(&self.path()))?
    }

    /// The unit of systemd's, if it runs here, whose cgroup this is.
    fn unit(&self) -> Option<String> {
        let known = self.hierarchies.is_v2() && systemd::is_running();
        known.then(|| systemd::unit_at(&self.path()).map(str::to_owned))?
    }

    /// For the cgroup of a scope: has systemd make it with the calling process in it, and returns true. Others are made by
    /// [`Cgroup::create`].
    ///
    /// # Errors
    /// When systemd refuses or can't be reached.
    pub fn start_scope(&self, description: &str) -> Result<bool> {
        let Some(scope) = self.scope() else { return Ok(false) };
        systemd::start(&scope, description)?;
        Ok(true)
    }

    /// The path below the hierarchies' roots, with a leading slash.
    pub fn path(&self) -> String {
        format!("/{}", self.rel)
    }

    /// Makes the cgroup and its parents in every hierarchy. On v1 `cpuset` inherits the parent's CPUs and memory nodes;
    /// on v2 the parents hand down every controller that they have. Fine if it is already there.
    pub fn create(&self) -> Result<()> {
        match &*self.hierarchies.0 {
            Layout::V1 { mounts, .. } => v1::create(mounts, &self.rel),
            Layout::V2 { root } => v2::create(root, &self.rel),
        }
    }

    /// As [`Cgroup::create`], with the v2 side of a hybrid machine where the limits need it, so that whoever joins next is in
    /// it too.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn create_for(&self, resources: Option<&LinuxResources>) -> Result<()> {
        self.create()?;
        let limits = resources.and_then(|resources| resources.hugepage_limits().as_ref());
        match &*self.hierarchies.0 {
            Layout::V1 {
                unified: Some(root), ..
            } if limits.is_some_and(|limits| !limits.is_empty()) && self.hierarchies.has_hugetlb_beside() => {
                v1::create_beside(root, &self.rel)
            }
            _ => Ok(()),
        }
    }

    /// True if the cgroup is there in the hierarchy that is made first.
    pub fn exists(&self) -> bool {
        self.dirs().first().is_some_and(|dir| dir.is_dir())
    }

    /// Writes the limits. Only what is set in `resources` is touched; device rules replace all earlier ones.
    ///
    /// # Errors
    /// The first limit that could not be set; later ones are then untouched.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        match &*self.hierarchies.0 {
            Layout::V1 { mounts, unified } => v1::apply(mounts, unified.as_deref(), &self.rel, resources),
            Layout::V2 { root } => v2::apply(&root.join(&self.rel), resources),
        }?;
        self.tell_systemd(&self.limit_files(resources))
    }

    /// Tells systemd, where it knows this cgroup, what the kernel's files hold of those limits, whoever has written it.
    ///
    /// # Errors
    /// When systemd refuses or can't be reached.
    pub fn tell(&self, limits: &LinuxResources) -> Result<()> {
        self.tell_systemd(&self.limit_files(limits))
    }

    /// Tells systemd, where it knows this cgroup, what is in the files of limits.
    pub(super) fn tell_systemd(&self, files: &[PathBuf]) -> Result<()> {
        match self.unit() {
            Some(unit) if !files.is_empty() => systemd::tell(&unit, files),
            _ => Ok(()),
        }
    }

    /// The files that [`Cgroup::apply`] writes for limits such as an update may have.
    pub(super) fn limit_files(&self, r: &LinuxResources) -> Vec<PathBuf> {
        let sizes: Vec<_> = r
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|l| l.page_size().clone())
            .collect();
        match &*self.hierarchies.0 {
            Layout::V1 { unified, .. } => {
                let below = |controller: &str| self.hierarchies.v1_root(controller).map(|root| root.join(&self.rel));
                v1::limit_files(below, unified.as_ref().map(|root| root.join(&self.rel)), r, &sizes)
            }
            Layout::V2 { root } => v2::limit_files(&root.join(&self.rel), r, &sizes),
        }
    }

    /// Moves the calling process in, as `Cgroup::joiner()?.join()` does.
    pub fn join_self(&self) -> Result<()> {
        self.joiner()?.join()
    }

    /// Opens what is needed to join, so that the join itself allocates nothing and may follow a fork.
    pub fn joiner(&self) -> Result<Joiner> {
        let open = |path: PathBuf| match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Ok((file, path)),
            Err(e) => Err(Error::io("open", path, e)),
        };
        let files = match &*self.hierarchies.0 {
            // One task moves without the kernel's global lock on thread groups, which costs milliseconds.
            Layout::V1 { mounts, unified } => {
                let mut files: Vec<_> = mounts
                    .iter()
                    .map(|m| open(m.root.join(&self.rel).join("tasks")))
                    .collect::<Result<_>>()?;
                if let Some(dir) = unified
                    .as_ref()
                    .map(|root| root.join(&self.rel))
                    .filter(|dir| dir.is_dir())
                {
                    files.push(open(dir.join("cgroup.procs"))?);
                }
                files
            }
            Layout::V2 { root } => vec![open(root.join(&self.rel).join("cgroup.procs"))?],
        };
        Ok(Joiner { files })
    }

    /// The directory for `CLONE_INTO_CGROUP`; None where the controllers are on v1.
    pub fn v2_dir(&self) -> Option<PathBuf> {
        match &*self.hierarchies.0 {
            Layout::V1 { .. } => None,
            Layout::V2 { root } => Some(root.join(&self.rel)),
        }
    }

    /// Moves another process, with all its threads, in.
    ///
    /// # Errors
    /// [`Error::Io`] with ESRCH if the process is gone.
    pub fn add(&self, pid: i32) -> Result<()> {
        for dir in self.dirs() {
            fsutil::write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Processes in this cgroup and below it; none if it does not exist. Zombies are not listed.
    pub fn pids(&self) -> Vec<i32> {
        self.dirs().first().map(|dir| kill::pids(dir)).unwrap_or_default()
    }

    /// Names of the cgroups directly below this one, in the hierarchy that is made first; none if it does not exist.
    pub fn children(&self) -> Vec<String> {
        let directory = self.dirs().into_iter().next();
        let entries = directory.and_then(|directory| std::fs::read_dir(directory).ok());
        entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// How many processes in this cgroup and below it the kernel's OOM killer has killed. 0 if that is not known.
    pub fn oom_kills(&self) -> u64 {
        match &*self.hierarchies.0 {
            Layout::V1 { .. } => self
                .hierarchies
                .v1_root("memory")
                .map_or(0, |root| usage::v1::oom_kills(&root.join(&self.rel))),
            Layout::V2 { root } => {
                fsutil::read_keyed(&root.join(&self.rel).join("memory.events"), "oom_kill").unwrap_or(0)
            }
        }
    }

    /// Sends SIGKILL to every process in this cgroup and below it, and leaves none that could fork on. Does not wait for
    /// their end. Fine if the cgroup is gone.
    ///
    /// # Errors
    /// A process could not be signalled, or new ones kept appearing.
    pub fn kill_all(&self) -> Result<()> {
        let killed = self.dirs().first().map_or(Ok(()), |dir| kill::kill_all(dir));
        // On v1 a frozen process ends only when it may go on.
        killed.and(self.thaw())
    }

    /// Removes the cgroup and everything below it, waiting up to two seconds for its last processes to end. Fine if it is
    /// gone. Kills nothing.
    ///
    /// # Errors
    /// [`Error::Busy`] if processes remain.
    pub fn remove(&self) -> Result<()> {
        self.remove_within(REMOVE_WAIT)
    }

    /// Like [`Cgroup::remove`] with a limit of your own; zero never blocks.
    pub fn remove_within(&self, wait: Duration) -> Result<()> {
        let beside = match &*self.hierarchies.0 {
            Layout::V1 {
                unified: Some(root), ..
            } if root.join(&self.rel).is_dir() => Some(root),
            _ => None,
        };
        kill::remove(&self.all_dirs(), wait)?;
        // systemd learns of the end from the cgroup, which is gone now.
        if let Some(unit) = self.unit().filter(|unit| unit.ends_with(".scope")) {
            systemd::stop(&unit)?;
        }
        // The cgroups above were made here as well, and nobody else removes them on this side.
        if let Some(root) = beside {
            let above = Path::new(&self.rel).ancestors().skip(1);
            let mut above = above.take_while(|dir| !dir.as_os_str().is_empty());
            above.all(|dir| std::fs::remove_dir(root.join(dir)).is_ok());
        }
        Ok(())
    }

    /// Removes the cgroup itself where nothing is in it, neither processes nor cgroups. True if it is gone everywhere.
    pub fn remove_if_empty(&self) -> bool {
        self.all_dirs().iter().all(|dir| match std::fs::remove_dir(dir) {
            Ok(()) => true,
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        })
    }

    /// What the cgroup uses now; [`Usage::is_empty`] if it is gone.
    pub fn usage(&self, depth: Depth) -> Usage {
        let page_sizes = || self.hierarchies.hugepage_sizes();
        let mut usage = match &*self.hierarchies.0 {
            Layout::V1 { unified, .. } => usage::v1::read(
                |controller| self.hierarchies.v1_root(controller).map(|root| root.join(&self.rel)),
                unified.as_ref().map(|root| root.join(&self.rel)).as_deref(),
                page_sizes,
                depth,
            ),
            Layout::V2 { root } => usage::v2::read(&root.join(&self.rel), page_sizes, depth),
        };
        if !usage.is_empty() {
            usage.processes = u64::try_from(self.pids().len()).ok();
        }
        usage
    }

    /// The cgroup's directory in each hierarchy that every cgroup is made in, in the order of joining.
    fn dirs(&self) -> Vec<PathBuf> {
        let below = |root: &Path| root.join(&self.rel);
        match &*self.hierarchies.0 {
            Layout::V1 { mounts, .. } => mounts.iter().map(|m| below(&m.root)).collect(),
            Layout::V2 { root } => vec![below(root)],
        }
    }

    /// As [`Cgroup::dirs`], with the v2 side of a hybrid machine.
    fn all_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.dirs();
        if let Layout::V1 {
            unified: Some(root), ..
        } = &*self.hierarchies.0
        {
            dirs.push(root.join(&self.rel));
        }
        dirs
    }
}

/// Open files of a cgroup through which the caller moves itself in. Closed on exec.
#[derive(Debug)]
pub struct Joiner {
    files: Vec<(File, PathBuf)>,
}

impl Joiner {
    /// Moves the calling process in. On v1 only the calling thread moves, so the process must be single-threaded; no
    /// memory is allocated unless the kernel refuses.
    pub fn join(&self) -> Result<()> {
        for (file, path) in &self.files {
            let mut file = file;
            file.write_all(b"0").map_err(|e| Error::io("join cgroup by", path, e))?;
        }
        Ok(())
    }
}
