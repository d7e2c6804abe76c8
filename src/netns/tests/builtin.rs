//! The built-in network.

use std::time::Instant;

use super::*;
use crate::netns::link::Veth;
use std::os::fd::AsFd;

/// A machine beyond the node's own: joined by `uplink`, 192.0.2.1 here and 192.0.2.2 there.
async fn outside(node: &Node, networks: &Networks) -> PathBuf {
    node.pod(networks, "outside").await;
    let netns = node.pins("outside").join("net");
    let handle = File::open(&netns).unwrap();
    let mut links = Links::open().unwrap();
    links.add_bridge("uplink", [2, 0, 0, 0, 0, 1], 1400).unwrap();
    let uplink = links.find("uplink").unwrap().unwrap();
    links.add_address(uplink.index, v4("192.0.2.1").into(), 24).unwrap();
    links.add_default_route(uplink.index, v4("192.0.2.2").into()).unwrap();
    links
        .add_veth(&Veth {
            host_name: "up0",
            bridge: uplink.index,
            mtu: 1400,
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 0, 2],
            peer_netns: handle.as_fd(),
        })
        .unwrap();
    inside(&netns, || {
        let mut links = Links::open().unwrap();
        let device = links.find("eth0").unwrap().unwrap();
        links.set_up("eth0").unwrap();
        links.add_address(device.index, v4("192.0.2.2").into(), 24).unwrap();
    });
    netns
}

fn ip(network: &record::Network, place: usize) -> IpAddr {
    network.ips[place].parse().unwrap()
}

#[test]
fn pods_reach_each_other_and_the_outside_behind_the_nodes_address() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let far = outside(&node, &networks).await;
        let (a, b) = (node.pod(&networks, "a").await, node.pod(&networks, "b").await);
        let mut noted = None;
        let note = |network| {
            noted = Some(network);
            ready(())
        };
        let at = try_attach(&networks, &a, note).await.unwrap();
        let bt = attach(&networks, &b).await;
        assert_eq!(noted.as_ref(), Some(&at));
        assert_eq!((at.kind.as_str(), at.attempted, at.ips.len()), ("builtin", true, 2));
        for place in [0, 1] {
            tell_callers_who_they_are(&b.netns, 8000 + place as u16);
            let to = ip(&bt, place);
            assert_eq!(
                inside(&a.netns, move || call(to, 8000 + place as u16)).unwrap(),
                at.ips[place]
            );
        }
        tell_callers_who_they_are(&far, 9000);
        assert_eq!(inside(&a.netns, || call(v4("192.0.2.2"), 9000)).unwrap(), "192.0.2.1");
        let mtu = inside(&a.netns, || Links::open().unwrap().find("eth0").unwrap().unwrap().mtu);
        assert_eq!(mtu, 1400, "the MTU is that of the default route's device");
        for (pod, network) in [(&a, &at), (&b, &bt), (&a, &at)] {
            networks.detach(pod, network).await.unwrap();
        }
        assert_eq!(node.leases(), Vec::<String>::new());
        networks.release_unused().await.unwrap();
        assert_eq!(
            node.devices()
                .into_iter()
                .filter(|d| d != "uplink" && d != "up0")
                .count(),
            0
        );
    });
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let far = outside(&node, &networks).await;
        let mut a = node.pod(&networks, "a").await;
        a.port_mappings = vec![
            mapping(8080, 80, ""),
            mapping(8081, 80, "192.0.2.1"),
            mapping(8082, 80, "127.0.0.1"),
        ];
        let at = attach(&networks, &a).await;
        let b = node.pod(&networks, "b").await;
        let bt = attach(&networks, &b).await;
        tell_callers_who_they_are(&a.netns, 80);
        // From outside, with the caller's own address.
        assert_eq!(inside(&far, || call(v4("192.0.2.1"), 8080)).unwrap(), "192.0.2.2");
        assert_eq!(inside(&far, || call(v4("192.0.2.1"), 8081)).unwrap(), "192.0.2.2");
        assert!(
            inside(&far, || call(v4("192.0.2.1"), 8082)).is_err(),
            "bound to localhost"
        );
        // From the node, on any of its addresses.
        for address in ["127.0.0.1", "192.0.2.1", "10.77.0.1"] {
            call(v4(address), 8080).unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        call(v4("127.0.0.1"), 8082).unwrap();
        assert!(call(v4("127.0.0.1"), 8081).is_err(), "bound to the uplink");
        call("fd77::1".parse::<IpAddr>().unwrap(), 8080).unwrap();
        let refused = call("::1".parse::<IpAddr>().unwrap(), 8080).unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "a client then takes 127.0.0.1"
        );
        // From another pod and from the pod itself: the answer must come back by the node.
        for caller in [&b, &a] {
            inside(&caller.netns, || call(v4("192.0.2.1"), 8080)).unwrap();
            inside(&caller.netns, || call("fd77::1".parse::<IpAddr>().unwrap(), 8080)).unwrap();
        }
        // Pods must not reach the node's own localhost by the way that host ports need.
        let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
        inside(&b.netns, || {
            let mut links = Links::open().unwrap();
            let _ = links.delete("lo");
        });
        drop(listener);

        let mut rival = node.pod(&networks, "rival").await;
        rival.port_mappings = vec![mapping(9999, 1, ""), mapping(8080, 1, "")];
        let error = try_attach(&networks, &rival, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("host port tcp/8080 is held by pod {}", a.pod_id));
        assert_eq!(
            node.leases().len(),
            4,
            "the rival holds no address: {:?}",
            node.leases()
        );
        rival.port_mappings = vec![mapping(8080, 1, "192.0.2.1")];
        let error = try_attach(&networks, &rival, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tcp/8080 on 192.0.2.1") && error.contains(&a.pod_id),
            "{error}"
        );
        call(v4("127.0.0.1"), 8080).expect("the rival took nothing away");

        networks.detach(&a, &at).await.unwrap();
        assert!(call(v4("127.0.0.1"), 8080).is_err(), "the port went with the pod");
        rival.port_mappings = vec![mapping(9999, 1, ""), mapping(8080, 1, "")];
        let rt = attach(&networks, &rival).await;
        for (pod, network) in [(&b, &bt), (&rival, &rt)] {
            networks.detach(pod, network).await.unwrap();
        }
        assert_eq!(node.leases(), Vec::<String>::new());
    });
}

