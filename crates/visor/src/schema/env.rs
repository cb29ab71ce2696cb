//! The rows of config vars and links, and of the readers that they are sealed for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::Link,
    seal::{PublicKey, Sealed, Vars, WrappedKey},
    vars::VarName,
};

/// `apps/A/envs/E`: an app's config vars, sealed, and its links.
///
/// Vars and links never change; a row that version 1 wrote in plain text is sealed once. Version 1 cannot read a sealed
/// row, and so takes it neither for absent nor for empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env {
    /// The names and values, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// The values by name in plain text, as version 1 wrote them; a bazooka-rm seals them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<Vars>,
    /// The services whose addresses the app's instances get; links are not secret.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// The name of the person who set it.
    pub by: String,
    /// The time when it was set.
    pub at: Timestamp,
    /// Fields of a newer version, and `build`: the names of the vars that builds see, too.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The field of the names that builds see.
const BUILD: &str = "build";

impl Env {
    /// Returns the names of the vars that builds see, too.
    pub fn build_names(&self) -> BTreeSet<VarName> {
        let names = self.extra.get(BUILD).and_then(serde_json::Value::as_array).into_iter().flatten();
        names.filter_map(|name| name.as_str()?.parse().ok()).collect()
    }

    /// Sets the names of the vars that builds see, too.
    pub fn show_to_builds(&mut self, names: &BTreeSet<VarName>) {
        let names: Vec<serde_json::Value> = names.iter().map(|name| name.as_str().into()).collect();
        match names.is_empty() {
            true => drop(self.extra.remove(BUILD)),
            false => drop(self.extra.insert(BUILD.to_owned(), names.into())),
        }
    }
    /// Reports whether the env is sealed, so that only the owner of a wrap can read it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }
}

/// `private/wraps/A/E`: the data key of an env, wrapped for the rms, and for the first minutes for hosts.
///
/// The client that sets the env wraps its key for each rm, for the hosts that run the app, and for some more. Later hosts
/// get theirs at the converger's request ([`WrapRequest`]). The hosts' wraps are deleted once they have been handed out.
/// One wrap takes some 160 bytes.
///
/// Before schema version 4 the row is `wraps/A/E`, and has a wrap for every host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wraps {
    /// The wraps for rms, by the rm's public key.
    #[serde(default)]
    pub rms: BTreeMap<PublicKey, WrappedKey>,
    /// The wraps for hosts, by the host's public key.
    #[serde(default)]
    pub hosts: BTreeMap<PublicKey, WrappedKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `sealed/H/A/E`: the copy of an env for one host, with the wrap of that host alone.
///
/// The row exists while instances that run with the env are assigned to the host. While the env is in use, two more hosts
/// at least have one, with the beginning of the ciphertext alone: a key to it is left when every rm is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// The names and values, sealed.
    pub sealed: Sealed,
    /// The host's public key.
    pub to: PublicKey,
    /// The data key, wrapped for that public key.
    pub key: WrappedKey,
    /// The links of the env, from which a host knows which ports an instance must have been placed with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// The token of the app's registration, to which the vars are bound; none if they are sealed in form 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Handed {
    /// Returns the copy of a host that keeps the key for others.
    pub fn key_alone(self) -> Handed {
        Handed { sealed: self.sealed.head(), links: BTreeSet::new(), ..self }
    }
}

/// `private/wrapping/H/A/E/TO`: the converger's request for the key of an env, wrapped for host TO.
///
/// Any rm may answer, and H if it has the env. The answer is this row with `key`; the converger hands it to TO and deletes
/// the row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapRequest {
    /// The public key of host TO.
    pub to: PublicKey,
    /// The time of the request.
    pub since: Timestamp,
    /// The data key, wrapped for that public key; none until somebody has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<WrappedKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
