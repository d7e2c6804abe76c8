//! Identities that an authority knows, and logs that know when they signed.

mod stamped;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PublicKeyData as _, SanType, SerialNumber, SigningKey as _,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        certificate,
        der::{Reader, SEQUENCE},
        key::Material,
        proof::tests as tree,
        roots::{Roots, Trusted},
        sct::tests as promises,
        signature::Signature,
    },
    Attached, Keys, NOTHING_ELSE, key_pem, payload, pem, pull, signature,
};
use crate::images::testing::Lab;

const NOW: i64 = 1_700_000_000;

/// An authority, a log, and somebody whom they know.
struct Sigstore {
    root: rcgen::Certificate,
    log: KeyPair,
    signer: KeyPair,
    leaf: rcgen::Certificate,
    between: rcgen::Certificate,
    /// Of certificates; it has promised to have `leaf`.
    certificate_log: KeyPair,
}

const ISSUER: &str = "https://issuer.example";
const IDENTITY: &str = "ci@example.com";

fn sigstore(code_signing: bool) -> Sigstore {
    let (root_key, between_key, signer) = (
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate().unwrap(),
    );
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        params
    };
    let root_params = authority("root");
    let root = root_params.self_signed(&root_key).unwrap();
    let root_issuer = Issuer::new(root_params, root_key);
    let between_params = authority("between");
    let between = between_params.signed_by(&between_key, &root_issuer).unwrap();
    let between_issuer = Issuer::new(between_params, between_key);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::Rfc822Name(IDENTITY.try_into().unwrap())];
    // 2023-11-14, the day of NOW.
    params.not_before = rcgen::date_time_ymd(2023, 11, 14);
    params.not_after = rcgen::date_time_ymd(2023, 11, 15);
    params.extended_key_usages = vec![match code_signing {
        true => ExtendedKeyUsagePurpose::CodeSigning,
        false => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    let mut value = vec![0x0c, ISSUER.len() as u8];
    value.extend_from_slice(ISSUER.as_bytes());
    params.custom_extensions = vec![
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 1], ISSUER.as_bytes().to_vec()),
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], value),
    ];
    params.serial_number = Some(SerialNumber::from(7u64));
    let certificate_log = KeyPair::generate().unwrap();
    let without = params.clone().signed_by(&signer, &between_issuer).unwrap();
    let log = Sha256::digest(certificate_log.subject_public_key_info());
    let promise = promises::extension(without.der(), between.der(), &log, NOW as u64 * 1000, |message| {
        certificate_log.sign(message).unwrap()
    });
    params.custom_extensions.push(CustomExtension::from_oid_content(
        &[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2],
        promise,
    ));
    let leaf = params.signed_by(&signer, &between_issuer).unwrap();
    Sigstore {
        certificate_log,
        root,
        log: KeyPair::generate().unwrap(),
        signer,
        leaf,
        between,
    }
}

