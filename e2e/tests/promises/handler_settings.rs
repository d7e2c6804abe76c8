//! What each runtime handler can be told (row A6), classes of cache and memory bandwidth (row E12) on a directory that
//! stands for the kernel's, and blocked system calls that are told of (row C7).

use tonic::Code;
use wharf_e2e::{Daemon, Options, container, specs};
use wharf_proto::cri as pb;

use crate::handlers;

fn path(name: &str) -> String {
    let place = if name == "crun" { "/usr/bin" } else { "/usr/sbin" };
    std::env::var(format!("WHARF_{}", name.to_uppercase())).unwrap_or_else(|_| format!("{place}/{name}"))
}

/// A daemon whose default handler runs what `name` runs, with settings of its own.
async fn daemon(name: &str, settings: &str, more: &str) -> Daemon {
    let table = match name {
        "builtin" => "[runtimes.builtin]".to_owned(),
        program => format!("[runtimes.special]\npath = '{}'", path(program)),
    };
    Daemon::with(Options {
        handler: if name == "builtin" {
            String::new()
        } else {
            "special".into()
        },
        tables: format!("{table}\n{settings}\n{more}"),
        ..Options::handler(name)
    })
    .await
}

fn spec(daemon: &Daemon, pod: &str, id: &str) -> String {
    let file = daemon.state_dir.join(format!("pods/{pod}/containers/{id}/config.json"));
    std::fs::read_to_string(file).unwrap()
}

#[tokio::test]
async fn a_handler_decides_on_annotations_memory_seccomp_and_the_command() {
    let files = tempfile::Builder::new().prefix("we.").tempdir_in("/tmp").unwrap();
    let profile = files.path().join("seccomp.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    std::fs::write(&profile, text).unwrap();
    for name in handlers() {
        let settings = format!(
            "pod_annotations = ['io.example.*']\ncontainer_annotations = ['one']\nmin_memory = '16MiB'\n\
             seccomp_profile = '{}'\nallowed_annotations = ['platform-runtime-path.crio.io']\n",
            profile.display()
        );
        let settings = match name.as_str() {
            "builtin" => settings,
            other => format!("{settings}platform_paths = {{ 'linux/other' = '{}' }}\n", path(other)),
        };
        let daemon = daemon(&name, &settings, "[runtimes.same]\ninherit_default_runtime = true").await;
        let image = daemon.busybox().await;
        let mut config = daemon.pod("settings");
        config.annotations = specs::map("io.example.size", "7");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &image, "sleep 1000");
        main.annotations = specs::map("one", "1");
        main.annotations.extend(specs::map("two", "2"));
        specs::security(&mut main).seccomp = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        let id = daemon.started(&pod, &config, &main).await;
        let text = spec(&daemon, &pod, &id);
        assert!(
            text.contains("io.example.size") && text.contains(r#""one":"1""#),
            "{name}: {text}"
        );
        assert!(!text.contains(r#""two""#), "{name}: {text}");
        let refused = daemon
            .cri
            .shell(&id, "mkdir /x")
            .await
            .expect_err("the profile forbids it");
        assert!(refused.to_string().contains("not implemented"), "{name}: {refused}");

        let mut small = container("small", &image, "sleep 1000");
        small.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
            memory_limit_in_bytes: 8 << 20,
            ..Default::default()
        });
        let refused = daemon.cri.create(&pod, &small, &config).await.expect_err("too little");
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().contains("16777216"),
            "{name}: {refused}"
        );

        // The same program with the settings that a handler has by itself.
        let config = daemon.pod("same");
        let same = daemon.cri.run_pod(&config, "same").await.unwrap();
        let id = daemon.started(&same, &config, &main).await;
        daemon.cri.shell(&id, "mkdir /x").await.unwrap();

        if name != "builtin" {
            for (platform, runs) in [("linux/other", true), ("linux/unknown", false)] {
                let mut config = daemon.pod("platform");
                config.annotations = specs::map("platform-runtime-path.crio.io", platform);
                let pod = daemon.cri.run_pod(&config, "").await.unwrap();
                let plain = container("main", &image, "sleep 1000");
                match daemon.cri.create(&pod, &plain, &config).await {
                    Ok(id) => daemon.cri.start(&id).await.unwrap(),
                    Err(refused) => assert!(refused.message().contains("linux/other") && !runs, "{name}: {refused}"),
                }
            }
        }
        daemon.finish().await;
    }
}

#[tokio::test]
async fn a_start_that_takes_too_long_is_given_up() {
    let files = tempfile::Builder::new().prefix("we.").tempdir_in("/tmp").unwrap();
    let slow = files.path().join("slow");
    // It answers all but a create, which never comes to its end.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *create*) sleep 1000;; esac\nexec {} \"$@\"\n",
        path("runc")
    );
    std::fs::write(&slow, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&slow, mode).unwrap();
    let daemon = Daemon::with(Options {
        tables: format!("[runtimes.slow]\npath = '{}'\ncreate_timeout_secs = 1", slow.display()),
        ..Options::default()
    })
    .await;
    let config = daemon.pod("slow");
    let pod = daemon.cri.run_pod(&config, "slow").await.unwrap();
    let main = container("main", &daemon.busybox().await, "sleep 1000");
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    let refused = daemon.cri.start(&id).await.expect_err("it never comes to its end");
    assert!(refused.message().contains("create_timeout_secs"), "{refused}");
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    daemon.finish().await;
}

