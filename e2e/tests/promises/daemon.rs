//! The daemon itself: start, configuration, readiness, foreign clients.

use std::process::Stdio;

use nix::sys::signal::Signal;
use wharf_e2e::lab::program;
use wharf_e2e::{Daemon, Options, http2};

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused_with_a_clear_message() {
    let daemon = Daemon::start().await;
    let mut second = daemon.lab.command(program("wharf").unwrap());
    second
        .args(["serve", "--config"])
        .arg(&daemon.config)
        .stdin(Stdio::null());
    let output = tokio::time::timeout(wharf_e2e::PATIENCE, second.output())
        .await
        .expect("it ends at once")
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&*daemon.state_dir.to_string_lossy()), "{said}");
    daemon.cri.pods(None).await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_typo_in_the_configuration_is_refused_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wharf.toml");
    std::fs::write(&file, "state_dir = '/tmp/x'\n\n[log]\nlevle = 'debug'\n").unwrap();
    let output = std::process::Command::new(program("wharf").unwrap())
        .args(["serve", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(&format!("{}:4", file.display())) && said.contains("levle"),
        "{said}"
    );
}

#[tokio::test]
async fn someone_who_is_not_root_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("wharf");
    std::fs::copy(program("wharf").unwrap(), &copy).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let output = tokio::process::Command::new(&copy)
        .arg("serve")
        .uid(65534)
        .gid(65534)
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("root"), "{said}");
}

#[tokio::test]
async fn a_go_client_may_send_the_sockets_path_as_authority() {
    let daemon = Daemon::start().await;
    let socket = daemon.socket.clone();
    let encoded = socket.to_string_lossy().replace('/', "%2F");
    // The last is how versions of some years ago send it.
    let plain = socket.to_string_lossy().into_owned();
    for authority in ["localhost", encoded.as_str(), plain.as_str()] {
        let (socket, authority) = (socket.clone(), authority.to_owned());
        let call = move || http2::call_empty(&socket, &authority, "/runtime.v1.RuntimeService/Version");
        let answer = tokio::task::spawn_blocking(call).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("wharf"));
    }
    daemon.finish().await;
}

#[tokio::test]
async fn the_socket_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start().await;
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
    daemon.finish().await;
}

#[tokio::test]
async fn logs_can_be_json() {
    let daemon = Daemon::with(Options {
        json_log: true,
        ..Options::default()
    })
    .await;
    let (_, _) = daemon.running("json", "sleep 1000").await;
    let log = daemon.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let mut daemon = Daemon::start().await;
    daemon.end(Signal::SIGKILL).await.unwrap();
    assert!(daemon.socket.exists());
    daemon.start_again().await.unwrap();
    daemon.cri.pods(None).await.unwrap();
    daemon.finish().await;
}
