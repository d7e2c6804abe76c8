//! Rows of security and resources, seen from inside the container.

use wharf_e2e::seccomp::Agent;
use wharf_e2e::{Daemon, Options, container, specs};
use wharf_proto::cri as pb;
use wharf_proto::cri::security_profile::ProfileType;

use crate::on_each_handler;

#[tokio::test]
async fn ambient_capabilities_reach_a_user_who_is_not_root() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("ambient");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
        let security = specs::security(&mut main);
        security.run_as_user = Some(pb::Int64Value { value: 1002 });
        security.capabilities = Some(pb::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        });
        let id = daemon.started(&pod, &config, &main).await;
        let line = "grep -E '^Cap(Eff|Amb)' /proc/1/status | awk '{ print $2 }'";
        assert_eq!(
            daemon.cri.shell(&id, line).await.unwrap(),
            "0000000000000400\n0000000000000400\n"
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn strict_groups_are_only_those_asked_for_and_told_in_the_status() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("groups");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        // Its user is in group 5000 by the image's /etc/group.
        let image = daemon.pull("user-name:latest").await;
        for (policy, has) in [
            (pb::SupplementalGroupsPolicy::Merge, true),
            (pb::SupplementalGroupsPolicy::Strict, false),
        ] {
            let mut main = container(&format!("{policy:?}").to_lowercase(), &image, "exec sleep 1000");
            let security = specs::security(&mut main);
            security.supplemental_groups = vec![7777];
            security.supplemental_groups_policy = policy.into();
            let id = daemon.started(&pod, &config, &main).await;
            let seen = daemon.cri.shell(&id, "grep ^Groups: /proc/1/status").await.unwrap();
            let groups: Vec<i64> = seen.split_whitespace().skip(1).map(|g| g.parse().unwrap()).collect();
            assert!(
                groups.contains(&7777) && groups.contains(&5000) == has,
                "{policy:?}: {seen}"
            );
            let mut told = daemon
                .cri
                .status(&id)
                .await
                .unwrap()
                .user
                .unwrap()
                .linux
                .unwrap()
                .supplemental_groups;
            told.sort_unstable();
            assert_eq!(told, groups, "{policy:?}");
        }
        daemon.finish().await;
    })
    .await;
}

