//! HTTP to the cluster's other daemons.
//!
//! Owns the one way in which a client is built. Timeouts are their caller's.

use rustls::{ClientConfig, RootCertStore};
use visor::identity::{Credentials, tls_provider};

/// An HTTP client for the cluster's own daemons, as this identity, or as nobody and then without TLS. It passes by a proxy of the
/// environment, since these daemons are within the cluster.
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
