//! What plugins hear, when, and what their no does.

use std::path::Path;

use tokio::sync::oneshot;
use wharf_e2e::container;
use wharf_e2e::nri::{Plugin, Reply, Told};
use wharf_proto::{cri as pb, nri};

use super::{House, once, quiet};

#[tokio::test]
async fn plugins_hear_of_a_pods_life_in_its_order() {
    let house = House::open().await;
    let plugin = house.plugin("10", "hears", quiet()).await;
    let cri = &house.daemon.cri;
    let pod = house.pod("life").await;
    let id = house.create(&pod, "main").await.unwrap();
    cri.start(&id).await.unwrap();
    let limits = pb::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(pb::LinuxContainerResources {
            memory_limit_in_bytes: 200 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    cri.runtime.clone().update_container_resources(limits).await.unwrap();
    let limits = pb::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.0.clone(),
        resources: Some(pb::LinuxContainerResources {
            memory_limit_in_bytes: 300 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    cri.runtime.clone().update_pod_sandbox_resources(limits).await.unwrap();
    cri.stop(&id, 0).await.unwrap();
    cri.stop(&id, 0).await.unwrap();
    cri.remove(&id).await.unwrap();
    for _ in 0..2 {
        cri.stop_pod(&pod.0).await.unwrap();
    }
    cri.remove_pod(&pod.0).await.unwrap();
    assert_eq!(
        plugin.heard_of(&id),
        [
            "CreateContainer",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "UpdateContainer",
            "PostUpdateContainer",
            "StopContainer",
            "RemoveContainer"
        ]
    );
    assert_eq!(
        plugin.heard_of(&pod.0),
        [
            "RunPodSandbox",
            "UpdatePodSandbox",
            "PostUpdatePodSandbox",
            "StopPodSandbox",
            "RemovePodSandbox"
        ]
    );
    let asked = plugin.hears("UpdatePodSandbox", &pod.0).await.limits.unwrap();
    assert_eq!(asked.memory.unwrap().limit.unwrap().value, 300 << 20);
    let told = plugin.hears("PostStartContainer", &id).await;
    assert_eq!((told.container.name.as_str(), told.pod.name.as_str()), ("main", "life"));
    assert_eq!(told.container.pod_sandbox_id, pod.0);
    assert_eq!(told.container.state(), nri::ContainerState::ContainerRunning);
    assert!(told.container.pid > 0 && told.container.args.contains(&"exec sleep 1000".to_owned()));
    assert!(!told.pod.ips.is_empty() && told.pod.namespace == "e2e");
    let told = plugin.hears("RunPodSandbox", &pod.0).await;
    let network = told
        .pod
        .linux
        .unwrap()
        .namespaces
        .into_iter()
        .find(|one| one.r#type == "network");
    assert!(!network.unwrap().path.is_empty());
    house.daemon.finish().await;
}

#[tokio::test]
async fn a_container_that_ends_by_itself_is_told_of() {
    let house = House::open().await;
    let plugin = house.plugin("10", "hears", quiet()).await;
    let pod = house.pod("ends").await;
    let config = container("main", &house.daemon.busybox().await, "exit 3");
    let id = house.daemon.started(&pod.0, &pod.1, &config).await;
    let told = plugin.hears("StopContainer", &id).await;
    assert_eq!(told.container.state(), nri::ContainerState::ContainerStopped);
    assert_eq!(told.container.exit_code, 3);
    house.daemon.gone(&pod.0).await;
    let heard = plugin.heard_of(&id);
    assert_eq!(
        heard.iter().filter(|what| *what == "StopContainer").count(),
        1,
        "{heard:?}"
    );
    assert_eq!(heard.last().map(String::as_str), Some("RemoveContainer"));
    house.daemon.finish().await;
}

#[tokio::test]
async fn a_no_takes_down_what_was_made_and_a_retry_works() {
    let house = House::open().await;
    let plugin = house
        .plugin("10", "pods", once("RunPodSandbox", Reply::no("not today")))
        .await;
    let config = house.daemon.pod("refused");
    let error = house.daemon.cri.run_pod(&config, "").await.unwrap_err();
    assert!(
        error.message().contains("10-pods") && error.message().contains("not today"),
        "{error}"
    );
    assert!(house.daemon.cri.pods(None).await.unwrap().is_empty());
    let first = plugin.hears("RemovePodSandbox", "").await.pod.id;
    let id = house.daemon.cri.run_pod(&config, "").await.unwrap();
    assert_ne!(first, id);
    let pod = (id, config);

    let refuses = house
        .plugin("20", "starts", once("StartContainer", Reply::no("not yet")))
        .await;
    let creates = house
        .plugin("30", "creates", once("CreateContainer", Reply::no("nor this")))
        .await;
    let error = house.create(&pod, "main").await.unwrap_err();
    assert!(error.message().contains("nor this"), "{error}");
    assert!(house.daemon.cri.containers(None).await.unwrap().is_empty());
    let container = house.create(&pod, "main").await.unwrap();
    let error = house.daemon.cri.start(&container).await.unwrap_err();
    assert!(error.message().contains("not yet"), "{error}");
    house.daemon.cri.start(&container).await.unwrap();
    assert_eq!(
        refuses
            .heard_of(&container)
            .iter()
            .filter(|what| *what == "StartContainer")
            .count(),
        2
    );
    drop(creates);
    house.daemon.finish().await;
}

#[tokio::test]
async fn nothing_is_seen_before_the_plugins_have_agreed() {
    let house = House::with("request_timeout_secs = 60", "builtin").await;
    let (go, wait) = oneshot::channel();
    let (create, created) = oneshot::channel();
    let mut replies = [
        ("RunPodSandbox", Some(Reply::Wait(wait))),
        ("CreateContainer", Some(Reply::Wait(created))),
    ];
    let behave = Box::new(move |told: &Told| {
        let waits = replies.iter_mut().find(|(what, _)| *what == told.what);
        waits.and_then(|(_, reply)| reply.take()).unwrap_or(Reply::Agree)
    });
    let plugin = house.plugin("10", "waits", behave).await;
    let (cri, config) = (house.daemon.cri.clone(), house.daemon.pod("hidden"));
    let (caller, asked) = (cri.clone(), config.clone());
    let run = tokio::spawn(async move { caller.run_pod(&asked, "").await });
    let id = plugin.hears("RunPodSandbox", "").await.pod.id;
    assert!(cri.pods(None).await.unwrap().is_empty());
    assert!(cri.pod_status(&id).await.is_err());
    let main = container("main", &house.daemon.busybox().await, "exec sleep 1000");
    assert!(cri.create(&id, &main, &config).await.is_err());
    go.send(()).unwrap();
    assert_eq!(run.await.unwrap().unwrap(), id);

    let (caller, pod, asked) = (cri.clone(), id.clone(), config.clone());
    let making = tokio::spawn(async move { caller.create(&pod, &main, &asked).await });
    let hidden = plugin.hears("CreateContainer", "").await.container.id;
    assert!(cri.containers(None).await.unwrap().is_empty());
    assert!(cri.status(&hidden).await.is_err());
    // Who comes now hears of it when the other has agreed, one way or the other, and once.
    let late = Plugin::enter(&house.socket(), "20", "late", quiet()).await.unwrap();
    create.send(()).unwrap();
    assert_eq!(making.await.unwrap().unwrap(), hidden);
    let all = late.hears("Synchronize", "").await.all;
    let mut expected = vec![id.clone(), hidden.clone()];
    expected.sort();
    assert_eq!(all, expected);
    assert!(!late.heard_of(&hidden).contains(&"CreateContainer".to_owned()));
    house.daemon.finish().await;
}

#[tokio::test]
async fn the_stop_of_a_pod_is_told_when_its_containers_have_ended_and_it_is_there_yet() {
    let house = House::with("request_timeout_secs = 60", "builtin").await;
    let (go, wait) = oneshot::channel();
    let plugin = house
        .plugin("10", "waits", once("StopPodSandbox", Reply::Wait(wait)))
        .await;
    let pod = house.pod("stops").await;
    let id = house.create(&pod, "main").await.unwrap();
    house.daemon.cri.start(&id).await.unwrap();
    let (cri, asked) = (house.daemon.cri.clone(), pod.0.clone());
    let stop = tokio::spawn(async move { cri.stop_pod(&asked).await });
    let told = plugin.hears("StopPodSandbox", &pod.0).await;
    let status = house.daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerExited);
    assert_eq!(house.daemon.cri.pod_status(&pod.0).await.unwrap().id, pod.0);
    let network = told
        .pod
        .linux
        .unwrap()
        .namespaces
        .into_iter()
        .find(|one| one.r#type == "network");
    assert!(house.daemon.seen(Path::new(&network.unwrap().path)).exists());
    let order: Vec<_> = plugin.told().into_iter().map(|told| told.what).collect();
    let place = |what: &str| order.iter().position(|known| known == what).unwrap();
    assert!(place("StopContainer") < place("StopPodSandbox"), "{order:?}");
    go.send(()).unwrap();
    stop.await.unwrap().unwrap();
    house.daemon.finish().await;
}
