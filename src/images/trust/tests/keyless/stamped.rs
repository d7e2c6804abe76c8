//! Logs that say that they have a signature, not when (Rekor's second generation), beside authorities that say when.

use super::*;
use crate::images::trust::timestamp::tests::response;

/// An authority of time, with the certificate that it signs with.
struct Clock {
    root: rcgen::Certificate,
    leaf: rcgen::Certificate,
    key: KeyPair,
}

fn clock(usage: ExtendedKeyUsagePurpose) -> Clock {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "clock");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params, root_key);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    Clock { root, leaf, key }
}

impl Clock {
    fn stamp(&self, signature: &[u8], time: &str) -> Vec<u8> {
        response(signature, time, self.leaf.der(), |message| {
            self.key.sign(message).unwrap()
        })
    }

    /// As `trusted_root.json` has it.
    fn trusted(&self) -> Value {
        json!([{"uri": "https://clock.example", "validFor": {"start": "2020-01-01T00:00:00Z"},
            "certChain": {"certificates": [{"rawBytes": STANDARD.encode(self.root.der())}]}}])
    }
}

/// The entry that the second generation makes of the one of the first in `body`.
fn second(body: &str, certificate: &[u8]) -> String {
    let first: Value = serde_json::from_slice(&STANDARD.decode(body).unwrap()).unwrap();
    let spec = &first["spec"];
    let hash = hex::decode(spec["payloadHash"]["value"].as_str().unwrap()).unwrap();
    let entry = json!({"apiVersion": "0.0.2", "kind": "dsse", "spec": {"dsseV002": {
        "payloadHash": {"algorithm": "SHA2_256", "digest": STANDARD.encode(hash)},
        "signatures": [{"content": spec["signatures"][0]["signature"], "verifier": {
            "keyDetails": "PKIX_ECDSA_P256_SHA_256", "x509Certificate": {"rawBytes": STANDARD.encode(certificate)}}}]}}});
    STANDARD.encode(entry.to_string())
}

#[tokio::test]
async fn where_the_log_says_no_time_a_timestamp_of_a_trusted_authority_counts() {
    let keys = Keys::new("stamped");
    let (store, other) = (sigstore(true), sigstore(true));
    let (good, foreign, wrong) = (
        clock(ExtendedKeyUsagePurpose::TimeStamping),
        clock(ExtendedKeyUsagePurpose::TimeStamping),
        clock(ExtendedKeyUsagePurpose::CodeSigning),
    );
    const THEN: &str = "20231114221320Z";
    type Stamp<'a> = &'a dyn Fn(&[u8]) -> Vec<Vec<u8>>;
    let cases: [(Stamp, Value, &Sigstore, &str); 9] = [
        (
            &|signature| vec![good.stamp(signature, THEN)],
            good.trusted(),
            &store,
            "",
        ),
        (
            &|signature| vec![foreign.stamp(signature, THEN), good.stamp(signature, THEN)],
            good.trusted(),
            &store,
            "",
        ),
        (
            &|signature| vec![good.stamp(signature, "20231116000000.5Z")],
            good.trusted(),
            &store,
            "not good when it was made",
        ),
        (
            &|_| vec![good.stamp(b"another", THEN)],
            good.trusted(),
            &store,
            "of something else",
        ),
        (
            &|signature| vec![foreign.stamp(signature, THEN)],
            good.trusted(),
            &store,
            "certificate of its timestamp",
        ),
        (
            &|signature| vec![wrong.stamp(signature, THEN)],
            wrong.trusted(),
            &store,
            "no authority",
        ),
        (
            &|signature| vec![good.stamp(signature, THEN)],
            json!([]),
            &store,
            "RFC 3161",
        ),
        (&|_| Vec::new(), good.trusted(), &store, "has signed when it got it"),
        // The entry is of somebody else's certificate.
        (
            &|signature| vec![good.stamp(signature, THEN)],
            good.trusted(),
            &other,
            "about something else",
        ),
    ];
    for (stamps, clocks, logged, reason) in cases {
        let mut attached = Attached::new();
        let mut bundle = store.bundle(&attached.app.digest, |body, entry| {
            let body = second(body, logged.leaf.der());
            entry["inclusionProof"] = store.proof(&body, &store.log);
            entry["canonicalizedBody"] = json!(body);
            entry["inclusionPromise"] = Value::Null;
            entry["integratedTime"] = Value::Null;
        });
        let signed = STANDARD
            .decode(bundle["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap())
            .unwrap();
        let all = stamps(&signed);
        let all: Vec<Value> = all
            .iter()
            .map(|one| json!({"signedTimestamp": STANDARD.encode(one)}))
            .collect();
        bundle["verificationMaterial"]["timestampVerificationData"] = json!({ "rfc3161Timestamps": all });
        attached.refer(&bundle, false);
        let server = attached.serve().await;
        let mut root = store.trusted_root("2030-01-01T00:00:00Z");
        root["timestampAuthorities"] = clocks;
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
