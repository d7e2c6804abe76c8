//! Port-forward.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use wharf_e2e::streams::{Forward, upgrade, websocket};
use wharf_e2e::{Daemon, Options, eventually};

/// A pod that gives back what it gets on port 8080, and its container.
async fn echo(daemon: &Daemon, name: &str) -> (String, String) {
    let (pod, id) = daemon.running(name, "exec nc -ll -p 8080 -e cat").await;
    listens(daemon, &id, "8080").await;
    (pod, id)
}

async fn listens(daemon: &Daemon, id: &str, port: &str) {
    let pattern = format!(":{:04X} ", port.parse::<u16>().unwrap());
    eventually("the server listens", async || {
        let table = daemon.cri.shell(id, "cat /proc/net/tcp /proc/net/tcp6").await.unwrap();
        table
            .lines()
            .any(|line| line.contains(&pattern) && line.contains(" 0A "))
    })
    .await;
}

#[tokio::test]
async fn connections_reach_the_pod_and_half_close_both_ways() {
    let daemon = Daemon::start().await;
    let (pod, _) = echo(&daemon, "forward").await;
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut pairs = Vec::new();
        for _ in 0..3 {
            pairs.push(client.connect("8080").await.unwrap());
        }
        for (index, pair) in pairs.iter_mut().enumerate() {
            let text = format!("hello {index}");
            client.write(pair, text.as_bytes()).await.unwrap();
            assert_eq!(pair.read().await.unwrap(), text.as_bytes(), "tunnel: {tunnel}");
        }
        for pair in &mut pairs {
            client.write(pair, b"bye").await.unwrap();
            client.end(pair).await.unwrap();
            assert_eq!(pair.read_all().await, b"bye", "tunnel: {tunnel}");
            assert_eq!(pair.error().await, "", "tunnel: {tunnel}");
        }
    }
    daemon.finish().await;
}

