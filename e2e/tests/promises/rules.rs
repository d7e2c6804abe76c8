//! Rules of the contract between kubelet and a runtime, by number.

use std::time::{Duration, Instant};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::specs::{self, map};
use wharf_e2e::{Daemon, container, eventually, logs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn rule_01_stop_and_remove_of_unknown_or_again_succeed() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let unknown = "f".repeat(64);
    cri.stop_pod(&unknown).await.unwrap();
    cri.remove_pod(&unknown).await.unwrap();
    cri.stop(&unknown, 1).await.unwrap();
    cri.remove(&unknown).await.unwrap();
    cri.remove_image("127.0.0.1:5000/never-pulled").await.unwrap();
    let (pod, id) = daemon.running("twice", "sleep 1000").await;
    for _ in 0..2 {
        cri.stop(&id, 0).await.unwrap();
    }
    for _ in 0..2 {
        cri.remove(&id).await.unwrap();
    }
    for _ in 0..2 {
        cri.stop_pod(&pod).await.unwrap();
    }
    for _ in 0..2 {
        cri.remove_pod(&pod).await.unwrap();
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_02_status_start_and_exec_of_unknown_are_not_found() {
    let daemon = Daemon::start().await;
    let unknown = "f".repeat(64);
    assert_eq!(code(daemon.cri.pod_status(&unknown).await), Code::NotFound);
    assert_eq!(code(daemon.cri.status(&unknown).await), Code::NotFound);
    assert_eq!(code(daemon.cri.start(&unknown).await), Code::NotFound);
    assert_eq!(code(daemon.cri.exec(&unknown, &["true"], 1).await), Code::NotFound);
    let update = pb::UpdateContainerResourcesRequest {
        container_id: unknown,
        linux: Some(pb::LinuxContainerResources::default()),
        ..Default::default()
    };
    let mut runtime = daemon.cri.runtime.clone();
    assert_eq!(code(runtime.update_container_resources(update).await), Code::NotFound);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_03_status_of_an_absent_image_is_success_without_image() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.cri.image("127.0.0.1:5000/absent:latest").await.unwrap(), None);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_04_filters_are_anded_and_match_exactly_and_ids_by_prefix() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let mut config = daemon.pod("filter");
    config.labels = map("app", "one");
    config.labels.insert("tier".into(), "back".into());
    let pod = cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.labels = map("role", "main");
    let id = cri.create(&pod, &main, &config).await.unwrap();

    let count = async |filter: pb::PodSandboxFilter| cri.pods(Some(filter)).await.unwrap().len();
    let labels = |key: &str, value: &str| pb::PodSandboxFilter {
        label_selector: map(key, value),
        ..Default::default()
    };
    assert_eq!(count(labels("app", "one")).await, 1);
    assert_eq!(count(labels("app", "on")).await, 0);
    let mut both = labels("app", "one");
    both.label_selector.insert("tier".into(), "front".into());
    assert_eq!(count(both).await, 0);
    let state = |state: pb::PodSandboxState| pb::PodSandboxFilter {
        id: pod[..12].into(),
        state: Some(pb::PodSandboxStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(count(state(pb::PodSandboxState::SandboxReady)).await, 1);
    assert_eq!(count(state(pb::PodSandboxState::SandboxNotready)).await, 0);
    assert_eq!(
        count(pb::PodSandboxFilter {
            id: "0".repeat(64),
            ..Default::default()
        })
        .await,
        0
    );

    let count = async |filter: pb::ContainerFilter| cri.containers(Some(filter)).await.unwrap().len();
    assert_eq!(
        count(pb::ContainerFilter {
            id: id[..10].into(),
            ..Default::default()
        })
        .await,
        1
    );
    assert_eq!(
        count(pb::ContainerFilter {
            pod_sandbox_id: pod[..10].into(),
            ..Default::default()
        })
        .await,
        1
    );
    let mut wrong = pb::ContainerFilter {
        label_selector: map("role", "main"),
        ..Default::default()
    };
    assert_eq!(count(wrong.clone()).await, 1);
    wrong.state = Some(pb::ContainerStateValue {
        state: pb::ContainerState::ContainerRunning.into(),
    });
    assert_eq!(count(wrong).await, 0);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_05_labels_and_annotations_come_back_unchanged() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let odd = map("example.com/odd", "line\nbreak \u{1F6A2} \"quoted\" {json: 1}");
    let mut config = daemon.pod("odd");
    (config.labels, config.annotations) = (odd.clone(), odd.clone());
    let events = cri
        .runtime
        .clone()
        .get_container_events(pb::GetEventsRequest::default())
        .await;
    let mut events = events.unwrap().into_inner();
    let pod = cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    (main.labels, main.annotations) = (odd.clone(), odd.clone());
    let id = cri.create(&pod, &main, &config).await.unwrap();
    let status = cri.pod_status(&pod).await.unwrap();
    assert_eq!((status.labels, status.annotations), (odd.clone(), odd.clone()));
    let listed = cri.pods(None).await.unwrap().remove(0);
    assert_eq!((listed.labels, listed.annotations), (odd.clone(), odd.clone()));
    let status = cri.status(&id).await.unwrap();
    assert_eq!((status.labels, status.annotations), (odd.clone(), odd.clone()));
    let listed = cri.containers(None).await.unwrap().remove(0);
    assert_eq!((listed.labels, listed.annotations), (odd.clone(), odd.clone()));
    let told = loop {
        let event = events.message().await.unwrap().expect("the stream goes on");
        if let Some(told) = event.containers_statuses.first() {
            let of = event.pod_sandbox_status.unwrap();
            assert_eq!((of.labels, of.annotations), (odd.clone(), odd.clone()));
            break told.clone();
        }
    };
    assert_eq!((told.labels, told.annotations), (odd.clone(), odd));
    daemon.finish().await;
}

#[tokio::test]
async fn rule_07_the_same_metadata_twice_is_one_object() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let config = daemon.pod("same");
    let (one, two) = tokio::join!(cri.run_pod(&config, ""), cri.run_pod(&config, ""));
    let pod = one.unwrap();
    assert_eq!(two.unwrap(), pod);
    let main = container("main", &daemon.busybox().await, "sleep 1000");
    let (one, two) = tokio::join!(cri.create(&pod, &main, &config), cri.create(&pod, &main, &config));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(cri.pods(None).await.unwrap().len(), 1);
    assert_eq!(cri.containers(None).await.unwrap().len(), 1);
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(cri.run_pod(&next, "").await.unwrap(), pod);
    // Later ones as well, and for a container until it is started.
    assert_eq!(cri.run_pod(&config, "").await.unwrap(), pod);
    let id = cri.create(&pod, &main, &config).await.unwrap();
    cri.start(&id).await.unwrap();
    cri.create(&pod, &main, &config).await.expect_err("it has been started");
    assert_eq!(cri.containers(None).await.unwrap().len(), 1);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_08_and_10_stopping_a_pod_kills_its_containers_and_takes_its_address() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("stop", "trap '' TERM; while :; do sleep 1; done").await;
    daemon.cri.stop_pod(&pod).await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (pb::ContainerState::ContainerExited, 137)
    );
    let status = daemon.cri.pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), pb::PodSandboxState::SandboxNotready);
    assert_eq!(status.network.unwrap_or_default().ip, "");
    daemon.finish().await;
}

