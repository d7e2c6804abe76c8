//! Calls that nobody should make, of both services: nothing in them, nonsense in them, too much in them, wrong ids and
//! wrong configs. A clear refusal with the right code, and what is there goes on.

use prost::bytes::Bytes;
use tonic::Code;
use wharf_e2e::cri::{Answer, channel, code, image_spec};
use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, container, raw, specs};
use wharf_proto::cri as pb;

/// Every method of both services, and whether its answer is a stream.
const METHODS: &[(&str, bool)] = &[
    ("/runtime.v1.RuntimeService/Version", false),
    ("/runtime.v1.RuntimeService/RunPodSandbox", false),
    ("/runtime.v1.RuntimeService/StopPodSandbox", false),
    ("/runtime.v1.RuntimeService/RemovePodSandbox", false),
    ("/runtime.v1.RuntimeService/PodSandboxStatus", false),
    ("/runtime.v1.RuntimeService/ListPodSandbox", false),
    ("/runtime.v1.RuntimeService/CreateContainer", false),
    ("/runtime.v1.RuntimeService/StartContainer", false),
    ("/runtime.v1.RuntimeService/StopContainer", false),
    ("/runtime.v1.RuntimeService/RemoveContainer", false),
    ("/runtime.v1.RuntimeService/ListContainers", false),
    ("/runtime.v1.RuntimeService/ContainerStatus", false),
    ("/runtime.v1.RuntimeService/UpdateContainerResources", false),
    ("/runtime.v1.RuntimeService/ReopenContainerLog", false),
    ("/runtime.v1.RuntimeService/ExecSync", false),
    ("/runtime.v1.RuntimeService/Exec", false),
    ("/runtime.v1.RuntimeService/Attach", false),
    ("/runtime.v1.RuntimeService/PortForward", false),
    ("/runtime.v1.RuntimeService/ContainerStats", false),
    ("/runtime.v1.RuntimeService/ListContainerStats", false),
    ("/runtime.v1.RuntimeService/PodSandboxStats", false),
    ("/runtime.v1.RuntimeService/ListPodSandboxStats", false),
    ("/runtime.v1.RuntimeService/UpdateRuntimeConfig", false),
    ("/runtime.v1.RuntimeService/Status", false),
    ("/runtime.v1.RuntimeService/CheckpointContainer", false),
    ("/runtime.v1.RuntimeService/CheckpointPod", false),
    ("/runtime.v1.RuntimeService/RestorePod", false),
    ("/runtime.v1.RuntimeService/ListMetricDescriptors", false),
    ("/runtime.v1.RuntimeService/ListPodSandboxMetrics", false),
    ("/runtime.v1.RuntimeService/RuntimeConfig", false),
    ("/runtime.v1.RuntimeService/UpdatePodSandboxResources", false),
    ("/runtime.v1.RuntimeService/StreamPodSandboxes", true),
    ("/runtime.v1.RuntimeService/StreamContainers", true),
    ("/runtime.v1.RuntimeService/StreamContainerStats", true),
    ("/runtime.v1.RuntimeService/StreamPodSandboxStats", true),
    ("/runtime.v1.RuntimeService/StreamPodSandboxMetrics", true),
    ("/runtime.v1.RuntimeService/GetContainerEvents", true),
    ("/runtime.v1.ImageService/ListImages", false),
    ("/runtime.v1.ImageService/ImageStatus", false),
    ("/runtime.v1.ImageService/PullImage", false),
    ("/runtime.v1.ImageService/RemoveImage", false),
    ("/runtime.v1.ImageService/ImageFsInfo", false),
    ("/runtime.v1.ImageService/StreamImages", true),
];

