//! The keys: the spelling of every key of the coordinator, written and parsed only here.
//!
//! Owns [`Key`], which is made from the table in [`rows`](crate::rows), and the scopes that parts read and watch.

use std::{any::Any, fmt, str::FromStr};

use crate::{
    identity::Identity,
    names::{
        AppName, AuditId, Day, Domain, EnvRef, HostName, InstanceId, InvalidName, ProcName, ReleaseId, RevId,
        ServicePort, UserName,
    },
    rows::{ROWS, Row, RowKind, Segment, rows},
    store::{Keys, PRIVATE},
};

macro_rules! keys {
    ($($owner:ident $of:tt { $(
        $(#[doc = $holds:literal])+
        $kind:ident $(($($name:ident: $type:ty),+))? [$($segment:tt),+] in $field:ident $at:tt: $shape:ty { $($facts:tt)* }
    )+ })+) => {
        /// A key of the schema.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key {
            $($($(#[doc = $holds])+ $kind $(($($type),+))?,)+)+
        }

        impl Key {
            /// Returns the kind of row that it is the key of.
            pub fn kind(&self) -> RowKind {
                match self {
                    $($(Key::$kind { .. } => RowKind::$kind,)+)+
                }
            }

            /// Returns the app that it names; none for a row that is not an app's.
            pub fn app(&self) -> Option<&AppName> {
                match self {
                    $($(Key::$kind $(($($name),+))? => app_among([$($($name),+)?]),)+)+
                }
            }
        }

        impl fmt::Display for Key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($(Key::$kind $(($($name),+))? => spell(f, &[$(&$segment),+]),)+)+
                }
            }
        }

        impl FromStr for Key {
            type Err = KeyError;

            fn from_str(key: &str) -> Result<Self, KeyError> {
                let segments: Vec<&str> = key.split('/').collect();
                match segments[..] {
                    $($([$($segment),+] => Ok(Key::$kind $(($(name::<$type>(key, $name)?),+))?),)+)+
                    _ => Err(KeyError::Unknown(key.to_owned())),
                }
            }
        }
    };
}

rows!(keys);

impl Key {
    /// Returns the facts about its row.
    pub fn row(&self) -> &'static Row {
        self.kind().row()
    }
}

/// The error for a text that is no key of this schema. It may be a key of a newer version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No row has such a key.
    #[error("no key of this schema: {0:?}")]
    Unknown(String),
    /// A name in the key breaks its rule.
    #[error("no key of this schema: {key:?}")]
    Name {
        /// The key.
        key: String,
        /// The name's error.
        #[source]
        source: InvalidName,
    },
}

/// Returns the app's name among the names of a key.
fn app_among<const N: usize>(names: [&dyn Any; N]) -> Option<&AppName> {
    names.into_iter().find_map(|name| name.downcast_ref())
}

fn spell(f: &mut fmt::Formatter<'_>, segments: &[&dyn fmt::Display]) -> fmt::Result {
    for (at, segment) in segments.iter().enumerate() {
        if at > 0 {
            f.write_str("/")?;
        }
        write!(f, "{segment}")?;
    }
    Ok(())
}

fn name<T: FromStr<Err = InvalidName>>(key: &str, name: &str) -> Result<T, KeyError> {
    name.parse().map_err(|source| KeyError::Name { key: key.to_owned(), source })
}

/// Returns the keys of a row's kind that have these names, each given with what the table calls it.
///
/// One key if all of its names are given, else all with the segments before the first name that is not.
pub fn range(row: &Row, names: &[(&str, &str)]) -> Keys {
    let mut key = String::new();
    for (at, segment) in row.key.iter().enumerate() {
        if at > 0 {
            key.push('/');
        }
        match segment {
            Segment::Word(word) => key.push_str(word),
            Segment::Name(name) => match names.iter().find(|(known, _)| known == name) {
                Some((_, value)) => key.push_str(value),
                None => return Keys::Prefix(key),
            },
        }
    }
    Keys::One(key)
}

