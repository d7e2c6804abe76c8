//! How long the calls that kubelet's health depends on take, while a thousand containers run, others come and go, and one
//! is stuck in a file system that does not answer (contract rules 35 and 36).
//!
//! ```text
//! bench reads --endpoint wharf=unix:///run/wharf/wharf.sock --image 127.0.0.1:5000/busybox:latest \
//!       --containers 1000 --per-pod 20 --rounds 3 --samples 400 --stuck wharf=/mnt/stuck
//! ```
//! A call is timed from its first byte to the last of its answer, by a client that throws the answer away: once by one like any
//! other process, and once by one that the scheduler prefers to all others (nice -20), so that what is waited for is the daemon
//! and not the client's own turn. Beside it stand what the machine itself needs (another thread is sent as many bytes as the
//! call had, and sends as many back, in between the calls) and how long a client takes to decode the answer, which no daemon
//! can help.

mod machine;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use prost::bytes::Bytes;
use tokio::task::JoinSet;
use wharf_e2e::cri::Answer;
use wharf_e2e::http2::{Caller, Window};
use wharf_e2e::lab::program;
use wharf_e2e::{Cri, Result, container, fuse, pod, specs};
use wharf_proto::cri as pb;

use crate::memory;
use machine::{Cpu, Floor};

const METRICS: &str = "/runtime.v1.RuntimeService/ListPodSandboxMetrics";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const LOGS: &str = "/tmp/wharf-bench-logs";
/// Between two timed calls, so that the client is not what keeps the machine busy.
const PAUSE: Duration = Duration::from_millis(2);

struct Options {
    endpoints: Vec<(String, String)>,
    pids: HashMap<String, i32>,
    stuck: HashMap<String, PathBuf>,
    image: String,
    containers: usize,
    per_pod: usize,
    rounds: usize,
    samples: usize,
    churners: usize,
    cycles_per_second: f64,
}

/// A pass over all that there is takes ten seconds.
const WARM_UP: Duration = Duration::from_secs(12);
/// How often a call of megabytes is made, which are asked for once a minute: once in so many times.
const SELDOM: usize = 10;

/// Milliseconds of one call, and of the machine for as many bytes.
struct Times {
    name: &'static str,
    calls: Vec<f64>,
    /// By a client that is preferred.
    preferred: Vec<f64>,
    floor: Vec<f64>,
    /// Of decoding the answer.
    decoding: Vec<f64>,
    bytes: usize,
}

