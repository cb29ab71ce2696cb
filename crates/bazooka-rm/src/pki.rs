//! `bazooka-rm pki`: the cluster's certificate authority, and the certificates that identify its members.
//!
//! Owns the authority's files and the certificates' contents. The authority's key has no other use: it belongs on a
//! machine of the operator's, and never on one that serves. Keys use P-256, which etcd, HAProxy, git and browsers all
//! accept.

use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use visor::{
    identity::{Credentials, CredentialsError, Identity, Kind, MAX_COMMON_NAME},
    names::{HostName, InvalidName},
};

/// The time before the present from which a certificate is valid, in minutes, because clocks differ.
const BEGINS_BEFORE_MINUTES: i64 = 5;

/// The reasons why a command on the authority fails.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum PkiError {
    #[error(
        "there is an authority in {} already; with a new one, the certificates that it signed would be worthless",
        .0.display()
    )]
    AuthorityExists(PathBuf),
    #[error("can't make {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("can't make a key")]
    Key(#[source] rcgen::Error),
    #[error("can't make a certificate")]
    Certificate(#[source] rcgen::Error),
    #[error(
        "{} can't be read ({error}); `bazooka-rm pki init {}` makes an authority",
        path.display(),
        folder.display()
    )]
    NoAuthority { path: PathBuf, folder: PathBuf, error: io::Error },
    #[error("{}", path.display())]
    Invalid { path: PathBuf, source: rcgen::Error },
    #[error("{0} is longer than a certificate's name may be ({MAX_COMMON_NAME} characters)")]
    NameTooLong(Identity),
    #[error("at which addresses is {0} reached? Name them: --address 10.0.0.1,host.example.org")]
    NoAddress(Identity),
    #[error("{0} serves nothing: no --address goes with it")]
    NeedlessAddress(Identity),
    #[error("{name}")]
    Address { name: HostName, source: rcgen::Error },
    #[error("{days} days are too long")]
    TooManyDays { days: u32, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

type Result<T, E = PkiError> = std::result::Result<T, E>;

/// `bazooka-rm pki`: make an authority, and identities of it
#[derive(Clone, Debug, clap::Subcommand)]
pub enum PkiCommand {
    /// Make a certificate authority
    Init {
        /// A folder for it, new or empty; its key stays there
        folder: PathBuf,
        /// How long it holds
        #[arg(long, default_value_t = 3650, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make an identity, or renew it: a daemon or a person that runs goes over to it by itself
    Issue {
        /// A person (ada), or a daemon by kind and name (pm:app1, rm:r1, proxy:p1, converger:c1, monitor:m1, etcd:e1)
        who: Identity,
        /// The authority's folder
        #[arg(long, value_name = "FOLDER")]
        pki: PathBuf,
        /// Where to put ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// The addresses and host names at which a daemon is reached
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
        address: Vec<Address>,
        /// How long it holds
        #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Say whose identity is in a folder, and until when it holds
    Show {
        /// The folder
        folder: PathBuf,
    },
}

/// An address of a daemon, as a certificate has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A host name.
    Name(HostName),
}

impl std::str::FromStr for Address {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        s.parse().map(Address::Ip).or_else(|_| s.parse().map(Address::Name))
    }
}

/// Runs a command and returns its output.
///
/// # Errors
/// [`PkiError`], which names the file or the remedy.
pub fn run(command: PkiCommand) -> Result<String> {
    let now = Timestamp::now();
    match command {
        PkiCommand::Init { folder, days } => {
            Authority::create(&folder, now, days)?;
            Ok(format!(
                "an authority is in {}; keep its key from every machine that serves\n",
                folder.display()
            ))
        }
        PkiCommand::Issue { who, pki, out, address, days } => {
            let issued = Authority::open(&pki)?.issue(&who, &address, now, days)?;
            issued.write(&out)?;
            Ok(format!("{who} is in {}, until {}\n", out.display(), issued.not_after))
        }
        PkiCommand::Show { folder } => {
            let credentials = Credentials::open(&folder)?;
            Ok(format!("{}, until {}\n", credentials.identity(), credentials.not_after()))
        }
    }
}

/// A cluster's certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A new identity: certificate and key.
pub struct Issued {
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
    /// When the certificate expires.
    pub not_after: Timestamp,
}

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";

impl Authority {
    /// Makes an authority in a folder that has none.
    ///
    /// # Errors
    /// If there is one, or it can't be written.
    pub fn create(folder: &Path, now: Timestamp, days: u32) -> Result<Authority> {
        let at = |name: &str| folder.join(name);
        if at(CERTIFICATE).exists() || at(KEY).exists() {
            return Err(PkiError::AuthorityExists(folder.to_owned()));
        }
        make_folder(folder)?;
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("bazooka cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after, _) = validity(now, days)?;
        let made = params.self_signed(&key).map_err(PkiError::Certificate)?;
        // The key is written first: without its certificate it is of no use to anyone.
        write(&at(KEY), key.serialize_pem().as_bytes(), 0o600)?;
        write(&at(CERTIFICATE), made.pem().as_bytes(), 0o644)?;
        Authority::open(folder)
    }

    /// Opens the authority of a folder.
    ///
    /// # Errors
    /// If there is none, or its files are invalid.
    pub fn open(folder: &Path) -> Result<Authority> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| PkiError::NoAuthority {
                path,
                folder: folder.to_owned(),
                error,
            })
        };
        let (certificate_pem, key) = (read(CERTIFICATE)?, read(KEY)?);
        let invalid = |name: &str, source| PkiError::Invalid { path: folder.join(name), source };
        let key = KeyPair::from_pem(&key).map_err(|error| invalid(KEY, error))?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|error| invalid(CERTIFICATE, error))?;
        Ok(Authority { certificate_pem, issuer })
    }

    /// Makes an identity with a new key.
    ///
    /// # Errors
    /// If a daemon has no address, or a person has one.
    pub fn issue(&self, who: &Identity, addresses: &[Address], now: Timestamp, days: u32) -> Result<Issued> {
        let name = who.to_string();
        if name.len() > MAX_COMMON_NAME {
            return Err(PkiError::NameTooLong(who.clone()));
        }
        let serves = !matches!(who, Identity::User(_) | Identity::Daemon(Kind::Monitor, _));
        match (serves, addresses.is_empty()) {
            (true, true) => return Err(PkiError::NoAddress(who.clone())),
            (false, false) => return Err(PkiError::NeedlessAddress(who.clone())),
            _ => {}
        }
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&name);
        params.subject_alt_names = addresses.iter().map(alternative).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.extended_key_usages.extend(serves.then_some(ExtendedKeyUsagePurpose::ServerAuth));
        let not_after;
        (params.not_before, params.not_after, not_after) = validity(now, days)?;
        let made = params.signed_by(&key, &self.issuer).map_err(PkiError::Certificate)?;
        Ok(Issued {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: made.pem(),
            key_pem: key.serialize_pem(),
            not_after,
        })
    }
}

