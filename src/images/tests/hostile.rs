//! Registries and images that mean harm: bombs, lies about lengths, TLS that proves nothing, documents without an end.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::super::{
    ErrorKind,
    registry::digest_of,
    testing::{Lab, Reply, Seen, Server, gzip, image, small, tar},
};

async fn refused(lab: &Lab, host: &str) -> (String, ErrorKind) {
    let error = lab.images.pull(&format!("{host}/app"), None, None).await.unwrap_err();
    assert!(lab.images.list().is_empty());
    lab.settled().await;
    assert_eq!((lab.entries("layers"), lab.entries("records")), (0, 0));
    (error.to_string(), error.kind())
}

#[tokio::test]
async fn a_small_blob_that_would_fill_the_disk_is_refused_in_time() {
    let zeroes = vec![0; 3 << 20];
    let archive = tar(&[("bomb", &zeroes)]);
    let zstd = zstd::encode_all(archive.as_slice(), 3).unwrap();
    // Behind the archive's end there may be anything, also without end.
    let mut tail = tar(&[("small", b"x")]);
    tail.resize(3 << 20, 0);
    for blob in [gzip(&archive), (zstd, digest_of(&archive)), gzip(&tail)] {
        let app = image(&[blob], "bomb");
        let server = Server::start(move |seen| app.answer(seen).unwrap()).await;
        let lab = Lab::new("[pull]\nmax_layer_size = \"1MiB\"\n").await;
        let (error, _) = refused(&lab, &server.host).await;
        assert!(
            error.contains("more than 1048576 bytes") && error.contains("max_layer_size"),
            "{error}"
        );
    }
    // What the limit allows is let in.
    let app = image(&[gzip(&tar(&[("f", &zeroes[..1000])]))], "fine");
    let server = Server::start(move |seen| app.answer(seen).unwrap()).await;
    let lab = Lab::new("[pull]\nmax_layer_size = \"1MiB\"\n").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn more_than_was_promised_is_never_read() {
    let app = small("app");
    let (layer, config) = (app.layers[0].clone(), app.id.clone());
    for wrong in [layer, config] {
        let app = app.clone();
        let server = Server::start(move |seen: &Seen| {
            let mut reply = app.answer(seen).unwrap();
            if seen.path.contains(&wrong) {
                reply.body.extend_from_slice(&[0; 100_000]);
                // The registry says so, and goes on for ever.
                reply.length = Some(usize::MAX >> 2);
                reply.stall = true;
            }
            reply
        })
        .await;
        let lab = Lab::new("").await;
        // Either it counts for nothing, or the image is refused; no pull waits for the rest.
        let pulled = lab.images.pull(&format!("{}/app", server.host), None, None).await;
        match pulled {
            Ok(id) => assert_eq!(id, small("app").id),
            Err(error) => assert!(lab.images.list().is_empty(), "{error}"),
        }
    }
}

#[tokio::test]
async fn indexes_without_an_end_and_old_schemas_are_refused() {
    let mut inner =
        String::from(r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#);
    let mut documents = vec![inner.clone()];
    for _ in 0..5 {
        inner = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
            {{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{}","size":{}}}]}}"#,
            digest_of(inner.as_bytes()),
            inner.len()
        );
        documents.push(inner.clone());
    }
    let server = Server::start(move |seen: &Seen| {
        let wanted = seen.path.rsplit('/').next().unwrap_or_default();
        let found = documents
            .iter()
            .find(|document| digest_of(document.as_bytes()) == wanted);
        Reply::ok(found.or(documents.last()).unwrap().clone())
    })
    .await;
    let (error, _) = refused(&Lab::new("").await, &server.host).await;
    assert!(error.contains("nested too deep"), "{error}");
    let old = r#"{"schemaVersion":1,"name":"app","tag":"latest","architecture":"amd64","fsLayers":[{"blobSum":"sha256:00"}],"history":[]}"#;
    let server = Server::start(move |_: &Seen| {
        Reply::ok(old).header(
            "content-type",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        )
    })
    .await;
    let (error, _) = refused(&Lab::new("").await, &server.host).await;
    assert!(error.contains("schema 1") && error.contains("not supported"), "{error}");
}

#[tokio::test]
async fn a_registry_that_redirects_in_a_circle_is_left() {
    let server = Server::start(|seen: &Seen| Reply::status(307).header("location", seen.path.clone())).await;
    let (error, _) = refused(&Lab::new("").await, &server.host).await;
    assert!(error.contains("redirect"), "{error}");
    assert!(server.seen("").len() < 40, "{}", server.seen("").len());
}

/// A server with a certificate, that knows no image. Counts requests.
async fn tls_server(certificate: &rcgen::Certificate, key: &KeyPair) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (address, requests, tasks)
}

struct Authority {
    pem: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    use base64::Engine as _;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let pem = std::env::temp_dir().join(format!("wharf-hostile-{name}-{}.pem", std::process::id()));
    let text = base64::engine::general_purpose::STANDARD.encode(certificate.der());
    let text = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    std::fs::write(&pem, text).unwrap();
    Authority {
        pem,
        issuer: Issuer::new(params, key),
    }
}

#[tokio::test]
async fn tls_that_proves_nothing_is_not_spoken_to() {
    let (trusted, other) = (authority("trusted"), authority("other"));
    let named = |name: &str| CertificateParams::new(vec![name.to_owned()]).unwrap();
    let mut expired = named("127.0.0.1");
    expired.not_before = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2002, 1, 1);
    for (what, params, issuer, good) in [
        ("good", named("127.0.0.1"), &trusted, true),
        ("of another authority", named("127.0.0.1"), &other, false),
        ("for another host", named("registry.example"), &trusted, false),
        ("expired", expired, &trusted, false),
    ] {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer.issuer).unwrap();
        let (host, requests, _tasks) = tls_server(&certificate, &key).await;
        let lab = Lab::new(&format!("[registries.\"{host}\"]\nca = {:?}\n", trusted.pem)).await;
        let (error, kind) = refused(&lab, &host.to_string()).await;
        let seen = requests.load(Ordering::SeqCst);
        if good {
            assert_eq!((kind, seen > 0), (ErrorKind::NotFound, true), "{what}: {error}");
        } else {
            assert_eq!((kind, seen), (ErrorKind::RegistryUnavailable, 0), "{what}: {error}");
        }
    }
    for authority in [trusted, other] {
        std::fs::remove_file(authority.pem).unwrap();
    }
}