/// Returns all keys that share the first segment with a row's.
pub fn folder(row: &Row) -> Keys {
    match row.key[0] {
        Segment::Word(word) => Keys::Prefix(format!("{word}/")),
        Segment::Name(_) => Keys::Prefix(String::new()),
    }
}

/// Returns the scope of the whole cluster, except its private keys.
pub fn everything() -> Vec<Keys> {
    vec![Keys::Prefix(String::new())]
}

/// Returns the scope of the private keys, which rms and convergers alone may read as a whole.
pub fn private() -> Keys {
    Keys::Prefix(PRIVATE.to_owned())
}

/// Returns the scopes of the whole cluster with its private keys.
pub fn everything_and_private() -> Vec<Keys> {
    vec![Keys::Prefix(String::new()), private()]
}

/// Returns the scope of the schema row, which names the cluster.
pub fn schema() -> Keys {
    Keys::One(Key::Schema.to_string())
}

/// Returns the scopes of one app and all that belongs to it, except the statuses of its instances.
pub fn app(app: &AppName) -> Vec<Keys> {
    vec![of_app(RowKind::App, app), app_below(app), of_app(RowKind::Repo, app)]
}

/// Returns the scopes of an app's services: what they are and should be.
///
/// Instances are left out, because they may be many more than all the other rows together.
pub fn services_of(app: &AppName) -> Vec<Keys> {
    let kinds =
        [RowKind::App, RowKind::Head, RowKind::Rev, RowKind::Proc, RowKind::Release, RowKind::Formation];
    kinds.map(|kind| of_app(kind, app)).to_vec()
}

/// Returns the scopes of the rows that are deleted with an app piece by piece: all but [`deleted_beside`].
///
/// The scope below the app's own key comes last.
pub(crate) fn deleted_with(app: &AppName) -> Vec<Keys> {
    let mut scopes: Vec<Keys> = Vec::new();
    for row in ROWS.iter().filter(|row| row.ends.is_with_app()) {
        if let Some([Segment::Name("app"), _, ..]) = names_of(row) {
            let scope = Keys::Prefix(format!("{}{app}/", words_of(row)));
            if scope != app_below(app) && !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
    }
    scopes.push(app_below(app));
    scopes
}

/// Returns the app's own key and the keys beside it that are deleted in one transaction with it.
pub(crate) fn deleted_beside(app: &AppName) -> Vec<Keys> {
    let is_beside =
        |row: &&Row| row.ends.is_with_app() && matches!(names_of(row), Some([Segment::Name("app")]));
    ROWS.iter().filter(is_beside).map(|row| range(row, &[("app", app.as_str())])).collect()
}

/// Returns the segments of a row's key from the first name on; none if the key is of fixed words alone.
fn names_of(row: &Row) -> Option<&'static [Segment]> {
    let at = row.key.iter().position(|segment| matches!(segment, Segment::Name(_)))?;
    Some(&row.key[at..])
}

/// Returns the fixed words before the first name of a row's key, each with a slash after it.
fn words_of(row: &Row) -> String {
    row.key
        .iter()
        .map_while(|segment| if let Segment::Word(word) = segment { Some(format!("{word}/")) } else { None })
        .collect()
}

/// Returns the scope of everything below an app's own key.
pub fn app_below(app: &AppName) -> Keys {
    Keys::Prefix(format!("{}/", Key::App(app.clone())))
}

/// Returns the scope of an app's formations.
pub fn formation_of(app: &AppName) -> Keys {
    of_app(RowKind::Formation, app)
}

/// Returns the scope of the placements of an app's instances.
pub fn instances_of(app: &AppName) -> Keys {
    of_app(RowKind::Instance, app)
}

/// Returns the scope of an app's procs, with their settings.
pub fn procs_of(app: &AppName) -> Keys {
    of_app(RowKind::Proc, app)
}

/// Returns the scope of an app's instances without a place.
pub fn pending_of(app: &AppName) -> Keys {
    of_app(RowKind::Pending, app)
}

/// Returns the scope of all assignments of all hosts.
pub fn all_assigned() -> Keys {
    all(RowKind::Assigned)
}

/// Returns the scope of all statuses of all hosts.
pub fn all_statuses() -> Keys {
    all(RowKind::Status)
}

