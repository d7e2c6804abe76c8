//! Named networks, with their names.

use std::net::UdpSocket;

use wharf_proto::record::{NamedNetwork, NetworkRange};

use super::*;
use crate::netns::dns::tests::ask;
use crate::netns::{Error, Membership};

fn wanted(name: &str, subnet: &str) -> NamedNetwork {
    NamedNetwork {
        name: name.into(),
        ranges: vec![NetworkRange {
            subnet: subnet.into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn on(node: &Node, networks: &Networks, name: &str, wishes: &[&str]) -> PodNetwork {
    let mut pod = node.pod(networks, name).await;
    let wish = |network: &&str| Membership {
        network: (*network).to_owned(),
        ..Membership::default()
    };
    pod.networks = Some(wishes.iter().map(wish).collect());
    pod
}

/// What a resolver says to a question that is put in `netns`; nothing if it does not answer.
fn look_up(netns: &Path, resolver: &str, name: &str, tcp: bool) -> Option<Vec<u8>> {
    let (to, question) = (format!("{resolver}:53"), ask(77, name, 1));
    inside(netns, move || {
        let limit = Some(Duration::from_secs(3));
        if tcp {
            let mut stream = TcpStream::connect(to).ok()?;
            stream.set_read_timeout(limit).unwrap();
            stream.write_all(&(question.len() as u16).to_be_bytes()).ok()?;
            stream.write_all(&question).ok()?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).ok()?;
            return Some(answer);
        }
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(limit).unwrap();
        socket.connect(to).unwrap();
        socket.send(&question).ok()?;
        let mut answer = vec![0; 512];
        let length = socket.recv(&mut answer).ok()?;
        answer.truncate(length);
        Some(answer)
    })
}

/// As [`look_up`], away from the thread on which the resolver runs.
async fn asked(pod: &PodNetwork, resolver: &'static str, name: &'static str, tcp: bool) -> Option<Vec<u8>> {
    let netns = pod.netns.clone();
    tokio::task::spawn_blocking(move || look_up(&netns, resolver, name, tcp))
        .await
        .unwrap()
}

#[test]
fn pods_know_names_on_their_networks_and_reach_no_others() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        networks.create_network(wanted("front", "10.5.1.0/24")).await.unwrap();
        let mut back = wanted("back", "10.5.2.0/24");
        back.internal = true;
        networks.create_network(back).await.unwrap();
        let mut a = on(&node, &networks, "a", &["front"]).await;
        a.dns = Some(cri::DnsConfig {
            servers: vec!["127.0.0.1".into()],
            ..Default::default()
        });
        let b = on(&node, &networks, "b", &["front"]).await;
        let c = on(&node, &networks, "c", &["back"]).await;
        let (at, bt, ct) = (
            attach(&networks, &a).await,
            attach(&networks, &b).await,
            attach(&networks, &c).await,
        );
        assert_eq!(
            (at.ips[0].as_str(), bt.ips[0].as_str(), ct.ips[0].as_str()),
            ("10.5.1.2", "10.5.1.3", "10.5.2.2")
        );

        for tcp in [false, true] {
            let answer = asked(&a, "10.5.1.1", "B", tcp).await.unwrap();
            assert_eq!(
                (answer[3] & 15, answer[answer.len() - 4..].to_vec()),
                (0, vec![10, 5, 1, 3]),
                "{tcp}"
            );
        }
        // Not on its networks: the servers that it names are asked; nobody is for one that is on an internal network.
        let upstream = UdpSocket::bind("127.0.0.1:53").unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = upstream.recv_from(&mut buffer) {
                buffer[2] |= 0x80;
                buffer[3] |= 5;
                let _ = upstream.send_to(&buffer[..length], from);
            }
        });
        let answer = asked(&a, "10.5.1.1", "c", false).await.unwrap();
        assert_eq!(
            (answer[..2].to_vec(), answer[3] & 15),
            (vec![0, 77], 5),
            "what the server outside says"
        );
        assert_eq!(asked(&c, "10.5.2.1", "a", false).await.unwrap()[3] & 15, 2);

        tell_callers_who_they_are(&b.netns, 80);
        tell_callers_who_they_are(&c.netns, 80);
        assert_eq!(inside(&a.netns, || call(v4("10.5.1.3"), 80)).unwrap(), "10.5.1.2");
        assert!(inside(&a.netns, || call(v4("10.5.2.2"), 80)).is_err());

        // On both.
        let wish = Membership {
            network: "back".into(),
            aliases: vec!["Alias".into()],
            ..Membership::default()
        };
        let at = networks.connect(&a, &at, &wish, |_| ready(())).await.unwrap();
        assert_eq!(inside(&a.netns, || call(v4("10.5.2.2"), 80)).unwrap(), "10.5.2.3");
        let answer = asked(&c, "10.5.2.1", "alias", false).await.unwrap();
        assert_eq!(answer[answer.len() - 4..], [10, 5, 2, 3]);
        let in_use = networks.remove_network("back").await.unwrap_err();
        assert!(matches!(in_use, Error::NetworkInUse { .. }), "{in_use}");

        // The daemon comes back.
        drop(networks);
        let networks = node.networks().await;
        let live = [
            (a.clone(), at.clone()),
            (b.clone(), bt.clone()),
            (c.clone(), ct.clone()),
        ];
        networks.recover(&live).await.unwrap();
        let answer = asked(&c, "10.5.2.1", "alias", false).await.unwrap();
        assert_eq!(answer[answer.len() - 4..], [10, 5, 2, 3]);
        let at = networks.disconnect(&a, &at, "front").await.unwrap();
        assert_eq!(at.ips, ["10.5.2.3"]);
        assert!(
            asked(&b, "10.5.1.1", "a", false)
                .await
                .is_none_or(|answer| answer[3] & 15 != 0)
        );
        for (pod, network) in [(&a, &at), (&b, &bt), (&c, &ct)] {
            networks.detach(pod, network).await.unwrap();
        }
        for name in ["front", "back"] {
            networks.remove_network(name).await.unwrap();
        }
        assert!(node.devices().is_empty(), "{:?}", node.devices());
        let left: Vec<_> = std::fs::read_dir(node.config.state_dir.join("networks"))
            .unwrap()
            .collect();
        assert!(left.is_empty());
    });
}

