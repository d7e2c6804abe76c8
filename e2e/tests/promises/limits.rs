//! Limits that a node's machine or configuration decides on: what can't be is refused with the field's name, before
//! anything runs.

use std::path::{Path, PathBuf};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, Options, container, specs};
use wharf_proto::cri as pb;

/// A file of the container's cgroup, in whichever hierarchy has it.
fn file(daemon: &Daemon, id: &str, names: [&str; 2]) -> Option<String> {
    let found = daemon.lab.cgroups_below();
    let dirs: Vec<&PathBuf> = found
        .iter()
        .filter(|dir| wharf_e2e::lab::is_cgroup_of(dir, id))
        .collect();
    let file = names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|file| file.exists())?;
    Some(std::fs::read_to_string(file).unwrap().trim().to_owned())
}

#[tokio::test]
async fn limits_that_the_machine_cannot_set_are_refused_by_name_at_create_and_update() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("impossible");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let running = daemon
        .started(&pod, &config, &container("running", &image, "sleep 1000"))
        .await;
    let limits = |change: fn(&mut pb::LinuxContainerResources)| {
        let mut limits = pb::LinuxContainerResources::default();
        change(&mut limits);
        limits
    };
    let v1 = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut cases = vec![
        (
            "cpuset_cpus",
            "is not there",
            limits(|l| l.cpuset_cpus = "0,4000".into()),
        ),
        ("cpuset_cpus", "not a list", limits(|l| l.cpuset_cpus = "first".into())),
        ("cpuset_mems", "is not there", limits(|l| l.cpuset_mems = "77".into())),
        (
            "memory_limit_in_bytes",
            "no process starts",
            limits(|l| l.memory_limit_in_bytes = 4096),
        ),
        (
            "memory_swap_limit_in_bytes",
            "less than memory_limit_in_bytes",
            limits(|l| {
                l.memory_limit_in_bytes = 64 << 20;
                l.memory_swap_limit_in_bytes = 32 << 20;
            }),
        ),
        ("cpu_shares", "less than zero", limits(|l| l.cpu_shares = -1)),
    ];
    if v1 {
        cases.push((
            "memory.high",
            "cgroup v2",
            limits(|l| l.unified = specs::map("memory.high", "1000000")),
        ));
    }
    for (field, why, limits) in cases {
        let mut main = container("main", &image, "sleep 1000");
        main.linux.get_or_insert_default().resources = Some(limits.clone());
        let created = daemon.cri.create(&pod, &main, &config).await.expect_err(field);
        let request = pb::UpdateContainerResourcesRequest {
            container_id: running.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        let mut runtime = daemon.cri.runtime.clone();
        let updated = runtime.update_container_resources(request).await.expect_err(field);
        for refused in [created, updated] {
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(
                refused.message().contains(field) && refused.message().contains(why),
                "{refused}"
            );
        }
    }
    assert_eq!(daemon.cri.containers(None).await.unwrap().len(), 1);
    daemon.finish().await;
}

#[tokio::test]
async fn classes_of_block_io_and_the_limit_of_processes_come_from_the_configuration() {
    let disk = std::fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .map(|entry| PathBuf::from("/dev").join(entry.file_name()))
        .find(|path| path.exists() && !path.to_string_lossy().contains("loop"));
    let disk = disk.expect("the machine has a disk").display().to_string();
    for handler in ["builtin", "runc", "crun"] {
        let daemon = Daemon::with(Options {
            settings: "pids_limit = 30".into(),
            tables: format!("[blockio_classes.slow]\nread_bps = {{'{disk}' = '1MiB'}}"),
            ..Options::handler(handler)
        })
        .await;
        let mut config = daemon.pod("classes");
        config.annotations = specs::map("blockio.resources.beta.kubernetes.io/container.main", "slow");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let id = daemon
            .started(&pod, &config, &container("main", &image, "sleep 1000"))
            .await;
        let throttle = file(&daemon, &id, ["blkio.throttle.read_bps_device", "io.max"]).unwrap();
        assert!(throttle.contains("1048576"), "{handler}: {throttle:?}");
        assert_eq!(file(&daemon, &id, ["pids.max", "pids.max"]).unwrap(), "30", "{handler}");
        let line = "for i in $(seq 40); do sleep 100 >/dev/null 2>&1 & done; echo all";
        let error = daemon.cri.shell(&id, line).await.expect_err("only 30 processes");
        assert!(error.to_string().contains("fork"), "{handler}: {error}");

        let other = daemon
            .started(&pod, &config, &container("other", &image, "sleep 1000"))
            .await;
        let throttle = file(&daemon, &other, ["blkio.throttle.read_bps_device", "io.max"]).unwrap();
        assert!(!throttle.contains("1048576"), "{handler}: {throttle:?}");
        let mut main = container("unknown", &image, "sleep 1000");
        main.annotations = specs::map("io.kubernetes.cri.blockio-class", "fast");
        let refused = daemon
            .cri
            .create(&pod, &main, &config)
            .await
            .expect_err("no such class");
        assert!(
            refused.message().contains("fast") && refused.message().contains("slow"),
            "{refused}"
        );
        main.annotations = specs::map("io.kubernetes.cri.rdt-class", "gold");
        assert_eq!(
            code(daemon.cri.create(&pod, &main, &config).await),
            Code::InvalidArgument
        );
        daemon.finish().await;
    }
}

