//! GetContainerEvents: what kubelet's event-driven lifecycle generator lives on.

use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::{Code, Streaming};
use wharf_e2e::{Cri, Daemon, PATIENCE, container};
use wharf_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
    PodSandboxStatusRequest,
};

use crate::on_each_handler;

async fn listen(cri: &Cri) -> Streaming<ContainerEventResponse> {
    let answer = cri.runtime.clone().get_container_events(GetEventsRequest {}).await;
    answer.unwrap().into_inner()
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    let event = tokio::time::timeout(PATIENCE, events.message()).await;
    event.expect("an event is due").unwrap().expect("the stream goes on")
}

async fn nothing_more(events: &mut Streaming<ContainerEventResponse>) {
    let more = tokio::time::timeout(Duration::from_millis(200), events.message()).await;
    assert!(more.is_err(), "one event too many: {more:?}");
}

/// Id and type of the next `count` events.
async fn steps(events: &mut Streaming<ContainerEventResponse>, count: usize) -> Vec<(String, ContainerEventType)> {
    let mut steps = Vec::new();
    for _ in 0..count {
        let event = next(events).await;
        steps.push((event.container_id.clone(), event.container_event_type()));
    }
    steps
}

#[tokio::test]
async fn rule_34_each_step_of_a_pod_is_told_with_the_whole_pod() {
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    on_each_handler(async |daemon| {
        let cri = &daemon.cri;
        let image = daemon.busybox().await;
        let (mut events, mut other) = (listen(cri).await, listen(cri).await);
        let config = daemon.pod("told");
        let pod = cri.run_pod(&config, "").await.unwrap();
        for step in [Created, Started] {
            let event = next(&mut events).await;
            assert_eq!(
                (event.container_id.as_str(), event.container_event_type()),
                (pod.as_str(), step)
            );
            let status = event.pod_sandbox_status.unwrap();
            assert_eq!(status.state(), PodSandboxState::SandboxReady);
            assert_eq!(status.metadata, config.metadata);
            assert!(!status.network.unwrap().ip.is_empty());
            assert!(event.containers_statuses.is_empty() && event.created_at > 0);
        }
        let id = cri
            .create(&pod, &container("main", &image, "exit 3"), &config)
            .await
            .unwrap();
        let created = next(&mut events).await;
        assert_eq!(
            (created.container_id.as_str(), created.container_event_type()),
            (id.as_str(), Created)
        );
        assert_eq!(created.containers_statuses, [cri.status(&id).await.unwrap()]);
        // It ends at once, and is told to have started all the same.
        cri.start(&id).await.unwrap();
        let started = next(&mut events).await;
        assert_eq!(
            (started.container_id.as_str(), started.container_event_type()),
            (id.as_str(), Started)
        );
        let stopped = next(&mut events).await;
        assert_eq!(
            (stopped.container_id.as_str(), stopped.container_event_type()),
            (id.as_str(), Stopped)
        );
        assert!(created.created_at <= started.created_at && started.created_at <= stopped.created_at);
        let status = stopped.containers_statuses.first().unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
        assert_eq!(stopped.containers_statuses, [cri.status(&id).await.unwrap()]);

        let broken = container("broken", &image, "");
        let broken = wharf_proto::cri::ContainerConfig {
            command: vec!["/no/such/command".into()],
            ..broken
        };
        let second = cri.create(&pod, &broken, &config).await.unwrap();
        cri.start(&second).await.expect_err("there is no such command");
        assert_eq!(
            steps(&mut events, 2).await,
            [(second.clone(), Created), (second.clone(), Stopped)]
        );
        cri.remove(&id).await.unwrap();
        let deleted = next(&mut events).await;
        assert_eq!(
            (deleted.container_id.as_str(), deleted.container_event_type()),
            (id.as_str(), Deleted)
        );
        let left: Vec<_> = deleted.containers_statuses.iter().map(|status| &status.id).collect();
        assert_eq!(left, [&second]);
        cri.remove(&id).await.unwrap();
        cri.stop_pod(&pod).await.unwrap();
        cri.stop_pod(&pod).await.unwrap();
        let stopped = next(&mut events).await;
        assert_eq!(
            (stopped.container_id.as_str(), stopped.container_event_type()),
            (pod.as_str(), Stopped)
        );
        let status = stopped.pod_sandbox_status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        cri.remove_pod(&pod).await.unwrap();
        assert_eq!(steps(&mut events, 1).await, [(second.clone(), Deleted)]);
        let last = next(&mut events).await;
        assert_eq!(
            (last.container_id.as_str(), last.container_event_type()),
            (pod.as_str(), Deleted)
        );
        assert_eq!(last.pod_sandbox_status.unwrap().metadata, config.metadata);
        nothing_more(&mut events).await;

        let all = steps(&mut other, 11).await;
        assert_eq!(all.first(), Some(&(pod.clone(), Created)), "every listener hears all");
        assert_eq!(all.last(), Some(&(pod, Deleted)));
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn kubelet_never_hears_of_peoples_pods() {
    let daemon = Daemon::start().await;
    let mut kubelets = listen(&daemon.cri).await;
    let mut request = tonic::Request::new(GetEventsRequest {});
    request.metadata_mut().insert("wharf-owner", "all".parse().unwrap());
    let answer = daemon.cri.runtime.clone().get_container_events(request).await;
    let mut all = answer.unwrap().into_inner();
    let image = daemon.busybox().await;
    let output = daemon
        .wharf(&["run", "-d", "--name", "mine", &image, "sleep", "1000"])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        next(&mut all).await.container_event_type(),
        ContainerEventType::ContainerCreatedEvent
    );
    nothing_more(&mut kubelets).await;
    let output = daemon.wharf(&["rm", "-f", "mine"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    nothing_more(&mut kubelets).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_listener_that_does_not_read_holds_up_nobody_and_is_told_of_its_loss() {
    let daemon = Daemon::start().await;
    let slow = Cri::connect(&daemon.socket).await.unwrap();
    let mut unread = listen(&slow).await;
    let mut config = daemon.pod("loud");
    // Large events fill what the connection takes without being read.
    config.annotations = wharf_e2e::specs::map("filling", &"x".repeat(100 << 10));
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    // More than a listener may be behind, with what the connection holds.
    for round in 0..540 {
        let main = container(&format!("main-{round}"), &image, "true");
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        daemon.cri.remove(&id).await.unwrap();
    }
    let mut read = 0;
    let error = loop {
        match tokio::time::timeout(PATIENCE, unread.message()).await.unwrap() {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("the stream ended without a word after {read} of 1082 events"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(read < 1082, "{read}");
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn listeners_do_not_hold_up_the_daemons_end() {
    let mut daemon = Daemon::start().await;
    let mut events = listen(&daemon.cri).await;
    let begin = std::time::Instant::now();
    assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(
        events.message().await.is_err(),
        "kubelet lists anew only after an error"
    );
    daemon.start_again().await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_pods_status_holds_its_containers() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("whole", "sleep 1000").await;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.clone(),
        verbose: false,
    };
    let answer = daemon
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.containers_statuses, [daemon.cri.status(&id).await.unwrap()]);
    assert!(answer.timestamp > answer.containers_statuses[0].started_at);
    daemon.finish().await;
}
