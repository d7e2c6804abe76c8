//! Making cgroups and writing limits on v2.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{
    Error, Result, bpf,
    convert::{blkio_to_io_weight, cpu_shares_to_weight},
    devices, fsutil,
    v1::refuse_below_usage,
};

pub(super) fn create(root: &Path, rel: &str) -> Result<()> {
    let mut dir = root.to_owned();
    for part in rel.split('/') {
        hand_down_controllers(&dir)?;
        dir.push(part);
        fsutil::mkdir(&dir)?;
    }
    Ok(())
}

/// Enables for the children of `dir` every controller that `dir` has. One that cannot be enabled (a real-time process in
/// the way, processes in an inner cgroup) is left out: only a limit that needs it is then an error.
fn hand_down_controllers(dir: &Path) -> Result<()> {
    let available = fsutil::read(&dir.join("cgroup.controllers"))?;
    let control = dir.join("cgroup.subtree_control");
    let enabled = fsutil::read(&control)?;
    let missing: Vec<_> = available
        .split_whitespace()
        .filter(|c| !enabled.split_whitespace().any(|e| e == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if !missing.is_empty() && fsutil::write_raw(&control, &missing.join(" ")).is_err() {
        for one in missing {
            let _ = fsutil::write_raw(&control, &one);
        }
    }
    Ok(())
}

pub(super) fn apply(dir: &Path, r: &LinuxResources) -> Result<()> {
    if let Some(rules) = r.devices() {
        bpf::restrict_devices(dir, &devices::parse(rules)?)?;
    }
    if let Some(m) = r.memory() {
        memory(dir, m)?;
    }
    if let Some(c) = r.cpu() {
        cpu(dir, c)?;
    }
    if let Some(pids) = r.pids() {
        let limit = if pids.limit() > 0 {
            pids.limit().to_string()
        } else {
            "max".to_owned()
        };
        set(dir, "pids.max", &limit)?;
    }
    if let Some(io) = r.block_io() {
        block_io(dir, io)?;
    }
    for limit in r.hugepage_limits().iter().flatten() {
        hugepages(dir, limit, "max")?;
    }
    if r.network()
        .as_ref()
        .is_some_and(|n| n.class_id().is_some() || n.priorities().is_some())
    {
        return Err(Error::Unsupported(format!(
            "cgroup {}: network class or priority on cgroup v2",
            dir.display()
        )));
    }
    for (hca, rdma) in r.rdma().iter().flatten() {
        let mut value = hca.clone();
        for (name, limit) in [("hca_handle", rdma.hca_handles()), ("hca_object", rdma.hca_objects())] {
            if let Some(limit) = limit {
                value.push_str(&format!(" {name}={limit}"));
            }
        }
        set(dir, "rdma.max", &value)?;
    }
    // Last, because these are what the caller insists on. Sorted, so that the first error is always the same.
    let mut unified: Vec<_> = r.unified().iter().flatten().collect();
    unified.sort();
    for (key, value) in unified {
        check_unified_key(key)?;
        for line in value.lines().filter(|l| !l.is_empty()) {
            set(dir, key, line)?;
        }
    }
    Ok(())
}

/// See [`super::Cgroup::limit_files`].
pub(super) fn limit_files(dir: &Path, r: &LinuxResources, page_sizes: &[String]) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if r.memory().is_some() {
        names.extend(["memory.max", "memory.low", "memory.swap.max"]);
    }
    if r.cpu().is_some() {
        names.extend(["cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems"]);
    }
    if r.pids().is_some() {
        names.push("pids.max");
    }
    if r.block_io().as_ref().is_some_and(|io| io.weight().is_some()) {
        names.push("io.weight");
    }
    let unified = r.unified().iter().flatten().map(|(key, _)| key.as_str());
    names.extend(unified.filter(|key| check_unified_key(key).is_ok()));
    let mut files: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    files.extend(page_sizes.iter().flat_map(|size| hugepage_files(dir, size, "max")));
    files
}

/// The files of one huge page limit.
pub(super) fn hugepage_files(dir: &Path, size: &str, suffix: &str) -> [PathBuf; 2] {
    ["", "rsvd."].map(|kind| dir.join(format!("hugetlb.{}.{kind}{suffix}", size.replace('/', "_"))))
}

/// A key is a file of a controller in this cgroup, nothing else.
fn check_unified_key(key: &str) -> Result<()> {
    let plain = matches!(
        Path::new(key).components().collect::<Vec<_>>()[..],
        [Component::Normal(_)]
    );
    let reason = match key.split_once('.') {
        _ if !plain || key.contains('/') => "not a file name",
        Some(("cgroup", _)) => "belongs to the runtime",
        Some((controller, file)) if !controller.is_empty() && !file.is_empty() => return Ok(()),
        _ => "not of the form controller.file",
    };
    Err(Error::InvalidValue {
        key: "unified".to_owned(),
        value: key.to_owned(),
        reason,
    })
}

/// Writes a limit; a missing file means a missing controller.
fn set(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    match fsutil::write_raw(&path, value) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.is_dir() => Err(Error::NoController {
            controller: file.split('.').next().unwrap_or(file).to_owned(),
            file: file.to_owned(),
            path: dir.to_owned(),
        }),
        Err(e) => Err(Error::io(format!("write {value:?} to"), path, e)),
    }
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn cpu(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    if cpu.realtime_period().is_some_and(|p| p != 0) || cpu.realtime_runtime().is_some_and(|r| r != 0) {
        return Err(Error::Unsupported(format!(
            "cgroup {}: real-time CPU limits on cgroup v2",
            dir.display()
        )));
    }
    if let Some(idle) = cpu.idle() {
        set(dir, "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0)
        && cpu.idle() != Some(1)
    {
        set(dir, "cpu.weight", &cpu_shares_to_weight(shares).to_string())?;
    }
    let burst = cpu.burst();
    let quota = cpu.quota().filter(|q| *q != 0);
    let period = cpu.period().filter(|p| *p != 0);
    // A burst above the quota is refused, so a smaller one is set before it and a larger one after it.
    let burst_first = burst.is_some_and(|b| b == 0);
    let set_burst = || burst.map_or(Ok(()), |b| set(dir, "cpu.max.burst", &b.to_string()));
    if burst_first {
        set_burst()?;
    }
    match (quota, period) {
        (None, None) => {}
        (Some(quota), None) => set(dir, "cpu.max", &max_or(quota))?,
        (quota, Some(period)) => {
            let quota = match quota {
                Some(quota) => max_or(quota),
                None => current_quota(dir),
            };
            set(dir, "cpu.max", &format!("{quota} {period}"))?;
        }
    }
    if !burst_first {
        set_burst()?;
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|c| !c.is_empty()) {
        set(dir, "cpuset.cpus", cpus)?;
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|m| !m.is_empty()) {
        set(dir, "cpuset.mems", mems)?;
    }
    Ok(())
}

/// The quota in force, so that a new period alone leaves it.
fn current_quota(dir: &Path) -> String {
    let text = fsutil::read_raw(&dir.join("cpu.max")).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("max").to_owned()
}

fn memory(dir: &Path, memory: &LinuxMemory) -> Result<()> {
    let limit = memory.limit().filter(|l| *l != 0);
    if memory.check_before_update() == Some(true) {
        refuse_below_usage(limit, fsutil::read_u64(&dir.join("memory.current")))?;
    }
    if let Some(swap) = swap_only(limit, memory.swap().filter(|s| *s != 0))? {
        match set(dir, "memory.swap.max", &max_or(swap)) {
            // Without swap accounting there is no swap to forbid.
            Err(Error::NoController { .. }) if swap <= 0 && dir.join("memory.max").exists() => {}
            other => other?,
        }
    }
    if let Some(limit) = limit {
        set(dir, "memory.max", &max_or(limit))?;
    }
    if let Some(low) = memory.reservation().filter(|r| *r != 0) {
        set(dir, "memory.low", &max_or(low))?;
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(Error::Unsupported(format!(
            "cgroup {}: no OOM killer on cgroup v2",
            dir.display()
        )));
    }
    Ok(())
}

/// OCI gives memory and swap together as v1 does; v2 wants swap alone.
fn swap_only(limit: Option<i64>, both: Option<i64>) -> Result<Option<i64>> {
    let fail = |reason| {
        Err(Error::InvalidValue {
            key: "memory and swap".to_owned(),
            value: both.unwrap_or_default().to_string(),
            reason,
        })
    };
    match (limit, both) {
        (Some(..=-1), None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(..=-1)) => Ok(Some(-1)),
        (None | Some(..=-1), Some(_)) => fail("needs a memory limit beside it"),
        (Some(limit), Some(both)) if both < limit => fail("less than the memory limit alone"),
        (Some(limit), Some(both)) => Ok(Some(both - limit)),
    }
}

fn block_io(dir: &Path, io: &LinuxBlockIo) -> Result<()> {
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        if dir.join("io.bfq.weight").exists() {
            set(dir, "io.bfq.weight", &weight.to_string())?;
        } else {
            set(dir, "io.weight", &blkio_to_io_weight(weight).to_string())?;
        }
    }
    let throttles = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (name, devices) in throttles {
        for d in devices.iter().flatten() {
            set(
                dir,
                "io.max",
                &format!("{}:{} {name}={}", d.major(), d.minor(), d.rate()),
            )?;
        }
    }
    Ok(())
}

/// A page size is a part of a file's name.
pub(super) fn check_page_size(limit: &LinuxHugepageLimit) -> Result<()> {
    let size = limit.page_size();
    match !size.is_empty() && size.bytes().all(|b| b.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err(Error::InvalidValue {
            key: "hugepage limit".to_owned(),
            value: size.clone(),
            reason: "not a page size such as \"2MB\"",
        }),
    }
}

/// Sets one huge page limit. `suffix` is the file's end: `max` on v2, `limit_in_bytes` on v1.
pub(super) fn hugepages(dir: &Path, limit: &LinuxHugepageLimit, suffix: &str) -> Result<()> {
    check_page_size(limit)?;
    let size = limit.page_size();
    let value = limit.limit().to_string();
    set(dir, &format!("hugetlb.{size}.{suffix}"), &value)?;
    // Reservations are counted apart since Linux 5.7.
    match set(dir, &format!("hugetlb.{size}.rsvd.{suffix}"), &value) {
        Err(Error::NoController { .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_exceeds_the_memory_limit() {
        assert_eq!(swap_only(Some(100), Some(150)).unwrap(), Some(50));
        assert_eq!(swap_only(Some(100), Some(100)).unwrap(), Some(0));
        assert_eq!(swap_only(Some(100), Some(-1)).unwrap(), Some(-1));
        assert_eq!(swap_only(Some(-1), None).unwrap(), Some(-1));
        assert_eq!(swap_only(Some(100), None).unwrap(), None);
        assert!(swap_only(Some(100), Some(50)).is_err());
        assert!(swap_only(None, Some(50)).is_err());
    }

    #[test]
    fn unified_keys_are_file_names_of_controllers() {
        assert!(check_unified_key("memory.high").is_ok());
        for bad in [
            "cgroup.procs",
            "../memory.max",
            "memory/max.x",
            "memory",
            ".x",
            "",
            "a/../memory.max",
        ] {
            assert!(check_unified_key(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
