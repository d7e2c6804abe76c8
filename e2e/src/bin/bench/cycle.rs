//! What is measured: the steps of a pod's life.

use std::path::Path;
use std::time::Instant;

use wharf_e2e::{Result, container, pod, specs};

use crate::{Peer, memory};

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
        let image = image.to_owned();
        let peer = Peer {
            name: peer.name.clone(),
            cri: peer.cri.clone(),
            daemon: peer.daemon,
            handler: peer.handler.clone(),
            host_network: peer.host_network,
        };
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

/// What is measured while many pods run.
pub struct Density {
    pub daemon: Option<u64>,
    pub per_pod: f64,
    pub lists: Steps,
}

/// Memory with `pods` pods of one sleeping container, and how long lists take.
pub async fn density(peer: &Peer, image: &str, pods: usize, lists: usize) -> Result<Density> {
    let before = memory::all();
    let mut made = Vec::new();
    for n in 0..pods {
        let config = pod(&format!("density-{n}"), Path::new(LOGS));
        std::fs::create_dir_all(&config.log_directory)?;
        let id = peer.cri.run_pod(&config, &peer.handler).await?;
        let mut main = container("main", image, "");
        main.command = vec!["/bin/sleep".into(), "100000".into()];
        let container = peer.cri.create(&id, &main, &config).await?;
        peer.cri.start(&container).await?;
        made.push(id);
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let helpers = memory::helpers_since(&before, peer.daemon);
    let daemon = peer.daemon.and_then(memory::pss);
    let mut times = Vec::new();
    for _ in 0..lists {
        let begin = Instant::now();
        peer.cri.containers(None).await?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    for id in made {
        peer.cri.stop_pod(&id).await?;
        peer.cri.remove_pod(&id).await?;
    }
    let at = |share: f64| {
        times
            .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
            .copied()
    };
    let lists = vec![
        ("median".into(), at(0.5).unwrap_or(0.0)),
        ("p99".into(), at(0.99).unwrap_or(0.0)),
    ];
    Ok(Density {
        daemon,
        per_pod: helpers as f64 / pods.max(1) as f64,
        lists,
    })
}

/// Seconds that a pull takes when nothing of the image is there.
pub async fn pull(peer: &Peer, reference: &str) -> Result<f64> {
    peer.cri.remove_image(reference).await?;
    // Removal may go on in the background; it must not be part of what is timed.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let begin = Instant::now();
    peer.cri.pull(reference).await?;
    let seconds = begin.elapsed().as_secs_f64();
    peer.cri.remove_image(reference).await?;
    Ok(seconds)
}
