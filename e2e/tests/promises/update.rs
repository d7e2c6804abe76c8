//! Changed limits of containers and pods.

use std::path::PathBuf;

use tonic::Code;
use wharf_e2e::cri::{Answer, code};
use wharf_e2e::{Daemon, container};
use wharf_proto::cri::{
    ContainerState, HugepageLimit, LinuxContainerResources, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest, WindowsContainerResources,
};

use crate::on_each_handler;

const MB: i64 = 1 << 20;

async fn update(daemon: &Daemon, id: &str, limits: LinuxContainerResources) -> Answer<()> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(limits),
        ..Default::default()
    };
    let mut runtime = daemon.cri.runtime.clone();
    runtime.update_container_resources(request).await.map(drop)
}

async fn reported(daemon: &Daemon, id: &str) -> LinuxContainerResources {
    let status = daemon.cri.status(id).await.unwrap();
    status.resources.unwrap().linux.unwrap()
}

/// The value of a limit in the cgroup that `id` names, whichever version the machine has.
fn limit(daemon: &Daemon, id: &str, v1: (&str, &str), v2: &str) -> Option<String> {
    let dirs: Vec<PathBuf> = daemon
        .lab
        .cgroups_below()
        .into_iter()
        .filter(|dir| wharf_e2e::lab::is_cgroup_of(dir, id))
        .collect();
    let hybrid = dirs.iter().any(|dir| dir.starts_with("/sys/fs/cgroup/memory"));
    let found = dirs.iter().map(|dir| match hybrid {
        true => (
            dir.components()
                .any(|part| part.as_os_str().to_string_lossy().split(',').any(|c| c == v1.0)),
            dir.join(v1.1),
        ),
        false => (true, dir.join(v2)),
    });
    let file = found.into_iter().find(|(here, file)| *here && file.exists())?.1;
    Some(std::fs::read_to_string(file).unwrap().trim().to_owned())
}

fn memory(daemon: &Daemon, id: &str) -> i64 {
    let text = limit(daemon, id, ("memory", "memory.limit_in_bytes"), "memory.max");
    text.unwrap().parse().unwrap()
}