#[test]
fn recovery_keeps_the_living_and_releases_the_rest() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let (mut a, mut b) = (node.pod(&networks, "a").await, node.pod(&networks, "b").await);
        a.port_mappings = vec![mapping(8080, 80, "")];
        b.port_mappings = vec![mapping(8081, 80, "")];
        let (at, bt) = (attach(&networks, &a).await, attach(&networks, &b).await);
        tell_callers_who_they_are(&a.netns, 80);
        let state = &node.config.state_dir.join("ipam/wharf0");
        std::fs::write(state.join("10.77.0.200"), "").unwrap();
        drop(networks);
        // Someone flushed the rules meanwhile.
        crate::netns::nft::Table::new("wharf0", vec![], Default::default())
            .remove()
            .unwrap();
        crate::netns::nft::PortTable::new("wharf0").remove().unwrap();
        let networks = node.networks().await;
        networks.recover(&[(a.clone(), at.clone())]).await.unwrap();
        assert_eq!(node.leases(), at.ips);
        assert_eq!(node.ports(), [a.pod_id.clone()]);
        assert_eq!(node.devices().len(), 2);
        call(v4("127.0.0.1"), 8080).unwrap();
        // Late, and by a record of a pod that was reclaimed.
        networks.detach(&b, &bt).await.unwrap();
        networks.remove_namespaces(&node.pins("a")).await.unwrap();
        networks.detach(&a, &at).await.unwrap();
        networks.release_unused().await.unwrap();
        assert_eq!((node.devices(), node.leases()), (vec![], vec![]));
        networks.recover(&[]).await.unwrap();
    });
}

#[test]
fn a_small_subnet_runs_out_and_recovers() {
    on_a_node(|mut node| async move {
        node.config.builtin_network.subnet = "10.77.0.0/29".into();
        node.config.builtin_network.subnet_v6 = None;
        let networks = node.networks().await;
        let mut pods = Vec::new();
        for number in 0..5 {
            let pod = node.pod(&networks, &format!("p{number}")).await;
            let network = attach(&networks, &pod).await;
            pods.push((pod, network));
        }
        let late = node.pod(&networks, "late").await;
        let error = try_attach(&networks, &late, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, "no free address in 10.77.0.0/29");
        networks.detach(&pods[2].0, &pods[2].1).await.unwrap();
        assert_eq!(attach(&networks, &late).await.ips, pods[2].1.ips);
    });
}

#[test]
fn rules_that_somebody_flushes_are_made_anew() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        networks.recover(&[]).await.unwrap();
        let mut a = node.pod(&networks, "a").await;
        a.port_mappings = vec![mapping(8080, 80, "")];
        let at = attach(&networks, &a).await;
        tell_callers_who_they_are(&a.netns, 80);
        call(v4("127.0.0.1"), 8080).unwrap();
        for order in [
            "flush ruleset",
            "delete table inet wharf-wharf0",
            "flush chain inet wharf-ports-wharf0 output",
            "delete element inet wharf-ports-wharf0 ports4 { tcp . 8080 }",
        ] {
            let words: Vec<&str> = order.split(' ').collect();
            let status = std::process::Command::new("nft").args(&words).status().unwrap();
            assert!(status.success(), "{order}");
            let deadline = Instant::now() + std::time::Duration::from_secs(20);
            while call(v4("127.0.0.1"), 8080).is_err() || !has_table("wharf-wharf0") {
                assert!(Instant::now() < deadline, "not repaired after {order}");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
        networks.detach(&a, &at).await.unwrap();
        networks.release_unused().await.unwrap();
        assert!(!has_table("wharf-wharf0") && !has_table("wharf-ports-wharf0"));
    });
}

