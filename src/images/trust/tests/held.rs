//! What holds for images that are here, and programs that are asked.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::Path};

use rcgen::KeyPair;
use serde_json::json;

use super::{Attached, Keys, key_pem, payload, pull, signature};
use crate::images::{ErrorKind, check, testing::Lab};

#[tokio::test]
async fn a_policy_holds_for_what_is_here_and_is_read_again_when_it_changes() {
    let keys = Keys::new("vouch");
    let key = KeyPair::generate().unwrap();
    let file = keys.file("key.pub", &key_pem(&key));
    let mut attached = Attached::new();
    let payload = payload(&attached.app.digest, "signed.example/app");
    let signed = signature(&key, &payload);
    attached.tag(
        &payload,
        &BTreeMap::from([("dev.cosignproject.cosign/signature", signed)]),
    );
    let server = attached.serve().await;
    let json = keys.file("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let mut lab = Lab::new(&format!("[trust]\npolicy_json = {json:?}\nverifiers_dir = \"\"\n")).await;
    let id = pull(&lab, &server).await.unwrap();
    let name = format!("{}/app:latest", server.host);
    let refused = async |lab: &Lab, asked: &str| {
        let image = lab.images.find(&id).unwrap();
        lab.images.vouch(&image, asked).await.map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
            error.to_string()
        })
    };
    refused(&lab, &id).await.unwrap();
    let host = server.host.clone();
    let wants = |kind: &str| {
        json!({"default": [{"type": "reject"}], "transports": {"docker": {(host.clone()): [
            {"type": "sigstoreSigned", "keyPath": file, "signedIdentity": {"type": kind, "dockerRepository": "signed.example/app"}}]}}})
        .to_string()
    };
    keys.file("policy.json", &wants("exactRepository"));
    let error = refused(&lab, &name).await.unwrap_err();
    assert!(
        error.contains("has no signature") && error.contains("pull it again"),
        "{error}"
    );
    // The signature comes with a pull, and stays.
    lab.images.pull(&name, None, None).await.unwrap();
    drop(server);
    for asked in [name.as_str(), &id, "elsewhere.example/app"] {
        refused(&lab, asked).await.unwrap();
    }
    lab.reopen().await;
    refused(&lab, &name).await.unwrap();
    assert!(
        check::check(&lab.config.state_dir.join("images"))
            .unwrap()
            .faults
            .is_empty()
    );
    // One name lets it in, the other does not: what was asked for counts, or any.
    lab.images.tag(&id, "elsewhere.example/app:v1").await.unwrap();
    let error = refused(&lab, "elsewhere.example/app:v1").await.unwrap_err();
    assert!(error.contains("are refused (the default of"), "{error}");
    refused(&lab, &id).await.unwrap();
    for (text, reason) in [
        (wants("matchRepository"), "for the name"),
        (
            r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#.to_owned(),
            "not supported",
        ),
        ("{".to_owned(), "policy.json"),
    ] {
        keys.file("policy.json", &text);
        let error = refused(&lab, &name).await.unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

fn script(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn programs_are_asked_as_containerd_asks_them_and_once() {
    let keys = Keys::new("verifiers");
    let directory = keys.0.join("bin");
    std::fs::create_dir(&directory).unwrap();
    let attached = Attached::new();
    let (digest, size) = (attached.app.digest.clone(), attached.app.manifest.len());
    let server = attached.serve().await;
    let lab = Lab::new(&format!(
        "[trust]\npolicy_json = \"\"\nverifiers_dir = {directory:?}\nverifier_timeout_secs = 1\n"
    ))
    .await;
    let said = keys.0.join("said").display().to_string();
    script(
        &directory,
        "a",
        &format!("echo \"$@\" >> {said}; cat >> {said}; echo fine"),
    );
    script(&directory, "b", "echo because of the weather; exit 3");
    let error = pull(&lab, &server).await.unwrap_err();
    assert!(
        error.contains("/b refuses it") && error.contains("because of the weather"),
        "{error}"
    );
    script(&directory, "b", "exec sleep 60");
    let error = pull(&lab, &server).await.unwrap_err();
    assert!(error.contains("not answered within 1 s"), "{error}");
    std::fs::write(directory.join("b"), "no program").unwrap();
    std::fs::set_permissions(directory.join("b"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = pull(&lab, &server).await.unwrap_err();
    assert!(error.contains("can't be asked"), "{error}");
    std::fs::remove_file(directory.join("b")).unwrap();
    std::fs::remove_file(&said).unwrap();
    let id = pull(&lab, &server).await.unwrap();
    let name = format!("{}/app:latest", server.host);
    let expected = format!(
        "-name {name} -digest {digest} -stdin-media-type application/vnd.oci.descriptor.v1+json\n\
         {{\"digest\":\"{digest}\",\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":{size}}}"
    );
    assert_eq!(std::fs::read_to_string(&said).unwrap(), expected);
    let image = lab.images.find(&id).unwrap();
    lab.images.vouch(&image, &name).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(&said).unwrap(),
        expected,
        "asked again without need"
    );
    // Another program has not seen it.
    script(&directory, "c", "exit 1");
    let error = lab.images.vouch(&image, &name).await.unwrap_err().to_string();
    assert!(error.contains("/c refuses it"), "{error}");
}
