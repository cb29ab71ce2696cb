//! The row of a proxy, which bazooka-proxy writes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::{InstanceId, ZoneName},
    store::Revision,
};

/// `proxies/X`, leased: a proxy, and how much of the cluster's state it has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// The base URL of bazooka-proxy's own endpoint.
    pub url: String,
    /// The address where it takes requests for `<app>.<domain>`, as `address:port`.
    pub public: String,
    /// The domain below which each app has its name.
    pub domain: String,
    /// The zone where it stands; none if its version does not report a zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// The version of the build.
    pub version: String,
    /// The schema version that its build writes; none for an early build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The revision up to which HAProxy has applied everything; old workers' sessions are listed in `busy`.
    pub applied: Revision,
    /// The instances that were removed from routing and still have a session on a worker.
    #[serde(default)]
    pub busy: BTreeSet<InstanceId>,
    /// The identity of its state folder: a restarted proxy takes over its own row, and a second proxy of the same name
    /// is refused; none if its version does not write one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The services that it cannot serve, each with the reason (`goto-rocket/web`: `port 8511 is taken`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