pub fn run(args: &[String]) -> Result {
    let options = parse(args)?;
    let churn = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    for (name, endpoint) in &options.endpoints {
        let socket = PathBuf::from(endpoint.trim_start_matches("unix://"));
        eprintln!("{name}: starting {} containers", options.containers);
        let fleet = churn.block_on(Fleet::start(&socket, &options))?;
        let stuck = match options.stuck.get(name) {
            Some(dir) => Some(churn.block_on(Stuck::start(&fleet.cri, &options.image, dir))?),
            None => None,
        };
        let daemon = options.pids.get(name).copied();
        for round in 1..=options.rounds {
            let (ended, cycles) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let mut churners = JoinSet::new();
            for n in 0..options.churners {
                let (cri, image) = (fleet.cri.clone(), options.image.clone());
                let pace = Duration::from_secs_f64(options.churners as f64 / options.cycles_per_second);
                let name = format!("churn-{round}-{n}");
                churners.spawn_on(
                    cycle_until(cri, image, name, pace, Arc::clone(&ended), Arc::clone(&cycles)),
                    churn.handle(),
                );
            }
            let begun = Instant::now();
            let load = std::fs::read_to_string("/proc/loadavg")?;
            let busy = Cpu::now()?;
            let times = measure(&socket, options.samples)?;
            let seconds = begun.elapsed().as_secs_f64();
            ended.store(true, Ordering::Relaxed);
            let busy = Cpu::now()?.busy_since(&busy);
            churn.block_on(async {
                while let Some(done) = churners.join_next().await {
                    done??;
                }
                Result::Ok(())
            })?;
            println!(
                "### {name}, round {round}: {} containers in {} pods, {:.1} container cycles a second{}\n\n\
                 Load before {}, processors {busy:.0} % busy{}.\n",
                options.containers,
                fleet.pods.len(),
                cycles.load(Ordering::Relaxed) as f64 / seconds,
                if stuck.is_some() { ", one container stuck" } else { "" },
                load.split_whitespace().next().unwrap_or_default(),
                daemon
                    .and_then(memory::pss)
                    .map_or(String::new(), |kib| format!(", daemon {} MiB PSS", kib / 1024)),
            );
            println!("{}", table(times));
        }
        if let Some(stuck) = stuck {
            churn.block_on(stuck.end())?;
        }
        eprintln!("{name}: removing all");
        churn.block_on(fleet.end())?;
    }
    Ok(())
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        endpoints: vec![],
        pids: HashMap::new(),
        stuck: HashMap::new(),
        image: "127.0.0.1:5000/busybox:latest".into(),
        containers: 1000,
        per_pod: 20,
        rounds: 3,
        samples: 400,
        churners: 2,
        cycles_per_second: 4.0,
    };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let pair = || {
            let (name, value) = value.split_once('=').ok_or(format!("{flag} NAME=VALUE"))?;
            Result::Ok((name.to_owned(), value.to_owned()))
        };
        match flag.as_str() {
            "--endpoint" | "--peer" => options.endpoints.push(pair()?),
            "--daemon-pid" => {
                let (name, pid) = pair()?;
                options.pids.insert(name, pid.parse()?);
            }
            "--stuck" => {
                let (name, dir) = pair()?;
                options.stuck.insert(name, dir.into());
            }
            "--image" => options.image = value.clone(),
            "--containers" => options.containers = value.parse()?,
            "--per-pod" => options.per_pod = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            "--samples" => options.samples = value.parse()?,
            "--churners" => options.churners = value.parse()?,
            "--cycles" => options.cycles_per_second = value.parse()?,
            // Of the other benchmark, which is started by the same script.
            "--pull" => {}
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    Ok(options)
}

/// The containers that run all the time.
struct Fleet {
    cri: Cri,
    pods: Vec<String>,
}

impl Fleet {
    async fn start(socket: &Path, options: &Options) -> Result<Self> {
        let cri = Cri::connect(socket).await?;
        cri.pull(&options.image).await?;
        let mut pods = JoinSet::new();
        let (mut made, mut left) = (Vec::new(), options.containers);
        for n in 0.. {
            while pods.len() >= 2 || (left == 0 && !pods.is_empty()) {
                made.push(pods.join_next().await.ok_or("no pod is being made")???);
            }
            if left == 0 {
                break;
            }
            let count = options.per_pod.min(left);
            left -= count;
            pods.spawn(full_pod(cri.clone(), options.image.clone(), n, count));
        }
        Ok(Self { cri, pods: made })
    }

    async fn end(self) -> Result {
        for pod in &self.pods {
            self.cri.stop_pod(pod).await?;
            self.cri.remove_pod(pod).await?;
        }
        Ok(())
    }
}

