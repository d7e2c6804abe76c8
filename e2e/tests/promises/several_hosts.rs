//! Several daemons as several hosts, each in a network namespace of its own, on one switch.

use std::time::Duration;

use tokio::process::Command;
use wharf_e2e::lab::Lab;
use wharf_e2e::pulse::{Pulse, Server, call};
use wharf_e2e::{Daemon, Options};

use crate::network::{BRIDGE, cni};
use crate::traffic::{addresses, at, netns, node_netns, pod_with_port};

/// The networks of the hosts' switch, to which a host's number is added.
const NETS: [&str; 2] = ["192.0.2.", "2001:db8::"];

/// Joins the hosts by a switch in a namespace of its own: host number N, from 1 on, has the address N in each of `nets`.
pub(crate) async fn lan(hosts: &[&Daemon], nets: &[&str]) -> Lab {
    let switch = Lab::start(false).await.unwrap();
    for line in ["link add lan type bridge", "link set lan up"] {
        switch.output("ip", &words(line)).await.unwrap();
    }
    for (number, host) in (1..).zip(hosts) {
        // The namespaces of processes are not entered: both labs' inits are known by their numbers here.
        let net = format!("--net={}", node_netns(host).display());
        let line = format!(
            "link add outside type veth peer name port{number} netns {}",
            switch.init
        );
        let mut command = Command::new("nsenter");
        command.arg(net).arg("ip").args(words(&line));
        assert!(command.status().await.unwrap().success());
        for net in nets {
            let rest = if net.contains(':') {
                "/64 dev outside nodad"
            } else {
                "/24 dev outside"
            };
            let line = format!("address add {net}{number}{rest}");
            host.lab.output("ip", &words(&line)).await.unwrap();
        }
        host.lab.output("ip", &words("link set outside up")).await.unwrap();
        for line in [
            format!("link set port{number} master lan"),
            format!("link set port{number} up"),
        ] {
            switch.output("ip", &words(&line)).await.unwrap();
        }
    }
    switch
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[tokio::test]
async fn hosts_with_the_built_in_network_reach_each_others_ports_while_daemons_die() {
    let host = |number: u8| {
        Daemon::with(Options {
            // The same subnet of IPv4 on all: nobody sees it from outside.
            tables: format!("[builtin_network]\nsubnet_v6 = 'fd00:12{number}::/64'\n"),
            ..Options::default()
        })
    };
    let (mut one, mut two, three) = (host(1).await, host(2).await, host(3).await);
    let switch = lan(&[&one, &two, &three], &NETS).await;
    let mut pods = Vec::new();
    let mut servers = Vec::new();
    for (number, host) in (1..).zip([&one, &two, &three]) {
        let pod = pod_with_port(host, "web", 8080).await;
        servers.push(Server::start(&netns(host, &pod), 80, &format!("host {number}")).unwrap());
        pods.push(pod);
    }
    for (from, host) in (1..).zip([&one, &two, &three]) {
        let pod = netns(host, &pods[from - 1]);
        for to in 1..=3 {
            for net in NETS {
                let said = call(&pod, at(&format!("{net}{to}"), 8080));
                let said = said.unwrap_or_else(|error| panic!("{from} to {net}{to}: {error}"));
                let (who, seen) = said.rsplit_once(' ').unwrap();
                assert_eq!(who, format!("host {to}"));
                // From another host it is that host which calls.
                assert!(from == to || seen == format!("{net}{from}"), "{from} to {to}: {said}");
            }
        }
    }
    let pulses = [
        Pulse::datagrams(&netns(&one, &pods[0]), at("192.0.2.2", 8080), Duration::from_millis(4)).unwrap(),
        Pulse::connections(&netns(&one, &pods[0]), at("192.0.2.2", 8080), Duration::from_millis(10)).unwrap(),
        Pulse::connections(&node_netns(&three), at("2001:db8::1", 8080), Duration::from_millis(10)).unwrap(),
    ];
    one.crash().await;
    two.crash().await;
    one.crash().await;
    for pulse in pulses {
        let seen = pulse.end();
        println!("between hosts, over three kills: {seen}");
        assert!(seen.sent > 20 && seen.lost.is_empty(), "{seen}: {:?}", seen.lost);
    }
    drop(servers);
    for host in [one, two, three] {
        host.finish().await;
    }
    switch.end().await.unwrap();
}

#[tokio::test]
async fn hosts_with_cni_and_routes_to_each_other_give_pods_addresses_that_all_see() {
    let mut dirs = Vec::new();
    let mut hosts = Vec::new();
    for number in 1..=2 {
        let dir = tempfile::tempdir().unwrap();
        let conf = BRIDGE
            .replace("DIR", &dir.path().join("ipam").to_string_lossy())
            .replace("10.88.0.0/24", &format!("10.88.{number}.0/24"));
        std::fs::write(dir.path().join("10-e2e.conflist"), conf).unwrap();
        hosts.push(Daemon::with(cni(&dir.path().to_string_lossy(), "/opt/cni/bin", 30)).await);
        dirs.push(dir);
    }
    let switch = lan(&hosts.iter().collect::<Vec<_>>(), &NETS).await;
    for (host, line) in hosts
        .iter()
        .zip(["10.88.2.0/24 via 192.0.2.2", "10.88.1.0/24 via 192.0.2.1"])
    {
        host.lab
            .output("ip", &words(&format!("route add {line}")))
            .await
            .unwrap();
    }
    let a = pod_with_port(&hosts[0], "a", 8080).await;
    let b = pod_with_port(&hosts[1], "b", 8080).await;
    let (on_a, on_b) = (
        addresses(&hosts[0], &a).await[0].clone(),
        addresses(&hosts[1], &b).await[0].clone(),
    );
    assert!(
        on_a.starts_with("10.88.1.") && on_b.starts_with("10.88.2."),
        "{on_a} {on_b}"
    );
    let (in_a, in_b) = (netns(&hosts[0], &a), netns(&hosts[1], &b));
    let servers = [
        Server::start(&in_a, 80, "a").unwrap(),
        Server::start(&in_b, 80, "b").unwrap(),
    ];
    assert_eq!(
        call(&in_a, at(&on_b, 80)).unwrap(),
        format!("b {on_a}"),
        "no address is changed on the way"
    );
    assert_eq!(call(&in_b, at(&on_a, 80)).unwrap(), format!("a {on_b}"));
    // Host ports are Wharf's here: the list has no portmap. The caller's address stays.
    assert_eq!(call(&in_a, at("192.0.2.2", 8080)).unwrap(), format!("b {on_a}"));
    let pulses = [
        Pulse::datagrams(&in_a, at(&on_b, 80), Duration::from_millis(4)).unwrap(),
        Pulse::connections(&in_b, at(&on_a, 80), Duration::from_millis(10)).unwrap(),
    ];
    for host in &mut hosts {
        host.crash().await;
    }
    for pulse in pulses {
        let seen = pulse.end();
        println!("between hosts with CNI, over a kill of each daemon: {seen}");
        assert!(seen.sent > 20 && seen.lost.is_empty(), "{seen}: {:?}", seen.lost);
    }
    drop(servers);
    for host in hosts {
        host.finish().await;
    }
    switch.end().await.unwrap();
}

#[tokio::test]
async fn hosts_of_ipv6_alone_have_pods_names_and_ports() {
    let host = |number: u8| {
        Daemon::with(Options {
            tables: format!("[builtin_network]\nsubnet = ''\nsubnet_v6 = 'fd00:12{number}::/64'\n"),
            ..Options::default()
        })
    };
    let (mut one, two) = (host(1).await, host(2).await);
    let switch = lan(&[&one, &two], &NETS[1..]).await;
    let (a, b) = (
        pod_with_port(&one, "a", 8080).await,
        pod_with_port(&two, "b", 8080).await,
    );
    let (on_a, in_a) = (addresses(&one, &a).await, netns(&one, &a));
    assert!(on_a.len() == 1 && on_a[0].starts_with("fd00:121::"), "{on_a:?}");
    let servers = [&in_a, &netns(&two, &b)].map(|pod| Server::start(pod, 80, "pod").unwrap());
    assert_eq!(call(&node_netns(&one), at(&on_a[0], 80)).unwrap(), "pod fd00:121::1");
    assert_eq!(call(&in_a, at("2001:db8::2", 8080)).unwrap(), "pod 2001:db8::1");
    one.crash().await;
    assert_eq!(
        call(&node_netns(&two), at("2001:db8::1", 8080)).unwrap(),
        "pod 2001:db8::2"
    );

    // A network of that family, with names.
    for line in [
        "network create --subnet fd00:9::/64 six",
        "run -d --name web --network six --network-alias www",
        "run -d --name client --network six",
    ] {
        let (image, logs) = (one.busybox().await, one.logs.to_string_lossy().into_owned());
        let mut args = words(line);
        if line.starts_with("run") {
            args.extend(["--log-dir", &logs, &image, "sleep", "1000"]);
        }
        let output = one.wharf(&args).output().await.unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let look = one
        .wharf(&["exec", "client", "nslookup", "www"])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&look.stdout).into_owned();
    assert!(
        text.contains("fd00:9::1") && text.contains("fd00:9::2"),
        "server and answer: {text}"
    );
    for line in ["rm -f web", "rm -f client", "network rm six"] {
        let output = one.wharf(&words(line)).output().await.unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    drop(servers);
    one.finish().await;
    two.finish().await;
    switch.end().await.unwrap();
}
