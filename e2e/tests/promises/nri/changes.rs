//! What plugins change, and what they may not.

use wharf_e2e::nri::{Reply, Told};
use wharf_e2e::{container, eventually};
use wharf_proto::{cri as pb, nri};

use super::{House, adjusting, env, limit_of, memory, quiet, update};

#[tokio::test]
async fn plugins_change_what_is_created() {
    for handler in super::super::handlers() {
        println!("---- handler {handler}");
        let house = House::with("", &handler).await;
        let dir = house.dir.path();
        std::fs::write(dir.join("word"), "a word\n").unwrap();
        std::fs::create_dir(dir.join("cdi")).unwrap();
        let device = "cdiVersion: 0.7.0\nkind: acme.org/size\ndevices:\n- name: large\n  containerEdits:\n    env: [SIZE=large]\n";
        std::fs::write(dir.join("cdi/size.yaml"), device).unwrap();
        let touch = nri::Hook {
            path: "/usr/bin/touch".into(),
            args: vec!["touch".into(), dir.join("hooked").display().to_string()],
            ..Default::default()
        };
        let first = nri::ContainerAdjustment {
            annotations: [("plugin".to_owned(), "was here".to_owned())].into(),
            env: vec![env("COLOUR", "red"), env("-GONE", "")],
            cdi_devices: vec![nri::CdiDevice {
                name: "acme.org/size=large".into(),
            }],
            hooks: Some(nri::Hooks {
                create_runtime: vec![touch],
                ..Default::default()
            }),
            mounts: vec![nri::Mount {
                destination: "/given".into(),
                r#type: "bind".into(),
                source: dir.display().to_string(),
                options: vec!["rbind".into(), "ro".into()],
            }],
            rlimits: vec![nri::PosixRlimit {
                r#type: "RLIMIT_NOFILE".into(),
                hard: 700,
                soft: 600,
            }],
            linux: Some(nri::LinuxContainerAdjustment {
                devices: vec![nri::LinuxDevice {
                    path: "/dev/given-zero".into(),
                    r#type: "c".into(),
                    major: 1,
                    minor: 5,
                    file_mode: Some(nri::OptionalFileMode { value: 0o640 }),
                    ..Default::default()
                }],
                oom_score_adj: Some(nri::OptionalInt { value: 900 }),
                // Those of the others here do not know it, and it is refused then.
                io_priority: (handler == "builtin").then_some(nri::LinuxIoPriority {
                    class: nri::IoPrioClass::IoprioClassBe.into(),
                    priority: 7,
                }),
                scheduler: (handler == "builtin").then_some(nri::LinuxScheduler {
                    policy: nri::LinuxSchedulerPolicy::SchedBatch.into(),
                    nice: 5,
                    ..Default::default()
                }),
                memory_policy: (handler == "builtin").then(|| nri::LinuxMemoryPolicy {
                    mode: nri::MpolMode::MpolBind.into(),
                    nodes: "0".into(),
                    ..Default::default()
                }),
                sysctl: [("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let second = nri::ContainerAdjustment {
            args: ["/bin/sh", "-c", "exec sleep 2000"].map(Into::into).to_vec(),
            linux: Some(nri::LinuxContainerAdjustment {
                resources: Some(memory(150 << 20)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let one = house.plugin("10", "one", adjusting(first)).await;
        let two = house.plugin("20", "two", adjusting(second)).await;
        let pod = house.pod("changed").await;
        let mut config = container("main", &house.daemon.busybox().await, "exec sleep 1000");
        config.envs.push(wharf_e2e::specs::env("GONE", "1"));
        let id = house.daemon.started(&pod.0, &pod.1, &config).await;
        let line = "echo $COLOUR [$GONE] $SIZE; cat /given/word; touch /given/x 2>/dev/null || echo read-only; \
                    ulimit -n; head -c 2 /dev/given-zero | wc -c; stat -c %a /dev/given-zero; \
                    cat /proc/1/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl; tr '\\0' ' ' < /proc/1/cmdline";
        let seen = house.daemon.cri.shell(&id, line).await.unwrap();
        let lines: Vec<_> = seen.lines().map(str::trim).collect();
        let expected = [
            "red [] large",
            "a word",
            "read-only",
            "600",
            "2",
            "640",
            "900",
            "77",
            "sleep 2000",
        ];
        assert_eq!(lines, expected, "{seen}");
        assert!(dir.join("hooked").exists());
        if handler == "builtin" {
            let priority = house.daemon.cri.shell(&id, "ionice -p 1").await.unwrap();
            assert_eq!(priority.trim(), "best-effort: prio 7");
            // Nice value and policy (proc_pid_stat(5)) of the first process, and where the memory of a command comes from.
            let line = "cut -d' ' -f19,41 /proc/1/stat; grep -q ' bind:0 ' /proc/self/numa_maps && echo bound";
            let scheduled = house.daemon.cri.shell(&id, line).await.unwrap();
            assert_eq!(scheduled, "5 3\nbound\n");
        }
        assert_eq!(limit_of(&house.daemon, &id).await, 150 << 20);
        // The second has seen what the first wanted; afterwards all see all of it.
        let told = two.hears("CreateContainer", &id).await.container;
        assert!(told.env.contains(&"COLOUR=red".to_owned()) && !told.env.iter().any(|entry| entry.starts_with("GONE")));
        let told = one.hears("PostCreateContainer", &id).await.container;
        assert_eq!(told.args.last().map(String::as_str), Some("exec sleep 2000"));
        assert_eq!(told.annotations["plugin"], "was here");
        house.daemon.finish().await;
    }
}

#[tokio::test]
async fn a_plugin_gives_a_network_device() {
    let house = House::open().await;
    let ip = async |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        house.daemon.lab.output("ip", &words).await.unwrap()
    };
    ip("link add give0 type veth peer name stay0").await;
    let wish = |name: &str, inside: &str| nri::ContainerAdjustment {
        linux: Some(nri::LinuxContainerAdjustment {
            net_devices: [(name.to_owned(), nri::LinuxNetDevice { name: inside.into() })].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let one = house.plugin("10", "one", adjusting(wish("give0", ""))).await;
    let pod = house.pod("net").await;
    let id = house.create(&pod, "main").await.unwrap();
    house.daemon.cri.start(&id).await.unwrap();
    let seen = house
        .daemon
        .cri
        .shell(&id, "ls /sys/class/net /proc/sys/net/ipv4/conf")
        .await;
    assert!(seen.unwrap().contains("give0"));
    let told = one.hears("PostStartContainer", &id).await.container;
    assert_eq!(told.linux.unwrap().net_devices["give0"].name, "give0");
    // Another takes back what the first wanted.
    let _two = house.plugin("20", "two", adjusting(wish("-give0", ""))).await;
    let second = house.create(&pod, "second").await.unwrap();
    let told = one.hears("PostCreateContainer", &second).await.container;
    assert!(told.linux.unwrap().net_devices.is_empty());
    house.daemon.cri.stop_pod(&pod.0).await.unwrap();
    assert!(ip("-o link").await.contains("give0@"));
    ip("link del stay0").await;
    house.daemon.finish().await;
}

#[tokio::test]
async fn what_can_not_be_is_refused_by_name() {
    let house = House::open().await;
    let wishes: Vec<(&str, nri::LinuxContainerAdjustment)> = vec![
        (
            "scheduler.nice",
            nri::LinuxContainerAdjustment {
                scheduler: Some(nri::LinuxScheduler {
                    policy: nri::LinuxSchedulerPolicy::SchedFifo.into(),
                    nice: 1,
                    ..Default::default()
                }),
                ..Default::default()
            },
        ),
        (
            "net_devices",
            nri::LinuxContainerAdjustment {
                net_devices: [("eth/7".to_owned(), nri::LinuxNetDevice::default())].into(),
                ..Default::default()
            },
        ),
        (
            "memoryPolicy.nodes",
            nri::LinuxContainerAdjustment {
                memory_policy: Some(nri::LinuxMemoryPolicy {
                    nodes: "1-0".into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
        ),
        (
            "time namespace",
            nri::LinuxContainerAdjustment {
                namespaces: vec![nri::LinuxNamespace {
                    r#type: "time".into(),
                    path: String::new(),
                }],
                ..Default::default()
            },
        ),
        (
            "cgroups_path",
            nri::LinuxContainerAdjustment {
                cgroups_path: "/".into(),
                ..Default::default()
            },
        ),
    ];
    let pod = house.pod("refused").await;
    for (at, (name, linux)) in wishes.into_iter().enumerate() {
        let adjust = nri::ContainerAdjustment {
            linux: Some(linux),
            ..Default::default()
        };
        let plugin = house.plugin("10", &format!("wishes{at}"), adjusting(adjust)).await;
        let error = house.create(&pod, "main").await.unwrap_err();
        assert!(error.message().contains(name), "{name}: {}", error.message());
        // The plugin can forget it.
        let told = plugin.hears("RemoveContainer", "").await;
        let heard = plugin.heard_of(&told.container.id);
        assert_eq!(heard, ["CreateContainer", "StopContainer", "RemoveContainer"], "{name}");
        plugin.leave().await;
    }
    assert!(house.daemon.cri.containers(None).await.unwrap().is_empty());
    house.daemon.finish().await;
}

#[tokio::test]
async fn two_plugins_can_not_set_the_same() {
    let house = House::open().await;
    let wish = || nri::ContainerAdjustment {
        env: vec![env("COLOUR", "red")],
        ..Default::default()
    };
    let _one = house.plugin("10", "one", adjusting(wish())).await;
    let two = house.plugin("20", "two", adjusting(wish())).await;
    let pod = house.pod("conflict").await;
    let error = house.create(&pod, "main").await.unwrap_err();
    let text = error.message();
    assert!(
        text.contains("10-one") && text.contains("20-two") && text.contains("Env COLOUR"),
        "{text}"
    );
    two.leave().await;
    eventually("the plugin that has left is forgotten", async || {
        house.create(&pod, "main").await.is_ok()
    })
    .await;
    house.daemon.finish().await;
}

#[tokio::test]
async fn plugins_change_and_stop_other_containers() {
    let house = House::open().await;
    let pod = house.pod("others").await;
    let first = house.create(&pod, "first").await.unwrap();
    let second = house.create(&pod, "second").await.unwrap();
    for id in [&first, &second] {
        house.daemon.cri.start(id).await.unwrap();
    }
    let (changed, evicted) = (first.clone(), second.clone());
    let behave = Box::new(move |told: &Told| match told.what.as_str() {
        "CreateContainer" => Reply::with(&nri::CreateContainerResponse {
            adjust: None,
            update: vec![update(&changed, memory(300 << 20))],
            evict: vec![nri::ContainerEviction {
                container_id: evicted.clone(),
                reason: "room is needed".into(),
            }],
        }),
        "UpdateContainer" => Reply::with(&nri::UpdateContainerResponse {
            update: vec![update(&told.container.id, memory(90 << 20))],
            evict: Vec::new(),
        }),
        "StopContainer" if told.container.name == "third" => Reply::with(&nri::StopContainerResponse {
            update: vec![update(&changed, memory(400 << 20))],
        }),
        _ => Reply::Agree,
    });
    let plugin = house.plugin("10", "balances", behave).await;
    let third = house.create(&pod, "third").await.unwrap();
    // Both are done when the call has returned.
    assert_eq!(limit_of(&house.daemon, &first).await, 300 << 20);
    let status = house.daemon.cri.status(&second).await.unwrap();
    assert_eq!(status.state(), pb::ContainerState::ContainerExited);
    assert!(house.daemon.log().contains("room is needed"));
    plugin.hears("StopContainer", &second).await;

    house.daemon.cri.start(&third).await.unwrap();
    let limits = pb::UpdateContainerResourcesRequest {
        container_id: third.clone(),
        linux: Some(pb::LinuxContainerResources {
            memory_limit_in_bytes: 80 << 20,
            cpu_shares: 300,
            ..Default::default()
        }),
        ..Default::default()
    };
    house
        .daemon
        .cri
        .runtime
        .clone()
        .update_container_resources(limits)
        .await
        .unwrap();
    let status = house.daemon.cri.status(&third).await.unwrap();
    let linux = status.resources.and_then(|resources| resources.linux).unwrap();
    assert_eq!((linux.memory_limit_in_bytes, linux.cpu_shares), (90 << 20, 300));
    let asked = plugin.hears("UpdateContainer", &third).await.limits.unwrap();
    assert_eq!(asked.memory.unwrap().limit.unwrap().value, 80 << 20);

    house.daemon.cri.stop(&third, 0).await.unwrap();
    assert_eq!(limit_of(&house.daemon, &first).await, 400 << 20);

    // Unasked.
    let answer = plugin
        .ask(nri::UpdateContainersRequest {
            update: vec![update(&first, memory(500 << 20)), update("unknown", memory(1 << 30))],
            evict: Vec::new(),
        })
        .await;
    assert_eq!(limit_of(&house.daemon, &first).await, 500 << 20);
    assert_eq!(answer.failed.len(), 1);
    assert_eq!(answer.failed[0].container_id, "unknown");
    house.daemon.finish().await;
}

#[tokio::test]
async fn a_plugin_gives_a_seccomp_policy_a_cgroup_and_namespaces() {
    let house = House::open().await;
    let adjust = nri::ContainerAdjustment {
        linux: Some(nri::LinuxContainerAdjustment {
            seccomp_policy: Some(nri::LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![nri::LinuxSyscall {
                    names: vec!["mkdir".into(), "mkdirat".into()],
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(nri::OptionalUInt32 { value: 1 }),
                    args: Vec::new(),
                }],
                ..Default::default()
            }),
            cgroups_path: "/wharf/of-a-plugin".into(),
            namespaces: vec![nri::LinuxNamespace {
                r#type: "ipc".into(),
                path: String::new(),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let pod = house.pod("policy").await;
    let other = house.create(&pod, "other").await.unwrap();
    house.daemon.cri.start(&other).await.unwrap();
    let _plugin = house.plugin("10", "policy", adjusting(adjust)).await;
    let id = house.create(&pod, "main").await.unwrap();
    house.daemon.cri.start(&id).await.unwrap();
    let line = "readlink /proc/1/ns/ipc; mkdir /tmp/x 2>/dev/null || echo no";
    let seen = house.daemon.cri.shell(&id, line).await.unwrap();
    let theirs = house.daemon.cri.shell(&other, line).await.unwrap();
    assert_ne!(seen.lines().next(), theirs.lines().next());
    assert!(seen.ends_with("no\n") && !theirs.contains("no\n"), "{seen}{theirs}");
    let cgroups = house.daemon.lab.cgroups_below();
    assert!(
        cgroups.iter().any(|path| path.ends_with("wharf/of-a-plugin")),
        "{cgroups:?}"
    );
    // Nobody else can be there.
    let error = house.create(&pod, "third").await.unwrap_err();
    assert!(error.message().contains("there already"), "{error}");
    // The harness looks whether the cgroup goes with the container.
    house.daemon.finish().await;
}

#[tokio::test]
async fn the_validator_keeps_plugins_from_what_they_may_not() {
    let rules = "[nri.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n\
                 required_plugins = ['needed']\ntolerate_missing_plugins_annotation = 'example.org/tolerate'";
    let house = House::with(rules, "builtin").await;
    let pod = house.pod("valid").await;
    let error = house.create(&pod, "main").await.unwrap_err();
    assert!(
        error.message().contains("required plugins are not there: needed"),
        "{error}"
    );
    let _needed = house.plugin("10", "needed", quiet()).await;
    let id = house.create(&pod, "main").await.unwrap();
    house.daemon.cri.start(&id).await.unwrap();
    let hooks = nri::Hooks {
        poststop: vec![nri::Hook {
            path: "/bin/true".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let adjust = nri::ContainerAdjustment {
        hooks: Some(hooks),
        ..Default::default()
    };
    let hooking = house.plugin("20", "hooking", adjusting(adjust)).await;
    let error = house.create(&pod, "more").await.unwrap_err();
    assert!(
        error.message().contains("OCI hooks") && error.message().contains("20-hooking"),
        "{error}"
    );
    hooking.hears("RemoveContainer", "").await;
    house.daemon.finish().await;
}
