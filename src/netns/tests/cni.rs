//! Plugins: Debian's, and bad ones.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::*;

fn script(node: &Node, name: &str, body: &str) {
    let path = node.scratch.0.join("bin").join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn configure(node: &Node, file: &str, text: &str) {
    let path = node.config.cni.conf_dir.join(file);
    std::fs::write(path, text).unwrap();
}

fn of_type(kind: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"{kind}"}}"#)
}

#[test]
fn debians_plugins_attach_and_detach_a_pod() {
    assert!(
        Path::new("/usr/lib/cni/bridge").exists(),
        "Debian's containernetworking-plugins is not installed: make setup"
    );
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        let networks = node.networks().await;
        let status = networks.status();
        assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
        let data = node.scratch.0.join("ipam");
        configure(
            &node,
            "10-bridge.conflist",
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"test","plugins":[
                {{"type":"bridge","bridge":"cbr0","isGateway":true,"ipMasq":false,
                  "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.66.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
                {{"type":"portmap","capabilities":{{"portMappings":true}},"snat":true}}]}}"#,
                data.display()
            ),
        );
        let deadline = Instant::now() + Duration::from_secs(5);
        while !networks.status().ready {
            assert!(Instant::now() < deadline, "the watcher did not see the configuration");
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut pod = node.pod(&networks, "a").await;
        pod.port_mappings = vec![cri::PortMapping {
            host_port: 8080,
            container_port: 80,
            ..Default::default()
        }];
        let network = attach(&networks, &pod).await;
        assert_eq!(network.ips, ["10.66.0.2"]);
        tell_callers_who_they_are(&pod.netns, 80);
        call(v4("10.66.0.2"), 80).unwrap();
        call(v4("10.66.0.1"), 8080).unwrap();
        // The configuration in use is the recorded one.
        std::fs::remove_file(node.config.cni.conf_dir.join("10-bridge.conflist")).unwrap();
        networks.detach(&pod, &network).await.unwrap();
        assert!(!data.join("test/10.66.0.2").exists());
        networks.remove_namespaces(&node.pins("a")).await.unwrap();
        networks
            .detach(&pod, &network)
            .await
            .expect("a late DEL, with the namespace gone");
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        node.config.cni.timeout_secs = 2;
        // The plugin and its child hold the pipe's other end: reading it to the end waits for the death of both.
        let fifo = node.scratch.0.join("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let alive = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
        script(
            &node,
            "slow",
            &format!(
                "echo thinking >&2\n[ $CNI_COMMAND = DEL ] && exit 0\nexec 3>{}\necho up >&3\nsleep 600 &\nwait",
                fifo.display()
            ),
        );
        configure(&node, "a.conf", &of_type("slow"));
        let networks = node.networks().await;
        let pod = node.pod(&networks, "a").await;
        let error = try_attach(&networks, &pod, |_| ready(()))
            .await
            .unwrap_err()
            .to_string();
        for word in ["slow", "ADD", "2s", "thinking", &pod.netns.display().to_string()] {
            assert!(error.contains(word), "{error}");
        }
        let mut said = String::new();
        let mut alive = alive;
        tokio::time::timeout(Duration::from_secs(10), alive.read_to_string(&mut said))
            .await
            .expect("the plugin or its child is still there")
            .unwrap();
        assert_eq!(said, "up\n");
    });
}

#[test]
fn garbage_and_errors_name_the_plugin() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        let log = node.scratch.0.join("log");
        let note = format!("echo $CNI_COMMAND >> {}\n", log.display());
        script(
            &node,
            "garbage",
            &format!("{note}[ $CNI_COMMAND = ADD ] && echo 'no json here'; true"),
        );
        script(
            &node,
            "angry",
            r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":7,"msg":"no way","details":"at all"}'; exit 1"#,
        );
        script(
            &node,
            "mute",
            "[ $CNI_COMMAND = DEL ] && exit 0; echo why not >&2; exit 3",
        );
        script(&node, "empty", "exit 0");
        let networks = node.networks().await;
        let pod = node.pod(&networks, "a").await;
        for (kind, words) in [
            ("garbage", "the answer is not JSON: no json here"),
            ("angry", "no way: at all"),
            ("mute", "why not"),
            ("absent", "not found in"),
            ("empty", "no address"),
        ] {
            configure(&node, "a.conf", &of_type(kind));
            let mut noted = None;
            let error = try_attach(&networks, &pod, |network| {
                noted = Some(network);
                ready(())
            })
            .await
            .unwrap_err()
            .to_string();
            assert!(
                error.contains(words) && error.contains(&format!("plugin {kind}")),
                "{error}"
            );
            assert!(noted.unwrap().attempted);
        }
        assert_eq!(
            std::fs::read_to_string(log).unwrap(),
            "ADD\nDEL\n",
            "a failed ADD is followed by DEL"
        );
    });
}

