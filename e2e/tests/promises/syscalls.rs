//! What a hot path costs, in a measure that is the same on every run: system calls, of the daemon and of all that it starts.
//!
//! `syscalls.json` holds what was last accepted. `WHARF_BASELINE=write` writes it anew; the change is to be explained where
//! it is committed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use wharf_e2e::{Daemon, container, strace};

/// Cycles that count; the median of each path is taken. One before them warms up.
const CYCLES: usize = 5;
/// Share above the baseline that fails.
const RISE: f64 = 1.10;
/// So many more are not looked at: whether a thread is woken or still awake makes a difference of a few.
const SLACK: f64 = 10.0;
/// Calls that say how threads waited for each other and for time, not what was done.
const WAITING: [&str; 9] = [
    "futex",
    "epoll_wait",
    "epoll_pwait",
    "sched_yield",
    "restart_syscall",
    "clock_nanosleep",
    "nanosleep",
    "rt_sigreturn",
    "madvise",
];

/// How often each system call was made.
type Counts = BTreeMap<String, usize>;

/// How long no call may come until all have.
const REST: Duration = Duration::from_millis(150);

/// A tracer of the daemon, all its threads and all that these start.
struct Trace(strace::Trace);

impl Trace {
    fn attach(pid: i32, file: PathBuf) -> Self {
        Self(strace::Trace::attach(pid, file).unwrap())
    }

    /// Calls since the last time, once none has come for a while.
    async fn since(&mut self) -> Counts {
        let mut counts = Counts::new();
        for call in self.0.since(REST).await.lines().filter_map(strace::call) {
            if call.begins && !WAITING.contains(&call.name) {
                *counts.entry(call.name.to_owned()).or_default() += 1;
            }
        }
        counts
    }
}

fn total(counts: &Counts) -> usize {
    counts.values().sum()
}

#[tokio::test]
async fn hot_paths_make_no_more_system_calls_than_their_baseline() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let mut trace = Trace::attach(daemon.pid(), daemon.dir().join("strace"));
    let attached = SystemTime::now();
    while trace.since().await.is_empty() {
        daemon.cri.containers(None).await.unwrap();
        assert!(
            attached.elapsed().unwrap() < wharf_e2e::PATIENCE,
            "strace traces nothing"
        );
    }
    let mut samples: BTreeMap<&str, Vec<Counts>> = BTreeMap::new();
    for cycle in 0..=CYCLES {
        let cri = &daemon.cri;
        let mut taken: Vec<(&str, Counts)> = Vec::new();
        let config = daemon.pod(&format!("counted-{cycle}"));
        trace.since().await;
        let pod = cri.run_pod(&config, "").await.unwrap();
        taken.push(("RunPodSandbox", trace.since().await));
        let mut main = container("main", &image, "");
        main.command = vec!["/bin/sleep".into(), "1000".into()];
        let id = cri.create(&pod, &main, &config).await.unwrap();
        taken.push(("CreateContainer", trace.since().await));
        cri.start(&id).await.unwrap();
        taken.push(("StartContainer", trace.since().await));
        cri.exec(&id, &["/bin/true"], 10).await.unwrap();
        taken.push(("ExecSync", trace.since().await));
        cri.containers(None).await.unwrap();
        taken.push(("ListContainers", trace.since().await));
        cri.stop(&id, 0).await.unwrap();
        taken.push(("StopContainer", trace.since().await));
        cri.remove(&id).await.unwrap();
        taken.push(("RemoveContainer", trace.since().await));
        cri.stop_pod(&pod).await.unwrap();
        taken.push(("StopPodSandbox", trace.since().await));
        cri.remove_pod(&pod).await.unwrap();
        taken.push(("RemovePodSandbox", trace.since().await));
        if cycle > 0 {
            for (path, counts) in taken {
                samples.entry(path).or_default().push(counts);
            }
        }
    }
    drop(trace);
    let measured: BTreeMap<&str, Counts> = samples
        .into_iter()
        .map(|(path, mut cycles)| {
            cycles.sort_by_key(total);
            let middle = cycles.len() / 2;
            let totals: Vec<usize> = cycles.iter().map(total).collect();
            println!("{path}: {totals:?}");
            (path, cycles.swap_remove(middle))
        })
        .collect();
    compare(&measured);
    daemon.finish().await;
}

/// Fails when a path has become dearer than its baseline, and says by which calls.
fn compare(measured: &BTreeMap<&str, Counts>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/syscalls.json");
    let cgroups = if wharf_e2e::lab::is_v2() {
        "cgroup v2"
    } else {
        "cgroup v1"
    };
    let text = std::fs::read_to_string(&file).unwrap_or_else(|_| "{}".into());
    let mut baselines: BTreeMap<String, BTreeMap<String, Counts>> = serde_json::from_str(&text).unwrap();
    if std::env::var("WHARF_BASELINE").is_ok_and(|what| what == "write") {
        let now = measured
            .iter()
            .map(|(path, counts)| ((*path).to_owned(), counts.clone()));
        baselines.insert(cgroups.to_owned(), now.collect());
        std::fs::write(&file, serde_json::to_string_pretty(&baselines).unwrap() + "\n").unwrap();
        return;
    }
    let Some(baseline) = baselines.get(cgroups) else {
        panic!(
            "{} has no baseline for {cgroups}: write one with WHARF_BASELINE=write",
            file.display()
        );
    };
    let mut dearer = Vec::new();
    for (path, counts) in measured {
        let before = baseline.get(*path).unwrap_or_else(|| panic!("no baseline of {path}"));
        let (now, then) = (total(counts), total(before));
        println!("{path}: {now} system calls, baseline {then}");
        if now as f64 > (then as f64 * RISE).max(then as f64 + SLACK) {
            let more: Vec<String> = counts
                .iter()
                .map(|(name, count)| (name, *count, before.get(name).copied().unwrap_or(0)))
                .filter(|(_, count, then)| count > then)
                .map(|(name, count, then)| format!("{name} {then} -> {count}"))
                .collect();
            dearer.push(format!("{path}: {then} -> {now} ({})", more.join(", ")));
        }
    }
    assert!(
        dearer.is_empty(),
        "more system calls than {RISE} of the baseline:\n{}\nWhere that is meant: WHARF_BASELINE=write",
        dearer.join("\n")
    );
}
