//! NRI plugins: what they hear, what they change, and what becomes of those that do not behave.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::oneshot;
use wharf_e2e::cri::Answer;
use wharf_e2e::nri::{Behaviour, Plugin, Reply, Told};
use wharf_e2e::{Daemon, Options, container, eventually};
use wharf_proto::{cri as pb, nri};

/// A daemon that serves plugins, and where.
struct House {
    daemon: Daemon,
    dir: TempDir,
}

impl House {
    async fn open() -> Self {
        Self::with("", "builtin").await
    }

    /// With more lines in the table, on this handler.
    async fn with(more: &str, handler: &str) -> Self {
        let dir = TempDir::with_prefix("we.nri.").unwrap();
        // Hooks and mounts of containers with other users look in here.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = Options::handler(handler);
        let at = dir.path().display();
        options.tables = format!(
            "[nri]\nenable = true\nsocket = '{at}/nri.sock'\nplugin_path = '{at}/plugins'\n\
             plugin_config_path = '{at}/conf.d'\n{more}\n"
        );
        Self {
            daemon: Daemon::with(options).await,
            dir,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nri.sock")
    }

    async fn plugin(&self, index: &str, name: &str, behave: Behaviour) -> Plugin {
        Plugin::connect(&self.socket(), index, name, behave).await.unwrap()
    }

    async fn pod(&self, name: &str) -> (String, pb::PodSandboxConfig) {
        let config = self.daemon.pod(name);
        (self.daemon.cri.run_pod(&config, "").await.unwrap(), config)
    }

    async fn create(&self, pod: &(String, pb::PodSandboxConfig), name: &str) -> Answer<String> {
        let config = container(name, &self.daemon.busybox().await, "exec sleep 1000");
        self.daemon.cri.create(&pod.0, &config, &pod.1).await
    }
}

fn quiet() -> Behaviour {
    Box::new(|_| Reply::Agree)
}

/// Does this once, when it is told of that, and agrees otherwise.
fn once(what: &'static str, reply: Reply) -> Behaviour {
    let mut reply = Some(reply);
    Box::new(move |told: &Told| match told.what == what {
        true => reply.take().unwrap_or(Reply::Agree),
        false => Reply::Agree,
    })
}

fn adjusting(adjust: nri::ContainerAdjustment) -> Behaviour {
    Box::new(move |told: &Told| match told.what.as_str() {
        "CreateContainer" => Reply::with(&nri::CreateContainerResponse {
            adjust: Some(adjust.clone()),
            ..Default::default()
        }),
        _ => Reply::Agree,
    })
}

fn env(key: &str, value: &str) -> nri::KeyValue {
    nri::KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn memory(bytes: i64) -> nri::LinuxResources {
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: Some(nri::OptionalInt64 { value: bytes }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn update(id: &str, resources: nri::LinuxResources) -> nri::ContainerUpdate {
    nri::ContainerUpdate {
        container_id: id.into(),
        linux: Some(nri::LinuxContainerUpdate {
            resources: Some(resources),
        }),
        ignore_failure: false,
    }
}

async fn limit_of(daemon: &Daemon, id: &str) -> i64 {
    let status = daemon.cri.status(id).await.unwrap();
    let linux = status.resources.and_then(|resources| resources.linux);
    linux.unwrap_or_default().memory_limit_in_bytes
}

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
        ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    );
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
async fn plugins_change_what_is_created() {
    for handler in super::handlers() {
        println!("---- handler {handler}");
        let house = House::with("", &handler).await;
        let dir = house.dir.path();
        std::fs::write(dir.join("word"), "a word\n").unwrap();
        let first = nri::ContainerAdjustment {
            annotations: [("plugin".to_owned(), "was here".to_owned())].into(),
            env: vec![env("COLOUR", "red"), env("-GONE", "")],
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
        let line = "echo $COLOUR [$GONE]; cat /given/word; touch /given/x 2>/dev/null || echo read-only; \
                    ulimit -n; head -c 2 /dev/given-zero | wc -c; stat -c %a /dev/given-zero; \
                    cat /proc/1/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl; tr '\\0' ' ' < /proc/1/cmdline";
        let seen = house.daemon.cri.shell(&id, line).await.unwrap();
        let lines: Vec<_> = seen.lines().map(str::trim).collect();
        let expected = [
            "red []",
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
        if handler == "builtin" {
            let priority = house.daemon.cri.shell(&id, "ionice -p 1").await.unwrap();
            assert_eq!(priority.trim(), "best-effort: prio 7");
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
async fn what_can_not_be_is_refused_by_name() {
    let house = House::open().await;
    let wishes: Vec<(&str, nri::LinuxContainerAdjustment)> = vec![
        (
            "scheduler",
            nri::LinuxContainerAdjustment {
                scheduler: Some(nri::LinuxScheduler::default()),
                ..Default::default()
            },
        ),
        (
            "net_devices",
            nri::LinuxContainerAdjustment {
                net_devices: [("eth7".to_owned(), nri::LinuxNetDevice::default())].into(),
                ..Default::default()
            },
        ),
        (
            "memory_policy",
            nri::LinuxContainerAdjustment {
                memory_policy: Some(nri::LinuxMemoryPolicy::default()),
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

#[tokio::test]
async fn a_plugin_that_hangs_or_dies_is_cut_off_and_work_goes_on() {
    let house = House::with("request_timeout_secs = 1", "builtin").await;
    let mut hangs = house.plugin("10", "hangs", once("CreateContainer", Reply::Hang)).await;
    let well = house.plugin("20", "well", quiet()).await;
    let pod = house.pod("hangs").await;
    let id = house.create(&pod, "main").await.unwrap();
    hangs.is_cut_off().await;
    well.hears("PostCreateContainer", &id).await;

    // One that goes in the middle of a question.
    let (gone, wait) = oneshot::channel::<()>();
    let dies = house
        .plugin("30", "dies", once("StartContainer", Reply::Wait(wait)))
        .await;
    let (cri, asked) = (house.daemon.cri.clone(), id.clone());
    let start = tokio::spawn(async move { cri.start(&asked).await });
    dies.hears("StartContainer", &id).await;
    dies.leave().await;
    start.await.unwrap().unwrap();
    drop(gone);
    assert!(house.daemon.log().contains("an NRI plugin is cut off"));
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
async fn who_connects_hears_of_exactly_all_and_so_after_a_restart() {
    let mut house = House::open().await;
    let pod = house.pod("all").await;
    let runs = house.create(&pod, "runs").await.unwrap();
    house.daemon.cri.start(&runs).await.unwrap();
    let waits = house.create(&pod, "waits").await.unwrap();
    let over = container("over", &house.daemon.busybox().await, "true");
    let over = house.daemon.started(&pod.0, &pod.1, &over).await;
    house.daemon.cri.exited(&over).await.unwrap();
    // Returns when plugins have been told of its end, if there were some.
    house.daemon.cri.stop(&over, 0).await.unwrap();
    let mut expected = vec![pod.0.clone(), runs.clone(), waits.clone()];
    expected.sort();
    let mut first = house.plugin("10", "first", quiet()).await;
    assert_eq!(first.hears("Synchronize", "").await.all, expected);

    house.daemon.end(Signal::SIGTERM).await.unwrap();
    first.is_cut_off().await;
    assert!(first.told().iter().any(|told| told.what == "Shutdown"));
    assert!(!house.socket().exists(), "the socket is left");
    house.daemon.start_again().await.unwrap();
    let again = house.plugin("10", "first", quiet()).await;
    assert_eq!(again.hears("Synchronize", "").await.all, expected);

    house.daemon.crash().await;
    let again = house.plugin("10", "first", quiet()).await;
    assert_eq!(again.hears("Synchronize", "").await.all, expected);
    // What was there before is told of like the rest.
    house.daemon.cri.stop(&runs, 0).await.unwrap();
    again.hears("StopContainer", &runs).await;
    house.daemon.finish().await;
}

#[tokio::test]
async fn many_are_made_while_plugins_come_and_none_is_missed_or_told_of_twice() {
    let house = House::open().await;
    let pod = house.pod("busy").await;
    let made = Arc::new(Mutex::new(Vec::new()));
    let creating = async {
        for at in 0..24 {
            let id = house.create(&pod, &format!("c{at}")).await.unwrap();
            made.lock().unwrap().push(id);
        }
    };
    let joining = async {
        let mut plugins = Vec::new();
        for at in 0..6 {
            plugins.push(house.plugin("10", &format!("p{at}"), quiet()).await);
        }
        plugins
    };
    let ((), plugins) = tokio::join!(creating, joining);
    for id in made.lock().unwrap().iter() {
        for plugin in &plugins {
            let at_first = plugin.hears("Synchronize", "").await.all.contains(id);
            let later = plugin
                .heard_of(id)
                .iter()
                .filter(|what| *what == "CreateContainer")
                .count();
            assert_eq!(usize::from(at_first) + later, 1, "container {id}: {at_first} {later}");
        }
    }
    house.daemon.finish().await;
}

#[tokio::test]
async fn installed_plugins_are_started_configured_and_ended() {
    let dir = TempDir::with_prefix("we.nri.").unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["plugins", "conf.d"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let lab = wharf_e2e::lab::program("lab").unwrap();
    let put = |name: &str, line: &str| {
        let path = at("plugins").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    put(
        "10-given",
        &format!("exec {} nri-plugin {}", lab.display(), at("log").display()),
    );
    put("20-broken", "exit 1");
    put("wrong-name", "exit 1");
    std::fs::write(at("conf.d/given.conf"), "COLOUR=red\nSIZE=large\n").unwrap();
    let tables = format!(
        "[nri]\nenable = true\ndisable_connections = true\nsocket = '{root}/nri.sock'\nplugin_path = '{root}/plugins'\n\
         plugin_config_path = '{root}/conf.d'\n",
        root = dir.path().display()
    );
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    assert!(!at("nri.sock").exists());
    let (pod, id) = daemon.running("given", "exec sleep 1000").await;
    assert_eq!(
        daemon.cri.shell(&id, "echo $COLOUR $SIZE").await.unwrap(),
        "red large\n"
    );
    let log = std::fs::read_to_string(at("log")).unwrap();
    assert!(
        log.contains(&format!("RunPodSandbox {pod}")) && log.contains(&format!("CreateContainer {id}")),
        "{log}"
    );
    assert!(daemon.log().contains("20-broken") && daemon.log().contains("wrong-name"));
    // The harness fails when the plugin outlives the daemon.
    daemon.finish().await;
}
