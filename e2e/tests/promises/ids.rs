//! What crictl's users rely on: short ids in every call, and the keys of verbose answers.

use serde_json::Value;
use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, container, logs, specs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn the_beginning_of_an_id_names_its_object_in_every_call() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let mut config = daemon.pod("short");
    config.linux.get_or_insert_default().cgroup_parent = "/wharf/podshort".into();
    let whole_pod = cri.run_pod(&config, "").await.unwrap();
    let pod = &whole_pod[..13];
    let main = container("main", &daemon.busybox().await, "exec sleep 1000");
    let whole = cri.create(pod, &main, &config).await.unwrap();
    let id = &whole[..13];
    let mut runtime = cri.runtime.clone();

    cri.start(id).await.unwrap();
    assert_eq!(cri.status(id).await.unwrap().id, whole);
    assert_eq!(cri.pod_status(pod).await.unwrap().id, whole_pod);
    assert_eq!(cri.shell(id, "echo yes").await.unwrap(), "yes\n");
    let request = pb::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(pb::LinuxContainerResources {
            cpu_shares: 100,
            ..Default::default()
        }),
        ..Default::default()
    };
    runtime.update_container_resources(request).await.unwrap();
    let request = pb::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.into(),
        ..Default::default()
    };
    runtime.update_pod_sandbox_resources(request).await.unwrap();
    let log = logs::path(&config, &main);
    std::fs::remove_file(&log).unwrap();
    cri.reopen_log(id).await.unwrap();
    assert!(log.exists());
    let stats = runtime.container_stats(pb::ContainerStatsRequest {
        container_id: id.into(),
    });
    assert_eq!(
        stats.await.unwrap().into_inner().stats.unwrap().attributes.unwrap().id,
        whole
    );
    let stats = runtime.pod_sandbox_stats(pb::PodSandboxStatsRequest {
        pod_sandbox_id: pod.into(),
    });
    assert_eq!(
        stats.await.unwrap().into_inner().stats.unwrap().attributes.unwrap().id,
        whole_pod
    );
    let request = pb::ExecRequest {
        container_id: id.into(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    assert!(
        runtime
            .exec(request)
            .await
            .unwrap()
            .into_inner()
            .url
            .starts_with("http")
    );
    let request = pb::AttachRequest {
        container_id: id.into(),
        stdout: true,
        ..Default::default()
    };
    assert!(
        runtime
            .attach(request)
            .await
            .unwrap()
            .into_inner()
            .url
            .starts_with("http")
    );
    let request = pb::PortForwardRequest {
        pod_sandbox_id: pod.into(),
        port: vec![80],
    };
    assert!(
        runtime
            .port_forward(request)
            .await
            .unwrap()
            .into_inner()
            .url
            .starts_with("http")
    );
    // Lists: of pods, of containers by both ids, of stats.
    let filter = pb::ContainerFilter {
        id: id.into(),
        pod_sandbox_id: pod.into(),
        ..Default::default()
    };
    assert_eq!(cri.containers(Some(filter)).await.unwrap().len(), 1);
    let filter = pb::ContainerStatsFilter {
        id: id.into(),
        pod_sandbox_id: pod.into(),
        ..Default::default()
    };
    let request = pb::ListContainerStatsRequest { filter: Some(filter) };
    assert_eq!(
        runtime
            .list_container_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats
            .len(),
        1
    );
    let filter = pb::PodSandboxStatsFilter {
        id: pod.into(),
        ..Default::default()
    };
    let request = pb::ListPodSandboxStatsRequest { filter: Some(filter) };
    assert_eq!(
        runtime
            .list_pod_sandbox_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats
            .len(),
        1
    );

    // A beginning that several have is nobody's; with 17 containers two begin alike.
    let mut all = vec![whole.clone()];
    for attempt in 1..17 {
        let mut more = main.clone();
        more.metadata.as_mut().unwrap().attempt = attempt;
        all.push(cri.create(pod, &more, &config).await.unwrap());
    }
    let shared = (0..16)
        .map(|digit| format!("{digit:x}"))
        .find(|digit| all.iter().filter(|id| id.starts_with(digit.as_str())).count() > 1)
        .expect("seventeen ids and sixteen digits");
    assert_eq!(code(cri.status(&shared).await), Code::InvalidArgument);
    assert_eq!(code(cri.remove(&shared).await), Code::InvalidArgument);

    cri.stop(id, 0).await.unwrap();
    assert_eq!(
        cri.status(&whole).await.unwrap().state(),
        pb::ContainerState::ContainerExited
    );
    cri.remove(id).await.unwrap();
    assert_eq!(code(cri.status(&whole).await), Code::NotFound);
    cri.stop_pod(pod).await.unwrap();
    cri.remove_pod(pod).await.unwrap();
    assert_eq!(code(cri.pod_status(&whole_pod).await), Code::NotFound);
    // Kubelet removes the cgroups that it makes; this one the runtime made.
    for dir in daemon.lab.cgroups_below() {
        if dir.ends_with("podshort") {
            std::fs::remove_dir(dir).unwrap();
        }
    }
    daemon.finish().await;
}

async fn pod_info(daemon: &Daemon, pod: &str) -> Value {
    let request = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.into(),
        verbose: true,
    };
    let answer = daemon.cri.runtime.clone().pod_sandbox_status(request).await.unwrap();
    serde_json::from_str(&answer.into_inner().info["info"]).unwrap()
}

