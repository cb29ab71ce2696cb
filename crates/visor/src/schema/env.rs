//! Config vars and links, and for whom they are sealed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::Link,
    seal::{PublicKey, Sealed, Vars, WrappedKey},
};

/// `apps/A/envs/E`: an app's config vars, sealed, and its links. They never change; what version 1 wrote is sealed once.
///
/// A version 1 that meets a sealed one can't read it, and so takes it neither for absent nor for empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env {
    /// Names and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// Name to value, as version 1 wrote them: in plain text, until a bazooka-rm seals them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<Vars>,
    /// The services that its instances are told the address of, which is no secret.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Env {
    /// Whether nobody but who has a wrap can read it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }
}

/// `wraps/A/E`: the data key of an env, wrapped for each who may open it. Besides who sets the env, rms write it.
///
/// One takes some 160 bytes, so that a row for a thousand hosts has 160 kB of the 1.5 MiB that etcd takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wraps {
    /// By an rm's public key.
    #[serde(default)]
    pub rms: BTreeMap<PublicKey, WrappedKey>,
    /// By a host's public key.
    #[serde(default)]
    pub hosts: BTreeMap<PublicKey, WrappedKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `sealed/H/A/E`: an env as one host gets it: a copy of its row's, with that host's wrap alone. It is there
/// while instances are assigned to the host that run with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Names and values.
    pub sealed: Sealed,
    /// The host's public key.
    pub to: PublicKey,
    /// The data key, wrapped for that.
    pub key: WrappedKey,
    /// Its links; so a host knows which ports an instance must have been placed with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