#[test]
fn a_chain_hands_on_results_and_is_undone_backwards() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        let log = node.scratch.0.join("log");
        for name in ["one", "two"] {
            let body = format!(
                "input=$(cat); echo \"$CNI_COMMAND {name} $CNI_NETNS $input\" >> {}\n[ $CNI_COMMAND = DEL ] || \
                 echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.0.0.9/24\"}}],\"by\":\"{name}\"}}'",
                log.display()
            );
            script(&node, name, &body);
        }
        configure(&node, "b.conf", &of_type("never"));
        configure(
            &node,
            "a.conflist",
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"one"},{"type":"two","capabilities":{"bandwidth":true}}]}"#,
        );
        let networks = node.networks().await;
        let mut pod = node.pod(&networks, "a").await;
        pod.annotations
            .insert("kubernetes.io/egress-bandwidth".into(), "1M".into());
        let network = attach(&networks, &pod).await;
        networks.remove_namespaces(&node.pins("a")).await.unwrap();
        networks.detach(&pod, &network).await.unwrap();
        let text = std::fs::read_to_string(log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let netns = pod.netns.display();
        assert!(
            lines[0].starts_with(&format!("ADD one {netns} ")) && !lines[0].contains("prevResult"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("ADD two ") && lines[1].contains(r#""by":"one""#),
            "{text}"
        );
        assert!(
            lines[1].contains(r#""egressRate":1000000"#) && !lines[1].contains("capabilities"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("DEL two  {") && lines[2].contains(r#""by":"two""#),
            "{text}"
        );
        assert!(lines[3].starts_with("DEL one  {"), "{text}");
        assert_eq!(network.ips, ["10.0.0.9"]);
    });
}

/// A plugin of version 1.1.0 that notes its calls in `log`, with what it reads where that is asked for, and says that it
/// is not ready while `down` is there.
fn noting(node: &Node, name: &str) {
    let dir = node.scratch.0.display();
    let body = format!(
        r#"input=$(cat | tr -d '\n')
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS] $input" >> {dir}/log
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}}' ;;
STATUS) [ -e {dir}/down ] && {{ echo '{{"code":50,"msg":"still asleep"}}'; exit 1; }} ;;
CHECK) echo '{{"code":100,"msg":"the cable is out"}}'; exit 1 ;;
ADD) echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.0.0.9/24"}}]}}' ;;
esac
exit 0"#
    );
    script(node, name, &body);
}

