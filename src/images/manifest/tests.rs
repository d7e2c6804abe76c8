use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[test]
fn tables_of_contents_are_found_by_their_annotations_or_not_at_all() {
    let toc = |kind: &str, annotations: &str| {
        let json = format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+{kind}","digest":"{A}","size":7,
            "annotations":{{{annotations}}}}}"#
        );
        serde_json::from_str::<Entry>(&json.replace("DIGEST", A)).unwrap().toc()
    };
    let stargz = r#""containerd.io/snapshot/stargz/toc.digest":"DIGEST""#;
    assert_eq!(toc("gzip", stargz), Some(Toc::EStargz { digest: A.to_owned() }));
    assert_eq!(toc("gzip", &stargz.replace("DIGEST", "sha256:no")), None);
    let chunked = |position: &str| {
        format!(
            r#""io.github.containers.zstd-chunked.manifest-checksum":"DIGEST",
            "io.github.containers.zstd-chunked.manifest-position":"{position}""#
        )
    };
    let found = Toc::ZstdChunked {
        digest: A.to_owned(),
        offset: 10,
        length: 20,
        unpacked: 30,
    };
    assert_eq!(toc("zstd", &chunked("10:20:30:1")), Some(found));
    for wrong in [
        "",
        "10:20:30",
        "10:20:30:2",
        "10:20:30:1:5",
        "-1:20:30:1",
        "10:20:x:1",
        "99999999999999999999:1:1:1",
    ] {
        assert_eq!(toc("zstd", &chunked(wrong)), None, "{wrong}");
    }
    // Each counts for its own compression only.
    assert_eq!((toc("zstd", stargz), toc("gzip", &chunked("10:20:30:1"))), (None, None));
}

fn parsed(json: &str, media_type: &str) -> Result<Parsed> {
    let document = Document {
        bytes: json.replace("DIGEST", A).into_bytes().into(),
        digest: A.into(),
        media_type: media_type.into(),
    };
    parse(&document, &Host::new("amd64", ""))
}

#[test]
fn only_a_layer_that_may_not_be_passed_on_is_looked_for_elsewhere() {
    let urls = |kind: &str| {
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"DIGEST","size":7}},"layers":[{{"mediaType":"{kind}","digest":"DIGEST",
            "size":1,"urls":["http://plain.example/","https://a.example/x","https://b/","https://c/","https://d/","https://e/"]}}]}}"#
        );
        match parsed(&json, MANIFESTS[1]).unwrap() {
            Parsed::Manifest(manifest) => manifest.layers[0].urls.clone(),
            other => panic!("{other:?}"),
        }
    };
    for kind in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ] {
        assert_eq!(
            urls(kind),
            ["https://a.example/x", "https://b/", "https://c/", "https://d/"]
        );
    }
    assert!(urls("application/vnd.docker.image.rootfs.diff.tar.gzip").is_empty());
}

#[test]
fn a_checkpoint_is_known_by_its_annotations() {
    for (key, is) in [
        ("io.kubernetes.cri-o.annotations.checkpoint.name", true),
        ("org.criu.checkpoint.container.name", true),
        ("org.opencontainers.image.created", false),
    ] {
        let json = format!(r#"{{"schemaVersion":2,"annotations":{{"{key}":"x"}}}}"#);
        assert_eq!(is_checkpoint(json.as_bytes()), is, "{key}");
    }
    assert!(!is_checkpoint(b"{}") && !is_checkpoint(b"no json"));
}

#[test]
fn docker_and_oci_manifests_are_read() {
    for (media_type, config, layer) in [
        (MANIFESTS[0], CONFIGS[0], "application/vnd.oci.image.layer.v1.tar+zstd"),
        (
            MANIFESTS[1],
            CONFIGS[1],
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        let json = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"DIGEST","size":7}},
            "layers":[{{"mediaType":"{layer}","digest":"DIGEST","size":35}}]}}"#
        );
        let Parsed::Manifest(manifest) = parsed(&json, media_type).unwrap() else {
            panic!("not a manifest")
        };
        assert_eq!(manifest.size(), 42);
        assert!(manifest.with_diff_ids(&[]).is_err());
        assert!(manifest.with_diff_ids(&["x".into()]).is_err());
        assert_eq!(manifest.with_diff_ids(&[A.into()]).unwrap()[0].size, 35);
    }
}

