//! A certificate with its key, and the authority that it trusts: read from a folder, and read again when they change.
//!
//! Owns the files' names, what is checked of them, and TLS made from them. A renewal is a rename of new files over
//! the old ones; what is half-way or wrong is told and not taken, and the old ones go on.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::time::Instant;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::Identity;

/// The authority's certificate, or several of them while one takes over from another.
const AUTHORITY: &str = "ca.pem";

/// The certificate, with those between it and the authority after it.
const CERTIFICATE: &str = "cert.pem";

/// Its key (PKCS #8).
const KEY: &str = "key.pem";

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long before its end a certificate is warned of; of a short-lived one, its last third.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);

/// Who this process is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct IdentityArgs {
    /// A folder with this identity: ca.pem, cert.pem and key.pem; without one nobody is told apart
    #[arg(long, env = "BAZOOKA_IDENTITY", value_name = "DIR", global = true)]
    pub identity: Option<PathBuf>,
}

impl IdentityArgs {
    /// The identity, if one was given.
    ///
    /// # Errors
    /// As [`Credentials::open`].
    pub fn open(&self) -> Result<Option<Credentials>, String> {
        self.identity.as_deref().map(Credentials::open).transpose()
    }
}

/// An identity that is kept up with its files. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    held: Arc<Held>,
    looked: Instant,
    /// The files as they were when they were last found wrong, so that it is told once.
    rejected: Option<Stamp>,
    warned: bool,
}

/// What tells one state of the files from another.
type Stamp = [(SystemTime, u64, u64); 3];

/// One state of the files, whole and checked.
pub(super) struct Held {
    stamp: Stamp,
    identity: Identity,
    not_before: Timestamp,
    not_after: Timestamp,
    authority_pem: Vec<u8>,
    certificate_pem: Vec<u8>,
    key_pem: Vec<u8>,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
    server: Arc<ServerConfig>,
}

