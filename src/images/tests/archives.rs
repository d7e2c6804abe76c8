//! Archives of images: what is honest comes in, what is not leaves no trace.

use serde_json::json;

use super::super::{
    Format, Loaded, Result,
    registry::digest_of,
    testing::{Lab, Reply, Server, small},
    unpack::tests::{Head, Tar},
};

/// Loads `bytes` in pieces of `step`.
async fn load_in(lab: &Lab, bytes: &[u8], step: usize) -> Result<Vec<Loaded>> {
    let (inflow, work) = lab.images.load();
    let feed = async {
        for piece in bytes.chunks(step) {
            if !inflow.send(piece.to_vec().into()).await {
                return;
            }
        }
        inflow.end().await;
    };
    let ((), loaded) = tokio::join!(feed, work);
    loaded
}

async fn load(lab: &Lab, bytes: &[u8]) -> Result<Vec<Loaded>> {
    load_in(lab, bytes, 100_000).await
}

/// A layer with one file, and a configuration for layers with these diff IDs.
fn layer(name: &str) -> Vec<u8> {
    Tar::default().file(name, name.as_bytes()).bytes()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest_of(layer)).collect();
    json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn manifest(config: &str, tags: &[&str], layers: &[&str]) -> Vec<u8> {
    json!([{"Config": config, "RepoTags": tags, "Layers": layers}])
        .to_string()
        .into_bytes()
}

async fn refused(lab: &Lab, tar: &Tar, reason: &str) {
    let error = load(lab, &tar.bytes()).await.expect_err(reason).to_string();
    assert!(error.contains(reason), "{reason:?}: {error}");
    assert!(lab.images.list().is_empty());
    lab.settled().await;
    assert_eq!(lab.entries("layers"), 0, "{reason}");
}

#[tokio::test]
async fn an_old_docker_archive_with_linked_layers_is_loaded_whatever_its_order() {
    let lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    let one = layer("one");
    let config = config(&[&one, &one]);
    let name = format!("{}.json", &digest_of(&config)[7..]);
    let manifest = manifest(&name, &["app:1", "host:5/x"], &["a/layer.tar", "b/layer.tar"]);
    let tar = Tar::default()
        .symlink("b/layer.tar", "../a/layer.tar")
        .dir("a", 0o755)
        .file("a/VERSION", b"1.0")
        .file("a/json", b"{}")
        .file("./a/layer.tar", &one)
        .file("manifest.json", &manifest)
        .file("other.json", b"{not JSON")
        .file(&name, &config);
    for step in [1000, 100_000] {
        let loaded = load_in(&lab, &tar.bytes(), step).await.unwrap();
        assert_eq!(loaded[0].id, digest_of(&config));
        assert_eq!(loaded[0].names, ["docker.io/library/app:1", "host:5/x:latest"]);
        assert!(lab.images.find("app:1").unwrap().pinned);
        // Compressed as a whole, and again, now that the layer is known.
        let zstd = zstd::encode_all(tar.bytes().as_slice(), 1).unwrap();
        assert_eq!(load_in(&lab, &zstd, step).await.unwrap(), loaded);
        lab.images.remove(&loaded[0].id).await.unwrap();
        lab.until(|| lab.entries("layers") == 0).await;
    }
}