impl Sigstore {
    /// What the log says of `body`: the entry's fields and its signature.
    fn promise(&self, body: &Value, at: i64) -> (String, String) {
        let body = STANDARD.encode(body.to_string());
        let id = hex::encode(Sha256::digest(self.log.subject_public_key_info()));
        let signed = format!(r#"{{"body":"{body}","integratedTime":{at},"logID":"{id}","logIndex":7}}"#);
        (body, signature(&self.log, signed.as_bytes()))
    }

    /// The log's proof that it has `body` as one of several entries, by this key's signature.
    fn proof(&self, body: &str, signer: &KeyPair) -> Value {
        let mut entries: Vec<Vec<u8>> = (0..6u8).map(|n| vec![n]).collect();
        entries[4] = STANDARD.decode(body).unwrap();
        let root = STANDARD.encode(tree::root(&entries));
        let hashes: Vec<String> = tree::path(4, &entries)
            .iter()
            .map(|hash| STANDARD.encode(hash))
            .collect();
        let text = format!("log.example - 1\n6\n{root}\n");
        let signed = STANDARD.encode([&[1, 2, 3, 4][..], &signer.sign(text.as_bytes()).unwrap()].concat());
        json!({"logIndex": "4", "treeSize": "6", "rootHash": root, "hashes": hashes,
            "checkpoint": {"envelope": format!("{text}\n\u{2014} log.example {signed}\n")}})
    }

    /// What `trusted_root.json` says of them; logs of certificates count until `until`.
    fn trusted_root(&self, until: &str) -> Value {
        let key = |key: &KeyPair| STANDARD.encode(key.subject_public_key_info());
        json!({"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [{"baseUrl": "https://log.example", "hashAlgorithm": "SHA2_256", "logId": {"keyId": STANDARD.encode(self.log_id())},
                "publicKey": {"rawBytes": key(&self.log), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2021-01-12T11:53:27.000Z"}}}],
            "certificateAuthorities": [{"uri": "https://ca.example", "validFor": {"start": "2020-01-01T00:00:00Z"},
                "certChain": {"certificates": [{"rawBytes": STANDARD.encode(self.between.der())},
                    {"rawBytes": STANDARD.encode(self.root.der())}]}}],
            "ctlogs": [{"publicKey": {"rawBytes": key(&self.certificate_log),
                "validFor": {"start": "2021-01-12T11:53:27Z", "end": until}}}],
            "timestampAuthorities": []})
    }

    /// A bundle for the image with this digest, with a log entry as `edit` leaves it.
    fn bundle(&self, digest: &str, edit: impl FnOnce(&str, &mut Value)) -> Value {
        let hex = digest.trim_start_matches("sha256:");
        let statement =
            json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "subject": [{"digest": {"sha256": hex}}], "predicate": {}})
            .to_string();
        let kind = "application/vnd.in-toto+json";
        let signed = signature(
            &self.signer,
            format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len()).as_bytes(),
        );
        let body = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "payloadHash": {"algorithm": "sha256", "value": hex::encode(Sha256::digest(&statement))},
            "signatures": [{"signature": signed, "verifier": STANDARD.encode(self.leaf_pem())}]}});
        let (body, promise) = self.promise(&body, NOW);
        let mut entry = json!({"logIndex": "7", "logId": {"keyId": STANDARD.encode(self.log_id())},
            "integratedTime": NOW.to_string(), "inclusionPromise": {"signedEntryTimestamp": promise}, "canonicalizedBody": body});
        edit(&body, &mut entry);
        json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"certificate": {"rawBytes": STANDARD.encode(self.leaf.der())}, "tlogEntries": [entry]},
            "dsseEnvelope": {"payload": STANDARD.encode(&statement), "payloadType": kind, "signatures": [{"sig": signed}]}})
    }

    fn log_id(&self) -> Vec<u8> {
        Sha256::digest(self.log.subject_public_key_info()).to_vec()
    }

    fn leaf_pem(&self) -> String {
        pem("CERTIFICATE", self.leaf.der())
    }

    fn tag(&self, attached: &mut Attached, at: i64, logged: &[u8], promised: bool) {
        let payload = payload(&attached.app.digest, "signed.example/app");
        let signed = signature(&self.signer, &payload);
        let body = json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hex::encode(Sha256::digest(logged))}},
            "signature": {"content": signed, "publicKey": {"content": STANDARD.encode(self.leaf_pem())}}}});
        let (body, promise) = self.promise(&body, at);
        let bundle = json!({"SignedEntryTimestamp": promise, "Payload": {"body": body, "integratedTime": at,
            "logIndex": 7, "logID": hex::encode(self.log_id())}});
        let mut annotations = BTreeMap::from([
            ("dev.cosignproject.cosign/signature", signed),
            ("dev.sigstore.cosign/certificate", self.leaf_pem()),
            (
                "dev.sigstore.cosign/chain",
                pem("CERTIFICATE", self.between.der()) + &pem("CERTIFICATE", self.root.der()),
            ),
        ]);
        if promised {
            annotations.insert("dev.sigstore.cosign/bundle", bundle.to_string());
        }
        attached.tag(&payload, &annotations);
    }

    fn policy(&self, keys: &Keys, host: &str, issuer: &str, identity: &str) -> String {
        let roots = keys.file("roots.pem", &pem("CERTIFICATE", self.root.der()));
        let log = keys.file("log.pub", &key_pem(&self.log));
        format!(
            "[trust]\n{NOTHING_ELSE}[trust.scopes.{host:?}]\npolicy = \"signed\"\nsigned_as = [\"signed.example/app\"]\n\
             [[trust.scopes.{host:?}.keyless]]\nroots = {roots:?}\nlog_keys = [{log:?}]\nissuer = {issuer:?}\n\
             identity = {identity:?}\n"
        )
    }
}

