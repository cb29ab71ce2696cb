//! The HTTP client for the cluster's other daemons.
//!
//! Owns how a client is built. Callers set the timeouts.

use rustls::{ClientConfig, RootCertStore};
use visor::identity::{Credentials, tls_provider};

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