#[tokio::test]
async fn rule_11_a_pod_on_the_hosts_network_reports_no_address() {
    let daemon = Daemon::start().await;
    let config = specs::host_network_pod("host", &daemon.logs);
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    assert_eq!(
        daemon
            .cri
            .pod_status(&pod)
            .await
            .unwrap()
            .network
            .unwrap_or_default()
            .ip,
        ""
    );
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    specs::security(&mut main)
        .namespace_options
        .get_or_insert_default()
        .network = pb::NamespaceMode::Node.into();
    let id = daemon.started(&pod, &config, &main).await;
    // The lab is the host: its registry listens on the loopback that the container sees.
    daemon
        .cri
        .shell(&id, "wget -q -O - http://127.0.0.1:5000/v2/")
        .await
        .unwrap();
    assert_eq!(
        daemon.cri.shell(&id, "hostname").await.unwrap(),
        daemon.lab.output("hostname", &[]).await.unwrap()
    );
    daemon.finish().await;
}

#[tokio::test]
async fn rule_14_exit_codes_and_reasons_are_told() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("codes");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    for (name, line, expected) in [
        ("zero", "exit 0", (0, "Completed")),
        ("three", "exit 3", (3, "Error")),
        ("high", "exit 255", (255, "Error")),
        ("signal", "kill -9 $$; kill -USR1 $$; sleep 1", (138, "Error")),
    ] {
        // A container's init ignores signals from inside that it has no handler for: so a child gets the signal.
        let line = if name == "signal" {
            "sh -c 'kill -USR1 $$'; exit $?"
        } else {
            line
        };
        let id = daemon.started(&pod, &config, &container(name, &image, line)).await;
        let status = daemon.cri.exited(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), expected, "{name}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0);
    }
    let id = daemon
        .started(&pod, &config, &container("killed", &image, "sleep 1000"))
        .await;
    daemon.cri.stop(&id, 0).await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    daemon.finish().await;
}

