//! `wharf fsck`: each kind of damage is found and named, a repair moves it aside, and a pull makes good what is lost.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;
use wharf_e2e::{Daemon, container, eventually};

/// Runs `wharf fsck`; returns its exit code and its findings.
pub(crate) async fn fsck(daemon: &Daemon, args: &[&str]) -> (i32, Vec<Value>) {
    let config = daemon.config.display().to_string();
    let mut line = vec!["--config", config.as_str(), "fsck", "-o", "json"];
    line.extend(args);
    let output = daemon.wharf(&line).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    (output.status.code().unwrap(), findings)
}

async fn nothing_is_wrong(daemon: &Daemon, args: &[&str]) {
    let (code, findings) = fsck(daemon, args).await;
    assert_eq!((code, findings.as_slice()), (0, &[][..]));
}

/// The only directory in `dir`.
fn only(dir: &Path) -> PathBuf {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0x55;
    // In place, as a disk does it: times as they were.
    let times = std::fs::metadata(file).unwrap().modified().unwrap();
    let open = std::fs::File::options().write(true).open(file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open, &bytes, 0).unwrap();
    open.set_times(std::fs::FileTimes::new().set_modified(times)).unwrap();
}

/// A damage, where it is, and what is told of it.
type Damage = (&'static str, fn(&Path), &'static str, &'static str);

/// Damages of an image of one layer; each gets the layer's directory.
const LAYER: &[Damage] = &[
    (
        "content of a file",
        |layer| flip(&layer.join("fs/etc/passwd"), 3),
        "layer",
        "digest",
    ),
    ("recipe", |layer| flip(&layer.join("recipe"), 400), "layer", ""),
    (
        "no recipe",
        |layer| std::fs::remove_file(layer.join("recipe")).unwrap(),
        "layer",
        "",
    ),
    (
        "missing file",
        |layer| std::fs::remove_file(layer.join("fs/etc/group")).unwrap(),
        "layer",
        "etc/group",
    ),
    (
        "file in addition",
        |layer| std::fs::write(layer.join("fs/etc/more"), "x").unwrap(),
        "layer",
        "/etc/more\" is not of the layer",
    ),
    (
        "mode of a file",
        |layer| std::fs::set_permissions(layer.join("fs/etc/passwd"), PermissionsExt::from_mode(0o4666)).unwrap(),
        "layer",
        "has mode 4666 instead of 644",
    ),
    (
        "owner of a directory",
        |layer| std::os::unix::fs::chown(layer.join("fs/root"), Some(7), Some(8)).unwrap(),
        "layer",
        "belongs to 7:8 instead of 0:0",
    ),
    (
        "record cut short",
        |layer| std::fs::write(layer.join("record"), [0x08, 1, 0x12, 60]).unwrap(),
        "layer",
        "read record",
    ),
    (
        "no record",
        |layer| std::fs::remove_file(layer.join("record")).unwrap(),
        "layer",
        "no record",
    ),
];

#[tokio::test]
async fn a_damaged_layer_is_found_moved_aside_and_pulled_again_while_the_daemon_runs() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    nothing_is_wrong(&daemon, &[]).await;
    for (what, damage, kind, told) in LAYER {
        let layers = daemon.state_dir.join("images/layers");
        damage(&only(&layers));
        let (code, findings) = fsck(&daemon, &[]).await;
        assert_eq!((code, findings.len()), (2, 1), "{what}: {findings:?}");
        assert_eq!(findings[0]["kind"], *kind, "{what}");
        let problem = findings[0]["problem"].as_str().unwrap();
        assert!(problem.contains(told), "{what}: {problem}");
        if !told.contains("record") {
            let advice = findings[0]["advice"].as_str().unwrap();
            assert!(advice.contains(&format!("wharf pull {image}")), "{what}: {advice}");
        }
        let (code, findings) = fsck(&daemon, &["--repair"]).await;
        assert_eq!(code, 1, "{what}: {findings:?}");
        let repaired = findings[0]["repaired"].as_str().unwrap();
        assert!(repaired.contains("set-aside"), "{what}: {repaired}");
        assert!(
            daemon.cri.image(&image).await.unwrap().is_none(),
            "{what}: it is not whole"
        );
        nothing_is_wrong(&daemon, &[]).await;
        daemon.pull("busybox:latest").await;
        nothing_is_wrong(&daemon, &[]).await;
    }
    let kept = std::fs::read_dir(daemon.state_dir.join("set-aside")).unwrap().count();
    assert!(kept >= 2 * LAYER.len() - 1, "nothing is deleted: {kept}");
    daemon.finish().await;
}

