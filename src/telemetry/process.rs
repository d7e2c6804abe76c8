//! What the kernel tells of this process. Blocking, though nothing but memory is read.

use std::{fs, path::Path};

/// Figures of this process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    /// CPU time of all threads.
    pub cpu_seconds: f64,
    /// Memory that is mapped and there.
    pub resident_bytes: u64,
    /// Memory that the allocator has given out; None where nobody can tell.
    pub allocated_bytes: Option<u64>,
    /// File descriptors.
    pub open_fds: u64,
    /// Most that it may have.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// When it was started: Unix time, seconds.
    pub started: f64,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// As in ps(1): R runs, S waits, D waits in the kernel and takes no signal.
    pub state: String,
    /// The kernel's function that it waits in; empty where that is not told.
    pub waits_in: String,
}

/// Figures of this process; None without /proc.
#[must_use]
pub fn own() -> Option<Process> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may have spaces; what follows it has none.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // proc(5) counts from 1, and the first two are before the parenthesis.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
    // SAFETY: no precondition.
    let (ticks, page) = unsafe {
        (
            libc::sysconf(libc::_SC_CLK_TCK) as f64,
            libc::sysconf(libc::_SC_PAGESIZE) as f64,
        )
    };
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) / ticks,
        resident_bytes: (field(24)? * page) as u64,
        allocated_bytes: crate::memory::in_use().and_then(|bytes| u64::try_from(bytes).ok()),
        open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: limit.map_or(0, |(soft, _)| soft),
        threads: field(20)? as u64,
        started: now - uptime + field(22)? / ticks,
    })
}

/// The threads of this process, by number.
#[must_use]
pub fn threads() -> Vec<Thread> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut all: Vec<Thread> = entries.filter_map(|entry| thread(&entry.path())).collect();
    all.sort_by_key(|thread| thread.id);
    all
}

/// None when it has ended meanwhile.
fn thread(dir: &Path) -> Option<Thread> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let stat = read("stat")?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let (id, name) = head.split_once(" (")?;
    let waits_in = read("wchan").unwrap_or_default();
    Some(Thread {
        id: id.parse().ok()?,
        name: name.to_owned(),
        state: tail.chars().next()?.to_string(),
        waits_in: Some(waits_in).filter(|place| place != "0").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_descriptors_and_a_beginning() {
        let own = own().unwrap();
        assert!(
            own.resident_bytes > 1 << 20 && own.open_fds >= 3 && own.threads >= 1,
            "{own:?}"
        );
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(own.started <= now && own.started > now - 3600.0, "{own:?} at {now}");
    }

    #[test]
    fn this_thread_is_among_its_threads() {
        let all = threads();
        assert!(
            all.iter().any(|thread| ["R", "S"].contains(&thread.state.as_str())),
            "{all:?}"
        );
        assert!(all.iter().any(|thread| thread.id == std::process::id()), "{all:?}");
    }
}
