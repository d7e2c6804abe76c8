//! Pods with a user namespace: who is who inside and outside.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use tonic::Code;
use wharf_e2e::{Daemon, container, cri::code, specs};
use wharf_proto::cri as pb;

const RANGE: pb::IdMapping = pb::IdMapping {
    host_id: 200_000,
    container_id: 0,
    length: 65_536,
};

fn users() -> Option<pb::UserNamespace> {
    Some(pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: vec![RANGE],
        gids: vec![RANGE],
    })
}

fn ask(pod: &mut pb::PodSandboxConfig, users: Option<pb::UserNamespace>) {
    let linux = pod.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().userns_options = users;
}

fn ask_container(config: &mut pb::ContainerConfig, users: Option<pb::UserNamespace>) {
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    let options = context.namespace_options.get_or_insert(pb::NamespaceOption {
        pid: pb::NamespaceMode::Container.into(),
        ..Default::default()
    });
    options.userns_options = users;
}

#[tokio::test]
async fn root_in_the_pod_is_nobody_on_the_node_and_owns_its_files() {
    let daemon = Daemon::start().await;
    let mut pod = daemon.pod("users");
    ask(&mut pod, users());
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("roots"), "data").unwrap();
    let mut config = container("main", &image, "sleep 1000");
    ask_container(&mut config, users());
    config.mounts = vec![pb::Mount {
        container_path: "/volume".into(),
        host_path: volume.path().to_string_lossy().into_owned(),
        uid_mappings: vec![RANGE],
        gid_mappings: vec![RANGE],
        ..Default::default()
    }];
    let main = daemon.started(&id, &pod, &config).await;
    let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
    // Inside: root, with the pod's mapping, in exec as in init.
    assert_eq!(shell("id -u; id -g").await, "0\n0\n");
    let map = shell("cat /proc/self/uid_map /proc/1/gid_map").await;
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "200000", "65536", "0", "200000", "65536"]);
    // The image's files are root's, and what is new is root's too.
    assert_eq!(
        shell("stat -c %u:%g /bin / ; touch /new && stat -c %u:%g /new").await,
        "0:0\n0:0\n0:0\n"
    );
    // A mapped volume: root's file is root's inside, and what root writes there is root's on the node.
    assert_eq!(
        shell("stat -c %u /volume/roots; echo x > /volume/mine; stat -c %u /volume/mine").await,
        "0\n0\n"
    );
    assert_eq!(std::fs::metadata(volume.path().join("mine")).unwrap().uid(), 0);
    // Its network is its own, with the privileges over it that root has in a pod.
    assert!(shell("ip -o link").await.contains("eth0"));
    assert_eq!(shell("hostname").await, "users\n");
    // Outside: an ordinary user.
    let pid = daemon
        .lab
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("sleep 1000"))
        .unwrap()
        .0;
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 200_000);
    // The layers on disk belong to whom they did: another container sees them as its own.
    let (plain, other) = daemon.running("plain", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&other, "stat -c %u /bin").await.unwrap(), "0\n");
    daemon.gone(&plain).await;
    daemon.gone(&id).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_user_namespace_on_the_nodes_network() {
    let daemon = Daemon::start().await;
    let mut pod = daemon.pod("hostnet");
    pod.hostname.clear();
    ask(&mut pod, users());
    let linux = pod.linux.get_or_insert_default();
    let options = linux
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default();
    options.network = pb::NamespaceMode::Node.into();
    options.pid = pb::NamespaceMode::Container.into();
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    let mut config = container("main", &image, "sleep 1000");
    ask_container(&mut config, users());
    let context = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    context.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
    let main = daemon.started(&id, &pod, &config).await;
    let map = daemon.cri.shell(&main, "cat /proc/self/uid_map").await.unwrap();
    assert!(map.contains("200000"), "{map}");
    let nodes = std::fs::read_link(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let own = daemon.cri.shell(&main, "readlink /proc/self/ns/net").await.unwrap();
    assert_eq!(own.trim_end(), nodes.to_string_lossy());
    daemon.gone(&id).await;
    daemon.finish().await;
}

/// The pod's processes by their command lines, as the test sees them: host's ids.
fn owner_of(daemon: &Daemon, word: &str) -> u32 {
    let processes = daemon.lab.processes();
    let (pid, _) = processes
        .iter()
        .find(|(_, line)| line.contains(word))
        .unwrap_or_else(|| panic!("no process {word} in {processes:?}"));
    std::fs::metadata(format!("/proc/{pid}")).unwrap().uid()
}

fn shared(mut config: pb::ContainerConfig) -> pb::ContainerConfig {
    ask_container(&mut config, users());
    let context = specs::security(&mut config);
    context.namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
    config
}

#[tokio::test]
async fn containers_share_processes_in_a_user_namespace() {
    let mut daemon = Daemon::start().await;
    let mut pod = daemon.pod("shared");
    ask(&mut pod, users());
    specs::namespaces(&mut pod).pid = pb::NamespaceMode::Pod.into();
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    let first = shared(container("first", &image, "exec sleep 4711"));
    let first = daemon.started(&id, &pod, &first).await;
    let mut second = shared(container("second", &image, "sleep 4712 & exec sleep 4713"));
    specs::security(&mut second).capabilities = Some(pb::Capability {
        add_capabilities: vec!["SYS_PTRACE".into(), "SYS_ADMIN".into(), "KILL".into()],
        ..Default::default()
    });
    let second = daemon.started(&id, &pod, &second).await;
    let shell = async |line: &str| daemon.cri.shell(&second, line).await;
    // All are the pod's root's, the init too; what the init was forked from is out of reach.
    let seen = shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await.unwrap();
    for word in ["sleep 4711", "sleep 4712", "sleep 4713"] {
        assert!(seen.contains(word), "{word} is not in {seen}");
    }
    assert_eq!(
        shell("cat /proc/1/comm; grep ^Uid: /proc/1/status | tr -s '\\t' ' '")
            .await
            .unwrap(),
        "wharf-pod-init\nUid: 0 0 0 0\n"
    );
    for link in ["root", "cwd", "exe", "ns/mnt"] {
        shell(&format!("ls -L /proc/1/{link}")).await.expect_err(link);
    }
    assert_eq!(owner_of(&daemon, "sleep 4711"), 200_000);
    let inits = daemon.lab.processes().into_iter().filter(|(pid, _)| {
        std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
            status.contains("wharf-pod-init") && status.contains("Uid:\t200000\t200000\t200000\t200000\n")
        })
    });
    assert_eq!(inits.count(), 1, "an init that is nobody on the node");
    // An orphan is the init's, which buries it; a killed container leaves the others.
    shell("(sleep 0.2 &) ; for i in $(seq 100); do ps -o comm,stat | grep -q '^sleep.*Z' && sleep 0.1 || exit 0; done; exit 1")
        .await
        .unwrap();
    assert!(
        daemon
            .cri
            .runtime
            .clone()
            .container_stats(pb::ContainerStatsRequest {
                container_id: second.clone()
            })
            .await
            .unwrap()
            .into_inner()
            .stats
            .unwrap()
            .memory
            .is_some()
    );
    daemon.crash().await;
    assert_eq!(daemon.cri.shell(&first, "id -u").await.unwrap(), "0\n");
    let third = shared(container("third", &image, "exec sleep 4714"));
    let third = daemon.started(&id, &pod, &third).await;
    daemon.cri.stop(&first, 0).await.unwrap();
    let seen = daemon
        .cri
        .shell(&third, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        .await
        .unwrap();
    assert!(seen.contains("sleep 4713") && !seen.contains("sleep 4711"), "{seen}");
    daemon.gone(&id).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_debugger_joins_a_container_with_users_of_its_own() {
    let daemon = Daemon::start().await;
    let mut pod = daemon.pod("target");
    ask(&mut pod, users());
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    let mut main = container("main", &image, "exec sleep 4711");
    ask_container(&mut main, users());
    let main = daemon.started(&id, &pod, &main).await;
    let mut debugger = container("debugger", &image, "exec sleep 1000");
    ask_container(&mut debugger, users());
    let options = specs::security(&mut debugger).namespace_options.get_or_insert_default();
    options.pid = pb::NamespaceMode::Target.into();
    options.target_id = main;
    let debugger = daemon.started(&id, &pod, &debugger).await;
    let seen = daemon
        .cri
        .shell(&debugger, "cat /proc/1/cmdline; stat -c %u /proc/1")
        .await
        .unwrap();
    assert_eq!(seen, "sleep\x004711\x000\n");
    daemon.gone(&id).await;
    daemon.finish().await;
}

/// Kubelet allows the node's network only; the others harm nobody.
#[tokio::test]
async fn the_nodes_processes_and_ipc_with_users_of_ones_own() {
    let daemon = Daemon::start().await;
    let node = i32::from(pb::NamespaceMode::Node);
    for (name, network, pid, ipc) in [
        ("all", node, node, node),
        ("processes", 0, node, 0),
        ("ipc", 0, 0, node),
    ] {
        let mut pod = daemon.pod(name);
        if network == node {
            pod.hostname.clear();
        }
        ask(&mut pod, users());
        let options = specs::namespaces(&mut pod);
        (options.network, options.pid, options.ipc) = (network, pid, ipc);
        let id = daemon.cri.run_pod(&pod, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 4711");
        ask_container(&mut main, users());
        let options = specs::security(&mut main).namespace_options.get_or_insert_default();
        (options.network, options.pid, options.ipc) = (network, pid, ipc);
        let main = daemon.started(&id, &pod, &main).await;
        let own = daemon
            .cri
            .shell(&main, "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc")
            .await
            .unwrap();
        let nodes = ["pid", "ipc"].map(|kind| std::fs::read_link(format!("/proc/{}/ns/{kind}", daemon.pid())).unwrap());
        for ((own, nodes), shared) in own.lines().zip(&nodes).zip([pid == node, ipc == node]) {
            assert_eq!(own == nodes.to_string_lossy(), shared, "{name}: {own} {nodes:?}");
        }
        // The node's files are the node's.
        if pid == node {
            daemon
                .cri
                .shell(&main, "echo 1 > /proc/sys/kernel/panic")
                .await
                .expect_err("a parameter of the node");
            daemon
                .cri
                .shell(&main, "ls /proc/1/root")
                .await
                .expect_err("the node's files");
        }
        daemon.gone(&id).await;
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_46_a_user_namespace_has_one_mapping_with_root_and_is_its_pods() {
    let daemon = Daemon::start().await;
    let with = |uids: &[pb::IdMapping], gids: &[pb::IdMapping], mode: pb::NamespaceMode| pb::UserNamespace {
        mode: mode.into(),
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    };
    let rootless = pb::IdMapping {
        container_id: 1,
        ..RANGE
    };
    let pod_mode = pb::NamespaceMode::Pod;
    for (bad, says) in [
        (with(&[RANGE, RANGE], &[RANGE], pod_mode), "exactly one uid mapping"),
        (with(&[RANGE], &[], pod_mode), "exactly one gid mapping"),
        (with(&[rootless], &[RANGE], pod_mode), "must begin with 0"),
        (with(&[RANGE], &[RANGE], pb::NamespaceMode::Node), "NODE"),
        (with(&[RANGE], &[RANGE], pb::NamespaceMode::Container), "CONTAINER"),
        (with(&[RANGE], &[RANGE], pb::NamespaceMode::Target), "TARGET"),
    ] {
        let mut pod = daemon.pod("bad");
        ask(&mut pod, Some(bad));
        let error = daemon.cri.run_pod(&pod, "").await.expect_err(says);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    assert!(
        daemon.cri.pods(None).await.unwrap().is_empty(),
        "what was refused is not there"
    );
    // Users and groups are mapped each by itself.
    let fewer = pb::IdMapping {
        length: 1000,
        host_id: 300_000,
        ..RANGE
    };
    let mut pod = daemon.pod("fewer");
    ask(&mut pod, Some(with(&[RANGE], &[fewer], pod_mode)));
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
    ask_container(&mut main, Some(with(&[RANGE], &[fewer], pod_mode)));
    let main = daemon.started(&id, &pod, &main).await;
    let map = daemon
        .cri
        .shell(&main, "cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /bin")
        .await
        .unwrap();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "200000", "65536", "0", "300000", "1000", "0:0"]);
    // A user who is not mapped can't be.
    let mut beyond = container("beyond", &daemon.busybox().await, "true");
    ask_container(&mut beyond, Some(with(&[RANGE], &[fewer], pod_mode)));
    let context = specs::security(&mut beyond);
    context.run_as_user = Some(pb::Int64Value { value: 1000 });
    context.run_as_group = Some(pb::Int64Value { value: 1000 });
    let error = daemon
        .cri
        .create(&id, &beyond, &pod)
        .await
        .expect_err("group 1000 is not mapped");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("group 1000"), "{error}");
    daemon.finish().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason() {
    let daemon = Daemon::start().await;
    // A container with other users than its pod's.
    let mut pod = daemon.pod("own");
    ask(&mut pod, users());
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    let mut config = container("main", &image, "sleep 1000");
    let mut other = users().unwrap();
    other.gids[0].host_id = 300_000;
    ask_container(&mut config, Some(other));
    assert_eq!(code(daemon.cri.create(&id, &config, &pod).await), Code::InvalidArgument);
    daemon.gone(&id).await;
    daemon.finish().await;
}

/// Rows A7 and C4: what Status says of a handler is what it does, with mounts that its program can't map by itself too.
#[tokio::test]
async fn each_handler_has_user_namespaces_as_the_status_says() {
    crate::on_each_handler(async |daemon| {
        // Runtimes walk to the root filesystem as the pod's root.
        std::fs::set_permissions(daemon.dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let request = pb::StatusRequest { verbose: false };
        let status = daemon.cri.runtime.clone().status(request).await.unwrap().into_inner();
        let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
        let mut pod = daemon.pod("users");
        ask(&mut pod, users());
        specs::namespaces(&mut pod).pid = pb::NamespaceMode::Pod.into();
        assert!(default.features.as_ref().unwrap().user_namespaces);
        let id = daemon.cri.run_pod(&pod, "").await.unwrap();
        let volume = tempfile::tempdir().unwrap();
        std::fs::write(volume.path().join("roots"), "data").unwrap();
        let mut main = shared(container("main", &daemon.busybox().await, "exec sleep 4711"));
        main.mounts = vec![pb::Mount {
            container_path: "/volume".into(),
            host_path: volume.path().to_string_lossy().into_owned(),
            uid_mappings: vec![RANGE],
            gid_mappings: vec![RANGE],
            ..Default::default()
        }];
        let main = daemon.started(&id, &pod, &main).await;
        assert_eq!(owner_of(&daemon, "sleep 4711"), 200_000);
        let line = "id -u; stat -c %u /bin /volume/roots; echo x > /volume/mine; touch /new; stat -c %u /new; cat /etc/hostname";
        assert_eq!(daemon.cri.shell(&main, line).await.unwrap(), "0\n0\n0\n0\nusers\n");
        assert_eq!(std::fs::metadata(volume.path().join("mine")).unwrap().uid(), 0);
        daemon.gone(&id).await;
        // On the node's network there is no sysfs to be mounted.
        let mut pod = daemon.pod("hostnet");
        pod.hostname.clear();
        ask(&mut pod, users());
        specs::namespaces(&mut pod).network = pb::NamespaceMode::Node.into();
        let id = daemon.cri.run_pod(&pod, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 4711");
        ask_container(&mut main, users());
        let options = specs::security(&mut main).namespace_options.get_or_insert_default();
        options.network = pb::NamespaceMode::Node.into();
        let main = daemon.started(&id, &pod, &main).await;
        assert_eq!(daemon.cri.shell(&main, "ls /sys/class/net | grep '^lo$'").await.unwrap(), "lo\n");
        daemon.finish().await;
    })
    .await;
}

/// Nobody can make device nodes in a user namespace: the node's own are mounted, wherever the container wants them, with
/// every handler.
#[tokio::test]
async fn devices_are_at_any_path_in_a_pod_with_users_of_its_own() {
    let daemon = Daemon::start().await;
    let mut pod = daemon.pod("devices");
    ask(&mut pod, users());
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let mut config = container("main", &daemon.busybox().await, "exec sleep 1000");
    ask_container(&mut config, users());
    let device = |host: &str, inside: &str, permissions: &str| pb::Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: permissions.into(),
    };
    config.devices = vec![
        device("/dev/zero", "/dev/mine", "rw"),
        device("/dev/zero", "/dev/deep/er", "rw"),
        // One that every container has anyway.
        device("/dev/full", "/dev/full", "rwm"),
        device("/dev/fuse", "/dev/fuse", "rw"),
    ];
    let main = daemon.started(&id, &pod, &config).await;
    let line = "head -c 4 /dev/mine | wc -c; head -c 5 /dev/deep/er | wc -c; stat -c '%t:%T' /dev/mine /dev/fuse; \
                echo x > /dev/full 2>/dev/null || echo full; mknod /dev/other c 1 5 2>/dev/null || echo not made";
    let seen = daemon.cri.shell(&main, line).await.unwrap();
    assert_eq!(seen, "4\n5\n1:5\na:e5\nfull\nnot made\n");
    // A device that is another one than was asked for can't be.
    config.metadata.get_or_insert_default().name = "absent".into();
    config.devices = vec![device("/dev/no-such-device", "/dev/mine", "rw")];
    let error = daemon
        .cri
        .create(&id, &config, &pod)
        .await
        .expect_err("an absent device");
    assert!(error.message().contains("/dev/no-such-device"), "{error}");
    daemon.gone(&id).await;
    daemon.finish().await;
}

/// Servers log to /dev/stderr, and open it anew for that: the pipes must be the container's own.
#[tokio::test]
async fn standard_streams_can_be_opened_again_in_a_user_namespace() {
    let daemon = Daemon::start().await;
    let mut pod = daemon.pod("streams");
    ask(&mut pod, users());
    let id = daemon.cri.run_pod(&pod, "").await.unwrap();
    let image = daemon.busybox().await;
    for (name, user) in [("root", 0), ("other", 1000)] {
        let line = "echo out > /dev/stdout && echo err > /dev/stderr && exec sleep 1000";
        let mut config = container(name, &image, line);
        ask_container(&mut config, users());
        specs::security(&mut config).run_as_user = Some(pb::Int64Value { value: user });
        let main = daemon.started(&id, &pod, &config).await;
        let said = daemon
            .cri
            .shell(&main, "echo again > /dev/stdout; id -u")
            .await
            .unwrap();
        assert_eq!(said, format!("again\n{user}\n"), "{name}");
        let log = daemon.cri.status(&main).await.unwrap().log_path;
        wharf_e2e::eventually("what it wrote is logged", async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.contains("stdout F out\n") && text.contains("stderr F err\n")
        })
        .await;
    }
    daemon.gone(&id).await;
    daemon.finish().await;
}
