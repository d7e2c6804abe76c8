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
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use super::Error;
use crate::config::Streaming as Settings;

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
        .with_safe_default_protocol_versions()
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
    fn a_certificate_is_made_when_none_is_given() {
        let settings = Settings {
            tls: true,
            ..Settings::default()
        };
        Tls::open(&settings).unwrap().refresh();
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
