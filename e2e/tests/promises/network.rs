//! The built-in network, the host's network, and CNI.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use wharf_e2e::{Daemon, Options, container, eventually};
use wharf_proto::cri as pb;

#[tokio::test]
async fn pods_reach_each_other_and_the_bridge_and_themselves() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let config = daemon.pod(name);
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let ip = daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip;
        let line = format!("nc -ll -p 80 -e echo {name}");
        pods.push((
            daemon.started(&pod, &config, &container("main", &image, &line)).await,
            ip,
            name,
        ));
    }
    assert_ne!(pods[0].1, pods[1].1);
    for (id, _, _) in &pods {
        for (_, ip, name) in &pods {
            eventually("a pod reaches the other and itself", async || {
                daemon
                    .cri
                    .shell(id, &format!("nc {ip} 80 </dev/null"))
                    .await
                    .is_ok_and(|text| text == format!("{name}\n"))
            })
            .await;
        }
    }
    let seen = daemon
        .cri
        .shell(&pods[0].0, "ip -o -4 address show eth0; ip route")
        .await
        .unwrap();
    assert!(seen.contains(&pods[0].1) && seen.contains("default via"), "{seen}");
    // The node reaches its pods.
    let answer = daemon
        .lab
        .output("busybox", &["nc", "-w", "5", &pods[1].1, "80"])
        .await
        .unwrap();
    assert_eq!(answer, "two\n");
    daemon.finish().await;
}