#[tokio::test]
async fn an_identity_counts_with_its_authority_its_issuer_and_its_log_at_that_time() {
    let keys = Keys::new("keyless");
    let (good, foreign, wrong_use) = (sigstore(true), sigstore(true), sigstore(false));
    let day = 24 * 3600;
    type Case<'a> = (&'a Sigstore, &'a Sigstore, i64, bool, bool, &'a str, &'a str, &'a str);
    let cases: [Case; 10] = [
        (&good, &good, NOW, true, true, ISSUER, IDENTITY, ""),
        (&good, &good, NOW, true, true, "https://*.example", "*@example.com", ""),
        (
            &good,
            &good,
            NOW + 2 * day,
            true,
            true,
            ISSUER,
            IDENTITY,
            "not good when it was made",
        ),
        (
            &good,
            &good,
            NOW - 2 * day,
            true,
            true,
            ISSUER,
            IDENTITY,
            "not good when it was made",
        ),
        (&good, &good, NOW, false, true, ISSUER, IDENTITY, "about something else"),
        (&good, &good, NOW, true, false, ISSUER, IDENTITY, "no log has promised"),
        (
            &good,
            &foreign,
            NOW,
            true,
            true,
            ISSUER,
            IDENTITY,
            "no log that is trusted",
        ),
        (
            &good,
            &good,
            NOW,
            true,
            true,
            "https://other.example",
            IDENTITY,
            "has vouched",
        ),
        (
            &good,
            &good,
            NOW,
            true,
            true,
            ISSUER,
            "boss@example.com",
            "it is of \"ci@example.com\"",
        ),
        (
            &wrong_use,
            &wrong_use,
            NOW,
            true,
            true,
            ISSUER,
            IDENTITY,
            "not for signing code",
        ),
    ];
    for (signer, trusted, at, own_entry, promised, issuer, identity, reason) in cases {
        let mut attached = Attached::new();
        let signed = payload(&attached.app.digest, "signed.example/app");
        let logged: &[u8] = if own_entry { &signed } else { b"something else" };
        signer.tag(&mut attached, at, logged, promised);
        let server = attached.serve().await;
        let lab = Lab::new(&trusted.policy(&keys, &server.host, issuer, identity)).await;
        match pull(&lab, &server).await {
            Ok(_) => assert_eq!(reason, ""),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}"),
        }
    }
    // The log is trusted, the authority is not.
    let mut attached = Attached::new();
    let signed = payload(&attached.app.digest, "signed.example/app");
    good.tag(&mut attached, NOW, &signed, true);
    let server = attached.serve().await;
    let policy = good.policy(&keys, &server.host, ISSUER, IDENTITY);
    keys.file("roots.pem", &pem("CERTIFICATE", foreign.root.der()));
    let error = pull(&Lab::new(&policy).await, &server).await.unwrap_err();
    assert!(error.contains("not good when it was made"), "{error}");
}

