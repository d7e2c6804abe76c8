//! TLS as the configuration wants it for one registry.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::settings::Settings;

/// TLS as `settings` want it: the system's authorities and the host's own. Reads files.
///
/// # Errors
/// A sentence about the file that could not be used.
pub(super) fn config(settings: &Settings) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = builder(&provider)?;
    let client = Arc::new(ClientCertificates::read(settings, &provider)?);
    if settings.skip_verify {
        let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(client));
    }
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate authority of the system can't be read");
    }
    roots.add_parsable_certificates(native.certs);
    for path in &settings.authorities {
        add(&mut roots, path).map_err(|reason| format!("read certificate authorities {}: {reason}", path.display()))?;
    }
    Ok(builder.with_root_certificates(roots).with_client_cert_resolver(client))
}

/// Settings under which no server is trusted, for plain HTTP.
pub(super) fn none() -> Result<ClientConfig, String> {
    let builder = builder(&Arc::new(ring::default_provider()))?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

fn builder(
    provider: &Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let mut any = false;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err("it has no certificate".into())
    }
}

/// What is shown to a server that asks for a certificate: the first that it can check.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ClientCertificates {
    fn read(settings: &Settings, provider: &CryptoProvider) -> Result<Self, String> {
        let read = |(certificate, key): &(PathBuf, Option<PathBuf>)| {
            let key = key.as_ref().unwrap_or(certificate);
            let wrong = |file: &Path, reason: String| format!("read client certificate {}: {reason}", file.display());
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| wrong(certificate, error.to_string()))?;
            if chain.is_empty() {
                return Err(wrong(certificate, "it has no certificate".into()));
            }
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
            CertifiedKey::from_der(chain, private, provider)
                .map(Arc::new)
                .map_err(|error| wrong(certificate, error.to_string()))
        };
        settings.clients.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        self.0.iter().find(usable).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: any certificate will do, as long as the server has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_authority_file_is_named() {
        let file = std::env::temp_dir().join(format!("wharf-ca-{}", std::process::id()));
        fs::write(&file, "nothing").unwrap();
        let settings = Settings {
            authorities: vec![file.clone()],
            ..Settings::default()
        };
        let error = config(&settings).unwrap_err();
        assert!(
            error.contains(&file.display().to_string()) && error.contains("no certificate"),
            "{error}"
        );
        fs::remove_file(&file).unwrap();
        assert!(config(&settings).is_err());
        assert!(config(&Settings::default()).is_ok());
        let client = Settings {
            skip_verify: true,
            clients: vec![(file.clone(), None)],
            ..Settings::default()
        };
        assert!(config(&client).unwrap_err().contains(&file.display().to_string()));
    }
}
