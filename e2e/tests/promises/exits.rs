//! How a container ended, told truly.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use wharf_e2e::{Cri, Daemon, container, eventually};
use wharf_proto::cri::{ContainerConfig, ContainerState, PodSandboxConfig};

use crate::on_each_handler;

/// Containers that run out of memory at the same time.
const BATCH: usize = 10;

fn limited(name: &str, image: &str, line: &str) -> ContainerConfig {
    let mut config = container(name, image, line);
    let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
    resources.memory_limit_in_bytes = 16 << 20;
    config
}

async fn ended(cri: &Cri, pod: &str, config: &PodSandboxConfig, main: &ContainerConfig) -> (i32, String) {
    let id = cri.create(pod, main, config).await.unwrap();
    cri.start(&id).await.unwrap();
    let status = cri.exited(&id).await.unwrap();
    cri.remove(&id).await.unwrap();
    (status.exit_code, status.reason)
}

/// Where a file is that a container has written at its root.
fn written(daemon: &Daemon, pod: &str, id: &str, name: &str) -> PathBuf {
    let pod = daemon.state_dir.join("pods").join(pod);
    pod.join("containers").join(id).join("upper").join(name)
}

/// `WHARF_OOM_COUNT` says how many; by default 200 in all.
#[tokio::test]
async fn none_of_two_hundred_that_run_out_of_memory_is_mislabelled() {
    let wanted: Option<usize> = std::env::var("WHARF_OOM_COUNT")
        .ok()
        .and_then(|count| count.parse().ok());
    on_each_handler(async |daemon| {
        let config = daemon.pod("oom");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let builtin = std::fs::read_to_string(&daemon.config)
            .unwrap()
            .contains("default_runtime = 'builtin'");
        let count = wanted.unwrap_or(if builtin { 140 } else { 30 });
        let mut wrong = Vec::new();
        for batch in 0..count / BATCH {
            let mut containers = JoinSet::new();
            for n in 0..BATCH {
                let main = limited(&format!("oom-{batch}-{n}"), &image, "exec tail /dev/zero");
                let (cri, pod, config) = (daemon.cri.clone(), pod.clone(), config.clone());
                containers.spawn(async move { ended(&cri, &pod, &config, &main).await });
            }
            let ends = containers.join_all().await;
            wrong.extend(ends.into_iter().filter(|end| *end != (137, "OOMKilled".to_owned())));
        }
        assert!(
            wrong.is_empty(),
            "{} of {count} are mislabelled: {wrong:?}",
            wrong.len()
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn reasons_follow_what_ended_the_container() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("reasons");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        for (name, line, code, reason) in [
            ("well", "exit 0", 0, "Completed"),
            ("badly", "exit 9", 9, "Error"),
            ("term", "kill -TERM $$; sleep 10", 143, "Error"),
            // Init is a shell that passes on how its child ended.
            ("child", "tail /dev/zero; exit $?", 137, "OOMKilled"),
            ("child-other", "tail /dev/zero; exit 4", 4, "OOMKilled"),
            // It has coped with it.
            ("coped", "tail /dev/zero; exit 0", 0, "Completed"),
            ("other-pod-mate", "sh -c 'kill -KILL $$'; exit $?", 137, "Error"),
        ] {
            // Signals of its own are ignored by the init of a PID namespace: a shell below it takes them.
            let line = if name == "term" {
                "sh -c 'kill -TERM $$'; exit $?"
            } else {
                line
            };
            let end = ended(&daemon.cri, &pod, &config, &limited(name, &image, line)).await;
            assert_eq!(end, (code, reason.to_owned()), "{name}");
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_kill_is_not_taken_for_lack_of_memory() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("killed");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let plain = daemon
            .started(&pod, &config, &limited("plain", &image, "sleep 1000"))
            .await;
        daemon.cri.stop(&plain, 0).await.unwrap();
        let status = daemon.cri.status(&plain).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        // A child ran out of memory long before; what ends the container is the stop.
        let main = limited("survivor", &image, "tail /dev/zero; touch /survived; sleep 1000");
        for timeout in [0, 1] {
            let mut main = main.clone();
            main.metadata.as_mut().unwrap().attempt = timeout;
            let id = daemon.started(&pod, &config, &main).await;
            // Seen from outside: a command in the container would compete with the child for its 16 MiB, be killed in its
            // place, and wait with it for the disk when the kernel takes the pages of their program away.
            let survived = written(&daemon, &pod, &id, "survived");
            eventually("the child is gone", async || survived.exists()).await;
            daemon.cri.stop(&id, timeout.into()).await.unwrap();
            let status = daemon.cri.status(&id).await.unwrap();
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (137, "Error"),
                "timeout {timeout}"
            );
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_started_is_a_start_error_with_code_128() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("start");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        for (name, command) in [
            ("absent", "/no/such"),
            ("not-in-path", "no-such"),
            ("no-program", "/etc/passwd"),
            ("directory", "/etc"),
        ] {
            let mut main = container(name, &image, "");
            main.command = vec![command.into()];
            let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
            let error = daemon.cri.start(&id).await.expect_err(name);
            assert!(error.message().contains("start container"), "{name}: {error}");
            let status = daemon.cri.status(&id).await.unwrap();
            assert_eq!(
                (status.state(), status.exit_code, status.reason.as_str()),
                (ContainerState::ContainerExited, 128, "StartError"),
                "{name}"
            );
            assert!(!status.message.is_empty() && status.started_at == 0 && status.finished_at > 0);
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_15_an_end_that_nobody_saw_is_unknown_with_code_255() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("lost", "sleep 1000").await;
    let monitor = {
        let request = wharf_proto::cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.clone(),
            verbose: true,
        };
        let answer = daemon.cri.runtime.clone().pod_sandbox_status(request).await.unwrap();
        let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).unwrap();
        info["monitorPid"].as_i64().unwrap()
    };
    let begin = Instant::now();
    // The number is the lab's: only there it means the monitor.
    daemon
        .lab
        .output("kill", &["-KILL", &monitor.to_string()])
        .await
        .unwrap();
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert!(begin.elapsed() < Duration::from_secs(15));
    daemon.crash().await;
    assert_eq!(daemon.cri.status(&id).await.unwrap(), status);
    daemon.finish().await;
}

/// Rule 16 holds for what the daemon itself can't do, not only for what the runtime refuses.
#[tokio::test]
async fn a_log_that_cannot_be_made_is_a_start_error() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("log");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    std::fs::write(PathBuf::from(&config.log_directory).join("file"), "").unwrap();
    main.log_path = "file/main.log".into();
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    let refused = daemon.cri.start(&id).await.expect_err("a file is no directory");
    assert!(refused.message().contains("file"), "{refused}");
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("log directory"), "{}", status.message);
    daemon.finish().await;
}