#[tokio::test]
async fn a_bundle_that_refers_to_the_image_counts_however_it_is_found() {
    let keys = Keys::new("bundle");
    let (store, key) = (sigstore(true), KeyPair::generate().unwrap());
    for (by_tag, keyless, predicate, reason) in [
        (false, true, "https://sigstore.dev/cosign/sign/v1", ""),
        (true, true, "https://sigstore.dev/cosign/sign/v1", ""),
        (false, false, "https://sigstore.dev/cosign/sign/v1", ""),
        (false, false, "https://slsa.dev/provenance/v1", "statement of type"),
    ] {
        let mut attached = Attached::new();
        let hex = attached.app.digest.trim_start_matches("sha256:").to_owned();
        let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
            "subject": [{"digest": {"sha256": hex}}], "predicate": {}})
        .to_string();
        let kind = "application/vnd.in-toto+json";
        let framed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let signed = signature(if keyless { &store.signer } else { &key }, framed.as_bytes());
        let body = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "payloadHash": {"algorithm": "sha256", "value": hex::encode(Sha256::digest(&statement))},
            "signatures": [{"signature": signed, "verifier": STANDARD.encode(store.leaf_pem())}]}});
        let (body, promise) = store.promise(&body, NOW);
        let material = match keyless {
            true => json!({"x509CertificateChain": {"certificates": [
                {"rawBytes": STANDARD.encode(store.leaf.der())}, {"rawBytes": STANDARD.encode(store.between.der())}]},
                "tlogEntries": [{"logIndex": "7", "logId": {"keyId": STANDARD.encode(store.log_id())},
                    "integratedTime": NOW.to_string(), "inclusionPromise": {"signedEntryTimestamp": promise},
                    "canonicalizedBody": body}]}),
            false => json!({"publicKey": {"hint": "x"}}),
        };
        let bundle = json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": material, "dsseEnvelope": {"payload": STANDARD.encode(&statement),
                "payloadType": kind, "signatures": [{"sig": signed}]}});
        attached.refer(&bundle, by_tag);
        let server = attached.serve().await;
        let mut policy = store.policy(&keys, &server.host, ISSUER, IDENTITY);
        if !keyless {
            let file = keys.file("key.pub", &key_pem(&key));
            policy = format!(
                "[trust]\n{NOTHING_ELSE}[trust.scopes.{:?}]\npolicy = \"signed\"\nkeys = [{file:?}]\n",
                server.host
            );
        }
        match pull(&Lab::new(&policy).await, &server).await {
            Ok(_) => assert_eq!(reason, ""),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}"),
        }
    }
}

#[test]
fn damaged_certificates_and_bundles_are_refused_without_a_panic() {
    let store = sigstore(true);
    let good = store.leaf.der().to_vec();
    let said = certificate::said(&good).unwrap();
    assert_eq!(
        (said.issuer.as_deref(), said.identities),
        (Some(ISSUER), vec![IDENTITY.to_owned()])
    );
    let trusted = Trusted {
        // What a log of certificates says is one more reason to refuse; here the others are looked at.
        certificate_logs: Vec::new(),
        ..Roots::Trusted(Material::Data(
            store.trusted_root("2030-01-01T00:00:00Z").to_string().into_bytes(),
        ))
        .load()
        .unwrap()
    };
    for at in 0..good.len() {
        let _ = certificate::said(&good[..at]);
        for value in [0, 0x7f, 0x81, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = certificate::said(&bytes);
            if bytes != good {
                let chain = [bytes, store.between.der().to_vec()];
                assert!(
                    certificate::check(&chain, &trusted, NOW as u64).is_err(),
                    "byte {at} is {value}"
                );
            }
        }
    }
    let chain = [good, store.between.der().to_vec()];
    certificate::check(&chain, &trusted, NOW as u64).unwrap();
    for json in [
        "{}",
        "[]",
        r#"{"verificationMaterial":{},"dsseEnvelope":{"payload":"","payloadType":"","signatures":[]}}"#,
    ] {
        assert!(Signature::from_bundle(json.as_bytes()).is_none(), "{json}");
    }
}