#[tokio::test]
async fn hostile_and_damaged_docker_archives_are_refused_and_leave_nothing() {
    let lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    let one = layer("one");
    let good = config(&[&one]);
    let id = digest_of(&good);
    let name = format!("{}.json", &id[7..]);
    let whole = |layers: &[&str]| {
        Tar::default()
            .file("manifest.json", &manifest(&name, &["app"], layers))
            .file(&name, &good)
    };
    refused(&lab, &Tar::default(), "neither an index.json").await;
    refused(&lab, &Tar::default().file("x", b"y"), "neither an index.json").await;
    refused(&lab, &Tar::default().file("manifest.json", b"[]"), "lists no image").await;
    refused(
        &lab,
        &Tar::default().file("manifest.json", b"{}"),
        "manifest.json can't be read",
    )
    .await;
    refused(&lab, &whole(&["l"]), "has no file \"l\"").await;
    refused(&lab, &whole(&["../l"]), "`..`").await;
    refused(&lab, &whole(&["l"]).file("../l", &one), "`..`").await;
    refused(&lab, &whole(&["l"]).file("l", b""), "it is empty").await;
    refused(&lab, &whole(&["l"]).file("l", b"no archive at all"), "it is no archive").await;
    refused(&lab, &whole(&["l"]).file("l", &layer("other")), "expected").await;
    refused(&lab, &whole(&[name.as_str()]), "is no archive").await;
    refused(&lab, &whole(&[]).file("l", &one), "lists 1 layers").await;
    refused(&lab, &whole(&["l"]).symlink("l", "/etc/passwd"), "leads out").await;
    refused(&lab, &whole(&["d/l"]).symlink("d/l", "../../l"), "leads out").await;
    refused(
        &lab,
        &whole(&["l"]).symlink("l", "m").symlink("m", "l"),
        "too many links",
    )
    .await;
    refused(
        &lab,
        &whole(&["l"]).hard_link("l", "m").hard_link("m", "l"),
        "too many links",
    )
    .await;
    let other = layer("other");
    refused(&lab, &whole(&["l"]).file("l", &one).file("./l", &other), "two entries").await;
    let device = Head {
        kind: b'3',
        name: "dev",
        ..Head::default()
    };
    refused(&lab, &whole(&["l"]).file("l", &one).add(device, b""), "a device").await;
    let lies = Tar::default()
        .file("manifest.json", &manifest(&name, &["app"], &["l"]))
        .file(&name, b"{\"rootfs\": {}}")
        .file("l", &one);
    refused(&lab, &lies, "expected").await;
    let windows = br#"{"os": "windows", "rootfs": {"diff_ids": []}}"#;
    let windows = Tar::default()
        .file("manifest.json", &manifest("c", &[], &[]))
        .file("c", windows);
    refused(&lab, &windows, "not for Linux").await;
    let tag = Tar::default()
        .file("manifest.json", &manifest(&name, &["UPPER:!"], &["l"]))
        .file(&name, &good)
        .file("l", &one);
    refused(&lab, &tag, "not valid").await;
    let escape = Tar::default()
        .symlink("out", "/tmp")
        .file("out/wharf-e2e-escape", b"x")
        .bytes();
    let hostile = config(&[&escape]);
    let hostile = Tar::default()
        .file("manifest.json", &manifest("c", &[], &["l"]))
        .file("c", &hostile)
        .file("l", &escape);
    refused(&lab, &hostile, "refused").await;
    // Cut off anywhere.
    let whole = whole(&["l"]).file("l", &one).bytes();
    let gzip = super::super::testing::gzip(&whole).0;
    for bytes in [&whole[..whole.len() / 2], &gzip[..gzip.len() - 5], b"BZh91AY&SY", b""] {
        assert!(load(&lab, bytes).await.is_err(), "{}", bytes.len());
    }
    let (inflow, work) = lab.images.load();
    inflow.send(whole.clone().into()).await;
    drop(inflow);
    assert!(work.await.unwrap_err().to_string().contains("cut off"));
    lab.settled().await;
    assert_eq!(lab.entries("layers"), 0);
    assert_eq!(load(&lab, &whole).await.unwrap()[0].id, id);
}

