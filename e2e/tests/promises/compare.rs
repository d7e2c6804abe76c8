//! `builtin` gives a container what runc gives it, seen from the inside.

use std::collections::BTreeMap;

use wharf_e2e::{Daemon, container, specs};
use wharf_proto::cri as pb;

/// What is looked at, as shell lines; their output must not depend on the handler.
///
/// Two differences that are meant are taken out of `mounts`: runc makes the tmpfs of `/sys/fs/cgroup` read-only as a
/// file system, `builtin` as a mount; and runc masks files with the container's `/dev/null`, `builtin` with the node's.
const LOOKS: &[(&str, &str)] = &[
    (
        "status",
        "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Umask)' /proc/1/status",
    ),
    (
        "own status",
        "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Umask)' /proc/self/status",
    ),
    ("limits", "cat /proc/1/limits"),
    ("uid map", "cat /proc/1/uid_map /proc/1/gid_map"),
    (
        "devices",
        "cd /dev; find . -type c -o -type b -o -type l | sort | xargs ls -ld | awk '{ print $1, $3, $4, $5, $6, $NF }' | sed 's/ [A-Z][a-z][a-z] / /'",
    ),
    (
        "mounts",
        "awk '{ i = 7; while ($i != \"-\") i++; print $5, $6, $(i+1) }' /proc/1/mountinfo | sed 's/,relatime//; s/relatime,//' \
         | sed 's|^/sys/fs/cgroup r[ow],|/sys/fs/cgroup |; s|^\\(/proc/[a-z]*\\) .* \\(dev\\)*tmpfs$|\\1 masked|'",
    ),
    (
        "masked",
        "for f in kcore keys timer_list; do head -c 1 /proc/$f | wc -c; done; ls /proc/acpi /sys/firmware 2>/dev/null",
    ),
    (
        "read-only",
        "echo 1 > /proc/sys/kernel/printk; echo b > /proc/sysrq-trigger; echo x > /sys/kernel/profiling",
    ),
    ("descriptors", "ls /proc/1/fd"),
    ("environment", "tr '\\0' '\\n' < /proc/1/environ | sort"),
    ("working directory", "readlink /proc/1/cwd"),
    (
        "device access",
        "mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null; mknod /tmp/mem c 1 1 && cat /tmp/mem | head -c 1; echo end",
    ),
    (
        "process",
        "cat /proc/1/oom_score_adj; awk '{ print $5 == 1, $6 == 1 }' /proc/1/stat",
    ),
    (
        "system calls",
        "unshare -U true 2>&1; mount -t tmpfs none /mnt 2>&1 | head -1; echo end",
    ),
];

async fn look(
    daemon: &Daemon,
    handler: &str,
    change: &dyn Fn(&mut pb::ContainerConfig),
) -> BTreeMap<&'static str, String> {
    let config = daemon.pod("compare");
    let pod = daemon.cri.run_pod(&config, handler).await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
    change(&mut main);
    let id = daemon.started(&pod, &config, &main).await;
    let mut seen = BTreeMap::new();
    for (name, line) in LOOKS {
        let answer = daemon.cri.exec(&id, &["/bin/sh", "-c", line], 20).await.unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr)
        );
        let text = text.replace(&pod, "POD").replace(&id, "CONTAINER");
        seen.insert(*name, text);
    }
    daemon.gone(&pod).await;
    seen
}

async fn compare(change: &dyn Fn(&mut pb::ContainerConfig)) {
    let daemon = Daemon::start().await;
    let ours = look(&daemon, "builtin", change).await;
    let theirs = look(&daemon, "runc", change).await;
    let mut different = Vec::new();
    for (name, theirs) in &theirs {
        let ours = &ours[name];
        let only = |a: &str, b: &str| {
            a.lines()
                .filter(|line| !b.lines().any(|other| other == *line))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (more, less) = (only(ours, theirs), only(theirs, ours));
        if !more.is_empty() || !less.is_empty() {
            different.push(format!(
                "{name}:\n    only builtin: {more:?}\n    only runc:    {less:?}"
            ));
        }
    }
    assert!(
        different.is_empty(),
        "builtin differs from runc:\n  {}",
        different.join("\n  ")
    );
    daemon.finish().await;
}

#[tokio::test]
async fn a_default_container_looks_the_same() {
    compare(&|_| {}).await;
}

#[tokio::test]
async fn a_hardened_container_looks_the_same() {
    compare(&|config| {
        let security = specs::security(config);
        security.run_as_user = Some(pb::Int64Value { value: 1002 });
        security.run_as_group = Some(pb::Int64Value { value: 1003 });
        security.supplemental_groups = vec![7, 8];
        security.no_new_privs = true;
        security.readonly_rootfs = true;
        security.capabilities = Some(pb::Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
        security.seccomp = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        security.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into(), "/sys/firmware".into()];
        security.readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    })
    .await;
}

#[tokio::test]
async fn a_container_with_more_capabilities_looks_the_same() {
    compare(&|config| {
        specs::security(config).capabilities = Some(pb::Capability {
            add_capabilities: vec!["NET_ADMIN".into(), "SYS_PTRACE".into()],
            drop_capabilities: vec!["CHOWN".into()],
            add_ambient_capabilities: vec![],
        });
    })
    .await;
}
