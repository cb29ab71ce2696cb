//! The rows of daily figures, which the converger counts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::store::Revision;

/// `stats/DAY`: the figures of a day, counted by the elected converger. The module `stats` says how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayStats {
    /// The number of revs registered on that day.
    #[serde(default)]
    pub pushed: u64,
    /// The number of releases made.
    #[serde(default)]
    pub released: u64,
    /// The number of instances placed, equal to the number of ids taken.
    #[serde(default)]
    pub started: u64,
    /// The totals at the last count on that very day; none if no converger counted on that day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<DayTotals>,
    /// The instance counter at that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_instance: Option<u64>,
    /// The figures of each app, by the token of its registration ([`App::token`](super::App::token)), while the day is
    /// open.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_app: BTreeMap<String, AppDay>,
    /// True once the day is counted no more.
    #[serde(default)]
    pub closed: bool,
    /// The time of the last count.
    pub counted_at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The figures of a day for one app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDay {
    /// The number of revs.
    #[serde(default)]
    pub revs: u64,
    /// The number of releases.
    #[serde(default)]
    pub releases: u64,
    /// The revision at which the newest counted rev or release was made; 0 if an early build counted.
    ///
    /// Pruning deletes nothing newer, and what it deletes stays counted.
    #[serde(default)]
    pub counted_to: Revision,
}

/// The totals of the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTotals {
    /// The number of apps.
    pub apps: u64,
    /// The number of proc types (services).
    pub procs: u64,
    /// The number of revs.
    pub revs: u64,
    /// The number of releases.
    pub releases: u64,
    /// The number of instances that have a place.
    pub instances: u64,
}
