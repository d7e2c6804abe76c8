//! Rules of the contract between kubelet and a runtime, by number: the daemon's start and end, and what its
//! configuration decides.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use prost::Message as _;
use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, Options, container, http2, logs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn rule_27_pinned_images_are_told_and_removed_all_the_same() {
    let daemon = Daemon::with(Options {
        settings: "pinned_images = ['127.0.0.1:5000/busybox:latest', '*entrypoint*']".into(),
        ..Default::default()
    })
    .await;
    let (exact, keyword) = (
        daemon.pull("busybox:latest").await,
        daemon.pull("entrypoint:latest").await,
    );
    let other = daemon.pull("user-uid:latest").await;
    let pinned = async |reference: &str| daemon.cri.image(reference).await.unwrap().unwrap().pinned;
    assert!(pinned(&exact).await && pinned(&keyword).await);
    assert!(!pinned(&other).await);
    let listed = daemon.cri.image_list().await.unwrap();
    assert_eq!(listed.iter().filter(|image| image.pinned).count(), 2);
    for reference in [&exact, &keyword] {
        daemon.cri.remove_image(reference).await.unwrap();
        assert_eq!(daemon.cri.image(reference).await.unwrap(), None);
    }
    // What a person's container is made of is spared from kubelet's collection as well, while it is there.
    let run = ["run", "-d", "--name", "mine", &other, "sleep", "1000"];
    let output = daemon.wharf(&run).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(pinned(&other).await);
    let output = daemon.wharf(&["rm", "-f", "mine"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!pinned(&other).await);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_31_a_cgroup_parent_is_used_as_the_driver_in_force_reads_it() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    // Kubelet's form for either driver is a path; only the systemd driver would take its last part for a slice's name.
    for parent in ["/wharf/kubepods/podx", "/wharf/kubepods.slice/kubepods-podx.slice"] {
        let mut config = daemon.pod("parent");
        config.linux.get_or_insert_default().cgroup_parent = parent.into();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let id = daemon
            .started(&pod, &config, &container("main", &image, "sleep 1000"))
            .await;
        let wanted = format!("{}/{id}", parent.trim_start_matches('/'));
        let found = daemon.lab.cgroups_below();
        assert!(
            found.iter().any(|dir| dir.ends_with(&wanted)),
            "no cgroup {wanted}: {found:?}"
        );
        daemon.gone(&pod).await;
    }
    let mut config = daemon.pod("unit");
    config.linux.get_or_insert_default().cgroup_parent = "kubepods.slice:wharf:x".into();
    let error = daemon.cri.run_pod(&config, "").await.expect_err("this is no path");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("cgroup_parent"), "{error}");
    // Kubelet removes the cgroups that it makes; these the runtime made.
    for dir in daemon.lab.cgroups_below().into_iter().rev() {
        if dir.to_string_lossy().contains("kubepods") {
            std::fs::remove_dir(dir).unwrap();
        }
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_38_version_is_served_at_once_and_the_rest_is_unavailable_until_lists_are_complete() {
    let mut daemon = Daemon::start().await;
    for name in ["one", "two", "three"] {
        daemon.running(name, "sleep 1000").await;
    }
    daemon.end(Signal::SIGKILL).await.unwrap();
    // Reading this one record takes until somebody writes it.
    let unfinished = daemon.state_dir.join("pods").join("e".repeat(64));
    std::fs::create_dir(&unfinished).unwrap();
    let record = unfinished.join("record");
    nix::unistd::mkfifo(&record, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let (config, image) = (daemon.pod("early"), "127.0.0.1:5000/busybox:latest");
    daemon
        .start_again_with(async |cri| {
            let mut runtime = cri.runtime.clone();
            let version = runtime.version(pb::VersionRequest::default()).await.unwrap();
            assert_eq!(version.into_inner().runtime_name, "wharf");
            assert_eq!(code(cri.pods(None).await), Code::Unavailable);
            assert_eq!(code(cri.containers(None).await), Code::Unavailable);
            assert_eq!(code(cri.run_pod(&config, "").await), Code::Unavailable);
            assert_eq!(code(cri.image(image).await), Code::Unavailable);
            let status = runtime.status(pb::StatusRequest { verbose: false }).await;
            assert_eq!(code(status), Code::Unavailable);
            let mut writer = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(record))
                .await
                .unwrap()
                .unwrap();
            writer.write_all(b"no record").unwrap();
            drop(writer);
            // The first answer is complete.
            let end = std::time::Instant::now() + wharf_e2e::PATIENCE;
            let pods = loop {
                match cri.pods(None).await {
                    Ok(pods) => break pods,
                    Err(status) => assert_eq!(status.code(), Code::Unavailable),
                }
                assert!(std::time::Instant::now() < end, "still not recovered");
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(pods.len(), 3, "{pods:?}");
            let containers = cri.containers(None).await.unwrap();
            assert_eq!(containers.len(), 3);
            for one in containers {
                assert_eq!(one.state(), pb::ContainerState::ContainerRunning);
            }
        })
        .await
        .unwrap();
    daemon.finish().await;
}

/// At a node's shutdown systemd stops units in the reverse of their order, so kubelet, which holds a delay lock and stops
/// its pods first, must be ordered after its runtime.
#[tokio::test]
async fn rule_40_the_unit_stops_after_kubelet_and_what_is_under_way_is_finished() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/wharf.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    for (key, word) in [
        ("Before", "kubelet.service"),
        ("KillMode", "process"),
        ("Type", "notify"),
    ] {
        let mut values = unit
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        assert!(
            values.any(|value| value.split(' ').any(|found| found == word)),
            "{key}={word} is not in deploy/wharf.service"
        );
    }
    let mut daemon = Daemon::start().await;
    let config = daemon.pod("shutdown");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "trap 'sleep 1; echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    let logged = async |text: &str| {
        wharf_e2e::eventually("it is logged", async || {
            logs::text(&path, "stdout").is_ok_and(|found| found == text)
        })
        .await;
    };
    logged("ready\n").await;
    let (cri, stopping) = (daemon.cri.clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop(&stopping, 30).await });
    wharf_e2e::eventually("the stop is under way", async || daemon.log().contains("stop signal")).await;
    assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
    stop.await.unwrap().unwrap();
    logged("ready\nbye\n").await;
    daemon.start_again().await.unwrap();
    let status = daemon.cri.exited(&id).await.unwrap();
    assert_eq!(status.exit_code, 7);
    daemon.finish().await;
}