fn has_table(name: &str) -> bool {
    let list = std::process::Command::new("nft")
        .args(["list", "tables"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&list.stdout).contains(&format!("inet {name}\n"))
}

#[test]
fn host_ports_of_udp_lead_to_the_pod_and_sctp_ones_are_in_the_map() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let mut a = node.pod(&networks, "a").await;
        let with = |protocol: cri::Protocol, port: i32| cri::PortMapping {
            protocol: protocol.into(),
            ..mapping(port, 80, "")
        };
        a.port_mappings = vec![with(cri::Protocol::Udp, 8080), with(cri::Protocol::Sctp, 8081)];
        let at = attach(&networks, &a).await;
        inside(&a.netns, || {
            let socket = std::net::UdpSocket::bind("[::]:80").unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            });
        });
        for (own, address) in [
            ("0.0.0.0:0", "127.0.0.1"),
            ("0.0.0.0:0", "10.77.0.1"),
            ("[::]:0", "fd77::1"),
        ] {
            let socket = std::net::UdpSocket::bind(own).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            socket.connect((address, 8080)).unwrap();
            socket.send(b"hello").unwrap();
            let mut buffer = [0; 16];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 5, "{address}");
        }
        let list = std::process::Command::new("nft")
            .args(["list", "map", "inet", "wharf-ports-wharf0", "ports4"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(text.contains("sctp . 8081") || text.contains("132 . 8081"), "{text}");
        networks.detach(&a, &at).await.unwrap();
    });
}

#[test]
fn a_network_of_ipv6_alone_works() {
    on_a_node(|mut node| async move {
        node.config.builtin_network.subnet = String::new();
        let networks = node.networks().await;
        let (mut a, b) = (node.pod(&networks, "a").await, node.pod(&networks, "b").await);
        a.port_mappings = vec![mapping(8080, 80, "")];
        let (at, bt) = (attach(&networks, &a).await, attach(&networks, &b).await);
        assert!(at.ips.len() == 1 && at.ips[0].contains(':'), "{:?}", at.ips);
        tell_callers_who_they_are(&a.netns, 80);
        let to = ip(&at, 0);
        assert_eq!(inside(&b.netns, move || call(to, 80)).unwrap(), bt.ips[0]);
        call("fd77::1".parse::<IpAddr>().unwrap(), 8080).unwrap();
        for (pod, network) in [(&a, &at), (&b, &bt)] {
            networks.detach(pod, network).await.unwrap();
        }
        assert_eq!((node.leases(), node.ports()), (vec![], vec![]));
    });
}

#[test]
fn a_bridge_of_somebody_else_is_named_and_left_alone() {
    on_a_node(|node| async move {
        let mut links = Links::open().unwrap();
        links.add_bridge("wharf0", [2, 0, 0, 0, 0, 9], 1500).unwrap();
        let networks = node.networks().await;
        let a = node.pod(&networks, "a").await;
        let error = try_attach(&networks, &a, |_| ready(())).await.unwrap_err().to_string();
        assert!(error.contains("device wharf0 belongs to somebody else"), "{error}");
        links.set_alias("wharf0", "another tool's").unwrap();
        let error = try_attach(&networks, &a, |_| ready(())).await.unwrap_err().to_string();
        assert!(error.contains("belongs to another tool's"), "{error}");
        assert!(node.leases().is_empty(), "{:?}", node.leases());
        networks.recover(&[]).await.unwrap();
        networks.release_unused().await.unwrap();
        let foreign = links.find("wharf0").unwrap().unwrap();
        assert_eq!(
            (foreign.alias.as_str(), foreign.mac),
            ("another tool's", vec![2, 0, 0, 0, 0, 9])
        );

        // It went, and the network works.
        links.delete("wharf0").unwrap();
        let at = attach(&networks, &a).await;
        drop(networks);
        // A second daemon with other state, and the first one again.
        let other = Config {
            state_dir: node.scratch.0.join("other"),
            run_dir: node.scratch.0.join("other-run"),
            ..Config::default()
        };
        let second = Networks::open(&other).await.unwrap();
        let b = node.pod(&second, "b").await;
        let error = try_attach(&second, &b, |_| ready(())).await.unwrap_err().to_string();
        assert!(error.contains(&node.config.state_dir.display().to_string()), "{error}");
        let networks = node.networks().await;
        networks.recover(&[(a.clone(), at.clone())]).await.unwrap();
        networks.detach(&a, &at).await.unwrap();
        networks.release_unused().await.unwrap();
        assert!(node.devices().is_empty(), "{:?}", node.devices());
    });
}