fn log(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(node.scratch.0.join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until `what` holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn newest(kind: &str) -> String {
    format!(r#"{{"cniVersion":"1.1.0","name":"n","plugins":[{{"type":"{kind}"}}]}}"#)
}

#[test]
fn a_network_that_falls_asleep_stays_ready_for_its_grace_and_pods_wait_for_one_that_is_not() {
    for grace in [3600, 0] {
        on_a_node(move |mut node| async move {
            cni_mode(&mut node);
            node.config.cni.status_interval_secs = 1;
            node.config.cni.status_grace_secs = grace;
            node.config.cni.ready_wait_secs = 60;
            noting(&node, "noting");
            configure(&node, "a.conflist", &newest("noting"));
            let networks = node.networks().await;
            until("it is ready", || networks.status().ready).await;
            let down = node.scratch.0.join("down");
            std::fs::write(&down, "").unwrap();
            let asked = log(&node).len();
            until("it is asked twice", || log(&node).len() >= asked + 2).await;
            if grace > 0 {
                assert!(networks.status().ready, "a plugin's upgrade must not flip the node");
                return;
            }
            until("it is not ready", || !networks.status().ready).await;
            let status = networks.status();
            assert_eq!(status.reason, "NetworkPluginNotReady");
            assert!(status.message.contains("still asleep"), "{}", status.message);
            let pod = node.pod(&networks, "a").await;
            let soon = Some(Instant::now());
            let error = networks.ready(&pod, soon).await.unwrap_err().to_string();
            assert!(error.contains("still asleep"), "{error}");
            assert!(!networks.is_usable(&pod));
            let (network, ()) = tokio::join!(attach(&networks, &pod), async {
                std::fs::remove_file(&down).unwrap();
            });
            assert_eq!(network.ips, ["10.0.0.9"]);
        });
    }
}

#[test]
fn a_half_written_configuration_takes_nothing_away() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        noting(&node, "noting");
        configure(&node, "a.conf", &of_type("noting"));
        let networks = node.networks().await;
        assert!(networks.status().ready);
        configure(&node, "a.conf", r#"{"cniVersion":"1.0.0","na"#);
        let pod = node.pod(&networks, "a").await;
        let network = attach(&networks, &pod).await;
        assert!(networks.status().ready);
        networks.detach(&pod, &network).await.unwrap();
    });
}

#[test]
fn what_nobody_needs_is_collected_and_what_lives_is_checked() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        noting(&node, "noting");
        configure(&node, "a.conflist", &newest("noting"));
        let networks = node.networks().await;
        let mut pods = Vec::new();
        for name in ["living", "dead"] {
            let pod = node.pod(&networks, name).await;
            let network = attach(&networks, &pod).await;
            pods.push((pod, network));
        }
        let kept = |pod: &PodNetwork| node.scratch.0.join(format!("cache/results/n-{}-eth0", pod.pod_id));
        let text = std::fs::read_to_string(kept(&pods[1].0)).unwrap();
        let entry: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&entry["kind"], &entry["networkName"]),
            (&"cniCacheV1".into(), &"n".into())
        );
        assert_eq!(entry["result"]["cniVersion"], "1.1.0", "translated from 1.0.0");
        // The daemon comes back and finds only one of them.
        drop(networks);
        let before = log(&node).len();
        let networks = node.networks().await;
        networks.recover(&pods[..1]).await.unwrap();
        let (living, dead) = (pods[0].0.pod_id.clone(), pods[1].0.pod_id.clone());
        until("GC and CHECK", || {
            log(&node).iter().any(|line| line.starts_with("CHECK"))
        })
        .await;
        let seen = log(&node).split_off(before);
        let at = |begin: &str| {
            seen.iter()
                .position(|line| line.starts_with(begin))
                .unwrap_or_else(|| panic!("{begin}: {seen:?}"))
        };
        let gc = &seen[at("GC ")];
        assert!(at(&format!("DEL {dead} eth0")) < at("GC "), "{seen:?}");
        let valid = format!(r#""cni.dev/valid-attachments":[{{"containerID":"{living}","ifname":"eth0"}}]"#);
        assert!(gc.contains(&valid), "{gc}");
        let check = &seen[at(&format!("CHECK {living} eth0"))];
        assert!(
            check.contains(r#""prevResult""#) && check.contains("10.0.0.9"),
            "{check}"
        );
        assert!(kept(&pods[0].0).exists() && !kept(&pods[1].0).exists());
        networks.detach(&pods[0].0, &pods[0].1).await.unwrap();
        assert!(!kept(&pods[0].0).exists());
    });
}

