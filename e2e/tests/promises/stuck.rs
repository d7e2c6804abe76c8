//! What does not answer holds up nobody but itself (contract rules 35 and 36; design decision 5).

use nix::sys::signal::Signal;
use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::fuse::{self, Stuck};
use wharf_e2e::{Daemon, container, eventually, specs};
use wharf_proto::cri as pb;

/// Every call that only reads, and a whole life of another pod.
pub(crate) async fn all_else_goes_on(daemon: &Daemon, name: &str) {
    let (mut runtime, mut images) = (daemon.cri.runtime.clone(), daemon.cri.images.clone());
    let calls = async {
        runtime.version(pb::VersionRequest::default()).await.unwrap();
        let status = runtime.status(pb::StatusRequest { verbose: true }).await.unwrap();
        let conditions = status.into_inner().status.unwrap().conditions;
        assert!(conditions.iter().all(|condition| condition.status), "{conditions:?}");
        runtime.runtime_config(pb::RuntimeConfigRequest {}).await.unwrap();
        for pod in daemon.cri.pods(None).await.unwrap() {
            let request = pb::PodSandboxStatusRequest {
                pod_sandbox_id: pod.id.clone(),
                verbose: true,
            };
            runtime.pod_sandbox_status(request).await.unwrap();
            let request = pb::PodSandboxStatsRequest { pod_sandbox_id: pod.id };
            runtime.pod_sandbox_stats(request).await.unwrap();
        }
        for container in daemon.cri.containers(None).await.unwrap() {
            let request = pb::ContainerStatusRequest {
                container_id: container.id.clone(),
                verbose: true,
            };
            runtime.container_status(request).await.unwrap();
            let container_id = container.id;
            let request = pb::ContainerStatsRequest { container_id };
            runtime.container_stats(request).await.unwrap();
        }
        let request = pb::ListContainerStatsRequest::default();
        runtime.list_container_stats(request).await.unwrap();
        let request = pb::ListPodSandboxStatsRequest::default();
        runtime.list_pod_sandbox_stats(request).await.unwrap();
        let request = pb::ListPodSandboxMetricsRequest {};
        runtime.list_pod_sandbox_metrics(request).await.unwrap();
        let request = pb::ListMetricDescriptorsRequest {};
        runtime.list_metric_descriptors(request).await.unwrap();
        daemon.cri.image_list().await.unwrap();
        images.image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap();
        let (pod, id) = daemon.running(name, "sleep 1000").await;
        daemon.cri.shell(&id, "true").await.unwrap();
        daemon.gone(&pod).await;
    };
    tokio::time::timeout(wharf_e2e::PATIENCE, calls)
        .await
        .expect("nothing waits for what is stuck");
}

/// State of a process as the kernel's letter: D for one that waits and can't be killed.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[tokio::test]
async fn rule_36_a_container_that_can_not_be_killed_holds_up_only_itself() {
    let mut daemon = Daemon::start().await;
    let mut volume = Stuck::start(&daemon.lab, daemon.dir().join("volume")).await.unwrap();
    let (image, config) = (daemon.busybox().await, daemon.pod("stuck"));
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = format!("exec 3</volume/{}; exec sleep 424242", fuse::FILE);
    let mut main = container("main", &image, &line);
    let source = daemon.dir().join("volume");
    main.mounts = vec![specs::mount(&source.to_string_lossy(), "/volume", true)];
    let id = daemon.started(&pod, &config, &main).await;
    let neighbour = daemon
        .started(&pod, &config, &container("neighbour", &image, "sleep 1000"))
        .await;
    let mut process = 0;
    eventually("the file is open", async || {
        let found = daemon
            .lab
            .processes()
            .into_iter()
            .find(|(_, line)| line == "sleep 424242");
        process = found.map_or(0, |(pid, _)| pid);
        process != 0
    })
    .await;

    let cri = daemon.cri.clone();
    let (stopped_pod, of) = (pod.clone(), id.clone());
    let stop = tokio::spawn(async move { (cri.stop_pod(&stopped_pod).await, cri.stop(&of, 0).await) });
    volume.waits(fuse::CLOSE).await.unwrap();
    assert_eq!(state(process), Some('D'));
    all_else_goes_on(&daemon, "meanwhile").await;
    let told = daemon.cri.status(&id).await.unwrap().state();
    assert_eq!(told, pb::ContainerState::ContainerRunning, "it has not ended");
    // What can be stopped of the pod is.
    daemon.cri.exited(&neighbour).await.unwrap();
    let pods = daemon.cri.pods(None).await.unwrap();
    assert_eq!((pods.len(), pods[0].state()), (1, pb::PodSandboxState::SandboxNotready));
    assert!(!stop.is_finished(), "nothing can have stopped it");

    // A daemon that starts meanwhile is as free as the one before.
    daemon.crash().await;
    let _ = stop.await.unwrap();
    all_else_goes_on(&daemon, "after-crash").await;
    assert_eq!(state(process), Some('D'));
    let cri = daemon.cri.clone();
    let removed = pod.clone();
    let remove = tokio::spawn(async move { cri.remove_pod(&removed).await });
    all_else_goes_on(&daemon, "while-removed").await;
    assert!(!remove.is_finished(), "nothing can have removed it");

    volume.end(&daemon.lab).await.unwrap();
    tokio::time::timeout(wharf_e2e::PATIENCE, remove)
        .await
        .expect("nothing is in the way any more")
        .unwrap()
        .unwrap();
    assert_eq!(code(daemon.cri.status(&id).await), Code::NotFound);
    daemon.finish().await;
}

#[tokio::test]
async fn a_volume_that_does_not_answer_holds_up_only_who_wants_it() {
    let mut daemon = Daemon::start().await;
    let mut volume = Stuck::start(&daemon.lab, daemon.dir().join("volume")).await.unwrap();
    let (image, config) = (daemon.busybox().await, daemon.pod("stuck"));
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let source = daemon.dir().join("volume").join(fuse::HANG);
    let mut main = container("main", &image, "sleep 1000");
    main.mounts = vec![specs::mount(&source.to_string_lossy(), "/volume", false)];
    let create = {
        let (cri, pod, main, config) = (daemon.cri.clone(), pod.clone(), main.clone(), config.clone());
        tokio::spawn(async move { cri.create(&pod, &main, &config).await })
    };
    volume.waits(fuse::HANG).await.unwrap();
    all_else_goes_on(&daemon, "meanwhile").await;
    // Another container of the same pod as well.
    let other = daemon
        .started(&pod, &config, &container("other", &image, "sleep 1000"))
        .await;
    daemon.cri.shell(&other, "true").await.unwrap();
    let names: Vec<_> = daemon.cri.containers(None).await.unwrap();
    assert_eq!(names.len(), 1, "one that is being made is not listed: {names:?}");
    tokio::time::timeout(wharf_e2e::PATIENCE, daemon.cri.stop_pod(&pod))
        .await
        .expect("the stop waits for no create")
        .unwrap();
    assert!(!create.is_finished(), "nobody has told it anything");

    volume.end(&daemon.lab).await.unwrap();
    let error = tokio::time::timeout(wharf_e2e::PATIENCE, create)
        .await
        .expect("nothing is in the way any more")
        .unwrap()
        .expect_err("its volume is gone, and its pod has stopped");
    assert!(!error.message().is_empty());
    // Ends in order although a thread had hung.
    assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
    daemon.start_again().await.unwrap();
    daemon.finish().await;
}
