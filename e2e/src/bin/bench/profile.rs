//! Where the time of the hot paths goes: `bench profile`, with the options of `bench`.
//!
//! Each path is called so often, one call after another, in two passes. The first counts what each call takes of time,
//! processor and page faults. In the second, strace watches the daemon and all that it starts, and tells which system calls
//! take longest. A call that is watched takes some 30 µs more, so it is the order that counts, and what takes milliseconds.

mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use wharf_e2e::{Result, container, pod};
use wharf_proto::cri::PodSandboxConfig;

use crate::options::Options;
use crate::table::median;
use crate::{Peer, cycle, memory};
use trace::{Calls, Trace};

const LOGS: &str = "/tmp/wharf-bench-logs";
/// Containers that a long list has.
const MANY: usize = 1000;
/// System calls shown of each path.
const SHOWN: usize = 8;

/// What one path was seen to take, for each call.
#[derive(Default)]
struct Seen {
    milliseconds: f64,
    processor: Option<f64>,
    faults: f64,
    calls: Calls,
}

/// Looks at every endpoint that has a daemon.
///
/// # Errors
/// When a call fails, or strace is not there.
pub async fn run(options: &Options, peers: &[Peer]) -> Result {
    for peer in peers {
        let Some(daemon) = peer.daemon else { continue };
        let mut meter = Meter {
            daemon,
            trace: None,
            order: Vec::new(),
            seen: BTreeMap::new(),
        };
        for traced in [false, true] {
            eprintln!("{}: {}", peer.name, if traced { "traced" } else { "timed" });
            if traced {
                meter.trace = Some(
                    Trace::attach(daemon, || async {
                        peer.cri.version().await?;
                        Ok(())
                    })
                    .await?,
                );
            }
            paths(&mut meter, peer, options).await?;
        }
        println!("{}", meter.markdown(&peer.name));
    }
    Ok(())
}

async fn paths(meter: &mut Meter, peer: &Peer, options: &Options) -> Result {
    let (cri, image, times) = (&peer.cri, &options.image, options.pods);
    // Warms up: the first pod makes the bridge.
    cycle::sequential(peer, image, 1).await?;
    let mut pods: Vec<(String, PodSandboxConfig)> = Vec::new();
    meter
        .path("RunPodSandbox", times, async |n| {
            let config = pod(&format!("profile-{n}"), Path::new(LOGS));
            pods.push((cri.run_pod(&config, &peer.handler).await?, config));
            Ok(())
        })
        .await?;
    let mut containers = Vec::new();
    meter
        .path("CreateContainer", times, async |n| {
            let mut main = container("main", image, "");
            main.command = vec!["/bin/sleep".into(), "100000".into()];
            let (id, config) = &pods[n];
            containers.push(cri.create(id, &main, config).await?);
            Ok(())
        })
        .await?;
    meter
        .path("StartContainer", times, async |n| Ok(cri.start(&containers[n]).await?))
        .await?;
    meter
        .path("ExecSync", times, async |n| {
            cri.exec(&containers[n], &["/bin/true"], 10).await?;
            Ok(())
        })
        .await?;
    meter
        .path("StopContainer, timeout 0", times, async |n| {
            Ok(cri.stop(&containers[n], 0).await?)
        })
        .await?;
    meter
        .path("StopPodSandbox", times, async |n| Ok(cri.stop_pod(&pods[n].0).await?))
        .await?;
    meter
        .path("RemovePodSandbox", times, async |n| {
            Ok(cri.remove_pod(&pods[n].0).await?)
        })
        .await?;
    if meter.trace.is_none() {
        beside_many(meter, peer, image, times).await?;
    }
    if let Some(reference) = &options.pull {
        meter
            .path("PullImage", 1, async |_| {
                cycle::pull(peer, &format!("{reference}:0")).await.map(drop)
            })
            .await?;
    }
    Ok(())
}

