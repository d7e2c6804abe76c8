//! What is measured: the steps of a pod's life.

use std::path::Path;
use std::time::{Duration, Instant};

use wharf_e2e::{Result, container, pod, specs};

use crate::Peer;

/// Name of a step and its duration.
pub type Steps = Vec<(String, f64)>;

const LOGS: &str = "/tmp/wharf-bench-logs";

/// `pods` whole cycles, one after another; the first is not counted.
pub async fn sequential(peer: &Peer, image: &str, pods: usize) -> Result<Vec<Steps>> {
    let mut all = Vec::new();
    for n in 0..=pods {
        let steps = cycle(peer, image, &format!("bench-{n}")).await?;
        if n > 0 {
            all.push(steps);
        }
    }
    Ok(all)
}

/// `count` whole cycles at once.
pub async fn parallel(peer: &Peer, image: &str, count: usize) -> Result<Vec<Steps>> {
    let mut set = tokio::task::JoinSet::new();
    for n in 0..count {
        let (image, peer) = (image.to_owned(), peer.clone());
        set.spawn(async move { cycle(&peer, &image, &format!("bench-parallel-{n}")).await });
    }
    let mut all = Vec::new();
    while let Some(done) = set.join_next().await {
        all.push(done??);
    }
    Ok(all)
}

async fn cycle(peer: &Peer, image: &str, name: &str) -> Result<Steps> {
    let mut steps = Steps::new();
    let cri = &peer.cri;
    let begin = Instant::now();
    let mut lap = Instant::now();
    let mut done = |name: &str, lap: &mut Instant| {
        steps.push((name.to_owned(), lap.elapsed().as_secs_f64() * 1000.0));
        *lap = Instant::now();
    };
    let config = match peer.host_network {
        true => specs::host_network_pod(name, Path::new(LOGS)),
        false => pod(name, Path::new(LOGS)),
    };
    std::fs::create_dir_all(&config.log_directory)?;
    let pod = cri.run_pod(&config, &peer.handler).await?;
    done("RunPodSandbox", &mut lap);
    let mut main = container("main", image, "");
    main.command = vec!["/bin/sleep".into(), "100000".into()];
    let id = cri.create(&pod, &main, &config).await?;
    done("CreateContainer", &mut lap);
    cri.start(&id).await?;
    done("StartContainer", &mut lap);
    let ready = begin.elapsed().as_secs_f64() * 1000.0;
    lap = Instant::now();
    cri.exec(&id, &["/bin/true"], 10).await?;
    done("ExecSync true", &mut lap);
    cri.stop(&id, 0).await?;
    done("StopContainer, timeout 0", &mut lap);
    cri.stop_pod(&pod).await?;
    done("StopPodSandbox", &mut lap);
    cri.remove_pod(&pod).await?;
    done("RemovePodSandbox", &mut lap);
    steps.insert(3, ("**pod ready**".into(), ready));
    steps.push(("**whole cycle**".into(), begin.elapsed().as_secs_f64() * 1000.0));
    let _ = std::fs::remove_dir_all(&config.log_directory);
    Ok(steps)
}

/// Waits until next to nothing has been written or discarded for two seconds: what runtimes do in the background, the one before
/// too, is not to be part of what is timed. It goes on after a minute in any case.
async fn disks_at_rest() -> Result<()> {
    let mut before = written()?;
    let mut quiet = 0;
    for _ in 0..60 {
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = written()?;
        quiet = if now - before < 2048 { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

/// Sectors written and discarded on all disks so far: /proc/diskstats, see Documentation/admin-guide/iostats.rst of the kernel.
fn written() -> Result<u64> {
    let mut sectors = 0;
    for line in std::fs::read_to_string("/proc/diskstats")?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        for place in [9, 16] {
            sectors += fields
                .get(place)
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(sectors)
}

/// Seconds that the pull of an image takes of which nothing is there. It stays: for minutes after files were removed ext4 looks at
/// each of them whenever it makes one, lest their inodes are used too soon, and a pull after a removal measures that.
pub async fn pull(peer: &Peer, reference: &str) -> Result<f64> {
    disks_at_rest().await?;
    let begin = Instant::now();
    peer.cri.pull(reference).await?;
    Ok(begin.elapsed().as_secs_f64())
}
