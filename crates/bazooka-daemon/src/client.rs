//! The HTTP client for the cluster's other daemons, and one that tries what others let in.
//!
//! Owns how a client is built. Callers set the timeouts.

use std::sync::Arc;

use reqwest::tls::TlsInfo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use visor::identity::{Credentials, Identity, subject, tls_provider};

/// Builds an HTTP client for the cluster's own daemons, with this identity, or without an identity and TLS. It ignores
/// a proxy of the environment, because these daemons are within the cluster.
pub fn http_client(credentials: Option<&Credentials>) -> reqwest::ClientBuilder {
    let tls = credentials.map_or_else(
        || {
            ClientConfig::builder_with_provider(tls_provider())
                .with_safe_default_protocol_versions()
                .expect("ring knows TLS 1.2 and 1.3")
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        },
        Credentials::client_config,
    );
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls)
}

/// Returns whom the certificate of an answer's daemon names. The client must have been built with `tls_info(true)`; its TLS
/// has verified the certificate.
pub fn shown_by(answer: &reqwest::Response) -> Option<Identity> {
    let certificate = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate)?;
    Some(subject(&CertificateDer::from(certificate)).ok()?.identity)
}

/// Builds an HTTP client that shows this identity to any server, whichever authority vouches for the server.
///
/// Use it to ask whether a server lets this identity in, and for nothing else: the server may be anyone, so send it
/// nothing that is not public, and believe none of its words.
pub fn probing_client(credentials: &Credentials) -> reqwest::ClientBuilder {
    let tls = ClientConfig::builder_with_provider(tls_provider())
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(tls_provider())))
        .with_client_cert_resolver(Arc::new(credentials.clone()));
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls)
}

/// Takes every server's certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
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
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