#[tokio::test]
async fn verbose_answers_have_the_keys_that_scripts_read() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("verbose");
    let limits = |memory| {
        Some(pb::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            ..Default::default()
        })
    };
    let linux = config.linux.get_or_insert_default();
    (linux.overhead, linux.resources) = (limits(11 << 20), limits(22 << 20));
    config.annotations = specs::map("example.org/note", "kept");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let info = pod_info(&daemon, &pod).await;
    assert_eq!(info["pid"], 0, "no process is in its namespaces: {info}");
    assert!(info["monitorPid"].as_i64().unwrap() > 0);
    assert_eq!(info["config"]["metadata"]["name"], "verbose");
    assert!(info["overhead"].to_string().contains(&(11 << 20).to_string()), "{info}");
    assert!(
        info["resources"].to_string().contains(&(22 << 20).to_string()),
        "{info}"
    );
    assert_eq!(info["runtimeSpec"]["annotations"]["example.org/note"], "kept");
    assert_eq!(info["runtimeSpec"]["hostname"], "verbose");
    // The way to a pod's network namespace that scripts take.
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
    let network = namespaces.iter().find(|one| one["type"] == "network").unwrap();
    let path = network["path"].as_str().unwrap();
    let ip = daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip;
    let net = format!("--net={path}");
    let seen = daemon
        .lab
        .output("nsenter", &[&net, "ip", "-o", "address"])
        .await
        .unwrap();
    assert!(seen.contains(&ip), "{seen}");

    let id = daemon
        .started(
            &pod,
            &config,
            &container("main", &daemon.busybox().await, "exec sleep 1000"),
        )
        .await;
    // Now there is one: nsenter by its number reaches the pod as well.
    let pid = pod_info(&daemon, &pod).await["pid"].as_i64().unwrap();
    let pid = format!("--target={pid}");
    let seen = daemon
        .lab
        .output("nsenter", &[&pid, "--net", "ip", "-o", "address"])
        .await
        .unwrap();
    assert!(seen.contains(&ip), "{seen}");
    let request = pb::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let answer = daemon.cri.runtime.clone().container_status(request).await.unwrap();
    let info: Value = serde_json::from_str(&answer.into_inner().info["info"]).unwrap();
    assert_eq!(info["sandboxID"], pod.as_str());
    assert_eq!(info["config"]["metadata"]["name"], "main");
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], "/bin/sh");
    let annotations = &info["runtimeSpec"]["annotations"];
    // For runtimes that start a virtual machine for the pod (row A10).
    assert_eq!(annotations["io.kubernetes.cri.sandbox-memory"], (22 << 20).to_string());
    assert_eq!(info["paused"], false);
    assert_eq!(info["log"]["entries"], 0);
    assert!(info["pid"].as_i64().unwrap() > 0);
    daemon.finish().await;
}
