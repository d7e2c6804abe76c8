//! Times a CRI runtime, or several side by side with the same client in the same run.
//!
//! ```text
//! bench --endpoint wharf=unix:///run/wharf/wharf.sock --endpoint wharf-runc=unix:///run/wharf/wharf.sock \
//!       --handler wharf-runc=runc --peer containerd=unix:///run/containerd/containerd.sock \
//!       --image 127.0.0.1:5000/busybox:latest --rounds 3 --pods 20 --parallel 10 --growth 1,50,500 \
//!       --daemon-pid wharf=1234 --pull 127.0.0.1:5000/big --report target/bench
//! ```
//! With `--streams MIB` only one thing is measured: moving as many MiB through an exec by each protocol.
//! Every round visits each endpoint in turn. A cell is the median of the rounds' medians; what stands behind `×` is the share
//! of the best `--peer`. Output is Markdown; with `--report` also JSON and plots.
//! With `--floor` the kernel's own work for a pod is measured in the same rounds, see `floor/mod.rs`; with `--cni LIST` and
//! `--on-cni NAME` also what the CNI programs of the list take by themselves, beside the endpoints that use it.
//! `bench profile ...` tells where the time of each call goes, see `profile.rs`.
//! `bench reads ...` times what kubelet's health depends on while a thousand containers run, see `reads.rs`.
//! `bench make-images DIR [LAYERS] [MIB] [COUNT]` writes the images that it needs into a docker-registry's storage.

mod cycle;
mod floor;
mod growth;
mod memory;
mod options;
mod plot;
mod profile;
mod reads;
mod report;
mod streams;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use floor::cni::Programs;
use options::Options;
use report::Report;
use table::Table;
use wharf_e2e::{Cri, Result, fixtures};

/// One runtime under test.
#[derive(Clone)]
pub struct Peer {
    pub name: String,
    pub cri: Cri,
    pub daemon: Option<i32>,
    pub handler: String,
    pub host_network: bool,
    /// One of ours, to be compared with those that are not.
    pub ours: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        Some("make-images") => make_images(&args[1..]),
        Some("reads") => reads::run(&args[1..]),
        Some("floor") => floor::run(&args[1..]),
        Some("profile") => run(&args[1..], async |options| {
            profile::run(options, &connect(options).await?).await
        }),
        _ => run(&args, bench),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], work: impl AsyncFn(&Options) -> Result) -> Result {
    let options = Options::parse(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(work(&options))
}

fn make_images(args: &[String]) -> Result {
    let dir = PathBuf::from(args.first().ok_or("make-images needs a directory")?);
    let number = |n: usize, default: usize| args.get(n).map_or(Ok(default), |text| text.parse::<usize>());
    fixtures::make_busybox(&dir)?;
    for image in 0..number(3, 1)? {
        fixtures::make_big(&dir, image, number(1, 6)?, number(2, 300)?)?;
    }
    Ok(())
}

async fn connect(options: &Options) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (name, endpoint, ours) in &options.endpoints {
        let path = PathBuf::from(endpoint.trim_start_matches("unix://"));
        let cri = Cri::connect(&path)
            .await
            .map_err(|error| format!("connect to {name} at {endpoint}: {error}"))?;
        let find = |list: &[(String, String)]| list.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let daemon = find(&options.pids).map(|pid| pid.parse()).transpose()?;
        cri.pull(&options.image)
            .await
            .map_err(|error| format!("pull by {name}: {error}"))?;
        peers.push(Peer {
            name: name.clone(),
            cri,
            daemon,
            handler: find(&options.handlers).unwrap_or_default(),
            host_network: options.host_network.contains(name),
            ours: *ours,
        });
    }
    Ok(peers)
}