/// The rules of the table of a bridge, as nft(8) shows them; nothing if there is no table.
fn rules(bridge: &str) -> String {
    let list = std::process::Command::new("nft")
        .args(["list", "table", "inet", &format!("wharf-{bridge}")])
        .output()
        .unwrap();
    String::from_utf8_lossy(&list.stdout).into_owned()
}

#[test]
fn rules_of_a_network_are_made_anew_and_go_with_it() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        networks.recover(&[]).await.unwrap();
        for (name, subnet) in [("front", "10.5.1.0/24"), ("side", "10.5.3.0/24")] {
            networks.create_network(wanted(name, subnet)).await.unwrap();
        }
        assert_eq!(
            rules("wb-front"),
            "",
            "a network that nobody is on costs the node nothing"
        );
        let a = on(&node, &networks, "a", &["front"]).await;
        let b = on(&node, &networks, "b", &["side"]).await;
        let (at, bt) = (attach(&networks, &a).await, attach(&networks, &b).await);
        tell_callers_who_they_are(&b.netns, 80);
        let before = rules("wb-front");
        assert!(before.contains("masquerade") && before.contains("drop"), "{before}");
        for order in [
            "flush ruleset",
            "delete table inet wharf-wb-front",
            "flush chain inet wharf-wb-front forward",
        ] {
            let words: Vec<&str> = order.split(' ').collect();
            let status = std::process::Command::new("nft").args(&words).status().unwrap();
            assert!(status.success(), "{order}");
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while rules("wb-front") != before {
                assert!(std::time::Instant::now() < deadline, "not repaired after {order}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(inside(&a.netns, || call(v4("10.5.3.2"), 80)).is_err(), "after {order}");
        }
        networks.detach(&a, &at).await.unwrap();
        networks.remove_network("front").await.unwrap();
        assert_eq!(rules("wb-front"), "");
        networks.detach(&b, &bt).await.unwrap();
        networks.remove_network("side").await.unwrap();
        let tables = std::process::Command::new("nft")
            .args(["list", "tables"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&tables.stdout),
            "",
            "the last network has taken all with it"
        );
        assert!(node.devices().is_empty(), "{:?}", node.devices());
    });
}

#[test]
fn host_ports_lead_by_a_network_that_is_open_as_long_as_there_is_one() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let mut closed = wanted("closed", "10.5.1.0/24");
        closed.internal = true;
        networks.create_network(closed).await.unwrap();
        networks.create_network(wanted("open", "10.5.2.0/24")).await.unwrap();
        let mut a = on(&node, &networks, "a", &["closed"]).await;
        let mapping = cri::PortMapping {
            host_port: 8080,
            container_port: 80,
            ..Default::default()
        };
        a.port_mappings = vec![mapping.clone()];
        let error = try_attach(&networks, &a, |_| ready(())).await.unwrap_err().to_string();
        assert!(error.contains("no network that can be reached from outside"), "{error}");
        assert!(node.ports().is_empty());

        a.networks = Some(
            ["closed", "open"]
                .map(|network| Membership {
                    network: network.into(),
                    ..Membership::default()
                })
                .into(),
        );
        let at = attach(&networks, &a).await;
        tell_callers_who_they_are(&a.netns, 80);
        assert_eq!(call(v4("127.0.0.1"), 8080).unwrap(), "10.5.2.1");
        let at = networks.disconnect(&a, &at, "open").await.unwrap();
        assert!(call(v4("127.0.0.1"), 8080).is_err(), "nothing open leads there");

        // Somebody else has the port meanwhile.
        let mut b = on(&node, &networks, "b", &["open"]).await;
        b.port_mappings = vec![mapping];
        let bt = attach(&networks, &b).await;
        let wish = Membership {
            network: "open".into(),
            ..Membership::default()
        };
        let error = networks
            .connect(&a, &at, &wish, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("8080") && error.contains(&b.pod_id), "{error}");
        networks.detach(&b, &bt).await.unwrap();
        let at = networks.connect(&a, &at, &wish, |_| ready(())).await.unwrap();
        assert!(
            call(v4("127.0.0.1"), 8080).unwrap().starts_with("10.5.2."),
            "it leads there again"
        );
        networks.detach(&a, &at).await.unwrap();
        for name in ["closed", "open"] {
            networks.remove_network(name).await.unwrap();
        }
        assert!(node.ports().is_empty());
    });
}

