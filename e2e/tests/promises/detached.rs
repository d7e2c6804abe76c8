//! `wharf run -d --rm`: containers that nobody waits for, and that go when they have ended.

use std::path::Path;

use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, eventually};

/// Standard output of a command, and its exit code.
async fn wharf(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String) {
    let run = tokio::time::timeout(wharf_e2e::PATIENCE * 2, daemon.wharf(args).output()).await;
    let output = run.unwrap_or_else(|_| panic!("wharf {args:?} does not end")).unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Runs a shell line in the background and returns the container's id and its log.
async fn run(daemon: &Daemon, name: &str, more: &[&str], line: &str) -> (String, String) {
    let image = reference("busybox:latest");
    let args = [
        &["run", "-d", "--rm", "--name", name],
        more,
        &[&image, "sh", "-c", line],
    ]
    .concat();
    let (code, id) = wharf(daemon, &args).await;
    assert_eq!(code, Some(0));
    let log = match daemon.cri.status(&id).await {
        Ok(status) => status.log_path,
        Err(_) => String::new(),
    };
    (id, log)
}

async fn is_gone(daemon: &Daemon, name: &str) -> bool {
    !wharf(daemon, &["ps", "-a"]).await.1.contains(name) && !wharf(daemon, &["pods"]).await.1.contains(name)
}

#[tokio::test]
async fn a_container_in_the_background_is_removed_when_it_has_ended() {
    let mut daemon = Daemon::start().await;
    daemon.pull("busybox:latest").await;
    run(&daemon, "short", &[], "exit 3").await;
    eventually("the short one is gone", async || is_gone(&daemon, "short").await).await;

    let (_, log) = run(&daemon, "stopped", &[], "echo up; exec sleep 1000").await;
    assert!(Path::new(&log).exists(), "{log}");
    let (code, text) = wharf(&daemon, &["stop", "-t", "0", "stopped"]).await;
    assert_eq!(code, Some(0), "{text}");
    eventually("the stopped one is gone", async || is_gone(&daemon, "stopped").await).await;
    eventually("and its log", async || !Path::new(&log).parent().unwrap().exists()).await;

    // Who is attached learns how it ended, though it is gone then.
    run(&daemon, "attached", &["-i"], "read code; exit $code").await;
    let mut attach = daemon.wharf(&["attach", "attached"]);
    let mut attach = attach.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = attach.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"7\n").await.unwrap();
    let code = tokio::time::timeout(wharf_e2e::PATIENCE, attach.wait())
        .await
        .expect("it ends");
    assert_eq!(code.unwrap().code(), Some(7));
    eventually("the attached one is gone", async || is_gone(&daemon, "attached").await).await;

    // One ends while the daemon is away; a log in a directory of one's own stays.
    let logs = daemon.logs.join("own").to_string_lossy().into_owned();
    let line = "trap 'exit 0' TERM; while [ ! -e go ]; do sleep 0.1; done";
    let (_, log) = run(
        &daemon,
        "away",
        &[
            "--log-dir",
            &logs,
            "-v",
            &format!("{}:/mnt", daemon.dir().display()),
            "-w",
            "/mnt",
        ],
        line,
    )
    .await;
    daemon.end(nix::sys::signal::Signal::SIGKILL).await.unwrap();
    std::fs::write(daemon.dir().join("go"), "").unwrap();
    daemon.start_again().await.unwrap();
    eventually("the one that ended alone is gone", async || {
        is_gone(&daemon, "away").await
    })
    .await;
    assert!(Path::new(&log).exists(), "{log} was a person's own choice");
    let (code, _) = wharf(
        &daemon,
        &["run", "-d", "--rm", &reference("busybox:latest"), "/no/such"],
    )
    .await;
    assert_eq!(code, Some(127));
    eventually("what could not start is gone", async || {
        wharf(&daemon, &["ps", "-a", "-q"]).await.1.is_empty()
    })
    .await;
    daemon.finish().await;
}