#[test]
fn an_early_manifest_of_docker_is_one_of_an_image() {
    let json = r#"{"schemaVersion":2,"config":{"mediaType":"application/octet-stream","digest":"DIGEST","size":7},
        "layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"DIGEST","size":1}]}"#;
    assert!(matches!(parsed(json, MANIFESTS[1]), Ok(Parsed::Manifest(_))));
    assert!(matches!(parsed(json, OCI_MANIFEST), Ok(Parsed::Artifact(_))));
}

fn artifact(titles: &[&str]) -> String {
    let file = |title: &&str| {
        format!(
            r#"{{"mediaType":"text/plain","digest":"DIGEST","size":3,"annotations":{{"org.opencontainers.image.title":"{title}"}}}}"#
        )
    };
    let files: Vec<String> = titles.iter().map(file).collect();
    format!(
        r#"{{"schemaVersion":2,"artifactType":"x/model","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"DIGEST","size":2}},
        "subject":{{"mediaType":"x","digest":"DIGEST","size":1}},"layers":[{}]}}"#,
        files.join(",")
    )
}

#[test]
fn an_artifact_has_files_by_their_titles() {
    let Parsed::Artifact(found) = parsed(&artifact(&["dir/weights.bin", ""]), OCI_MANIFEST).unwrap() else {
        panic!("no artifact")
    };
    let names: Vec<&str> = found.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dir/weights.bin", &A["sha256:".len()..]]);
    assert_eq!(
        (found.kind.as_str(), found.size(), found.subject.as_deref()),
        ("x/model", 8, Some(A))
    );
}

#[test]
fn hostile_and_foreign_documents_are_refused() {
    let layer = r#""mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"DIGEST""#;
    for (json, reason) in [
        ("[", "can't be read"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
        (r#"{"schemaVersion":2,"mediaType":"x/y"}"#, "not supported"),
        (r#"{"schemaVersion":2}"#, "no configuration"),
        (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "both"),
        (r#"{"schemaVersion":2,"manifests":[]}"#, "no image for linux/amd64"),
        (
            r#"{"schemaVersion":2,"config":{"digest":"sha512:00","size":1},"layers":[]}"#,
            "not sha256",
        ),
        (
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":-1},"layers":[]}"#,
            "out of bounds",
        ),
        (
            r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"DIGEST","size":2},"layers":[]}"#,
            "no image, and has no files",
        ),
        (&artifact(&["../up"]), "relative path"),
        (&artifact(&["/etc/passwd"]), "relative path"),
        (&artifact(&["a//b"]), "relative path"),
        (&artifact(&["a/.wh..wh..opq"]), "something else"),
        (&artifact(&["a\\nb"]), "nobody could read"),
        (&artifact(&["same", "same"]), "two files named \"same\""),
        (
            &format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"DIGEST","size":1}},"layers":[{{{layer},"size":9223372036854775807}}]}}"#
            ),
            "out of bounds",
        ),
        (
            r#"{"schemaVersion":2,"config":{"digest":"DIGEST","size":1},"layers":[{"mediaType":"text/plain","digest":"DIGEST","size":1}]}"#,
            "layer media type",
        ),
        (
            &format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"DIGEST","size":1}},"layers":[{}]}}"#,
                vec![format!("{{{layer}}}"); 501].join(",")
            ),
            "too many",
        ),
    ] {
        let error = parsed(json, "").unwrap_err().to_string();
        assert!(error.contains(reason), "{json}: {error}");
    }
}
