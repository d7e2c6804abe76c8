//! Files in registries that are no images, and volumes of them.

use serde_json::json;
use wharf_e2e::{
    Daemon, Options, container,
    cri::image_spec,
    fixtures::storage::{Storage, digest},
    registry::WRITABLE,
};
use wharf_proto::cri as pb;

use crate::archives::{refused, skopeo_copy, wharf};
use crate::volumes::image_mount;

const KIND: &str = "application/vnd.example.model.v1";

/// Publishes an artifact of `files` and returns its manifest's digest.
fn publish(storage: &Storage, name: &str, files: &[(&str, &[u8])], subject: Option<&str>) -> String {
    storage.blob(name, b"{}").unwrap();
    let layers: Vec<_> = files
        .iter()
        .map(|(title, content)| {
            storage.blob(name, content).unwrap();
            json!({"mediaType": "application/octet-stream", "digest": digest(content), "size": content.len(),
                "annotations": {"org.opencontainers.image.title": title}})
        })
        .collect();
    let mut manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": KIND, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2}});
    if let Some(subject) = subject {
        manifest["subject"] =
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject, "size": 7});
    }
    storage
        .manifest(name, Some("v1"), manifest.to_string().as_bytes())
        .unwrap()
        .digest
}

async fn writable() -> (Daemon, Storage) {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await;
    let storage = Storage::new(&daemon.dir().join("pushed"));
    (daemon, storage)
}