async fn bench(options: &Options) -> Result {
    let peers = connect(options).await?;
    let names: Vec<(String, bool)> = peers.iter().map(|peer| (peer.name.clone(), peer.ours)).collect();
    if options.streams > 0 {
        return streams(options, &peers, &names).await;
    }
    let mut report = Report::begin(&peers, options.rounds).await?;
    // As before each figure of memory: what the pull has taken is given back.
    tokio::time::sleep(growth::SETTLE).await;
    let idle: Vec<_> = peers.iter().map(|peer| peer.daemon.and_then(memory::pss)).collect();
    cycles(options, &peers, &names, &mut report).await?;
    grow(options, &peers, &names, &idle, &mut report).await?;
    if let Some(reference) = &options.pull {
        let mut pulls = Table::new("Pull of the large image, seconds", &names);
        for round in 0..options.rounds {
            // Once for each daemon: handlers and networks make no difference.
            for peer in peers.iter().filter(|peer| peer.daemon.is_some()) {
                eprintln!("pull {}: {}", round + 1, peer.name);
                let taken = cycle::pull(peer, &format!("{reference}:{round}")).await?;
                pulls.add(&peer.name, round, vec![("pull".into(), taken)]);
            }
        }
        report.add(pulls);
    }
    match &options.report {
        Some(dir) => report.write(dir),
        None => Ok(()),
    }
}

/// The steps of a pod's life, one after another and at once, and what they cost in processor time.
async fn cycles(options: &Options, peers: &[Peer], names: &[(String, bool)], report: &mut Report) -> Result {
    let mut sequential = Table::new("One after another, milliseconds", names);
    let mut parallel = Table::new(&format!("{} at once, milliseconds", options.parallel), names);
    let mut processor = Table::new(
        "Processor time of a pod cycle, milliseconds: all processes but the client",
        names,
    );
    let ours = names.iter().filter(|(_, ours)| *ours).cloned();
    let with_kernel: Vec<_> = ours.chain([(floor::NAME.to_owned(), false)]).collect();
    let mut floors = Table::new(
        "Beside what the kernel takes at the least, one after another, milliseconds",
        &with_kernel,
    );
    let on_cni = |name: &str| options.on_cni.iter().any(|one| one == name);
    let mut users: Vec<_> = names.iter().filter(|(name, _)| on_cni(name)).cloned().collect();
    users.iter_mut().for_each(|(_, compared)| *compared = true);
    users.push((floor::cni::NAME.to_owned(), false));
    let mut by_programs = [1, options.parallel].map(|at_once| {
        Table::new(
            &format!("Beside the CNI programs alone, {at_once} at once, milliseconds"),
            &users,
        )
    });
    let holder = tempfile::Builder::new().prefix("wharf-cni-floor-").tempdir()?;
    let list = options.cni.as_ref().filter(|_| options.floor);
    let programs = list.map(|list| Programs::of(list, holder.path())).transpose()?;
    // What the client computes itself is in the lab's sum.
    let spent = || {
        let own = memory::processor_time(std::process::id().cast_signed())?;
        Some(memory::lab_processor_time()? - own)
    };
    for round in 0..options.rounds {
        for peer in peers {
            eprintln!("round {}: {}", round + 1, peer.name);
            let before = spent();
            for steps in cycle::sequential(peer, &options.image, options.pods).await? {
                if options.floor && peer.ours {
                    floors.add(&peer.name, round, steps.clone());
                }
                if on_cni(&peer.name) {
                    by_programs[0].add(&peer.name, round, of_network(&steps));
                }
                sequential.add(&peer.name, round, steps);
            }
            if let (Some(before), Some(after)) = (before, spent()) {
                // One cycle more is made, which warms up.
                let each = (after - before) * 1000.0 / (options.pods + 1) as f64;
                processor.add(&peer.name, round, vec![("one after another".into(), each)]);
            }
            let before = spent();
            for steps in cycle::parallel(peer, &options.image, options.parallel).await? {
                if on_cni(&peer.name) {
                    by_programs[1].add(&peer.name, round, of_network(&steps));
                }
                parallel.add(&peer.name, round, steps);
            }
            if let (Some(before), Some(after)) = (before, spent()) {
                let each = (after - before) * 1000.0 / options.parallel as f64;
                let row = format!("{} at once", options.parallel);
                processor.add(&peer.name, round, vec![(row, each)]);
            }
        }
        if options.floor {
            eprintln!("round {}: {}", round + 1, floor::NAME);
            for steps in floor::measure(options.pods).await? {
                floors.add(floor::NAME, round, steps);
            }
        }
        if let Some(programs) = &programs {
            eprintln!("round {}: {}", round + 1, floor::cni::NAME);
            for steps in programs.sequential(options.pods).await? {
                by_programs[0].add(floor::cni::NAME, round, steps);
            }
            for steps in programs.parallel(options.parallel).await? {
                by_programs[1].add(floor::cni::NAME, round, steps);
            }
        }
    }
    report.add(sequential);
    if options.floor {
        report.add(floors);
    }
    report.add(parallel);
    if programs.is_some() {
        by_programs.into_iter().for_each(|table| report.add(table));
    }
    report.add(processor);
    Ok(())
}

