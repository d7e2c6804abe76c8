//! The metrics that there are: cAdvisor's names, the union of what containerd and CRI-O give, so that a dashboard made
//! for either works. They are the same for the life of the process.

use wharf_proto::cri::{MetricDescriptor, MetricType};

/// Labels of every metric, in containerd's order.
pub(super) const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// One metric.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: MetricType,
    /// After [`BASE`].
    pub(super) labels: &'static [&'static str],
}

macro_rules! descriptors {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $id: Descriptor = Descriptor {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &[$($label),*],
        };)*
        /// All of them.
        pub(super) const ALL: &[Descriptor] = &[$($id),*];
    };
}

descriptors! {
    CPU_USER: Counter "container_cpu_user_seconds_total" [] "CPU time used in programs, in seconds";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" [] "CPU time used in the kernel, in seconds";
    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"] "CPU time used, in seconds";
    CFS_PERIODS: Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU quota that have passed";
    CFS_THROTTLED: Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU quota was used up";
    CFS_THROTTLED_TIME: Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time for which the CPU quota held the container back, in seconds";

    MEMORY_CACHE: Gauge "container_memory_cache" [] "Page cache, in bytes";
    MEMORY_RSS: Gauge "container_memory_rss" [] "Anonymous memory, in bytes";
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" [] "Kernel memory charged to the container, in bytes";
    MEMORY_MAPPED: Gauge "container_memory_mapped_file" [] "Files mapped into memory, in bytes";
    MEMORY_SWAP: Gauge "container_memory_swap" [] "Swap in use, in bytes";
    MEMORY_FAILCNT: Counter "container_memory_failcnt" [] "How often the memory limit was hit";
    MEMORY_USAGE: Gauge "container_memory_usage_bytes" [] "Memory in use with page cache, in bytes";
    MEMORY_MAX_USAGE: Gauge "container_memory_max_usage_bytes" [] "Most memory that was ever in use, in bytes";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" []
        "Memory in use without page cache that was not used for long, in bytes";
    MEMORY_ACTIVE_FILE: Gauge "container_memory_total_active_file_bytes" [] "Page cache in active use, in bytes";
    MEMORY_INACTIVE_FILE: Gauge "container_memory_total_inactive_file_bytes" []
        "Page cache that was not used for long, in bytes";
    MEMORY_FAILURES: Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults, by type (pgfault, pgmajfault)";
    OOM_EVENTS: Counter "container_oom_events_total" [] "Processes that were killed for lack of memory";

    RECEIVE_BYTES: Counter "container_network_receive_bytes_total" ["interface"] "Bytes received";
    RECEIVE_PACKETS: Counter "container_network_receive_packets_total" ["interface"] "Packets received";
    RECEIVE_DROPPED: Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets thrown away while receiving";
    RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"] "Errors while receiving";
    TRANSMIT_BYTES: Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent";
    TRANSMIT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"] "Packets sent";
    TRANSMIT_DROPPED: Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets thrown away while sending";
    TRANSMIT_ERRORS: Counter "container_network_transmit_errors_total" ["interface"] "Errors while sending";

    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"] "Free inodes of the container's filesystem";
    FS_INODES_TOTAL: Gauge "container_fs_inodes_total" ["device"] "Inodes of the container's filesystem";
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"] "Size of the container's filesystem, in bytes";
    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"] "Disk that the container's files take, in bytes";
    FS_READ_BYTES: Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from the device";
    FS_READS: Counter "container_fs_reads_total" ["device"] "Finished reads from the device";
    FS_WRITTEN_BYTES: Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to the device";
    FS_WRITES: Counter "container_fs_writes_total" ["device"] "Finished writes to the device";
    BLKIO_USAGE: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes moved to and from the device, by operation";

    HUGETLB_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use, in bytes";
    HUGETLB_MAX_USAGE: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "Most huge pages that were ever in use, in bytes";

    PROCESSES: Gauge "container_processes" [] "Processes";
    THREADS: Gauge "container_threads" [] "Threads";
    THREADS_MAX: Gauge "container_threads_max" [] "Most threads that there may be; zero is no limit";
    FILE_DESCRIPTORS: Gauge "container_file_descriptors" [] "Open file descriptors of all processes";
    SOCKETS: Gauge "container_sockets" [] "Open sockets of all processes";
    ULIMITS: Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the container's first process";

    SECCOMP_BLOCKED: Counter "container_seccomp_notifier_count_total" ["syscall"]
        "Calls that the seccomp profile has blocked, where the pod asks for that to be told";

    LAST_SEEN: Gauge "container_last_seen" [] "When the container was last seen, in seconds of Unix time";
    START_TIME: Gauge "container_start_time_seconds" [] "When the container was started, in seconds of Unix time";

    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" [] "Period of the CPU quota, in microseconds";
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" [] "CPU quota of a period, in microseconds";
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" [] "CPU shares";
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" [] "Memory limit, in bytes; zero is no limit";
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that is kept for the container, in bytes";
    SPEC_MEMORY_SWAP: Gauge "container_spec_memory_swap_limit_bytes" []
        "Limit of memory and swap together, in bytes; zero is no limit";

    PRESSURE_CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time for which no task could go on for want of CPU, in seconds";
    PRESSURE_CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time for which some task waited for the CPU, in seconds";
    PRESSURE_MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" []
        "Time for which no task could go on for want of memory, in seconds";
    PRESSURE_MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" []
        "Time for which some task waited for memory, in seconds";
    PRESSURE_IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" []
        "Time for which no task could go on for want of a disk, in seconds";
    PRESSURE_IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" []
        "Time for which some task waited for a disk, in seconds";
}

impl Descriptor {
    /// As CRI has it.
    pub(super) fn to_cri(&self) -> MetricDescriptor {
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: BASE.iter().chain(self.labels).map(|&label| label.to_owned()).collect(),
        }
    }
}
