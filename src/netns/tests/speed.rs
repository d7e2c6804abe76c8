//! How long it takes to attach pods, one by one and many at once (`make bench-network`).

use std::time::Instant;

use super::*;

#[test]
fn two_hundred_at_once_come_and_go_and_leave_nothing() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let mut pods = Vec::new();
        for number in 0..200 {
            let mut pod = node.pod(&networks, &format!("p{number}")).await;
            pod.port_mappings = vec![mapping(20_000 + number, 80, "")];
            pods.push(pod);
        }
        for _ in 0..2 {
            let start = Instant::now();
            let attached = futures_util::future::join_all(pods.iter().map(|pod| attach(&networks, pod))).await;
            let up = start.elapsed();
            let addresses: std::collections::HashSet<_> = attached.iter().flat_map(|network| &network.ips).collect();
            assert_eq!(addresses.len(), 400);
            assert_eq!(node.devices().len(), 201);
            let start = Instant::now();
            let gone = pods
                .iter()
                .zip(&attached)
                .map(|(pod, network)| networks.detach(pod, network));
            for result in futures_util::future::join_all(gone).await {
                result.unwrap();
            }
            println!("200 attached in {up:?}, detached in {:?}", start.elapsed());
            networks.release_unused().await.unwrap();
            assert_eq!((node.devices(), node.leases()), (vec![], vec![]));
        }
    });
}

#[test]
fn one_pod_is_attached_in_milliseconds() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let keeper = node.pod(&networks, "keeper").await;
        let kept = attach(&networks, &keeper).await;
        let (mut made, mut up, mut down, mut unpinned) = (vec![], vec![], vec![], vec![]);
        for number in 0..30 {
            let start = Instant::now();
            let pod = node.pod(&networks, &format!("p{number}")).await;
            made.push(start.elapsed());
            let start = Instant::now();
            let network = attach(&networks, &pod).await;
            up.push(start.elapsed());
            let start = Instant::now();
            networks.detach(&pod, &network).await.unwrap();
            down.push(start.elapsed());
            let start = Instant::now();
            networks
                .remove_namespaces(&node.pins(&format!("p{number}")))
                .await
                .unwrap();
            unpinned.push(start.elapsed());
        }
        for (name, times) in [
            ("create", &mut made),
            ("attach", &mut up),
            ("detach", &mut down),
            ("unpin", &mut unpinned),
        ] {
            times.sort();
            println!("{name}: median {:?}, largest {:?}", times[15], times[29]);
        }
        networks.detach(&keeper, &kept).await.unwrap();
        let start = Instant::now();
        let network = attach(&networks, &keeper).await;
        let first = start.elapsed();
        let start = Instant::now();
        networks.detach(&keeper, &network).await.unwrap();
        println!("first {first:?}, last {:?}", start.elapsed());

        // On a named network, and with a host port.
        let mut wanted = record::NamedNetwork {
            name: "front".into(),
            ..Default::default()
        };
        wanted.ranges.push(record::NetworkRange {
            subnet: "10.5.1.0/24".into(),
            ..Default::default()
        });
        networks.create_network(wanted).await.unwrap();
        let on_front = Some(vec![crate::netns::Membership {
            network: "front".into(),
            ..Default::default()
        }]);
        for (name, memberships, ports) in [
            ("named network", on_front, vec![]),
            ("host port", None, vec![mapping(8080, 80, "")]),
        ] {
            let (mut up, mut down) = (vec![], vec![]);
            for number in 0..31 {
                let mut pod = node.pod(&networks, &format!("{number} {name}")).await;
                (pod.networks, pod.port_mappings) = (memberships.clone(), ports.clone());
                let start = Instant::now();
                let network = attach(&networks, &pod).await;
                up.push(start.elapsed());
                let start = Instant::now();
                networks.detach(&pod, &network).await.unwrap();
                down.push(start.elapsed());
            }
            // The first makes the bridge.
            for (what, times) in [("attach", &mut up[1..]), ("detach", &mut down[1..])] {
                times.sort();
                println!("{name}: {what}: median {:?}, largest {:?}", times[15], times[29]);
            }
        }
        networks.remove_network("front").await.unwrap();

        // Beside it, the same by CNI's bridge plugin.
        let mut node = node;
        cni_mode(&mut node);
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"cbr0","isGateway":true,"ipMasq":false,
              "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.68.0.0/24"}}]]}}}}"#,
            node.scratch.0.join("ipam").display()
        );
        std::fs::write(node.config.cni.conf_dir.join("a.conf"), text).unwrap();
        let networks = node.networks().await;
        let (mut up, mut down) = (vec![], vec![]);
        for number in 0..10 {
            let pod = node.pod(&networks, &format!("c{number}")).await;
            let start = Instant::now();
            let network = attach(&networks, &pod).await;
            up.push(start.elapsed());
            let start = Instant::now();
            networks.detach(&pod, &network).await.unwrap();
            down.push(start.elapsed());
        }
        for (name, times) in [("CNI bridge ADD", &mut up), ("CNI bridge DEL", &mut down)] {
            times.sort();
            println!("{name}: median {:?}, largest {:?}", times[5], times[9]);
        }
    });
}
