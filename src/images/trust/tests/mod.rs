//! Signatures made here, in a registry that says what it is told to.

mod held;
mod keyless;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

use super::super::{
    ErrorKind,
    registry::digest_of,
    testing::{Fixture, Lab, Reply, Seen, Server, small},
};

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn key_pem(key: &KeyPair) -> String {
    pem("PUBLIC KEY", &key.subject_public_key_info())
}

/// An image with what is attached to it, by the end of its path.
struct Attached {
    app: Fixture,
    more: HashMap<String, Vec<u8>>,
}

impl Attached {
    fn new() -> Self {
        Self {
            app: small("app"),
            more: HashMap::new(),
        }
    }

    fn blob(&mut self, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        self.more.insert(format!("/blobs/{digest}"), bytes.to_vec());
        json!({"digest": digest, "size": bytes.len()})
    }

    /// A signature under the tag that cosign gives it.
    fn tag(&mut self, payload: &[u8], annotations: &BTreeMap<&str, String>) {
        let mut layer = self.blob(payload);
        layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
        layer["annotations"] = json!(annotations);
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
            "layers": [layer]});
        let tag = self.app.digest.replacen(':', "-", 1);
        self.more
            .insert(format!("/manifests/{tag}.sig"), manifest.to_string().into_bytes());
    }

    /// A bundle that refers to the image, with or without the registry knowing the question.
    fn refer(&mut self, bundle: &Value, by_tag: bool) {
        const KIND: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let mut layer = self.blob(bundle.to_string().as_bytes());
        layer["mediaType"] = json!(KIND);
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": KIND, "layers": [layer], "subject": {"digest": self.app.digest, "size": 1},
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}})
        .to_string();
        let digest = digest_of(manifest.as_bytes());
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": KIND,
                "digest": digest, "size": manifest.len()}]});
        self.more.insert(format!("/manifests/{digest}"), manifest.into_bytes());
        let path = if by_tag {
            format!("/manifests/{}", self.app.digest.replacen(':', "-", 1))
        } else {
            format!("/referrers/{}", self.app.digest)
        };
        self.more.insert(path, index.to_string().into_bytes());
    }

    async fn serve(self) -> Server {
        Server::start(move |seen: &Seen| {
            let found = self.more.iter().find(|(end, _)| seen.path.ends_with(end.as_str()));
            if let Some((_, bytes)) = found {
                return Reply::ok(bytes.clone());
            }
            if seen.path.contains("/sha256-") || seen.path.contains("/referrers/") {
                return Reply::status(404);
            }
            self.app.answer(seen).unwrap_or(Reply::status(404))
        })
        .await
    }
}

fn payload(digest: &str, name: &str) -> Vec<u8> {
    json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature"}, "optional": null})
    .to_string()
    .into_bytes()
}

fn signature(key: &KeyPair, message: &[u8]) -> String {
    STANDARD.encode(key.sign(message).unwrap())
}

/// A directory for keys that goes with the test.
struct Keys(PathBuf);

impl Keys {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wharf-trust-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const NOTHING_ELSE: &str = "policy_json = \"\"\nverifiers_dir = \"\"\n";

async fn pull(lab: &Lab, server: &Server) -> std::result::Result<String, String> {
    match lab.images.pull(&format!("{}/app", server.host), None, None).await {
        Ok(id) => Ok(id),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
            let text = error.to_string();
            let begins = format!("SignatureValidationFailed: image {}/app:latest: ", server.host);
            assert!(text.starts_with(&begins), "{text}");
            assert!(lab.images.list().is_empty());
            Err(text)
        }
    }
}

#[tokio::test]
async fn a_signature_by_a_key_lets_in_the_image_that_it_is_of_and_no_other() {
    let keys = Keys::new("keys");
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let files = [
        keys.file("key.pub", &key_pem(&key)),
        keys.file("more.pub", &(key_pem(&p384) + &key_pem(&ed25519))),
    ];
    type Change = fn(&mut Vec<u8>, &mut String);
    let cases: [(&str, Option<&KeyPair>, Change, &str); 9] = [
        ("app", Some(&key), |_, _| {}, ""),
        ("app", Some(&p384), |_, _| {}, ""),
        ("app", Some(&ed25519), |_, _| {}, ""),
        ("app", None, |_, _| {}, "has no signature"),
        ("app", Some(&other), |_, _| {}, "not by a key that is trusted"),
        ("other", Some(&key), |_, _| {}, "for the name"),
        (
            "app",
            Some(&key),
            |payload, _| {
                *payload = payload
                    .iter()
                    .map(|byte| if *byte == b'g' { b'h' } else { *byte })
                    .collect()
            },
            "not by a key that is trusted",
        ),
        ("app", Some(&key), |_, signature| signature.clear(), "has no signature"),
        ("app", Some(&key), |_, signature| *signature = "%".into(), "malformed"),
    ];
    for (repository, signer, change, reason) in cases {
        let mut attached = Attached::new();
        let digest = attached.app.digest.clone();
        let layer = attached.app.layers[0].clone();
        // The host is not known before it serves: the name is allowed by a pattern.
        let named = format!("signed.example/{repository}");
        if let Some(signer) = signer {
            let mut payload = payload(&digest, &named);
            let mut signature = signature(signer, &payload);
            change(&mut payload, &mut signature);
            attached.tag(
                &payload,
                &BTreeMap::from([("dev.cosignproject.cosign/signature", signature)]),
            );
        }
        let server = attached.serve().await;
        let lab = Lab::new(&format!(
            "[trust]\n{NOTHING_ELSE}[trust.scopes.{:?}]\npolicy = \"signed\"\nkeys = {files:?}\n\
             signed_as = [\"signed.example/app\"]\n",
            server.host
        ))
        .await;
        match pull(&lab, &server).await {
            Ok(_) => assert_eq!(reason, "", "{repository}"),
            Err(error) => {
                assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}");
                assert!(error.contains("scope \"127.0.0.1:"), "{error}");
                assert!(
                    server.seen(&layer).is_empty(),
                    "a layer was fetched before the image was trusted"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_signature_of_another_image_or_purpose_is_worth_nothing() {
    let keys = Keys::new("purpose");
    let key = KeyPair::generate().unwrap();
    let file = keys.file("key.pub", &key_pem(&key));
    let elsewhere = digest_of(b"another manifest");
    let own = |digest: &str| payload(digest, "signed.example/app");
    let of_type = |digest: &str| {
        let text = String::from_utf8(own(digest)).unwrap();
        text.replace("cosign container image signature", "something")
            .into_bytes()
    };
    let cases: [(Vec<u8>, &str); 3] = [
        (own(&elsewhere), "of another image"),
        (of_type(&Attached::new().app.digest), "type \"something\""),
        (b"{}".to_vec(), "can't be read"),
    ];
    for (payload, reason) in cases {
        let mut attached = Attached::new();
        let signature = signature(&key, &payload);
        attached.tag(
            &payload,
            &BTreeMap::from([("dev.cosignproject.cosign/signature", signature)]),
        );
        let server = attached.serve().await;
        let lab = Lab::new(&format!(
            "[trust]\n{NOTHING_ELSE}[trust.scopes.\"*.0.0.1\"]\npolicy = \"signed\"\nkeys = [{file:?}]\n\
             signed_as = [\"signed.example/*\"]\n"
        ))
        .await;
        let error = pull(&lab, &server).await.unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}