#[tokio::test]
async fn a_layer_that_a_container_runs_on_stays_until_its_end_and_a_pull_brings_another() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("user", "sleep 1000").await;
    flip(&only(&daemon.state_dir.join("images/layers")).join("fs/etc/group"), 2);
    let (code, findings) = fsck(&daemon, &["--repair"]).await;
    assert_eq!(code, 1, "{findings:?}");
    assert!(
        findings[0]["repaired"].as_str().unwrap().contains("until they end"),
        "{findings:?}"
    );
    assert_eq!(daemon.cri.shell(&id, "echo on").await.unwrap(), "on\n");
    daemon.pull("busybox:latest").await;
    // Without metadata it is that of any pod.
    let config = wharf_proto::cri::PodSandboxConfig::default();
    let image = daemon.busybox().await;
    let second = daemon
        .started(&pod, &config, &container("second", &image, "sleep 1000"))
        .await;
    assert_eq!(
        daemon.cri.shell(&second, "head -1 /etc/group").await.unwrap(),
        "root:x:0:\n"
    );
    daemon.gone(&pod).await;
    eventually("the damaged layer goes with its last user", async || {
        std::fs::read_dir(daemon.state_dir.join("images/layers"))
            .unwrap()
            .count()
            == 1
    })
    .await;
    nothing_is_wrong(&daemon, &[]).await;
    daemon.finish().await;
}

