//! What a pod's traffic notices of a daemon that is killed, ended and started: nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use wharf_e2e::pulse::{Counted, Pulse, Server};
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri as pb;

/// The network namespace of a pod, as this process reaches it.
pub(crate) fn netns(daemon: &Daemon, pod: &str) -> PathBuf {
    daemon.seen(&daemon.run_dir.join("pods").join(pod).join("ns/net"))
}

/// The network namespace of the node.
pub(crate) fn node_netns(daemon: &Daemon) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", daemon.lab.init))
}

/// The pod's addresses.
pub(crate) async fn addresses(daemon: &Daemon, pod: &str) -> Vec<String> {
    let network = daemon.cri.pod_status(pod).await.unwrap().network.unwrap();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip).chain(more).collect()
}

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A pod with a host port, with a container that does nothing.
pub(crate) async fn pod_with_port(daemon: &Daemon, name: &str, host_port: i32) -> String {
    let mut config = daemon.pod(name);
    for protocol in [pb::Protocol::Tcp, pb::Protocol::Udp] {
        config.port_mappings.push(pb::PortMapping {
            protocol: protocol.into(),
            container_port: 80,
            host_port,
            ..Default::default()
        });
    }
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "sleep 1000");
    daemon.started(&pod, &config, &main).await;
    pod
}

/// A person's container that does nothing, on a named network; returns its pod.
async fn on_network(daemon: &Daemon, name: &str, network: &str) -> String {
    let (image, logs) = (daemon.busybox().await, daemon.logs.to_string_lossy().into_owned());
    let args = [
        "run",
        "-d",
        "--log-dir",
        &logs,
        "--name",
        name,
        "--network",
        network,
        &image,
        "sleep",
        "1000",
    ];
    let output = daemon.wharf(&args).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = daemon.wharf(&["network", "inspect", network]).output().await.unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let members = listed["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["name"] == name).unwrap();
    member["podSandboxId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn no_packet_is_lost_and_no_connection_refused_while_the_daemon_is_killed_and_started() {
    let mut daemon = Daemon::with(Options {
        tables: "[builtin_network]\nsubnet_v6 = 'fd00:121::/64'\n".into(),
        ..Options::default()
    })
    .await;
    let output = daemon.wharf(&["network", "create", "web"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let a = pod_with_port(&daemon, "a", 8080).await;
    let (b, _) = daemon.running("b", "sleep 1000").await;
    let (c, d) = (
        on_network(&daemon, "c", "web").await,
        on_network(&daemon, "d", "web").await,
    );
    let _servers = [&a, &c].map(|pod| Server::start(&netns(&daemon, pod), 80, "hello").unwrap());
    let (on_a, on_c) = (addresses(&daemon, &a).await, addresses(&daemon, &c).await);
    let (often, seldom) = (Duration::from_millis(4), Duration::from_millis(10));
    let start = |daemon: &Daemon| -> Vec<(&'static str, Pulse)> {
        let [node, b, d] = [node_netns(daemon), netns(daemon, &b), netns(daemon, &d)];
        vec![
            (
                "datagrams from pod to pod",
                Pulse::datagrams(&b, at(&on_a[0], 80), often).unwrap(),
            ),
            (
                "datagrams from pod to pod, IPv6",
                Pulse::datagrams(&b, at(&on_a[1], 80), often).unwrap(),
            ),
            (
                "datagrams on a named network",
                Pulse::datagrams(&d, at(&on_c[0], 80), often).unwrap(),
            ),
            (
                "datagrams to a host port",
                Pulse::datagrams(&node, at("127.0.0.1", 8080), often).unwrap(),
            ),
            (
                "connections to a host port",
                Pulse::connections(&node, at("127.0.0.1", 8080), seldom).unwrap(),
            ),
            (
                "connections on a named network",
                Pulse::connections(&d, at(&on_c[0], 80), seldom).unwrap(),
            ),
        ]
    };
    let counted = |pulses: Vec<(&'static str, Pulse)>| -> Vec<(&'static str, Counted)> {
        pulses.into_iter().map(|(name, pulse)| (name, pulse.end())).collect()
    };

    let pulses = start(&daemon);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let undisturbed = counted(pulses);
    let pulses = start(&daemon);
    for signal in [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGTERM] {
        daemon.end(signal).await.unwrap();
        daemon.start_again().await.unwrap();
    }
    let disturbed = counted(pulses);
    for ((name, before), (_, seen)) in undisturbed.iter().zip(&disturbed) {
        println!("{name}:\n  undisturbed: {before}\n  two kills, an end and three starts: {seen}");
    }
    for (name, seen) in &disturbed {
        assert!(seen.sent > 50, "{name}: {seen}");
        assert!(seen.lost.is_empty(), "{name}: {seen}: {:?}", seen.lost);
        assert!(seen.at(1000) < Duration::from_secs(2), "{name}: {seen}");
    }
    for name in ["c", "d"] {
        let output = daemon.wharf(&["rm", "-f", name]).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = daemon.wharf(&["network", "rm", "web"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.finish().await;
}