/// The steps in which a pod's network comes and goes.
fn of_network(steps: &cycle::Steps) -> cycle::Steps {
    let wanted = ["RunPodSandbox", "StopPodSandbox"];
    let mut found: cycle::Steps = steps
        .iter()
        .filter(|(name, _)| wanted.contains(&name.as_str()))
        .cloned()
        .collect();
    let both = found.iter().map(|(_, taken)| taken).sum();
    found.push(("**both**".to_owned(), both));
    found
}

/// Memory, lists and starts with ever more pods.
async fn grow(
    options: &Options,
    peers: &[Peer],
    names: &[(String, bool)],
    idle: &[Option<u64>],
    report: &mut Report,
) -> Result {
    let mut memory = Table::new("Memory, KiB PSS", names);
    let mut ready = Table::new("Until one more pod is ready beside others, milliseconds", names);
    let mut lists = Table::new("ListContainers, milliseconds", names);
    for (peer, idle) in peers.iter().zip(idle) {
        if let Some(idle) = idle {
            memory.add(&peer.name, 0, vec![("daemon at the start".into(), *idle as f64)]);
        }
        let (points, afterwards) = growth::measure(peer, &options.image, &options.growth).await?;
        let afterwards = afterwards.filter(|_| idle.is_some());
        for point in &points {
            let n = point.pods;
            let daemon = point.daemon.map(|kib| (format!("daemon, {n} pods"), kib as f64));
            let helpers = (format!("helpers of each pod, {n} pods"), point.helpers);
            memory.add(&peer.name, 0, daemon.into_iter().chain([helpers]).collect());
            ready.add(&peer.name, 0, vec![(format!("{n} pods"), point.ready)]);
            let rows = vec![
                (format!("p50, {n} pods"), point.list.0),
                (format!("p99, {n} pods"), point.list.1),
            ];
            lists.add(&peer.name, 0, rows);
        }
        if let Some(kib) = afterwards {
            memory.add(&peer.name, 0, vec![("daemon, pods gone".into(), kib as f64)]);
        }
        report.grown(&peer.name, points);
    }
    report.add(memory);
    report.add(ready);
    report.add(lists);
    Ok(())
}

async fn streams(options: &Options, peers: &[Peer], names: &[(String, bool)]) -> Result {
    let title = format!("Exec of {} MiB, seconds", options.streams);
    let mut times = Table::new(&title, names);
    let mut processor = Table::new("Processor time of the daemon meanwhile, seconds", names);
    for round in 0..options.rounds {
        for peer in peers {
            eprintln!("streams {}: {}", round + 1, peer.name);
            let (taken, used) = streams::transfers(peer, &options.image, options.streams).await?;
            times.add(&peer.name, round, taken);
            processor.add(&peer.name, round, used);
        }
    }
    println!("{}\n{}", times.markdown(), processor.markdown());
    Ok(())
}