#[tokio::test]
async fn a_proof_of_the_log_is_checked_beside_its_promise_and_says_no_time() {
    let keys = Keys::new("proof");
    let (store, foreign) = (sigstore(true), sigstore(true));
    type Edit<'a> = &'a dyn Fn(&str, &mut Value);
    let proof = |body: &str, entry: &mut Value| entry["inclusionProof"] = store.proof(body, &store.log);
    let cases: [(Edit, &str); 7] = [
        (&proof, ""),
        (
            &|body, entry| {
                proof(body, entry);
                entry["inclusionProof"]["logIndex"] = json!("3");
            },
            "does not lead to the root",
        ),
        (
            &|body, entry| {
                proof(body, entry);
                entry["inclusionProof"]["treeSize"] = json!("5");
            },
            "its log's proof",
        ),
        (
            &|body, entry| {
                proof(body, entry);
                let other = store.proof(&STANDARD.encode("another entry"), &store.log);
                entry["inclusionProof"]["checkpoint"] = other["checkpoint"].clone();
            },
            "of another tree",
        ),
        (
            &|body, entry| entry["inclusionProof"] = store.proof(body, &foreign.log),
            "has signed the checkpoint",
        ),
        (
            &|body, entry| {
                proof(body, entry);
                entry["inclusionPromise"] = Value::Null;
            },
            "has signed when it got it",
        ),
        (
            &|_, entry| entry["inclusionPromise"] = Value::Null,
            "no log has promised",
        ),
    ];
    for (edit, reason) in cases {
        let mut attached = Attached::new();
        let bundle = store.bundle(&attached.app.digest, edit);
        attached.refer(&bundle, false);
        let server = attached.serve().await;
        let file = keys.file(
            "between.pem",
            &(pem("CERTIFICATE", store.between.der()) + &pem("CERTIFICATE", store.root.der())),
        );
        let policy = store.policy(&keys, &server.host, ISSUER, IDENTITY);
        let roots = keys.file("roots.pem", &pem("CERTIFICATE", store.root.der()));
        let policy = policy.replace(&format!("{roots:?}"), &format!("{file:?}"));
        match pull(&Lab::new(&policy).await, &server).await {
            Ok(_) => assert_eq!(reason, ""),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_trusted_root_wants_the_promise_of_a_log_of_certificates() {
    let keys = Keys::new("trusted-root");
    let (store, foreign) = (sigstore(true), sigstore(true));
    let good = store.trusted_root("2030-01-01T00:00:00Z");
    let other_log = {
        let mut root = good.clone();
        root["ctlogs"] = foreign.trusted_root("2030-01-01T00:00:00Z")["ctlogs"].clone();
        root
    };
    let late_authority = {
        let mut root = good.clone();
        root["certificateAuthorities"][0]["validFor"]["start"] = json!("2024-01-01T00:00:00Z");
        root
    };
    let late_log = {
        let mut root = good.clone();
        root["tlogs"][0]["publicKey"]["validFor"]["start"] = json!("2024-01-01T00:00:00Z");
        root
    };
    for (root, reason) in [
        (good, ""),
        (
            store.trusted_root("2023-01-01T00:00:00Z"),
            "no log of certificates that is trusted",
        ),
        (other_log, "no log of certificates that is trusted"),
        (foreign.trusted_root("2030-01-01T00:00:00Z"), "no log that is trusted"),
        (late_authority, "not good when it was made"),
        (late_log, "no log that is trusted"),
        (json!({}), "mediaType"),
    ] {
        let mut attached = Attached::new();
        let bundle = store.bundle(&attached.app.digest, |body, entry| {
            entry["inclusionProof"] = store.proof(body, &store.log);
        });
        attached.refer(&bundle, false);
        let server = attached.serve().await;
        let file = keys.file("trusted_root.json", &root.to_string());
        let host = &server.host;
        let policy = format!(
            "[trust]\n{NOTHING_ELSE}[trust.scopes.{host:?}]\npolicy = \"signed\"\n[[trust.scopes.{host:?}.keyless]]\n\
             trusted_root = {file:?}\nissuer = {ISSUER:?}\nidentity = {IDENTITY:?}\n"
        );
        match pull(&Lab::new(&policy).await, &server).await {
            Ok(_) => assert_eq!(reason, ""),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{reason:?}: {error}"),
        }
    }
}

#[test]
fn a_certificate_that_was_changed_has_no_promise_of_a_log() {
    let store = sigstore(true);
    let root = store.trusted_root("2030-01-01T00:00:00Z").to_string().into_bytes();
    let trusted = Roots::Trusted(Material::Data(root)).load().unwrap();
    let (leaf, between) = (store.leaf.der().to_vec(), store.between.der().to_vec());
    let check = |leaf: &[u8]| super::super::sct::check(leaf, &[&between], &trusted.certificate_logs);
    check(&leaf).unwrap();
    assert!(super::super::sct::check(&leaf, &[store.root.der()], &trusted.certificate_logs).is_err());
    // Its signature, in the last part, is the authority's, made after the promise.
    let body = Reader::new(&leaf)
        .next_if(SEQUENCE)
        .and_then(|whole| whole.inner().next_if(SEQUENCE))
        .unwrap();
    let body = body.whole.len() + 4;
    for at in 0..leaf.len() {
        let _ = check(&leaf[..at]);
        let mut bytes = leaf.clone();
        bytes[at] ^= 1;
        let changed = check(&bytes);
        assert!(changed.is_err() || at >= body || at < 4, "byte {at}");
    }
}
