//! The rows of config vars and links, and of the readers that they are sealed for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::Link,
    seal::{PublicKey, Sealed, Vars, WrappedKey},
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
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Env {
    /// Reports whether the env is sealed, so that only the owner of a wrap can read it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }
}

/// `wraps/A/E`: the data key of an env, wrapped for each rm and host that may open it.
///
/// Both the client that sets the env and the rms write this row. One wrap takes some 160 bytes, so a row for a thousand
/// hosts has 160 kB of the 1.5 MiB that etcd allows.
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
/// The row exists while instances that run with the env are assigned to the host.
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
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
