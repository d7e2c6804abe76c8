//! What the daemon is working at is shown while it lasts, and told in its log when it was slow.

use std::time::Duration;

use serde_json::Value;
use wharf_e2e::{Daemon, container, eventually, registry};
use wharf_proto::cri::StatusRequest;

/// A fail point where a call is held up, and the stage that is shown then.
const HELD: &[(&str, &str, &str)] = &[
    ("pull.layers", "PullImage", "layers"),
    ("run.attached", "RunPodSandbox", "network"),
    ("create.rootfs", "CreateContainer", "root filesystem"),
    ("start.noted", "StartContainer", "log and seccomp filter"),
    ("stop.kill", "StopContainer", "start in progress"),
    ("down.namespaces", "StopPodSandbox", "namespaces"),
];

pub(crate) async fn shown(daemon: &Daemon) -> Vec<Value> {
    let request = StatusRequest { verbose: true };
    let answer = daemon.cri.runtime.clone().status(request).await.unwrap();
    serde_json::from_str(&answer.into_inner().info["operations"]).unwrap()
}

async fn text(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.wharf(args).output().await.unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_stage_of_each_slow_operation_is_in_status_log_ps_and_inspect() {
    let daemon = Daemon::start().await;
    daemon.busybox().await;
    let config = daemon.pod("slow");
    let wish = container("main", &registry::reference("busybox:latest"), "sleep 1000");
    let (mut pod, mut id) = (String::new(), String::new());
    for (point, call, stage) in HELD {
        daemon.arm(point, "hang").unwrap();
        let cri = daemon.cri.clone();
        let (config, wish, of, with) = (config.clone(), wish.clone(), pod.clone(), id.clone());
        let work = tokio::spawn(async move {
            match *call {
                "PullImage" => cri.pull(&registry::reference("layers:latest")).await,
                "RunPodSandbox" => cri.run_pod(&config, "").await,
                "CreateContainer" => cri.create(&of, &wish, &config).await,
                "StartContainer" => cri.start(&with).await.map(|()| with),
                "StopContainer" => cri.stop(&with, 0).await.map(|()| with),
                _ => cri.stop_pod(&of).await.map(|()| of),
            }
        });
        eventually("it is held up", async || daemon.reached(point)).await;
        let all = shown(&daemon).await;
        let one = all.iter().find(|one| one["call"] == *call);
        let one = one.unwrap_or_else(|| panic!("{call} is not shown: {all:?}"));
        assert_eq!(one["stage"], *stage, "{call}");
        let object = one["id"].as_str().unwrap();
        // A pull is in no table, and is found by its reference.
        let table = match *call {
            "PullImage" => None,
            "RunPodSandbox" | "StopPodSandbox" => Some(text(&daemon, &["pods"]).await),
            _ => Some(text(&daemon, &["ps", "-a"]).await),
        };
        if let Some(table) = table {
            let line = table
                .lines()
                .find(|line| line.contains(&object[..12]))
                .unwrap_or_default();
            assert!(line.contains(&format!("{call}: {stage}")), "{call}: {table}");
        }
        let inspected: Value = serde_json::from_str(&text(&daemon, &["inspect", object]).await).unwrap();
        assert_eq!(
            inspected["info"]["operations"][0]["stage"], *stage,
            "{call}: {inspected}"
        );
        // Longer than what is worth a line in the log.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        daemon.disarm(point);
        let made = work.await.unwrap().unwrap();
        match *call {
            "RunPodSandbox" => pod = made,
            "CreateContainer" => id = made,
            _ => {}
        }
        assert!(shown(&daemon).await.is_empty());
        let log = daemon.log();
        let line = log
            .lines()
            .find(|line| line.contains("an operation was slow") && line.contains(call));
        let line = line.unwrap_or_else(|| panic!("{call} is not in the log"));
        assert!(line.contains(stage) && line.contains("milliseconds="), "{line}");
    }
    daemon.finish().await;
}
