//! Watching the daemon: metrics, health, who asked for what, what it is at, and its configuration read again.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tonic::Code;
use wharf_e2e::{Daemon, Options, container, cri, eventually};
use wharf_proto::health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const ADDRESS: &str = "127.0.0.1:9183";

async fn metrics(daemon: &Daemon, path: &str) -> String {
    let url = format!("http://{ADDRESS}{path}");
    daemon
        .lab
        .output("busybox", &["wget", "-qO-", &url])
        .await
        .unwrap_or_else(|error| error.to_string())
}

#[tokio::test]
async fn metrics_tell_of_calls_stages_pods_and_the_process() {
    let tables = format!("[metrics]\naddress = '{ADDRESS}'\n");
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    let (pod, id) = daemon.running("counted", "exit 3").await;
    daemon.cri.exited(&id).await.unwrap();
    let missing = daemon.cri.start("0123").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let mut text = String::new();
    eventually("the end of the container is counted", async || {
        text = metrics(&daemon, "/metrics").await;
        text.contains("wharf_container_exits_total{reason=\"Error\"} 1")
    })
    .await;
    for line in [
        "wharf_rpc_total{method=\"RunPodSandbox\",code=\"OK\"} 1",
        "wharf_rpc_total{method=\"StartContainer\",code=\"NotFound\"} 1",
        "wharf_rpc_duration_seconds_count{method=\"RunPodSandbox\"} 1",
        "wharf_operation_stage_duration_seconds_count{operation=\"RunPodSandbox\",stage=\"network\"} 1",
        "wharf_image_pulls_total{result=\"success\"} 1",
        "wharf_pods{state=\"ready\"} 1",
        "wharf_containers{state=\"exited\"} 1",
        "wharf_network_ready 1",
        "process_resident_memory_bytes ",
        "# EOF",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(metrics(&daemon, "/other").await.contains("404"));
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn health_is_what_kubelet_would_find() {
    let daemon = Daemon::start().await;
    let mut health = HealthClient::new(cri::channel(&daemon.socket).await.unwrap());
    let ask = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    for service in ["", "runtime.v1.RuntimeService", "runtime.v1.ImageService"] {
        let told = health.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(told.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(ask("no.Such")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    // A watcher does not keep the daemon from ending.
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    daemon.finish().await;
}

#[tokio::test]
async fn who_asked_for_what_is_noted_and_the_file_can_be_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let tables = format!("[audit]\nfile = '{}'\n", file.display());
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    let (pod, _) = daemon.running("noted", "sleep 1000").await;
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of = |method: &str| lines().into_iter().find(|line| line["method"] == method);
    eventually("the start is noted", async || of("StartContainer").is_some()).await;
    let run = of("RunPodSandbox").unwrap();
    assert_eq!(
        (run["object"]["name"].as_str(), run["uid"].as_u64()),
        (Some("noted"), Some(0)),
        "{run}"
    );
    assert_eq!(run["code"], 0);
    let create = of("CreateContainer").unwrap();
    assert_eq!(
        create["object"]["podSandboxId"].as_str(),
        Some(pod.as_str()),
        "{create}"
    );
    daemon.cri.pods(None).await.unwrap();
    assert!(of("ListPodSandbox").is_none(), "what only reads is not noted");
    let refused = daemon.cri.stop("nothing", 0).await;
    eventually("a refusal is noted too", async || of("StopContainer").is_some()).await;
    let code = refused.err().map_or(0, |status| status.code() as u64);
    assert_eq!(of("StopContainer").unwrap()["code"].as_u64(), Some(code));

    std::fs::rename(&file, dir.path().join("old")).unwrap();
    kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
    eventually("the file is there again", async || file.exists()).await;
    daemon.gone(&pod).await;
    eventually("the removal is in the new file", async || {
        of("RemovePodSandbox").is_some()
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn the_configuration_is_read_again_and_what_is_wrong_changes_nothing() {
    let daemon = Daemon::start().await;
    let before = std::fs::read_to_string(&daemon.config).unwrap();
    let hang_up = || kill(Pid::from_raw(daemon.pid()), Signal::SIGHUP).unwrap();
    let with_env = before.clone() + "\n[containers]\nenv = ['RELOADED=yes']\n[streaming]\nport = 10999\n";
    std::fs::write(&daemon.config, with_env).unwrap();
    hang_up();
    eventually("the daemon says what has changed", async || {
        let log = daemon.log();
        let told = log
            .lines()
            .find(|line| line.contains("the configuration was read again"));
        told.is_some_and(|told| told.contains("containers.env") && told.contains("streaming.port"))
    })
    .await;
    let (pod, id) = daemon.running("reloaded", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&id, "echo $RELOADED").await.unwrap(), "yes\n");

    std::fs::write(&daemon.config, before.clone() + "\n[containers]\nenv = 7\n").unwrap();
    hang_up();
    eventually("the mistake is told", async || daemon.log().contains("changes nothing")).await;
    let config = daemon.pod("still");
    let other = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(
            &other,
            &config,
            &container("main", &daemon.busybox().await, "sleep 1000"),
        )
        .await;
    assert_eq!(daemon.cri.shell(&id, "echo $RELOADED").await.unwrap(), "yes\n");
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn debug_tells_operations_sizes_and_threads() {
    let daemon = Daemon::start().await;
    daemon.arm("run.attached", "hang").unwrap();
    let (cri, config) = (daemon.cri.clone(), daemon.pod("held"));
    let run = tokio::spawn(async move { cri.run_pod(&config, "").await });
    eventually("the pod waits", async || daemon.reached("run.attached")).await;
    let output = daemon.wharf(&["debug"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "RunPodSandbox",
        "held",
        "network",
        "wharf-cri",
        "memory resident",
        "file descriptors",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    daemon.disarm("run.attached");
    run.await.unwrap().unwrap();
    daemon.finish().await;
}
