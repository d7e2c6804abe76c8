//! Streams over TLS.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use wharf_e2e::streams::{Forward, Protocol, REMOTE, Session, Want, tls};
use wharf_e2e::{Daemon, Options};

#[tokio::test]
async fn a_certificate_is_made_when_none_is_given_and_every_protocol_goes_through() {
    let daemon = Daemon::with(Options {
        tables: "[streaming]\ntls = true".into(),
        ..Default::default()
    })
    .await;
    let (pod, id) = daemon.running("tls", "exec nc -ll -p 8080 -e cat").await;
    for protocol in REMOTE {
        let mut session = daemon
            .exec_session(protocol, &id, &["sh", "-c", "read l; echo $l; exit 6"], Want::ALL)
            .await;
        session.write(b"hello\n").await.unwrap();
        let finished = session.finish().await;
        assert_eq!(
            (finished.text().as_str(), finished.code()),
            ("hello\n", 6),
            "{protocol:?}"
        );
    }
    let command = ["sh", "-c", "head -c 8000000 /dev/zero"];
    let session = daemon.exec_session(REMOTE[0], &id, &command, Want::OUTPUT).await;
    assert_eq!(session.finish().await.stdout.len(), 8_000_000);
    for tunnel in [false, true] {
        let url = daemon.forward_url(&pod, &[]).await.unwrap();
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let mut client = Forward::open(&daemon.lab, &url, tunnel).await.unwrap();
        let mut pair = client.connect("8080").await.unwrap();
        client.write(&pair, b"hello").await.unwrap();
        assert_eq!(pair.read().await.unwrap(), b"hello");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let signed = |usage| {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &authority).unwrap(), key)
    };
    let (server, server_key) = signed(ExtendedKeyUsagePurpose::ServerAuth);
    let (client, client_key) = signed(ExtendedKeyUsagePurpose::ClientAuth);
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let daemon = Daemon::with(Options {
        tables: format!(
            "[streaming]\ntls = true\ncert = '{}'\nkey = '{}'\nclient_ca = '{}'",
            file("cert.pem", server.pem()),
            file("key.pem", server_key.serialize_pem()),
            file("ca.pem", authority.pem()),
        ),
        ..Default::default()
    })
    .await;
    let (_, id) = daemon.running("tls", "sleep 1000").await;
    let protocol = Protocol::Spdy("v4.channel.k8s.io");
    let url = daemon.exec_url(&id, &["true"], Want::OUTPUT).await.unwrap();
    let refused = Session::open(&daemon.lab, protocol, &url, Want::OUTPUT).await;
    assert!(refused.is_err(), "a client without a certificate");
    *tls::CLIENT.lock().unwrap() = Some((client.der().to_vec(), client_key.serialize_der()));
    let session = Session::open(&daemon.lab, protocol, &url, Want::OUTPUT).await.unwrap();
    assert_eq!(session.finish().await.code(), 0, "the URL is still good");
    daemon.finish().await;
}