#[tokio::test]
async fn an_artifact_is_pulled_listed_mounted_with_sub_paths_and_removed() {
    let (mut daemon, storage) = writable().await;
    let weights: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let long = "deep/".repeat(30) + "file.txt";
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{\"a\":1}"),
        ("weights/part-1.bin", &weights),
        ("weights/empty", b""),
        (&long, b"far down"),
    ];
    let id = publish(&storage, "model", &files, None);
    let name = format!("{WRITABLE}/model:v1");
    assert_eq!(
        daemon.cri.pull(&name).await.unwrap(),
        id,
        "the id is the manifest's digest"
    );
    let listed = daemon.cri.image(&name).await.unwrap().unwrap();
    assert_eq!((&listed.id, &listed.repo_tags), (&id, &vec![name.clone()]));
    assert_eq!(listed.repo_digests, [format!("{WRITABLE}/model@{id}")]);
    let total: usize = files.iter().map(|(_, content)| content.len()).sum();
    assert_eq!(listed.size, total as u64 + 2);
    let output = daemon.wharf(&["images"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("{WRITABLE}/model")));
    let output = daemon.wharf(&["fsck"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    let sandbox = daemon.pod("model");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let mut config = container("main", &daemon.busybox().await, "sleep 1000");
    config.mounts = vec![
        image_mount(&name, "/model", ""),
        // Read-only by definition, whether it is said or not.
        pb::Mount {
            readonly: false,
            ..image_mount(&id, "/weights", "weights")
        },
    ];
    let main = daemon.started(&pod, &sandbox, &config).await;
    let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
    let sum = digest(&weights).trim_start_matches("sha256:").to_owned();
    assert!(
        shell("sha256sum /weights/part-1.bin /model/weights/part-1.bin")
            .await
            .matches(&sum)
            .count()
            == 2
    );
    assert_eq!(
        shell(&format!("cat /model/config.json /weights/empty /model/{long}")).await,
        "{\"a\":1}far down"
    );
    for new in ["/model/new", "/weights/new"] {
        assert!(daemon.cri.shell(&main, &format!("touch {new}")).await.is_err());
    }
    // It is there after a restart, cannot be run, and a file of it is no directory.
    daemon.end(nix::sys::signal::Signal::SIGTERM).await.unwrap();
    daemon.start_after_end().await.unwrap();
    config.metadata.get_or_insert_default().name = "run".into();
    config.image = Some(image_spec(&name));
    config.mounts.clear();
    let error = daemon.cri.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(
        error.message().contains(KIND) && error.message().contains("not run"),
        "{error:?}"
    );
    config.image = Some(image_spec(&daemon.busybox().await));
    config.mounts = vec![image_mount(&name, "/file", "config.json")];
    let error = daemon.cri.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(error.message().contains("not a directory"), "{error:?}");

    let output = daemon.wharf(&["rmi", &name]).output().await.unwrap();
    assert!(output.status.success());
    assert!(daemon.cri.image(&id).await.unwrap().is_none());
    assert_eq!(
        daemon.cri.shell(&main, "cat /model/config.json").await.unwrap(),
        "{\"a\":1}"
    );
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn an_artifact_is_pushed_as_it_came_and_told_to_what_it_refers() {
    let (daemon, storage) = writable().await;
    let image = daemon.busybox().await;
    let first = format!("{WRITABLE}/team/app:v1");
    let output = daemon.wharf(&["push", &image, &first]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let known = daemon.cri.image(&image).await.unwrap().unwrap();
    let prefix = format!("{WRITABLE}/team/app@");
    let subject = known
        .repo_digests
        .iter()
        .find_map(|one| one.strip_prefix(&prefix))
        .unwrap()
        .to_owned();
    let ids = [
        publish(&storage, "bills/one", &[("bill.json", b"[1]")], Some(&subject)),
        publish(&storage, "bills/two", &[("bill.json", b"[2]")], Some(&subject)),
    ];
    for (number, id) in ["one", "two"].into_iter().zip(&ids) {
        let name = format!("{WRITABLE}/bills/{number}:v1");
        assert_eq!(daemon.cri.pull(&name).await.unwrap(), *id);
        let target = format!("{WRITABLE}/team/app:bill-{number}");
        for _ in 0..2 {
            let output = daemon.wharf(&["push", &name, &target]).output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(
            daemon.cri.pull(&target).await.unwrap(),
            *id,
            "byte for byte the same manifest"
        );
    }
    // This registry does not answer what refers to a manifest: a tag does.
    let tag = subject.replacen(':', "-", 1);
    let index = daemon
        .dir()
        .join("pushed/docker/registry/v2/repositories/team/app/_manifests/tags")
        .join(tag);
    let link = std::fs::read_to_string(index.join("current/link")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(storage.blob_path(&link)).unwrap()).unwrap();
    let listed: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["digest"].clone())
        .collect();
    assert_eq!(listed, ids);
    assert_eq!(index["manifests"][0]["artifactType"], KIND);
    let output = daemon
        .wharf(&["save", "-o", "/dev/null", &format!("{WRITABLE}/bills/one:v1")])
        .output()
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("an OCI layout has artifacts too"));
    daemon.finish().await;
}

#[tokio::test]
async fn hostile_artifacts_are_refused_and_leave_nothing() {
    let (daemon, storage) = writable().await;
    for (number, (title, reason)) in [
        ("../../etc/cron.d/x", "relative path"),
        ("/etc/passwd", "relative path"),
        (".wh..wh..opq", "something else in a layer"),
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("bad{number}");
        publish(&storage, &repository, &[(title, b"x")], None);
        let error = daemon
            .cri
            .pull(&format!("{WRITABLE}/{repository}:v1"))
            .await
            .unwrap_err();
        assert!(error.message().contains(reason), "{error:?}");
    }
    // A file that is not what its digest says.
    let id = publish(&storage, "lie", &[("a", b"promised"), ("b", b"as well")], None);
    std::fs::write(storage.blob_path(&digest(b"promised")), b"delivere").unwrap();
    let error = daemon.cri.pull(&format!("{WRITABLE}/lie:v1")).await.unwrap_err();
    assert!(error.message().contains("not what was promised"), "{error:?}");
    assert!(daemon.cri.image(&id).await.unwrap().is_none());
    daemon.finish().await;
}

/// What a shell line writes, run here.
fn made(line: &str) -> Vec<u8> {
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{line}: {output:?}"
    );
    output.stdout
}

#[tokio::test]
async fn an_artifact_goes_out_as_a_layout_and_comes_back_also_by_way_of_other_tools() {
    let (daemon, storage) = writable().await;
    let (chart, note) = (made("tar -C /etc -cz hostname"), made("echo hello | gzip -c"));
    let plain = made("tar -C /etc -c hostname");
    let files: [(&str, &[u8]); 4] = [
        ("chart.tgz", &chart),
        ("plain.tar", &plain),
        ("deep/note.gz", &note),
        ("noise", &[9; 300_000]),
    ];
    let id = publish(&storage, "goods", &files, None);
    let name = format!("{WRITABLE}/goods:v1");
    assert_eq!(daemon.cri.pull(&name).await.unwrap(), id);
    let at = |name: &str| daemon.dir().join(name).to_string_lossy().into_owned();
    let (layout, archive, copied) = (at("layout"), at("goods.tar"), at("copied"));
    std::fs::create_dir(&layout).unwrap();
    wharf(&daemon, &["save", "-o", &layout, &name]).await;
    wharf(&daemon, &["save", "--format", "oci", "-o", &archive, &name]).await;
    let text = refused(&daemon, &["save", "-o", &at("x"), &name]).await;
    assert!(text.contains("OCI layout"), "{text}");
    skopeo_copy(&daemon, &format!("oci:{layout}:v1"), &format!("oci:{copied}:{name}")).await;
    let sandbox = daemon.pod("goods");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let busybox = daemon.busybox().await;
    for (number, source) in [&layout, &archive, &copied].into_iter().enumerate() {
        daemon.cri.remove_image(&id).await.unwrap();
        assert_eq!(
            wharf(&daemon, &["load", "-q", "-i", source]).await.trim(),
            id,
            "{source}"
        );
        let mut config = container(&format!("main-{number}"), &busybox, "sleep 1000");
        config.mounts = vec![image_mount(&name, "/goods", "")];
        let main = daemon.started(&pod, &sandbox, &config).await;
        for (title, content) in files {
            let sum = daemon
                .cri
                .shell(&main, &format!("sha256sum /goods/{title}"))
                .await
                .unwrap();
            assert!(
                sum.starts_with(digest(content).trim_start_matches("sha256:")),
                "{source} {title}: {sum}"
            );
        }
        daemon.cri.stop(&main, 0).await.unwrap();
        daemon.cri.remove(&main).await.unwrap();
    }
    daemon.gone(&pod).await;
    daemon.finish().await;
}
