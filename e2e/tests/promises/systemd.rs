//! With systemd as the cgroup driver: what it knows of containers, and that nothing it does on its own changes them. These
//! tests run where the machine has systemd (`make vm-test`, with `WHARF_CGROUP_DRIVER=systemd`).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use wharf_e2e::{Daemon, container, eventually, lab};
use wharf_proto::cri as pb;

/// True, with a word, where there is nothing to test.
fn skipped() -> bool {
    let skipped = !lab::with_systemd();
    if skipped {
        println!("skipped: cgroups are not systemd's here");
    }
    skipped
}

fn systemctl(args: &[&str]) -> String {
    let output = std::process::Command::new("systemctl").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Properties of a unit by name.
fn properties(unit: &str) -> HashMap<String, String> {
    let text = systemctl(&["show", unit]);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn cgroup(daemon: &Daemon, id: &str) -> PathBuf {
    let found = daemon.lab.cgroups_below();
    let found = found.into_iter().find(|dir| lab::is_cgroup_of(dir, id));
    found.unwrap_or_else(|| panic!("container {id} has no cgroup"))
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap().trim().to_owned()
}

fn limits(memory: i64, quota: i64, shares: i64) -> pb::LinuxContainerResources {
    pb::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: shares,
        ..Default::default()
    }
}

fn all(dir: &Path) -> Vec<String> {
    ["memory.max", "cpu.max", "cpu.weight", "pids.max", "cpuset.cpus"]
        .map(|name| format!("{name}: {}", read(dir, name)))
        .to_vec()
}

#[tokio::test]
async fn a_container_is_a_scope_in_its_pods_slice_and_systemd_knows_its_limits() {
    if skipped() {
        return;
    }
    let daemon = Daemon::start().await;
    let mut runtime = daemon.cri.runtime.clone();
    let told = runtime
        .runtime_config(pb::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.linux.unwrap().cgroup_driver(), pb::CgroupDriver::Systemd);

    // As kubelet names a pod's slice: its whole path.
    let own = daemon.lab.slice.clone().unwrap();
    let stem = own.trim_end_matches(".slice");
    let mut config = daemon.pod("scoped");
    let slice = format!("{stem}-pod1.slice");
    config.linux.get_or_insert_default().cgroup_parent = format!("/wharfe2e.slice/{own}/{slice}");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.linux.get_or_insert_default().resources = Some(limits(64 << 20, 50_000, 512));
    let id = daemon.started(&pod, &config, &main).await;

    let dir = cgroup(&daemon, &id);
    assert!(
        dir.starts_with(format!("/sys/fs/cgroup/wharfe2e.slice/{own}/{slice}")),
        "{}",
        dir.display()
    );
    let unit = format!("wharf-{id}.scope");
    let known = properties(&unit);
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", slice.as_str()),
        ("Delegate", "yes"),
        ("MemoryMax", "67108864"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUWeight", read(&dir, "cpu.weight").as_str()),
        ("TasksMax", "infinity"),
    ] {
        assert_eq!(known.get(name).map(String::as_str), Some(value), "{name}");
    }

    // An exec is in it too, and sees itself at the root of its own namespace.
    let seen = daemon.cri.exec(&id, &["cat", "/proc/self/cgroup"], 20).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "0::/");

    daemon.cri.stop(&id, 0).await.unwrap();
    daemon.cri.remove(&id).await.unwrap();
    assert!(!dir.exists());
    assert_eq!(
        properties(&unit).get("LoadState").map(String::as_str),
        Some("not-found")
    );
    daemon.gone(&pod).await;
    // Kubelet removes the slices that it makes; this one came with the scope.
    systemctl(&["stop", &slice]);
    daemon.finish().await;
}

