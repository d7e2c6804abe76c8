//! Network devices of the node's in pods: by CDI and by NRI plugins, whatever the handler, and back again.

use tempfile::TempDir;
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri as pb;

const DEVICE: &str = "cdiVersion: 1.1.0\nkind: acme.org/net\ndevices:\n- name: fast\n  containerEdits:\n    netDevices:\n    \
                      - hostInterfaceName: give0\n      name: net7\n- name: gone\n  containerEdits:\n    netDevices:\n    \
                      - hostInterfaceName: give9\n      name: net9\n- name: taken\n  containerEdits:\n    netDevices:\n    \
                      - hostInterfaceName: other0\n      name: eth0\n";

/// A daemon that knows those devices, on a node that has `give0` with addresses and `other0`, each with a peer.
async fn node(dir: &TempDir, handler: &str) -> Daemon {
    std::fs::write(dir.path().join("net.yaml"), DEVICE).unwrap();
    let mut options = Options::handler(handler);
    options.tables = format!("[cdi]\nspec_dirs = ['{}']\n", dir.path().display());
    let daemon = Daemon::with(options).await;
    for line in [
        "link add give0 type veth peer name stay0",
        "addr add 192.0.2.1/30 dev give0",
        "addr add fd12::1/64 dev give0 nodad",
        "addr add 192.0.2.2/30 dev stay0",
        "link set give0 up",
        "link set stay0 up",
        "link add other0 type veth peer name other1",
    ] {
        ip(&daemon, line).await;
    }
    daemon
}

async fn ip(daemon: &Daemon, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    daemon.lab.output("ip", &words).await.unwrap()
}

async fn finish(daemon: Daemon) {
    ip(&daemon, "link del stay0").await;
    ip(&daemon, "link del other1").await;
    daemon.finish().await;
}

async fn with_device(daemon: &Daemon, name: &str, device: &str) -> pb::ContainerConfig {
    let mut config = container(name, &daemon.busybox().await, "exec sleep 1000");
    config.cdi_devices = vec![pb::CdiDevice {
        name: format!("acme.org/net={device}"),
    }];
    config
}

#[tokio::test]
async fn a_pod_has_a_device_of_the_nodes_until_it_ends() {
    for handler in super::handlers() {
        println!("---- handler {handler}");
        let dir = TempDir::with_prefix("we.net.").unwrap();
        let mut daemon = node(&dir, &handler).await;
        let config = daemon.pod("net");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = with_device(&daemon, "main", "fast").await;
        let id = daemon.started(&pod, &config, &main).await;
        let seen = daemon.cri.shell(&id, "ip addr show net7").await.unwrap();
        for part in ["UP", "inet 192.0.2.1/30", "inet6 fd12::1/64"] {
            assert!(seen.contains(part), "{part}: {seen}");
        }
        let reached = daemon.cri.shell(&id, "ping -c 1 -W 5 192.0.2.2").await.unwrap();
        assert!(reached.contains("1 packets received"), "{reached}");
        assert!(!ip(&daemon, "-o link").await.contains("give0"));

        // A container that is started again finds it in the pod, also with another daemon.
        daemon.cri.stop(&id, 0).await.unwrap();
        daemon.crash().await;
        main.metadata.as_mut().unwrap().attempt = 1;
        let again = daemon.started(&pod, &config, &main).await;
        let seen = daemon.cri.shell(&again, "ip addr show net7").await.unwrap();
        assert!(seen.contains("192.0.2.1/30"), "{seen}");

        // Another pod can't have it meanwhile.
        let second = daemon.pod("second");
        let other = daemon.cri.run_pod(&second, "").await.unwrap();
        let wants = daemon.cri.create(&other, &main, &second).await.unwrap();
        let error = daemon.cri.start(&wants).await.unwrap_err();
        assert!(error.message().contains("\"give0\": is not on the node"), "{error:?}");

        daemon.cri.stop_pod(&pod).await.unwrap();
        let back = ip(&daemon, "-o addr show dev give0").await;
        for part in ["inet 192.0.2.1/30", "inet6 fd12::1/64"] {
            assert!(back.contains(part), "{part}: {back}");
        }
        assert!(ip(&daemon, "-o link show dev give0").await.contains(",UP"));
        finish(daemon).await;
    }
}

#[tokio::test]
async fn a_device_that_can_not_be_had_fails_the_start_and_stays_where_it_is() {
    let dir = TempDir::with_prefix("we.net.").unwrap();
    let daemon = node(&dir, "builtin").await;
    let config = daemon.pod("net");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    for (device, part) in [
        ("gone", "\"give9\": is not on the node"),
        ("taken", "\"other0\": the pod has a device called \"eth0\" already"),
    ] {
        let main = with_device(&daemon, device, device).await;
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        let error = daemon.cri.start(&id).await.unwrap_err();
        assert!(error.message().contains(part), "{error:?}");
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    }
    assert!(ip(&daemon, "-o link").await.contains("other0@"));

    let mut config = daemon.pod("on-the-node");
    config.hostname.clear();
    wharf_e2e::specs::namespaces(&mut config).network = pb::NamespaceMode::Node.into();
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = with_device(&daemon, "main", "fast").await;
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    let error = daemon.cri.start(&id).await.unwrap_err();
    assert!(error.message().contains("is on the node's network"), "{error:?}");
    finish(daemon).await;
}