impl Issued {
    /// Writes the files to a folder, over existing ones. A daemon that reads them in between finds that they don't
    /// match, and keeps the ones that it has.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        write(&folder.join("key.pem"), self.key_pem.as_bytes(), 0o600)?;
        write(&folder.join("cert.pem"), self.certificate_pem.as_bytes(), 0o644)?;
        write(&folder.join("ca.pem"), self.authority_pem.as_bytes(), 0o644)
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| PkiError::Folder { path: folder.to_owned(), source })
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn alternative(address: &Address) -> Result<SanType> {
    match address {
        Address::Ip(ip) => Ok(SanType::IpAddress(*ip)),
        Address::Name(name) => {
            let invalid = |source| PkiError::Address { name: name.clone(), source };
            Ok(SanType::DnsName(name.as_str().try_into().map_err(invalid)?))
        }
    }
}

/// Returns begin and end of a certificate, and the end once more as a timestamp.
fn validity(now: Timestamp, days: u32) -> Result<(OffsetDateTime, OffsetDateTime, Timestamp)> {
    let end = now
        .checked_add((24 * i64::from(days)).hours())
        .map_err(|error| PkiError::TooManyDays { days, source: error.into() })?;
    let begin = now - BEGINS_BEFORE_MINUTES.minutes();
    let at = |at: Timestamp| {
        OffsetDateTime::from_unix_timestamp(at.as_second())
            .map_err(|error| PkiError::TooManyDays { days, source: error.into() })
    };
    Ok((at(begin)?, at(end)?, end))
}

/// Writes a file under another name, and renames it.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let draft = path.with_extension("new");
    let written = (|| -> io::Result<()> {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    })();
    written.map_err(|source| PkiError::Write { path: path.to_owned(), source })
}