#[tokio::test]
async fn much_data_goes_both_ways_unharmed() {
    let daemon = Daemon::start().await;
    let (pod, _) = echo(&daemon, "forward").await;
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut pair = client.connect("8080").await.unwrap();
        let block: Vec<u8> = (0..(1 << 20)).map(|n: u32| (n % 251) as u8).collect();
        let mut all = Vec::new();
        for _ in 0..16 {
            client.write(&pair, &block).await.unwrap();
            while all.len() < block.len() {
                all.extend(pair.read().await.unwrap());
            }
            let came: Vec<u8> = all.drain(..block.len()).collect();
            assert!(came == block, "tunnel: {tunnel}");
        }
        client.end(&pair).await.unwrap();
        assert!(pair.read_all().await.is_empty());
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_and_harms_no_other() {
    let daemon = Daemon::start().await;
    let (pod, _) = echo(&daemon, "forward").await;
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut good = client.connect("8080").await.unwrap();
        let mut bad = client.connect("9").await.unwrap();
        let error = bad.error().await;
        assert!(error.contains("port 9") && error.contains("refused"), "{error}");
        assert!(bad.read_all().await.is_empty());
        for (wrong, reason) in [
            ("0", "is not a port"),
            ("65536", "is not a port"),
            ("http", "is not a port"),
            ("53/udp", "only TCP"),
        ] {
            let mut wrong = client.connect(wrong).await.unwrap();
            let error = wrong.error().await;
            assert!(error.contains(reason), "{error}");
            assert!(wrong.read_all().await.is_empty(), "it is reset");
        }
        client.write(&good, b"still here").await.unwrap();
        assert_eq!(good.read().await.unwrap(), b"still here");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_token_for_ports_is_good_for_them_only() {
    let daemon = Daemon::start().await;
    let (pod, _) = echo(&daemon, "forward").await;
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[8080]).await.unwrap();
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut other = client.connect("9").await.unwrap();
        let error = other.error().await;
        assert!(error.contains("port 9 is not among"), "{error}");
        assert!(other.read_all().await.is_empty());
        let mut pair = client.connect("8080").await.unwrap();
        client.write(&pair, b"x").await.unwrap();
        assert_eq!(pair.read().await.unwrap(), b"x");
    }
    for (query, code) in [
        ("", 101),
        ("?port=8080", 101),
        ("?port=8080&port=9", 400),
        ("?port=9", 400),
    ] {
        let url = daemon.forward_url(&pod, &[8080]).await.unwrap();
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
        ];
        let (_stream, answer) = upgrade(&daemon.lab, "GET", &format!("{url}{query}"), &headers)
            .await
            .unwrap();
        assert_eq!(answer.code, code, "{query}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn ports_that_listen_on_ipv6_only_are_reached() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("six", "exec httpd -f -p [::1]:8082").await;
    listens(&daemon, &id, "8082").await;
    let url = daemon.forward_url(&pod, &[]).await.unwrap();
    let mut client = Forward::open(&daemon.lab, &url, false).await.unwrap();
    let mut pair = client.connect("8082").await.unwrap();
    client.write(&pair, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let answer = pair.read_all().await;
    assert!(answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
    daemon.finish().await;
}

#[tokio::test]
async fn a_pod_in_the_hosts_network_is_reached_there() {
    let daemon = Daemon::start().await;
    let config = wharf_e2e::specs::host_network_pod("host", &daemon.logs);
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut container = wharf_e2e::container("main", &daemon.busybox().await, "exec nc -ll -p 8081 -e cat");
    let namespaces = wharf_e2e::specs::security(&mut container)
        .namespace_options
        .get_or_insert_default();
    namespaces.network = wharf_proto::cri::NamespaceMode::Node.into();
    let id = daemon.started(&pod, &config, &container).await;
    listens(&daemon, &id, "8081").await;
    let url = daemon.forward_url(&pod, &[]).await.unwrap();
    let mut client = Forward::open(&daemon.lab, &url, false).await.unwrap();
    let mut pair = client.connect("8081").await.unwrap();
    client.write(&pair, b"host").await.unwrap();
    assert_eq!(pair.read().await.unwrap(), b"host");
    daemon.finish().await;
}

#[tokio::test]
async fn the_older_channels_serve_ports_of_the_query() {
    let daemon = Daemon::start().await;
    let (pod, _) = echo(&daemon, "forward").await;
    for protocol in ["v4.channel.k8s.io", ""] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let mut socket = websocket::open(&daemon.lab, &format!("{url}?port=8080&port=9"), protocol)
            .await
            .unwrap();
        socket.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
        let mut got: [Vec<u8>; 4] = Default::default();
        while got[0].len() < 7 || got[3].len() < 3 {
            let next = tokio::time::timeout(wharf_e2e::PATIENCE, socket.next()).await;
            let Message::Binary(data) = next.unwrap().unwrap().unwrap() else {
                continue;
            };
            got[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
        let port = 8080u16.to_le_bytes();
        assert_eq!(got[0], [&port[..], b"hello"].concat(), "port, then data");
        assert_eq!(got[1], port);
        assert_eq!(got[2], 9u16.to_le_bytes());
        let error = String::from_utf8_lossy(&got[3][2..]).into_owned();
        assert!(
            got[3].starts_with(&9u16.to_le_bytes()) && error.contains("refused"),
            "{error}"
        );
        socket.close(None).await.unwrap();
    }
    for query in ["?port=0", "?port=53/udp"] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let refused = websocket::open(&daemon.lab, &format!("{url}{query}"), "v4.channel.k8s.io").await;
        assert!(refused.is_err(), "{query}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_takes_its_connections_along() {
    let daemon = Daemon::start().await;
    let (pod, id) = echo(&daemon, "forward").await;
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut kept = client.connect("8080").await.unwrap();
        let mut reset = client.connect("8080").await.unwrap();
        for pair in [&mut kept, &mut reset] {
            client.write(pair, b"x").await.unwrap();
            pair.read().await.unwrap();
        }
        let servers = async || daemon.cri.shell(&id, "ps").await.unwrap().matches("cat").count();
        assert_eq!(servers().await, 3, "the listener and two that serve");
        client.reset(&reset).await.unwrap();
        eventually("one connection is gone", async || servers().await == 2).await;
        client.write(&kept, b"y").await.unwrap();
        assert_eq!(kept.read().await.unwrap(), b"y");
        client.break_off();
        eventually("both connections are gone", async || servers().await == 1).await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_stream_without_its_pair_is_dropped() {
    let daemon = Daemon::with(Options {
        tables: "[streaming]\ncreation_timeout_secs = 1".into(),
        ..Default::default()
    })
    .await;
    let (pod, _) = echo(&daemon, "forward").await;
    let url = daemon.forward_url(&pod, &[]).await.unwrap();
    let mut client = Forward::open(&daemon.lab, &url, false).await.unwrap();
    let mut lone = client.lone("8080").await.unwrap();
    assert!(lone.read_all().await.is_empty(), "it is reset");
    let mut pair = client.connect("8080").await.unwrap();
    client.write(&pair, b"x").await.unwrap();
    assert_eq!(pair.read().await.unwrap(), b"x");
    daemon.finish().await;
}
