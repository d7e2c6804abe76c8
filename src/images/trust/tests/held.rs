//! What holds for images that are here, and programs that are asked.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::Path};

use rcgen::KeyPair;
use serde_json::json;

use super::{Attached, Keys, key_pem, payload, pull, signature};
use crate::images::{
    ErrorKind, check,
    testing::{Lab, Reply, Seen, Server},
};

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
            r#"{"default":[{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}]}"#.to_owned(),
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

/// A GPG key in a directory of its own.
struct Gpg(std::path::PathBuf);

impl Gpg {
    fn new(name: &str) -> Self {
        let home = std::env::temp_dir().join(format!("wharf-gpg-{name}-{}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        let gpg = Self(home);
        gpg.run(
            &["--quick-gen-key", "tester@example.com", "ed25519", "sign", "never"],
            b"",
        );
        gpg
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut child = std::process::Command::new("gpg")
            .args([
                "--batch",
                "--quiet",
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
                "--homedir",
            ])
            .arg(&self.0)
            .args(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "gpg {args:?}: {output:?}");
        output.stdout
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let agent = std::process::Command::new("gpgconf")
            .arg("--homedir")
            .arg(&self.0)
            .args(["--kill", "all"])
            .status();
        assert!(agent.is_ok_and(|status| status.success()), "gpg's agent is still there");
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[tokio::test]
async fn a_signature_by_gpg_counts_from_where_registries_d_says() {
    let keys = Keys::new("gpg");
    let (good, other) = (Gpg::new("good"), Gpg::new("other"));
    let binary = keys.file("key.gpg", "");
    std::fs::write(&binary, good.run(&["--export"], b"")).unwrap();
    let text = good.run(&["--armor", "--export"], b"");
    let armoured = keys.file("key.asc", &String::from_utf8(text).unwrap());
    let foreign = keys.file("other.gpg", "");
    std::fs::write(&foreign, other.run(&["--export"], b"")).unwrap();
    let attached = Attached::new();
    let digest = attached.app.digest.clone();
    let server = attached.serve().await;
    let says = |name: &str, digest: &str, kind: &str| {
        json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": kind},
            "optional": {}})
        .to_string()
        .into_bytes()
    };
    let (name, atomic) = (format!("{}/app:latest", server.host), "atomic container signature");
    let plain = says(&name, &digest, atomic);
    let signed = good.run(&["--sign"], &plain);
    let mut damaged = good.run(&["--sign", "-z", "0"], &plain);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let elsewhere = says("other.example/app:latest", &digest, atomic);
    let of_other = says(&name, &format!("sha256:{}", "a".repeat(64)), atomic);
    let of_kind = says(&name, &digest, "cosign container image signature");
    let bomb = vec![b' '; 4 << 20];
    let cases: [(&str, Vec<Vec<u8>>, &str); 10] = [
        (&binary, vec![signed.clone()], ""),
        (&armoured, vec![b"nonsense".to_vec(), signed.clone()], ""),
        (&foreign, vec![signed.clone()], "not by a key that is trusted"),
        (&binary, vec![damaged], "a signature does not count"),
        (&binary, vec![plain.clone()], "no signature"),
        (&binary, vec![good.run(&["--sign"], &elsewhere)], "for the name"),
        (&binary, vec![good.run(&["--sign"], &of_other)], "of another image"),
        (&binary, vec![good.run(&["--sign"], &of_kind)], "of type"),
        (&binary, vec![good.run(&["--sign"], &bomb)], "too large"),
        (&binary, vec![], "has no signature"),
    ];
    let by_web = Server::start(move |seen: &Seen| match seen.path.ends_with("/signature-1") {
        true => Reply::ok(signed.clone()),
        false => Reply::status(404),
    })
    .await;
    let lookaside = keys.0.join("lookaside");
    let place = lookaside.join(format!("app@{}", digest.replacen(':', "=", 1)));
    let registries = keys.0.join("registries.d");
    std::fs::create_dir(&registries).unwrap();
    let lab = async |key: &str, address: &str| {
        std::fs::write(
            registries.join("x.yaml"),
            format!("docker:\n  {}:\n    lookaside: {address}\n", server.host),
        )
        .unwrap();
        let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {(server.host.clone()): [
            {"type": "signedBy", "keyType": "GPGKeys", "keyPath": key}]}}});
        let policy = keys.file("policy.json", &policy.to_string());
        Lab::new(&format!(
            "[trust]\npolicy_json = {policy:?}\nverifiers_dir = \"\"\nregistries_d = {registries:?}\n"
        ))
        .await
    };
    for (key, signatures, reason) in cases {
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place).unwrap();
        for (number, bytes) in (1..).zip(&signatures) {
            std::fs::write(place.join(format!("signature-{number}")), bytes).unwrap();
        }
        let lab = lab(key, &format!("file://{}", lookaside.display())).await;
        match pull(&lab, &server).await {
            Ok(id) => {
                assert_eq!(reason, "");
                // It is kept, and checked again.
                std::fs::remove_dir_all(&place).unwrap();
                let image = lab.images.find(&id).unwrap();
                lab.images.vouch(&image, &name).await.unwrap();
                std::fs::copy(&foreign, key).unwrap();
                assert!(lab.images.vouch(&image, &name).await.is_err());
                std::fs::write(&binary, good.run(&["--export"], b"")).unwrap();
            }
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}"),
        }
        assert_eq!(lab.entries("tmp"), 0);
    }
    let lab = lab(&binary, &format!("http://{}/sigs", by_web.host)).await;
    pull(&lab, &server).await.unwrap();
    assert!(by_web.seen("/sigs/app@sha256=").len() >= 2);
}