#[tokio::test]
async fn processes_join_the_rdt_class_that_annotations_name() {
    for name in handlers() {
        let files = tempfile::Builder::new().prefix("we.").tempdir_in("/tmp").unwrap();
        let at = |name: &str| files.path().join(name);
        let more = format!(
            "[rdt]\nresctrl_dir = '{}'\n[rdt.classes]\ngold = ['L3:0=f', 'MB:0=50']",
            files.path().display()
        );
        let daemon = daemon(&name, "", &more).await;
        let mut config = daemon.pod("rdt");
        config.annotations = specs::map("rdt.resources.beta.kubernetes.io/pod", "gold");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        let refused = daemon
            .cri
            .create(&pod, &main, &config)
            .await
            .expect_err("the node has none");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("schemata"), "{name}: {refused}");

        std::fs::write(at("schemata"), "L3:0=ff\n").unwrap();
        std::fs::create_dir(at("gold")).unwrap();
        std::fs::write(at("gold/tasks"), "").unwrap();
        let id = daemon.started(&pod, &config, &main).await;
        assert_eq!(
            std::fs::read_to_string(at("gold/schemata")).unwrap(),
            "MB:0=50\n",
            "{name}"
        );
        let joined = || std::fs::read_to_string(at("gold/tasks")).unwrap().lines().count();
        assert_eq!(joined(), 1, "{name}: init's beginning");
        daemon.cri.shell(&id, "true").await.unwrap();
        assert_eq!(joined(), 2, "{name}: the command's beginning");
        main.metadata.as_mut().unwrap().name = "other".into();
        main.annotations = specs::map("io.kubernetes.cri.rdt-class", "silver");
        let refused = daemon
            .cri
            .create(&pod, &main, &config)
            .await
            .expect_err("no such class");
        assert!(
            refused.message().contains("silver") && refused.message().contains("gold"),
            "{refused}"
        );
        daemon.finish().await;
    }
}

const TELLING: &str = "allowed_annotations = ['seccomp-notifier-action.crio.io']";

fn confined(name: &str, image: &str, line: &str) -> pb::ContainerConfig {
    let mut config = container(name, image, line);
    specs::security(&mut config).seccomp = Some(pb::SecurityProfile {
        profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    });
    config
}

/// What the metrics say of a container's blocked calls: by name.
async fn counted(daemon: &Daemon, id: &str, call: &str) -> u64 {
    let request = pb::ListPodSandboxMetricsRequest {};
    let answer = daemon
        .cri
        .runtime
        .clone()
        .list_pod_sandbox_metrics(request)
        .await
        .unwrap()
        .into_inner();
    let containers = answer.pod_metrics.iter().flat_map(|pod| &pod.container_metrics);
    let metrics = containers
        .filter(|one| one.container_id == id)
        .flat_map(|one| &one.metrics);
    let mut found = metrics.filter(|metric| {
        metric.name == "container_seccomp_notifier_count_total" && metric.label_values.iter().any(|label| label == call)
    });
    found
        .next()
        .and_then(|metric| metric.value.as_ref())
        .map_or(0, |value| value.value)
}

#[tokio::test]
async fn blocked_calls_are_counted_and_told_by_name() {
    for name in handlers() {
        let mut daemon = daemon(&name, TELLING, "").await;
        let mut config = daemon.pod("log");
        config.annotations = specs::map("seccomp-notifier-action.crio.io", "log");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let line = "hostname x; read line; echo ended; exit 3";
        let mut main = confined("main", &daemon.busybox().await, line);
        main.stdin = true;
        let id = daemon.started(&pod, &config, &main).await;
        wharf_e2e::eventually("the call is counted", async || {
            counted(&daemon, &id, "sethostname").await == 1
        })
        .await;
        // A command's filter is one of its own; neither needs a daemon to be answered.
        daemon.cri.shell(&id, "hostname x; true").await.unwrap();
        wharf_e2e::eventually("both are counted", async || {
            counted(&daemon, &id, "sethostname").await == 2
        })
        .await;
        daemon.crash().await;
        wharf_e2e::eventually("the new daemon knows", async || {
            counted(&daemon, &id, "sethostname").await == 2
        })
        .await;
        daemon.cri.stop(&id, 0).await.unwrap();
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.reason, "Error", "{name}");
        assert_eq!(status.message, "Used forbidden syscalls: sethostname (2x)", "{name}");
        daemon.finish().await;
    }
}