#[tokio::test]
async fn an_address_in_a_manifest_is_asked_for_a_foreign_layer_only_by_tls_and_without_a_secret() {
    for (kind, asked) in [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", false),
    ] {
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/layer", elsewhere.local_addr().unwrap());
        let app = small("app");
        let layer = app.layers[0].clone();
        let mut manifest: serde_json::Value = serde_json::from_slice(&app.manifest).unwrap();
        manifest["layers"][0]["mediaType"] = kind.into();
        manifest["layers"][0]["urls"] = serde_json::json!(["http://127.0.0.1:1/x", url]);
        let manifest = manifest.to_string();
        let server = Server::start(move |seen: &Seen| match seen.path.as_str() {
            path if path.contains("/manifests/") => Reply::ok(manifest.clone()),
            path if path.ends_with(&layer) => Reply::status(404),
            _ => app.answer(seen).unwrap_or(Reply::status(404)),
        })
        .await;
        let seen = async {
            let (mut stream, _) = elsewhere.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            bytes.truncate(read);
            bytes
        };
        let lab = Lab::new("").await;
        tokio::select! {
            bytes = seen => {
                assert!(asked, "{kind}");
                // A handshake, and nothing that was said before it.
                assert_eq!(bytes.first(), Some(&0x16), "{kind}");
            }
            (error, kind_of) = refused(&lab, &server.host) => {
                assert!(!asked, "{kind}: {error}");
                assert_eq!(kind_of, ErrorKind::NotFound, "{error}");
            }
        }
    }
}
