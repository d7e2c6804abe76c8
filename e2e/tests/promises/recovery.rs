//! What a daemon finds at its start, and monitors that do not answer.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use wharf_e2e::{Daemon, eventually};
use wharf_proto::cri::{ContainerState, PodSandboxState};

use crate::monitors::monitor_of;

#[tokio::test]
async fn a_stopped_monitor_holds_up_nothing_but_its_own_pod_at_the_daemons_start() {
    let mut daemon = Daemon::start().await;
    let (stuck, in_stuck) = daemon.running("stuck", "sleep 1000").await;
    let (well, in_well) = daemon.running("well", "sleep 1000").await;
    let monitor = monitor_of(&daemon, &stuck);
    kill(monitor, Signal::SIGSTOP).unwrap();
    daemon.end(Signal::SIGKILL).await.unwrap();
    daemon.start_again().await.unwrap();
    // All pods are listed, the well one is served, while the other's monitor says nothing.
    let pods = daemon.cri.pods(None).await.unwrap();
    assert_eq!(pods.len(), 2);
    assert!(
        pods.iter().all(|pod| pod.state() == PodSandboxState::SandboxReady),
        "{pods:?}"
    );
    assert_eq!(daemon.cri.shell(&in_well, "echo yes").await.unwrap(), "yes\n");
    assert_eq!(
        daemon.cri.status(&in_stuck).await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    daemon.gone(&well).await;
    eventually("the silent monitor is reported", async || {
        daemon
            .log()
            .lines()
            .any(|line| line.contains("does not answer") && line.contains(&stuck))
    })
    .await;
    // It goes on: the pod is whole again, without a restart.
    kill(monitor, Signal::SIGCONT).unwrap();
    eventually("the pod is served again", async || {
        daemon
            .cri
            .shell(&in_stuck, "echo back")
            .await
            .is_ok_and(|text| text == "back\n")
    })
    .await;
    daemon.gone(&stuck).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_pod_whose_monitor_never_answers_can_be_removed() {
    let mut daemon = Daemon::start().await;
    let (later, _) = daemon
        .running("later", "trap '' TERM; while :; do sleep 0.1; done")
        .await;
    kill(monitor_of(&daemon, &later), Signal::SIGSTOP).unwrap();
    // Removed while the daemon is connected to it, and after a restart, when it never was.
    daemon.gone(&later).await;
    let (before, container) = daemon.running("before", "sleep 1000").await;
    kill(monitor_of(&daemon, &before), Signal::SIGSTOP).unwrap();
    daemon.end(Signal::SIGKILL).await.unwrap();
    daemon.start_again().await.unwrap();
    daemon.cri.stop(&container, 0).await.unwrap();
    let status = daemon.cri.status(&container).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    daemon.gone(&before).await;
    daemon.finish().await;
}

#[tokio::test]
async fn many_pods_are_found_again_at_once() {
    let count: usize = std::env::var("WHARF_PODS").map_or(40, |count| count.parse().unwrap());
    let mut daemon = Daemon::start().await;
    for first in (0..count).step_by(10) {
        let names: Vec<String> = (first..count.min(first + 10))
            .map(|number| format!("many-{number}"))
            .collect();
        futures_util::future::join_all(names.iter().map(|name| daemon.running(name, "sleep 1000"))).await;
    }
    daemon.end(Signal::SIGKILL).await.unwrap();
    let start = Instant::now();
    daemon.start_again().await.unwrap();
    println!("{count} pods found again in {:?}", start.elapsed());
    let containers = daemon.cri.containers(None).await.unwrap();
    assert_eq!(containers.len(), count);
    assert!(
        containers
            .iter()
            .all(|one| one.state() == ContainerState::ContainerRunning)
    );
    // No daemon needs minutes for this, on any machine; the figure is for the benchmark.
    assert!(start.elapsed() < Duration::from_secs(60));
    let pods = daemon.cri.pods(None).await.unwrap();
    futures_util::future::join_all(pods.iter().map(|pod| daemon.gone(&pod.id))).await;
    daemon.finish().await;
}

#[tokio::test]
async fn records_of_a_newer_version_are_left_alone_and_named() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("newer", "sleep 1000").await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    let record = daemon.state_dir.join("pods").join(&pod).join("record");
    let before = std::fs::read(&record).unwrap();
    // Field 1, schema: the last of two counts.
    let newer = [before.as_slice(), &[0x08, 99]].concat();
    std::fs::write(&record, &newer).unwrap();
    let error = daemon.start_again().await.expect_err("what it means is not known");
    let text = error.to_string();
    assert!(
        text.contains("schema 99") && text.contains(&record.display().to_string()),
        "{text}"
    );
    assert_eq!(std::fs::read(&record).unwrap(), newer);
    // The version that has written it finds everything as it was.
    std::fs::write(&record, &before).unwrap();
    daemon.start_again().await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    daemon.finish().await;
}
