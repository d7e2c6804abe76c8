//! A reboot: nothing of a pod runs any more, and nothing of it may stay but what kubelet wants to read.

use std::path::Path;

use wharf_e2e::power::RunDir;
use wharf_e2e::{Daemon, container, eventually, host_network_pod, specs};
use wharf_proto::cri::{self as pb, ContainerState, PodSandboxState};

use crate::network::{BRIDGE, cni};

/// Addresses that somebody has, on the built-in network.
fn leases(daemon: &Daemon) -> Vec<String> {
    let list = |directory| std::fs::read_dir(daemon.state_dir.join(directory)).into_iter();
    let entries = list("ipam/wharf0").chain(list("ipam/ports"));
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// What a container's status says of its end.
fn end(status: &pb::ContainerStatus) -> (ContainerState, i32, &str) {
    (status.state(), status.exit_code, status.reason.as_str())
}

#[tokio::test]
async fn after_a_reboot_pods_are_not_ready_and_containers_ended_as_last_known() {
    for run_dir in [RunDir::Tmpfs, RunDir::OnDisk] {
        let mut daemon = Daemon::start().await;
        let image = daemon.busybox().await;
        let mut config = daemon.pod("reboot");
        specs::namespaces(&mut config).pid = pb::NamespaceMode::Pod.into();
        config.port_mappings = vec![pb::PortMapping {
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        }];
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let start = async |name: &str, line: &str| daemon.started(&pod, &config, &container(name, &image, line)).await;
        let known = start("known", "exit 3").await;
        daemon.cri.exited(&known).await.unwrap();
        let runs = start("runs", "sleep 1000").await;
        let unseen = start("unseen", "while [ ! -e /go ]; do sleep 0.05; done; exit 4").await;
        let created = container("created", &image, "sleep 1000");
        let created = daemon.cri.create(&pod, &created, &config).await.unwrap();
        let host = host_network_pod("host", &daemon.logs);
        let on_host = daemon.cri.run_pod(&host, "").await.unwrap();
        let started = daemon
            .started(&on_host, &host, &container("main", &image, "sleep 1000"))
            .await;
        assert_eq!(leases(&daemon).len(), 2, "address and port");

        // One ends while no daemon looks; its monitor has written how.
        daemon
            .cri
            .shell(&unseen, "(sleep 1; touch /go) >/dev/null 2>&1 &")
            .await
            .unwrap();
        daemon.end(nix::sys::signal::Signal::SIGTERM).await.unwrap();
        let written = daemon.state_dir.join(format!("pods/{pod}/containers/{unseen}/exit"));
        eventually("the monitor writes the end", async || written.exists()).await;
        daemon.reboot(run_dir).await.unwrap();

        let pods = daemon.cri.pods(None).await.unwrap();
        assert_eq!(pods.len(), 2);
        assert!(
            pods.iter().all(|pod| pod.state() == PodSandboxState::SandboxNotready),
            "{pods:?}"
        );
        let status = daemon.cri.pod_status(&pod).await.unwrap();
        assert_eq!(status.network.unwrap_or_default().ip, "", "rule 10");
        for (id, expected) in [
            (&known, (ContainerState::ContainerExited, 3, "Error")),
            (&unseen, (ContainerState::ContainerExited, 4, "Error")),
            (&runs, (ContainerState::ContainerExited, 255, "Unknown")),
            (&started, (ContainerState::ContainerExited, 255, "Unknown")),
            (&created, (ContainerState::ContainerCreated, 0, "")),
        ] {
            let status = daemon.cri.status(id).await.unwrap();
            assert_eq!(end(&status), expected);
            let ended = expected.0 == ContainerState::ContainerExited;
            assert_eq!(status.finished_at > 0, ended, "{status:?}");
        }
        let refused = daemon.cri.start(&created).await.expect_err("its pod has gone");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");

        // Nobody has to ask for it.
        eventually("addresses and ports are free", async || leases(&daemon).is_empty()).await;
        eventually("nothing is pinned or mounted", async || {
            let pods = std::fs::read_dir(daemon.run_dir.join("pods"))
                .into_iter()
                .flatten()
                .count();
            pods == 0 && daemon.lab.mounts_below(&daemon.run_dir).is_empty()
        })
        .await;

        // The images are there, and the same pod can come again.
        assert!(daemon.cri.image(&image).await.unwrap().is_some());
        config.metadata.as_mut().unwrap().attempt += 1;
        let again = daemon.cri.run_pod(&config, "").await.unwrap();
        let id = daemon
            .started(&again, &config, &container("main", &image, "sleep 1000"))
            .await;
        assert_eq!(daemon.cri.shell(&id, "echo up").await.unwrap(), "up\n");
        for pod in [&pod, &on_host] {
            daemon.gone(pod).await;
        }
        assert_eq!(daemon.cri.shell(&id, "echo still").await.unwrap(), "still\n");
        daemon.finish().await;
    }
}

#[tokio::test]
async fn after_a_reboot_cni_plugins_are_told_and_their_addresses_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let conf = BRIDGE.replace("DIR", &dir.path().join("ipam").to_string_lossy());
    std::fs::write(dir.path().join("10-e2e.conflist"), conf).unwrap();
    let mut daemon = Daemon::with(cni(&dir.path().to_string_lossy(), "/opt/cni/bin", 30)).await;
    let leases = |dir: &Path| {
        let entries = std::fs::read_dir(dir.join("ipam/e2e")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.88.")).count()
    };
    for name in ["one", "two", "three"] {
        daemon.running(name, "sleep 1000").await;
    }
    assert_eq!(leases(dir.path()), 3);
    daemon.reboot(RunDir::Tmpfs).await.unwrap();
    eventually("every address is given back", async || leases(dir.path()) == 0).await;
    let pods = daemon.cri.pods(None).await.unwrap();
    assert_eq!(pods.len(), 3, "they are listed until kubelet removes them");
    let (_, id) = daemon.running("after", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&id, "echo up").await.unwrap(), "up\n");
    daemon.finish().await;
}

/// Records are not synced: a power loss may leave their names and not their bytes.
#[tokio::test]
async fn records_that_a_power_loss_has_emptied_cost_nothing_but_their_own_objects() {
    let mut daemon = Daemon::start().await;
    let (whole, kept) = daemon.running("whole", "exit 5").await;
    daemon.cri.exited(&kept).await.unwrap();
    let (half, lost) = daemon.running("half", "sleep 1000").await;
    let (torn, _) = daemon.running("torn", "sleep 1000").await;
    daemon.all_ends().await.unwrap();
    std::fs::remove_dir_all(&daemon.run_dir).unwrap();
    let pods = daemon.state_dir.join("pods");
    std::fs::write(pods.join(&torn).join("record"), "").unwrap();
    std::fs::write(pods.join(&half).join("containers").join(&lost).join("record"), "").unwrap();
    daemon.next_boot();
    daemon.start_again().await.unwrap();
    let status = daemon.cri.status(&kept).await.unwrap();
    assert_eq!(end(&status), (ContainerState::ContainerExited, 5, "Error"));
    eventually("what has no record is taken down", async || {
        !pods.join(&torn).exists() && !pods.join(&half).join("containers").join(&lost).exists()
    })
    .await;
    let mut listed: Vec<_> = daemon
        .cri
        .pods(None)
        .await
        .unwrap()
        .into_iter()
        .map(|pod| pod.id)
        .collect();
    listed.sort();
    let mut expected = vec![whole, half];
    expected.sort();
    assert_eq!(listed, expected);
    eventually("every address is free", async || leases(&daemon).is_empty()).await;
    daemon.finish().await;
}