#[tokio::test]
async fn traffic_to_the_outside_carries_the_nodes_address() {
    let daemon = Daemon::start().await;
    let lab = &daemon.lab;
    // "outside" is one end of a pair; its other end is in a namespace that plays the world and knows no pod addresses.
    let mut world = lab
        .command("unshare")
        .args(["--net", "sleep", "1000"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let unshare = lab.inner_pid(&world).await.unwrap();
    let inside = std::fs::read_to_string(format!("/proc/{unshare}/status")).unwrap();
    let inside = inside
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_owned();
    eventually("unshare has its namespace", async || {
        std::fs::read_link(format!("/proc/{unshare}/ns/net")).ok()
            != std::fs::read_link(format!("/proc/{}/ns/net", lab.init)).ok()
    })
    .await;
    for line in [
        "link add outside type veth peer name world",
        &format!("link set world netns {inside}"),
        "address add 192.0.2.1/24 dev outside",
        "link set outside up",
        "route add default via 192.0.2.2",
    ] {
        lab.output("ip", &line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    let enter = |rest: &str| {
        let words = format!("-t {inside} -n {rest}");
        words.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    for rest in ["ip address add 192.0.2.2/24 dev world", "ip link set world up"] {
        let words = enter(rest);
        lab.output("nsenter", &words.iter().map(String::as_str).collect::<Vec<_>>())
            .await
            .unwrap();
    }
    let program = wharf_e2e::lab::program("lab").unwrap();
    let words = enter(&format!("{} whoami 192.0.2.2:8080", program.display()));
    let mut server = lab.command("nsenter").args(&words).kill_on_drop(true).spawn().unwrap();
    let (_, id) = daemon.running("masquerade", "sleep 1000").await;
    eventually("the world answers", async || {
        daemon
            .cri
            .shell(&id, "nc -w 3 192.0.2.2 8080 </dev/null")
            .await
            .is_ok_and(|seen| seen == "192.0.2.1\n")
    })
    .await;
    for (pid, line) in lab.processes() {
        if line.contains("whoami") || line == "sleep 1000" && pid == unshare {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = tokio::join!(server.wait(), world.wait());
    daemon.finish().await;
}

#[tokio::test]
async fn hosts_hostname_and_resolv_conf_are_as_asked() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("names");
    config.hostname = "given-name".into();
    config.dns_config = Some(pb::DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["one.example".into(), "two.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &container("main", &daemon.busybox().await, "sleep 1000"))
        .await;
    assert_eq!(
        daemon.cri.shell(&id, "hostname; cat /etc/hostname").await.unwrap(),
        "given-name\ngiven-name\n"
    );
    let resolv = daemon.cri.shell(&id, "cat /etc/resolv.conf").await.unwrap();
    assert_eq!(
        resolv,
        "search one.example two.example\nnameserver 192.0.2.53\noptions ndots:5\n"
    );
    let hosts = daemon.cri.shell(&id, "cat /etc/hosts").await.unwrap();
    assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
    daemon.finish().await;
}

#[tokio::test]
async fn addresses_are_given_back_and_not_given_twice_after_a_restart() {
    let mut daemon = Daemon::with(Options {
        tables: "[builtin_network]\nsubnet = '10.99.0.0/29'\n".into(),
        ..Options::default()
    })
    .await;
    // 10.99.0.0/29 has five addresses for pods.
    let mut seen = Vec::new();
    for n in 0..5 {
        let pod = daemon.cri.run_pod(&daemon.pod(&format!("p{n}")), "").await.unwrap();
        seen.push((daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip, pod));
    }
    daemon
        .cri
        .run_pod(&daemon.pod("too-many"), "")
        .await
        .expect_err("no address is left");
    daemon.crash().await;
    daemon
        .cri
        .run_pod(&daemon.pod("still-too-many"), "")
        .await
        .expect_err("no address is left after a restart");
    let (ip, pod) = seen.pop().unwrap();
    daemon.gone(&pod).await;
    let pod = daemon.cri.run_pod(&daemon.pod("again"), "").await.unwrap();
    assert_eq!(daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip, ip);
    daemon.finish().await;
}

pub(crate) fn cni(dir: &str, bin: &str, timeout: u32) -> Options {
    Options {
        settings: "network = 'cni'".into(),
        tables: format!(
            "[cni]\nconf_dir = '{dir}'\nbin_dirs = ['{bin}', '/usr/lib/cni']\ntimeout_secs = {timeout}\n\
             cache_dir = '{dir}/cache'\nready_wait_secs = 1\n"
        ),
        ..Options::default()
    }
}

pub(crate) const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"e2e","plugins":[
  {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,
   "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"DIR"}}]}"#;

#[tokio::test]
async fn a_pod_gets_its_address_from_cni_plugins() {
    let dir = tempfile::tempdir().unwrap();
    let conf = BRIDGE.replace("DIR", &dir.path().join("ipam").to_string_lossy());
    std::fs::write(dir.path().join("10-e2e.conflist"), conf).unwrap();
    let daemon = Daemon::with(cni(&dir.path().to_string_lossy(), "/opt/cni/bin", 30)).await;
    let (pod, id) = daemon.running("cni", "sleep 1000").await;
    let ip = daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip;
    assert!(ip.starts_with("10.88.0."), "{ip}");
    assert!(
        daemon
            .cri
            .shell(&id, "ip -o -4 address show eth0")
            .await
            .unwrap()
            .contains(&ip)
    );
    daemon.cri.shell(&id, "ping -c 1 -W 2 127.0.0.1").await.unwrap();
    let lease = dir.path().join("ipam/e2e").join(&ip);
    assert!(lease.exists());
    daemon.cri.stop_pod(&pod).await.unwrap();
    assert!(!lease.exists(), "the address was not given back");
    let results = std::fs::read_dir(dir.path().join("cache/results")).unwrap();
    assert_eq!(results.count(), 0, "the kept result is gone with the pod");
    daemon.finish().await;
}

#[tokio::test]
async fn without_a_cni_configuration_the_network_is_not_ready_and_then_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(cni(&dir.path().to_string_lossy(), "/opt/cni/bin", 30)).await;
    let network = async || {
        let answer = daemon
            .cri
            .runtime
            .clone()
            .status(pb::StatusRequest { verbose: false })
            .await
            .unwrap()
            .into_inner();
        let mut conditions = answer.status.unwrap().conditions.into_iter();
        conditions.find(|condition| condition.r#type == "NetworkReady").unwrap()
    };
    let condition = network().await;
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "NetworkPluginNotReady")
    );
    assert!(!condition.message.is_empty());
    daemon
        .cri
        .run_pod(&daemon.pod("early"), "")
        .await
        .expect_err("there is no network");
    let conf = BRIDGE.replace("DIR", &dir.path().join("ipam").to_string_lossy());
    std::fs::write(dir.path().join("10-e2e.conflist"), conf).unwrap();
    eventually("the network is ready", async || network().await.status).await;
    daemon.cri.run_pod(&daemon.pod("late"), "").await.unwrap();
    daemon.finish().await;
}

/// A daemon whose only plugin is a shell script.
pub(crate) async fn with_plugin(dir: &std::path::Path, script: &str, timeout: u32) -> Daemon {
    let plugin = dir.join("fake");
    std::fs::write(&plugin, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let conf = dir.join("conf");
    std::fs::create_dir_all(&conf).unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake"}]}"#;
    std::fs::write(conf.join("10-fake.conflist"), list).unwrap();
    Daemon::with(cni(&conf.to_string_lossy(), &dir.to_string_lossy(), timeout)).await
}

#[tokio::test]
async fn a_cni_plugin_that_hangs_is_killed_and_the_pod_fails() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = with_plugin(dir.path(), "[ $CNI_COMMAND = ADD ] && sleep 600; exit 0", 1).await;
    let begin = Instant::now();
    let error = daemon
        .cri
        .run_pod(&daemon.pod("hang"), "")
        .await
        .expect_err("the plugin hangs");
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
    assert!(error.message().contains("fake"), "{error}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_cni_plugin_that_prints_garbage_fails_the_pod_and_is_still_asked_to_delete() {
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let script = format!(
        "cat >/dev/null; echo $CNI_COMMAND >> {}; [ $CNI_COMMAND = DEL ] || echo '<html>'",
        calls.display()
    );
    let daemon = with_plugin(dir.path(), &script, 10).await;
    let error = daemon
        .cri
        .run_pod(&daemon.pod("garbage"), "")
        .await
        .expect_err("garbage is no result");
    assert!(error.message().contains("fake"), "{error}");
    for pod in daemon.cri.pods(None).await.unwrap() {
        daemon.gone(&pod.id).await;
    }
    let seen = std::fs::read_to_string(&calls).unwrap();
    assert!(seen.contains("ADD") && seen.contains("DEL"), "{seen}");
    daemon.finish().await;
}

#[tokio::test]
async fn the_error_of_a_cni_plugin_reaches_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","code":100,"msg":"out of cheese","details":"redo from start"}'; exit 1"#;
    let daemon = with_plugin(dir.path(), script, 10).await;
    let error = daemon
        .cri
        .run_pod(&daemon.pod("cheese"), "")
        .await
        .expect_err("the plugin fails");
    assert!(error.message().contains("out of cheese"), "{error}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_creation_that_waits_says_for_what_and_a_retry_joins_it() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!(
        r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
while [ ! -e {} ]; do sleep 0.05; done
echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"x"}}],"ips":[{{"address":"10.9.0.2/24","interface":0}}]}}'"#,
        go.display()
    );
    let daemon = with_plugin(dir.path(), &script, 60).await;
    let config = daemon.pod("waits");
    // Its caller has no patience.
    let call = daemon.cri.run_pod(&config, "");
    tokio::time::timeout(Duration::from_millis(200), call)
        .await
        .expect_err("the plugin waits");
    let creations = async || {
        let request = pb::StatusRequest { verbose: true };
        let answer = daemon.cri.runtime.clone().status(request).await.unwrap();
        let text = answer.into_inner().info["creations"].clone();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    eventually("the creation is shown with its stage", async || {
        let shown = creations().await;
        shown[0]["name"] == "waits" && shown[0]["kind"] == "pod sandbox" && shown[0]["stage"] == "network"
    })
    .await;
    let id = creations().await[0]["id"].clone();
    let (joined, ()) = tokio::join!(daemon.cri.run_pod(&config, ""), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::write(&go, "").unwrap();
    });
    assert_eq!(joined.unwrap(), id.as_str().unwrap());
    assert_eq!(creations().await, serde_json::json!([]));
    daemon.finish().await;
}

#[tokio::test]
async fn a_pod_waits_for_its_network_within_the_callers_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = cni(&dir.path().to_string_lossy(), "/opt/cni/bin", 30);
    options.tables = options.tables.replace("ready_wait_secs = 1", "ready_wait_secs = 300");
    let daemon = Daemon::with(options).await;
    let run = async |name: &str, limit: u64| {
        let mut request = tonic::Request::new(pb::RunPodSandboxRequest {
            config: Some(daemon.pod(name)),
            runtime_handler: String::new(),
        });
        request.set_timeout(Duration::from_secs(limit));
        daemon.cri.runtime.clone().run_pod_sandbox(request).await
    };
    let error = run("hurried", 1).await.expect_err("there is no network");
    assert!(error.message().contains("no CNI network configuration"), "{error}");
    let (patient, ()) = tokio::join!(run("patient", 60), async {
        eventually("the pod is seen to wait", async || {
            let request = pb::StatusRequest { verbose: true };
            let answer = daemon.cri.runtime.clone().status(request).await.unwrap();
            answer.into_inner().info["creations"].contains("wait for the network to be ready")
        })
        .await;
        let conf = BRIDGE.replace("DIR", &dir.path().join("ipam").to_string_lossy());
        std::fs::write(dir.path().join("10-e2e.conflist"), conf).unwrap();
    });
    patient.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_pods_bandwidth_is_limited_both_ways() {
    const BYTES: usize = 2_000_000;
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    // 8 Mbit/s: two seconds for so much, less what waits on the way.
    let limits = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];
    let mut config = daemon.pod("shaped");
    config.annotations = limits.map(|key| (key.to_owned(), "8M".to_owned())).into();
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let ip = daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip;
    let line = format!(
        "nc -ll -p 80 -e head -c {BYTES} /dev/zero & nc -l -p 81 -e sh -c 'wc -c > /count'; echo $(cat /count) bytes; wait"
    );
    let main = container("main", &image, &line);
    let id = daemon.started(&pod, &config, &main).await;
    eventually("it listens", async || {
        let ports = daemon.cri.shell(&id, "netstat -lnt").await.unwrap();
        ports.contains(":80 ") && ports.contains(":81 ")
    })
    .await;
    let begin = Instant::now();
    let fetch = format!("busybox nc {ip} 80 </dev/null | wc -c");
    let fetched = daemon.lab.output("sh", &["-c", &fetch]).await.unwrap();
    let out = begin.elapsed();
    assert_eq!(fetched.trim(), BYTES.to_string());
    let begin = Instant::now();
    let send = format!("head -c {BYTES} /dev/zero | busybox nc {ip} 81");
    daemon.lab.output("sh", &["-c", &send]).await.unwrap();
    let path = wharf_e2e::logs::path(&config, &main);
    eventually("all has come", async || {
        wharf_e2e::logs::text(&path, "stdout").is_ok_and(|text| text == format!("{BYTES} bytes\n"))
    })
    .await;
    let into = begin.elapsed();
    println!("{BYTES} bytes out in {out:?}, in in {into:?}");
    for taken in [out, into] {
        assert!(taken > Duration::from_secs(1), "not limited: {taken:?}");
    }
    daemon.finish().await;
}