#[tokio::test]
async fn a_reload_of_systemd_changes_no_limit_and_no_device_rule() {
    if skipped() {
        return;
    }
    let daemon = Daemon::start().await;
    let config = daemon.pod("reloaded");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let mut main = container("main", &image, "sleep 1000");
    main.linux.get_or_insert_default().resources = Some(limits(64 << 20, 50_000, 512));
    let id = daemon.started(&pod, &config, &main).await;
    let dir = cgroup(&daemon, &id);
    let mut wanted = limits(96 << 20, 75_500, 1024);
    wanted.cpuset_cpus = "0".into();
    let mut runtime = daemon.cri.runtime.clone();
    let request = pb::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(wanted),
        ..Default::default()
    };
    runtime.update_container_resources(request).await.unwrap();
    let before = all(&dir);
    assert_eq!(before[0], format!("memory.max: {}", 96 << 20));
    assert_eq!(before[1], "cpu.max: 75500 100000");
    assert_eq!(
        properties(&format!("wharf-{id}.scope"))["MemoryMax"],
        (96 << 20).to_string()
    );

    let device = async || {
        let line = "mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg; echo $?; head -c1 /dev/zero | wc -c";
        let seen = daemon
            .cri
            .exec(
                &id,
                &["sh", "-c", &format!("mkdir -p /tmp; rm -f /tmp/kmsg; {line}")],
                20,
            )
            .await;
        String::from_utf8_lossy(&seen.unwrap().stdout).into_owned()
    };
    let refused = device().await;
    assert!(refused.ends_with("1\n1\n"), "{refused}");
    systemctl(&["daemon-reload"]);
    let mut after = all(&dir);
    // Whole percents of a CPU is what systemd keeps over a reload; more than asked, never less.
    if after[1] == "cpu.max: 76000 100000" {
        after[1].clone_from(&before[1]);
    }
    assert_eq!(after, before);
    assert_eq!(device().await, refused);
    daemon.finish().await;
}

#[tokio::test]
async fn monitors_and_containers_outlive_the_daemon_and_systemds_own_restart() {
    if skipped() {
        return;
    }
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("outlives", "sleep 1000").await;
    let dir = cgroup(&daemon, &id);
    let in_scope = || {
        let scopes = daemon.lab.cgroups_below();
        let scope = scopes
            .iter()
            .find(|dir| dir.to_string_lossy().ends_with("-monitors.scope"));
        scope.map(|scope| read(scope, "cgroup.procs").lines().count())
    };
    assert_eq!(in_scope(), Some(1), "the monitor is in the scope of monitors");
    daemon.crash().await;
    systemctl(&["daemon-reexec"]);
    let seen = daemon.cri.exec(&id, &["echo", "alive"], 20).await.unwrap();
    assert_eq!(seen.stdout, b"alive\n");
    let (second, _) = daemon.running("second", "sleep 1000").await;
    let scopes = daemon.lab.cgroups_below();
    let scope = scopes
        .iter()
        .find(|dir| dir.to_string_lossy().ends_with("-monitors.scope"));
    assert_eq!(read(scope.unwrap(), "cgroup.procs").lines().count(), 2);
    daemon.gone(&second).await;
    daemon.gone(&pod).await;
    assert!(!dir.exists());
    // The first monitor after the last has ended begins the scope anew.
    let (again, _) = daemon.running("again", "sleep 1000").await;
    daemon.gone(&again).await;
    let unit = daemon.lab.slice.as_ref().unwrap().replace(".slice", "-monitors.scope");
    eventually("the scope of monitors has ended", async || {
        properties(&unit).get("LoadState").map(String::as_str) == Some("not-found")
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_parent_in_cgroupfs_syntax_becomes_a_slice_and_nonsense_is_refused() {
    if skipped() {
        return;
    }
    let daemon = Daemon::start().await;
    let own = daemon.lab.slice.clone().unwrap();
    let mut config = daemon.pod("converted");
    let plain = own.trim_end_matches(".slice").replace('-', "/");
    config.linux.get_or_insert_default().cgroup_parent = format!("/{plain}/burstable/pod-1");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &container("main", &daemon.busybox().await, "sleep 1000"))
        .await;
    let stem = own.trim_end_matches(".slice");
    let expected = format!("{own}/{stem}-burstable.slice/{stem}-burstable-pod_1.slice/wharf-{id}.scope");
    let dir = cgroup(&daemon, &id);
    assert!(dir.ends_with(&expected), "{}", dir.display());
    for bad in ["kubepods.slice:wharf:x", "/a--b.slice", "/-.slice"] {
        config.linux.get_or_insert_default().cgroup_parent = bad.into();
        config.metadata.get_or_insert_default().attempt += 1;
        let error = daemon.cri.run_pod(&config, "").await.expect_err(bad);
        assert!(error.message().contains("cgroup_parent"), "{error}");
    }
    daemon.gone(&pod).await;
    systemctl(&["stop", &format!("{stem}-burstable.slice")]);
    daemon.finish().await;
}
