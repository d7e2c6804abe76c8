//! Making cgroups and writing limits on v1.

use std::{
    io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Error, Result, detect::V1Mount, devices, fsutil, kill, v2};

pub(super) fn create(mounts: &[V1Mount], rel: &str) -> Result<()> {
    for mount in mounts {
        make_path(&mount.root, rel)?;
        if mount.controllers.iter().any(|c| c == "cpuset") {
            inherit_cpuset(&mount.root, &mount.root.join(rel))?;
        }
    }
    Ok(())
}

/// mkdir -p, trying the last directory first because its parent is mostly there.
fn make_path(root: &Path, rel: &str) -> Result<()> {
    match fsutil::mkdir(&root.join(rel)) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(drop),
    }
    let mut dir = root.to_owned();
    for part in rel.split('/') {
        dir.push(part);
        fsutil::mkdir(&dir)?;
    }
    Ok(())
}

/// A v1 cpuset starts empty and takes no process until both files have a value.
fn inherit_cpuset(root: &Path, dir: &Path) -> Result<()> {
    let Some(parent) = dir.parent().filter(|_| dir != root) else {
        return Ok(());
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if fsutil::read(&dir.join(name))?.trim().is_empty() {
            inherit_cpuset(root, parent)?;
            fsutil::write(&dir.join(name), fsutil::read(&parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

pub(super) fn apply(mounts: &[V1Mount], unified: Option<&Path>, rel: &str, r: &LinuxResources) -> Result<()> {
    let v1 = V1 { mounts, rel };
    if r.unified().as_ref().is_some_and(|keys| !keys.is_empty()) {
        return Err(Error::Unsupported(format!(
            "cgroup {rel}: unified resources need cgroup v2, this machine has v1"
        )));
    }
    if r.rdma().as_ref().is_some_and(|r| !r.is_empty()) {
        return Err(Error::Unsupported(format!("cgroup {rel}: RDMA limits")));
    }
    if let Some(rules) = r.devices() {
        devices::apply_v1(&v1.dir("devices")?, rules)?;
    }
    if let Some(memory) = r.memory() {
        v1.memory(memory)?;
    }
    if let Some(cpu) = r.cpu() {
        v1.cpu(cpu)?;
    }
    if let Some(pids) = r.pids() {
        let limit = if pids.limit() > 0 {
            pids.limit().to_string()
        } else {
            "max".to_owned()
        };
        v1.set("pids", "pids.max", &limit)?;
    }
    if let Some(io) = r.block_io() {
        v1.block_io(io)?;
    }
    if let Some(limits) = r.hugepage_limits().as_ref().filter(|l| !l.is_empty()) {
        match (v1.dir("hugetlb"), unified) {
            (Ok(dir), _) => {
                for limit in limits {
                    v2::hugepages(&dir, limit, "limit_in_bytes")?;
                }
            }
            // A hybrid machine may have bound this controller to its v2 side.
            (Err(_), Some(root)) => {
                limits.iter().try_for_each(v2::check_page_size)?;
                create_beside(root, rel)?;
                let dir = root.join(rel);
                for limit in limits {
                    v2::hugepages(&dir, limit, "max")?;
                }
                if let Some(mount) = mounts.first() {
                    bring_in(&mount.root.join(rel), &dir)?;
                }
            }
            (Err(e), None) => return Err(e),
        }
    }
    if let Some(network) = r.network() {
        if let Some(id) = network.class_id() {
            v1.set("net_cls", "net_cls.classid", &id.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            v1.set("net_prio", "net_prio.ifpriomap", &value)?;
        }
    }
    Ok(())
}

/// Makes the cgroup on the v2 side. Those above it may be removed meanwhile, by whoever was the last below them.
pub(super) fn create_beside(root: &Path, rel: &str) -> Result<()> {
    let mut made = v2::create(root, rel);
    for _ in 1..ROUNDS {
        match &made {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => made = v2::create(root, rel),
            _ => break,
        }
    }
    made
}

/// Tries against others that change the same at the same time.
const ROUNDS: usize = 5;

/// Moves processes that have joined the v1 side alone to the v2 side as well.
fn bring_in(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..ROUNDS {
        let there = kill::pids(to);
        let mut missing = kill::pids(from);
        missing.retain(|pid| !there.contains(pid));
        if missing.is_empty() {
            break;
        }
        for pid in missing {
            match fsutil::write(&to.join("cgroup.procs"), &pid.to_string()) {
                // It has ended.
                Err(error) if error.errno() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// See [`super::Cgroup::limit_files`].
pub(super) fn limit_files(
    below: impl Fn(&str) -> Option<PathBuf>,
    unified: Option<PathBuf>,
    r: &LinuxResources,
    page_sizes: &[String],
) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut add = |controller: &str, names: &[&str]| {
        if let Some(dir) = below(controller) {
            files.extend(names.iter().map(|name| dir.join(name)));
        }
    };
    if r.memory().is_some() {
        add("memory", &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]);
    }
    if r.cpu().is_some() {
        add("cpu", &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"]);
        add("cpuset", &["cpuset.cpus", "cpuset.mems"]);
    }
    let (huge, suffix) = match below("hugetlb") {
        Some(dir) => (Some(dir), "limit_in_bytes"),
        None => (unified, "max"),
    };
    if let Some(dir) = huge {
        files.extend(
            page_sizes
                .iter()
                .flat_map(|size| v2::hugepage_files(&dir, size, suffix)),
        );
    }
    files
}

struct V1<'a> {
    mounts: &'a [V1Mount],
    rel: &'a str,
}

impl V1<'_> {
    fn dir(&self, controller: &str) -> Result<PathBuf> {
        match self
            .mounts
            .iter()
            .find(|m| m.controllers.iter().any(|c| c == controller))
        {
            Some(mount) => Ok(mount.root.join(self.rel)),
            None => Err(Error::NoController {
                controller: controller.to_owned(),
                file: format!("{controller}.*"),
                path: PathBuf::from(format!("/{}", self.rel)),
            }),
        }
    }

    fn set(&self, controller: &str, file: &str, value: &str) -> Result<()> {
        fsutil::write(&self.dir(controller)?.join(file), value)
    }

    fn set_some<T: ToString>(&self, controller: &str, file: &str, value: Option<T>) -> Result<()> {
        value.map_or(Ok(()), |v| self.set(controller, file, &v.to_string()))
    }

    fn cpu(&self, cpu: &LinuxCpu) -> Result<()> {
        self.set_some("cpu", "cpu.shares", cpu.shares().filter(|s| *s != 0))?;
        let period = || self.set_some("cpu", "cpu.cfs_period_us", cpu.period().filter(|p| *p != 0));
        let quota = || self.set_some("cpu", "cpu.cfs_quota_us", cpu.quota().filter(|q| *q != 0));
        // Each alone may not exceed the parent's share, so the one that lowers the ratio must come first.
        match period() {
            Ok(()) => quota()?,
            Err(e) if e.errno() == Some(libc::EINVAL) && cpu.quota().is_some() => {
                quota()?;
                period()?;
            }
            Err(e) => return Err(e),
        }
        self.set_some("cpu", "cpu.cfs_burst_us", cpu.burst())?;
        self.set_some("cpu", "cpu.idle", cpu.idle())?;
        self.set_some("cpu", "cpu.rt_period_us", cpu.realtime_period().filter(|p| *p != 0))?;
        self.set_some("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime().filter(|r| *r != 0))?;
        self.set_some("cpuset", "cpuset.cpus", cpu.cpus().as_ref().filter(|c| !c.is_empty()))?;
        self.set_some("cpuset", "cpuset.mems", cpu.mems().as_ref().filter(|m| !m.is_empty()))
    }

    fn memory(&self, memory: &LinuxMemory) -> Result<()> {
        let limit = memory.limit().filter(|l| *l != 0);
        let mut swap = memory.swap().filter(|s| *s != 0);
        if limit == Some(-1) && swap.is_none() {
            swap = self
                .dir("memory")?
                .join("memory.memsw.limit_in_bytes")
                .exists()
                .then_some(-1);
        }
        if limit.is_some() || swap.is_some() {
            let dir = self.dir("memory")?;
            if memory.check_before_update() == Some(true) {
                refuse_below_usage(limit, fsutil::read_u64(&dir.join("memory.usage_in_bytes")))?;
            }
            let set_limit = || self.set_some("memory", "memory.limit_in_bytes", limit);
            let set_swap = || self.set_some("memory", "memory.memsw.limit_in_bytes", swap);
            // memory + swap may never be below memory: raise the sum first, lower it last.
            let raising = match (swap, fsutil::read_u64(&dir.join("memory.limit_in_bytes"))) {
                (Some(-1), _) => true,
                (Some(swap), Some(current)) => u64::try_from(swap).is_ok_and(|swap| swap > current),
                _ => false,
            };
            if raising {
                set_swap()?;
                set_limit()?;
            } else {
                set_limit()?;
                set_swap()?;
            }
        }
        self.set_some(
            "memory",
            "memory.soft_limit_in_bytes",
            memory.reservation().filter(|r| *r != 0),
        )?;
        self.set_some("memory", "memory.swappiness", memory.swappiness())?;
        if memory.disable_oom_killer() == Some(true) {
            self.set("memory", "memory.oom_control", "1")?;
        }
        Ok(())
    }

    fn block_io(&self, io: &LinuxBlockIo) -> Result<()> {
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            let dir = self.dir("blkio")?;
            let file = ["blkio.weight", "blkio.bfq.weight"]
                .into_iter()
                .find(|f| dir.join(f).exists());
            self.set("blkio", file.unwrap_or("blkio.weight"), &weight.to_string())?;
        }
        let throttles = [
            ("read_bps_device", io.throttle_read_bps_device()),
            ("write_bps_device", io.throttle_write_bps_device()),
            ("read_iops_device", io.throttle_read_iops_device()),
            ("write_iops_device", io.throttle_write_iops_device()),
        ];
        for (name, devices) in throttles {
            for d in devices.iter().flatten() {
                let value = format!("{}:{} {}", d.major(), d.minor(), d.rate());
                self.set("blkio", &format!("blkio.throttle.{name}"), &value)?;
            }
        }
        Ok(())
    }
}

/// Lowering a limit below what is used would make the kernel reclaim hard and then kill; better to say so.
pub(super) fn refuse_below_usage(limit: Option<i64>, usage: Option<u64>) -> Result<()> {
    match (limit.and_then(|l| u64::try_from(l).ok()), usage) {
        (Some(limit), Some(usage)) if limit <= usage => Err(Error::InvalidValue {
            key: "memory limit".to_owned(),
            value: limit.to_string(),
            reason: "below the memory that is used now",
        }),
        _ => Ok(()),
    }
}
