//! What a runtime costs as pods come: how long one more takes, how long a list takes, and memory, from one pod to many.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use wharf_e2e::{Cri, Result, container, pod};

use crate::{Peer, cycle, memory, table::median};

const LOGS: &str = "/tmp/wharf-bench-logs";
/// Pods made and removed at a time.
const AT_ONCE: usize = 10;
/// Whole cycles timed beside the pods that run.
const CYCLES: usize = 5;
const LISTS: usize = 100;
/// So long a runtime has after a burst of work, to give back what it has taken, and for shims to settle, before its memory
/// is looked at.
pub const SETTLE: Duration = Duration::from_secs(2);

/// What was measured of one endpoint with so many pods.
pub struct Point {
    pub pods: usize,
    /// Milliseconds until one more pod is ready, median.
    pub ready: f64,
    /// Milliseconds of its whole cycle, median.
    pub cycle: f64,
    /// Milliseconds of ListContainers, median and 99th percentile.
    pub list: (f64, f64),
    /// KiB of PSS.
    pub daemon: Option<u64>,
    /// KiB of PSS of all processes beside the daemon and the workload, for each pod.
    pub helpers: f64,
}

impl Point {
    pub fn json(&self) -> Value {
        json!({
            "pods": self.pods, "pod_ready_ms": self.ready, "cycle_ms": self.cycle,
            "list_ms": { "p50": self.list.0, "p99": self.list.1 },
            "daemon_pss_kib": self.daemon, "helpers_pss_kib_per_pod": self.helpers,
        })
    }

    /// KiB of PSS of all that the runtime needs for these pods.
    pub fn total(&self) -> f64 {
        self.daemon.unwrap_or(0) as f64 + self.helpers * self.pods as f64
    }
}

/// Measures `peer` at each number of pods in `points`, which ascend; nothing is left afterwards. Also the daemon's KiB of PSS when
/// all have gone.
pub async fn measure(peer: &Peer, image: &str, points: &[usize]) -> Result<(Vec<Point>, Option<u64>)> {
    let before = memory::all();
    let mut pods: Vec<String> = Vec::new();
    let mut measured = Vec::new();
    for &wanted in points {
        let from = pods.len();
        let began = Instant::now();
        pods.extend(start(peer, image, from..wanted.max(from)).await?);
        let taken = began.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;
        let daemon = peer.daemon.and_then(memory::pss);
        let helpers = memory::helpers_since(&before, peer.daemon) as f64 / pods.len().max(1) as f64;
        let mut lists = Vec::new();
        for _ in 0..LISTS {
            let begin = Instant::now();
            peer.cri.containers(None).await?;
            lists.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
        lists.sort_by(f64::total_cmp);
        let cycles = cycle::sequential(peer, image, CYCLES).await?;
        let of = |step: &str| {
            let times = cycles.iter().flatten().filter(|(name, _)| name.contains(step));
            median(&times.map(|(_, time)| *time).collect::<Vec<_>>())
        };
        eprintln!(
            "{}: {} pods, {} more in {taken:.1} s",
            peer.name,
            pods.len(),
            pods.len() - from
        );
        measured.push(Point {
            pods: pods.len(),
            ready: of("pod ready"),
            cycle: of("whole cycle"),
            list: (median(&lists), lists[(LISTS * 99 / 100).min(LISTS - 1)]),
            daemon,
            helpers,
        });
    }
    eprintln!("{}: removing {} pods", peer.name, pods.len());
    remove(&peer.cri, pods).await?;
    tokio::time::sleep(SETTLE).await;
    Ok((measured, peer.daemon.and_then(memory::pss)))
}

/// Makes pods of one sleeping container.
async fn start(peer: &Peer, image: &str, numbers: std::ops::Range<usize>) -> Result<Vec<String>> {
    let mut made = Vec::new();
    let mut set = JoinSet::new();
    for n in numbers {
        if set.len() >= AT_ONCE
            && let Some(done) = set.join_next().await
        {
            made.push(done??);
        }
        let (cri, handler, image) = (peer.cri.clone(), peer.handler.clone(), image.to_owned());
        set.spawn(async move {
            let config = pod(&format!("density-{n}"), Path::new(LOGS));
            std::fs::create_dir_all(&config.log_directory)?;
            let id = cri.run_pod(&config, &handler).await?;
            let mut main = container("main", &image, "");
            main.command = vec!["/bin/sleep".into(), "100000".into()];
            let container = cri.create(&id, &main, &config).await?;
            cri.start(&container).await?;
            Result::Ok(id)
        });
    }
    while let Some(done) = set.join_next().await {
        made.push(done??);
    }
    Ok(made)
}

async fn remove(cri: &Cri, pods: Vec<String>) -> Result {
    let mut set: JoinSet<Result> = JoinSet::new();
    for id in pods {
        if set.len() >= AT_ONCE
            && let Some(done) = set.join_next().await
        {
            done??;
        }
        let cri = cri.clone();
        set.spawn(async move {
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await?;
            Ok(())
        });
    }
    while let Some(done) = set.join_next().await {
        done??;
    }
    Ok(())
}
