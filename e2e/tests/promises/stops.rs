//! Starts and stops that meet: requests for the same container at once, cancelled ones, and paused containers.

use std::time::{Duration, Instant};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, container, eventually, logs};
use wharf_proto::cri::{ContainerState, Signal};

use crate::on_each_handler;

/// Ignores and counts its stop signals.
const STUBBORN: &str = "trap 'echo term' TERM; echo ready; while :; do sleep 0.1; done";

/// Runs a container with that line and waits until it has written `ready`; returns its id and its log's path.
async fn ready(daemon: &Daemon, name: &str, line: &str) -> (String, std::path::PathBuf) {
    let config = daemon.pod(name);
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    eventually("it runs", async || {
        logs::text(&path, "stdout").is_ok_and(|text| text.starts_with("ready\n"))
    })
    .await;
    (id, path)
}

#[tokio::test]
async fn of_two_starts_at_once_one_is_refused() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("twice");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = container("main", &daemon.busybox().await, "sleep 1000");
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        let (one, two) = tokio::join!(daemon.cri.start(&id), daemon.cri.start(&id));
        let refused = match (one, two) {
            (Ok(()), Err(refused)) | (Err(refused), Ok(())) => refused,
            other => panic!("exactly one must succeed: {other:?}"),
        };
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_17_a_later_stop_sends_no_second_signal_and_gives_no_more_time() {
    let daemon = Daemon::start().await;
    let (id, path) = ready(&daemon, "longer", STUBBORN).await;
    let begin = Instant::now();
    let (short, long) = tokio::join!(daemon.cri.stop(&id, 2), async {
        eventually("the first signal has come", async || {
            logs::text(&path, "stdout").is_ok_and(|text| text.contains("term"))
        })
        .await;
        daemon.cri.stop(&id, 60).await
    });
    short.unwrap();
    long.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
    assert_eq!(logs::text(&path, "stdout").unwrap(), "ready\nterm\n");
    assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 137);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_17_the_stop_signal_is_the_containers_else_the_images_else_sigterm() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("signals");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        // This image asks for SIGINT.
        let (plain, asking) = (daemon.busybox().await, daemon.pull("entrypoint:latest").await);
        let line =
            "for s in INT TERM USR1; do trap \"echo $s; exit 3\" $s; done; echo ready; while :; do sleep 0.1; done";
        for (name, image, signal, expected) in [
            ("default", &plain, Signal::RuntimeDefault, "TERM"),
            ("image", &asking, Signal::RuntimeDefault, "INT"),
            ("container", &asking, Signal::Sigusr1, "USR1"),
        ] {
            let mut main = container(name, image, line);
            main.stop_signal = signal.into();
            let id = daemon.started(&pod, &config, &main).await;
            let path = logs::path(&config, &main);
            eventually("it runs", async || {
                logs::text(&path, "stdout").is_ok_and(|text| text == "ready\n")
            })
            .await;
            daemon.cri.stop(&id, 30).await.unwrap();
            assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 3, "{name}");
            assert_eq!(
                logs::text(&path, "stdout").unwrap(),
                format!("ready\n{expected}\n"),
                "{name}"
            );
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_whose_caller_goes_away_is_carried_out() {
    let daemon = Daemon::start().await;
    let (id, path) = ready(&daemon, "cancelled", STUBBORN).await;
    let stop = daemon.cri.stop(&id, 1);
    let given_up = tokio::time::timeout(Duration::from_millis(300), stop).await;
    assert!(given_up.is_err(), "it ignores its stop signal");
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!(status.exit_code, 137);
    assert_eq!(logs::text(&path, "stdout").unwrap(), "ready\nterm\n");
    daemon.finish().await;
}

#[tokio::test]
async fn commands_run_while_a_container_takes_its_time_to_stop() {
    on_each_handler(async |daemon| {
        let line =
            "trap 'while [ ! -e /go ]; do sleep 0.1; done; exit 4' TERM; echo ready; while :; do sleep 0.1; done";
        let (id, _) = ready(&daemon, "graceful", line).await;
        let (stopped, ()) = tokio::join!(daemon.cri.stop(&id, 30), async {
            eventually("the stop is under way", async || {
                daemon.log().contains("sends the stop signal")
            })
            .await;
            assert_eq!(daemon.cri.shell(&id, "echo yes").await.unwrap(), "yes\n");
            daemon.cri.shell(&id, "touch /go").await.unwrap();
        });
        stopped.unwrap();
        assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 4);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed_or_stopped() {
    on_each_handler(async |mut daemon| {
        let line = "trap 'exit 6' TERM; echo ready; while :; do echo tick; sleep 0.05; done";
        let (id, path) = ready(&daemon, "paused", line).await;
        let ticks = || logs::text(&path, "stdout").unwrap().lines().count();
        let wharf = async |daemon: &Daemon, args: &[&str]| daemon.wharf(args).output().await.unwrap();
        let ok = async |daemon: &Daemon, args: &[&str]| {
            let output = wharf(daemon, args).await;
            assert!(output.status.success(), "{args:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        ok(&daemon, &["pause", &id]).await;
        let before = ticks();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(ticks(), before, "it goes on");
        let listed = ok(&daemon, &["ps"]).await;
        assert!(listed.contains("Paused"), "{listed}");
        // CRI has no such state: for kubelet it runs. What would wait for ever is refused.
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        let refused = daemon.cri.exec(&id, &["true"], 5).await.expect_err("it is paused");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("paused"), "{refused}");
        let output = wharf(&daemon, &["pause", &id]).await;
        assert!(!output.status.success(), "it is paused already");
        daemon.crash().await;
        assert_eq!(code(daemon.cri.exec(&id, &["true"], 5).await), Code::FailedPrecondition);
        ok(&daemon, &["unpause", &id]).await;
        eventually("it goes on", async || ticks() > before).await;
        assert_eq!(daemon.cri.shell(&id, "echo yes").await.unwrap(), "yes\n");
        let output = wharf(&daemon, &["unpause", &id]).await;
        assert!(!output.status.success(), "it is not paused");
        // A stop wakes it, so that it can end in its own way.
        ok(&daemon, &["pause", &id]).await;
        daemon.cri.stop(&id, 20).await.unwrap();
        assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 6);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_pod_with_a_paused_container_is_removed_like_any_other() {
    let mut daemon = Daemon::start().await;
    let (killed, _) = ready(&daemon, "monitor", STUBBORN).await;
    let (removed, _) = ready(&daemon, "removed", STUBBORN).await;
    for id in [&killed, &removed] {
        let output = daemon.wharf(&["pause", id]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // Its monitor is gone: nobody is there to wake it but the daemon.
    let filter = wharf_proto::cri::ContainerFilter {
        id: killed.clone(),
        ..Default::default()
    };
    let pod = daemon
        .cri
        .containers(Some(filter))
        .await
        .unwrap()
        .remove(0)
        .pod_sandbox_id;
    let processes = daemon.lab.processes();
    let monitor = processes
        .iter()
        .find(|(_, line)| line.contains("monitor") && line.contains(&pod));
    let monitor = monitor.expect("the pod has a monitor").0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = daemon.cri.exited(&killed).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    daemon.crash().await;
    daemon.finish().await;
}
