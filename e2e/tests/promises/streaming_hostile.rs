//! Hostile clients: they harm nobody but themselves.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wharf_e2e::streams::spdy::{Frame, Receiver, Sender};
use wharf_e2e::streams::{Protocol, Session, Want, connect, split, upgrade};
use wharf_e2e::{Daemon, Options, PATIENCE, eventually, own_memory};

const SPDY: Protocol = Protocol::Spdy("v4.channel.k8s.io");

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A connection that has been upgraded, to an exec or a port-forward.
async fn upgraded(daemon: &Daemon, url: &str, protocol: &str) -> TcpStream {
    let websocket = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    let spdy = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", protocol),
    ];
    let spdies = ["v4.channel.k8s.io", "portforward.k8s.io"];
    let (stream, answer) = match spdies.contains(&protocol) {
        true => upgrade(&daemon.lab, "POST", url, &spdy).await.unwrap(),
        false => upgrade(&daemon.lab, "GET", url, &websocket).await.unwrap(),
    };
    assert_eq!(answer.code, 101, "{answer:?}");
    stream
}

/// Everything until the server closes.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin), what: &str) -> Vec<u8> {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(2 * PATIENCE, stream.read_to_end(&mut rest)).await;
    let _ = end.unwrap_or_else(|_| panic!("{what}: the daemon closes"));
    rest
}

async fn still_serves(daemon: &Daemon, id: &str) {
    let session = daemon
        .exec_session(SPDY, id, &["sh", "-c", "exit 3"], Want::OUTPUT)
        .await;
    assert_eq!(session.finish().await.code(), 3);
}

#[tokio::test]
async fn half_open_connections_hold_nobody_up_and_end() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let before = descriptors(daemon.pid());
    let mut open = Vec::new();
    // More than there are places for.
    for index in 0..300 {
        let mut stream = connect(&daemon.lab, split(&url).0).await.unwrap();
        if index % 2 == 0 {
            stream.write_all(b"GET /exec/").await.unwrap();
        }
        open.push(stream);
    }
    let begin = Instant::now();
    let session = Session::open(&daemon.lab, SPDY, &url, Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0);
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "it waited {:?}",
        begin.elapsed()
    );
    for mut stream in open {
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
        let _ = end.await.expect("the daemon closes");
    }
    eventually("descriptors are as before", async || {
        descriptors(daemon.pid()) <= before + 2
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_request_that_never_ends_or_is_huge_is_not_read_to_its_end() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let slow = async {
        let mut stream = connect(&daemon.lab, split(&url).0).await.unwrap();
        stream.write_all(b"GET /exec/0123 HTTP/1.1\r\n").await.unwrap();
        let begin = Instant::now();
        // A header every now and then: each shows that the client lives.
        while stream.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(begin.elapsed() < PATIENCE, "it is still read");
        }
    };
    let large = async {
        let mut stream = connect(&daemon.lab, split(&url).0).await.unwrap();
        let _ = stream.write_all(b"GET /exec/0123 HTTP/1.1\r\nlong: ").await;
        let _ = stream.write_all(&vec![b'a'; 1 << 20]).await;
        rest(&mut stream, "a huge header").await;
        let mut stream = connect(&daemon.lab, split(&url).0).await.unwrap();
        let _ = stream.write_all(b"GET /exec/0123 HTTP/1.1\r\n").await;
        let _ = stream.write_all(&b"a: b\r\n".repeat(10_000)).await;
        rest(&mut stream, "too many headers").await;
    };
    let before = own_memory(daemon.pid());
    tokio::join!(slow, large);
    let session = Session::open(&daemon.lab, SPDY, &url, Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0, "the URL was not used by any of them");
    let after = own_memory(daemon.pid());
    assert!(after < before + 16_384, "{before} KiB grew to {after} KiB");
    daemon.finish().await;
}