/// What the daemon says to these bytes; of a stream, whether it begins.
async fn call(daemon: &Daemon, (method, streams): (&'static str, bool), bytes: Bytes) -> Answer<()> {
    let channel = channel(&daemon.socket).await.unwrap();
    let call = async {
        match streams {
            false => raw::unary(&channel, method, bytes).await.map(drop),
            true => raw::stream(&channel, method, bytes).await,
        }
    };
    tokio::time::timeout(wharf_e2e::PATIENCE, call)
        .await
        .unwrap_or_else(|_| panic!("{method} does not answer"))
}

#[tokio::test]
async fn calls_with_nothing_in_them_are_answered_or_refused() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("bystander", "sleep 1000").await;
    for method in METHODS {
        if let Err(status) = call(&daemon, *method, Bytes::new()).await {
            let refused = [Code::InvalidArgument, Code::NotFound, Code::Unimplemented];
            assert!(refused.contains(&status.code()), "{}: {status}", method.0);
            assert!(!status.message().is_empty(), "{}", method.0);
        }
    }
    still_runs(&daemon, &pod, &id).await;
    daemon.finish().await;
}

#[tokio::test]
async fn calls_with_nonsense_or_too_much_in_them_are_refused() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("bystander", "sleep 1000").await;
    let nonsense = [
        // A field that is longer than what follows, a group that nobody opened, field number 0, text that is no UTF-8.
        Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f"),
        Bytes::from_static(b"\x0c"),
        Bytes::from_static(b"\x02\x01a"),
        Bytes::from_static(b"\x0a\x02\xff\xfe"),
    ];
    for method in METHODS {
        for bytes in &nonsense {
            // Some messages have no such field, and then it is passed over, or is of another kind.
            if let Err(status) = call(&daemon, *method, bytes.clone()).await {
                let refused = [
                    Code::Internal,
                    Code::InvalidArgument,
                    Code::NotFound,
                    Code::Unimplemented,
                ];
                assert!(refused.contains(&status.code()), "{} {bytes:?}: {status}", method.0);
            }
        }
    }
    let mut huge = vec![0x0a, 0x80, 0x80, 0x80, 0x10];
    huge.resize(33 << 20, b'x');
    let huge = Bytes::from(huge);
    for method in METHODS {
        let status = call(&daemon, *method, huge.clone())
            .await
            .expect_err("more than a message may have");
        let refused = [Code::OutOfRange, Code::ResourceExhausted];
        assert!(refused.contains(&status.code()), "{}: {status}", method.0);
    }
    still_runs(&daemon, &pod, &id).await;
    daemon.finish().await;
}

async fn still_runs(daemon: &Daemon, pod: &str, id: &str) {
    assert_eq!(
        daemon.cri.pod_status(pod).await.unwrap().state(),
        pb::PodSandboxState::SandboxReady
    );
    let status = daemon.cri.status(id).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    assert_eq!(
        (
            daemon.cri.pods(None).await.unwrap().len(),
            daemon.cri.containers(None).await.unwrap().len()
        ),
        (1, 1)
    );
    daemon.cri.shell(id, "true").await.unwrap();
}

