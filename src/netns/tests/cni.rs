//! Plugins: Debian's, and bad ones.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::*;
use wharf_proto::cri;

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