/// What a connection to etcd is made with, as PEM.
pub(crate) struct Pem {
    pub authority: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// The one implementation of TLS's primitives that is used, whatever else is linked.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Has libraries that take the process's own implementation of TLS's primitives, and aren't told one, take that as well.
pub fn share_tls_primitives() {
    // Another call of this has done it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Credentials {
    /// Reads and checks a folder's identity.
    ///
    /// # Errors
    /// What is wrong with which file, and what to do.
    pub fn open(dir: &Path) -> Result<Credentials, String> {
        let held = Held::read(dir)?;
        let state = State { held: Arc::new(held), looked: Instant::now(), rejected: None, warned: false };
        let credentials = Credentials(Arc::new(Inner { dir: dir.to_owned(), state: Mutex::new(state) }));
        credentials.current();
        Ok(credentials)
    }

    /// Who it says.
    pub fn identity(&self) -> Identity {
        self.current().identity.clone()
    }

    /// Until when it holds.
    pub fn not_after(&self) -> Timestamp {
        self.current().not_after
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The file with the authority's certificate, for other programs.
    pub fn authority_file(&self) -> PathBuf {
        self.0.dir.join(AUTHORITY)
    }

    /// The certificate, those after it and the key, as PEM in one piece, for programs that take them so. It holds the key:
    /// a file with it is for its owner alone.
    pub fn certificate_and_key(&self) -> Vec<u8> {
        let held = self.current();
        [held.certificate_pem.as_slice(), b"\n", &held.key_pem].concat()
    }

    /// TLS for requests to the cluster's daemons: they must be of the same authority. It shows whichever certificate
    /// is current when it is asked for one.
    pub fn client_config(&self) -> ClientConfig {
        let held = self.current();
        ClientConfig::builder_with_provider(provider())
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

    /// TLS for connections of who calls: whoever shows a certificate must be of the same authority.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// The certificate (DER) with those after it, and the key as PEM.
    pub(super) fn signer(&self) -> (Vec<CertificateDer<'static>>, Vec<u8>) {
        let held = self.current();
        (held.certified.cert.clone(), held.key_pem.clone())
    }

    /// Who a chain of certificates names, if it is of this authority and holds at `now`.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Identity, String> {
        let (first, rest) = chain.split_first().ok_or("there is no certificate")?;
        let verifier = self.current().verifier.clone();
        verifier.verify_client_cert(first, rest, now).map_err(|error| error.to_string())?;
        Ok(subject(first)?.identity)
    }

    /// The files as they are, or as they were last whole.
    pub(super) fn current(&self) -> Arc<Held> {
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
        match Held::read(&self.0.dir) {
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
                // They are renamed one after the other: what doesn't fit together yet may in a moment.
                state.rejected = Some(stamp);
                tracing::warn!(error, "the new certificate can't be used; the old one goes on");
            }
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
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

fn stamp(dir: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let one = |name| {
        let found = fs::metadata(dir.join(name))?;
        io::Result::Ok((found.modified()?, found.len(), found.ino()))
    };
    Ok([one(AUTHORITY)?, one(CERTIFICATE)?, one(KEY)?])
}

impl Held {
    fn read(dir: &Path) -> Result<Held, String> {
        let file = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|error| {
                format!(
                    "{} can't be read ({error}); an identity is a folder with {AUTHORITY}, {CERTIFICATE} and {KEY}, as \
                     `bazooka-rm pki` makes it",
                    path.display()
                )
            })
        };
        let wrong = |name: &str, cause: &dyn fmt::Display| format!("{}: {cause}", dir.join(name).display());
        // Taken before they are read: what is renamed meanwhile is looked at again.
        let stamp = stamp(dir).map_err(|_| file(AUTHORITY).and(file(CERTIFICATE)).and(file(KEY)).err());
        let stamp = match stamp {
            Ok(stamp) => stamp,
            Err(cause) => return Err(cause.unwrap_or_else(|| format!("{} changes", dir.display()))),
        };
        let (authority_pem, certificate_pem, key_pem) = (file(AUTHORITY)?, file(CERTIFICATE)?, file(KEY)?);
        let certificates = |name: &str, pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, String> {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let found = found.map_err(|error| wrong(name, &error))?;
            if found.is_empty() { Err(wrong(name, &"there is no certificate in it")) } else { Ok(found) }
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(AUTHORITY, &authority_pem)? {
            roots.add(authority).map_err(|error| wrong(AUTHORITY, &error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(CERTIFICATE, &certificate_pem)?;
        let subject = subject(&chain[0]).map_err(|cause| wrong(CERTIFICATE, &cause))?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| wrong(KEY, &error))?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| wrong(KEY, &error))?;
        let certified = Arc::new(CertifiedKey::new(chain, key));
        certified.keys_match().map_err(|_| wrong(KEY, &format!("it is not the key of {CERTIFICATE}")))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| wrong(AUTHORITY, &error))?;
        if subject.not_after <= Timestamp::now() {
            let cause =
                format!("it ended at {}; a new one can be made with `bazooka-rm pki`", subject.not_after);
            return Err(wrong(CERTIFICATE, &cause));
        }
        let (first, rest) = certified.cert.split_first().expect("it isn't empty");
        verifier.verify_client_cert(first, rest, UnixTime::now()).map_err(|error| {
            wrong(CERTIFICATE, &format!("{AUTHORITY} doesn't vouch for it as a client's: {error}"))
        })?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified.clone())));
        Ok(Held {
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

/// An HTTP client for the cluster's own daemons, as this identity or as nobody: then without TLS. Within the cluster,
/// so a proxy of the environment is for elsewhere.
pub fn http_client(credentials: Option<&Credentials>) -> reqwest::ClientBuilder {
    let tls = credentials.map_or_else(
        || {
            ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .expect("ring knows TLS 1.2 and 1.3")
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        },
        Credentials::client_config,
    );
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls)
}

/// Whom a certificate names, and when it holds.
pub struct Subject {
    /// Who.
    pub identity: Identity,
    /// From when on it holds.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// The public key, as the bits of its structure (RFC 5280, 4.1.2.7): of P-256, an uncompressed point.
    pub public_key: Vec<u8>,
}

/// Whom a certificate names. Whether it holds is not looked at.
///
/// # Errors
/// Why it names nobody.
pub fn subject(certificate: &CertificateDer<'_>) -> Result<Subject, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next().ok_or("it has no common name, which says whose it is")?;
    let name = name.as_str().map_err(|_| "its common name isn't text")?;
    // Which of two etcd would take is not to be guessed.
    if names.next().is_some() {
        return Err("it has more than one common name".into());
    }
    let identity = name.parse().map_err(|error: crate::names::InvalidName| error.to_string())?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| error.to_string())
    };
    let (not_before, not_after) = (at(parsed.validity().not_before)?, at(parsed.validity().not_after)?);
    Ok(Subject {
        identity,
        not_before,
        not_after,
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}

/// The wall clock, as verifiers take it.
pub(super) fn unix(now: Timestamp) -> UnixTime {
    let since = UNIX_EPOCH + Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    UnixTime::since_unix_epoch(since.duration_since(UNIX_EPOCH).unwrap_or_default())
}