#[tokio::test]
async fn rule_16_a_container_that_failed_to_start_is_listed_until_removed() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("failed");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "");
    main.command = vec!["/etc/passwd".into()];
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    daemon.cri.start(&id).await.expect_err("/etc/passwd is no program");
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(!status.message.is_empty());
    assert_eq!(
        daemon.cri.containers(None).await.unwrap()[0].state(),
        pb::ContainerState::ContainerExited
    );
    daemon
        .cri
        .start(&id)
        .await
        .expect_err("only a created container can be started");
    daemon.cri.remove(&id).await.unwrap();
    assert!(daemon.cri.containers(None).await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn rule_17_stop_with_zero_timeout_kills_at_once_and_with_timeout_asks_first() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("timeouts");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let start = async |name: &str, line: &str| {
        let main = container(name, &image, line);
        let id = daemon.started(&pod, &config, &main).await;
        let path = logs::path(&config, &main);
        eventually("it runs", async || {
            logs::text(&path, "stdout").is_ok_and(|text| text == "ready\n")
        })
        .await;
        id
    };
    let id = start("now", stubborn).await;
    let begin = Instant::now();
    daemon.cri.stop(&id, 0).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (pb::ContainerState::ContainerExited, 137)
    );

    let id = start("later", stubborn).await;
    let begin = Instant::now();
    daemon.cri.stop(&id, 1).await.unwrap();
    assert!(
        (Duration::from_millis(950)..Duration::from_secs(3)).contains(&begin.elapsed()),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 137);

    let id = start("polite", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done").await;
    let begin = Instant::now();
    daemon.cri.stop(&id, 30).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(3), "took {:?}", begin.elapsed());
    assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 5);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_17_a_later_stop_with_a_shorter_timeout_wins() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon
        .running("shorter", "trap '' TERM; while :; do sleep 0.1; done")
        .await;
    let begin = Instant::now();
    let (long, short) = tokio::join!(daemon.cri.stop(&id, 60), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        daemon.cri.stop(&id, 0).await
    });
    long.unwrap();
    short.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    daemon.finish().await;
}

#[tokio::test]
async fn rule_18_removing_a_running_container_kills_it_and_leaves_its_log() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("remove");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "echo hello; sleep 1000");
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    eventually("its line is logged", async || {
        logs::text(&path, "stdout").is_ok_and(|text| text == "hello\n")
    })
    .await;
    daemon.cri.remove(&id).await.unwrap();
    assert_eq!(code(daemon.cri.status(&id).await), Code::NotFound);
    assert_eq!(logs::text(&path, "stdout").unwrap(), "hello\n");
    daemon.finish().await;
}

#[tokio::test]
async fn rule_19_no_container_is_created_in_a_stopped_pod() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("stopped");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    daemon.cri.stop_pod(&pod).await.unwrap();
    let main = container("main", &daemon.busybox().await, "true");
    daemon
        .cri
        .create(&pod, &main, &config)
        .await
        .expect_err("the pod is not ready");
    assert!(daemon.cri.containers(None).await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn rule_22_a_reopened_log_exists_on_return_and_loses_no_line() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("rotate");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done";
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    let mut parts = Vec::new();
    for n in 0..5 {
        let old = path.with_extension(format!("old{n}"));
        std::fs::rename(&path, &old).unwrap();
        parts.push(old);
        if daemon.cri.reopen_log(&id).await.is_err() {
            break; // It ended meanwhile.
        }
        assert!(path.exists(), "the new file is not there on return");
    }
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!(status.exit_code, 0);
    parts.push(path.clone());
    let text: String = parts
        .iter()
        .filter(|path| path.exists())
        .map(|path| logs::text(path, "stdout").unwrap())
        .collect();
    let expected: String = (0..3000).map(|n| format!("line-{n}\n")).collect();
    assert_eq!(text, expected);
    let _ = std::fs::remove_file(&path);
    daemon
        .cri
        .reopen_log(&id)
        .await
        .expect_err("a stopped container's log can't be reopened");
    assert!(!path.exists(), "a file was made for a stopped container");
    daemon.finish().await;
}
