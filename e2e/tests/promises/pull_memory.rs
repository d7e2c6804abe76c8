//! What the daemon takes of the node's memory: a pull, whatever the image, and after work of any kind.

use std::time::Duration;

use wharf_e2e::{Daemon, Options, fixtures, own_memory, registry::WRITABLE};

/// KiB over what the idle daemon has.
const LIMIT: u64 = 64 << 10;

#[tokio::test]
async fn a_large_image_is_pulled_within_64_mib() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await;
    fixtures::make_big(&daemon.dir().join("pushed"), 0, 4, 160).unwrap();
    // What every daemon has once it has worked belongs to idling.
    daemon.busybox().await;
    let idle = own_memory(daemon.pid());
    let name = format!("{WRITABLE}/big:0");
    let mut most = 0;
    let watched = async {
        loop {
            most = most.max(own_memory(daemon.pid()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        pulled = daemon.cri.pull(&name) => drop(pulled.unwrap()),
        () = watched => unreachable!(),
    }
    let over = most.saturating_sub(idle);
    println!("{over} KiB over the idle {idle} KiB");
    assert!(over <= LIMIT, "the pull took {over} KiB over the idle {idle} KiB");
    daemon.finish().await;
}

/// KiB of files that a process has mapped and there: the pages of its program that it has used of late.
fn of_files(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssFile:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn once_work_is_done_its_memory_is_given_back() {
    let daemon = Daemon::start().await;
    let pid = daemon.pid();
    let mut most = 0;
    let watched = async {
        loop {
            most = most.max(of_files(pid));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (pod, id) = tokio::select! {
        running = daemon.running("busy", "sleep 1000") => running,
        () = watched => unreachable!(),
    };
    wharf_e2e::eventually("the program's pages are given back", async || of_files(pid) < most / 2).await;
    println!("{most} KiB of files at work, {} KiB afterwards", of_files(pid));
    // They come again.
    assert_eq!(daemon.cri.exec(&id, &["true"], 30).await.unwrap().exit_code, 0);
    daemon.cri.stop_pod(&pod).await.unwrap();
    daemon.cri.remove_pod(&pod).await.unwrap();
    daemon.finish().await;
}
