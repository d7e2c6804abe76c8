//! Stats of pods and containers, and `wharf stats`.

use std::time::Duration;

use tonic::Code;
use wharf_e2e::cri::{Answer, code};
use wharf_e2e::specs::map;
use wharf_e2e::{Daemon, container, eventually};
use wharf_proto::cri as pb;

use crate::on_each_handler;

pub const MIB: u64 = 1 << 20;

pub async fn stats(daemon: &Daemon, id: &str) -> Answer<pb::ContainerStats> {
    let request = pb::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let answer = daemon.cri.runtime.clone().container_stats(request).await?;
    Ok(answer.into_inner().stats.expect("an answer has stats"))
}

async fn pod_stats(daemon: &Daemon, id: &str) -> Answer<pb::LinuxPodSandboxStats> {
    let request = pb::PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let answer = daemon.cri.runtime.clone().pod_sandbox_stats(request).await?;
    Ok(answer
        .into_inner()
        .stats
        .and_then(|stats| stats.linux)
        .expect("an answer has stats"))
}

/// Ids in the list of container stats, sorted.
async fn listed(daemon: &Daemon, filter: pb::ContainerStatsFilter) -> Vec<String> {
    let request = pb::ListContainerStatsRequest { filter: Some(filter) };
    let answer = daemon.cri.runtime.clone().list_container_stats(request).await.unwrap();
    let stats = answer.into_inner().stats;
    let mut ids: Vec<_> = stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    ids.sort();
    ids
}

pub fn value(field: Option<pb::UInt64Value>) -> u64 {
    field.expect("the kernel tells this").value
}

/// A number in a file of the container's v1 cgroup; None where the controllers are on v2.
fn in_cgroup(daemon: &Daemon, id: &str, controller: &str, file: &str) -> Option<u64> {
    let root = format!("/sys/fs/cgroup/{controller}");
    let dir = daemon
        .lab
        .cgroups_below()
        .into_iter()
        .find(|path| path.starts_with(&root) && path.ends_with(id))?;
    std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn stats_tell_what_a_container_and_its_pod_use() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("used");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000 & while :; do :; done");
        main.labels = map("app", "used");
        main.annotations = map("note", "kept");
        let resources = pb::LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB as i64,
            cpu_period: 100_000,
            cpu_quota: 30_000,
            ..Default::default()
        };
        main.linux.get_or_insert_default().resources = Some(resources);
        let id = daemon.started(&pod, &config, &main).await;

        let first = stats(&daemon, &id).await.unwrap();
        let attributes = first.attributes.unwrap();
        assert_eq!(
            (attributes.id, attributes.metadata),
            (id.clone(), main.metadata.clone())
        );
        assert_eq!(
            (attributes.labels, attributes.annotations),
            (main.labels, main.annotations)
        );
        let layer = first.writable_layer.expect("a layer of no files is measured at once");
        let before = value(layer.used_bytes);
        assert!(layer.timestamp > 0 && value(layer.inodes_used) > 0);
        assert!(std::path::Path::new(&layer.fs_id.unwrap().mountpoint).is_absolute());

        daemon
            .cri
            .shell(&id, "dd if=/dev/urandom of=/written bs=1M count=8")
            .await
            .unwrap();
        daemon.cri.shell(&id, "cat /written > /dev/null").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let second = stats(&daemon, &id).await.unwrap();
        let cpu = second.cpu.unwrap();
        assert!(value(cpu.usage_core_nano_seconds) > value(first.cpu.unwrap().usage_core_nano_seconds));
        let cores = value(cpu.usage_nano_cores);
        assert!(
            (1_000_000..600_000_000).contains(&cores),
            "{cores} billionths of a core with a quota of 0.3"
        );
        let memory = second.memory.unwrap();
        assert!(memory.timestamp > 0 && value(memory.page_faults) > 0 && value(memory.rss_bytes) > 0);
        assert!(value(memory.working_set_bytes) <= value(memory.usage_bytes));
        assert_eq!(
            value(memory.available_bytes),
            64 * MIB - value(memory.working_set_bytes)
        );
        if let Some(usage) = in_cgroup(&daemon, &id, "memory", "memory.usage_in_bytes") {
            let told = value(memory.usage_bytes);
            assert!(told.abs_diff(usage) < 4 * MIB, "told {told}, the kernel says {usage}");
        }
        let layer = second.writable_layer.unwrap();
        let grown = value(layer.used_bytes) - before;
        assert!(
            (8 * MIB..9 * MIB).contains(&grown),
            "8 MiB were written, {grown} bytes are told"
        );

        let whole = pod_stats(&daemon, &pod).await.unwrap();
        assert_eq!(whole.containers.len(), 1);
        assert!(value(whole.cpu.unwrap().usage_core_nano_seconds) >= value(cpu.usage_core_nano_seconds));
        assert!(value(whole.memory.unwrap().working_set_bytes) > 0);
        assert_eq!(value(whole.process.unwrap().process_count), 2);
        daemon.finish().await;
    })
    .await;
}

