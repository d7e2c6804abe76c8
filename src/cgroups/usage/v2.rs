//! Usage on cgroup v2: all in one directory.

use std::path::Path;

use super::{Cpu, Depth, DeviceIo, HugePages, Memory, Swap, Tasks, Throttling, Usage, limit, psi, v1::device_number};
use crate::cgroups::fsutil::{keyed, read_keyed, read_raw, read_u64};

/// Reads the cgroup at `dir`.
pub(in crate::cgroups) fn read(dir: &Path, page_sizes: impl Fn() -> Vec<String>, depth: Depth) -> Usage {
    let cpu_stat = read_raw(&dir.join("cpu.stat")).unwrap_or_default();
    let mut usage = Usage {
        cpu: cpu(&cpu_stat),
        memory: memory(dir),
        swap: swap(dir),
        tasks: tasks(dir),
        cpu_pressure: psi::read(&dir.join("cpu.pressure")),
        memory_pressure: psi::read(&dir.join("memory.pressure")),
        io_pressure: psi::read(&dir.join("io.pressure")),
        ..Usage::default()
    };
    if depth == Depth::Metrics {
        usage.throttling = throttling(&cpu_stat);
        usage.io = io(&read_raw(&dir.join("io.stat")).unwrap_or_default());
        usage.huge_pages = page_sizes()
            .into_iter()
            .filter_map(|size| {
                let usage = read_u64(&dir.join(format!("hugetlb.{size}.current")))?;
                let peak = usage;
                Some(HugePages { size, usage, peak })
            })
            .collect();
        usage.oom_kills = read_keyed(&dir.join("memory.events"), "oom_kill");
    }
    usage
}

fn cpu(stat: &str) -> Option<Cpu> {
    let nanoseconds = |key: &str| keyed(stat, key).map(|us| us.saturating_mul(1000));
    Some(Cpu {
        usage_ns: nanoseconds("usage_usec")?,
        user_ns: nanoseconds("user_usec").unwrap_or(0),
        system_ns: nanoseconds("system_usec").unwrap_or(0),
    })
}

fn throttling(stat: &str) -> Option<Throttling> {
    Some(Throttling {
        periods: keyed(stat, "nr_periods")?,
        throttled_periods: keyed(stat, "nr_throttled")?,
        throttled_ns: keyed(stat, "throttled_usec")?.saturating_mul(1000),
    })
}

fn memory(dir: &Path) -> Option<Memory> {
    let number = |file: &str| read_u64(&dir.join(file));
    let usage = number("memory.current")?;
    let stat = read_raw(&dir.join("memory.stat")).unwrap_or_default();
    let value = |key: &str| keyed(&stat, key).unwrap_or(0);
    // Before kernel 5.18 only its parts.
    let kernel = keyed(&stat, "kernel")
        .unwrap_or_else(|| value("kernel_stack") + value("pagetables") + value("slab") + value("sock"));
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(value("inactive_file")),
        limit: limit(number("memory.max")),
        rss: value("anon"),
        cache: value("file"),
        mapped_file: value("file_mapped"),
        active_file: value("active_file"),
        inactive_file: value("inactive_file"),
        kernel: Some(kernel),
        peak: number("memory.peak"),
        limit_hits: read_keyed(&dir.join("memory.events"), "max").unwrap_or(0),
        page_faults: value("pgfault"),
        major_page_faults: value("pgmajfault"),
    })
}

fn swap(dir: &Path) -> Option<Swap> {
    Some(Swap {
        usage: read_u64(&dir.join("memory.swap.current"))?,
        limit: limit(read_u64(&dir.join("memory.swap.max"))),
    })
}

fn tasks(dir: &Path) -> Option<Tasks> {
    Some(Tasks {
        current: read_u64(&dir.join("pids.current"))?,
        limit: limit(read_u64(&dir.join("pids.max"))),
    })
}

/// Lines as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`; a device without transfers may have nothing behind
/// its number.
fn io(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device_number(words.next()?)?;
        let mut device = DeviceIo::new(major, minor);
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = value.parse().ok()?;
            match key {
                "rbytes" => device.bytes.push(("Read".into(), value)),
                "wbytes" => device.bytes.push(("Write".into(), value)),
                "dbytes" => device.bytes.push(("Discard".into(), value)),
                "rios" => device.operations.push(("Read".into(), value)),
                "wios" => device.operations.push(("Write".into(), value)),
                "dios" => device.operations.push(("Discard".into(), value)),
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}