#[test]
fn a_list_may_forbid_gc_and_check() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        noting(&node, "noting");
        let text =
            r#"{"cniVersion":"1.1.0","name":"n","disableGC":true,"disableCheck":true,"plugins":[{"type":"noting"}]}"#;
        configure(&node, "a.conflist", text);
        // Its rounds end with those of the second, which comes later by name.
        let more = node.scratch.0.join("more");
        std::fs::create_dir(&more).unwrap();
        std::fs::write(more.join("b.conflist"), newest("noting").replace("\"n\"", "\"second\"")).unwrap();
        let handler = crate::config::RuntimeHandler {
            cni_conf_dir: Some(more),
            ..Default::default()
        };
        node.config.runtimes.insert("other".into(), handler);
        let networks = node.networks().await;
        let mut pods = Vec::new();
        for (name, handler) in [("a", ""), ("b", "other")] {
            let mut pod = node.pod(&networks, name).await;
            pod.handler = handler.into();
            let network = attach(&networks, &pod).await;
            pods.push((pod, network));
        }
        let adds: Vec<_> = log(&node).into_iter().filter(|line| line.starts_with("ADD")).collect();
        assert!(
            adds[0].contains(r#""name":"n""#) && adds[1].contains(r#""name":"second""#),
            "{adds:?}"
        );
        networks.recover(&pods).await.unwrap();
        until("CHECK", || log(&node).iter().any(|line| line.starts_with("CHECK"))).await;
        for line in log(&node)
            .iter()
            .filter(|line| line.starts_with("GC") || line.starts_with("CHECK"))
        {
            assert!(line.contains(r#""name":"second""#), "{line}");
        }
    });
}

#[test]
fn versions_are_negotiated_where_a_list_leaves_a_choice_and_named_where_they_do_not_fit() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        noting(&node, "noting");
        script(
            &node,
            "claims",
            "[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"7.0.0\",\"ips\":[]}'; exit 0",
        );
        script(
            &node,
            "old",
            "[ $CNI_COMMAND = VERSION ] && { echo '{\"supportedVersions\":[\"0.1.0\",\"0.2.0\"]}'; exit 0; }\n\
             [ $CNI_COMMAND = DEL ] && exit 0; echo '{\"code\":1,\"msg\":\"incompatible CNI versions\"}'; exit 1",
        );
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.0.0","1.1.0"],"name":"n","plugins":[{"type":"noting"}]}"#;
        configure(&node, "a.conflist", text);
        let networks = node.networks().await;
        let pod = node.pod(&networks, "a").await;
        let network = attach(&networks, &pod).await;
        networks.detach(&pod, &network).await.unwrap();
        for line in log(&node)
            .iter()
            .filter(|line| line.starts_with("ADD") || line.starts_with("DEL"))
        {
            assert!(line.contains(r#""cniVersion":"1.0.0""#), "{line}");
        }
        std::fs::remove_file(node.config.cni.conf_dir.join("a.conflist")).unwrap();
        for (kind, words) in [("claims", "7.0.0"), ("old", "it speaks 0.1.0, 0.2.0")] {
            configure(&node, "a.conf", &of_type(kind));
            let error = try_attach(&networks, &pod, |_| ready(()))
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        }
    });
}

#[test]
fn kubelets_pod_cidr_fills_a_template_once() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        let template = node.scratch.0.join("template");
        let text = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"{{.PodCIDR}}"}}]}"#;
        std::fs::write(&template, text).unwrap();
        node.config.cni.conf_template = Some(template);
        let networks = node.networks().await;
        assert!(!networks.status().ready);
        networks.set_pod_cidr("10.64.7.0/24").await.unwrap();
        assert!(networks.status().ready, "{:?}", networks.status());
        networks.set_pod_cidr("10.64.8.0/24").await.unwrap();
        let made = std::fs::read_to_string(node.config.cni.conf_dir.join("10-wharf.conflist")).unwrap();
        assert!(made.contains("10.64.7.0/24"), "{made}");
        let error = networks.set_pod_cidr("10.64.8.0").await.unwrap_err().to_string();
        assert!(error.contains("10.64.8.0"), "{error}");
    });
}

