//! Images that somebody has to have signed: by openssl here, in a registry of Debian's.

use std::{path::Path, process::Command};

use serde_json::json;
use wharf_e2e::{
    Daemon, Options, container,
    cri::image_spec,
    fixtures::storage::{Storage, digest},
    registry::WRITABLE,
};
use wharf_proto::cri as pb;

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().expect("openssl runs");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A key pair: `NAME.pem` and `NAME.pub`.
fn key(dir: &Path, name: &str) {
    let at = |end: &str| dir.join(format!("{name}.{end}")).display().to_string();
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        &at("pem"),
    ]);
    openssl(&["pkey", "-in", &at("pem"), "-pubout", "-out", &at("pub")]);
}

/// Signs the manifest `image` of `repository` as cosign does, and puts the signature into the registry.
fn sign(storage: &Storage, dir: &Path, name: &str, repository: &str, image: &str) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let at = |end: &str| dir.join(end).display().to_string();
    let payload = json!({"critical": {"identity": {"docker-reference": format!("{WRITABLE}/{repository}")},
        "image": {"docker-manifest-digest": image}, "type": "cosign container image signature"}, "optional": null})
    .to_string();
    std::fs::write(at("payload"), &payload).unwrap();
    let key = at(&format!("{name}.pem"));
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        &key,
        "-out",
        &at("signature"),
        &at("payload"),
    ]);
    let signature = STANDARD.encode(std::fs::read(at("signature")).unwrap());
    storage.blob(repository, payload.as_bytes()).unwrap();
    storage.blob(repository, b"{}").unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": payload.len(),
            "digest": digest(payload.as_bytes()), "annotations": {"dev.cosignproject.cosign/signature": signature}}]})
    .to_string();
    let tag = format!("{}.sig", image.replacen(':', "-", 1));
    storage.manifest(repository, Some(&tag), manifest.as_bytes()).unwrap();
}

fn is_refused(error: &tonic::Status, reason: &str) {
    // Kubelet looks for the word at the beginning, and only in errors without a code of their own.
    assert_eq!(error.code(), tonic::Code::Unknown, "{error:?}");
    assert!(error.message().starts_with("SignatureValidationFailed: "), "{error:?}");
    assert!(error.message().contains(reason), "{reason}: {error:?}");
}

#[tokio::test]
async fn only_what_a_trusted_key_has_signed_is_pulled_run_and_mounted() {
    let keys = tempfile::tempdir_in("/tmp").unwrap();
    for name in ["team", "other"] {
        key(keys.path(), name);
    }
    let trusted = keys.path().join("trusted.pub");
    let trust = |name: &str| {
        std::fs::copy(keys.path().join(format!("{name}.pub")), &trusted)
            .map(drop)
            .unwrap()
    };
    trust("team");
    let daemon = Daemon::with(Options {
        writable_registry: true,
        tables: format!("[trust.scopes.'{WRITABLE}/app']\npolicy = 'signed'\nkeys = [{trusted:?}]\n"),
        ..Options::default()
    })
    .await;
    let busybox = daemon.busybox().await;
    let name = format!("{WRITABLE}/app:v1");
    let pushed = daemon.wharf(&["push", &busybox, &name]).output().await.unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let known = daemon.cri.image(&busybox).await.unwrap().unwrap();
    let prefix = format!("{WRITABLE}/app@");
    let manifest = known
        .repo_digests
        .iter()
        .find_map(|one| one.strip_prefix(&prefix))
        .unwrap()
        .to_owned();
    // The daemon knows the layers; that is no reason to let the name in.
    let pull = async || daemon.cri.pull(&name).await;
    is_refused(&pull().await.unwrap_err(), "has no signature");
    let storage = Storage::new(&daemon.dir().join("pushed"));
    sign(&storage, keys.path(), "other", "app", &manifest);
    is_refused(&pull().await.unwrap_err(), "not by a key that is trusted");
    sign(&storage, keys.path(), "team", "app", &digest(b"something else"));
    is_refused(&pull().await.unwrap_err(), "not by a key that is trusted");
    sign(&storage, keys.path(), "team", "app", &manifest);
    pull().await.unwrap();

    let sandbox = daemon.pod("signed");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let mut config = container("main", &name, "sleep 1000");
    config.mounts = vec![pb::Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(image_spec(&name)),
        ..Default::default()
    }];
    let main = daemon.started(&pod, &sandbox, &config).await;
    assert_eq!(
        daemon.cri.shell(&main, "ls /image/bin/sh").await.unwrap().trim(),
        "/image/bin/sh"
    );
    // Kubelet asks for the id, and says what the person wrote.
    config.metadata.get_or_insert_default().name = "by-id".into();
    config.image = Some(pb::ImageSpec {
        image: known.id.clone(),
        user_specified_image: name.clone(),
        ..Default::default()
    });
    daemon.cri.create(&pod, &config, &sandbox).await.unwrap();

    // From now on the node trusts somebody else; the image is there, and no registry is asked.
    trust("other");
    config.metadata.get_or_insert_default().name = "refused".into();
    let error = daemon.cri.create(&pod, &config, &sandbox).await.unwrap_err();
    is_refused(&error, "not by a key that is trusted");
    let mut volume = container("volume", &busybox, "sleep 1000");
    volume.mounts = config.mounts.clone();
    is_refused(
        &daemon.cri.create(&pod, &volume, &sandbox).await.unwrap_err(),
        "not by a key that is trusted",
    );
    // The same image by a name that nobody has to sign.
    volume.mounts.clear();
    daemon.cri.create(&pod, &volume, &sandbox).await.unwrap();
    daemon.gone(&pod).await;
    daemon.finish().await;
}
