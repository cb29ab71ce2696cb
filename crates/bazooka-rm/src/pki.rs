//! `bazooka-rm pki`: the cluster's certificate authorities, and the certificates that identify its members.
//!
//! Owns the authorities' files and the certificates' contents. One authority is for callers and what they call; the
//! other is for the connections between etcd's members, because whoever etcd takes for a member writes any key. The
//! authorities' keys have no other use: they belong on a machine of the operator's, and never on one that serves. Keys
//! use P-256, which etcd, HAProxy, git and browsers all accept.

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
    #[error(
        "there is an authority of etcd's peers in {} already; with a new one, etcd's members would refuse each other",
        .0.display()
    )]
    PeersExist(PathBuf),
    #[error(
        "{} has no authority of etcd's peers, and a member of etcd takes a certificate of it; \
         `bazooka-rm pki init-peers {}` makes one",
        .0.display(), .0.display()
    )]
    NoPeers(PathBuf),
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
    /// Make a certificate authority, and another one for the connections between etcd's members
    Init {
        /// A folder for both, new or empty; their keys stay there
        folder: PathBuf,
        /// How long they hold
        #[arg(long, default_value_t = 3650, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make the authority for the connections between etcd's members, for an authority that was made without it
    InitPeers {
        /// The authority's folder
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
        /// Where to put ca.pem, cert.pem and key.pem; for a member of etcd also peers.pem, peer-cert.pem and peer-key.pem
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
                "an authority is in {}; keep its keys from every machine that serves\n",
                folder.display()
            ))
        }
        PkiCommand::InitPeers { folder, days } => {
            Authority::add_peers(&folder, now, days)?;
            Ok(format!(
                "an authority of etcd's peers is in {}; keep its key from every machine that serves\n",
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

/// A cluster's certificate authority, and that of its etcd's peers.
pub struct Authority {
    folder: PathBuf,
    cluster: Signer,
    /// None in a folder of a release that had none.
    peers: Option<Signer>,
}

/// One authority: what it vouches with.
struct Signer {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A new identity. A member of etcd has two: what it shows clients, and what it shows its peers.
pub struct Issued {
    own: Signed,
    peer: Option<Signed>,
    /// When the certificates expire.
    pub not_after: Timestamp,
}

/// A certificate with its key, and the authority that vouches for it.
struct Signed {
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

/// The file names of one authority, and the name in its certificate.
struct AuthorityFiles {
    certificate: &'static str,
    key: &'static str,
    subject: &'static str,
}

const CLUSTER: AuthorityFiles =
    AuthorityFiles { certificate: "ca.pem", key: "ca-key.pem", subject: "bazooka cluster" };
const PEERS: AuthorityFiles =
    AuthorityFiles { certificate: "peers.pem", key: "peers-key.pem", subject: "bazooka etcd peers" };

impl AuthorityFiles {
    fn exist(&self, folder: &Path) -> bool {
        [self.certificate, self.key].iter().any(|name| folder.join(name).exists())
    }

    fn create(&self, folder: &Path, now: Timestamp, days: u32) -> Result<()> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(self.subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after, _) = validity(now, days)?;
        let made = params.self_signed(&key).map_err(PkiError::Certificate)?;
        // The key is written first: without its certificate it is of no use to anyone.
        write(&folder.join(self.key), key.serialize_pem().as_bytes(), 0o600)?;
        write(&folder.join(self.certificate), made.pem().as_bytes(), 0o644)
    }

    fn open(&self, folder: &Path) -> Result<Signer> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| PkiError::NoAuthority {
                path,
                folder: folder.to_owned(),
                error,
            })
        };
        let (certificate_pem, key) = (read(self.certificate)?, read(self.key)?);
        let invalid = |name: &str, source| PkiError::Invalid { path: folder.join(name), source };
        let key = KeyPair::from_pem(&key).map_err(|error| invalid(self.key, error))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|error| invalid(self.certificate, error))?;
        Ok(Signer { certificate_pem, issuer })
    }
}

