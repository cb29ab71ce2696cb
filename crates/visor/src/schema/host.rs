//! The rows of a host, which bazooka-pm and operators write.

use std::{collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::{Digest, HostName, ServicesAddress, ZoneName},
    seal::PublicKey,
};

/// The capacity that a host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The memory for instances.
    pub memory_bytes: u64,
    /// The largest number of instances.
    pub instances: u32,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hosts/H`, leased: a host that runs bazooka-pm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The address of the host's instances.
    pub address: IpAddr,
    /// The base URL of its pm's endpoint (`http://127.0.0.2:41234`).
    pub url: String,
    /// The zone where it stands.
    pub zone: ZoneName,
    /// The version of its pm.
    pub version: String,
    /// The capacity that it offers.
    pub capacity: Capacity,
    /// The isolation of its instances, in words: `sandbox`, `sandbox without fence`, `sandbox, abstract sockets open`,
    /// `uid`, `none`.
    pub isolation: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The schema version that its build writes; none for an early build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The public key that config vars are sealed to for this host; none if its pm's version cannot open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// The address where its instances reach linked services; none if the pm was started without one, or if its version
    /// knows no links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServicesAddress>,
    /// The time of this registration.
    pub since: Timestamp,
    /// The identity of the pm's state folder: a restarted pm takes over its own registration, and a second pm of the
    /// same name is refused.
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hostmeta/H`: an operator's marks on a host, and what the operator says of it.
///
/// A host writes its own registration. What is named here counts instead: an image has it in the host's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMeta {
    /// True if the converger places nothing new there.
    #[serde(default)]
    pub cordoned: bool,
    /// True if each instance there is replaced elsewhere and then stopped.
    #[serde(default)]
    pub draining: bool,
    /// The zone where it stands, whatever it says itself; none if its own word counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// The address where its instances are reached, whatever it says itself; none if its own word counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The most instances that it gets; none if its own capacity counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_instances: Option<u32>,
    /// The most memory for instances that it counts with; none if its own capacity counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_memory_bytes: Option<u64>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `archives/H`, leased: the slugs whose archives a host has, and can serve to other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archives {
    /// The slugs, by the SHA-256 of their archives.
    pub slugs: BTreeSet<Digest>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `serving/H/A/ID`: the slug that a host serves to another host, because an instance there waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The slug, by the SHA-256 of its archive.
    pub slug: Digest,
    /// The host of the instance, which may fetch the archive.
    pub to: HostName,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A host that serves the archive of a slug to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlugSource {
    /// The host.
    pub host: HostName,
    /// The base URL of its pm's endpoint (`http://127.0.0.2:41234`).
    pub url: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
