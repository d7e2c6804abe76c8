//! kill -9 of the daemon, in the middle of things.

use std::time::Duration;

use nix::sys::signal::Signal;
use wharf_e2e::{Daemon, container, eventually, logs, streams};
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
async fn a_fast_writers_log_is_whole_however_often_the_daemon_is_killed() {
    const LINES: usize = 1_500_000;
    const KILLS: usize = 4;
    let mut daemon = Daemon::start().await;
    let config = daemon.pod("fast");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, &format!("exec seq 1 {LINES}"));
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    let size = || std::fs::metadata(&path).map_or(0, |file| file.len());
    let mut sizes = vec![0];
    for _ in 0..KILLS {
        let before = *sizes.last().unwrap();
        // On a machine whose daemons are slow to start, the writer may have come to its end.
        eventually("it writes on", async || {
            let ended = daemon.cri.status(&id).await.is_ok_and(|status| status.finished_at > 0);
            size() > before || ended
        })
        .await;
        daemon.crash().await;
        sizes.push(size());
    }
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    println!("the log had {sizes:?} bytes after each kill, {} in the end", size());
    assert!(sizes[1] < size(), "the writer was done before the first kill");
    let mut next = 1;
    for part in logs::parts(&path).unwrap() {
        assert!(part.full && part.stream == "stdout");
        assert_eq!(part.content, next.to_string().into_bytes());
        next += 1;
    }
    assert_eq!(next, LINES + 1);
    daemon.finish().await;
}

#[tokio::test]
async fn ends_that_no_daemon_saw_are_told_with_their_code_reason_and_time() {
    on_each_handler(async |mut daemon| {
        let config = daemon.pod("ends");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let gate = daemon.dir().join("gate");
        std::fs::create_dir(&gate).unwrap();
        let mut started = Vec::new();
        for (name, line, code, reason) in [
            ("well", "exit 0", 0, "Completed"),
            ("badly", "exit 9", 9, "Error"),
            ("signalled", "sh -c 'kill -TERM $$'; exit $?", 143, "Error"),
            ("memory", "exec tail /dev/zero", 137, "OOMKilled"),
        ] {
            let line = format!("while [ ! -e /gate/open ]; do sleep 0.05; done; {line}");
            let mut main = container(name, &image, &line);
            let resources = main.linux.get_or_insert_default().resources.get_or_insert_default();
            resources.memory_limit_in_bytes = 16 << 20;
            main.mounts = vec![wharf_e2e::specs::mount(&gate.to_string_lossy(), "/gate", true)];
            started.push((daemon.started(&pod, &config, &main).await, code, reason));
        }
        daemon.end(Signal::SIGKILL).await.unwrap();
        let opened = now();
        std::fs::write(gate.join("open"), "").unwrap();
        let containers = daemon.state_dir.join("pods").join(&pod).join("containers");
        eventually("all have ended", async || {
            started.iter().all(|(id, ..)| containers.join(id).join("exit").exists())
        })
        .await;
        let ended = now();
        daemon.start_again().await.unwrap();
        for (id, code, reason) in &started {
            let status = daemon.cri.status(id).await.unwrap();
            assert_eq!(status.state(), ContainerState::ContainerExited);
            assert_eq!((status.exit_code, status.reason.as_str()), (*code, *reason));
            assert!(
                (opened..=ended).contains(&status.finished_at),
                "{opened} {ended} {status:?}"
            );
            assert!((1..opened).contains(&status.started_at), "{opened} {status:?}");
        }
        daemon.finish().await;
    })
    .await;
}

/// Unix time in nanoseconds.
fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(elapsed.unwrap().as_nanos()).unwrap()
}

/// Nobody can ask for the output any more, and nobody would see to the time limit.
#[tokio::test]
async fn commands_end_with_the_daemon_that_ran_them_and_their_container_does_not() {
    on_each_handler(async |mut daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let running = || {
            let processes = daemon.lab.processes().into_iter();
            processes.filter(|(_, line)| line.contains("sleep 3133")).count()
        };
        let (cri, of) = (daemon.cri.clone(), id.clone());
        let line = "trap '' TERM HUP; sleep 31337 & sleep 31338";
        let call = tokio::spawn(async move { cri.exec(&of, &["sh", "-c", line], 0).await });
        let command = ["sh", "-c", "sleep 31339"];
        let session = daemon
            .exec_session(streams::REMOTE[0], &id, &command, streams::Want::ALL)
            .await;
        eventually("all run", async || running() >= 3).await;
        daemon.end(Signal::SIGKILL).await.unwrap();
        call.await.unwrap().expect_err("its daemon is gone");
        session.finish().await;
        daemon.start_again().await.unwrap();
        let running = || {
            let processes = daemon.lab.processes().into_iter();
            processes.filter(|(_, line)| line.contains("sleep 3133")).count()
        };
        eventually("the commands are gone", async || running() == 0).await;
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(daemon.cri.shell(&id, "echo yes").await.unwrap(), "yes\n");
        daemon.finish().await;
    })
    .await;
}