#[tokio::test]
async fn annotations_and_sysctls_of_a_pod_that_make_no_sense_are_invalid() {
    let daemon = Daemon::start().await;
    for key in ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"] {
        for value in ["fast", "1", "10000P", "-5M"] {
            let mut config = daemon.pod("bandwidth");
            config.annotations = specs::map(key, value);
            let refused = daemon.cri.run_pod(&config, "").await.expect_err(value);
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(
                refused.message().contains(key) && refused.message().contains(value),
                "{refused}"
            );
        }
    }
    for (name, value) in [
        ("kernel.panic", "1"),
        ("net.ipv4.no_such_sysctl", "1"),
        ("net.ipv4.ip_forward", "perhaps"),
        ("../../etc", "1"),
    ] {
        let mut config = daemon.pod("sysctl");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert(name.into(), value.into());
        let refused = daemon.cri.run_pod(&config, "").await.expect_err(name);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(name), "{refused}");
    }
    let mut config = daemon.pod("log");
    config.log_directory = "relative/logs".into();
    let refused = daemon.cri.run_pod(&config, "").await.expect_err("relative");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    daemon.finish().await;
}

/// Row E7: on a machine whose controllers are on version 1, the one of huge pages may be on version 2.
#[tokio::test]
async fn huge_pages_are_limited_in_whichever_hierarchy_can() {
    const SIZE: &str = "2MB";
    let daemon = Daemon::start().await;
    let config = daemon.pod("huge");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let limit = |bytes| pb::LinuxContainerResources {
        hugepage_limits: vec![pb::HugepageLimit {
            page_size: SIZE.into(),
            limit: bytes,
        }],
        ..Default::default()
    };
    let mut main = container("main", &image, "sleep 1000");
    main.linux.get_or_insert_default().resources = Some(limit(4 << 20));
    // What the kernel offers to the lab, not to the machine: on a mixed one the v2 side may end above it.
    let offered = "ls -d /sys/fs/cgroup/hugetlb; cat $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.controllers); true";
    let offered = daemon.lab.output("sh", &["-c", offered]).await.unwrap();
    let possible = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() && offered.contains("hugetlb");
    if !possible {
        let refused = daemon
            .cri
            .create(&pod, &main, &config)
            .await
            .expect_err("no such limit");
        assert!(refused.message().contains("huge page limit"), "{refused}");
        return daemon.finish().await;
    }
    let limited = daemon.started(&pod, &config, &main).await;
    let later = daemon
        .started(&pod, &config, &container("later", &image, "sleep 1000"))
        .await;
    let mut runtime = daemon.cri.runtime.clone();
    let request = pb::UpdateContainerResourcesRequest {
        container_id: later.clone(),
        linux: Some(limit(6 << 20)),
        ..Default::default()
    };
    runtime.update_container_resources(request).await.unwrap();
    for (id, bytes) in [(&limited, 4 << 20), (&later, 6 << 20)] {
        let names = ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"];
        let found = daemon.lab.cgroups_below();
        let dirs = found.iter().filter(|dir| wharf_e2e::lab::is_cgroup_of(dir, id));
        let mut files = dirs.flat_map(|dir| names.map(|name| dir.join(name)));
        let file = files.find(|file| file.exists()).expect("a hierarchy with huge pages");
        let set: u64 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert_eq!(set, bytes, "{}", file.display());
        let inside = std::fs::read_to_string(file.with_file_name("cgroup.procs")).unwrap();
        assert!(!inside.trim().is_empty(), "nobody is where {} holds", file.display());
    }
    daemon.finish().await;
}
