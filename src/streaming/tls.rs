//! TLS as the configuration wants it: with given files, which are read again when they change, or with a certificate
//! that is made at each start.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsAcceptor;

use super::Error;
use crate::config::{Streaming as Settings, TlsVersion};

/// Makes acceptors of the newest certificate.
pub struct Tls {
    settings: Settings,
    current: Mutex<(Arc<ServerConfig>, Vec<Option<SystemTime>>)>,
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// A sentence about what can't be used.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let current = (config(settings).map_err(Error::Tls)?, ages(settings));
        Ok(Self {
            settings: settings.clone(),
            current: Mutex::new(current),
        })
    }

    /// What the next client is accepted with.
    pub fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.0.clone())
    }

    /// Reads files again that have changed; what can't be used is logged, and the old goes on. Blocks.
    pub fn refresh(&self) {
        let ages = ages(&self.settings);
        let known = self.current.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        if ages.is_empty() || ages == known {
            return;
        }
        match config(&self.settings) {
            Ok(config) => {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (config, ages);
                tracing::info!("the streaming server uses the new certificate");
            }
            Err(reason) => tracing::warn!(reason, "the streaming server keeps its old certificate"),
        }
    }
}

/// When each file was changed.
fn ages(settings: &Settings) -> Vec<Option<SystemTime>> {
    [&settings.cert, &settings.key, &settings.client_ca]
        .into_iter()
        .flatten()
        .map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
        .collect()
}

fn config(settings: &Settings) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let (chain, key) = match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => (certificates(cert)?, private_key(key)?),
        _ => self_made(settings.address)?,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(settings.min_tls_version))
        .map_err(|error| error.to_string())?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| about(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| about(path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("use the certificate: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Those that clients may speak, the best first.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match least {
        TlsVersion::V12 => &VERSIONS,
        TlsVersion::V13 => &VERSIONS[..1],
    }
}

fn about(path: &Path, error: impl std::fmt::Display) -> String {
    format!("read {}: {error}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| about(path, error))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all.map_err(|error| about(path, error))? {
        none if none.is_empty() => Err(about(path, "it has no certificate")),
        some => Ok(some),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = fs::read(path).map_err(|error| about(path, error))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| about(path, error))
}

fn self_made(address: IpAddr) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let names = vec![address.to_string(), "localhost".into()];
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| format!("make a certificate: {error}"))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_speak_only_an_older_version_are_refused() {
        for (min_tls_version, accepted) in [(TlsVersion::V12, true), (TlsVersion::V13, false)] {
            let settings = Settings {
                tls: true,
                min_tls_version,
                ..Settings::default()
            };
            let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let client = builder
                .with_protocol_versions(&[&TLS12])
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            let name = "localhost".try_into().unwrap();
            let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
            let mut hello = Vec::new();
            client.write_tls(&mut hello).unwrap();
            let mut server = rustls::ServerConnection::new(config(&settings).unwrap()).unwrap();
            server.read_tls(&mut hello.as_slice()).unwrap();
            assert_eq!(server.process_new_packets().is_ok(), accepted, "{min_tls_version:?}");
        }
    }

    #[test]
    fn a_certificate_is_made_when_none_is_given() {
        let settings = Settings {
            tls: true,
            ..Settings::default()
        };
        Tls::open(&settings).unwrap().refresh();
    }

    /// Writes a file whose age differs from that of every other write, however coarse the file system's clock.
    fn write(path: &Path, kind: &str, der: &[u8], age: u64) {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let text = format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"));
        fs::write(path, text).unwrap();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + age);
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }

    #[test]
    fn files_that_change_count_from_the_next_look_and_broken_ones_do_not() {
        let dir = std::env::temp_dir().join(format!("wharf-tls-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (cert, key, ca) = (dir.join("cert"), dir.join("key"), dir.join("ca"));
        let fill = |age| {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
            write(&cert, "CERTIFICATE", made.cert.der(), age);
            write(&ca, "CERTIFICATE", made.cert.der(), age);
            write(&key, "PRIVATE KEY", &made.signing_key.serialize_der(), age);
        };
        fill(1);
        let tls = Tls::open(&Settings {
            tls: true,
            cert: Some(cert.clone()),
            key: Some(key.clone()),
            client_ca: Some(ca.clone()),
            ..Settings::default()
        })
        .unwrap();
        let mut known = tls.acceptor().config().clone();
        let mut is_new = || {
            tls.refresh();
            let now = tls.acceptor().config().clone();
            !Arc::ptr_eq(&std::mem::replace(&mut known, now.clone()), &now)
        };
        assert!(!is_new(), "nothing has changed");
        fill(2);
        assert!(is_new(), "all three");
        let other = rcgen::generate_simple_self_signed(vec!["clients".into()]).unwrap();
        write(&ca, "CERTIFICATE", other.cert.der(), 3);
        assert!(is_new(), "the clients' authority alone");
        write(&key, "PRIVATE KEY", b"nonsense", 4);
        assert!(!is_new(), "a key that can't be read");
        // Key and certificate are replaced one after the other: between the two they don't fit.
        write(&key, "PRIVATE KEY", &other.signing_key.serialize_der(), 5);
        assert!(!is_new(), "a key of another certificate");
        write(&cert, "CERTIFICATE", other.cert.der(), 6);
        assert!(is_new(), "and its certificate");
        fs::remove_file(&ca).unwrap();
        assert!(!is_new(), "a file that is gone");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let settings = Settings {
            tls: true,
            cert: Some("/dev/null".into()),
            key: Some("/dev/null".into()),
            ..Settings::default()
        };
        let Err(error) = Tls::open(&settings) else {
            panic!("an empty file is no certificate")
        };
        assert_eq!(
            error.to_string(),
            "TLS for streams: read /dev/null: it has no certificate"
        );
    }
}
