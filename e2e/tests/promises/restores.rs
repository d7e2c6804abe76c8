//! What comes back with a container that is restored: from an image too, with its volumes, its user's names and what was
//! bound into it.

use std::path::{Path, PathBuf};

use serde_json::json;
use tonic::Code;
use wharf_e2e::fixtures::storage::{architecture, digest};
use wharf_e2e::{Daemon, container, eventually, specs};
use wharf_proto::cri as pb;

use crate::checkpoint::{checkpoint, restoring};

const COUNT: &str = "i=0; while true; do i=$((i+1)); echo $i >/data/count.new; mv /data/count.new /data/count; \
                     sleep 0.02; done";

async fn info(daemon: &Daemon, id: &str) -> serde_json::Value {
    let request = pb::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let status = daemon.cri.runtime.clone().container_status(request).await.unwrap();
    serde_json::from_str(&status.into_inner().info["info"]).unwrap()
}

/// An OCI layout whose one image has `layer` as its only layer, and the annotation of a checkpoint if `named`.
fn layout(dir: &Path, layer: &Path, named: bool) -> PathBuf {
    let blobs = dir.join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    };
    let typed = |mut blob: serde_json::Value, kind: &str| {
        blob["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        blob
    };
    let layer = put(&std::fs::read(layer).unwrap());
    let config = json!({
        "os": "linux", "architecture": architecture(), "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": typed(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": [typed(layer, "layer.v1.tar")],
    });
    if named {
        manifest["annotations"] = json!({ "io.kubernetes.cri-o.annotations.checkpoint.name": "main" });
    }
    let mut listed = typed(put(manifest.to_string().as_bytes()), "manifest.v1+json");
    listed["annotations"] = json!({ "io.containerd.image.name": "localhost/checkpoint-image:tag1" });
    let index = json!({ "schemaVersion": 2, "manifests": [listed] });
    std::fs::write(dir.join("layout/index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    dir.join("layout")
}

async fn load(daemon: &Daemon, dir: &Path, layer: &Path, named: bool) {
    let layout = layout(dir, layer, named).display().to_string();
    let output = daemon.wharf(&["load", "-i", &layout]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What makes an image a checkpoint is its annotation; then it must hold one.
#[tokio::test]
async fn an_image_is_a_checkpoint_by_its_annotation() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("image");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (content, layer) = (dir.path().join("content"), dir.path().join("layer.tar"));
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), "").unwrap();
    let (layer_text, content_text) = (layer.display().to_string(), content.display().to_string());
    let tar = ["-cf", &layer_text, "-C", &content_text, "file"];
    daemon.lab.output("tar", &tar).await.unwrap();
    load(&daemon, dir.path(), &layer, true).await;
    let main = container("main", "localhost/checkpoint-image:tag1", "true");
    let error = daemon.cri.create(&pod, &main, &config).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(
        error
            .message()
            .contains("checkpoint image localhost/checkpoint-image:tag1")
            && error.message().contains("config.dump"),
        "{error}"
    );
    // It is one after a restart of the daemon too.
    let mut daemon = daemon;
    daemon.crash().await;
    let error = daemon.cri.create(&pod, &main, &config).await.unwrap_err();
    assert!(error.message().contains("config.dump"), "{error}");
    daemon.finish().await;
}

/// A container whose user its image does not know, with a volume that its image declares, a file and a directory bound
/// into it: all of it comes back, from an archive and from an image, after the bound file and directory have gone.
#[tokio::test]
async fn all_that_a_container_had_comes_back() {
    for handler in crate::handlers() {
        let Some(daemon) = restoring(&handler).await else {
            continue;
        };
        let config = daemon.pod("first");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let (file, directory) = (daemon.dir().join("deep/issue"), daemon.dir().join("bound"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "issue").unwrap();
        std::fs::create_dir(&directory).unwrap();
        let mut main = container("main", &daemon.pull("volumes:latest").await, COUNT);
        specs::security(&mut main).run_as_user = Some(pb::Int64Value { value: 1002 });
        specs::security(&mut main).run_as_group = Some(pb::Int64Value { value: 7777 });
        main.mounts = vec![
            specs::mount(file.to_str().unwrap(), "/etc/issue", false),
            specs::mount(directory.to_str().unwrap(), "/bound", false),
        ];
        // The image's own directory belongs to this user.
        let id = daemon.started(&pod, &config, &main).await;
        let count = async |id: &str| -> u64 {
            let text = daemon.cri.shell(id, "cat /data/count").await.unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        eventually("it counts to thirty", async || count(&id).await >= 30).await;
        daemon
            .cri
            .shell(&id, "rm -f /data/link; echo mine >/data/own")
            .await
            .unwrap();
        let archive = daemon.dir().join("c.tar");
        checkpoint(&daemon, &id, &archive, 0)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let made = info(&daemon, &id).await;
        assert!(made["checkpointedAt"].as_str().unwrap().starts_with("20"), "{made}");
        assert_eq!(made["restored"], false);
        daemon.gone(&pod).await;

        load(&daemon, daemon.dir(), &archive, true).await;
        for (number, image) in [archive.to_str().unwrap(), "localhost/checkpoint-image:tag1"]
            .iter()
            .enumerate()
        {
            std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
            std::fs::remove_dir_all(&directory).unwrap();
            let config = daemon.pod(&format!("again-{number}"));
            let pod = daemon.cri.run_pod(&config, "").await.unwrap();
            // Neither the user nor the command need be said again.
            let mut again = container("main", image, "false");
            let error = daemon.cri.create(&pod, &again, &config).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains("/etc/issue"), "{error}");
            again.mounts.clone_from(&main.mounts);
            let id = daemon.started(&pod, &config, &again).await;
            assert!(file.is_file() && directory.is_dir());
            assert!(count(&id).await >= 30, "it began anew");
            let before = count(&id).await;
            eventually("it counts on", async || count(&id).await > before).await;
            let line = "cat /data/own; ls /data/link 2>&1 | grep -c No; stat -c %a:%u:%g /data; id -u; id -g; \
                        grep -c ':7777:' /etc/group";
            assert_eq!(
                daemon.cri.shell(&id, line).await.unwrap(),
                "mine\n1\n2750:1002:1003\n1002\n7777\n1\n"
            );
            let info = info(&daemon, &id).await;
            assert_eq!(info["restored"], true);
            assert_eq!(info["checkpointArchive"], *image);
            assert_eq!(info["checkpointedAt"], made["checkpointedAt"]);
            daemon.gone(&pod).await;
        }
        daemon.finish().await;
    }
}