#[tokio::test]
async fn hostile_and_damaged_layouts_are_refused_and_leave_nothing() {
    let lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    let one = layer("one");
    let config = config(&[&one]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest_of(bytes)[7..]);
    let manifest = |config: &[u8], size: usize| {
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(&one), "size": size}]})
        .to_string()
        .into_bytes()
    };
    let index = |documents: &[&[u8]]| {
        let all: Vec<_> = documents
            .iter()
            .map(|bytes| {
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(bytes),
                "size": bytes.len(), "annotations": {"org.opencontainers.image.ref.name": "host:5/app:1"}})
            })
            .collect();
        json!({"schemaVersion": 2, "manifests": all}).to_string().into_bytes()
    };
    let good = manifest(&config, one.len());
    let marked = || Tar::default().file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
    let listed = |documents: &[&[u8]]| {
        let mut tar = marked().file("index.json", &index(documents));
        for document in documents {
            tar = tar.file(&blob(document), document);
        }
        tar
    };
    refused(&lab, &Tar::default().file("index.json", b"{}"), "no oci-layout").await;
    let version = Tar::default().file("oci-layout", br#"{"imageLayoutVersion": "2"}"#);
    refused(&lab, &version.file("index.json", b"{}"), "version").await;
    refused(&lab, &marked().file("index.json", b"{}"), "index.json can't be read").await;
    refused(&lab, &listed(&[]), "lists no image").await;
    refused(&lab, &marked().file("index.json", &index(&[&good])), "no document").await;
    refused(&lab, &listed(&[&good]), "no document").await;
    refused(&lab, &listed(&[&good]).file(&blob(&config), &config), "no file").await;
    let link = listed(&[&good])
        .file(&blob(&config), &config)
        .symlink(&blob(&one), "/etc/passwd");
    refused(&lab, &link, "is a link").await;
    let wrong = listed(&[&good])
        .file(&blob(&config), &config)
        .file(&blob(&one), &layer("other"));
    refused(&lab, &wrong, "expected").await;
    let lies = manifest(&config, one.len() + 1);
    let size = listed(&[&lies]).file(&blob(&config), &config).file(&blob(&one), &one);
    refused(&lab, &size, "bytes").await;
    let swapped = listed(&[&good])
        .file(&blob(&config), b"{\"rootfs\": {}}")
        .file(&blob(&one), &one);
    refused(&lab, &swapped, "expected").await;
    // An index in an index in an index in an index.
    let mut documents = vec![good.clone()];
    for _ in 0..4 {
        let last = documents.last().unwrap();
        documents.push(
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": "x", "digest": digest_of(last), "size": last.len()}]})
            .to_string()
            .into_bytes(),
        );
    }
    let mut deep = marked().file("index.json", &index(&[documents.last().unwrap()]));
    for document in &documents {
        deep = deep.file(&blob(document), document);
    }
    refused(&lab, &deep, "nested too deep").await;
    let whole = listed(&[&good]).file(&blob(&config), &config).file(&blob(&one), &one);
    let loaded = load(&lab, &whole.bytes()).await.unwrap();
    assert_eq!(loaded[0].names, ["host:5/app:1"]);
    assert_eq!(
        lab.images.list()[0].digests,
        [format!("host:5/app@{}", digest_of(&good))]
    );
}

#[tokio::test]
async fn a_damaged_layer_is_not_given_out_whole() {
    let lab = Lab::new("").await;
    let image = small("app");
    let answered = image.clone();
    let server = Server::start(move |seen| answered.answer(seen).unwrap_or(Reply::status(404))).await;
    let name = format!("{}/app", server.host);
    lab.images.pull(&name, None, None).await.unwrap();
    let collect = async || {
        let mut out = lab.images.save(std::slice::from_ref(&name), Format::Docker).await?;
        let mut all = Vec::new();
        while let Some(piece) = out.recv().await {
            all.extend_from_slice(&piece?);
        }
        Ok::<_, super::super::Error>(all)
    };
    let all = collect().await.unwrap();
    assert_eq!(load(&lab, &all).await.unwrap()[0].id, image.id);
    let layer = std::fs::read_dir(lab.path("layers")).unwrap().next().unwrap().unwrap();
    let file = layer.path().join("fs/app.txt");
    let mut content = std::fs::read(&file).unwrap();
    content[50_000] ^= 1;
    std::fs::write(&file, content).unwrap();
    let error = collect().await.unwrap_err().to_string();
    assert!(error.contains("given back"), "{error}");
}