#[tokio::test]
async fn odd_ids_in_all_other_calls_name_nothing() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("bystander", "sleep 1000").await;
    for odd in crate::bad_requests::ODD_IDS {
        let mut cri = daemon.cri.runtime.clone();
        let container_id = || odd.to_owned();
        let pod_sandbox_id = || odd.to_owned();
        let exec = pb::ExecRequest {
            container_id: container_id(),
            cmd: vec!["true".into()],
            stdout: true,
            ..Default::default()
        };
        let attach = pb::AttachRequest {
            container_id: container_id(),
            stdout: true,
            ..Default::default()
        };
        let forward = pb::PortForwardRequest {
            pod_sandbox_id: pod_sandbox_id(),
            port: vec![80],
        };
        let stats = pb::ContainerStatsRequest {
            container_id: container_id(),
        };
        let pod_stats = pb::PodSandboxStatsRequest {
            pod_sandbox_id: pod_sandbox_id(),
        };
        let update = pb::UpdateContainerResourcesRequest {
            container_id: container_id(),
            ..Default::default()
        };
        let update_pod = pb::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod_sandbox_id(),
            ..Default::default()
        };
        let codes = [
            ("Exec", code(cri.exec(exec).await)),
            ("Attach", code(cri.attach(attach).await)),
            ("PortForward", code(cri.port_forward(forward).await)),
            ("ContainerStats", code(cri.container_stats(stats).await)),
            ("PodSandboxStats", code(cri.pod_sandbox_stats(pod_stats).await)),
            (
                "UpdateContainerResources",
                code(cri.update_container_resources(update).await),
            ),
            (
                "UpdatePodSandboxResources",
                code(cri.update_pod_sandbox_resources(update_pod).await),
            ),
        ];
        for (call, code) in codes {
            let absent = matches!(code, Code::NotFound | Code::InvalidArgument);
            assert!(absent, "{call} of {odd:?}: {code:?}");
        }
        let checkpoint = pb::CheckpointContainerRequest {
            container_id: container_id(),
            location: daemon.dir().join("checkpoint").display().to_string(),
            ..Default::default()
        };
        let code = code(cri.checkpoint_container(checkpoint).await);
        let absent = matches!(code, Code::NotFound | Code::InvalidArgument | Code::Unimplemented);
        assert!(absent, "CheckpointContainer of {odd:?}: {code:?}");
        // As a filter the empty id wants all, and any other no object.
        let all = usize::from(odd.is_empty());
        let filter = pb::ContainerFilter {
            id: odd.into(),
            ..Default::default()
        };
        assert_eq!(daemon.cri.containers(Some(filter)).await.unwrap().len(), all, "{odd:?}");
        let filter = pb::PodSandboxFilter {
            id: odd.into(),
            ..Default::default()
        };
        assert_eq!(daemon.cri.pods(Some(filter)).await.unwrap().len(), all, "{odd:?}");
        let filter = Some(pb::ContainerStatsFilter {
            id: odd.into(),
            ..Default::default()
        });
        let list = cri
            .list_container_stats(pb::ListContainerStatsRequest { filter })
            .await
            .unwrap();
        assert_eq!(list.into_inner().stats.len(), all, "{odd:?}");
        let filter = Some(pb::PodSandboxStatsFilter {
            id: odd.into(),
            ..Default::default()
        });
        let list = cri
            .list_pod_sandbox_stats(pb::ListPodSandboxStatsRequest { filter })
            .await
            .unwrap();
        assert_eq!(list.into_inner().stats.len(), all, "{odd:?}");
    }
    still_runs(&daemon, &pod, &id).await;
    daemon.finish().await;
}

#[tokio::test]
async fn odd_names_of_images_name_none() {
    let daemon = Daemon::start().await;
    let busybox = daemon.busybox().await;
    let long = format!("127.0.0.1:5000/{}", "a/".repeat(5000));
    for odd in [
        "no/such:image",
        "UPPER",
        "a b",
        "../../etc/passwd",
        "sha256:",
        "sha256:zz",
        "@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "busybox\0latest",
        "busybox\nlatest",
        &long,
    ] {
        assert_eq!(daemon.cri.image(odd).await.unwrap(), None, "{odd:?}");
        if let Err(status) = daemon.cri.remove_image(odd).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{odd:?}: {status}");
        }
        let filter = Some(pb::ImageFilter {
            image: Some(image_spec(odd)),
        });
        let list = daemon
            .cri
            .images
            .clone()
            .list_images(pb::ListImagesRequest { filter })
            .await;
        assert!(list.unwrap().into_inner().images.is_empty(), "{odd:?}");
    }
    assert_eq!(code(daemon.cri.image("").await), Code::InvalidArgument);
    assert_eq!(code(daemon.cri.remove_image("").await), Code::InvalidArgument);
    for odd in [&long, "a\0b", "a\nb"] {
        assert_eq!(code(daemon.cri.pull(odd).await), Code::InvalidArgument, "{odd:?}");
    }
    // What the credentials hold must not matter to a registry that asks for none, and must not be told.
    let auth = pb::AuthConfig {
        username: "a\nb".into(),
        password: "s3cret\0".into(),
        auth: "no base64 s3cret".into(),
        ..Default::default()
    };
    if let Err(status) = daemon.cri.pull_as(&reference("busybox:latest"), Some(auth)).await {
        assert!(!status.message().contains("s3cret"), "{status}");
    }
    assert!(!daemon.log().contains("s3cret"));
    assert!(daemon.cri.image(&busybox).await.unwrap().is_some());
    daemon.finish().await;
}

