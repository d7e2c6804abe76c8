//! Hostile clients, and many of them.
//!
//! `WHARF_STREAM_CYCLES=10000` runs the stress for as many cycles of each kind (default: 120).

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wharf_e2e::streams::spdy::Sender;
use wharf_e2e::streams::{Forward, Protocol, Session, Want, connect, split, upgrade};
use wharf_e2e::{Daemon, Options, eventually};

const PROTOCOLS: [Protocol; 2] = [
    Protocol::Spdy("v4.channel.k8s.io"),
    Protocol::WebSocket("v5.channel.k8s.io"),
];

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Private memory in KiB.
fn memory(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn monitor(daemon: &Daemon) -> i32 {
    let processes = daemon.lab.processes();
    let found = processes.into_iter().find(|(_, line)| line.contains("monitor"));
    found.expect("a monitor").0
}

#[tokio::test]
async fn half_open_connections_hold_nobody_up_and_end() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let before = descriptors(daemon.pid());
    let mut open = Vec::new();
    for index in 0..100 {
        let mut stream = connect(&daemon.lab, split(&url).0).await.unwrap();
        if index % 2 == 0 {
            stream.write_all(b"GET /exec/").await.unwrap();
        }
        open.push(stream);
    }
    let session = Session::open(&daemon.lab, PROTOCOLS[0], &url, Want::OUTPUT)
        .await
        .unwrap();
    assert_eq!(session.finish().await.code(), 0);
    for mut stream in open {
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
        let _ = end.await.expect("the daemon closes");
    }
    eventually("descriptors are as before", async || {
        descriptors(daemon.pid()) <= before + 2
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_only() {
    let daemon = Daemon::with(Options {
        tables: "[streaming]\ncreation_timeout_secs = 1".into(),
        ..Default::default()
    })
    .await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    let bomb = {
        let mut sender = Sender::new(Vec::new());
        let zeros = "\0".repeat(8 << 20);
        sender.open(&[("streamtype", &zeros)]).await.unwrap();
        sender.write
    };
    let memory_before = memory(daemon.pid());
    for (bytes, what) in [
        (
            b"\x80\x03\x00\x01\x00\xff\xff\xff".to_vec(),
            "an oversized control frame",
        ),
        (bomb, "a header bomb"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "HTTP again"),
        (
            b"\x80\x03\x00\x06\x00\x00\x00\x04\0\0\0\x01".repeat(100_000),
            "pings whose answers nobody reads",
        ),
    ] {
        for _ in 0..4 {
            let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
            let (mut stream, answer) = upgrade(&daemon.lab, "POST", &url, &headers).await.unwrap();
            assert_eq!(answer.code, 101);
            let _ = tokio::time::timeout(Duration::from_secs(10), stream.write_all(&bytes)).await;
            let mut rest = Vec::new();
            let end = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut rest));
            let _ = end.await.unwrap_or_else(|_| panic!("{what}: the daemon closes"));
        }
    }
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let session = Session::open(&daemon.lab, PROTOCOLS[0], &url, Want::OUTPUT)
        .await
        .unwrap();
    assert_eq!(session.finish().await.code(), 0);
    let memory = memory(daemon.pid());
    assert!(
        memory < memory_before + 49_152,
        "{memory_before} KiB grew to {memory} KiB"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn cycles_of_all_kinds_leave_nothing() {
    let cycles: usize = std::env::var("WHARF_STREAM_CYCLES").map_or(120, |text| text.parse().expect("a number"));
    let daemon = Daemon::start().await;
    let (pod, id) = daemon
        .running(
            "stress",
            "nc -ll -p 8080 -e cat & while :; do echo tick; sleep 0.1; done",
        )
        .await;
    let monitor = monitor(&daemon);
    round(&daemon, &pod, &id, 60).await;
    let before = settled(&daemon, monitor, None).await;
    let begin = Instant::now();
    round(&daemon, &pod, &id, cycles).await;
    let after = settled(&daemon, monitor, Some(before)).await;
    println!(
        "{cycles} cycles of each kind in {:?}: {before:?} became {after:?}",
        begin.elapsed()
    );
    assert!(
        after.processes <= before.processes,
        "processes: {:?}",
        daemon.lab.processes()
    );
    assert!(after.daemon_fds <= before.daemon_fds + 1 && after.monitor_fds <= before.monitor_fds);
    assert!(
        after.daemon_memory < before.daemon_memory + 16_384,
        "the daemon's memory: {before:?} {after:?}"
    );
    assert!(
        after.monitor_memory < before.monitor_memory + 256,
        "the monitor's memory"
    );
    daemon.finish().await;
}

#[derive(Debug, Clone, Copy)]
struct Use {
    processes: usize,
    daemon_fds: usize,
    monitor_fds: usize,
    daemon_memory: u64,
    monitor_memory: u64,
}

/// What is used once all has calmed down.
async fn settled(daemon: &Daemon, monitor: i32, aim: Option<Use>) -> Use {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = Use {
            processes: daemon.lab.processes().len(),
            daemon_fds: descriptors(daemon.pid()),
            monitor_fds: descriptors(monitor),
            daemon_memory: memory(daemon.pid()),
            monitor_memory: memory(monitor),
        };
        let calm = match aim {
            None => end - Instant::now() < Duration::from_secs(12),
            Some(aim) => {
                now.processes <= aim.processes
                    && now.daemon_fds <= aim.daemon_fds + 1
                    && now.monitor_fds <= aim.monitor_fds
            }
        };
        if calm || Instant::now() > end {
            return now;
        }
    }
}

/// So many execs, attaches and port-forwards, a third of them broken off.
async fn round(daemon: &Daemon, pod: &str, id: &str, cycles: usize) {
    for cycle in 0..cycles {
        if cycle % 500 == 499 {
            let (pid, monitor) = (daemon.pid(), monitor(daemon));
            println!(
                "cycle {cycle}: daemon {} KiB and {} descriptors, monitor {} KiB and {}",
                memory(pid),
                descriptors(pid),
                memory(monitor),
                descriptors(monitor)
            );
        }
        let protocol = PROTOCOLS[cycle % 2];
        let broken = cycle % 3 == 0;
        let line = if broken { "echo in; sleep 500" } else { "echo in; cat" };
        let mut session = daemon.exec_session(protocol, id, &["sh", "-c", line], Want::ALL).await;
        session.until("in").await;
        if broken {
            session.break_off();
        } else {
            session.end_input().await.unwrap();
            assert_eq!(session.finish().await.code(), 0);
        }

        let mut session = daemon.attach_session(protocol, id, Want::OUTPUT).await;
        if !broken {
            session.until("tick").await;
        }
        session.break_off();

        let url = daemon.forward_url(pod, &[]).await.unwrap();
        let mut forward = Forward::open(&daemon.lab, &url, cycle % 2 == 1).await.unwrap();
        let mut pair = forward.connect("8080").await.unwrap();
        forward.write(&pair, b"x").await.unwrap();
        assert_eq!(pair.read().await.unwrap(), b"x");
        if !broken {
            forward.end(&pair).await.unwrap();
            assert!(pair.read_all().await.is_empty());
        }
        forward.break_off();
    }
}
