//! What bazooka-proxy writes of itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::{InstanceId, ZoneName},
    store::Revision,
};

/// `proxies/X`, leased: a proxy, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// The base of bazooka-proxy's own endpoint.
    pub url: String,
    /// Where it takes requests for `<app>.<domain>`, as `address:port`.
    pub public: String,
    /// The domain below which each app has its name.
    pub domain: String,
    /// Where it stands; none: it is of a version that didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Its version.
    pub version: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// Everything up to this revision is in force in HAProxy, old workers included in `busy`.
    pub applied: Revision,
    /// Instances that were taken out and still have a session on some worker.
    #[serde(default)]
    pub busy: BTreeSet<InstanceId>,
    /// Names its state folder, so that one which is started again takes over its own row and another of its name is
    /// refused; none: it is of a version that didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Services that it can't serve, and why (`goto-rocket/web`: `port 8511 is taken`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