#[tokio::test]
async fn odd_commands_timeouts_and_ports_are_refused() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("odd", "sleep 1000").await;
    let mut cri = daemon.cri.runtime.clone();
    assert_eq!(code(daemon.cri.exec(&id, &[], 5).await), Code::InvalidArgument);
    assert_eq!(code(daemon.cri.exec(&id, &["a\0b"], 5).await), Code::InvalidArgument);
    // No limit, as with the peers.
    daemon.cri.exec(&id, &["true"], -1).await.unwrap();
    let exec = |cmd: &[&str], stdout, stderr, tty| pb::ExecRequest {
        container_id: id.clone(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        stdout,
        stderr,
        tty,
        stdin: false,
    };
    for (request, what) in [
        (exec(&[], true, false, false), "no command"),
        (exec(&["true"], false, false, false), "no stream"),
        (exec(&["true"], true, true, true), "a terminal with stderr"),
    ] {
        assert_eq!(code(cri.exec(request).await), Code::InvalidArgument, "{what}");
    }
    let attach = pb::AttachRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    assert_eq!(code(cri.attach(attach).await), Code::InvalidArgument);
    for port in [0, -1, 65536, i32::MAX] {
        let request = pb::PortForwardRequest {
            pod_sandbox_id: pod.clone(),
            port: vec![port],
        };
        assert_eq!(code(cri.port_forward(request).await), Code::InvalidArgument, "{port}");
    }
    for cidr in [
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "x/8",
        "10.0.0.0/8,",
        "10.0.0.0/-1",
    ] {
        let request = pb::UpdateRuntimeConfigRequest {
            runtime_config: Some(pb::RuntimeConfig {
                network_config: Some(pb::NetworkConfig { pod_cidr: cidr.into() }),
            }),
        };
        assert_eq!(
            code(cri.update_runtime_config(request).await),
            Code::InvalidArgument,
            "{cidr}"
        );
    }
    type Limits = fn(&mut pb::LinuxContainerResources);
    // Less than zero is no limit for quota and memory.
    let limits: [(&str, Limits); 6] = [
        ("shares", |r| r.cpu_shares = -5),
        ("period", |r| r.cpu_period = -5),
        ("cpus", |r| r.cpuset_cpus = "0-x".into()),
        ("mems", |r| r.cpuset_mems = "99".into()),
        ("huge pages", |r| {
            r.hugepage_limits = vec![pb::HugepageLimit {
                page_size: "../../x".into(),
                limit: 1,
            }];
        }),
        ("unified", |r| r.unified = specs::map("../../x", "1")),
    ];
    for (what, change) in limits {
        let mut linux = pb::LinuxContainerResources::default();
        change(&mut linux);
        let request = pb::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let answer = cri.update_container_resources(request).await;
        assert_eq!(
            answer.map(drop).map_err(|status| status.code()),
            Err(Code::InvalidArgument),
            "{what}"
        );
    }
    still_runs(&daemon, &pod, &id).await;
    // A negative time is none.
    daemon.cri.stop(&id, -1).await.unwrap();
    for answer in [
        code(daemon.cri.reopen_log(&id).await),
        code(daemon.cri.exec(&id, &["true"], 5).await),
    ] {
        assert_eq!(answer, Code::FailedPrecondition, "it has ended");
    }
    assert_eq!(
        code(cri.exec(exec(&["true"], true, false, false)).await),
        Code::FailedPrecondition
    );
    daemon.finish().await;
}

