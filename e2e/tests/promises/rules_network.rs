//! Rules of the contract between kubelet and a runtime, by number: the network of a pod.

use std::path::Path;

use wharf_e2e::power::RunDir;
use wharf_e2e::{Daemon, Options, eventually, specs};
use wharf_proto::cri as pb;

use crate::network::with_plugin;

/// A plugin that notes every call in `calls`, fails ADD and DEL while `fail-add` and `fail-del` are there, and gives an
/// IPv6 address before an IPv4 one.
fn plugin(dir: &Path) -> String {
    let script = r#"cat >/dev/null
echo "$CNI_COMMAND [$CNI_NETNS] $CNI_CONTAINERID" >> DIR/calls
fail() { echo '{"cniVersion":"1.0.0","code":100,"msg":"out of cheese"}'; exit 1; }
case $CNI_COMMAND in
ADD)
    [ -e DIR/fail-add ] && fail
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[
      {"address":"fd09::2/64","interface":0},{"address":"10.9.0.2/24","interface":0},{"address":"10.9.0.3/24","interface":0}]}' ;;
DEL) [ -e DIR/fail-del ] && fail ;;
esac
exit 0"#;
    script.replace("DIR", &dir.to_string_lossy())
}

/// What the plugin was called with for that pod, the words `DEL []` for a namespace that is gone.
fn calls(dir: &Path, pod: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Some(line.strip_suffix(pod)?.trim().to_owned()))
        .collect()
}

#[tokio::test]
async fn rule_09_a_teardown_that_fails_is_an_error_until_it_works_and_a_vanished_namespace_is_deleted_too() {
    let dir = tempfile::tempdir().unwrap();
    let switch = |name: &str, on: bool| match on {
        true => std::fs::write(dir.path().join(name), "").unwrap(),
        false => std::fs::remove_file(dir.path().join(name)).unwrap(),
    };
    let daemon = with_plugin(dir.path(), &plugin(dir.path()), 10).await;
    let cri = &daemon.cri;

    let pod = cri.run_pod(&daemon.pod("failing"), "").await.unwrap();
    switch("fail-del", true);
    for _ in 0..2 {
        let error = cri.stop_pod(&pod).await.expect_err("the plugin fails");
        assert!(error.message().contains("out of cheese"), "{error}");
        let status = cri.pod_status(&pod).await.unwrap();
        assert_eq!(status.state(), pb::PodSandboxState::SandboxNotready);
    }
    cri.remove_pod(&pod)
        .await
        .expect_err("what is not torn down is not removed");
    switch("fail-del", false);
    cri.stop_pod(&pod).await.unwrap();
    let seen = calls(dir.path(), &pod).len();
    assert!(seen >= 5, "ADD and four times DEL: {:?}", calls(dir.path(), &pod));
    cri.stop_pod(&pod).await.unwrap();
    assert_eq!(calls(dir.path(), &pod).len(), seen, "what is torn down stays so");

    // Somebody has unmounted the namespace.
    let pod = cri.run_pod(&daemon.pod("vanished"), "").await.unwrap();
    let pin = daemon.run_dir.join("pods").join(&pod).join("ns/net");
    daemon.lab.output("umount", &[&pin.to_string_lossy()]).await.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    assert_eq!(calls(dir.path(), &pod).last().unwrap(), "DEL []");

    // Never set up: on the node's network, and refused before the network came.
    switch("fail-del", true);
    let pod = cri
        .run_pod(&specs::host_network_pod("host", &daemon.logs), "")
        .await
        .unwrap();
    daemon.gone(&pod).await;
    assert!(calls(dir.path(), &pod).is_empty());
    let before = std::fs::read_to_string(dir.path().join("calls")).unwrap();
    let mut refused = daemon.pod("refused");
    let linux = refused.linux.get_or_insert_default();
    linux.sysctls.insert("kernel.panic".into(), "1".into());
    cri.run_pod(&refused, "").await.expect_err("this sysctl is the node's");
    assert_eq!(std::fs::read_to_string(dir.path().join("calls")).unwrap(), before);

    // An ADD that failed may have done half of its work: its DEL is due, and is asked for until it works.
    switch("fail-add", true);
    cri.run_pod(&daemon.pod("half"), "")
        .await
        .expect_err("the plugin fails");
    let left = cri.pods(None).await.unwrap();
    let half = left.iter().find(|pod| pod.metadata.as_ref().unwrap().name == "half");
    let half = half.expect("what could not be taken down is listed").id.clone();
    cri.remove_pod(&half).await.expect_err("the plugin fails");
    switch("fail-del", false);
    daemon.gone(&half).await;
    daemon.finish().await;
}

/// The pod's first address and the others.
async fn addresses(daemon: &Daemon, pod: &str) -> (String, Vec<String>) {
    let network = daemon.cri.pod_status(pod).await.unwrap().network.unwrap();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip).collect();
    (network.ip, more)
}

#[tokio::test]
async fn rule_12_the_first_address_is_of_the_preferred_family_and_the_rest_are_additional() {
    let both = |preference: &str| Options {
        settings: format!("ip_preference = '{preference}'"),
        tables: "[builtin_network]\nsubnet_v6 = 'fd00:121::/64'".into(),
        ..Default::default()
    };
    for (preference, first_is_v6) in [("ipv4", false), ("ipv6", true)] {
        let daemon = Daemon::with(both(preference)).await;
        let pod = daemon.cri.run_pod(&daemon.pod("dual"), "").await.unwrap();
        let (first, more) = addresses(&daemon, &pod).await;
        assert_eq!(first.contains(':'), first_is_v6, "{preference}: {first} {more:?}");
        assert_eq!(more.len(), 1);
        assert_eq!(more[0].contains(':'), !first_is_v6, "{preference}: {first} {more:?}");
        daemon.finish().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = with_plugin(dir.path(), &plugin(dir.path()), 10).await;
    let pod = daemon.cri.run_pod(&daemon.pod("plugin"), "").await.unwrap();
    let (first, more) = addresses(&daemon, &pod).await;
    // The default, whatever the plugin names first; within a family the plugin's order.
    assert_eq!(first, "10.9.0.2");
    assert_eq!(more, ["10.9.0.3", "fd09::2"]);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_08_a_pod_of_an_earlier_boot_is_listed_and_its_network_is_torn_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = with_plugin(dir.path(), &plugin(dir.path()), 10).await;
    let (pod, id) = daemon.running("reboot", "sleep 1000").await;
    daemon.reboot(RunDir::Tmpfs).await.unwrap();

    let status = daemon.cri.pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), pb::PodSandboxState::SandboxNotready);
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    eventually("the plugin is told, without a namespace", async || {
        calls(dir.path(), &pod).last().is_some_and(|call| call == "DEL []")
    })
    .await;
    daemon.cri.stop_pod(&pod).await.unwrap();
    assert_eq!(calls(dir.path(), &pod).len(), 2, "it was told");
    daemon.finish().await;
}
