//! An identity that follows its files: read from a folder, and read again when they change.
//!
//! Owns when the files are read again, the warning before they expire, and the answers about them. A renewal renames
//! new files over the old ones. Incomplete or wrong new files are reported and not used; the old ones stay in use.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    ClientConfig, ServerConfig,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, UnixTime},
    sign::CertifiedKey,
};
use tokio::time::Instant;

use super::{
    Identity,
    certificate::{Subject, SubjectError, subject},
    files::{AUTHORITY, CredentialsError, Files, Stamp, stamp},
    tls_provider,
};

/// The shortest interval between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The time before its end at which a certificate is warned of; for a short-lived one, its last third.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);

/// The reason why a chain of certificates proves nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum ChainError {
    #[error("there is no certificate")]
    Empty,
    #[error("the cluster's authority hasn't signed it")]
    NotVouchedFor(#[source] rustls::Error),
    #[error("it names no identity")]
    Subject(#[from] SubjectError),
}

/// An identity that follows its files. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    held: Arc<Files>,
    looked: Instant,
    /// The state of the files when they were last found wrong, so that it is reported once.
    rejected: Option<Stamp>,
    warned: bool,
}

/// The PEM texts with which a connection to etcd is made.
pub(crate) struct Pem {
    pub authority: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl Credentials {
    /// Reads and checks the identity in a folder.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn open(dir: &Path) -> Result<Credentials, CredentialsError> {
        let held = Files::read(dir)?;
        let state = State { held: Arc::new(held), looked: Instant::now(), rejected: None, warned: false };
        let credentials = Credentials(Arc::new(Inner { dir: dir.to_owned(), state: Mutex::new(state) }));
        credentials.current();
        Ok(credentials)
    }

    /// Returns the identity that the certificate names.
    pub fn identity(&self) -> Identity {
        self.current().identity.clone()
    }

    /// Returns the last moment at which the certificate is valid.
    pub fn not_after(&self) -> Timestamp {
        self.current().not_after
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Returns the file with the authority's certificate, for other programs.
    pub fn authority_file(&self) -> PathBuf {
        self.0.dir.join(AUTHORITY)
    }

    /// Returns the certificate, its chain and the key as one PEM text, for programs that need that form.
    ///
    /// It contains the key: a file with it must be readable only by its owner.
    pub fn certificate_and_key(&self) -> Vec<u8> {
        let held = self.current();
        [held.certificate_pem.as_slice(), b"\n", &held.key_pem].concat()
    }

    /// Returns the TLS configuration for calls of the cluster's daemons, which must be of the same authority.
    ///
    /// It presents whichever certificate is current when it is asked for one.
    pub fn client_config(&self) -> ClientConfig {
        let held = self.current();
        ClientConfig::builder_with_provider(tls_provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_root_certificates(held.roots.clone())
            .with_client_cert_resolver(Arc::new(self.clone()))
    }

    pub(crate) fn pem(&self) -> Pem {
        let held = self.current();
        Pem {
            authority: held.authority_pem.clone(),
            certificate: held.certificate_pem.clone(),
            key: held.key_pem.clone(),
        }
    }

    /// Returns the TLS configuration for callers: a presented certificate must be of the same authority.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// Returns the certificate (DER) with its chain.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current().certified.cert.clone()
    }

    /// Returns the key as PEM.
    pub fn key_pem(&self) -> Vec<u8> {
        self.current().key_pem.clone()
    }

    /// Returns whom a chain of certificates names, if the authority vouches for it at `now`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Subject, ChainError> {
        let (first, rest) = chain.split_first().ok_or(ChainError::Empty)?;
        let verifier = self.current().verifier.clone();
        let since = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
        let now = UnixTime::since_unix_epoch(since);
        verifier.verify_client_cert(first, rest, now).map_err(ChainError::NotVouchedFor)?;
        Ok(subject(first)?)
    }

    /// Returns the present files, or their last complete state.
    fn current(&self) -> Arc<Files> {
        let mut state = self.0.state.lock().expect("no holder of this lock panics");
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            self.look(&mut state);
        }
        let left = state.held.not_after.duration_since(Timestamp::now());
        let lifetime = state.held.not_after.duration_since(state.held.not_before);
        let soon = i64::try_from(WARN_BEFORE.as_secs()).unwrap_or(i64::MAX).min(lifetime.as_secs() / 3);
        if left.as_secs() < soon && !state.warned {
            state.warned = true;
            tracing::warn!(
                identity = %state.held.identity, not_after = %state.held.not_after,
                "this identity's certificate ends soon; put a new one in its place"
            );
        }
        state.held.clone()
    }

    fn look(&self, state: &mut State) {
        let Ok(stamp) = stamp(&self.0.dir) else { return };
        if stamp == state.held.stamp || state.rejected == Some(stamp) {
            return;
        }
        match Files::read(&self.0.dir) {
            Ok(held) if held.identity == state.held.identity => {
                tracing::info!(identity = %held.identity, not_after = %held.not_after, "a new certificate");
                state.held = Arc::new(held);
                (state.rejected, state.warned) = (None, false);
            }
            Ok(held) => {
                state.rejected = Some(stamp);
                tracing::error!(
                    found = %held.identity, identity = %state.held.identity,
                    "the new certificate is somebody else's; the old one goes on"
                );
            }
            Err(error) => {
                // The files are renamed one after the other: files that do not match yet may match in a moment.
                state.rejected = Some(stamp);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the new certificate can't be used; the old one goes on"
                );
            }
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not be shown.
        f.debug_tuple("Credentials").field(&self.0.dir).finish()
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