fn quota(daemon: &Daemon, id: &str) -> String {
    let text = limit(daemon, id, ("cpu", "cpu.cfs_quota_us"), "cpu.max").unwrap();
    text.split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn rule_32_limits_change_before_the_start_and_while_it_runs_and_show_at_once() {
    on_each_handler(async |daemon| {
        let cri = &daemon.cri;
        let config = daemon.pod("changing");
        let pod = cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        main.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 * MB,
            cpu_shares: 512,
            ..Default::default()
        });
        let id = cri.create(&pod, &main, &config).await.unwrap();
        let before = LinuxContainerResources {
            memory_limit_in_bytes: 128 * MB,
            cpu_quota: 40_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        update(&daemon, &id, before).await.unwrap();
        assert_eq!(reported(&daemon, &id).await.memory_limit_in_bytes, 128 * MB);
        cri.start(&id).await.unwrap();
        assert_eq!(
            (memory(&daemon, &id), quota(&daemon, &id).as_str()),
            (128 * MB, "40000")
        );

        // Up and down again, with the sum of memory and swap following; what is not named stays.
        for mb in [256, 32, 512] {
            let limits = LinuxContainerResources {
                memory_limit_in_bytes: mb * MB,
                ..Default::default()
            };
            update(&daemon, &id, limits).await.unwrap();
            assert_eq!((memory(&daemon, &id), quota(&daemon, &id).as_str()), (mb * MB, "40000"));
            if let Some(sum) = limit(&daemon, &id, ("memory", "memory.memsw.limit_in_bytes"), "none") {
                assert_eq!(sum, (mb * MB).to_string(), "no swap was asked for");
            }
        }
        let limits = LinuxContainerResources {
            cpu_shares: 2048,
            cpu_quota: 20_000,
            cpu_period: 50_000,
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
            oom_score_adj: 500,
            ..Default::default()
        };
        update(&daemon, &id, limits).await.unwrap();
        assert_eq!(quota(&daemon, &id), "20000");
        assert_eq!(
            limit(&daemon, &id, ("cpuset", "cpuset.cpus"), "cpuset.cpus").unwrap(),
            "0"
        );
        // runc gives an exec the score that it was created with, whatever its process object says.
        assert_eq!(cri.shell(&id, "cat /proc/1/oom_score_adj").await.unwrap(), "500\n");
        let told = reported(&daemon, &id).await;
        assert_eq!(
            (
                told.memory_limit_in_bytes,
                told.cpu_shares,
                told.cpu_quota,
                told.cpu_period,
                told.cpuset_cpus.as_str()
            ),
            (512 * MB, 2048, 20_000, 50_000, "0")
        );
        let unlimited = LinuxContainerResources {
            memory_limit_in_bytes: -1,
            cpu_quota: -1,
            ..Default::default()
        };
        update(&daemon, &id, unlimited).await.unwrap();
        assert!(matches!(quota(&daemon, &id).as_str(), "-1" | "max"));
        cri.stop(&id, 0).await.unwrap();
        assert_eq!(code(update(&daemon, &id, told).await), Code::FailedPrecondition);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_32_an_update_that_fails_changes_nothing() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("failing");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        // Holds 24 MiB that the kernel can't take back.
        let line = "head -c 25165824 /dev/zero > /dev/shm/held; echo ready > /ready; sleep 1000";
        let mut main = container("main", &image, line);
        main.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 * MB,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        });
        let id = daemon.started(&pod, &config, &main).await;
        wharf_e2e::eventually("its memory is in use", async || {
            daemon.cri.shell(&id, "test -e /ready").await.is_ok()
        })
        .await;
        let before = reported(&daemon, &id).await;
        let unchanged = async |why: &str| {
            assert_eq!(reported(&daemon, &id).await, before, "{why}");
            assert_eq!(
                (memory(&daemon, &id), quota(&daemon, &id).as_str()),
                (64 * MB, "50000"),
                "{why}"
            );
            assert_eq!(
                daemon.cri.status(&id).await.unwrap().state(),
                ContainerState::ContainerRunning,
                "{why}"
            );
        };
        let base = LinuxContainerResources {
            memory_limit_in_bytes: 128 * MB,
            cpu_quota: 10_000,
            ..Default::default()
        };
        // Memory and quota can be set; these CPUs are not there, which shows last.
        let no_such_cpu = LinuxContainerResources {
            cpuset_cpus: "4000".into(),
            ..base.clone()
        };
        update(&daemon, &id, no_such_cpu).await.expect_err("no such CPU");
        unchanged("a CPU that is not there").await;
        let below = LinuxContainerResources {
            memory_limit_in_bytes: 8 * MB,
            ..base.clone()
        };
        let error = update(&daemon, &id, below).await.expect_err("below what is in use");
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("in use"), "{error}");
        unchanged("a limit below usage").await;
        let unified = LinuxContainerResources {
            unified: wharf_e2e::specs::map("memory.high", "max"),
            ..base.clone()
        };
        if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            let error = update(&daemon, &id, unified)
                .await
                .expect_err("v1 has no unified resources");
            assert!(error.message().contains("memory.high"), "{error}");
            unchanged("unified resources on v1").await;
        }
        for wrong in [
            LinuxContainerResources {
                cpu_shares: -5,
                ..base.clone()
            },
            LinuxContainerResources {
                memory_swap_limit_in_bytes: MB,
                ..base.clone()
            },
            LinuxContainerResources {
                hugepage_limits: vec![HugepageLimit {
                    page_size: "3MB".into(),
                    limit: 1,
                }],
                ..base.clone()
            },
            LinuxContainerResources {
                cpu_quota: 1,
                ..base.clone()
            },
        ] {
            update(&daemon, &id, wrong.clone()).await.expect_err("impossible");
            unchanged(&format!("{wrong:?}")).await;
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn updates_of_what_is_not_there_are_refused() {
    let daemon = Daemon::start().await;
    assert_eq!(
        code(update(&daemon, "absent", LinuxContainerResources::default()).await),
        Code::NotFound
    );
    let (_, id) = daemon.running("windows", "sleep 1000").await;
    let request = UpdateContainerResourcesRequest {
        container_id: id,
        windows: Some(WindowsContainerResources::default()),
        ..Default::default()
    };
    let answer = daemon.cri.runtime.clone().update_container_resources(request).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "absent".into(),
        ..Default::default()
    };
    let answer = daemon.cri.runtime.clone().update_pod_sandbox_resources(request).await;
    assert_eq!(code(answer), Code::NotFound);
    daemon.finish().await;
}

