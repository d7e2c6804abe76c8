//! Against directories of files with the kernel's contents.

use std::path::{Path, PathBuf};

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("wharf-usage-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn sizes() -> Vec<String> {
    vec!["2MB".into(), "1GB".into()]
}

const PSI: &str = "some avg10=1.50 avg60=0.75 avg300=0.20 total=123456\n\
                   full avg10=0.00 avg60=0.10 avg300=0.05 total=23456\n";

#[test]
fn version_two_is_read_whole() {
    let dir = Dir::new(
        "v2",
        &[
            (
                "cpu.stat",
                "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 90\n",
            ),
            ("memory.current", "1000000\n"),
            ("memory.max", "4000000\n"),
            ("memory.peak", "1500000\n"),
            (
                "memory.stat",
                "anon 400000\nfile 500000\nkernel 60000\nfile_mapped 30000\ninactive_file 200000\nactive_file 300000\n\
                 pgfault 77\npgmajfault 3\n",
            ),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n"),
            ("memory.swap.current", "4096\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "5\n"),
            ("pids.max", "max\n"),
            ("cpu.pressure", PSI),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n259:1 \n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
        ],
    );
    let usage = v2::read(&dir.0, sizes, Depth::Metrics);
    assert_eq!(
        usage.cpu,
        Some(Cpu {
            usage_ns: 5_000_000,
            user_ns: 3_000_000,
            system_ns: 2_000_000
        })
    );
    assert_eq!(
        usage.throttling,
        Some(Throttling {
            periods: 7,
            throttled_periods: 2,
            throttled_ns: 90_000
        })
    );
    let memory = usage.memory.unwrap();
    assert_eq!((memory.working_set, memory.limit), (800_000, Some(4_000_000)));
    assert_eq!(
        (memory.rss, memory.cache, memory.kernel),
        (400_000, 500_000, Some(60_000))
    );
    assert_eq!((memory.peak, memory.limit_hits), (Some(1_500_000), 9));
    assert_eq!((memory.page_faults, memory.major_page_faults), (77, 3));
    assert_eq!(
        usage.swap,
        Some(Swap {
            usage: 4096,
            limit: None
        })
    );
    assert_eq!(
        usage.tasks,
        Some(Tasks {
            current: 5,
            limit: None
        })
    );
    let pressure = usage.cpu_pressure.unwrap();
    assert_eq!((pressure.some.total_us, pressure.full.total_us), (123_456, 23_456));
    assert_eq!((pressure.some.avg10, pressure.full.avg60), (1.5, 0.1));
    assert_eq!((usage.memory_pressure, usage.io_pressure), (None, None));
    assert_eq!(usage.io.len(), 2);
    assert_eq!(usage.io[0].bytes[..2], [("Read".into(), 10), ("Write".into(), 20)]);
    assert_eq!(usage.io[0].operations[..2], [("Read".into(), 1), ("Write".into(), 2)]);
    let pages = HugePages {
        size: "2MB".into(),
        usage: 2_097_152,
        peak: 2_097_152,
    };
    assert_eq!((usage.huge_pages, usage.oom_kills), (vec![pages], Some(1)));
}

#[test]
fn version_one_is_read_whole() {
    let dir = Dir::new(
        "v1",
        &[
            ("cpuacct/cpuacct.usage", "5000000\n"),
            ("cpuacct/cpuacct.stat", "user 30\nsystem 20\n"),
            ("cpu/cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 90000\n"),
            ("memory/memory.usage_in_bytes", "1000000\n"),
            ("memory/memory.max_usage_in_bytes", "1500000\n"),
            ("memory/memory.limit_in_bytes", "4000000\n"),
            ("memory/memory.memsw.usage_in_bytes", "1004096\n"),
            ("memory/memory.memsw.limit_in_bytes", "4000000\n"),
            ("memory/memory.failcnt", "9\n"),
            (
                "memory/memory.stat",
                "rss 1\ntotal_cache 500000\ntotal_rss 400000\ntotal_mapped_file 30000\ntotal_pgfault 77\n\
                 total_pgmajfault 3\ntotal_swap 4096\ntotal_inactive_file 200000\ntotal_active_file 300000\n",
            ),
            (
                "memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            (
                "memory/below/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
            ("pids/pids.current", "5\n"),
            ("pids/pids.max", "100\n"),
            (
                "blkio/blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            ),
            ("blkio/blkio.throttle.io_serviced", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("unified/cgroup.events", "populated 1\nfrozen 0\n"),
            ("unified/memory.pressure", PSI),
            ("unified/hugetlb.1GB.current", "0\n"),
        ],
    );
    let (root, unified) = (dir.0.clone(), dir.0.join("unified"));
    let usage = v1::read(
        |controller| Some(root.join(controller)),
        Some(&unified),
        sizes,
        Depth::Metrics,
    );
    let cpu = usage.cpu.unwrap();
    assert_eq!(
        (cpu.usage_ns, cpu.user_ns, cpu.system_ns),
        (5_000_000, 300_000_000, 200_000_000)
    );
    assert_eq!(usage.throttling.unwrap().throttled_ns, 90_000);
    let memory = usage.memory.unwrap();
    assert_eq!(
        (memory.working_set, memory.rss, memory.kernel),
        (800_000, 400_000, None)
    );
    assert_eq!((memory.peak, memory.limit_hits), (Some(1_500_000), 9));
    assert_eq!(
        usage.swap,
        Some(Swap {
            usage: 4096,
            limit: Some(0)
        })
    );
    assert_eq!(
        usage.tasks,
        Some(Tasks {
            current: 5,
            limit: Some(100)
        })
    );
    assert_eq!(
        (usage.io.len(), usage.io[0].bytes.len(), usage.oom_kills),
        (1, 3, Some(3))
    );
    assert_eq!(usage.memory_pressure.unwrap().some.total_us, 123_456);
    assert_eq!(usage.huge_pages.len(), 1);
}

#[test]
fn what_is_not_limited_has_no_limit() {
    let dir = Dir::new(
        "unlimited",
        &[
            ("memory.usage_in_bytes", "1\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.usage_in_bytes", "1\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ],
    );
    let usage = v1::read(|_| Some(dir.0.clone()), None, Vec::new, Depth::Stats);
    assert_eq!(usage.memory.unwrap().limit, None);
    assert_eq!(usage.swap.unwrap().limit, None);
}

#[test]
fn a_cgroup_that_is_gone_is_empty_and_no_error() {
    let nowhere = Path::new("/nonexistent/cgroup");
    assert!(v2::read(nowhere, sizes, Depth::Metrics).is_empty());
    let usage = v1::read(|_| Some(nowhere.to_owned()), Some(nowhere), sizes, Depth::Metrics);
    assert!(usage.is_empty() && usage.oom_kills.is_none(), "{usage:?}");
}

#[test]
fn a_pods_usage_is_the_sum_of_its_containers() {
    let one = |n: u64| Usage {
        cpu: Some(Cpu {
            usage_ns: n,
            ..Cpu::default()
        }),
        memory: Some(Memory {
            usage: 10 * n,
            working_set: 5 * n,
            limit: Some(100),
            ..Memory::default()
        }),
        processes: Some(n),
        io_pressure: Some(Psi::default()),
        ..Usage::default()
    };
    let mut sum = Usage::default();
    sum.add(&one(1));
    sum.add(&one(2));
    assert_eq!(sum.cpu.unwrap().usage_ns, 3);
    let memory = sum.memory.unwrap();
    assert_eq!((memory.usage, memory.working_set, memory.limit), (30, 15, None));
    assert_eq!((sum.processes, sum.io_pressure), (Some(3), None));
}

#[test]
fn pressure_that_is_garbled_is_none() {
    assert_eq!(psi::parse(""), None);
    assert_eq!(psi::parse("some avg10=x total=1"), None);
    // Kernels before 5.13 have no "full" for the CPU.
    assert_eq!(
        psi::parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
            .unwrap()
            .some
            .total_us,
        7
    );
}