/// Kubelet makes a cgroup for each pod, named after its uid; what runs in it counts for the pod.
#[tokio::test]
async fn a_pod_with_a_cgroup_of_its_own_is_measured_by_it() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("own");
    let uid = "7d0b1b1e-30a8-4c57-9a3d-0f3f2f6f8a11";
    config.metadata.as_mut().unwrap().uid = uid.into();
    config.linux.get_or_insert_default().cgroup_parent = format!("/kubepods/pod{uid}");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    for name in ["one", "two"] {
        daemon
            .started(&pod, &config, &container(name, &image, "sleep 1000"))
            .await;
    }
    let whole = pod_stats(&daemon, &pod).await.unwrap();
    assert_eq!(value(whole.process.unwrap().process_count), 2);
    let told = value(whole.cpu.unwrap().usage_core_nano_seconds);
    let sum: u64 = whole
        .containers
        .iter()
        .map(|one| value(one.cpu.unwrap().usage_core_nano_seconds))
        .sum();
    assert!(told >= sum, "the pod used {told}, its containers {sum}");
    if let Some(usage) = in_cgroup(&daemon, &format!("pod{uid}"), "memory", "memory.usage_in_bytes") {
        let told = value(whole.memory.unwrap().usage_bytes);
        assert!(
            told.abs_diff(usage) < 2 * MIB,
            "told {told}, the pod's cgroup says {usage}"
        );
    }
    daemon.gone(&pod).await;
    // They are kubelet's to remove.
    let mut left = daemon.lab.cgroups_below();
    left.retain(|path| path.to_string_lossy().contains("/kubepods"));
    left.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for dir in left {
        std::fs::remove_dir(&dir).unwrap();
    }
    daemon.finish().await;
}

