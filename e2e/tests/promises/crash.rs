//! kill -9 of the daemon, in the middle of things.

use std::time::Duration;

use nix::sys::signal::Signal;
use wharf_e2e::{Daemon, container, eventually, logs};
use wharf_proto::cri::{ContainerState, PodSandboxState};

use crate::on_each_handler;

#[tokio::test]
async fn logs_have_no_gap_and_exits_are_known_after_a_kill() {
    on_each_handler(async |mut daemon| {
        let config = daemon.pod("crash");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let counts = container(
            "counts",
            &image,
            "i=0; while [ $i -lt 200 ]; do echo line-$i; i=$((i+1)); sleep 0.01; done; exit 3",
        );
        let stays = container("stays", &image, "sleep 1000");
        let counting = daemon.started(&pod, &config, &counts).await;
        let staying = daemon.started(&pod, &config, &stays).await;
        daemon.end(Signal::SIGKILL).await.unwrap();
        let path = logs::path(&config, &counts);
        eventually("the container ends while no daemon runs", async || {
            logs::text(&path, "stdout").is_ok_and(|text| text.ends_with("line-199\n"))
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        daemon.start_again().await.unwrap();
        let status = daemon.cri.status(&counting).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        assert_eq!(
            logs::text(&path, "stdout").unwrap(),
            (0..200).map(|n| format!("line-{n}\n")).collect::<String>()
        );
        assert_eq!(
            daemon.cri.status(&staying).await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(daemon.cri.shell(&staying, "echo yes").await.unwrap(), "yes\n");
        daemon.cri.stop(&staying, 0).await.unwrap();
        assert_eq!(daemon.cri.status(&staying).await.unwrap().exit_code, 137);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_48_a_kill_at_any_point_loses_nothing_that_was_acknowledged() {
    let mut daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for round in 0..8_u64 {
        let cri = daemon.cri.clone();
        let configs: Vec<_> = (0..4).map(|n| daemon.pod(&format!("r{round}-{n}"))).collect();
        let image = image.clone();
        let work = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for config in configs {
                let Ok(pod) = cri.run_pod(&config, "").await else { break };
                acknowledged.push((pod.clone(), None));
                let Ok(id) = cri
                    .create(&pod, &container("main", &image, "sleep 1000"), &config)
                    .await
                else {
                    break;
                };
                acknowledged.last_mut().unwrap().1 = Some((id.clone(), false));
                if cri.start(&id).await.is_err() {
                    break;
                }
                acknowledged.last_mut().unwrap().1 = Some((id, true));
            }
            acknowledged
        });
        tokio::time::sleep(Duration::from_millis(10 + round * 37)).await;
        daemon.crash().await;
        let acknowledged = work.await.unwrap();
        let pods = daemon.cri.pods(None).await.unwrap();
        for (pod, container) in &acknowledged {
            let listed = pods.iter().find(|listed| listed.id == *pod);
            let listed = listed.unwrap_or_else(|| panic!("round {round}: pod {pod} was acknowledged and is lost"));
            assert_eq!(
                listed.state(),
                PodSandboxState::SandboxReady,
                "round {round}: {listed:?}"
            );
            if let Some((id, started)) = container {
                let status = daemon.cri.status(id).await.unwrap();
                if *started {
                    assert_eq!(
                        status.state(),
                        ContainerState::ContainerRunning,
                        "round {round}: {status:?}"
                    );
                }
            }
        }
        for pod in pods {
            daemon.gone(&pod.id).await;
        }
        assert!(daemon.cri.pods(None).await.unwrap().is_empty());
        wharf_e2e::guard::pods_left_nothing(&daemon).await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_kill_while_a_pod_is_taken_down_leaves_one_that_can_be_taken_down() {
    let mut daemon = Daemon::start().await;
    for round in 0..5_u64 {
        let (pod, _) = daemon
            .running(&format!("down-{round}"), "trap '' TERM; while :; do sleep 0.1; done")
            .await;
        let cri = daemon.cri.clone();
        let id = pod.clone();
        let work = tokio::spawn(async move {
            let _ = cri.stop_pod(&id).await;
            let _ = cri.remove_pod(&id).await;
        });
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        daemon.crash().await;
        let _ = work.await;
        daemon.gone(&pod).await;
        assert!(daemon.cri.pods(None).await.unwrap().is_empty());
        wharf_e2e::guard::pods_left_nothing(&daemon).await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_killed_monitor_means_unknown_exits_and_a_pod_that_can_be_removed() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("monitor", "sleep 1000").await;
    let monitor = daemon
        .lab
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("monitor"))
        .expect("a monitor")
        .0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"), "rule 15");
    daemon.gone(&pod).await;
    daemon.finish().await;
}
