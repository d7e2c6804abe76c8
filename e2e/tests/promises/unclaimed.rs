//! A creation that takes longer than its caller waits: nobody sees what it made until the same is asked for again, and what
//! nobody asks for is removed (row A3).

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::daemon::Options;
use wharf_e2e::{Daemon, container, eventually};
use wharf_proto::cri as pb;

const HIDDEN: &str = "it waits to be asked for again";
const REMOVED: &str = "has asked for this";

fn told(daemon: &Daemon, what: &str) -> usize {
    daemon.log().matches(what).count()
}

/// The id behind `key=` in the last line of the log that says `what`.
fn id_of(daemon: &Daemon, what: &str, key: &str) -> String {
    let log = daemon.log();
    let line = log
        .lines()
        .rfind(|line| line.contains(what))
        .expect("it is told")
        .to_owned();
    let id = line.split(&format!("{key}=\"")).nth(1).unwrap();
    id.split('"').next().unwrap().to_owned()
}

/// Asks for a pod and gives up while the daemon is at `point`; returns when the pod is made and hidden.
async fn abandoned_pod(daemon: &Daemon, config: &pb::PodSandboxConfig) -> String {
    let before = told(daemon, HIDDEN);
    daemon.arm("run.parts", "hang").unwrap();
    let (cri, wanted) = (daemon.cri.clone(), config.clone());
    let call = tokio::spawn(async move { cri.run_pod(&wanted, "").await });
    eventually("the pod is being made", async || daemon.reached("run.parts")).await;
    call.abort();
    let _ = call.await;
    // The server hears of it by its connection: once another call of the same connection is through, it has.
    daemon.cri.version().await.unwrap();
    daemon.disarm("run.parts");
    eventually("the pod is hidden", async || told(daemon, HIDDEN) > before).await;
    id_of(daemon, HIDDEN, "pod")
}

async fn abandoned_container(
    daemon: &Daemon,
    pod: &str,
    config: &pb::ContainerConfig,
    of: &pb::PodSandboxConfig,
) -> String {
    let before = told(daemon, HIDDEN);
    daemon.arm("create.bundle", "hang").unwrap();
    let (cri, pod, wanted, of) = (daemon.cri.clone(), pod.to_owned(), config.clone(), of.clone());
    let call = tokio::spawn(async move { cri.create(&pod, &wanted, &of).await });
    eventually("the container is being made", async || daemon.reached("create.bundle")).await;
    call.abort();
    let _ = call.await;
    daemon.cri.version().await.unwrap();
    daemon.disarm("create.bundle");
    eventually("the container is hidden", async || told(daemon, HIDDEN) > before).await;
    id_of(daemon, HIDDEN, "container")
}

#[tokio::test]
async fn a_pod_whose_caller_gave_up_is_hidden_until_it_is_asked_for_again() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("late");
    let hidden = abandoned_pod(&daemon, &config).await;
    let cri = &daemon.cri;
    assert!(cri.pods(None).await.unwrap().is_empty(), "nobody was told of it");
    assert_eq!(code(cri.pod_status(&hidden).await), Code::FailedPrecondition);
    assert_eq!(code(cri.stop_pod(&hidden).await), Code::FailedPrecondition);
    let main = container("main", &daemon.busybox().await, "true");
    assert_eq!(
        code(cri.create(&hidden, &main, &config).await),
        Code::FailedPrecondition
    );

    assert_eq!(
        cri.run_pod(&config, "").await.unwrap(),
        hidden,
        "the same is not made twice"
    );
    assert_eq!(cri.pods(None).await.unwrap().len(), 1);
    assert_eq!(cri.run_pod(&config, "").await.unwrap(), hidden);
    daemon.gone(&hidden).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_request_that_has_changed_gets_a_new_pod_and_the_old_one_goes() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("late");
    config.port_mappings = vec![pb::PortMapping {
        container_port: 80,
        host_port: 18080,
        ..Default::default()
    }];
    let first = abandoned_pod(&daemon, &config).await;
    config.metadata.as_mut().unwrap().attempt = 2;
    // It needs the same host port.
    let second = daemon.cri.run_pod(&config, "").await.unwrap();
    assert_ne!(second, first);
    assert!(
        !daemon.state_dir.join("pods").join(&first).exists(),
        "the first is removed"
    );

    config.metadata.as_mut().unwrap().attempt = 3;
    config.port_mappings.clear();
    let third = abandoned_pod(&daemon, &config).await;
    config.hostname = "other".into();
    let fourth = daemon.cri.run_pod(&config, "").await.unwrap();
    assert_ne!(fourth, third, "it was asked for otherwise");
    daemon.gone(&second).await;
    daemon.gone(&fourth).await;
    daemon.finish().await;
}

#[tokio::test]
async fn what_nobody_asks_for_again_is_removed() {
    let daemon = Daemon::with(Options {
        settings: "unclaimed_secs = 1".into(),
        ..Options::default()
    })
    .await;
    let config = daemon.pod("late");
    let hidden = abandoned_pod(&daemon, &config).await;
    let directory = daemon.state_dir.join("pods").join(&hidden);
    eventually("the pod is removed", async || !directory.exists()).await;
    assert_eq!(told(&daemon, REMOVED), 1);

    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    assert_ne!(pod, hidden);
    let main = container("main", &daemon.busybox().await, "true");
    let hidden = abandoned_container(&daemon, &pod, &main, &config).await;
    let directory = daemon
        .state_dir
        .join("pods")
        .join(&pod)
        .join("containers")
        .join(&hidden);
    eventually("the container is removed", async || !directory.exists()).await;
    assert_ne!(daemon.cri.create(&pod, &main, &config).await.unwrap(), hidden);
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_container_whose_caller_gave_up_is_hidden_until_it_is_asked_for_again() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("pod");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    let hidden = abandoned_container(&daemon, &pod, &main, &config).await;
    let cri = &daemon.cri;
    assert!(cri.containers(None).await.unwrap().is_empty());
    assert_eq!(code(cri.start(&hidden).await), Code::FailedPrecondition);
    assert_eq!(code(cri.status(&hidden).await), Code::FailedPrecondition);
    assert_eq!(code(cri.exec(&hidden, &["true"], 5).await), Code::FailedPrecondition);
    assert_eq!(cri.create(&pod, &main, &config).await.unwrap(), hidden);
    cri.start(&hidden).await.unwrap();

    // Another attempt takes the place of one that nobody was told of; a pod's end takes it along.
    main.metadata.as_mut().unwrap().attempt = 1;
    let second = abandoned_container(&daemon, &pod, &main, &config).await;
    main.metadata.as_mut().unwrap().attempt = 2;
    let third = cri.create(&pod, &main, &config).await.unwrap();
    assert_ne!(third, second);
    let containers = daemon.state_dir.join("pods").join(&pod).join("containers");
    assert!(!containers.join(&second).exists(), "it is removed");
    main.metadata.as_mut().unwrap().attempt = 3;
    abandoned_container(&daemon, &pod, &main, &config).await;
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn what_is_hidden_goes_with_the_daemon() {
    let mut daemon = Daemon::start().await;
    let config = daemon.pod("late");
    let hidden = abandoned_pod(&daemon, &config).await;
    daemon.end(nix::sys::signal::Signal::SIGTERM).await.unwrap();
    daemon.start_again().await.unwrap();
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    assert!(!daemon.state_dir.join("pods").join(&hidden).exists());
    daemon.finish().await;
}
