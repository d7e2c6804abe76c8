//! Lists of so many objects that they are not measured when they are asked for: they tell what was found a moment ago, and
//! must not be wrong for longer than that.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use wharf_e2e::{Daemon, container, eventually};
use wharf_proto::cri as pb;

use crate::stats::{MIB, value};

/// More than are measured when they are asked for.
const MANY: usize = 18;

struct Crowd {
    daemon: Daemon,
    pod: String,
    config: pb::PodSandboxConfig,
    image: String,
    ids: Vec<String>,
}

impl Crowd {
    async fn gather() -> Self {
        let daemon = Daemon::start().await;
        let config = daemon.pod("crowd");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut crowd = Self {
            daemon,
            pod,
            config,
            image,
            ids: Vec::new(),
        };
        for n in 0..MANY {
            crowd.join(n).await;
        }
        crowd
    }

    async fn join(&mut self, number: usize) -> String {
        let main = container(&format!("c{number}"), &self.image, "sleep 1000");
        let id = self.daemon.started(&self.pod, &self.config, &main).await;
        self.ids.push(id.clone());
        id
    }

    async fn leave(&mut self) -> String {
        let id = self.ids.remove(3);
        self.daemon.cri.remove(&id).await.unwrap();
        id
    }

    fn all(&self) -> BTreeSet<String> {
        self.ids.iter().cloned().collect()
    }

    async fn stats(&self) -> BTreeSet<String> {
        let mut runtime = self.daemon.cri.runtime.clone();
        let request = pb::ListContainerStatsRequest::default();
        let stats = runtime.list_container_stats(request).await.unwrap().into_inner().stats;
        for one in &stats {
            assert!(value(one.cpu.unwrap().usage_core_nano_seconds) > 0, "{one:?}");
            assert!(one.writable_layer.is_some(), "{one:?}");
        }
        stats.into_iter().map(|one| one.attributes.unwrap().id).collect()
    }

    async fn pod_stats(&self) -> BTreeSet<String> {
        let mut runtime = self.daemon.cri.runtime.clone();
        let request = pb::ListPodSandboxStatsRequest::default();
        let pods = runtime
            .list_pod_sandbox_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats;
        let [pod] = pods.try_into().expect("there is one pod");
        let linux = pod.linux.unwrap();
        assert!(value(linux.memory.unwrap().working_set_bytes) > 0);
        assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
        linux
            .containers
            .into_iter()
            .map(|one| one.attributes.unwrap().id)
            .collect()
    }

    /// Also as the stream tells them, which must be the same.
    async fn metrics(&self) -> BTreeSet<String> {
        let mut runtime = self.daemon.cri.runtime.clone();
        let ids = |pods: Vec<pb::PodSandboxMetrics>| -> BTreeSet<String> {
            let containers = pods.into_iter().flat_map(|pod| pod.container_metrics);
            containers
                .map(|one| {
                    assert!(one.metrics.len() > 30, "{one:?}");
                    one.container_id
                })
                .collect()
        };
        let request = pb::ListPodSandboxMetricsRequest {};
        let list = runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner();
        let request = pb::StreamPodSandboxMetricsRequest {};
        let stream = runtime.stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
        let parts: Vec<_> = stream.map(|part| part.unwrap().pod_sandbox_metrics).collect().await;
        let (list, stream) = (ids(list.pod_metrics), ids(parts.concat()));
        // One may have been measured for the first time in between.
        assert!(stream.is_superset(&list), "{list:?} {stream:?}");
        stream
    }

    async fn disk(&self) -> (u64, u64) {
        let mut images = self.daemon.cri.images.clone();
        let answer = images.image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap();
        let of_containers = &answer.into_inner().container_filesystems[0];
        (value(of_containers.used_bytes), value(of_containers.inodes_used))
    }

    /// What `du` finds, bytes and inodes.
    async fn walk(&self) -> (u64, u64) {
        let pods = self.daemon.state_dir.join("pods");
        let du = async |unit: &str| -> u64 {
            let args = ["-s", "--one-file-system", unit, pods.to_str().unwrap()];
            let found = self.daemon.lab.output("du", &args).await.unwrap();
            found.split_whitespace().next().unwrap().parse().unwrap()
        };
        (du("--block-size=1").await, du("--inodes").await)
    }
}

