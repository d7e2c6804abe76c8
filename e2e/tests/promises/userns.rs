//! Pods with a user namespace: who is who inside and outside.

use std::os::unix::fs::MetadataExt;

use tonic::Code;
use wharf_e2e::{Daemon, Options, container, cri::code};
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

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason() {
    let daemon = Daemon::start().await;
    let mut two = users().unwrap();
    two.uids.push(RANGE);
    let mut pod = daemon.pod("two");
    ask(&mut pod, Some(two));
    assert_eq!(code(daemon.cri.run_pod(&pod, "").await), Code::InvalidArgument);
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

    let daemon = Daemon::with(Options::handler("runc")).await;
    let mut pod = daemon.pod("runc");
    ask(&mut pod, users());
    let error = daemon.cri.run_pod(&pod, "runc").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("user namespaces"), "{error:?}");
    daemon.finish().await;
}