#[tokio::test]
async fn network_counters_are_the_pods_own() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("traffic", "sleep 1000").await;
    let bytes = async || {
        let network = pod_stats(&daemon, &pod)
            .await
            .unwrap()
            .network
            .expect("it has a network");
        let eth0 = network.default_interface.expect("kubelet reads it unchecked");
        assert!(network.timestamp > 0 && eth0.name == "eth0" && network.interfaces.is_empty());
        (value(eth0.rx_bytes), value(eth0.tx_bytes))
    };
    let before = bytes().await;
    let gateway = "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'";
    daemon
        .cri
        .shell(&id, &format!("ping -c 3 -i 0.1 -s 1000 $({gateway})"))
        .await
        .unwrap();
    let after = bytes().await;
    assert!(
        after.0 >= before.0 + 3000 && after.1 >= before.1 + 3000,
        "{before:?} {after:?}"
    );
    let own = daemon
        .cri
        .shell(&id, "cat /sys/class/net/eth0/statistics/tx_bytes")
        .await
        .unwrap();
    assert!(bytes().await.1 >= own.trim().parse().unwrap());

    let config = wharf_e2e::specs::host_network_pod("host", &daemon.logs);
    let host = daemon.cri.run_pod(&config, "").await.unwrap();
    assert_eq!(
        pod_stats(&daemon, &host).await.unwrap().network,
        None,
        "the node's figures are not a pod's"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn rule_33_stats_of_what_does_not_run_are_no_error() {
    on_each_handler(async |daemon| {
        let all = pb::ContainerStatsFilter::default();
        assert!(listed(&daemon, all.clone()).await.is_empty());
        let config = daemon.pod("short");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let whole = pod_stats(&daemon, &pod).await.unwrap();
        assert_eq!(value(whole.process.unwrap().process_count), 0);
        let image = daemon.busybox().await;
        let id = daemon
            .cri
            .create(&pod, &container("main", &image, "sleep 1000"), &config)
            .await
            .unwrap();
        let created = stats(&daemon, &id).await.unwrap();
        assert!(created.cpu.is_none() && created.writable_layer.is_some());
        assert!(listed(&daemon, all.clone()).await.is_empty(), "created, not running");
        daemon.cri.start(&id).await.unwrap();
        assert_eq!(listed(&daemon, all.clone()).await, [id.as_str()]);
        daemon.cri.stop(&id, 0).await.unwrap();
        let exited = stats(&daemon, &id).await.unwrap();
        assert!(exited.cpu.is_none() && exited.memory.is_none());
        assert!(listed(&daemon, all.clone()).await.is_empty(), "exited");
        daemon.cri.remove(&id).await.unwrap();
        assert_eq!(code(stats(&daemon, &id).await), Code::NotFound);
        assert_eq!(code(stats(&daemon, "").await), Code::NotFound);
        daemon.cri.stop_pod(&pod).await.unwrap();
        let stopped = pod_stats(&daemon, &pod).await.unwrap();
        assert!(stopped.network.is_none() && stopped.containers.is_empty());
        let request = pb::ListPodSandboxStatsRequest::default();
        let list = daemon
            .cri
            .runtime
            .clone()
            .list_pod_sandbox_stats(request)
            .await
            .unwrap();
        assert!(list.into_inner().stats.is_empty(), "only ready pods are listed");
        daemon.cri.remove_pod(&pod).await.unwrap();
        assert_eq!(code(pod_stats(&daemon, &pod).await), Code::NotFound);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn stats_are_listed_by_id_pod_and_labels() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let mut made = Vec::new();
    for name in ["one", "two"] {
        let mut config = daemon.pod(name);
        config.labels = map("pod", name);
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &image, "sleep 1000");
        main.labels = map("app", name);
        made.push((pod.clone(), daemon.started(&pod, &config, &main).await));
    }
    let filter = |id: &str, pod: &str, labels| pb::ContainerStatsFilter {
        id: id.into(),
        pod_sandbox_id: pod.into(),
        label_selector: labels,
    };
    let [(pod_one, one), (pod_two, two)] = [&made[0], &made[1]];
    assert_eq!(listed(&daemon, filter("", "", [].into())).await.len(), 2);
    assert_eq!(listed(&daemon, filter(&one[..12], "", [].into())).await, [one.as_str()]);
    assert_eq!(
        listed(&daemon, filter("", &pod_two[..12], [].into())).await,
        [two.as_str()]
    );
    assert_eq!(listed(&daemon, filter("", "", map("app", "two"))).await, [two.as_str()]);
    assert!(listed(&daemon, filter(one, pod_two, [].into())).await.is_empty());
    for (filter, wanted) in [
        (
            pb::PodSandboxStatsFilter {
                id: pod_one[..12].into(),
                ..Default::default()
            },
            pod_one,
        ),
        (
            pb::PodSandboxStatsFilter {
                label_selector: map("pod", "two"),
                ..Default::default()
            },
            pod_two,
        ),
    ] {
        let request = pb::ListPodSandboxStatsRequest { filter: Some(filter) };
        let list = daemon
            .cri
            .runtime
            .clone()
            .list_pod_sandbox_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats;
        let ids: Vec<_> = list.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
        assert_eq!(ids, [wanted.as_str()]);
    }
    daemon.finish().await;
}

#[tokio::test]
async fn the_containers_filesystem_grows_and_shrinks_with_what_they_write() {
    let daemon = Daemon::start().await;
    let used = async || {
        let request = pb::ImageFsInfoRequest {};
        let answer = daemon
            .cri
            .images
            .clone()
            .image_fs_info(request)
            .await
            .unwrap()
            .into_inner();
        let [images, containers] = [&answer.image_filesystems[0], &answer.container_filesystems[0]];
        assert_eq!(
            images.fs_id, containers.fs_id,
            "both are below one state directory here"
        );
        (
            value(images.used_bytes),
            value(containers.used_bytes),
            value(containers.inodes_used),
        )
    };
    let (pod, id) = daemon.running("writer", "sleep 1000").await;
    let before = used().await;
    daemon
        .cri
        .shell(&id, "mkdir /d; for n in $(seq 20); do echo x > /d/$n; done")
        .await
        .unwrap();
    daemon
        .cri
        .shell(&id, "dd if=/dev/urandom of=/big bs=1M count=16")
        .await
        .unwrap();
    let mut after = before;
    eventually("what was written is told", async || {
        after = used().await;
        after.1 >= before.1 + 16 * MIB
    })
    .await;
    assert!(after.1 < before.1 + 17 * MIB, "{before:?} {after:?}");
    assert_eq!(
        (after.0, after.2),
        (before.0, before.2 + 22),
        "a directory, 20 small files and a big one"
    );
    daemon.gone(&pod).await;
    eventually("the disk is told to be free again", async || used().await.1 < 4 * MIB).await;
    daemon.finish().await;
}

#[tokio::test]
async fn lists_of_stats_go_on_while_containers_come_and_go() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("churn");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let mut runtime = daemon.cri.runtime.clone();
    let churn = async {
        for n in 0..15 {
            let id = daemon
                .started(&pod, &config, &container(&format!("c{n}"), &image, "sleep 1000"))
                .await;
            daemon.cri.remove(&id).await.unwrap();
        }
    };
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let lists = async {
        let mut rounds = 0;
        while stopped.try_recv().is_err() {
            runtime
                .list_container_stats(pb::ListContainerStatsRequest::default())
                .await
                .unwrap();
            runtime
                .list_pod_sandbox_stats(pb::ListPodSandboxStatsRequest::default())
                .await
                .unwrap();
            runtime
                .list_pod_sandbox_metrics(pb::ListPodSandboxMetricsRequest {})
                .await
                .unwrap();
            rounds += 1;
        }
        rounds
    };
    let ((), rounds) = tokio::join!(
        async {
            churn.await;
            let _ = stop.send(());
        },
        lists
    );
    assert!(rounds > 5, "only {rounds} rounds of lists");
    daemon.finish().await;
}

async fn wharf(daemon: &Daemon, args: &[&str]) -> String {
    let run = daemon.wharf(args).output();
    let output = tokio::time::timeout(wharf_e2e::PATIENCE * 2, run)
        .await
        .unwrap()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wharf {args:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn the_command_shows_what_containers_use() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("busy", "while :; do :; done").await;
    let (_, idle) = daemon.running("idle", "sleep 1000").await;
    let text = wharf(&daemon, &["stats", "--no-stream"]).await;
    assert_eq!(text.lines().count(), 3, "{text}");
    let line = |id: &str| text.lines().find(|line| line.starts_with(&id[..13])).unwrap();
    let cpu: f64 = line(&id)
        .split("   ")
        .filter(|cell| !cell.is_empty())
        .nth(3)
        .and_then(|cell| cell.trim().strip_suffix('%')?.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!(cpu > 1.0, "a busy container uses {cpu} %: {text}");
    assert!(
        line(&idle).contains("0.00%") && line(&idle).contains("no limit"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&wharf(&daemon, &["stats", "-o", "json", &id]).await).unwrap();
    assert_eq!(json["stats"][0]["attributes"]["id"], id.as_str());
    assert_eq!(json["stats"].as_array().unwrap().len(), 1);
    daemon.cri.stop(&idle, 0).await.unwrap();
    let running = wharf(&daemon, &["stats", "--no-stream"]).await;
    let all = wharf(&daemon, &["stats", "--no-stream", "-a"]).await;
    assert_eq!((running.lines().count(), all.lines().count()), (2, 3), "{all}");

    let text = wharf(&daemon, &["top", &id]).await;
    assert!(text.contains("PID") && text.contains("while :"), "{text}");
    let text = wharf(&daemon, &["top", &id, "-o", "pid,args"]).await;
    assert!(text.lines().nth(1).unwrap().trim().starts_with('1'), "{text}");
    daemon.finish().await;
}
