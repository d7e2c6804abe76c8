//! Many clients, a third of which break off: nothing of them stays.
//!
//! `WHARF_STREAM_CYCLES=10000` runs as many cycles of each kind (default: 120), `WHARF_STREAM_WORKERS` clients at a time
//! (default: 4), and prints what daemon and monitor use after a tenth, a half and all of them.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use wharf_e2e::streams::{Forward, Protocol, Want, upgrade, websocket};
use wharf_e2e::{Daemon, PATIENCE, own_memory};
use wharf_proto::cri as pb;

/// All ways that clients of today and of some years ago speak.
const PROTOCOLS: [Protocol; 4] = [
    Protocol::Spdy("v4.channel.k8s.io"),
    Protocol::WebSocket("v5.channel.k8s.io"),
    Protocol::WebSocket("v4.channel.k8s.io"),
    Protocol::WebSocket("v4.base64.channel.k8s.io"),
];

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cycles_of_all_kinds_leave_nothing() {
    let cycles = number("WHARF_STREAM_CYCLES", 120);
    let daemon = Daemon::start().await;
    let line = "nc -ll -p 8080 -e cat & while :; do echo tick; sleep 0.1; done";
    let (pod, id) = daemon.running("stress", line).await;
    let stress = Stress {
        daemon: &daemon,
        monitor: monitor(&daemon),
        pod,
        id,
    };
    stress.cycles(0..72).await;
    let before = stress.settled(None).await;
    println!("at first: {before:?}");
    let begin = Instant::now();
    let mut done = 0;
    for until in [cycles / 10, cycles / 2, cycles] {
        stress.cycles(done..until).await;
        done = until;
        let after = stress.settled(Some(before)).await;
        println!("after {done} of each kind, {:?}: {after:?}", begin.elapsed());
        assert!(
            after.is_calm(&before),
            "{before:?} became {after:?}; processes: {:?}",
            daemon.lab.processes()
        );
        assert!(
            // What the allocator keeps of the busiest moment; a leak grows with the cycles.
            after.daemon.own < before.daemon.own + 16_384,
            "the daemon's memory: {before:?} {after:?}"
        );
        assert!(
            after.monitor.own < before.monitor.own + 256,
            "the monitor's memory: {before:?} {after:?}"
        );
    }
    daemon.finish().await;
}

/// What one process uses; memory in KiB.
#[derive(Debug, Clone, Copy)]
struct Process {
    descriptors: usize,
    threads: usize,
    own: u64,
}

