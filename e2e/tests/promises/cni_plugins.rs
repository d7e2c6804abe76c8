//! Debian's CNI plugins (containernetworking-plugins), end to end: what each does is seen in the pod or on the node, and
//! gone with the pod.

use wharf_e2e::pulse::{Server, call};
use wharf_e2e::{Daemon, container, eventually};
use wharf_proto::cri as pb;

use crate::network::cni;
use crate::several_hosts::lan;
use crate::traffic::{addresses, at, netns, node_netns};

/// A daemon with one list of plugins; `DIR` in it is a directory of the test.
async fn with_plugins(dir: &std::path::Path, plugins: &str) -> Daemon {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"e2e","plugins":[{plugins}]}}"#);
    let conf = dir.join("net.d");
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(
        conf.join("10-e2e.conflist"),
        text.replace("DIR", &dir.to_string_lossy()),
    )
    .unwrap();
    Daemon::with(cni(&conf.to_string_lossy(), "/opt/cni/bin", 30)).await
}

const IPAM: &str = r#""ipam":{"type":"host-local","dataDir":"DIR/ipam","ranges":[[{"subnet":"10.88.0.0/24"}]],
    "routes":[{"dst":"0.0.0.0/0"}]}"#;

/// What nft(8) and iptables(8) show of the rules, and the devices, that name `word`.
async fn traces(daemon: &Daemon, word: &str) -> Vec<String> {
    let mut all = String::new();
    for table in ["nat", "filter"] {
        all += &daemon.lab.output("iptables", &["-t", table, "-S"]).await.unwrap();
    }
    all += &daemon.lab.output("ip", &["-o", "link"]).await.unwrap();
    all.lines()
        .filter(|line| line.contains(word))
        .map(str::to_owned)
        .collect()
}

/// Starts a pod with one container; returns the pod, the container and the pod's first address.
async fn started(daemon: &Daemon, config: &pb::PodSandboxConfig) -> (String, String, String) {
    let pod = daemon.cri.run_pod(config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "sleep 1000");
    let id = daemon.started(&pod, config, &main).await;
    let ip = addresses(daemon, &pod).await.remove(0);
    (pod, id, ip)
}

#[tokio::test]
async fn a_chain_of_bridge_portmap_bandwidth_firewall_and_tuning_does_its_work_and_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = format!(
        r#"{{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,{IPAM}}},
        {{"type":"portmap","capabilities":{{"portMappings":true}},"snat":true}},
        {{"type":"bandwidth","capabilities":{{"bandwidth":true}}}},
        {{"type":"firewall"}},
        {{"type":"tuning","sysctl":{{"net.core.somaxconn":"77"}},"mtu":1400}}"#
    );
    let mut daemon = with_plugins(dir.path(), &plugins).await;
    let mut config = daemon.pod("chain");
    config.port_mappings = vec![pb::PortMapping {
        container_port: 80,
        host_port: 8080,
        ..Default::default()
    }];
    for key in ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"] {
        config.annotations.insert(key.into(), "8M".into());
    }
    let (pod, id, ip) = started(&daemon, &config).await;
    let (other, _, _) = started(&daemon, &daemon.pod("other")).await;
    let server = Server::start(&netns(&daemon, &pod), 80, "pod").unwrap();

    let seen = daemon
        .cri
        .shell(&id, "cat /proc/sys/net/core/somaxconn /sys/class/net/eth0/mtu")
        .await;
    assert_eq!(seen.unwrap(), "77\n1400\n", "tuning");
    assert!(
        call(&netns(&daemon, &other), at(&ip, 80)).unwrap().starts_with("pod "),
        "bridge"
    );
    for address in ["127.0.0.1", "10.88.0.1"] {
        let said = call(&node_netns(&daemon), at(address, 8080));
        assert!(
            said.unwrap_or_else(|error| panic!("portmap, {address}: {error}"))
                .starts_with("pod ")
        );
    }
    let said = call(&netns(&daemon, &pod), at("10.88.0.1", 8080)).expect("portmap: a pod reaches itself");
    assert!(said.starts_with("pod "), "{said}");
    let rules = traces(&daemon, &ip).await;
    for word in ["DNAT --to-destination", "CNI-FORWARD", "-A CNI-"] {
        assert!(rules.iter().any(|rule| rule.contains(word)), "{word}: {rules:?}");
    }
    let queues = daemon.lab.output("tc", &["qdisc"]).await.unwrap();
    assert_eq!(queues.matches(" tbf ").count(), 2, "bandwidth, both ways: {queues}");
    let tables = daemon.lab.output("nft", &["list", "tables"]).await.unwrap();
    assert!(
        !tables.contains("wharf-ports"),
        "portmap makes the ports, and nobody else does: {tables}"
    );

    // DEL by a daemon that has not done the ADD.
    daemon.crash().await;
    assert!(
        call(&node_netns(&daemon), at("127.0.0.1", 8080))
            .unwrap()
            .starts_with("pod ")
    );
    drop(server);
    daemon.gone(&pod).await;
    assert_eq!(
        traces(&daemon, &ip).await,
        Vec::<String>::new(),
        "rules that name the pod's address"
    );
    assert_eq!(traces(&daemon, "bwp").await, Vec::<String>::new(), "bandwidth's device");
    assert!(!dir.path().join("ipam/e2e").join(&ip).exists(), "host-local");
    daemon.gone(&other).await;
    daemon.finish().await;
}

