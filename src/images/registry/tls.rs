//! TLS as the configuration wants it for one registry.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::config::Registry;

/// The TLS settings for `registry`: the system's authorities and the registry's own. Reads files.
///
/// # Errors
/// A sentence about the file that could not be used.
pub(super) fn config(registry: Option<&Registry>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = builder(&provider)?;
    if registry.is_some_and(|registry| registry.skip_verify) {
        let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate authority of the system can't be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = registry.and_then(|registry| registry.ca.as_deref()) {
        add(&mut roots, path).map_err(|reason| format!("read certificate authorities {}: {reason}", path.display()))?;
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
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
        let registry = Registry {
            ca: Some(file.clone()),
            ..Registry::default()
        };
        let error = config(Some(&registry)).unwrap_err();
        assert!(
            error.contains(&file.display().to_string()) && error.contains("no certificate"),
            "{error}"
        );
        fs::remove_file(&file).unwrap();
        assert!(config(Some(&registry)).is_err());
        assert!(config(None).is_ok());
        assert!(
            config(Some(&Registry {
                skip_verify: true,
                ..Registry::default()
            }))
            .is_ok()
        );
    }
}
