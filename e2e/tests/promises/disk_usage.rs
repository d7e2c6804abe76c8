//! What images and containers take on disk, and how it is given back.

use nix::sys::signal::Signal;
use serde_json::Value;
use wharf_e2e::{Daemon, eventually, registry};

async fn df(daemon: &Daemon) -> Value {
    let output = daemon.wharf(&["system", "df", "-o", "json"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A figure of the image with this name.
fn of(usage: &Value, name: &str, key: &str) -> u64 {
    let images = usage["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["names"].to_string().contains(name));
    let image = image.unwrap_or_else(|| panic!("{name} is not told: {usage}"));
    image[key].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_images_share_is_told_apart_from_what_only_one_has() {
    let daemon = Daemon::start().await;
    // "layers" has the layer of "busybox", and twenty-three more.
    daemon.pull("busybox:latest").await;
    let alone = df(&daemon).await;
    assert_eq!(of(&alone, "busybox", "shared"), 0);
    let base = of(&alone, "busybox", "unique");
    assert!(base > 500_000, "{alone}");
    daemon.pull("layers:latest").await;
    let both = df(&daemon).await;
    assert_eq!(
        (of(&both, "busybox", "unique"), of(&both, "busybox", "shared")),
        (0, base)
    );
    assert_eq!(of(&both, "layers", "shared"), base);
    let own = of(&both, "layers", "unique");
    let all: u64 = both["layersBytes"].as_str().unwrap().parse().unwrap();
    assert_eq!(all, base + own, "each layer is on disk once");
    let (_, id) = daemon
        .running("writes", "dd if=/dev/zero of=/file bs=1M count=3; sleep 1000")
        .await;
    eventually("it has written", async || {
        daemon
            .cri
            .shell(&id, "wc -c < /file")
            .await
            .is_ok_and(|text| text == "3145728\n")
    })
    .await;
    let used = df(&daemon).await;
    assert_eq!(of(&used, "busybox", "containers"), 1);
    let bytes: u64 = used["containers"][0]["bytes"].as_str().unwrap().parse().unwrap();
    assert!((3 << 20..4 << 20).contains(&bytes), "{used}");
    for args in [&["system", "df"][..], &["system", "df", "-v"], &["image", "ls"]] {
        let output = daemon.wharf(args).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains("SIZE") && text.lines().count() >= 3,
            "{args:?}: {text}"
        );
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_removal_is_seen_at_once_and_its_files_go_even_if_the_daemon_is_killed() {
    let mut daemon = Daemon::start().await;
    let image = daemon.pull("layers:latest").await;
    daemon.cri.remove_image(&image).await.unwrap();
    assert!(daemon.cri.image(&image).await.unwrap().is_none(), "rule 24");
    daemon.end(Signal::SIGKILL).await.unwrap();
    daemon.start_again().await.unwrap();
    assert!(daemon.cri.image_list().await.unwrap().is_empty());
    let images = daemon.state_dir.join("images");
    let left = |name: &str| std::fs::read_dir(images.join(name)).unwrap().count();
    eventually("all files are gone", async || {
        left("trash") + left("layers") + left("tmp") == 0
    })
    .await;
    // A removal beside a pull of the same takes nothing from it.
    for _ in 0..5 {
        let other = registry::reference("busybox:other-tag");
        let (pulled, removed) = tokio::join!(daemon.cri.pull(&image), daemon.cri.remove_image(&other));
        pulled.unwrap();
        removed.unwrap();
        let (pulled, removed) = tokio::join!(daemon.cri.pull(&other), daemon.cri.remove_image(&image));
        pulled.unwrap();
        removed.unwrap();
        let (pod, id) = daemon.running("whole", "sleep 1000").await;
        assert_eq!(
            daemon.cri.shell(&id, "head -1 /etc/group").await.unwrap(),
            "root:x:0:\n"
        );
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
}
