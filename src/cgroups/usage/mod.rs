//! What a cgroup uses: the kernel's counters of both versions in one shape. A value is None where its controller is
//! missing, the kernel has no such file, or the cgroup is gone; nothing here is an error.

mod psi;
mod rate;
#[cfg(test)]
mod tests;
pub(super) mod v1;
pub(super) mod v2;

pub use psi::{Psi, Stall};
pub use rate::Rate;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What CRI's stats hold.
    Stats,
    /// That, and what its metrics hold beside.
    Metrics,
}

/// Usage of a cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap, where it is accounted for.
    pub swap: Option<Swap>,
    /// Tasks (threads).
    pub tasks: Option<Tasks>,
    /// Processes.
    pub processes: Option<u64>,
    /// Time lost by waiting for the CPU.
    pub cpu_pressure: Option<Psi>,
    /// Time lost by waiting for memory.
    pub memory_pressure: Option<Psi>,
    /// Time lost by waiting for disks.
    pub io_pressure: Option<Psi>,
    /// With [`Depth::Metrics`]: what the CPU quota did.
    pub throttling: Option<Throttling>,
    /// With [`Depth::Metrics`]: transfers of each block device.
    pub io: Vec<DeviceIo>,
    /// With [`Depth::Metrics`]: huge pages of each size.
    pub huge_pages: Vec<HugePages>,
    /// With [`Depth::Metrics`]: processes that the kernel killed for lack of memory.
    pub oom_kills: Option<u64>,
}

/// CPU time, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub usage_ns: u64,
    /// In programs.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
}

/// Memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Charged, page cache included.
    pub usage: u64,
    /// [`Memory::usage`] without file pages that have not been used for long: what cannot be had back easily.
    pub working_set: u64,
    /// None where there is no limit.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Files mapped into processes.
    pub mapped_file: u64,
    /// File pages in use.
    pub active_file: u64,
    /// File pages not used for long.
    pub inactive_file: u64,
    /// Of the kernel for these processes; None where it is not told apart.
    pub kernel: Option<u64>,
    /// Highest [`Memory::usage`] ever; None before kernel 5.19 on v2.
    pub peak: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// Page faults, the major ones included.
    pub page_faults: u64,
    /// Page faults that needed a disk.
    pub major_page_faults: u64,
}

/// Swap, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swap {
    /// Swapped out.
    pub usage: u64,
    /// None where there is no limit.
    pub limit: Option<u64>,
}

/// Tasks (threads), not processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Now.
    pub current: u64,
    /// None where there is no limit.
    pub limit: Option<u64>,
}

/// What the CPU quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time for which runnable tasks were held back.
    pub throttled_ns: u64,
}

/// Transfers of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Its file, such as `/dev/sda`; the numbers where it has none.
    pub name: String,
    /// Bytes by the kind of operation, in the kernel's words (`Read`, `Write`, `Discard`, ...).
    pub bytes: Vec<(String, u64)>,
    /// Finished operations by kind.
    pub operations: Vec<(String, u64)>,
}

/// Huge pages of one size, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel spells it: `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// Most that were ever in use; the usage where the kernel does not keep it (v2).
    pub peak: u64,
}

impl Usage {
    /// No controller told anything: the cgroup is gone, or never was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cpu.is_none() && self.memory.is_none() && self.tasks.is_none()
    }

    /// Adds what another cgroup uses, as far as CRI's stats of a pod need it. What can't be added (limits, pressure) is
    /// dropped.
    pub fn add(&mut self, other: &Usage) {
        fn sum<T: Copy>(a: &mut Option<T>, b: Option<T>, add: impl Fn(T, T) -> T) {
            *a = match (*a, b) {
                (Some(a), Some(b)) => Some(add(a, b)),
                (a, b) => a.or(b),
            };
        }
        sum(&mut self.cpu, other.cpu, |a, b| Cpu {
            usage_ns: a.usage_ns + b.usage_ns,
            user_ns: a.user_ns + b.user_ns,
            system_ns: a.system_ns + b.system_ns,
        });
        sum(&mut self.memory, other.memory, |a, b| Memory {
            usage: a.usage + b.usage,
            working_set: a.working_set + b.working_set,
            rss: a.rss + b.rss,
            cache: a.cache + b.cache,
            page_faults: a.page_faults + b.page_faults,
            major_page_faults: a.major_page_faults + b.major_page_faults,
            ..Memory::default()
        });
        if let Some(memory) = &mut self.memory {
            memory.limit = None;
        }
        sum(&mut self.tasks, other.tasks, |a, b| Tasks {
            current: a.current + b.current,
            limit: None,
        });
        sum(&mut self.processes, other.processes, |a, b| a + b);
        (self.cpu_pressure, self.memory_pressure, self.io_pressure) = (None, None, None);
    }
}

impl DeviceIo {
    fn new(major: u32, minor: u32) -> Self {
        // A link whose last part is the kernel's name of the device.
        let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
        let name = link
            .ok()
            .and_then(|link| Some(format!("/dev/{}", link.file_name()?.to_str()?)));
        Self {
            major,
            minor,
            name: name.unwrap_or_else(|| format!("{major}:{minor}")),
            ..Self::default()
        }
    }
}

/// Values above this are the kernel's ways to say "no limit".
const MOST: u64 = 1 << 62;

fn limit(value: Option<u64>) -> Option<u64> {
    value.filter(|&value| value < MOST)
}