#[test]
fn debians_plugins_of_every_kind_attach_check_and_detach() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        Links::open()
            .unwrap()
            .add_bridge("uplink", [2, 0, 0, 0, 0, 1], 1500)
            .unwrap();
        let data = node.scratch.0.join("ipam").display().to_string();
        let ipam = |net: u8| {
            format!(r#""ipam":{{"type":"host-local","dataDir":"{data}","ranges":[[{{"subnet":"10.65.{net}.0/24"}}]]}}"#)
        };
        let plugins = [
            format!(
                r#"{{"type":"bridge","bridge":"cbr1","isGateway":true,{}}},{{"type":"tuning","sysctl":{{"net.core.somaxconn":"77"}}}}"#,
                ipam(1)
            ),
            format!(r#"{{"type":"ptp",{}}}"#, ipam(2)),
            format!(r#"{{"type":"macvlan","master":"uplink",{}}}"#, ipam(3)),
        ];
        for (number, plugins) in plugins.iter().enumerate() {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"net{number}","plugins":[{plugins}]}}"#);
            configure(&node, &format!("{number}.conflist"), &text);
        }
        // All of them in one pod: eth0 to eth2.
        node.config.cni.max_networks = 0;
        let networks = node.networks().await;
        let pod = node.pod(&networks, "a").await;
        let network = attach(&networks, &pod).await;
        assert_eq!(network.ips, ["10.65.1.2"], "kubelet is told of the first network");
        let netns = pod.netns.clone();
        let seen = inside(&netns, || {
            let mut links = Links::open().unwrap();
            let there = (0..3).all(|number| links.find(&format!("eth{number}")).unwrap().is_some());
            (there, links.find("eth3").unwrap().is_none())
        });
        assert_eq!(seen, (true, true));
        assert_eq!(network.more.len(), 2);
        networks.detach(&pod, &network).await.unwrap();
        let left = inside(&netns, || {
            (0..3)
                .filter(|number| Links::open().unwrap().find(&format!("eth{number}")).unwrap().is_some())
                .count()
        });
        assert_eq!(left, 0);
        let results = std::fs::read_dir(node.scratch.0.join("cache/results")).unwrap().count();
        assert_eq!(results, 0);
    });
}

#[test]
fn host_ports_are_made_here_where_no_plugin_makes_them() {
    on_a_node(|mut node| async move {
        cni_mode(&mut node);
        let data = node.scratch.0.join("ipam").display().to_string();
        let ipam = |net: u8| {
            format!(
                r#""ipam":{{"type":"host-local","dataDir":"{data}","ranges":[[{{"subnet":"10.67.{net}.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}"#
            )
        };
        for (number, plugin) in [
            format!(
                r#"{{"type":"bridge","bridge":"cbr0","isGateway":true,"hairpinMode":true,{}}}"#,
                ipam(1)
            ),
            format!(r#"{{"type":"ptp",{}}}"#, ipam(2)),
        ]
        .iter()
        .enumerate()
        {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"net{number}","plugins":[{plugin}]}}"#);
            configure(&node, "a.conflist", &text);
            let networks = node.networks().await;
            let mapping = |host_port| cri::PortMapping {
                host_port,
                container_port: 80,
                ..Default::default()
            };
            let mut a = node.pod(&networks, &format!("a{number}")).await;
            a.port_mappings = vec![mapping(8080)];
            let b = node.pod(&networks, &format!("b{number}")).await;
            let (at, bt) = (attach(&networks, &a).await, attach(&networks, &b).await);
            tell_callers_who_they_are(&a.netns, 80);
            call(v4("127.0.0.1"), 8080).unwrap_or_else(|error| panic!("{plugin}: localhost: {error}"));
            // By the node's address: what the pod's default route leads to.
            let node_ip = v4(&format!("10.67.{}.1", number + 1));
            for caller in [&a, &b] {
                inside(&caller.netns, move || call(node_ip, 8080)).unwrap_or_else(|error| panic!("{plugin}: {error}"));
            }
            let mut rival = node.pod(&networks, &format!("r{number}")).await;
            rival.port_mappings = vec![mapping(8080)];
            let error = try_attach(&networks, &rival, |_| ready(()))
                .await
                .unwrap_err()
                .to_string();
            assert_eq!(error, format!("host port tcp/8080 is held by pod {}", a.pod_id));
            for (pod, network) in [(&a, &at), (&b, &bt)] {
                networks.detach(pod, network).await.unwrap();
            }
            assert!(call(v4("127.0.0.1"), 8080).is_err());
            assert_eq!(node.ports(), Vec::<String>::new());
        }
    });
}
