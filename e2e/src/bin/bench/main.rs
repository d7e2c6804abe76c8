//! Times a CRI runtime, or several side by side with the same client in the same run.
//!
//! ```text
//! bench --endpoint wharf=unix:///run/wharf/wharf.sock --endpoint containerd=unix:///run/containerd/containerd.sock \
//!       --image 127.0.0.1:5000/busybox:latest --rounds 3 --pods 20 --parallel 10 \
//!       --daemon-pid wharf=1234 --pull 127.0.0.1:5000/big:latest
//! ```
//! With `--streams MIB` only one thing is measured: moving as many MiB through an exec by each protocol.
//! Every round visits each endpoint in turn. A cell is the median of the rounds' medians; the ratio is to the best
//! endpoint that is not the first one given. Output is a markdown table.
//! `bench reads ...` times what kubelet's health depends on while a thousand containers run, see `reads.rs`.
//! `bench make-images DIR [LAYERS] [MIB]` writes the images that it needs into a docker-registry's storage.

mod cycle;
mod memory;
mod reads;
mod streams;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use wharf_e2e::{Cri, Result, fixtures};

/// One runtime under test.
pub struct Peer {
    pub name: String,
    pub cri: Cri,
    pub daemon: Option<i32>,
    pub handler: String,
    pub host_network: bool,
}

struct Options {
    endpoints: Vec<(String, String)>,
    pids: Vec<(String, String)>,
    handlers: Vec<(String, String)>,
    host_network: Vec<String>,
    image: String,
    pull: Option<String>,
    rounds: usize,
    pods: usize,
    parallel: usize,
    density: usize,
    lists: usize,
    streams: usize,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        Some("make-images") => make_images(&args[1..]),
        Some("reads") => reads::run(&args[1..]),
        _ => parse(&args).and_then(|options| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(bench(&options))
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make_images(args: &[String]) -> Result {
    let dir = PathBuf::from(args.first().ok_or("make-images needs a directory")?);
    let number = |n: usize, default: usize| args.get(n).map_or(Ok(default), |text| text.parse::<usize>());
    fixtures::make_busybox(&dir)?;
    fixtures::make_big(&dir, number(1, 6)?, number(2, 100)?)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        endpoints: vec![],
        pids: vec![],
        handlers: vec![],
        host_network: vec![],
        image: "127.0.0.1:5000/busybox:latest".into(),
        pull: None,
        rounds: 3,
        pods: 10,
        parallel: 10,
        density: 20,
        lists: 500,
        streams: 0,
    };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let pair = || {
            value
                .split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .ok_or(format!("{flag} NAME=VALUE"))
        };
        match flag.as_str() {
            "--endpoint" => options.endpoints.push(pair()?),
            "--daemon-pid" => options.pids.push(pair()?),
            "--handler" => options.handlers.push(pair()?),
            "--host-network" => options.host_network.push(value.clone()),
            "--image" => options.image = value.clone(),
            "--pull" => options.pull = Some(value.clone()),
            "--rounds" => options.rounds = value.parse()?,
            "--pods" => options.pods = value.parse()?,
            "--parallel" => options.parallel = value.parse()?,
            "--density" => options.density = value.parse()?,
            "--lists" => options.lists = value.parse()?,
            "--streams" => options.streams = value.parse()?,
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    if options.endpoints.is_empty() {
        return Err("give at least one --endpoint NAME=unix:///PATH".into());
    }
    Ok(options)
}

async fn bench(options: &Options) -> Result {
    let mut peers = Vec::new();
    for (name, endpoint) in &options.endpoints {
        let path = PathBuf::from(endpoint.trim_start_matches("unix://"));
        let cri = Cri::connect(&path)
            .await
            .map_err(|error| format!("connect to {name} at {endpoint}: {error}"))?;
        let find = |list: &[(String, String)]| list.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let daemon = find(&options.pids).map(|pid| pid.parse()).transpose()?;
        let handler = find(&options.handlers).unwrap_or_default();
        let host_network = options.host_network.contains(name);
        cri.pull(&options.image)
            .await
            .map_err(|error| format!("pull by {name}: {error}"))?;
        peers.push(Peer {
            name: name.clone(),
            cri,
            daemon,
            handler,
            host_network,
        });
    }
    let names: Vec<String> = peers.iter().map(|peer| peer.name.clone()).collect();
    if options.streams > 0 {
        return streams(options, &peers, &names).await;
    }
    let idle: Vec<_> = peers.iter().map(|peer| peer.daemon.and_then(memory::pss)).collect();

    let mut sequential = table::Table::new("One after another, milliseconds", &names);
    let mut parallel = table::Table::new(&format!("{} at once, milliseconds", options.parallel), &names);
    for round in 0..options.rounds {
        for peer in &peers {
            eprintln!("round {}: {}", round + 1, peer.name);
            for steps in cycle::sequential(peer, &options.image, options.pods).await? {
                sequential.add(&peer.name, round, steps);
            }
            for steps in cycle::parallel(peer, &options.image, options.parallel).await? {
                parallel.add(&peer.name, round, steps);
            }
        }
    }
    println!("{}\n{}", sequential.markdown(), parallel.markdown());

    let mut memory = table::Table::new(&format!("Memory, KiB PSS; {} pods", options.density), &names);
    let mut lists = table::Table::new(
        &format!("ListContainers with {} pods, milliseconds", options.density),
        &names,
    );
    for (peer, idle) in peers.iter().zip(idle) {
        eprintln!("memory: {}", peer.name);
        let measured = cycle::density(peer, &options.image, options.density, options.lists).await?;
        let mut rows = vec![];
        if let (Some(idle), Some(full)) = (idle, measured.daemon) {
            rows.push(("daemon at start".to_owned(), idle as f64));
            rows.push(("daemon with pods".to_owned(), full as f64));
        }
        rows.push(("helper processes per pod".to_owned(), measured.per_pod));
        memory.add(&peer.name, 0, rows);
        lists.add(&peer.name, 0, measured.lists);
    }
    println!("{}\n{}", memory.markdown(), lists.markdown());

    if let Some(reference) = &options.pull {
        let mut pulls = table::Table::new("Pull of the large image, seconds", &names);
        for round in 0..options.rounds {
            for peer in &peers {
                eprintln!("pull {}: {}", round + 1, peer.name);
                pulls.add(
                    &peer.name,
                    round,
                    vec![("pull".into(), cycle::pull(peer, reference).await?)],
                );
            }
        }
        println!("{}", pulls.markdown());
    }
    Ok(())
}

async fn streams(options: &Options, peers: &[Peer], names: &[String]) -> Result {
    let title = format!("Exec of {} MiB, seconds", options.streams);
    let mut times = table::Table::new(&title, names);
    let mut processor = table::Table::new("Processor time of the daemon meanwhile, seconds", names);
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
