//! The connection to the coordinator, and the identity of this part of the cluster.
//!
//! Owns the options of both, the faults in them that show before anything is connected, and what a caller may do
//! according to the current rows.

use std::{path::PathBuf, sync::Arc};

use visor::{
    access::{self, Act},
    identity::{Caller, Credentials, CredentialsError, Identity, Kind},
    keys::Key,
    names::{AppName, HostName},
    schema::{Access, Admission},
    snapshot::Versioned,
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore, holes_closed_in},
    },
    visor::{Visor, VisorError},
};

use crate::{in_words, settings::ConfigError};

/// The coordinator's options.
#[derive(Clone, Debug, clap::Args)]
pub struct CoordinatorArgs {
    /// The coordinator's endpoints (etcd), separated by commas
    #[arg(
        long,
        env = "BAZOOKA_COORDINATOR",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        value_name = "URL"
    )]
    pub coordinator: Vec<String>,
    /// The prefix of the cluster's keys
    #[arg(long, env = "BAZOOKA_PREFIX", default_value = "/bazooka", value_name = "PREFIX")]
    pub prefix: String,
    /// The identity of the caller.
    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// The identity that a program takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct IdentityArgs {
    /// The folder of the daemon's identity: ca.pem, cert.pem and key.pem; for clusters with identities
    #[arg(long, env = "BAZOOKA_IDENTITY", value_name = "DIR", global = true)]
    pub identity: Option<PathBuf>,
}

impl IdentityArgs {
    /// Opens the identity, if one was given.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn open(&self) -> Result<Option<Credentials>, CredentialsError> {
        self.identity.as_deref().map(Credentials::open).transpose()
    }
}