#[tokio::test]
async fn ptp_leads_from_the_node_to_each_pod_and_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = with_plugins(dir.path(), &format!(r#"{{"type":"ptp","ipMasq":true,{IPAM}}}"#)).await;
    let (a, _, on_a) = started(&daemon, &daemon.pod("a")).await;
    let (b, _, on_b) = started(&daemon, &daemon.pod("b")).await;
    let server = Server::start(&netns(&daemon, &a), 80, "a").unwrap();
    assert!(call(&node_netns(&daemon), at(&on_a, 80)).unwrap().starts_with("a "));
    assert_eq!(call(&netns(&daemon, &b), at(&on_a, 80)).unwrap(), format!("a {on_b}"));
    drop(server);
    daemon.gone(&a).await;
    assert_eq!(traces(&daemon, &on_a).await, Vec::<String>::new());
    daemon.gone(&b).await;
    daemon.finish().await;
}

#[tokio::test]
async fn macvlan_pods_reach_each_other_beside_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = with_plugins(
        dir.path(),
        &format!(r#"{{"type":"macvlan","master":"outside","mode":"bridge",{IPAM}}}"#),
    )
    .await;
    let switch = lan(&[&daemon], &[]).await;
    let (a, _, on_a) = started(&daemon, &daemon.pod("a")).await;
    let (b, id, on_b) = started(&daemon, &daemon.pod("b")).await;
    let server = Server::start(&netns(&daemon, &a), 80, "a").unwrap();
    assert_eq!(call(&netns(&daemon, &b), at(&on_a, 80)).unwrap(), format!("a {on_b}"));
    let link = daemon.cri.shell(&id, "ip -o link show eth0").await.unwrap();
    assert!(link.contains("eth0@"), "{link}");
    drop(server);
    for pod in [a, b] {
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
    switch.end().await.unwrap();
}

#[tokio::test]
async fn ipvlan_works_where_the_kernel_has_it_and_is_named_where_it_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = with_plugins(
        dir.path(),
        &format!(r#"{{"type":"ipvlan","master":"outside","mode":"l2",{IPAM}}}"#),
    )
    .await;
    let switch = lan(&[&daemon], &[]).await;
    let probe = ["link", "add", "link", "outside", "name", "probe", "type", "ipvlan"];
    if daemon.lab.output("ip", &probe).await.is_ok() {
        daemon.lab.output("ip", &["link", "delete", "probe"]).await.unwrap();
        let (a, _, on_a) = started(&daemon, &daemon.pod("a")).await;
        let (b, _, on_b) = started(&daemon, &daemon.pod("b")).await;
        let server = Server::start(&netns(&daemon, &a), 80, "a").unwrap();
        assert_eq!(call(&netns(&daemon, &b), at(&on_a, 80)).unwrap(), format!("a {on_b}"));
        drop(server);
        for pod in [a, b] {
            daemon.gone(&pod).await;
        }
    } else {
        // A missing kernel module.
        println!("this kernel has no ipvlan");
        let error = daemon
            .cri
            .run_pod(&daemon.pod("a"), "")
            .await
            .expect_err("there is no ipvlan");
        let text = error.message();
        assert!(text.contains("ipvlan") && text.contains("not supported"), "{error}");
    }
    eventually("no address is held", async || {
        let held = std::fs::read_dir(dir.path().join("ipam/e2e"))
            .into_iter()
            .flatten()
            .flatten();
        held.filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
            .count()
            == 0
    })
    .await;
    daemon.finish().await;
    switch.end().await.unwrap();
}