#[tokio::test]
async fn damaged_images_and_strange_files_are_found_with_and_without_a_daemon() {
    let mut daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let records = daemon.state_dir.join("images/records");
    let record = |name: &str| only(&records).join(name);
    let files: Vec<String> = std::fs::read_dir(record("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(files.len() >= 3, "record, configuration and manifest: {files:?}");
    for file in &files {
        flip(&record(file), 9);
        let (code, findings) = fsck(&daemon, &["--repair"]).await;
        assert_eq!((code, findings.len()), (1, 1), "{file}: {findings:?}");
        assert_eq!(findings[0]["kind"], "image", "{file}");
        daemon.pull("busybox:latest").await;
        nothing_is_wrong(&daemon, &[]).await;
    }
    let strange = [
        daemon.state_dir.join("notes.txt"),
        daemon.state_dir.join("pods/notes.txt"),
        daemon.state_dir.join("images/layers/notes.txt"),
        daemon.state_dir.join("images/records/notes"),
        only(&daemon.state_dir.join("images/layers")).join("notes"),
    ];
    for path in &strange {
        std::fs::write(path, "somebody's").unwrap();
    }
    let lease = daemon.state_dir.join("ipam/wharf0/10.88.0.77");
    std::fs::write(&lease, "nobody ").unwrap();
    std::fs::create_dir_all(daemon.run_dir.join("pods/gone/ns")).unwrap();
    let pods = daemon.state_dir.join("pods");
    std::fs::set_permissions(&pods, PermissionsExt::from_mode(0o777)).unwrap();
    daemon.end(Signal::SIGTERM).await.unwrap();
    let (code, findings) = fsck(&daemon, &["--offline"]).await;
    assert_eq!((code, findings.len()), (2, strange.len() + 3), "{findings:?}");
    let (code, findings) = fsck(&daemon, &["--offline", "--repair"]).await;
    assert_eq!(code, 1, "{findings:?}");
    nothing_is_wrong(&daemon, &["--offline"]).await;
    assert!(!lease.exists() && strange.iter().all(|path| !path.exists()));
    let aside = std::fs::read_dir(daemon.state_dir.join("set-aside")).unwrap();
    let kept = aside.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        std::fs::read_to_string(path).is_ok_and(|text| text == "somebody's")
    });
    assert_eq!(kept.count(), strange.len(), "what somebody wrote is kept");

    // Without a daemon a damaged image is set aside as well; with one that runs nobody else looks.
    flip(&record("config"), 9);
    let (code, findings) = fsck(&daemon, &["--offline", "--repair"]).await;
    assert_eq!((code, findings.len()), (1, 1), "{findings:?}");
    daemon.start_again().await.unwrap();
    assert!(daemon.cri.image(&image).await.unwrap().is_none());
    let output = daemon
        .wharf(&["--config", daemon.config.to_str().unwrap(), "fsck", "--offline"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && said.contains("in use by another wharf daemon"),
        "{said}"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn what_belongs_to_no_pod_is_found_and_what_pods_need_is_left() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("whole", "sleep 1000").await;
    nothing_is_wrong(&daemon, &[]).await;
    // A mount in the place of a container that is not there, and a cgroup.
    let gone = "0".repeat(64);
    let mount = daemon.state_dir.join("pods").join(&pod).join("containers/gone/rootfs");
    std::fs::create_dir_all(&mount).unwrap();
    let point = mount.display().to_string();
    daemon
        .lab
        .output("mount", &["-t", "tmpfs", "none", &point])
        .await
        .unwrap();
    for hierarchy in &daemon.lab.cgroups {
        let parent = hierarchy.join("wharf");
        if parent.is_dir() {
            std::fs::create_dir(parent.join(&gone)).unwrap();
        }
    }
    let (code, findings) = fsck(&daemon, &[]).await;
    let kinds: Vec<_> = findings
        .iter()
        .map(|finding| finding["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        (code, kinds.as_slice()),
        (2, &["container", "cgroup"][..]),
        "{findings:?}"
    );
    let (code, findings) = fsck(&daemon, &["--repair"]).await;
    assert_eq!(code, 1, "{findings:?}");
    nothing_is_wrong(&daemon, &[]).await;
    // Stopped, and its pods run on: nothing of theirs is taken for nobody's.
    daemon.end(Signal::SIGTERM).await.unwrap();
    nothing_is_wrong(&daemon, &["--offline"]).await;
    let record = daemon
        .state_dir
        .join("pods")
        .join(&pod)
        .join("containers")
        .join(&id)
        .join("exit");
    std::fs::write(&record, [0xff; 4]).unwrap();
    let (code, findings) = fsck(&daemon, &["--offline"]).await;
    assert_eq!((code, findings.len()), (2, 1), "{findings:?}");
    assert!(
        findings[0]["problem"].as_str().unwrap().contains("how it ended"),
        "{findings:?}"
    );
    std::fs::remove_file(&record).unwrap();
    daemon.start_again().await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_layer_record_that_is_lost_is_made_again_at_the_start_and_a_lost_image_is_kept_aside() {
    let mut daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    let record = only(&daemon.state_dir.join("images/layers")).join("record");
    let before = std::fs::read(&record).unwrap();
    std::fs::write(&record, &before[..before.len() / 2]).unwrap();
    daemon.start_again().await.unwrap();
    assert!(daemon.cri.image(&image).await.unwrap().is_some(), "its layer is whole");
    assert_eq!(std::fs::read(&record).unwrap(), before);
    nothing_is_wrong(&daemon, &[]).await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    let record = only(&daemon.state_dir.join("images/records")).join("record");
    std::fs::write(&record, b"").unwrap();
    daemon.start_again().await.unwrap();
    assert!(daemon.cri.image(&image).await.unwrap().is_none());
    let aside = only(&daemon.state_dir.join("set-aside"));
    assert!(aside.join("config").is_file(), "its record is kept");
    daemon.pull("busybox:latest").await;
    daemon.finish().await;
}
