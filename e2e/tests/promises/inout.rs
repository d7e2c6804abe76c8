//! Images given names, looked into, and moved between the node and the world.

use std::process::Output;

use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, container};

async fn wharf(daemon: &Daemon, args: &[&str]) -> (bool, String) {
    let run = daemon.wharf(args).output();
    let output: Output = tokio::time::timeout(wharf_e2e::PATIENCE * 2, run)
        .await
        .unwrap_or_else(|_| panic!("wharf {args:?} does not end"))
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_tag_names_an_image_for_containers_too_and_moves_from_one_to_another() {
    let daemon = Daemon::start().await;
    let busybox = daemon.busybox().await;
    let layers = daemon.pull("layers:latest").await;
    let id = async |name: &str| daemon.cri.image(name).await.unwrap().map(|image| image.id);
    let (done, text) = wharf(&daemon, &["tag", &busybox, "mine/app:v1"]).await;
    assert!(done && text.contains("docker.io/mine/app:v1"), "{text}");
    assert_eq!(id("mine/app:v1").await, id(&busybox).await);
    let config = daemon.pod("tagged");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    daemon
        .started(&pod, &config, &container("main", "mine/app:v1", "sleep 1000"))
        .await;
    let (done, text) = wharf(&daemon, &["tag", &layers, "docker.io/mine/app:v1"]).await;
    assert!(done, "{text}");
    assert_eq!(id("mine/app:v1").await, id(&layers).await);
    for (args, reason) in [
        (["tag", "absent", "x"], "no image \"absent\""),
        (["tag", busybox.as_str(), "UPPER/case/x:!"], "not valid"),
    ] {
        let (done, text) = wharf(&daemon, &args).await;
        assert!(!done && text.contains(reason), "{text}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn history_lists_every_layer() {
    let daemon = Daemon::start().await;
    let image = daemon.pull("layers:latest").await;
    let (done, text) = wharf(&daemon, &["history", &image]).await;
    assert!(done && text.lines().count() > 2, "{text}");
    let (done, text) = wharf(&daemon, &["history", &reference("absent")]).await;
    assert!(!done && text.contains("no image"), "{text}");
    daemon.finish().await;
}