/// Returns the scope of one host's assignments, which its pm watches.
pub fn assigned_to(host: &HostName) -> Keys {
    of_host(RowKind::Assigned, host)
}

/// Returns the scopes of the wraps of an app's envs, with those of the release before.
pub fn wraps_of(app: &AppName) -> Vec<Keys> {
    [RowKind::Wraps, RowKind::EarlierWraps].map(|kind| of_app(kind, app)).to_vec()
}

/// Returns the scopes of the wraps of all envs, with those of the release before, and of the requests for more.
pub fn wraps() -> Vec<Keys> {
    [RowKind::Wraps, RowKind::EarlierWraps, RowKind::WrapRequest].map(all).to_vec()
}

/// Returns the scope of the requests that one host may answer.
pub fn wrap_requests_to(host: &HostName) -> Keys {
    of_host(RowKind::WrapRequest, host)
}

/// Returns the scope of one host's copies of envs.
pub fn handed_to(host: &HostName) -> Keys {
    of_host(RowKind::Handed, host)
}

/// Returns the scope of the slugs that one host serves to others.
pub fn served_by(host: &HostName) -> Keys {
    of_host(RowKind::Serving, host)
}

/// Returns the scope of the statuses that one host has reported.
pub fn status_of(host: &HostName) -> Keys {
    of_host(RowKind::Status, host)
}

/// Returns the scope of the ended instances of one app.
pub fn history_of(app: &AppName) -> Keys {
    of_app(RowKind::Ended, app)
}

/// Returns the scope of every app with all that belongs to it.
pub fn apps() -> Keys {
    all(RowKind::App)
}

/// Returns the scope of the state of every repository.
pub fn repos() -> Keys {
    all(RowKind::Repo)
}

/// Returns the scope of every push that an rm is taking.
pub fn turns() -> Keys {
    all(RowKind::Turn)
}

/// Returns the scope of the stored state of every repository.
pub fn stored() -> Keys {
    all(RowKind::Stored)
}

/// Returns the scope of the grants for every app.
pub fn access() -> Keys {
    all(RowKind::Access)
}

/// Returns the scope of everyone who is admitted to the cluster.
pub fn identities() -> Keys {
    all(RowKind::Admission)
}

/// Returns the scope of everyone's SSH keys.
pub fn ssh_keys() -> Keys {
    all(RowKind::SshKeys)
}

/// Returns the scope of the audit.
pub fn audit() -> Keys {
    all(RowKind::Audit)
}

/// Returns the scope of the figures of each day.
pub fn days() -> Keys {
    all(RowKind::Day)
}

/// Returns the scope of every bazooka-rm that serves.
pub fn rms() -> Keys {
    all(RowKind::Rm)
}

/// Returns the scopes of the secrets with which clients ask each bazooka-rm to open an env.
pub fn asks() -> Vec<Keys> {
    [RowKind::Ask, RowKind::EarlierAsk].map(all).to_vec()
}

/// Returns the scope of the ports of all services.
pub fn ports() -> Keys {
    all(RowKind::Port)
}

/// Returns the scope of every proxy that serves.
pub fn proxies() -> Keys {
    all(RowKind::Proxy)
}

/// Returns the scope of every live host.
pub fn hosts() -> Keys {
    all(RowKind::Host)
}

/// Returns the scope of the operator's marks on every host.
pub fn host_metas() -> Keys {
    all(RowKind::HostMeta)
}

/// Returns the scopes of one host and all that belongs to it.
pub fn host(host: &HostName) -> Vec<Keys> {
    let kinds = [RowKind::Host, RowKind::HostMeta, RowKind::Assigned, RowKind::Status];
    kinds.map(|kind| of_host(kind, host)).to_vec()
}

fn all(kind: RowKind) -> Keys {
    range(kind.row(), &[])
}

fn of_app(kind: RowKind, app: &AppName) -> Keys {
    range(kind.row(), &[("app", app.as_str())])
}

fn of_host(kind: RowKind, host: &HostName) -> Keys {
    range(kind.row(), &[("host", host.as_str())])
}

#[cfg(test)]
mod tests;