#[tokio::test]
async fn annotations_and_limits_of_an_update_outlive_the_daemon() {
    let mut daemon = Daemon::start().await;
    let (_, id) = daemon.running("outlive", "sleep 1000").await;
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            cpu_shares: 77,
            ..Default::default()
        }),
        annotations: wharf_e2e::specs::map("example.org/note", "kept"),
        ..Default::default()
    };
    daemon
        .cri
        .runtime
        .clone()
        .update_container_resources(request)
        .await
        .unwrap();
    daemon.crash().await;
    assert_eq!(reported(&daemon, &id).await.cpu_shares, 77);
    let output = daemon.wharf(&["inspect", &id]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("example.org/note"), "{text}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_pods_limits_are_set_on_its_own_cgroup() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("limited");
    config.linux.get_or_insert_default().cgroup_parent = "/wharf/podlimited".into();
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    daemon
        .started(&pod, &config, &container("main", &daemon.busybox().await, "sleep 1000"))
        .await;
    let resources = |mb, shares| {
        Some(LinuxContainerResources {
            memory_limit_in_bytes: mb * MB,
            cpu_shares: shares,
            ..Default::default()
        })
    };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: resources(10, 10),
        resources: resources(200, 100),
    };
    daemon
        .cri
        .runtime
        .clone()
        .update_pod_sandbox_resources(request)
        .await
        .unwrap();
    assert_eq!(memory(&daemon, "podlimited"), 210 * MB);
    let request = wharf_proto::cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.clone(),
        verbose: true,
    };
    let answer = daemon
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["resourcesApplied"], true);
    assert!(
        info["resources"].to_string().contains(&(200 * MB).to_string()),
        "{info}"
    );
    daemon.gone(&pod).await;
    // Kubelet removes the cgroups that it makes; this one the runtime made.
    for dir in daemon
        .lab
        .cgroups_below()
        .into_iter()
        .filter(|dir| dir.ends_with("podlimited"))
    {
        std::fs::remove_dir(dir).unwrap();
    }
    daemon.finish().await;
}

#[tokio::test]
async fn people_update_limits_by_command() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let output = daemon
        .wharf(&["run", "-d", "--name", "mine", &image, "sleep", "1000"])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let line = [
        "update",
        "--cpus",
        "0.5",
        "-m",
        "64m",
        "--memory-swap",
        "-1",
        "--cpu-shares",
        "300",
        "mine",
    ];
    let output = daemon.wharf(&line).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let id = daemon.wharf(&["ps", "-q", "--no-trunc"]).output().await.unwrap().stdout;
    let id = String::from_utf8(id).unwrap().trim().to_owned();
    let told = reported(&daemon, &id).await;
    assert_eq!(
        (
            told.cpu_quota,
            told.cpu_period,
            told.memory_limit_in_bytes,
            told.memory_swap_limit_in_bytes,
            told.cpu_shares
        ),
        (50_000, 100_000, 64 * MB, -1, 300)
    );
    let output = daemon.wharf(&["update", "mine"]).output().await.unwrap();
    assert!(!output.status.success());
    let output = daemon.wharf(&["update", "-m", "1k", "mine"]).output().await.unwrap();
    assert!(!output.status.success());
    assert_eq!(reported(&daemon, &id).await, told);
    daemon.wharf(&["rm", "-f", "mine"]).output().await.unwrap();
    daemon.finish().await;
}
