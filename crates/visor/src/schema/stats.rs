//! What each day brought, as the converger counts it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;

/// `stats/DAY`: what a day brought, counted by the elected converger. `stats` has how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayStats {
    /// Revs that were registered on that day.
    #[serde(default)]
    pub pushed: u64,
    /// Releases that were made.
    #[serde(default)]
    pub released: u64,
    /// Instances that were placed: ids that were taken.
    #[serde(default)]
    pub started: u64,
    /// What there was when it was last counted on that very day; none if nobody counted then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<DayTotals>,
    /// The instance counter then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_instance: Option<u64>,
    /// By the registration of an app ([`App::token`](super::App::token)), while the day is open.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_app: BTreeMap<String, AppDay>,
    /// It is counted no more.
    #[serde(default)]
    pub closed: bool,
    /// When it was counted last.
    pub counted_at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a day brought to an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDay {
    /// Revs.
    #[serde(default)]
    pub revs: u64,
    /// Releases.
    #[serde(default)]
    pub releases: u64,
}

/// How many there are of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTotals {
    /// Apps.
    pub apps: u64,
    /// Proc types: services.
    pub procs: u64,
    /// Revs.
    pub revs: u64,
    /// Releases.
    pub releases: u64,
    /// Instances that have a place.
    pub instances: u64,
}