impl Authority {
    /// Makes both authorities in a folder that has none.
    ///
    /// # Errors
    /// If there is one, or it can't be written.
    pub fn create(folder: &Path, now: Timestamp, days: u32) -> Result<Authority> {
        if CLUSTER.exist(folder) || PEERS.exist(folder) {
            return Err(PkiError::AuthorityExists(folder.to_owned()));
        }
        make_folder(folder)?;
        CLUSTER.create(folder, now, days)?;
        PEERS.create(folder, now, days)?;
        Authority::open(folder)
    }

    /// Makes the authority of etcd's peers in the folder of an authority that was made without it.
    ///
    /// # Errors
    /// If there is no authority, if there is one of peers, or it can't be written.
    pub fn add_peers(folder: &Path, now: Timestamp, days: u32) -> Result<Authority> {
        CLUSTER.open(folder)?;
        if PEERS.exist(folder) {
            return Err(PkiError::PeersExist(folder.to_owned()));
        }
        PEERS.create(folder, now, days)?;
        Authority::open(folder)
    }

    /// Opens the authorities of a folder.
    ///
    /// # Errors
    /// If there is no authority of the cluster, or files are invalid.
    pub fn open(folder: &Path) -> Result<Authority> {
        let cluster = CLUSTER.open(folder)?;
        let peers = PEERS.exist(folder).then(|| PEERS.open(folder)).transpose()?;
        Ok(Authority { folder: folder.to_owned(), cluster, peers })
    }

    /// Makes an identity with a new key; for a member of etcd two, of which the other authority vouches for one.
    ///
    /// # Errors
    /// If a daemon has no address, or a person has one; if a member of etcd has no authority of peers.
    pub fn issue(&self, who: &Identity, addresses: &[Address], now: Timestamp, days: u32) -> Result<Issued> {
        if who.to_string().len() > MAX_COMMON_NAME {
            return Err(PkiError::NameTooLong(who.clone()));
        }
        let serves = !matches!(who, Identity::User(_) | Identity::Daemon(Kind::Monitor, _));
        match (serves, addresses.is_empty()) {
            (true, true) => return Err(PkiError::NoAddress(who.clone())),
            (false, false) => return Err(PkiError::NeedlessAddress(who.clone())),
            _ => {}
        }
        let (own, not_after) = self.cluster.sign(who, addresses, serves, now, days)?;
        let peer = match (who, &self.peers) {
            (Identity::Daemon(Kind::Etcd, _), Some(peers)) => {
                Some(peers.sign(who, addresses, serves, now, days)?.0)
            }
            (Identity::Daemon(Kind::Etcd, _), None) => return Err(PkiError::NoPeers(self.folder.clone())),
            _ => None,
        };
        Ok(Issued { own, peer, not_after })
    }
}

impl Signer {
    fn sign(
        &self,
        who: &Identity,
        addresses: &[Address],
        serves: bool,
        now: Timestamp,
        days: u32,
    ) -> Result<(Signed, Timestamp)> {
        let key = KeyPair::generate().map_err(PkiError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&who.to_string());
        params.subject_alt_names = addresses.iter().map(alternative).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.extended_key_usages.extend(serves.then_some(ExtendedKeyUsagePurpose::ServerAuth));
        let not_after;
        (params.not_before, params.not_after, not_after) = validity(now, days)?;
        let made = params.signed_by(&key, &self.issuer).map_err(PkiError::Certificate)?;
        let signed = Signed {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: made.pem(),
            key_pem: key.serialize_pem(),
        };
        Ok((signed, not_after))
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
        self.own.write(folder, ["key.pem", "cert.pem", "ca.pem"])?;
        match &self.peer {
            Some(peer) => peer.write(folder, ["peer-key.pem", "peer-cert.pem", "peers.pem"]),
            None => Ok(()),
        }
    }
}

impl Signed {
    fn write(&self, folder: &Path, [key, certificate, authority]: [&str; 3]) -> Result<()> {
        write(&folder.join(key), self.key_pem.as_bytes(), 0o600)?;
        write(&folder.join(certificate), self.certificate_pem.as_bytes(), 0o644)?;
        write(&folder.join(authority), self.authority_pem.as_bytes(), 0o644)
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