/// A client in the middle of writing when the last answer comes (a PING that measures the way, as grpc-go sends with each
/// answer) must find an open connection: else it takes the connection for broken, and the answer with it.
#[tokio::test]
async fn the_end_waits_for_clients_that_still_write() {
    let mut daemon = Daemon::start().await;
    let config = daemon.pod("late");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "trap 'sleep 1; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    let path = logs::path(&config, &main);
    wharf_e2e::eventually("the trap is set", async || {
        logs::text(&path, "stdout").is_ok_and(|found| found == "ready\n")
    })
    .await;
    let request = pb::StopContainerRequest {
        container_id: id.clone(),
        timeout: 30,
    };
    let (socket, request) = (daemon.socket.clone(), request.encode_to_vec());
    let call = move || http2::last_call(&socket, "/runtime.v1.RuntimeService/StopContainer", &request);
    let call = tokio::task::spawn_blocking(move || call().map_err(|error| error.to_string()));
    wharf_e2e::eventually("the stop is under way", async || daemon.log().contains("stop signal")).await;
    assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
    let whole = http2::Last {
        body: vec![0; 5],
        ended: true,
        farewell: true,
    };
    assert_eq!(call.await.unwrap(), Ok(whole));
    daemon.start_again().await.unwrap();
    assert_eq!(daemon.cri.exited(&id).await.unwrap().exit_code, 7);
    daemon.finish().await;
}
