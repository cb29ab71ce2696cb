//! The three files of an identity, read and checked as one.
//!
//! Owns their names, the checks (each file by itself, and that they belong together), and the TLS configurations made
//! from them.
//!
//! ```text
//! DIR/ca.pem    the authority's certificate, or several while one takes over from another
//! DIR/cert.pem  the certificate, then those between it and the authority
//! DIR/key.pem   its key (PKCS #8)
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{self, PemObject},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use super::{
    Identity,
    certificate::{Subject, SubjectError, subject},
    tls_provider,
};

pub(super) const AUTHORITY: &str = "ca.pem";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// The error of reading the files of an identity.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum CredentialsError {
    #[error(
        "{} can't be read; an identity is a folder with {AUTHORITY}, {CERTIFICATE} and {KEY}, as `bazooka-rm pki` makes it",
        path.display()
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("{} isn't a PEM file", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{}: there is no certificate in it", path.display())]
    Empty { path: PathBuf },
    #[error("{}: it isn't an authority's certificate", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("{}: no peer can be verified with it", path.display())]
    Verifier { path: PathBuf, source: VerifierBuilderError },
    #[error("{}", path.display())]
    Subject { path: PathBuf, source: SubjectError },
    #[error("{}: it can't be used as a key", path.display())]
    Key { path: PathBuf, source: rustls::Error },
    #[error("{}: it is not the key of {CERTIFICATE}", path.display())]
    OtherKey { path: PathBuf, source: rustls::Error },
    #[error("{}: it ended at {at}; a new one can be made with `bazooka-rm pki`", path.display())]
    Ended { path: PathBuf, at: Timestamp },
    #[error("{}: {AUTHORITY} hasn't signed it as a client's certificate", path.display())]
    NotVouchedFor { path: PathBuf, source: rustls::Error },
}

/// The mark of one state of the files: of each, its modification time, its length and its inode.
pub(super) type Stamp = [(SystemTime, u64, u64); 3];

/// One state of the files, complete and checked.
pub(super) struct Files {
    pub stamp: Stamp,
    pub identity: Identity,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub authority_pem: Vec<u8>,
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    pub certified: Arc<CertifiedKey>,
    pub roots: Arc<RootCertStore>,
    pub verifier: Arc<dyn ClientCertVerifier>,
    pub server: Arc<ServerConfig>,
}

/// Returns the stamp of the present files, without reading them.
///
/// # Errors
/// The first file that cannot be inspected.
pub(super) fn stamp(dir: &Path) -> Result<Stamp, CredentialsError> {
    use std::os::unix::fs::MetadataExt;
    let one = |name| {
        let path = dir.join(name);
        let found = fs::metadata(&path).and_then(|found| Ok((found.modified()?, found.len(), found.ino())));
        found.map_err(|source| CredentialsError::Read { path, source })
    };
    Ok([one(AUTHORITY)?, one(CERTIFICATE)?, one(KEY)?])
}

impl Files {
    /// Reads and checks the files of a folder.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn read(dir: &Path) -> Result<Files, CredentialsError> {
        let file = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|source| CredentialsError::Read { path, source })
        };
        // Taken before reading, so that a file renamed meanwhile is read again.
        let stamp = stamp(dir)?;
        let (authority_pem, certificate_pem, key_pem) = (file(AUTHORITY)?, file(CERTIFICATE)?, file(KEY)?);
        let (roots, verifier) = authority(dir, &authority_pem)?;
        let (certified, subject) = certified(dir, &certificate_pem, &key_pem)?;
        vouched_for(dir, &certified, &subject, &*verifier)?;
        let server = ServerConfig::builder_with_provider(tls_provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified.clone())));
        Ok(Files {
            stamp,
            identity: subject.identity,
            not_before: subject.not_before,
            not_after: subject.not_after,
            authority_pem,
            certificate_pem,
            key_pem,
            certified,
            roots,
            verifier,
            server: Arc::new(server),
        })
    }
}

fn certificates(path: PathBuf, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(CredentialsError::Empty { path }),
        Ok(found) => Ok(found),
        Err(source) => Err(CredentialsError::Pem { path, source }),
    }
}

/// Returns the roots that this identity trusts, and the verifier of callers.
fn authority(
    dir: &Path,
    pem: &[u8],
) -> Result<(Arc<RootCertStore>, Arc<dyn ClientCertVerifier>), CredentialsError> {
    let path = || dir.join(AUTHORITY);
    let mut roots = RootCertStore::empty();
    for authority in certificates(path(), pem)? {
        roots.add(authority).map_err(|source| CredentialsError::Authority { path: path(), source })?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), tls_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|source| CredentialsError::Verifier { path: path(), source })?;
    Ok((roots, verifier))
}

/// Returns the certificate with its key, after checking that they match.
fn certified(
    dir: &Path,
    certificate_pem: &[u8],
    key_pem: &[u8],
) -> Result<(Arc<CertifiedKey>, Subject), CredentialsError> {
    let chain = certificates(dir.join(CERTIFICATE), certificate_pem)?;
    let subject = subject(&chain[0])
        .map_err(|source| CredentialsError::Subject { path: dir.join(CERTIFICATE), source })?;
    let path = || dir.join(KEY);
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|source| CredentialsError::Pem { path: path(), source })?;
    let key = tls_provider().key_provider.load_private_key(key);
    let key = key.map_err(|source| CredentialsError::Key { path: path(), source })?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|source| CredentialsError::OtherKey { path: path(), source })?;
    Ok((Arc::new(certified), subject))
}

/// Checks that the authority vouches for the certificate now.
fn vouched_for(
    dir: &Path,
    certified: &CertifiedKey,
    subject: &Subject,
    verifier: &dyn ClientCertVerifier,
) -> Result<(), CredentialsError> {
    let path = || dir.join(CERTIFICATE);
    if subject.not_after <= Timestamp::now() {
        return Err(CredentialsError::Ended { path: path(), at: subject.not_after });
    }
    let (first, rest) = certified.cert.split_first().expect("it isn't empty");
    verifier
        .verify_client_cert(first, rest, UnixTime::now())
        .map_err(|source| CredentialsError::NotVouchedFor { path: path(), source })?;
    Ok(())
}