/// What takes longer the more there is: a list, and whatever looks at all of the machine's mounts.
async fn beside_many(meter: &mut Meter, peer: &Peer, image: &str, times: usize) -> Result {
    let cri = &peer.cri;
    let mut pods = Vec::new();
    for n in 0..times {
        let config = pod(&format!("many-{n}"), Path::new(LOGS));
        let id = cri.run_pod(&config, &peer.handler).await?;
        for n in 0..MANY / times {
            cri.create(&id, &container(&format!("more-{n}"), image, ""), &config)
                .await?;
        }
        pods.push((id, config));
    }
    let mut containers = Vec::new();
    for (id, config) in &pods {
        let mut main = container("main", image, "");
        main.command = vec!["/bin/sleep".into(), "100000".into()];
        containers.push(cri.create(id, &main, config).await?);
    }
    let beside = |call: &str| format!("{call} beside {MANY} containers");
    meter
        .path(&beside("ListContainers"), times, async |_| {
            cri.containers(None).await?;
            Ok(())
        })
        .await?;
    meter
        .path(&beside("StartContainer"), times, async |n| {
            Ok(cri.start(&containers[n]).await?)
        })
        .await?;
    meter
        .path(&beside("ExecSync"), times, async |n| {
            cri.exec(&containers[n], &["/bin/true"], 10).await?;
            Ok(())
        })
        .await?;
    meter
        .path(&beside("StopContainer"), times, async |n| {
            Ok(cri.stop(&containers[n], 0).await?)
        })
        .await?;
    for (id, _) in &pods {
        cri.stop_pod(id).await?;
        cri.remove_pod(id).await?;
    }
    Ok(())
}

struct Meter {
    daemon: i32,
    trace: Option<Trace>,
    order: Vec<String>,
    seen: BTreeMap<String, Seen>,
}

impl Meter {
    /// Calls `call` so often.
    async fn path(&mut self, name: &str, times: usize, mut call: impl AsyncFnMut(usize) -> Result) -> Result {
        if !self.order.iter().any(|known| known == name) {
            self.order.push(name.to_owned());
        }
        if let Some(trace) = &mut self.trace {
            trace.since().await;
        }
        let spent = || Some(memory::lab_processor_time()? - memory::processor_time(std::process::id().cast_signed())?);
        let (faults, before) = (faults(self.daemon), spent());
        let mut taken = Vec::new();
        for n in 0..times {
            let begin = Instant::now();
            call(n).await?;
            taken.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
        let seen = self.seen.entry(name.to_owned()).or_default();
        if let Some(trace) = &mut self.trace {
            seen.calls = trace.since().await.shared_among(times);
            return Ok(());
        }
        let each = |sum: f64| sum / times as f64;
        seen.milliseconds = median(&taken);
        seen.processor = before
            .zip(spent())
            .map(|(before, after)| each((after - before) * 1000.0));
        seen.faults = each(self::faults(self.daemon).saturating_sub(faults) as f64);
        Ok(())
    }

    fn markdown(&self, name: &str) -> String {
        use std::fmt::Write;
        let mut out = format!(
            "### {name}\n\n| | ms | processor, ms | page faults | processes | threads | system calls | of these longest: \
             times × microseconds, watched |\n|---|---|---|---|---|---|---|---|\n"
        );
        for path in &self.order {
            let seen = &self.seen[path];
            let processor = seen.processor.map(|ms| format!("{ms:.1}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "| {path} | {} | {processor} | {} | {} |",
                number(seen.milliseconds),
                number(seen.faults),
                seen.calls.markdown(SHOWN)
            );
        }
        out
    }
}

fn number(value: f64) -> String {
    match value {
        0.0 => String::new(),
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Page faults of a process, all that descends from it, and of those of them that have ended.
fn faults(root: i32) -> u64 {
    let mut parents: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    for pid in memory::all() {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        // proc(5): what follows the name begins with field 3; 4 is the parent, 10 and 11 are minor faults.
        let fields: Vec<u64> = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        if let [_, parent, _, _, _, _, _, own, ended, ..] = fields[..] {
            parents.entry(i32::try_from(parent).unwrap_or(0)).or_default().push(pid);
            counts.insert(pid, own + ended);
        }
    }
    let (mut sum, mut seen, mut next) = (0, BTreeSet::new(), vec![root]);
    while let Some(pid) = next.pop() {
        if seen.insert(pid) {
            sum += counts.get(&pid).copied().unwrap_or(0);
            next.extend(parents.get(&pid).into_iter().flatten());
        }
    }
    sum
}
