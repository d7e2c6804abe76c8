//! What processes use: memory (proportional set size, which counts shared pages once) and processor time.

use std::collections::BTreeSet;

/// KiB of PSS of one process.
pub fn pss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Every process that there is.
pub fn all() -> BTreeSet<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// KiB of PSS of all processes that came since, without the workload (`sleep`) and the daemon.
pub fn helpers_since(before: &BTreeSet<i32>, daemon: Option<i32>) -> u64 {
    all()
        .into_iter()
        .filter(|pid| !before.contains(pid) && Some(*pid) != daemon)
        .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.starts_with(b"/bin/sleep")))
        .filter_map(pss)
        .sum()
}

/// Seconds that a process has computed, with what the kernel did for it.
pub fn processor_time(pid: i32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15, counted from the state behind the name; in ticks of a hundredth.
    let fields: Vec<_> = stat.rsplit(") ").next()?.split(' ').collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// Seconds that everything in this cgroup namespace has computed, whatever has become of it since; `None` where no hierarchy
/// counts it.
pub fn lab_processor_time() -> Option<f64> {
    // cgroup-v1/cpuacct.rst: nanoseconds of the cgroup and all below, also of cgroups that were removed.
    let v1 = std::fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage");
    if let Ok(text) = v1 {
        return Some(text.trim().parse::<f64>().ok()? / 1e9);
    }
    let text = std::fs::read_to_string("/sys/fs/cgroup/cpu.stat").ok()?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usage.parse::<f64>().ok()? / 1e6)
}