#[tokio::test]
async fn odd_pod_configs_are_refused_and_leave_nothing() {
    let daemon = Daemon::start().await;
    type Change = fn(&mut pb::PodSandboxConfig);
    let cases: &[(&str, Change)] = &[
        ("no name", |c| c.metadata = Some(Default::default())),
        ("relative log directory", |c| c.log_directory = "logs".into()),
        ("zero byte in the log directory", |c| {
            c.log_directory = "/tmp/a\0b".into()
        }),
        ("long host name", |c| c.hostname = "h".repeat(65)),
        ("host name beside the node's network", |c| {
            c.hostname = "pod".into();
            specs::namespaces(c).network = pb::NamespaceMode::Node.into();
        }),
        ("host name of two lines", |c| c.hostname = "a\n127.0.0.1 b".into()),
        ("zero byte in the host name", |c| c.hostname = "a\0b".into()),
        ("server of two lines", |c| {
            c.dns_config = Some(pb::DnsConfig {
                servers: vec!["1.1.1.1\nnameserver 2.2.2.2".into()],
                ..Default::default()
            });
        }),
        ("sysctl upwards", |c| {
            linux(c).sysctls = specs::map("net/../kernel.panic", "1")
        }),
        ("sysctl of two lines", |c| {
            linux(c).sysctls = specs::map("net.ipv4.ip_forward\n", "1")
        }),
        ("cgroup parent upwards", |c| {
            linux(c).cgroup_parent = "/a/../../b".into()
        }),
        ("zero byte in the cgroup parent", |c| {
            linux(c).cgroup_parent = "/a\0b".into()
        }),
        ("port out of range", |c| c.port_mappings = vec![port(70_000, 0)]),
        ("negative port", |c| c.port_mappings = vec![port(-1, 0)]),
        ("protocol", |c| c.port_mappings = vec![port(80, 77)]),
        ("network mode", |c| specs::namespaces(c).network = 77),
        ("pid mode", |c| specs::namespaces(c).pid = 77),
        ("ipc mode", |c| specs::namespaces(c).ipc = -1),
        ("a config of 9 MiB", |c| {
            c.annotations = specs::map("huge", &"x".repeat(9 << 20))
        }),
    ];
    for (what, change) in cases {
        let mut config = daemon.pod("odd");
        change(&mut config);
        let error = daemon.cri.run_pod(&config, "").await.expect_err(what);
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
        assert!(!error.message().is_empty() && error.message().len() < 4096, "{what}");
    }
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    wharf_e2e::guard::pods_left_nothing(&daemon).await;
    daemon.finish().await;
}

fn linux(config: &mut pb::PodSandboxConfig) -> &mut pb::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

fn port(number: i32, protocol: i32) -> pb::PortMapping {
    pb::PortMapping {
        container_port: number,
        host_port: 12_345,
        protocol,
        ..Default::default()
    }
}

#[tokio::test]
async fn configs_just_below_the_limit_come_back_whole_and_larger_ones_are_refused() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("large");
    config.labels = specs::map("large", &"x".repeat(7 << 20));
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    assert!(daemon.cri.pods(None).await.unwrap()[0].labels == config.labels);
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.annotations = specs::map("large", &"y".repeat(7 << 20));
    let id = daemon.started(&pod, &config, &main).await;
    assert!(daemon.cri.status(&id).await.unwrap().annotations == main.annotations);
    assert!(daemon.cri.containers(None).await.unwrap()[0].annotations == main.annotations);
    main.metadata.as_mut().unwrap().name = "larger".into();
    main.annotations = specs::map("larger", &"y".repeat(9 << 20));
    let error = daemon
        .cri
        .create(&pod, &main, &config)
        .await
        .expect_err("larger than a list may be");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    daemon.finish().await;
}
