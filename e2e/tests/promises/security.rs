//! What a container can't do, and as whom it runs.

use wharf_e2e::{container, specs};
use wharf_proto::cri as pb;

use crate::on_each_handler;

#[tokio::test]
async fn users_and_groups_are_as_asked_and_told() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("users");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut main = container("ids", &image, "sleep 1000");
        let security = specs::security(&mut main);
        security.run_as_user = Some(pb::Int64Value { value: 1002 });
        security.run_as_group = Some(pb::Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000];
        let id = daemon.started(&pod, &config, &main).await;
        let seen = daemon.cri.shell(&id, "id -u; id -g; id -G").await.unwrap();
        assert!(seen.starts_with("1002\n2000\n") && seen.contains("3000"), "{seen}");
        let user = daemon.cri.status(&id).await.unwrap().user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid), (1002, 2000));
        assert!(user.supplemental_groups.contains(&3000));

        // From the image, by name, with its group memberships.
        let image = daemon.pull("user-name:latest").await;
        let id = daemon
            .started(&pod, &config, &container("named", &image, "sleep 1000"))
            .await;
        assert_eq!(daemon.cri.shell(&id, "id -u; id -g").await.unwrap(), "1002\n1003\n");
        assert!(daemon.cri.shell(&id, "id -G").await.unwrap().contains("5000"));
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn capabilities_seccomp_and_no_new_privileges_hold_for_exec_too() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("caps");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
        let security = specs::security(&mut main);
        security.no_new_privs = true;
        security.capabilities = Some(pb::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        });
        security.seccomp = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        let id = daemon.started(&pod, &config, &main).await;
        for process in ["1", "self"] {
            let line =
                format!("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/{process}/status | awk '{{ print $2 }}'");
            let seen = daemon.cri.shell(&id, &line).await.unwrap();
            assert_eq!(
                seen, "0000000000000400\n0000000000000400\n1\n2\n",
                "/proc/{process}/status"
            );
        }
        assert!(
            daemon.cri.shell(&id, "unshare -U true").await.is_err(),
            "the filter lets unshare pass"
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn the_hosts_files_are_out_of_reach() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("root", "sleep 1000").await;
        let mark = daemon.dir().join("mark");
        std::fs::write(&mark, "").unwrap();
        let paths = format!(
            "{0} /proc/1/root{0} /proc/self/root/../..{0} /../../../..{0}",
            mark.display()
        );
        assert!(
            daemon.cri.shell(&id, &format!("ls {paths} 2>/dev/null")).await.is_err(),
            "a file of the node is visible"
        );
        let mounts = daemon.cri.shell(&id, "cat /proc/self/mountinfo").await.unwrap();
        let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        assert!(
            !points
                .iter()
                .any(|point| point.starts_with("/run/") || point.contains("oldroot")),
            "{points:?}"
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_privileged_container_sees_devices_and_may_mount() {
    let daemon = wharf_e2e::Daemon::start().await;
    let mut config = daemon.pod("privileged");
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .privileged = true;
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    specs::security(&mut main).privileged = true;
    let id = daemon.started(&pod, &config, &main).await;
    daemon
        .cri
        .shell(&id, "mkdir /m && mount -t tmpfs none /m && echo x > /m/x")
        .await
        .unwrap();
    daemon
        .cri
        .shell(
            &id,
            "echo 7 > /proc/sys/net/ipv4/ip_default_ttl || [ -w /proc/sys/net ]",
        )
        .await
        .unwrap();
    daemon.finish().await;
}
