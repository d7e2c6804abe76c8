//! Kubelet-like work by several clients while daemon and monitors are killed at random: what was acknowledged is there,
//! and nothing leaks.
//!
//! `WHARF_SOAK_SECONDS` says how long (default 15), `WHARF_SOAK_SEED` which seed; without it the time gives one. It is
//! printed. The same seed makes the same choices; what meets what still depends on the machine.

mod census;
mod dice;
mod worker;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_e2e::Daemon;

use census::Census;
use dice::Dice;
use worker::Worker;

/// Clients at a time.
const WORKERS: u64 = 5;
/// After this everything is removed and counted.
const ROUND: Duration = Duration::from_secs(15);

/// What clients and the one who kills know of each other.
#[derive(Default)]
pub struct Shared {
    /// The round is over.
    over: AtomicBool,
    /// Pods whose monitors were killed or stopped, noted before that was done.
    struck: Mutex<HashSet<String>>,
    calls: AtomicUsize,
    failures: AtomicUsize,
}

impl Shared {
    fn is_struck(&self, pod: &str) -> bool {
        self.struck.lock().unwrap().contains(pod)
    }

    fn strike(&self, pod: &str) {
        self.struck.lock().unwrap().insert(pod.to_owned());
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test]
async fn random_work_under_random_kills_loses_and_leaks_nothing() {
    let seconds = setting("WHARF_SOAK_SECONDS").unwrap_or(15);
    let seed = setting("WHARF_SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    println!("WHARF_SOAK_SEED={seed} WHARF_SOAK_SECONDS={seconds}");
    let mut daemon = Daemon::start().await;
    let shared = Arc::new(Shared::default());
    let mut dice = Dice::new(seed, 0);
    let mut workers: Vec<Worker> = (1..=WORKERS)
        .map(|number| Worker::new(&daemon, number, Dice::new(seed, number), shared.clone()))
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    // The first round warms up: bridge, shared cgroups, caches and the compiled filters are there after it.
    round(&mut daemon, &mut workers, &shared, &mut dice, Duration::from_secs(2)).await;
    let first = Census::settled(&daemon, None).await;
    println!("at first: {first:?}");
    for number in 1.. {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        round(&mut daemon, &mut workers, &shared, &mut dice, left.min(ROUND)).await;
        let census = Census::settled(&daemon, Some(&first)).await;
        println!(
            "round {number}: {} calls, {} of them failed and were made again; {} KiB",
            shared.calls.load(Ordering::Relaxed),
            shared.failures.load(Ordering::Relaxed),
            census.memory
        );
        assert!(!daemon.log().contains("panicked"), "the daemon panicked; see its log");
    }
    drop(workers);
    daemon.finish().await;
}

/// One round: work and kills, then everything is removed.
async fn round(daemon: &mut Daemon, workers: &mut [Worker], shared: &Shared, dice: &mut Dice, length: Duration) {
    shared.over.store(false, Ordering::SeqCst);
    let kills = async {
        let end = Instant::now() + length;
        while Instant::now() < end {
            tokio::time::sleep(dice.millis(100..2000)).await;
            match dice.below(100) {
                0..45 => daemon.crash().await,
                45..55 => {
                    daemon.end(Signal::SIGTERM).await.expect("SIGTERM ends it");
                    daemon.start_again().await.expect("it starts again");
                }
                55..85 => strike(daemon, shared, dice, false).await,
                _ => strike(daemon, shared, dice, true).await,
            }
        }
        shared.over.store(true, Ordering::SeqCst);
    };
    tokio::join!(kills, join_all(workers.iter_mut().map(Worker::work)));
}

/// Kills the monitor of some pod, or stops it for a while.
async fn strike(daemon: &Daemon, shared: &Shared, dice: &mut Dice, only_stop: bool) {
    let monitors: Vec<(Pid, String)> = daemon
        .lab
        .processes()
        .into_iter()
        .filter_map(|(pid, line)| {
            let mut words = line.split(' ').skip_while(|word| *word != "--pod");
            Some((Pid::from_raw(pid), words.nth(1)?.to_owned()))
        })
        .collect();
    let Some((pid, pod)) = dice.pick(&monitors) else { return };
    shared.strike(pod);
    if only_stop {
        let _ = kill(*pid, Signal::SIGSTOP);
        tokio::time::sleep(dice.millis(50..1500)).await;
        // Another process may have its number by now; it does not stand still.
        let _ = kill(*pid, Signal::SIGCONT);
    } else {
        let _ = kill(*pid, Signal::SIGKILL);
    }
}