#[tokio::test]
async fn figures_of_many_tell_at_once_who_has_gone_and_soon_who_has_come() {
    let mut crowd = Crowd::gather().await;
    // The first of each measures all.
    assert_eq!(crowd.stats().await, crowd.all());
    assert_eq!(crowd.pod_stats().await, crowd.all());
    assert_eq!(crowd.metrics().await, crowd.all());
    for number in MANY..MANY + 3 {
        let new = crowd.join(number).await;
        let gone = crowd.leave().await;
        for ids in [crowd.stats().await, crowd.pod_stats().await, crowd.metrics().await] {
            assert!(!ids.contains(&gone), "one that has gone is told of");
            let all = crowd.all();
            assert!(
                all.difference(&ids).all(|missing| *missing == new),
                "one that was there is missing: {ids:?}"
            );
        }
        let all = crowd.all();
        eventually("the new one is told of", async || {
            crowd.stats().await == all && crowd.pod_stats().await == all && crowd.metrics().await == all
        })
        .await;
        // Passes have begun, and lists tell what they find.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    crowd.daemon.finish().await;
}

#[tokio::test]
async fn the_disk_of_many_is_what_a_walk_finds() {
    let mut crowd = Crowd::gather().await;
    let as_walked = async |crowd: &Crowd| {
        let mut both = ((0, 0), (0, 0));
        eventually("the disk told of is the disk in use", async || {
            both = (crowd.disk().await, crowd.walk().await);
            both.0 == both.1
        })
        .await;
        both.0
    };
    // Measured, then told by passes: both ways must agree.
    let mut before = as_walked(&crowd).await;
    for round in 0..3 {
        let line =
            format!("mkdir -p /d{round}/e; echo x >/d{round}/f; dd if=/dev/urandom of=/big{round} bs=1M count=4");
        let id = crowd.ids[round].clone();
        crowd.daemon.cri.shell(&id, &line).await.unwrap();
        let written = as_walked(&crowd).await;
        assert!(written.0 >= before.0 + 4 * MIB, "{before:?} {written:?}");
        assert_eq!(written.1, before.1 + 4, "two directories and two files");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        before = as_walked(&crowd).await;
    }
    let before = before.0;
    // It had written nothing, but it had files of its own.
    crowd.leave().await;
    let after = as_walked(&crowd).await.0;
    assert!(after < before, "{before} {after}");
    crowd.daemon.gone(&crowd.pod).await;
    eventually("all is given back", async || crowd.disk().await == crowd.walk().await).await;
    crowd.daemon.finish().await;
}

#[tokio::test]
async fn lists_and_their_streams_show_a_change_with_the_next_call() {
    let mut crowd = Crowd::gather().await;
    let mut runtime = crowd.daemon.cri.runtime.clone();
    let mut states = async || {
        let list = runtime.list_containers(pb::ListContainersRequest::default()).await;
        let list = list.unwrap().into_inner().containers;
        let stream = runtime.stream_containers(pb::StreamContainersRequest::default()).await;
        let parts: Vec<_> = stream
            .unwrap()
            .into_inner()
            .map(|part| part.unwrap().containers)
            .collect()
            .await;
        assert_eq!(parts.concat(), list);
        list.into_iter()
            .map(|one| (one.id.clone(), one.state()))
            .collect::<Vec<_>>()
    };
    let running = pb::ContainerState::ContainerRunning;
    assert!(states().await.iter().all(|(_, state)| *state == running));
    let new = crowd.join(MANY).await;
    assert_eq!(
        states().await.first(),
        Some(&(new.clone(), running)),
        "the newest comes first"
    );
    crowd.daemon.cri.stop(&new, 0).await.unwrap();
    let exited = pb::ContainerState::ContainerExited;
    assert_eq!(states().await.first(), Some(&(new.clone(), exited)));
    crowd.daemon.cri.remove(&new).await.unwrap();
    assert!(states().await.iter().all(|(id, _)| *id != new));
    crowd.daemon.finish().await;
}
