//! Exec and attach, and the URLs by which clients come.

use std::time::{Duration, Instant};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::streams::{Protocol, REMOTE, Session, Want, upgrade};
use wharf_e2e::{Daemon, eventually};
use wharf_proto::cri as pb;

use crate::on_each_handler;

const SPDY: Protocol = Protocol::Spdy("v4.channel.k8s.io");
const WEBSOCKET: Protocol = Protocol::WebSocket("v5.channel.k8s.io");

#[tokio::test]
async fn output_errors_and_exit_code_come_back_by_every_protocol() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        for protocol in REMOTE {
            let command = ["sh", "-c", "echo out; echo err >&2; exit 42"];
            let session = daemon.exec_session(protocol, &id, &command, Want::OUTPUT).await;
            let finished = session.finish().await;
            assert_eq!(finished.stdout, b"out\n", "{protocol:?}");
            assert_eq!(finished.stderr, b"err\n", "{protocol:?}");
            assert_eq!(finished.code(), 42, "{protocol:?}");
            let session = daemon.exec_session(protocol, &id, &["true"], Want::OUTPUT).await;
            assert_eq!(session.finish().await.code(), 0, "{protocol:?}");
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn input_comes_to_the_command_and_its_end_as_well() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in REMOTE {
        let command: &[&str] = if protocol.half_closes() {
            &["sh", "-c", "cat; echo done"]
        } else {
            &["sh", "-c", "read line; echo $line; echo done"]
        };
        let mut session = daemon.exec_session(protocol, &id, command, Want::ALL).await;
        session.write(b"hello\n").await.unwrap();
        session.until("hello\n").await;
        if protocol.half_closes() {
            session.end_input().await.unwrap();
        }
        let finished = session.finish().await;
        assert_eq!(finished.text(), "hello\ndone\n", "{protocol:?}");
        assert_eq!(finished.code(), 0, "{protocol:?}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn much_data_goes_both_ways_unharmed() {
    const SIZE: usize = 24 << 20;
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in [SPDY, WEBSOCKET] {
        let command = ["sh", "-c", "tee /tmp/copy; sync; md5sum /tmp/copy >&2"];
        let mut session = daemon.exec_session(protocol, &id, &command, Want::ALL).await;
        let block: Vec<u8> = (0..(1 << 20)).map(|n: u32| (n % 251) as u8).collect();
        // The command's output must be read while it is written to, or both sides wait.
        let mut came = 0;
        for _ in 0..SIZE / block.len() {
            session.write(&block).await.unwrap();
            came += session.count(block.len()).await;
        }
        session.end_input().await.unwrap();
        assert_eq!(came, SIZE, "{protocol:?}");
        let finished = session.finish().await;
        assert!(finished.stdout.is_empty(), "{protocol:?}");
        let sum = String::from_utf8_lossy(&finished.stderr).into_owned();
        let again = daemon
            .cri
            .shell(&id, "md5sum /tmp/copy; wc -c < /tmp/copy")
            .await
            .unwrap();
        assert_eq!(again, format!("{sum}{SIZE}\n"), "{protocol:?}");
        assert_eq!(finished.code(), 0);
    }
    daemon.finish().await;
}

#[tokio::test]
async fn output_that_comes_with_the_end_is_not_lost() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in REMOTE {
        let command = ["sh", "-c", "head -c 3000000 /dev/zero; exit 7"];
        let session = daemon.exec_session(protocol, &id, &command, Want::OUTPUT).await;
        let finished = session.finish().await;
        assert_eq!((finished.stdout.len(), finished.code()), (3_000_000, 7), "{protocol:?}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn an_exec_does_not_wait_for_a_background_child_that_holds_its_output() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let begin = Instant::now();
    let command = ["sh", "-c", "sleep 600 & echo done"];
    let session = daemon.exec_session(SPDY, &id, &command, Want::OUTPUT).await;
    let finished = session.finish().await;
    assert_eq!((finished.text().as_str(), finished.code()), ("done\n", 0));
    assert!(begin.elapsed() < Duration::from_secs(15), "took {:?}", begin.elapsed());
    daemon.finish().await;
}

#[tokio::test]
async fn a_command_that_can_not_run_is_told_on_the_error_stream() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in REMOTE {
        let session = daemon
            .exec_session(protocol, &id, &["/no/such/command"], Want::OUTPUT)
            .await;
        let status = session.finish().await.status;
        assert!(status.contains("/no/such/command"), "{protocol:?}: {status}");
        assert_eq!(status.contains("\"InternalError\""), protocol.tells_json(), "{status}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_follows_it() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        for protocol in REMOTE.into_iter().filter(|protocol| protocol.resizes()) {
            let mut session = daemon.exec_session(protocol, &id, &["sh"], Want::TTY).await;
            session.resize(0, 0).await.unwrap();
            session.resize(101, 37).await.unwrap();
            session
                .write(b"until stty size | grep '37 101'; do :; done; tty\n")
                .await
                .unwrap();
            session.until("\r\n37 101\r\n").await;
            session.until("/dev/pts/").await;
            session.resize(0, 50).await.unwrap();
            session.resize(90, 20).await.unwrap();
            session
                .write(b"until stty size | grep '20 90'; do :; done; exit 5\n")
                .await
                .unwrap();
            session.until("\r\n20 90\r\n").await;
            assert_eq!(session.finish().await.code(), 5, "{protocol:?}");
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_its_command() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in REMOTE {
        let command = ["sh", "-c", "sleep 4321 & echo ready; sleep 1234"];
        let mut session = daemon.exec_session(protocol, &id, &command, Want::ALL).await;
        session.until("ready").await;
        session.break_off();
        eventually("the command and its child are gone", async || {
            let processes = daemon.cri.shell(&id, "ps").await.unwrap();
            !processes.contains("sleep 1234") && !processes.contains("sleep 4321")
        })
        .await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_client_that_is_not_read_by_its_command_is_noticed_when_it_goes() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in [SPDY, WEBSOCKET] {
        let command = ["sh", "-c", "echo ready; exec sleep 1234"];
        let mut session = daemon.exec_session(protocol, &id, &command, Want::ALL).await;
        session.until("ready").await;
        let block = vec![0; 64 << 10];
        // Until everything between the client and the command is full.
        while let Ok(sent) = tokio::time::timeout(Duration::from_millis(500), session.write(&block)).await {
            sent.unwrap();
        }
        session.break_off();
        eventually("the command is gone", async || {
            !daemon.cri.shell(&id, "ps").await.unwrap().contains("sleep 1234")
        })
        .await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_21_a_url_is_absolute_and_good_once() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let session = Session::open(&daemon.lab, SPDY, &url, Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0);
    for protocol in [SPDY, WEBSOCKET] {
        let again = Session::open(&daemon.lab, protocol, &url, Want::OUTPUT).await;
        assert!(again.is_err(), "{protocol:?}: a second use");
    }
    let get = async |url: &str| upgrade(&daemon.lab, "GET", url, &[]).await.unwrap().1.code;
    let base = url.rsplit_once('/').unwrap().0;
    assert_eq!(get(&format!("{base}/0123456789abcdef0123456789abcdef")).await, 404);
    assert_eq!(get(&base.replace("/exec", "/")).await, 404, "no path at all");
    let forward = daemon.forward_url(&pod, &[]).await.unwrap();
    assert_eq!(get(&forward.replace("portforward", "exec")).await, 404);
    assert_eq!(get(&forward).await, 404, "a wrong use is a use");
    let forward = daemon.forward_url(&pod, &[]).await.unwrap();
    assert_eq!(get(&forward).await, 400, "no upgrade");
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let answer = upgrade(&daemon.lab, "DELETE", &url, &[]).await.unwrap().1;
    assert_eq!(answer.code, 405);
    let unknown = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v9.channel.k8s.io"),
    ];
    let answer = upgrade(&daemon.lab, "POST", &url, &unknown).await.unwrap().1;
    assert_eq!(answer.code, 403);
    assert_eq!(
        answer.header("x-accepted-stream-protocol-versions"),
        Some("v4.channel.k8s.io")
    );
    daemon.finish().await;
}

#[tokio::test]
async fn a_url_expires_after_a_minute() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    let late = Session::open(&daemon.lab, SPDY, &url, Want::OUTPUT).await;
    assert!(late.is_err(), "the URL is a minute old");
    daemon.finish().await;
}

#[tokio::test]
async fn the_thousand_and_first_outstanding_url_is_refused() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let mut urls = Vec::new();
    for _ in 0..1000 {
        urls.push(daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap());
    }
    let refused = daemon.exec_url(&id, &["true"], Want::OUTPUT).await;
    assert_eq!(code(refused), Code::ResourceExhausted);
    let session = Session::open(&daemon.lab, SPDY, &urls[0], Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0);
    daemon
        .exec_url(&id, &["true"], Want::OUTPUT)
        .await
        .expect("one was used");
    daemon.finish().await;
}

#[tokio::test]
async fn calls_that_make_no_sense_are_refused_at_once() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let both = Want {
        stderr: true,
        ..Want::TTY
    };
    let call = async |id: &str, command: &[&str], want| code(daemon.exec_url(id, command, want).await);
    assert_eq!(call("", &["true"], Want::OUTPUT).await, Code::InvalidArgument);
    assert_eq!(call(&id, &[], Want::OUTPUT).await, Code::InvalidArgument);
    assert_eq!(call(&id, &["true"], both).await, Code::InvalidArgument);
    assert_eq!(call(&id, &["true"], Want::default()).await, Code::InvalidArgument);
    assert_eq!(call("nobody", &["true"], Want::OUTPUT).await, Code::NotFound);
    let call = async |id: &str, want| code(daemon.attach_url(id, want).await);
    assert_eq!(call("", Want::OUTPUT).await, Code::InvalidArgument);
    assert_eq!(call(&id, both).await, Code::InvalidArgument);
    assert_eq!(call(&id, Want::default()).await, Code::InvalidArgument);
    assert_eq!(call("nobody", Want::OUTPUT).await, Code::NotFound);
    assert_eq!(code(daemon.forward_url("", &[]).await), Code::InvalidArgument);
    assert_eq!(code(daemon.forward_url("nobody", &[]).await), Code::NotFound);
    for port in [0, -1, 65536] {
        assert_eq!(code(daemon.forward_url(&id, &[port]).await), Code::InvalidArgument);
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_not_waited_for() {
    let daemon = Daemon::with(wharf_e2e::Options {
        tables: "[streaming]\ncreation_timeout_secs = 1".into(),
        ..Default::default()
    })
    .await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["sleep", "1234"], Want::OUTPUT).await.unwrap();
    let missing = Want {
        stderr: false,
        ..Want::OUTPUT
    };
    let session = Session::open(&daemon.lab, SPDY, &url, missing).await.unwrap();
    let finished = session.finish().await;
    assert!(finished.status.is_empty() && finished.stdout.is_empty(), "{finished:?}");
    assert!(!daemon.cri.shell(&id, "ps").await.unwrap().contains("sleep 1234"));
    daemon.finish().await;
}

#[tokio::test]
async fn an_idle_session_ends() {
    let daemon = Daemon::with(wharf_e2e::Options {
        tables: "[streaming]\nidle_timeout_secs = 1".into(),
        ..Default::default()
    })
    .await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    for protocol in [SPDY, WEBSOCKET] {
        let session = daemon
            .exec_session(protocol, &id, &["sleep", "1234"], Want::OUTPUT)
            .await;
        let finished = session.finish().await;
        assert!(finished.status.contains("nothing has moved"), "{finished:?}");
    }
    eventually("the commands are gone", async || {
        !daemon.cri.shell(&id, "ps").await.unwrap().contains("sleep 1234")
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_session_is_told_that_the_daemon_ends() {
    let mut daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let mut sessions = Vec::new();
    for protocol in [SPDY, WEBSOCKET] {
        let command = ["sh", "-c", "echo ready; sleep 1234"];
        let mut session = daemon.exec_session(protocol, &id, &command, Want::OUTPUT).await;
        session.until("ready").await;
        sessions.push(session);
    }
    let code = daemon.end(nix::sys::signal::Signal::SIGTERM).await.unwrap();
    assert_eq!(code, Some(0));
    for session in sessions {
        let finished = session.finish().await;
        assert!(finished.status.contains("wharf is ending"), "{finished:?}");
    }
    daemon.start_again().await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    daemon.finish().await;
}