/// The reason why the cluster can't be reached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum ClusterError {
    #[error(transparent)]
    Identity(#[from] CredentialsError),
    #[error("{option} {what}")]
    Option { option: &'static str, what: String },
    #[error(transparent)]
    Other(#[from] OtherIdentity),
}

/// An identity of another kind of part, or of another name.
#[derive(Debug, thiserror::Error)]
#[error("the identity is that of {found}; this program requires one of {wanted}")]
pub struct OtherIdentity {
    found: Identity,
    wanted: String,
}

/// The cluster, as one of its parts reaches it.
#[derive(Clone)]
pub struct Cluster {
    /// The cluster's coordinator, for calls that only an etcd has.
    pub etcd: Arc<EtcdStore>,
    /// The cluster's state.
    pub visor: Visor,
    /// This part's identity. None if the cluster doesn't use identities.
    pub credentials: Option<Credentials>,
}

impl CoordinatorArgs {
    /// Prepares the way to the cluster. Connects nothing yet.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn cluster(&self) -> Result<Cluster, ClusterError> {
        let credentials = self.identity.open()?;
        let etcd = Arc::new(EtcdStore::new(self.config(credentials.clone())?));
        let store: SharedStore = etcd.clone();
        Ok(Cluster { etcd, visor: Visor::new(store), credentials })
    }

    fn config(&self, credentials: Option<Credentials>) -> Result<EtcdConfig, ClusterError> {
        if let Some(ConfigError { option, what }) =
            self.addresses_wrong(credentials.is_some()).into_iter().next()
        {
            return Err(ClusterError::Option { option, what });
        }
        let config = EtcdConfig::new(self.coordinator.clone(), self.prefix.clone());
        Ok(EtcdConfig { credentials, ..config })
    }

    /// Returns the faults in these options, for a part of this kind with the name `said`. Connects nothing.
    pub fn validate(&self, kind: Kind, said: Option<&HostName>) -> Vec<ConfigError> {
        let mut wrong = self.addresses_wrong(self.identity.identity.is_some());
        let named = match self.identity.open() {
            Ok(own) => own_name(own.as_ref(), kind, said.cloned()).err().map(|error| error.to_string()),
            Err(error) => Some(in_words(&error)),
        };
        wrong.extend(named.map(|what| ConfigError::new("identity", what)));
        wrong
    }

    fn addresses_wrong(&self, has_identity: bool) -> Vec<ConfigError> {
        let mut wrong = Vec::new();
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.contains("//") {
            let what = format!("{:?} must begin with a slash and not end with one", self.prefix);
            wrong.push(ConfigError::new("prefix", what));
        }
        if self.prefix.split('/').any(|segment| segment.ends_with(".private")) {
            let what = format!(
                "{:?} has the name of another cluster's private rows; choose one without .private",
                self.prefix
            );
            wrong.push(ConfigError::new("prefix", what));
        }
        for endpoint in &self.coordinator {
            let url: Result<http::Uri, _> = endpoint.parse();
            let what = if !url.is_ok_and(|url| url.scheme().is_some() && url.host().is_some()) {
                "must be a URL such as http://127.0.0.1:2379"
            } else {
                // Without TLS an identity would prove nothing, and its secrets would be sent in the clear.
                match (endpoint.starts_with("https://"), has_identity) {
                    (false, true) => "must begin with https:// where there is an identity",
                    (true, false) => {
                        "takes an identity: name its folder with --identity or BAZOOKA_IDENTITY, or in the daemon's file"
                    }
                    _ => continue,
                }
            };
            wrong.push(ConfigError::new("coordinator", format!("{endpoint:?} {what}")));
        }
        wrong
    }
}

/// Returns the name of a part: from its identity, else from its options, else none.
fn own_name(
    own: Option<&Credentials>,
    kind: Kind,
    said: Option<HostName>,
) -> Result<Option<HostName>, OtherIdentity> {
    match own.map(Credentials::identity) {
        None => Ok(said),
        Some(Identity::Daemon(own, name))
            if own == kind && said.as_ref().is_none_or(|said| *said == name) =>
        {
            Ok(Some(name))
        }
        Some(found) => {
            let name = said.map_or_else(|| "NAME".to_owned(), |said| said.to_string());
            Err(OtherIdentity { found, wanted: format!("{}:{name}", kind.as_str()) })
        }
    }
}

impl Cluster {
    /// Logs a warning if the coordinator is of a version with known holes. If it doesn't answer, the code that waits
    /// for it logs that.
    pub async fn warn_of_old_coordinator(&self) {
        if let Ok(version) = self.etcd.version().await
            && let Some(closed) = holes_closed_in(&version)
        {
            tracing::warn!(
                %version, take = closed,
                "this etcd has known holes in telling users apart; SECURITY.md says what they give away"
            );
        }
    }

    /// Returns the scheme of this part's endpoint.
    pub fn scheme(&self) -> &'static str {
        if self.credentials.is_some() { "https" } else { "http" }
    }

    /// Returns the name of this part: from its identity, else from its options, else none.
    ///
    /// # Errors
    /// If the identity is of another kind of part, or of another name.
    pub fn own_name(&self, kind: Kind, said: Option<HostName>) -> Result<Option<HostName>, OtherIdentity> {
        own_name(self.credentials.as_ref(), kind, said)
    }

    /// Reports whether a caller may do this, according to the coordinator's current rows.
    ///
    /// # Errors
    /// The store's. A caller whose rows can't be read must be rejected.
    pub async fn may(&self, caller: &Caller, act: Act, app: Option<&AppName>) -> Result<bool, VisorError> {
        let Caller::Known(who) = caller else { return Ok(access::may(caller, act, None, None)) };
        let admission: Option<Versioned<Admission>> = match who {
            Identity::Daemon(Kind::Rm, _) => None,
            _ => self.visor.get(&Key::Admission(who.clone())).await?,
        };
        let access: Option<Versioned<Access>> = match app {
            Some(app) => self.visor.get(&Key::Access(app.clone())).await?,
            None => None,
        };
        let admission = admission.map(|found| found.value);
        Ok(access::may(caller, act, admission.as_ref(), access.map(|found| found.value).as_ref()))
    }
}
