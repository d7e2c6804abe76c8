//! Usage on cgroup v1: one directory for each controller.

use std::path::{Path, PathBuf};

use super::{Cpu, Depth, DeviceIo, HugePages, Memory, Swap, Tasks, Throttling, Usage, limit, psi};
use crate::cgroups::fsutil::{children, keyed, read_keyed, read_raw, read_u64};

/// OOM kills; each v1 cgroup counts only its own.
pub(in crate::cgroups) fn oom_kills(dir: &Path) -> u64 {
    let own = read_keyed(&dir.join("memory.oom_control"), "oom_kill").unwrap_or(0);
    own + children(dir).iter().map(|child| oom_kills(child)).sum::<u64>()
}

/// Reads the cgroup whose directory in a controller's hierarchy `dir` gives; `unified` is its directory on the v2 side
/// of a hybrid machine, which may not exist.
pub(in crate::cgroups) fn read(
    dir: impl Fn(&str) -> Option<PathBuf>,
    unified: Option<&Path>,
    page_sizes: impl Fn() -> Vec<String>,
    depth: Depth,
) -> Usage {
    let memory_dir = dir("memory");
    let memory = memory_dir.as_deref().and_then(memory);
    let mut usage = Usage {
        cpu: dir("cpuacct").as_deref().and_then(cpu),
        swap: memory_dir
            .as_deref()
            .zip(memory.as_ref())
            .and_then(|(dir, memory)| swap(dir, memory)),
        memory,
        tasks: dir("pids").as_deref().and_then(tasks),
        ..Usage::default()
    };
    // Processes join the v2 side only where their cgroup was made there; an empty one would show no pressure at all.
    if let Some(dir) = unified.filter(|dir| read_keyed(&dir.join("cgroup.events"), "populated") == Some(1)) {
        usage.cpu_pressure = psi::read(&dir.join("cpu.pressure"));
        usage.memory_pressure = psi::read(&dir.join("memory.pressure"));
        usage.io_pressure = psi::read(&dir.join("io.pressure"));
    }
    if depth == Depth::Metrics {
        usage.throttling = dir("cpu").as_deref().and_then(throttling);
        usage.io = dir("blkio").as_deref().map(io).unwrap_or_default();
        usage.huge_pages = huge_pages(dir("hugetlb").as_deref(), unified, &page_sizes());
        usage.oom_kills = memory_dir.as_deref().filter(|dir| dir.is_dir()).map(oom_kills);
    }
    usage
}

fn cpu(dir: &Path) -> Option<Cpu> {
    let usage_ns = read_u64(&dir.join("cpuacct.usage"))?;
    let exact = |file: &str| read_u64(&dir.join(file));
    // Before kernel 4.6 only in ticks of a hundredth of a second.
    let ticks = |key: &str| {
        let text = read_raw(&dir.join("cpuacct.stat")).ok()?;
        Some(keyed(&text, key)?.saturating_mul(10_000_000))
    };
    Some(Cpu {
        usage_ns,
        user_ns: exact("cpuacct.usage_user").or_else(|| ticks("user")).unwrap_or(0),
        system_ns: exact("cpuacct.usage_sys").or_else(|| ticks("system")).unwrap_or(0),
    })
}

fn throttling(dir: &Path) -> Option<Throttling> {
    let text = read_raw(&dir.join("cpu.stat")).ok()?;
    Some(Throttling {
        periods: keyed(&text, "nr_periods")?,
        throttled_periods: keyed(&text, "nr_throttled")?,
        throttled_ns: keyed(&text, "throttled_time")?,
    })
}

fn memory(dir: &Path) -> Option<Memory> {
    let number = |file: &str| read_u64(&dir.join(file));
    let usage = number("memory.usage_in_bytes")?;
    let stat = read_raw(&dir.join("memory.stat")).unwrap_or_default();
    let total = |key: &str| keyed(&stat, key).unwrap_or(0);
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(total("total_inactive_file")),
        limit: limit(number("memory.limit_in_bytes")),
        rss: total("total_rss"),
        cache: total("total_cache"),
        mapped_file: total("total_mapped_file"),
        active_file: total("total_active_file"),
        inactive_file: total("total_inactive_file"),
        kernel: number("memory.kmem.usage_in_bytes"),
        peak: number("memory.max_usage_in_bytes"),
        limit_hits: number("memory.failcnt").unwrap_or(0),
        page_faults: total("total_pgfault"),
        major_page_faults: total("total_pgmajfault"),
    })
}

/// None where the kernel does not account for swap. The kernel counts memory and swap together.
fn swap(dir: &Path, memory: &Memory) -> Option<Swap> {
    let both = read_u64(&dir.join("memory.memsw.usage_in_bytes"))?;
    let stat = read_raw(&dir.join("memory.stat")).unwrap_or_default();
    let both_limit = limit(read_u64(&dir.join("memory.memsw.limit_in_bytes")));
    Some(Swap {
        usage: keyed(&stat, "total_swap").unwrap_or_else(|| both.saturating_sub(memory.usage)),
        limit: both_limit
            .zip(memory.limit)
            .map(|(both, memory)| both.saturating_sub(memory)),
    })
}

fn tasks(dir: &Path) -> Option<Tasks> {
    Some(Tasks {
        current: read_u64(&dir.join("pids.current"))?,
        limit: limit(read_u64(&dir.join("pids.max"))),
    })
}

fn io(dir: &Path) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    let text = |name: &str| {
        let recursive = read_raw(&dir.join(format!("blkio.throttle.{name}_recursive")));
        recursive
            .or_else(|_| read_raw(&dir.join(format!("blkio.throttle.{name}"))))
            .unwrap_or_default()
    };
    for (name, field) in [("io_service_bytes", true), ("io_serviced", false)] {
        for line in text(name).lines() {
            // The last line, "Total N", is of all devices.
            let mut words = line.split_whitespace();
            let (Some(number), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (device_number(number), value.parse()) else {
                continue;
            };
            let device = device(&mut devices, major, minor);
            let list = if field {
                &mut device.bytes
            } else {
                &mut device.operations
            };
            list.push((kind.to_owned(), value));
        }
    }
    devices
}

/// `MAJOR:MINOR`.
pub(super) fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn device(devices: &mut Vec<DeviceIo>, major: u32, minor: u32) -> &mut DeviceIo {
    let at = devices
        .iter()
        .position(|device| (device.major, device.minor) == (major, minor))
        .unwrap_or_else(|| {
            devices.push(DeviceIo::new(major, minor));
            devices.len() - 1
        });
    &mut devices[at]
}

/// On a hybrid machine the controller may be on the v2 side.
fn huge_pages(dir: Option<&Path>, unified: Option<&Path>, sizes: &[String]) -> Vec<HugePages> {
    let one = |size: &String| {
        let number = |dir: &Path, file: &str| read_u64(&dir.join(format!("hugetlb.{size}.{file}")));
        let here = dir.and_then(|dir| Some((number(dir, "usage_in_bytes")?, number(dir, "max_usage_in_bytes")?)));
        let there = || {
            unified
                .and_then(|dir| number(dir, "current"))
                .map(|usage| (usage, usage))
        };
        let (usage, peak) = here.or_else(there)?;
        Some(HugePages {
            size: size.clone(),
            usage,
            peak,
        })
    };
    sizes.iter().filter_map(one).collect()
}
