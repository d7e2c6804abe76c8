//! Each call with ids and configs that nobody should send: a clear refusal with the right code, and nothing left behind.

use std::time::Duration;

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, container, specs};
use wharf_proto::cri as pb;

pub const ODD_IDS: [&str; 7] = [
    "",
    "0123456789abcdef",
    "../../../etc",
    "/",
    "with space",
    "new\nline",
    "*",
];

#[tokio::test]
async fn odd_ids_name_nothing_and_touch_nothing() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("bystander", "sleep 1000").await;
    let absent = |code: Code| matches!(code, Code::NotFound | Code::InvalidArgument);
    for odd in ODD_IDS {
        let cri = &daemon.cri;
        let codes = [
            ("PodSandboxStatus", code(cri.pod_status(odd).await)),
            ("ContainerStatus", code(cri.status(odd).await)),
            ("StartContainer", code(cri.start(odd).await)),
            ("ExecSync", code(cri.exec(odd, &["true"], 5).await)),
            ("ReopenContainerLog", code(cri.reopen_log(odd).await)),
        ];
        for (call, code) in codes {
            assert!(absent(code), "{call} of {odd:?}: {code:?}");
        }
        let main = container("main", &daemon.busybox().await, "true");
        let config = daemon.pod("none");
        let created = code(cri.create(odd, &main, &config).await);
        assert!(absent(created), "CreateContainer in {odd:?}: {created:?}");
        // Of what is not there they succeed (contract rule 1), or say what is wrong with the id.
        let idle = [
            ("StopContainer", cri.stop(odd, 0).await),
            ("RemoveContainer", cri.remove(odd).await),
            ("StopPodSandbox", cri.stop_pod(odd).await),
            ("RemovePodSandbox", cri.remove_pod(odd).await),
        ];
        for (call, answer) in idle {
            let fine = answer.as_ref().err().is_none_or(|error| absent(error.code()));
            assert!(fine, "{call} of {odd:?}: {answer:?}");
        }
    }
    assert_eq!(
        daemon.cri.status(&id).await.unwrap().state(),
        pb::ContainerState::ContainerRunning
    );
    assert_eq!(
        daemon.cri.pod_status(&pod).await.unwrap().state(),
        pb::PodSandboxState::SandboxReady
    );
    daemon.finish().await;
}

#[tokio::test]
async fn odd_container_configs_are_refused_and_leave_nothing() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("odd");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    type Change = fn(&mut pb::ContainerConfig);
    let cases: &[(&str, Change)] = &[
        ("no metadata", |c| c.metadata = None),
        ("no name", |c| c.metadata = Some(Default::default())),
        ("log path upwards", |c| c.log_path = "../../escape.log".into()),
        ("absolute log path", |c| c.log_path = "/tmp/escape.log".into()),
        ("environment name", |c| c.envs = vec![specs::env("A=B", "c")]),
        ("zero byte in argument", |c| c.command = vec!["a\0b".into()]),
        ("negative shares", |c| resources(c).cpu_shares = -1),
        ("swap below memory", |c| {
            resources(c).memory_limit_in_bytes = 64 << 20;
            resources(c).memory_swap_limit_in_bytes = 32 << 20;
        }),
        ("capability", |c| {
            specs::security(c).capabilities = Some(pb::Capability {
                add_capabilities: vec!["CAP_FLY".into()],
                ..Default::default()
            });
        }),
        ("group without user", |c| {
            specs::security(c).run_as_group = Some(pb::Int64Value { value: 5 });
        }),
        ("user out of range", |c| {
            specs::security(c).run_as_user = Some(pb::Int64Value { value: -1 });
        }),
        ("absent device", |c| {
            c.devices = vec![pb::Device {
                host_path: "/dev/no-such-device".into(),
                container_path: "/dev/x".into(),
                permissions: "rwm".into(),
            }];
        }),
        ("device permissions", |c| {
            c.devices = vec![pb::Device {
                host_path: "/dev/null".into(),
                container_path: "/dev/x".into(),
                permissions: "rwx".into(),
            }];
        }),
        ("namespace mode", |c| {
            specs::security(c).namespace_options = Some(pb::NamespaceOption {
                pid: 77,
                ..Default::default()
            });
        }),
        ("windows", |c| c.windows = Some(pb::WindowsContainerConfig::default())),
        ("stop signal", |c| c.stop_signal = 999),
        ("policy for groups", |c| {
            specs::security(c).supplemental_groups_policy = 77
        }),
        ("user namespace mode", |c| {
            specs::security(c).namespace_options = Some(pb::NamespaceOption {
                userns_options: Some(pb::UserNamespace {
                    mode: 77,
                    ..Default::default()
                }),
                ..Default::default()
            });
        }),
        ("seccomp file", |c| {
            specs::security(c).seccomp = Some(pb::SecurityProfile {
                profile_type: pb::security_profile::ProfileType::Localhost.into(),
                localhost_ref: "/no/such/profile.json".into(),
            });
        }),
    ];
    for (what, change) in cases {
        let mut main = container("main", &image, "sleep 1000");
        change(&mut main);
        let error = daemon.cri.create(&pod, &main, &config).await.expect_err(what);
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
        assert!(!error.message().is_empty(), "{what}");
    }
    assert!(daemon.cri.containers(None).await.unwrap().is_empty());
    // The same name is free.
    daemon
        .started(&pod, &config, &container("main", &image, "sleep 1000"))
        .await;
    daemon.finish().await;
}

