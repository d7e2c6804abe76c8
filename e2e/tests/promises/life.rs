//! A pod's life from pull to remove, on each handler.

use nix::sys::signal::Signal;
use wharf_e2e::specs::{env, map, mount};
use wharf_e2e::{container, eventually, logs};
use wharf_proto::cri::{ContainerState, PodSandboxState};

use crate::on_each_handler;

#[tokio::test]
async fn a_pod_lives_from_pull_to_remove() {
    on_each_handler(async |daemon| {
        let cri = &daemon.cri;
        let image = daemon.pull("busybox:latest").await;
        let mut config = daemon.pod("life");
        config.labels = map("app", "life");
        let pod = cri.run_pod(&config, "").await.unwrap();
        let status = cri.pod_status(&pod).await.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert!(status.created_at > 0);
        assert!(status.network.unwrap().ip.parse::<std::net::Ipv4Addr>().is_ok());

        let line = "echo out; echo err >&2; trap 'echo got TERM; exit 7' TERM; while :; do sleep 0.1; done";
        let main = container("main", &image, line);
        let id = cri.create(&pod, &main, &config).await.unwrap();
        let status = cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerCreated);
        assert_eq!((status.started_at, status.finished_at), (0, 0));
        cri.start(&id).await.unwrap();
        let status = cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert!(status.created_at > 0 && status.started_at >= status.created_at && status.finished_at == 0);

        let path = logs::path(&config, &main);
        eventually("both lines in the log", async || {
            logs::text(&path, "stdout").is_ok_and(|text| text == "out\n")
                && logs::text(&path, "stderr").is_ok_and(|text| text == "err\n")
        })
        .await;
        assert_eq!(cri.shell(&id, "hostname").await.unwrap(), "life\n");

        cri.stop(&id, 10).await.unwrap();
        let status = cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        assert!(status.finished_at >= status.started_at);
        assert_eq!(logs::text(&path, "stdout").unwrap(), "out\ngot TERM\n");

        cri.remove(&id).await.unwrap();
        assert!(cri.containers(None).await.unwrap().is_empty());
        assert!(path.exists(), "the log is kubelet's to remove");
        cri.stop_pod(&pod).await.unwrap();
        assert_eq!(
            cri.pod_status(&pod).await.unwrap().state(),
            PodSandboxState::SandboxNotready
        );
        cri.remove_pod(&pod).await.unwrap();
        assert!(cri.pods(None).await.unwrap().is_empty());
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_a_start_error() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("missing");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "");
        main.command = vec!["/no/such/command".into()];
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        let error = daemon.cri.start(&id).await.expect_err("it can't start");
        assert!(error.message().contains("/no/such/command"), "{error}");
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains("/no/such/command"), "{}", status.message);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn environment_mounts_and_working_directory_arrive() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("arrive");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let shared = daemon.dir().join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        std::fs::write(shared.join("in"), "from the node").unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        main.envs = vec![env("ONE", "1"), env("TWO", "with space")];
        main.mounts = vec![
            mount(&shared.to_string_lossy(), "/rw", false),
            mount(&shared.to_string_lossy(), "/ro", true),
        ];
        main.working_dir = "/made".into();
        let id = daemon.started(&pod, &config, &main).await;
        let seen = daemon
            .cri
            .shell(&id, "echo $ONE,$TWO,$(pwd),$(cat /rw/in)")
            .await
            .unwrap();
        assert_eq!(seen, "1,with space,/made,from the node\n");
        daemon.cri.shell(&id, "echo back > /rw/out").await.unwrap();
        assert_eq!(std::fs::read_to_string(shared.join("out")).unwrap(), "back\n");
        assert!(
            daemon.cri.shell(&id, "echo no > /ro/out2").await.is_err(),
            "/ro can be written"
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn containers_of_a_pod_share_network_and_ipc_and_not_processes() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("share");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let one = daemon
            .started(&pod, &config, &container("one", &image, "nc -ll -p 80 -e echo hi"))
            .await;
        let two = daemon
            .started(&pod, &config, &container("two", &image, "sleep 1000"))
            .await;
        eventually("one answers two on the pod's loopback", async || {
            daemon
                .cri
                .shell(&two, "nc 127.0.0.1 80 </dev/null")
                .await
                .is_ok_and(|text| text == "hi\n")
        })
        .await;
        daemon.cri.shell(&one, "echo x > /dev/shm/shared").await.unwrap();
        assert_eq!(daemon.cri.shell(&two, "cat /dev/shm/shared").await.unwrap(), "x\n");
        for namespace in ["net", "ipc", "uts"] {
            let link = format!("readlink /proc/self/ns/{namespace}");
            assert_eq!(
                daemon.cri.shell(&one, &link).await.unwrap(),
                daemon.cri.shell(&two, &link).await.unwrap()
            );
        }
        assert!(!daemon.cri.shell(&two, "ps").await.unwrap().contains("nc -ll"));
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_an_init_and_shows_all_processes() {
    on_each_handler(async |daemon| {
        let mut config = daemon.pod("pids");
        wharf_e2e::specs::namespaces(&mut config).pid = wharf_proto::cri::NamespaceMode::Pod.into();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let shared = |name: &str, line: &str| {
            let mut config = container(name, &image, line);
            wharf_e2e::specs::security(&mut config)
                .namespace_options
                .get_or_insert_default()
                .pid = wharf_proto::cri::NamespaceMode::Pod.into();
            config
        };
        let one = daemon.started(&pod, &config, &shared("one", "sleep 1234")).await;
        let two = daemon.started(&pod, &config, &shared("two", "sleep 1000")).await;
        assert!(daemon.cri.shell(&two, "ps").await.unwrap().contains("sleep 1234"));
        assert_ne!(daemon.cri.shell(&one, "echo $PPID").await.unwrap(), "1\n");
        // An orphan is reaped by the pod's init.
        daemon.cri.shell(&one, "(sleep 0.2 &) ; true").await.unwrap();
        eventually("the orphan is reaped", async || {
            !daemon.cri.shell(&two, "ps").await.unwrap().contains("sleep 0.2")
        })
        .await;
        daemon.cri.stop(&one, 0).await.unwrap();
        assert_eq!(
            daemon.cri.status(&two).await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn limits_are_written_to_the_container_and_out_of_memory_is_told() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("limits");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut main = container("main", &image, "sleep 1000");
        let resources = wharf_proto::cri::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        main.linux.get_or_insert_default().resources = Some(resources);
        let id = daemon.started(&pod, &config, &main).await;
        let applied = daemon
            .cri
            .status(&id)
            .await
            .unwrap()
            .resources
            .and_then(|all| all.linux)
            .unwrap();
        assert_eq!(applied.memory_limit_in_bytes, 64 << 20);
        let limit = daemon
            .lab
            .cgroups_below()
            .into_iter()
            .find(|path| path.ends_with(&id) && path.starts_with("/sys/fs/cgroup/memory"));
        if let Some(path) = limit {
            assert_eq!(
                std::fs::read_to_string(path.join("memory.limit_in_bytes"))
                    .unwrap()
                    .trim(),
                (64 << 20).to_string()
            );
        }
        // tail keeps all that comes without a line's end.
        let mut greedy = container("greedy", &image, "tail /dev/zero");
        greedy
            .linux
            .get_or_insert_default()
            .resources
            .get_or_insert_default()
            .memory_limit_in_bytes = 16 << 20;
        let id = daemon.started(&pod, &config, &greedy).await;
        let status = daemon.cri.exited(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn ten_pods_at_once_come_and_go() {
    let daemon = wharf_e2e::Daemon::start().await;
    let image = daemon.busybox().await;
    let cycle = async |n: usize| {
        let config = daemon.pod(&format!("many-{n}"));
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let id = daemon
            .started(&pod, &config, &container("main", &image, "sleep 1000"))
            .await;
        assert_eq!(daemon.cri.shell(&id, "echo $((6*7))").await.unwrap(), "42\n");
        let ip = daemon.cri.pod_status(&pod).await.unwrap().network.unwrap().ip;
        daemon.cri.stop(&id, 0).await.unwrap();
        daemon.gone(&pod).await;
        ip
    };
    let (a, b, c, d, e, f, g, h, i, j) = tokio::join!(
        cycle(0),
        cycle(1),
        cycle(2),
        cycle(3),
        cycle(4),
        cycle(5),
        cycle(6),
        cycle(7),
        cycle(8),
        cycle(9)
    );
    for ip in [a, b, c, d, e, f, g, h, i, j] {
        assert!(!ip.is_empty());
    }
    daemon.finish().await;
}

#[tokio::test]
async fn the_daemon_ends_in_order_while_pods_run_and_finds_them_again() {
    on_each_handler(async |mut daemon| {
        let (pod, id) = daemon.running("stay", "sleep 1000").await;
        assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
        daemon.start_again().await.unwrap();
        assert_eq!(
            daemon.cri.status(&id).await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(
            daemon.cri.pod_status(&pod).await.unwrap().state(),
            PodSandboxState::SandboxReady
        );
        assert_eq!(daemon.cri.shell(&id, "echo still here").await.unwrap(), "still here\n");
        daemon.finish().await;
    })
    .await;
}