#[tokio::test]
async fn a_container_that_calls_what_is_blocked_is_ended_where_that_is_asked_for() {
    for name in handlers() {
        let daemon = daemon(&name, TELLING, "").await;
        let mut config = daemon.pod("stop");
        config.annotations = specs::map("seccomp-notifier-action.crio.io", "stop");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let good = daemon
            .started(&pod, &config, &confined("good", &image, "sleep 1000"))
            .await;
        let bad = confined("bad", &image, "hostname x; hostname x; sleep 1000");
        let bad = daemon.started(&pod, &config, &bad).await;
        let status = daemon.cri.exited(&bad).await.unwrap();
        assert_eq!(
            (status.reason.as_str(), status.exit_code),
            ("seccomp killed", 137),
            "{name}"
        );
        assert_eq!(status.message, "Used forbidden syscalls: sethostname (2x)", "{name}");
        assert_eq!(
            daemon.cri.status(&good).await.unwrap().state(),
            pb::ContainerState::ContainerRunning
        );

        daemon.finish().await;
    }
}

#[tokio::test]
async fn a_pod_says_how_large_its_shared_memory_is_where_its_handler_lets_it() {
    let settings = "allowed_annotations = ['shm-size.crio.io']";
    let daemon = daemon(
        "builtin",
        settings,
        "[runtimes.strict]\nallowed_annotations = []\ninherit_default_runtime = true",
    )
    .await;
    let image = daemon.busybox().await;
    let mut config = daemon.pod("shm");
    config.annotations = specs::map("shm-size.crio.io", "16MiB");
    let size = async |config: &pb::PodSandboxConfig, handler: &str| {
        let pod = daemon.cri.run_pod(config, handler).await.unwrap();
        let main = container("main", &image, "sleep 1000");
        let id = daemon.started(&pod, config, &main).await;
        let line = daemon
            .cri
            .shell(&id, "df -k /dev/shm | tail -1 | awk '{print $2}'")
            .await;
        line.unwrap().trim().to_owned()
    };
    assert_eq!(size(&config, "").await, "16384");
    config.metadata.as_mut().unwrap().attempt = 1;
    assert_eq!(size(&config, "strict").await, "65536", "kept, and without effect");
    config.metadata.as_mut().unwrap().attempt = 2;
    config.annotations = specs::map("shm-size.crio.io", "much");
    let refused = daemon.cri.run_pod(&config, "").await.expect_err("no size");
    assert!(refused.message().contains("shm-size.crio.io"), "{refused}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_pod_says_which_file_creation_mask_it_has_where_its_handler_lets_it() {
    let names = std::env::var("WHARF_HANDLERS").unwrap_or_else(|_| "builtin runc crun".into());
    for name in names.split_whitespace() {
        println!("---- handler {name}");
        let daemon = daemon(name, "allowed_annotations = ['umask.crio.io']", "").await;
        let image = daemon.busybox().await;
        let mut config = daemon.pod("umask");
        config.annotations = specs::map("umask.crio.io", "077");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let id = daemon
            .started(&pod, &config, &container("main", &image, "exec sleep 1000"))
            .await;
        let seen = daemon.cri.shell(&id, "grep Umask /proc/1/status | tr -d '\\t'").await;
        assert_eq!(seen.unwrap(), "Umask:0077\n", "{name}");
        config.metadata.as_mut().unwrap().attempt = 1;
        config.annotations = specs::map("umask.crio.io", "9");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let refused = daemon
            .cri
            .create(&pod, &container("main", &image, "true"), &config)
            .await;
        let refused = refused.expect_err("no mask");
        assert!(refused.message().contains("umask.crio.io"), "{refused}");
        daemon.finish().await;
    }
}

#[tokio::test]
async fn a_pod_asks_for_devices_where_its_handler_and_the_node_let_it() {
    let settings = "allowed_annotations = ['devices.crio.io']";
    let more = "[containers]\nallowed_devices = ['/dev/full']\n\
        [runtimes.strict]\nallowed_annotations = []\ninherit_default_runtime = true";
    let daemon = daemon("builtin", settings, more).await;
    let image = daemon.busybox().await;
    let mut config = daemon.pod("devices");
    config.annotations = specs::map("devices.crio.io", "/dev/full:/dev/brimful:rw, /dev/full");
    let line = "ls /dev/brimful /dev/full 2>/dev/null; echo x 2>/dev/null > /dev/brimful || echo no room";
    let main = container("main", &image, "sleep 1000");
    for (handler, seen) in [("", "/dev/brimful\n/dev/full\nno room\n"), ("strict", "/dev/full\n")] {
        config.metadata.as_mut().unwrap().name = format!("devices{handler}");
        let pod = daemon.cri.run_pod(&config, handler).await.unwrap();
        let id = daemon.started(&pod, &config, &main).await;
        assert_eq!(daemon.cri.shell(&id, line).await.unwrap(), seen, "{handler:?}");
        daemon.gone(&pod).await;
    }
    for (value, says) in [
        ("/dev/kmsg", "allowed_devices"),
        ("dev/full", "is not a device"),
        ("/dev/full:/dev/x:rwq", "is not a device"),
    ] {
        config.annotations = specs::map("devices.crio.io", value);
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let refused = daemon.cri.create(&pod, &main, &config).await.expect_err(value);
        assert!(refused.message().contains(says), "{refused}");
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
}
