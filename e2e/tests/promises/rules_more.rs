//! Rules of the contract that other modules do not hold.

use tonic::Code;
use wharf_e2e::{Daemon, container, logs, specs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn rule_06_a_pod_is_ready_and_has_its_address_on_return() {
    let daemon = Daemon::start().await;
    let pod = daemon.cri.run_pod(&daemon.pod("ready"), "").await.unwrap();
    let status = daemon.cri.pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), pb::PodSandboxState::SandboxReady);
    assert!(!status.network.unwrap().ip.is_empty());
    // What fails here can be undone, so nothing is left. That what can't be is listed is the fail points' to show.
    let mut bad = daemon.pod("bad");
    bad.linux
        .as_mut()
        .unwrap()
        .sysctls
        .insert("net.ipv4.no_such_sysctl".into(), "1".into());
    daemon.cri.run_pod(&bad, "").await.expect_err("no such sysctl");
    let left: Vec<_> = daemon.cri.pods(None).await.unwrap();
    assert_eq!(left.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&pod]);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_13_times_are_zero_until_they_happen_and_then_nanoseconds() {
    let daemon = Daemon::start().await;
    let begin = now();
    let config = daemon.pod("times");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "exec sleep 1000");
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert!(status.created_at >= begin && status.created_at <= now());
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    daemon.cri.start(&id).await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert!(status.started_at >= status.created_at && status.started_at <= now());
    assert_eq!(status.finished_at, 0);
    daemon.cri.stop(&id, 0).await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert!(status.finished_at >= status.started_at && status.finished_at <= now());
    let status = daemon.cri.pod_status(&pod).await.unwrap();
    assert!(status.created_at >= begin && status.created_at <= now());
    daemon.finish().await;
}

fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

#[tokio::test]
async fn rule_23_the_log_is_where_it_should_be_and_goes_on_after_a_restart() {
    let mut daemon = Daemon::start().await;
    let config = daemon.pod("log");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container(
        "main",
        &daemon.busybox().await,
        "echo before; while [ ! -e /go ]; do sleep 0.1; done; echo after",
    );
    main.log_path = "deeper/down/0.log".into();
    let id = daemon.started(&pod, &config, &main).await;
    let status = daemon.cri.status(&id).await.unwrap();
    let path = logs::path(&config, &main);
    assert_eq!(status.log_path, path.display().to_string());
    daemon.crash().await;
    daemon.cri.shell(&id, "touch /go").await.unwrap();
    daemon.cri.exited(&id).await.unwrap();
    assert_eq!(logs::text(&path, "stdout").unwrap(), "before\nafter\n");
    daemon.finish().await;
}

#[tokio::test]
async fn rule_30_the_cgroup_driver_is_told() {
    let daemon = Daemon::start().await;
    let request = pb::RuntimeConfigRequest {};
    let answer = daemon.cri.runtime.clone().runtime_config(request).await.unwrap();
    let linux = answer.into_inner().linux.expect("linux settings");
    assert_eq!(linux.cgroup_driver(), pb::CgroupDriver::Cgroupfs);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_45_the_target_of_a_pid_namespace_is_in_the_same_pod_and_runs() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("target");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let running = daemon
        .started(&pod, &config, &container("running", &image, "exec sleep 4242"))
        .await;
    let created = daemon
        .cri
        .create(&pod, &container("created", &image, "true"), &config)
        .await
        .unwrap();
    let (_, elsewhere) = daemon.running("elsewhere", "sleep 1000").await;
    let debugger = |name: &str, target: &str| {
        let mut config = container(name, &image, "exec sleep 1000");
        specs::security(&mut config).namespace_options = Some(pb::NamespaceOption {
            pid: pb::NamespaceMode::Target.into(),
            target_id: target.into(),
            ..Default::default()
        });
        config
    };
    for target in [elsewhere.as_str(), created.as_str(), "no-such-id", ""] {
        let error = daemon
            .cri
            .create(&pod, &debugger("bad", target), &config)
            .await
            .expect_err(target);
        assert!(
            matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition),
            "{target:?}: {error}"
        );
    }
    let id = daemon.started(&pod, &config, &debugger("good", &running)).await;
    let seen = daemon
        .cri
        .shell(&id, "cat /proc/1/cmdline | tr '\\0' ' '")
        .await
        .unwrap();
    assert!(seen.contains("sleep 4242"), "{seen}");
    // It must still run when the other starts: its number may be another process's by then.
    let late = daemon
        .cri
        .create(&pod, &debugger("late", &running), &config)
        .await
        .unwrap();
    daemon.cri.stop(&running, 0).await.unwrap();
    let error = daemon.cri.start(&late).await.expect_err("the target has ended");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    daemon.finish().await;
}