fn resources(config: &mut pb::ContainerConfig) -> &mut pb::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

#[tokio::test]
async fn large_and_odd_labels_come_back_as_they_were() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("labels");
    config.labels = specs::map("large", &"x".repeat(256 << 10));
    config.annotations = specs::map("odd \n\u{1}\u{7f}", "tab\tand \u{fffd} and \"quotes\"");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let status = daemon.cri.pod_status(&pod).await.unwrap();
    assert!(status.labels == config.labels && status.annotations == config.annotations);
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.labels = config.labels.clone();
    main.annotations = config.annotations.clone();
    let id = daemon.started(&pod, &config, &main).await;
    let status = daemon.cri.status(&id).await.unwrap();
    assert!(status.labels == main.labels && status.annotations == main.annotations);
    daemon.finish().await;
}

/// Rule 37: whoever asked may have gone; the work is finished or undone.
#[tokio::test]
async fn rule_37_a_call_that_is_dropped_at_any_time_leaves_nothing_half_done() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for wait in [0, 1, 3, 10, 30, 100, 300] {
        let patience = Duration::from_millis(wait);
        let config = daemon.pod(&format!("dropped-{wait}"));
        let _ = tokio::time::timeout(patience, daemon.cri.run_pod(&config, "")).await;
        // The retry gets the pod that the dropped call began, or a new one.
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let uid = &config.metadata.as_ref().unwrap().uid;
        let same = daemon.cri.pods(None).await.unwrap();
        let same = same.iter().filter(|p| &p.metadata.as_ref().unwrap().uid == uid);
        assert_eq!(same.count(), 1, "after {wait} ms");
        let main = container("main", &image, "sleep 1000");
        let _ = tokio::time::timeout(patience, daemon.cri.create(&pod, &main, &config)).await;
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        let _ = tokio::time::timeout(patience, daemon.cri.start(&id)).await;
        // The dropped start goes on, or has not begun.
        let _ = daemon.cri.start(&id).await;
        assert_eq!(
            daemon.cri.status(&id).await.unwrap().state(),
            pb::ContainerState::ContainerRunning,
            "after {wait} ms"
        );
        let _ = tokio::time::timeout(patience, daemon.cri.exec(&id, &["sleep", "1000"], 0)).await;
        let _ = tokio::time::timeout(patience, daemon.cri.stop(&id, 0)).await;
        daemon.cri.stop(&id, 0).await.unwrap();
        let _ = tokio::time::timeout(patience, daemon.cri.stop_pod(&pod)).await;
        daemon.gone(&pod).await;
    }
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn two_calls_for_one_object_at_once_do_no_harm() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("twice");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "sleep 1000");
    let create = || daemon.cri.create(&pod, &main, &config);
    let (a, b) = tokio::join!(create(), create());
    let id = a.unwrap();
    assert_eq!(id, b.unwrap());
    let (a, b) = tokio::join!(daemon.cri.start(&id), daemon.cri.start(&id));
    assert!(a.is_ok() != b.is_ok(), "one starts it: {a:?}, {b:?}");
    let stop = || daemon.cri.stop(&id, 0);
    let (a, b, c) = tokio::join!(stop(), daemon.cri.remove(&id), stop());
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?}, {b:?}, {c:?}");
    assert_eq!(code(daemon.cri.status(&id).await), Code::NotFound);
    let (a, b) = tokio::join!(daemon.cri.stop_pod(&pod), daemon.cri.remove_pod(&pod));
    assert!(a.is_ok() && b.is_ok(), "{a:?}, {b:?}");
    daemon.finish().await;
}

/// Of the pod's own process, which is not there: the API wants the contradiction to be refused all the same.
#[tokio::test]
async fn odd_pod_configs_are_refused_and_leave_nothing() {
    let daemon = Daemon::start().await;
    type Change = fn(&mut pb::PodSandboxConfig);
    fn context(config: &mut pb::PodSandboxConfig) -> &mut pb::LinuxSandboxSecurityContext {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }
    let cases: &[(&str, Change)] = &[
        ("run_as_group", |c| {
            context(c).run_as_group = Some(pb::Int64Value { value: 5 });
        }),
        ("supplemental_groups_policy", |c| {
            context(c).supplemental_groups_policy = 77;
        }),
        ("windows", |c| c.windows = Some(pb::WindowsPodSandboxConfig::default())),
        ("TARGET", |c| {
            specs::namespaces(c).pid = pb::NamespaceMode::Target.into();
        }),
    ];
    for (what, change) in cases {
        let mut config = daemon.pod("odd");
        change(&mut config);
        let error = daemon.cri.run_pod(&config, "").await.expect_err(what);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(what), "{error}");
        let request = pb::RestorePodRequest {
            checkpoint_path: "/no/such/checkpoint".into(),
            config: Some(config),
            container_configs: vec![container("main", "busybox", "true")],
            ..Default::default()
        };
        let error = daemon.cri.runtime.clone().restore_pod(request).await.expect_err(what);
        assert!(error.message().contains(what), "{error}");
    }
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    daemon.finish().await;
}