/// Rule 41, and critest: the new field wins over the deprecated one.
#[tokio::test]
#[allow(deprecated)]
async fn rule_41_seccomp_is_off_unless_asked_for_and_the_new_field_wins() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("seccomp");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let profile = |kind: ProfileType| {
            Some(pb::SecurityProfile {
                profile_type: kind.into(),
                ..Default::default()
            })
        };
        for (name, new, old, filtered) in [
            ("nothing", None, "", false),
            ("old", None, "runtime/default", true),
            ("off", profile(ProfileType::Unconfined), "runtime/default", false),
            ("on", profile(ProfileType::RuntimeDefault), "unconfined", true),
        ] {
            let mut main = container(name, &image, "exec sleep 1000");
            let security = specs::security(&mut main);
            security.seccomp = new;
            security.seccomp_profile_path = old.into();
            let id = daemon.started(&pod, &config, &main).await;
            let mode = daemon
                .cri
                .shell(&id, "awk '/^Seccomp:/ { print $2 }' /proc/1/status")
                .await
                .unwrap();
            assert_eq!(mode, if filtered { "2\n" } else { "0\n" }, "{name}");
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_localhost_seccomp_profile_is_applied() {
    on_each_handler(async |daemon| {
        let file = daemon.dir().join("profile.json");
        std::fs::write(
            &file,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let config = daemon.pod("local");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
        specs::security(&mut main).seccomp = Some(pb::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: file.display().to_string(),
        });
        let id = daemon.started(&pod, &config, &main).await;
        let line = "mkdir /x 2>/dev/null || echo refused; touch /y && echo made";
        assert_eq!(daemon.cri.shell(&id, line).await.unwrap(), "refused\nmade\n");
        daemon.finish().await;
    })
    .await;
}

/// The runtime specification's `listenerPath`: somebody else decides what becomes of a call.
#[tokio::test]
async fn a_localhost_profile_can_have_a_listener_that_the_node_allows() {
    for handler in crate::handlers() {
        println!("---- handler {handler}");
        let agents = tempfile::tempdir().unwrap();
        let daemon = Daemon::with(Options {
            settings: format!("[containers]\nseccomp_listeners = ['{}']", agents.path().display()),
            ..Options::handler(&handler)
        })
        .await;
        let socket = agents.path().join("agent.sock");
        let profile = |name: &str, listener: &std::path::Path| {
            let file = daemon.dir().join(name);
            let text = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": listener,
                "listenerMetadata": "whatever the agent wants",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
            });
            std::fs::write(&file, text.to_string()).unwrap();
            Some(pb::SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: file.display().to_string(),
            })
        };
        let config = daemon.pod("told");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut main = container("main", &image, "mkdir /early; exec sleep 1000");
        specs::security(&mut main).seccomp = profile("told.json", &socket);
        // Nobody listens yet: nothing runs.
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        daemon.cri.start(&id).await.expect_err("nobody listens");
        daemon.cri.remove(&id).await.unwrap();
        let agent = Agent::listen(&socket, libc::EBADMSG).unwrap();
        let id = daemon.started(&pod, &config, &main).await;
        let said = daemon
            .cri
            .shell(&id, "mkdir /x 2>&1; ls -d /early 2>&1; touch /y && echo made")
            .await
            .unwrap();
        assert!(
            said.contains("Bad message") && said.contains("/early: No such"),
            "{said}"
        );
        assert!(said.ends_with("made\n"), "{said}");
        assert!(agent.calls() >= 2, "init's and the command's: {}", agent.calls());
        let states = agent.states();
        assert_eq!(states.len(), 2, "{states:?}");
        for state in &states {
            assert_eq!(state["fds"], serde_json::json!(["seccompFd"]), "{state}");
            assert_eq!(state["metadata"], "whatever the agent wants", "{state}");
            assert_eq!(state["state"]["id"], id, "{state}");
            // crun tells none.
            let told = handler == "crun" || state["pid"].as_i64().is_some_and(|pid| pid > 1);
            assert!(told, "{state}");
        }
        // Only who is named may listen.
        let mut other = container("other", &image, "true");
        specs::security(&mut other).seccomp = profile("other.json", &daemon.dir().join("other.sock"));
        let refused = daemon
            .cri
            .create(&pod, &other, &config)
            .await
            .expect_err("it is not allowed");
        assert!(refused.message().contains("seccomp_listeners"), "{refused}");
        daemon.gone(&pod).await;
        drop(agent);
        daemon.finish().await;
    }
}

#[tokio::test]
async fn devices_have_the_path_and_the_permissions_that_were_asked_for() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("devices");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
        main.devices = vec![pb::Device {
            host_path: "/dev/zero".into(),
            container_path: "/dev/mine".into(),
            permissions: "r".into(),
        }];
        let id = daemon.started(&pod, &config, &main).await;
        let line = "stat -c %t:%T /dev/mine; head -c 4 /dev/mine | wc -c";
        assert_eq!(daemon.cri.shell(&id, line).await.unwrap(), "1:5\n4\n");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_pods_sysctls_hold_in_its_containers_and_not_on_the_node() {
    on_each_handler(async |daemon| {
        let mut config = daemon.pod("sysctls");
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        // Either separator, as sysctl(8) has it.
        sysctls.insert("net/ipv4/ip_local_port_range".into(), "20000 20100".into());
        sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        let node = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = container("main", &daemon.busybox().await, "exec sleep 1000");
        let id = daemon.started(&pod, &config, &main).await;
        let line = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced \
                    /proc/sys/net/ipv4/ip_unprivileged_port_start | tr '\\t' ' '";
        assert_eq!(daemon.cri.shell(&id, line).await.unwrap(), "20000 20100\n1\n0\n");
        let after = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(node, after);
        daemon.finish().await;
    })
    .await;
}