/// A pod with what kubelet labels and annotates pods with.
async fn full_pod(cri: Cri, image: String, number: usize, containers: usize) -> Result<String> {
    let mut config = pod(&format!("reads-{number}"), Path::new(LOGS));
    let uid = config.metadata.clone().unwrap_or_default().uid;
    let labels = |container: &str| {
        let mut labels = HashMap::from([
            ("io.kubernetes.pod.name".to_owned(), format!("reads-{number}")),
            ("io.kubernetes.pod.namespace".to_owned(), "bench".to_owned()),
            ("io.kubernetes.pod.uid".to_owned(), uid.clone()),
        ]);
        if !container.is_empty() {
            labels.insert("io.kubernetes.container.name".to_owned(), container.to_owned());
        }
        labels
    };
    config.labels = labels("");
    config.annotations = HashMap::from([
        (
            "kubernetes.io/config.seen".to_owned(),
            "2026-01-01T00:00:00.000000000Z".to_owned(),
        ),
        ("kubernetes.io/config.source".to_owned(), "api".to_owned()),
    ]);
    std::fs::create_dir_all(&config.log_directory)?;
    let id = cri.run_pod(&config, "").await?;
    for n in 0..containers {
        let name = format!("c{n}");
        let mut main = container(&name, &image, "");
        main.command = vec!["/bin/sleep".into(), "100000".into()];
        main.labels = labels(&name);
        main.annotations = [
            ("io.kubernetes.container.hash", "8a7b6c5d"),
            ("io.kubernetes.container.restartCount", "0"),
            ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
            ("io.kubernetes.container.terminationMessagePolicy", "File"),
            ("io.kubernetes.pod.terminationGracePeriod", "30"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let made = cri.create(&id, &main, &config).await?;
        cri.start(&made).await?;
    }
    Ok(id)
}

/// Creates, starts, stops and removes containers in a pod of their own, `pace` apart, until `ended`.
async fn cycle_until(
    cri: Cri,
    image: String,
    name: String,
    pace: Duration,
    ended: Arc<AtomicBool>,
    cycles: Arc<AtomicUsize>,
) -> Result {
    let config = pod(&name, Path::new(LOGS));
    std::fs::create_dir_all(&config.log_directory)?;
    let pod = cri.run_pod(&config, "").await?;
    let mut clock = tokio::time::interval(pace);
    while !ended.load(Ordering::Relaxed) {
        clock.tick().await;
        let number = cycles.fetch_add(1, Ordering::Relaxed);
        let mut main = container(&format!("c{number}"), &image, "");
        main.command = vec!["/bin/sleep".into(), "100000".into()];
        let id = cri.create(&pod, &main, &config).await?;
        cri.start(&id).await?;
        cri.stop(&id, 0).await?;
        cri.remove(&id).await?;
    }
    cri.stop_pod(&pod).await?;
    cri.remove_pod(&pod).await?;
    Ok(())
}

/// A file system that does not answer, a container that has a file of it open, and a stop of its pod that can't end.
struct Stuck {
    server: tokio::process::Child,
    /// It says there whom it lets wait, and ends if nobody takes it.
    _told: tokio::process::ChildStdout,
    dir: PathBuf,
    stop: tokio::task::JoinHandle<Answer<()>>,
}

impl Stuck {
    async fn start(cri: &Cri, image: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut server = tokio::process::Command::new(program("lab")?)
            .arg("fuse")
            .arg(dir)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut ready = [0; 6];
        let mut output = server.stdout.take().ok_or("the file system's server has no output")?;
        tokio::io::AsyncReadExt::read_exact(&mut output, &mut ready).await?;
        let config = pod("stuck", Path::new(LOGS));
        std::fs::create_dir_all(&config.log_directory)?;
        let pod = cri.run_pod(&config, "").await?;
        let line = format!("exec 3</stuck/{}; exec sleep 100000", fuse::FILE);
        let mut main = container("main", image, &line);
        main.mounts = vec![specs::mount(&dir.to_string_lossy(), "/stuck", true)];
        let id = cri.create(&pod, &main, &config).await?;
        cri.start(&id).await?;
        let open = "until [ -e /proc/1/fd/3 ]; do :; done";
        cri.exec(&id, &["/bin/sh", "-c", open], 10).await?;
        let cri = cri.clone();
        let stop = tokio::spawn(async move {
            // As kubelet does: again and again.
            while let Err(error) = cri.stop_pod(&pod).await {
                eprintln!("the stuck pod: {}", error.message());
            }
            cri.remove_pod(&pod).await
        });
        Ok(Self {
            server,
            _told: output,
            dir: dir.to_owned(),
            stop,
        })
    }

    /// Ends the file system, and with it the stop.
    async fn end(mut self) -> Result {
        if self.stop.is_finished() {
            return Err("the stuck pod was not stuck".into());
        }
        self.server.kill().await?;
        self.stop.await??;
        nix::mount::umount(&self.dir)?;
        Ok(())
    }
}

/// A call to be timed.
struct Timed {
    /// What it is called in the table.
    name: &'static str,
    path: &'static str,
    message: Bytes,
    window: Window,
}

/// Calls each method `samples` times, turn by turn.
fn measure(socket: &Path, samples: usize) -> Result<Vec<Times>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let calls = runtime.block_on(async { calls(&Cri::connect(socket).await?).await })?;
    let mut callers = [Window::Whole, Window::Small].map(|window| Caller::connect(socket, window));
    let mut floor = Floor::start()?;
    let mut all: Vec<Times> = Vec::new();
    for call in &calls {
        all.push(Times {
            name: call.name,
            calls: Vec::new(),
            preferred: Vec::new(),
            floor: Vec::new(),
            decoding: Vec::new(),
            bytes: 0,
        });
    }
    // The first of a kind may have to measure what later ones are told.
    for call in &calls {
        let _ = Caller::connect(socket, call.window)?.call(call.path, &call.message);
    }
    std::thread::sleep(WARM_UP);
    let mut answers = Vec::new();
    for call in &calls {
        answers.push(
            Caller::connect(socket, call.window)?
                .fetch(call.path, &call.message)
                .unwrap_or_default(),
        );
    }
    for sample in 0..samples {
        for ((call, times), answer) in calls.iter().zip(&mut all).zip(&answers) {
            if call.path == METRICS && sample % SELDOM != 0 {
                continue;
            }
            std::thread::sleep(PAUSE);
            let caller = callers[usize::from(call.window == Window::Small)].as_mut();
            let caller = caller.map_err(|error| error.to_string())?;
            // Some runtimes lack some calls.
            let Ok((bytes, taken)) = caller.call(call.path, &call.message) else {
                continue;
            };
            times.calls.push(taken.as_secs_f64() * 1000.0);
            times.bytes = bytes.max(times.bytes);
            std::thread::sleep(PAUSE);
            if prefer(true) {
                let preferred = caller.call(call.path, &call.message);
                prefer(false);
                times.preferred.push(preferred?.1.as_secs_f64() * 1000.0);
                std::thread::sleep(PAUSE);
            }
            let begun = Instant::now();
            if decode(call.path, answer.get(5..).unwrap_or_default()) {
                times.decoding.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            times.floor.push(floor.time(call.message.len(), bytes)?);
        }
    }
    Ok(all)
}

/// Has the scheduler prefer this thread to all others, or no longer. False when the system does not let it.
fn prefer(prefer: bool) -> bool {
    let nice = if prefer { -20 } else { 0 };
    // SAFETY: no memory is passed; 0 is this thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Makes messages of an answer, as a client does. False for what is not a single message.
fn decode(path: &str, answer: &[u8]) -> bool {
    match path.rsplit('/').next().unwrap_or_default() {
        "ListPodSandbox" => pb::ListPodSandboxResponse::decode(answer).is_ok(),
        "ListContainers" => pb::ListContainersResponse::decode(answer).is_ok(),
        "ListContainerStats" => pb::ListContainerStatsResponse::decode(answer).is_ok(),
        "ListPodSandboxStats" => pb::ListPodSandboxStatsResponse::decode(answer).is_ok(),
        "ListPodSandboxMetrics" => pb::ListPodSandboxMetricsResponse::decode(answer).is_ok(),
        _ => false,
    }
}

/// The calls that a kubelet makes again and again.
async fn calls(cri: &Cri) -> Result<Vec<Timed>> {
    // The oldest: others come and go.
    let pod = cri.pods(None).await?.into_iter().next_back().ok_or("no pod runs")?.id;
    let containers = cri.containers(None).await?;
    let container = containers
        .iter()
        .find(|one| one.pod_sandbox_id == pod)
        .ok_or("no container runs")?;
    let of_pod = pb::ListContainersRequest {
        filter: Some(pb::ContainerFilter {
            pod_sandbox_id: pod.clone(),
            ..Default::default()
        }),
    };
    let pod_status = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.clone(),
        verbose: false,
    };
    let status = pb::ContainerStatusRequest {
        container_id: container.id.clone(),
        verbose: false,
    };
    let image = pb::ImageStatusRequest {
        image: container.image.clone(),
        verbose: false,
    };
    let whole = |name, path, message: Vec<u8>| Timed {
        name,
        path,
        message: message.into(),
        window: Window::Whole,
    };
    let nothing = |name, path| whole(name, path, Vec::new());
    Ok(vec![
        nothing("Version", "/runtime.v1.RuntimeService/Version"),
        nothing("Status", "/runtime.v1.RuntimeService/Status"),
        nothing("ListPodSandbox", "/runtime.v1.RuntimeService/ListPodSandbox"),
        nothing("ListContainers", CONTAINERS),
        Timed {
            window: Window::Small,
            ..nothing("ListContainers, 64 KiB at a time", CONTAINERS)
        },
        nothing("StreamContainers", "/runtime.v1.RuntimeService/StreamContainers"),
        whole("ListContainers, one pod", CONTAINERS, of_pod.encode_to_vec()),
        whole(
            "PodSandboxStatus",
            "/runtime.v1.RuntimeService/PodSandboxStatus",
            pod_status.encode_to_vec(),
        ),
        whole(
            "ContainerStatus",
            "/runtime.v1.RuntimeService/ContainerStatus",
            status.encode_to_vec(),
        ),
        nothing("ListImages", "/runtime.v1.ImageService/ListImages"),
        whole(
            "ImageStatus",
            "/runtime.v1.ImageService/ImageStatus",
            image.encode_to_vec(),
        ),
        nothing("ImageFsInfo", "/runtime.v1.ImageService/ImageFsInfo"),
        nothing("ListContainerStats", "/runtime.v1.RuntimeService/ListContainerStats"),
        nothing("ListPodSandboxStats", "/runtime.v1.RuntimeService/ListPodSandboxStats"),
        nothing(
            "ListMetricDescriptors",
            "/runtime.v1.RuntimeService/ListMetricDescriptors",
        ),
        nothing("ListPodSandboxMetrics", METRICS),
    ])
}

/// A share of sorted times.
fn share(times: &[f64], share: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    let at = ((times.len() as f64 * share) as usize).min(last);
    times.get(at).copied().unwrap_or(f64::NAN)
}

fn table(times: Vec<Times>) -> String {
    let mut out = String::from(
        "| call | KiB | p50 ms | p99 ms | max ms | preferred client p50 | p99 | machine p50 | p99 | decoding p50 | p99 | n |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for mut times in times {
        times.calls.sort_by(f64::total_cmp);
        for others in [&mut times.floor, &mut times.preferred, &mut times.decoding] {
            others.sort_by(f64::total_cmp);
        }
        let both = |times: &[f64]| match times.is_empty() {
            true => "| ".to_owned(),
            false => format!("{:.2} | {:.2}", share(times, 0.5), share(times, 0.99)),
        };
        let calls = &times.calls;
        out += &format!(
            "| {} | {:.1} | {} | {:.2} | {} | {} | {} | {} |\n",
            times.name,
            times.bytes as f64 / 1024.0,
            both(calls),
            share(calls, 1.0),
            both(&times.preferred),
            both(&times.floor),
            both(&times.decoding),
            calls.len()
        );
    }
    out
}