#[test]
fn networks_have_both_families_or_ipv6_alone_and_names_in_each() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        networks.create_network(wanted("six", "fd00:5::/64")).await.unwrap();
        let mut both = wanted("both", "10.5.1.0/24");
        both.ranges.push(NetworkRange {
            v6: true,
            ..Default::default()
        });
        networks.create_network(both).await.unwrap();
        let a = on(&node, &networks, "a", &["six", "both"]).await;
        let b = on(&node, &networks, "b", &["six"]).await;
        let (at, bt) = (attach(&networks, &a).await, attach(&networks, &b).await);
        assert_eq!(
            (at.ips.as_slice(), at.attachments[1].ips.len()),
            (&["fd00:5::2".to_owned()][..], 2)
        );
        assert_eq!(networks.resolver(&b).unwrap().to_string(), "fd00:5::1");
        tell_callers_who_they_are(&a.netns, 80);
        let to: IpAddr = at.ips[0].parse().unwrap();
        assert_eq!(inside(&b.netns, move || call(to, 80)).unwrap(), bt.ips[0]);
        let netns = b.netns.clone();
        let answer = tokio::task::spawn_blocking(move || {
            inside(&netns, || {
                let socket = UdpSocket::bind("[::]:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                socket.connect("[fd00:5::1]:53").unwrap();
                socket.send(&ask(7, "a", 28)).unwrap();
                let mut answer = vec![0; 512];
                let length = socket.recv(&mut answer).unwrap();
                answer[length - 16..length].to_vec()
            })
        })
        .await
        .unwrap();
        assert_eq!(answer, "fd00:5::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        for (pod, network) in [(&a, &at), (&b, &bt)] {
            networks.detach(pod, network).await.unwrap();
        }
        for name in ["six", "both"] {
            networks.remove_network(name).await.unwrap();
        }
        assert!(node.devices().is_empty(), "{:?}", node.devices());
    });
}

#[test]
fn definitions_that_can_not_be_read_cost_their_own_network_and_no_other() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        for name in ["good", "bad"] {
            networks.create_network(wanted(name, "")).await.unwrap();
        }
        drop(networks);
        let dir = node.config.state_dir.join("networks");
        std::fs::write(dir.join("bad"), [0xff; 7]).unwrap();
        // A daemon was killed while it wrote.
        std::fs::write(dir.join(".half"), "x").unwrap();
        let networks = node.networks().await;
        let names: Vec<_> = networks.definitions().into_iter().map(|network| network.name).collect();
        assert_eq!(names, ["default", "good"]);
        let error = networks
            .create_network(wanted("bad", ""))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("fsck"), "what is there is not overwritten: {error}");
        assert!(!dir.join(".half").exists());
    });
}

#[test]
fn a_pod_on_the_default_network_joins_and_leaves_others() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        networks.create_network(wanted("more", "10.5.1.0/24")).await.unwrap();
        let a = node.pod(&networks, "a").await;
        let at = attach(&networks, &a).await;
        let wish = Membership {
            network: "more".into(),
            ips: vec!["10.5.1.9".parse().unwrap()],
            ..Membership::default()
        };
        let joined = networks.connect(&a, &at, &wish, |_| ready(())).await.unwrap();
        assert_eq!(
            (&joined.ips, joined.attachments[0].ips[0].as_str()),
            (&at.ips, "10.5.1.9")
        );
        assert_eq!(joined.attachments[0].device, "eth1");
        let twice = networks
            .connect(&a, &joined, &wish, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        assert!(twice.contains("is on it already"), "{twice}");
        let b = on(&node, &networks, "b", &["more", "more"]).await;
        let twice = try_attach(&networks, &b, |_| ready(())).await.unwrap_err().to_string();
        assert!(twice.contains("asks for it twice"), "{twice}");
        let held = Membership {
            network: "more".into(),
            ips: vec!["10.5.1.9".parse().unwrap()],
            ..Membership::default()
        };
        let mut b = b;
        b.networks = Some(vec![held]);
        let taken = try_attach(&networks, &b, |_| ready(())).await.unwrap_err().to_string();
        assert!(
            taken.contains(&format!("10.5.1.9 is held by pod {}", a.pod_id)),
            "{taken}"
        );
        let left = networks.disconnect(&a, &joined, "more").await.unwrap();
        assert_eq!(left, at);
        networks.detach(&a, &left).await.unwrap();
        networks.remove_network("more").await.unwrap();
        networks.release_unused().await.unwrap();
        assert!(node.devices().is_empty(), "{:?}", node.devices());
    });
}