#[tokio::test]
async fn streams_without_number_are_refused_and_take_no_memory() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("exec", "exec nc -ll -p 8080 -e cat").await;
    let before = own_memory(daemon.pid());
    let threads = || std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).map_or(0, Iterator::count);
    let threads_before = threads();
    for (url, protocol, resets) in [
        (
            daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap(),
            "v4.channel.k8s.io",
            false,
        ),
        (
            daemon.forward_url(&pod, &[]).await.unwrap(),
            "portforward.k8s.io",
            false,
        ),
        // Opened and reset at once, which is cheap for the client.
        (daemon.forward_url(&pod, &[]).await.unwrap(), "portforward.k8s.io", true),
    ] {
        let (mut read, write) = upgraded(&daemon, &url, protocol).await.into_split();
        let flood = tokio::spawn(async move {
            let mut sender = Sender::new(write);
            for index in 0..20_000 {
                let id = (index / 2).to_string();
                let kind = ["error", "data"][index % 2];
                let headers = [("streamtype", kind), ("port", "9"), ("requestid", &id)];
                let Ok(number) = sender.open(&headers).await else { break };
                if resets && sender.reset(number).await.is_err() {
                    break;
                }
            }
            sender
        });
        let drain = tokio::spawn(async move {
            let mut block = vec![0; 64 << 10];
            while read.read(&mut block).await.is_ok_and(|count| count > 0) {}
        });
        drop(
            tokio::time::timeout(4 * PATIENCE, flood)
                .await
                .expect("it ends")
                .unwrap(),
        );
        let after = own_memory(daemon.pid());
        assert!(after < before + 16_384, "{protocol}: {before} KiB grew to {after} KiB");
        assert!(threads() < threads_before + 300, "{} threads", threads());
        tokio::time::timeout(2 * PATIENCE, drain)
            .await
            .expect("its connection ends")
            .unwrap();
        still_serves(&daemon, &id).await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn frames_for_nobody_and_windows_beyond_reason_are_survived() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = daemon
        .exec_url(&id, &["sh", "-c", "read l; echo $l; exit 9"], Want::ALL)
        .await
        .unwrap();
    let (read, write) = upgraded(&daemon, &url, "v4.channel.k8s.io").await.into_split();
    let (mut sender, mut receiver) = (Sender::new(write), Receiver::new(read));
    let error = sender.open(&[("streamtype", "error")]).await.unwrap();
    let stdin = sender.open(&[("streamtype", "stdin")]).await.unwrap();
    let stdout = sender.open(&[("streamtype", "stdout")]).await.unwrap();
    sender.open(&[("streamtype", "stderr")]).await.unwrap();
    sender.open(&[("streamtype", "stdout")]).await.unwrap();
    sender.open(&[("streamtype", "nonsense")]).await.unwrap();
    for stream in [999, 0x7fff_ffff, stdout, error] {
        sender.data(stream, false, &[b'x'; 70_000]).await.unwrap();
        sender.data(stream, true, b"").await.unwrap();
    }
    for delta in [0, 0x7fff_ffff, 0xffff_ffffu32] {
        for stream in [0, stdin, stdout, error, 999] {
            sender
                .control(9, &[stream.to_be_bytes(), delta.to_be_bytes()].concat())
                .await
                .unwrap();
        }
        let settings = [1u32.to_be_bytes(), 7u32.to_be_bytes(), delta.to_be_bytes()].concat();
        sender.control(4, &settings).await.unwrap();
    }
    // A frame of a kind that is not known, and a reset of what never was.
    sender.control(17, b"anything").await.unwrap();
    sender.reset(12345).await.unwrap();
    sender.data(stdin, false, b"through\n").await.unwrap();
    let (mut out, mut status) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(PATIENCE, receiver.next()).await;
        match next.expect("frames").unwrap() {
            Some(Frame::Data { stream, data, .. }) if stream == stdout => out.extend(data),
            Some(Frame::Data { stream, fin, data }) if stream == error => {
                status.extend(data);
                if fin {
                    break;
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(out, b"through\n");
    let status = String::from_utf8(status).unwrap();
    assert!(status.contains("\"9\""), "{status}");
    daemon.finish().await;
}

#[tokio::test]
async fn websockets_that_break_the_rules_are_told_so_and_closed() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let url = async || daemon.exec_url(&id, &["cat"], Want::ALL).await.unwrap();
    let masked = |first: u8, length: &[u8], payload: &[u8]| [&[first], length, &[0; 4], payload].concat();
    let protocol = "v5.channel.k8s.io";
    for (bytes, what) in [
        (b"\x82\x02\0a".to_vec(), "no mask"),
        (masked(0x89, &[0x80 | 126, 0, 200], &[0; 200]), "a ping of 200 bytes"),
        (masked(0x09, &[0x80], b""), "a ping in parts"),
        (masked(0x80, &[0x81], b"a"), "a continuation of nothing"),
        (masked(0xf2, &[0x81], b"a"), "reserved bits"),
    ] {
        let mut stream = upgraded(&daemon, &url().await, protocol).await;
        stream.write_all(&bytes).await.unwrap();
        let rest = rest(&mut stream, what).await;
        let close = [0x88, 2, 0x03, 0xea];
        assert!(rest.windows(4).any(|window| window == close), "{what}: {rest:?}");
    }
    let mut stream = upgraded(&daemon, &url().await, "v4.base64.channel.k8s.io").await;
    stream.write_all(&masked(0x81, &[0x85], b"0a?b=")).await.unwrap();
    rest(&mut stream, "no Base64").await;
    // A message that is said to have no end is read as it comes, and takes no more memory than another.
    let before = own_memory(daemon.pid());
    let mut stream = upgraded(&daemon, &url().await, protocol).await;
    let endless = [0x80 | 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    // Of a channel that nobody reads.
    stream.write_all(&masked(0x82, &endless, b"\x09")).await.unwrap();
    for _ in 0..64 {
        stream.write_all(&vec![0; 1 << 20]).await.unwrap();
    }
    let after = own_memory(daemon.pid());
    assert!(after < before + 16_384, "{before} KiB grew to {after} KiB");
    drop(stream);
    still_serves(&daemon, &id).await;
    daemon.finish().await;
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_only() {
    let daemon = Daemon::with(Options {
        tables: "[streaming]\ncreation_timeout_secs = 1".into(),
        ..Default::default()
    })
    .await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    let bomb = {
        let mut sender = Sender::new(Vec::new());
        let zeros = "\0".repeat(8 << 20);
        sender.open(&[("streamtype", &zeros)]).await.unwrap();
        sender.write
    };
    let memory_before = own_memory(daemon.pid());
    for (bytes, what) in [
        (
            b"\x80\x03\x00\x01\x00\xff\xff\xff".to_vec(),
            "an oversized control frame",
        ),
        (bomb, "a header bomb"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "HTTP again"),
        (
            b"\x80\x03\x00\x06\x00\x00\x00\x04\0\0\0\x01".repeat(100_000),
            "pings whose answers nobody reads",
        ),
    ] {
        for _ in 0..4 {
            let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
            let (mut stream, answer) = upgrade(&daemon.lab, "POST", &url, &headers).await.unwrap();
            assert_eq!(answer.code, 101);
            let _ = tokio::time::timeout(Duration::from_secs(10), stream.write_all(&bytes)).await;
            let mut rest = Vec::new();
            let end = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut rest));
            let _ = end.await.unwrap_or_else(|_| panic!("{what}: the daemon closes"));
        }
    }
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let session = Session::open(&daemon.lab, SPDY, &url, Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0);
    let memory = own_memory(daemon.pid());
    assert!(
        memory < memory_before + 49_152,
        "{memory_before} KiB grew to {memory} KiB"
    );
    daemon.finish().await;
}
