//! The `wharf` command as people use it.

use std::process::Output;

use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, eventually};

pub(crate) async fn wharf(daemon: &Daemon, args: &[&str]) -> Output {
    let run = daemon.wharf(args).output();
    tokio::time::timeout(wharf_e2e::PATIENCE * 2, run)
        .await
        .unwrap_or_else(|_| panic!("wharf {args:?} does not end"))
        .unwrap()
}

/// Standard output of a command that must succeed.
pub(crate) async fn ok(daemon: &Daemon, args: &[&str]) -> String {
    let output = wharf(daemon, args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wharf {args:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn json(daemon: &Daemon, args: &[&str]) -> serde_json::Value {
    let text = ok(daemon, args).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("wharf {args:?}: {error}: {text}"))
}

#[tokio::test]
async fn the_tour_of_the_readme_works() {
    let daemon = Daemon::start().await;
    let image = reference("busybox:latest");
    ok(&daemon, &["pull", &image]).await;
    assert!(ok(&daemon, &["images"]).await.contains("busybox"));
    let line = "echo hello from $NAME; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let logs = daemon.logs.to_string_lossy().into_owned();
    let id = ok(
        &daemon,
        &[
            "run",
            "-d",
            "--log-dir",
            &logs,
            "--name",
            "web",
            "-e",
            "NAME=me",
            &image,
            "sh",
            "-c",
            line,
        ],
    )
    .await;
    assert_eq!(id.trim().len(), 64, "{id}");
    for list in ["ps", "pods"] {
        let table = ok(&daemon, &[list]).await;
        assert!(table.contains("web"), "{table}");
    }
    eventually("the line is logged", async || {
        ok(&daemon, &["logs", "web"]).await == "hello from me\n"
    })
    .await;
    assert_eq!(ok(&daemon, &["exec", "web", "hostname"]).await, "web\n");
    assert_eq!(ok(&daemon, &["exec", &id[..12], "echo", "by id"]).await, "by id\n");
    let shown = json(&daemon, &["inspect", "web"]).await.to_string();
    assert!(shown.contains(id.trim()), "{shown}");
    assert!(
        json(&daemon, &["ps", "-o", "json"])
            .await
            .to_string()
            .contains(id.trim())
    );
    assert!(json(&daemon, &["pods", "-o", "json"]).await.to_string().contains("web"));
    assert!(
        json(&daemon, &["images", "-o", "json"])
            .await
            .to_string()
            .contains("busybox")
    );
    // A person's pod is not kubelet's.
    assert!(daemon.cri.pods(None).await.unwrap().is_empty(), "kubelet would kill it");
    ok(&daemon, &["stop", "web"]).await;
    assert!(!ok(&daemon, &["ps"]).await.contains("web"));
    assert!(ok(&daemon, &["ps", "-a"]).await.contains("web"));
    ok(&daemon, &["rm", "web"]).await;
    assert!(!ok(&daemon, &["ps", "-a"]).await.contains("web"));
    ok(&daemon, &["rmi", &image]).await;
    assert!(daemon.cri.image_list().await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn run_passes_output_and_exit_code_on_and_pulls_what_is_missing() {
    let daemon = Daemon::start().await;
    let image = reference("busybox:latest");
    let output = wharf(
        &daemon,
        &["run", "--rm", &image, "sh", "-c", "echo out; echo err >&2; exit 42"],
    )
    .await;
    assert_eq!(
        output.status.code(),
        Some(42),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err\n"));
    assert_eq!(ok(&daemon, &["ps", "-aq"]).await, "", "--rm left the container");
    daemon.finish().await;
}

#[tokio::test]
async fn flags_of_run_arrive_in_the_container() {
    let daemon = Daemon::start().await;
    let image = reference("busybox:latest");
    daemon.busybox().await;
    let shared = daemon.dir().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let volume = format!("{}:/shared", shared.display());
    let output = ok(
        &daemon,
        &[
            "run",
            "--rm",
            "-e",
            "A=1",
            "-v",
            &volume,
            "-w",
            "/work",
            "-u",
            "app",
            &image,
            "sh",
            "-c",
            "echo $A $(pwd) $(id -u):$(id -g)",
        ],
    )
    .await;
    assert_eq!(output, "1 /work 1002:1003\n");
    daemon.finish().await;
}

#[tokio::test]
async fn exec_passes_the_exit_code_on() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("cri", "sleep 1000").await;
    let output = wharf(&daemon, &["exec", &id, "sh", "-c", "exit 9"]).await;
    assert_eq!(output.status.code(), Some(9));
    daemon.finish().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_in_one_line() {
    let daemon = Daemon::start().await;
    for args in [
        &["logs", "nobody"][..],
        &["exec", "nobody", "true"],
        &["inspect", "nobody"],
        &["stop", "nobody"],
    ] {
        let output = wharf(&daemon, args).await;
        assert!(!output.status.success(), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("nobody") && said.lines().count() <= 3, "{args:?}: {said}");
    }
    let output = wharf(&daemon, &["run", "--rm", &reference("no-such:latest"), "true"]).await;
    assert_eq!(output.status.code(), Some(125), "as docker says it");
    let output = wharf(&daemon, &["run", "--rm", &daemon.busybox().await, "/no/such/command"]).await;
    assert_eq!(
        output.status.code(),
        Some(127),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    daemon.finish().await;
}

#[tokio::test]
async fn info_version_doctor_and_completions_answer() {
    let daemon = Daemon::start().await;
    assert!(ok(&daemon, &["version"]).await.contains("CRI v1"));
    ok(&daemon, &["info"]).await;
    let doctor = wharf(&daemon, &["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("overlay"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(&daemon, &["completions", shell]).await.contains("wharf"));
    }
    daemon.finish().await;
}

#[tokio::test]
async fn logs_follow_until_the_container_ends() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let logs = daemon.logs.to_string_lossy().into_owned();
    let line = "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done";
    ok(
        &daemon,
        &[
            "run",
            "-d",
            "--log-dir",
            &logs,
            "--name",
            "five",
            &image,
            "sh",
            "-c",
            line,
        ],
    )
    .await;
    assert_eq!(ok(&daemon, &["logs", "-f", "five"]).await, "1\n2\n3\n4\n5\n");
    assert_eq!(ok(&daemon, &["logs", "--tail", "2", "five"]).await, "4\n5\n");
    let stamped = ok(&daemon, &["logs", "-t", "--tail", "1", "five"]).await;
    assert!(stamped.starts_with("20") && stamped.ends_with(" 5\n"), "{stamped}");
    ok(&daemon, &["rm", "-f", "five"]).await;
    daemon.finish().await;
}