impl Process {
    fn of(pid: i32) -> Self {
        let entries = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).map_or(0, Iterator::count);
        Self {
            descriptors: entries("fd"),
            threads: entries("task"),
            own: own_memory(pid),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Use {
    processes: usize,
    /// Of the daemon's asynchronous runtime.
    tasks: u64,
    urls: u64,
    daemon: Process,
    monitor: Process,
}

impl Use {
    /// Whether everything that can be counted is as it was.
    fn is_calm(&self, before: &Use) -> bool {
        self.processes <= before.processes
            && self.tasks <= before.tasks + 1
            && self.urls == 0
            && self.daemon.descriptors <= before.daemon.descriptors + 1
            && self.monitor.descriptors <= before.monitor.descriptors
            && self.monitor.threads <= before.monitor.threads
    }
}

fn monitor(daemon: &Daemon) -> i32 {
    let processes = daemon.lab.processes();
    let found = processes.into_iter().find(|(_, line)| line.contains("monitor"));
    found.expect("a monitor").0
}

struct Stress<'a> {
    daemon: &'a Daemon,
    monitor: i32,
    pod: String,
    id: String,
}

impl Stress<'_> {
    /// What is used once all has calmed down.
    async fn settled(&self, before: Option<Use>) -> Use {
        let begin = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.usage().await;
            let calm = match before {
                None => begin.elapsed() > Duration::from_secs(6),
                Some(before) => now.is_calm(&before),
            };
            if calm || begin.elapsed() > 2 * PATIENCE {
                return now;
            }
        }
    }

    async fn usage(&self) -> Use {
        let request = pb::StatusRequest { verbose: true };
        let status = self.daemon.cri.runtime.clone().status(request).await.expect("Status");
        let info: serde_json::Value = serde_json::from_str(&status.into_inner().info["daemon"]).expect("JSON");
        Use {
            processes: self.daemon.lab.processes().len(),
            tasks: info["tasks"].as_u64().expect("a number"),
            urls: info["streamingUrls"].as_u64().expect("a number"),
            daemon: Process::of(self.daemon.pid()),
            monitor: Process::of(self.monitor),
        }
    }

    /// These cycles, some at a time.
    async fn cycles(&self, range: std::ops::Range<usize>) {
        let next = AtomicUsize::new(range.start);
        let worker = async || {
            loop {
                let cycle = next.fetch_add(1, Ordering::Relaxed);
                if cycle >= range.end {
                    break;
                }
                self.exec(cycle).await;
                self.attach(cycle).await;
                self.forward(cycle).await;
            }
        };
        let workers = (0..number("WHARF_STREAM_WORKERS", 4)).map(|_| worker());
        futures_util::future::join_all(workers).await;
    }

    /// A command; a third of the clients break off: while it runs, before it runs, or before their streams are open.
    async fn exec(&self, cycle: usize) {
        let protocol = PROTOCOLS[cycle % 4];
        if cycle % 9 == 6 {
            let url = self
                .daemon
                .exec_url(&self.id, &["sleep", "500"], Want::ALL)
                .await
                .unwrap();
            let headers = [
                ("Connection", "Upgrade"),
                ("Upgrade", "SPDY/3.1"),
                ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
            ];
            drop(upgrade(&self.daemon.lab, "POST", &url, &headers).await.unwrap());
            return;
        }
        let line = match (cycle.is_multiple_of(3), protocol.half_closes()) {
            (true, _) => "echo in; sleep 500",
            (false, true) => "echo in; cat",
            (false, false) => "echo in; read line",
        };
        let command = ["sh", "-c", line];
        let mut session = self.daemon.exec_session(protocol, &self.id, &command, Want::ALL).await;
        if cycle % 9 == 3 {
            return session.break_off();
        }
        session.until("in").await;
        if cycle.is_multiple_of(3) {
            return session.break_off();
        }
        if protocol.half_closes() {
            session.end_input().await.unwrap();
        } else {
            session.write(b"line\n").await.unwrap();
        }
        assert_eq!(session.finish().await.code(), 0, "{protocol:?}");
    }

    /// An attach never ends before the container does: all clients break off, a third of them at once.
    async fn attach(&self, cycle: usize) {
        let protocol = PROTOCOLS[(cycle + 1) % 4];
        let mut session = self.daemon.attach_session(protocol, &self.id, Want::OUTPUT).await;
        if cycle % 3 != 1 {
            session.until("tick").await;
        }
        session.break_off();
    }

    async fn forward(&self, cycle: usize) {
        let broken = cycle % 3 == 2;
        let url = self.daemon.forward_url(&self.pod, &[]).await.unwrap();
        if cycle % 4 == 3 {
            return self.forward_over_channels(&url, broken).await;
        }
        let mut forward = Forward::open(&self.daemon.lab, &url, cycle % 4 == 1).await.unwrap();
        let mut pair = forward.connect("8080").await.unwrap();
        forward.write(&pair, b"x").await.unwrap();
        assert_eq!(pair.read().await.unwrap(), b"x");
        if !broken {
            forward.end(&pair).await.unwrap();
            assert!(pair.read_all().await.is_empty());
        }
        forward.break_off();
    }

    async fn forward_over_channels(&self, url: &str, broken: bool) {
        let url = format!("{url}?port=8080");
        let mut socket = websocket::open(&self.daemon.lab, &url, "v4.channel.k8s.io")
            .await
            .unwrap();
        socket.send(Message::binary(b"\0x".to_vec())).await.unwrap();
        let mut got = Vec::new();
        while got.len() < 3 {
            let next = tokio::time::timeout(PATIENCE, socket.next()).await;
            if let Message::Binary(data) = next.expect("something").unwrap().unwrap()
                && data[0] == 0
            {
                got.extend_from_slice(&data[1..]);
            }
        }
        assert_eq!(got, [&8080u16.to_le_bytes()[..], b"x"].concat());
        if !broken {
            socket.close(None).await.unwrap();
        }
    }
}