#[tokio::test]
async fn an_artifact_in_a_layout_is_loaded_whatever_its_order_and_its_files_and_is_given_back() {
    let tar = layer("inside");
    let gzip = super::super::testing::gzip(&tar).0;
    let note = super::super::testing::gzip(b"only a note").0;
    let files: [(&str, &[u8]); 6] = [
        ("chart.tgz", &gzip),
        ("plain.tar", &tar),
        ("deep/note.gz", &note),
        ("same.json", b"{}"),
        ("noise", &[7; 5000]),
        ("empty", b""),
    ];
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest_of(bytes)[7..]);
    let layers: Vec<_> = files
        .iter()
        .map(|(title, bytes)| {
            json!({"mediaType": "application/x", "digest": digest_of(bytes), "size": bytes.len(),
                "annotations": {"org.opencontainers.image.title": title}})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "x/y",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}, "layers": layers})
    .to_string()
    .into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest_of(&manifest), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "host:5/files:1"}}]})
    .to_string()
    .into_bytes();
    let about = |tar: Tar| {
        tar.file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)
            .file("index.json", &index)
            .file(&blob(&manifest), &manifest)
            .file(&blob(b"{}"), b"{}")
    };
    let content = |mut tar: Tar, files: &[(&str, &[u8])]| {
        // That is the configuration, too.
        for (_, bytes) in files.iter().filter(|(title, _)| *title != "same.json") {
            tar = tar.file(&blob(bytes), bytes);
        }
        tar
    };
    let first = content(about(Tar::default()), &files).bytes();
    let last = about(content(Tar::default(), &files)).bytes();
    for bytes in [first.clone(), last] {
        let lab = Lab::new("").await;
        lab.images.adopt(&[]).await.unwrap();
        let loaded = load(&lab, &bytes).await.unwrap();
        assert_eq!(
            (loaded[0].id.as_str(), loaded[0].names.as_slice()),
            (digest_of(&manifest).as_str(), &["host:5/files:1".to_owned()][..])
        );
        let image = lab.images.find("host:5/files:1").unwrap();
        assert_eq!(image.layers.len(), files.len());
        for (directory, (title, bytes)) in image.layer_directories().iter().rev().zip(files) {
            assert_eq!(std::fs::read(directory.join(title)).unwrap(), bytes, "{title}");
        }
        drop(image);
        // The same again is no other.
        assert_eq!(load(&lab, &bytes).await.unwrap()[0].id, digest_of(&manifest));
        assert!(
            lab.images
                .save(&["host:5/files:1".into()], Format::Docker)
                .await
                .err()
                .unwrap()
                .to_string()
                .contains("OCI layout")
        );
        let mut out = lab.images.save(&["host:5/files:1".into()], Format::Oci).await.unwrap();
        let mut saved = Vec::new();
        while let Some(piece) = out.recv().await {
            saved.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(lab.entries("tmp"), 0);
        let other = Lab::new("").await;
        other.images.adopt(&[]).await.unwrap();
        assert_eq!(load(&other, &saved).await.unwrap(), loaded);
    }
    let lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    refused(&lab, &about(Tar::default()), "no file").await;
    for (title, other) in [
        ("chart.tgz", &note),
        ("noise", &gzip),
        ("deep/note.gz", &tar),
        ("plain.tar", &note),
    ] {
        let mut tar = about(Tar::default());
        for (name, bytes) in files.iter().filter(|(name, _)| *name != "same.json") {
            tar = tar.file(&blob(bytes), if *name == title { other } else { bytes });
        }
        refused(&lab, &tar, "of an artifact").await;
    }
    assert_eq!(lab.entries("tmp"), 0);
}
