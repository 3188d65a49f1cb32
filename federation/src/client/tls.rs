//! Whom to trust.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// TLS with the certificate authorities of the system and those in `extra_pem`.
///
/// Reads the system's files; to be called once and cloned. Also for
/// [`crate::egress::GuardedClient`].
pub fn tls_config(extra_pem: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    // A machine without them can still speak to the servers that the operator's file covers.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(extra_pem) {
        let certificate = certificate.map_err(|_| TlsError::Pem)?;
        roots.add(certificate).map_err(|_| TlsError::Pem)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file has something that is not a certificate.
    #[error("the file of certificate authorities is not PEM with certificates")]
    Pem,
    /// The TLS library does not offer what is needed.
    #[error("TLS is not available")]
    Provider(#[source] rustls::Error),
}
