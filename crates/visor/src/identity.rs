//! Identities: people and daemons, as certificates name them.
//!
//! Owns the names in certificates (the subject's common name, which etcd takes as its user) and the identity of a
//! caller. [`crate::access`] decides what each may do.

mod certificate;
mod credentials;
mod files;

use std::{fmt, str::FromStr, sync::Arc};

use rustls::crypto::CryptoProvider;
use serde::{Deserialize, Serialize};

use crate::names::{HostName, InvalidName, UserName};

pub use certificate::{Subject, SubjectError, subject};
pub use credentials::{ChainError, Credentials};
pub use files::CredentialsError;

/// The longest common name of a certificate (X.520's upper bound), in bytes.
pub const MAX_COMMON_NAME: usize = 64;

/// A person or a daemon, named by a certificate of the cluster's own authority.
///
/// A daemon's name has its kind before a colon (`pm:app1`), which no person's name can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Identity {
    /// A developer or an operator.
    User(UserName),
    /// A daemon of a kind, by its name among the daemons of that kind.
    Daemon(Kind, HostName),
}

/// A kind of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// bazooka-pm, by its host's name.
    Pm,
    /// bazooka-rm.
    Rm,
    /// bazooka-proxy.
    Proxy,
    /// bazooka-pm converge.
    Converger,
    /// A program that only reads metrics.
    Monitor,
    /// A member of the coordinator, which serves and calls nobody.
    Etcd,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 6] = [Kind::Pm, Kind::Rm, Kind::Proxy, Kind::Converger, Kind::Monitor, Kind::Etcd];

    /// Returns the word before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pm => "pm",
            Kind::Rm => "rm",
            Kind::Proxy => "proxy",
            Kind::Converger => "converger",
            Kind::Monitor => "monitor",
            Kind::Etcd => "etcd",
        }
    }
}

/// The error for a word that is no kind of daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of {kinds}", kinds = Kind::ALL.map(Kind::as_str).join(", "))]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == s).ok_or_else(|| UnknownKind(s.to_owned()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::User(name) => f.pad(name.as_str()),
            Identity::Daemon(kind, name) => f.pad(&format!("{}:{name}", kind.as_str())),
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        match s.split_once(':').map(|(kind, name)| (kind.parse::<Kind>(), name)) {
            Some((Ok(kind), name)) => Ok(Identity::Daemon(kind, name.parse()?)),
            // A name with a colon is no user's name either, and that error explains more.
            _ => Ok(Identity::User(s.parse()?)),
        }
    }
}

impl TryFrom<String> for Identity {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<Identity> for String {
    fn from(who: Identity) -> String {
        who.to_string()
    }
}

/// The caller of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The daemon itself has no identity: callers are not told apart, and all may do everything.
    Anyone,
    /// The caller is unknown: it has neither a certificate nor a valid token.
    Unknown,
    /// A certificate or a token names the caller.
    Known(Identity),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Anyone => f.write_str("anyone"),
            Caller::Unknown => f.write_str("nobody known"),
            Caller::Known(who) => who.fmt(f),
        }
    }
}

/// Returns the only implementation of TLS's primitives that is used, whatever else is linked.
pub fn tls_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes libraries that use the process's default implementation of TLS's primitives use the same one.
pub fn share_tls_primitives() {
    // An error means that an earlier call has done it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_of_which_kind_it_is() {
        let daemon = |kind, name: &str| Identity::Daemon(kind, name.parse().expect("valid"));
        for (text, wanted) in [
            ("ada", Identity::User("ada".parse().expect("valid"))),
            ("ada.lovelace_2", Identity::User("ada.lovelace_2".parse().expect("valid"))),
            ("pm", Identity::User("pm".parse().expect("valid"))),
            ("pm:app1.example.org", daemon(Kind::Pm, "app1.example.org")),
            ("converger:c1", daemon(Kind::Converger, "c1")),
        ] {
            assert_eq!(text.parse::<Identity>().as_ref(), Ok(&wanted), "{text}");
            assert_eq!(wanted.to_string(), text);
        }
        for bad in ["", "root", "Ada", "a:b", "pm:", "pm:A B", ":x", "ada/..", "a\nb", &"a".repeat(41)] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
    }
}
