//! What a cgroup uses.

use std::path::{Path, PathBuf};

use super::fsutil::{children, keyed, read_keyed, read_raw, read_u64};

/// Usage of a cgroup and all below it. None where the controller is missing or the cgroup is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// CPU time used, nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Memory charged, page cache included, bytes.
    pub memory_usage: Option<u64>,
    /// [`Stat::memory_usage`] without the file pages that have not been used for long: what cannot be had back easily.
    pub memory_working_set: Option<u64>,
    /// Anonymous memory, bytes.
    pub memory_rss: Option<u64>,
    /// Limit in bytes; values above 2^62 mean none.
    pub memory_limit: Option<u64>,
    /// Swap used, bytes.
    pub swap_usage: Option<u64>,
    /// Minor and major page faults together, and the major ones.
    pub page_faults: Option<(u64, u64)>,
    /// Tasks (threads), not processes.
    pub tasks: Option<u64>,
}

/// OOM kills on v1, where each cgroup counts only its own.
pub(super) fn v1_oom_kills(dir: &Path) -> u64 {
    let own = read_keyed(&dir.join("memory.oom_control"), "oom_kill").unwrap_or(0);
    own + children(dir).iter().map(|child| v1_oom_kills(child)).sum::<u64>()
}

pub(super) fn v1(dir: impl Fn(&str) -> Option<PathBuf>) -> Stat {
    let number = |controller: &str, file: &str| read_u64(&dir(controller)?.join(file));
    let memory = dir("memory")
        .and_then(|d| read_raw(&d.join("memory.stat")).ok())
        .unwrap_or_default();
    let usage = number("memory", "memory.usage_in_bytes");
    let with_swap = number("memory", "memory.memsw.usage_in_bytes");
    Stat {
        cpu_usage_ns: number("cpuacct", "cpuacct.usage"),
        memory_usage: usage,
        memory_working_set: working_set(usage, keyed(&memory, "total_inactive_file")),
        memory_rss: keyed(&memory, "total_rss"),
        memory_limit: number("memory", "memory.limit_in_bytes"),
        swap_usage: with_swap.zip(usage).map(|(both, memory)| both.saturating_sub(memory)),
        page_faults: keyed(&memory, "total_pgfault").zip(keyed(&memory, "total_pgmajfault")),
        tasks: number("pids", "pids.current"),
    }
}

pub(super) fn v2(dir: &Path) -> Stat {
    let number = |file: &str| read_u64(&dir.join(file));
    let memory = read_raw(&dir.join("memory.stat")).unwrap_or_default();
    let usage = number("memory.current");
    Stat {
        cpu_usage_ns: read_keyed(&dir.join("cpu.stat"), "usage_usec").map(|us| us.saturating_mul(1000)),
        memory_usage: usage,
        memory_working_set: working_set(usage, keyed(&memory, "inactive_file")),
        memory_rss: keyed(&memory, "anon"),
        memory_limit: number("memory.max"),
        swap_usage: number("memory.swap.current"),
        page_faults: keyed(&memory, "pgfault").zip(keyed(&memory, "pgmajfault")),
        tasks: number("pids.current"),
    }
}

fn working_set(usage: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    Some(usage?.saturating_sub(inactive_file.unwrap_or(0)))
}
