//! What bazooka-pm and operators write of a host.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::{ServicesAddress, ZoneName},
    seal::PublicKey,
};

/// What a host has to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Memory for instances.
    pub memory_bytes: u64,
    /// How many instances.
    pub instances: u32,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hosts/H`, leased: a host that runs bazooka-pm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Where its instances are reached.
    pub address: IpAddr,
    /// The base of its pm's endpoint (`http://127.0.0.2:41234`).
    pub url: String,
    /// Where it stands.
    pub zone: ZoneName,
    /// Its pm's version.
    pub version: String,
    /// What it has to give.
    pub capacity: Capacity,
    /// How instances are kept apart there, in words: `sandbox`, `sandbox without fence`, `uid`, `none`.
    pub isolation: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// What config vars are sealed to for it; none: its pm is of a version that can't open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// Where its instances reach the services that they link; none: it wasn't told, or its pm is of a version that
    /// knows no links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServicesAddress>,
    /// When this registration was made.
    pub since: Timestamp,
    /// Names the pm's state folder, so that a restarted pm takes over its own registration and a second
    /// pm of the same name is refused.
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hostmeta/H`: what the operator says of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMeta {
    /// Nothing new is placed there.
    #[serde(default)]
    pub cordoned: bool,
    /// What runs there is replaced elsewhere, then stopped.
    #[serde(default)]
    pub draining: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
