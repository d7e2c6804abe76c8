//! Attach.

use nix::sys::signal::Signal;
use wharf_e2e::cri::code;
use wharf_e2e::streams::{Protocol, REMOTE, Want};
use wharf_e2e::{Daemon, eventually};
use wharf_proto::cri as pb;

use crate::on_each_handler;

const SPDY: Protocol = Protocol::Spdy("v4.channel.k8s.io");
const WEBSOCKET: Protocol = Protocol::WebSocket("v5.channel.k8s.io");

async fn started(daemon: &Daemon, name: &str, line: &str, change: impl FnOnce(&mut pb::ContainerConfig)) -> String {
    let config = daemon.pod(name);
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut container = wharf_e2e::container("main", &daemon.busybox().await, line);
    change(&mut container);
    daemon.started(&pod, &config, &container).await
}

#[tokio::test]
async fn an_attached_client_sees_what_comes_and_not_what_was() {
    on_each_handler(async |daemon| {
        let line =
            "echo history; while [ ! -e /go ]; do sleep 0.1; done; while :; do echo out; echo err >&2; sleep 0.2; done";
        let id = started(&daemon, "attach", line, |_| {}).await;
        let mut first = daemon.attach_session(SPDY, &id, Want::OUTPUT).await;
        let mut second = daemon.attach_session(WEBSOCKET, &id, Want::OUTPUT).await;
        // Both must be attached before it goes on.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        daemon.cri.shell(&id, "touch /go").await.unwrap();
        for session in [&mut first, &mut second] {
            let text = session.until("out\n").await;
            assert!(!text.contains("history"), "{text}");
        }
        first.break_off();
        let before = second.until("out\n").await.len();
        second.until(&"out\n".repeat(before / 4 + 2)).await;
        assert!(!second.stderr().contains("out"), "streams are apart");
        daemon.cri.stop(&id, 0).await.unwrap();
        let finished = second.finish().await;
        assert_eq!(finished.code(), 0, "an attach that ends is no failure: {finished:?}");
        assert!(String::from_utf8_lossy(&finished.stderr).contains("err\n"));
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn input_reaches_the_container_and_stdin_once_ends_with_its_client() {
    let daemon = Daemon::start().await;
    for protocol in REMOTE {
        let id = started(&daemon, "once", "cat; echo done; sleep 1", |container| {
            container.stdin = true;
            container.stdin_once = true;
        })
        .await;
        let mut session = daemon.attach_session(protocol, &id, Want::ALL).await;
        session.write(b"hello\n").await.unwrap();
        session.until("hello\n").await;
        if protocol.half_closes() {
            session.end_input().await.unwrap();
            session.until("done\n").await;
        } else {
            session.break_off();
        }
        let status = daemon.cri.exited(&id).await.unwrap();
        assert_eq!(status.exit_code, 0, "{protocol:?}: {status:?}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_terminal_is_shared_and_resized() {
    let daemon = Daemon::start().await;
    let id = started(&daemon, "tty", "exec sh", |container| {
        container.stdin = true;
        container.tty = true;
    })
    .await;
    for protocol in [SPDY, WEBSOCKET] {
        let mut session = daemon.attach_session(protocol, &id, Want::TTY).await;
        session.resize(99, 33).await.unwrap();
        session
            .write(b"until stty size | grep '33 99'; do :; done\n")
            .await
            .unwrap();
        session.until("\r\n33 99\r\n").await;
        session
            .write(b"stty size 2>/dev/null; stty rows 1 cols 1; echo ne''xt\n")
            .await
            .unwrap();
        session.until("next").await;
        session.break_off();
    }
    let mut session = daemon.attach_session(SPDY, &id, Want::TTY).await;
    session.write(b"exit 3\n").await.unwrap();
    session.finish().await;
    assert_eq!(daemon.cri.exited(&id).await.unwrap().exit_code, 3);
    eventually("attach to what has ended is refused", async || {
        daemon.attach_url(&id, Want::TTY).await.is_err()
    })
    .await;
    let _ = code(daemon.attach_url(&id, Want::TTY).await);
    daemon.finish().await;
}

#[tokio::test]
async fn a_client_of_a_daemon_that_restarts_ends_and_can_come_back() {
    let mut daemon = Daemon::start().await;
    let line = "while read line; do echo got $line; done; echo end; exit 4";
    let id = started(&daemon, "again", line, |container| container.stdin = true).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut sessions = Vec::new();
        for protocol in [SPDY, WEBSOCKET] {
            let mut session = daemon.attach_session(protocol, &id, Want::ALL).await;
            session.write(b"before\n").await.unwrap();
            session.until("got before\n").await;
            sessions.push(session);
        }
        daemon.end(signal).await.unwrap();
        for session in sessions {
            // The end of the connection, which `finish` awaits, comes at once.
            let finished = session.finish().await;
            let told = finished.status.contains("wharf is ending");
            assert_eq!(told, signal == Signal::SIGTERM, "{finished:?}");
        }
        daemon.start_again().await.unwrap();
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    }
    let mut session = daemon.attach_session(WEBSOCKET, &id, Want::ALL).await;
    session.write(b"after\n").await.unwrap();
    session.until("got after\n").await;
    daemon.cri.stop(&id, 0).await.unwrap();
    session.finish().await;
    daemon.finish().await;
}

#[tokio::test]
async fn stdin_once_waits_for_its_client_over_a_restart_and_ends_with_it() {
    let mut daemon = Daemon::start().await;
    let id = started(&daemon, "once", "cat; exit 6", |container| {
        container.stdin = true;
        container.stdin_once = true;
    })
    .await;
    daemon.crash().await;
    let mut session = daemon.attach_session(SPDY, &id, Want::ALL).await;
    session.write(b"first\n").await.unwrap();
    session.until("first\n").await;
    // The client goes with the daemon, and stdin with the client.
    daemon.end(Signal::SIGKILL).await.unwrap();
    session.finish().await;
    daemon.start_again().await.unwrap();
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!(status.exit_code, 6, "{status:?}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_stops_neither_the_container_nor_another_client() {
    // More than what pipes, sockets and the daemon hold together.
    const MUCH: usize = 32 << 20;
    let daemon = Daemon::start().await;
    let line =
        "while [ ! -e /go ]; do sleep 0.1; done; yes 0123456789012345678901234567890123456789012345678901234567890";
    let id = started(&daemon, "stuck", line, |_| {}).await;
    let stuck = daemon.attach_session(SPDY, &id, Want::OUTPUT).await;
    let mut reader = daemon.attach_session(WEBSOCKET, &id, Want::OUTPUT).await;
    daemon.cri.shell(&id, "touch /go").await.unwrap();
    assert!(reader.count(MUCH).await >= MUCH);
    let finished = stuck.finish().await;
    assert!(finished.status.contains("did not read"), "{}", finished.status);
    assert!(finished.stdout.len() < MUCH, "{}", finished.stdout.len());
    assert!(reader.count(1 << 20).await >= 1 << 20, "it goes on");
    let log = daemon.cri.status(&id).await.unwrap().log_path;
    assert!(std::fs::metadata(log).unwrap().len() as usize > MUCH);
    daemon.cri.stop(&id, 0).await.unwrap();
    reader.break_off();
    daemon.finish().await;
}
