//! A service: how its proc is run, and how many instances the user wants.
//!
//! What holds where a setting isn't set, and which values it may have, is in [`crate::settings`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{InstanceId, ReleaseId, ZoneName};

/// When an instance counts as healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// As soon as its process has been started and has not exited at once.
    Started,
    /// When the instance itself listens on $PORT.
    Listening,
    /// When it listens and `GET path` is answered with a status below 400.
    Http {
        /// Begins with a slash.
        path: String,
    },
}

/// What an instance may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Resident memory, no swap; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processor, in thousandths of one; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millis: Option<u32>,
    /// Processes and threads; 1,024 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes_limit: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What becomes of instances on a host that has lost the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPartition {
    /// They go on.
    #[default]
    Keep,
    /// They end before their host's lease can run out: two of them would be worse than none.
    Stop,
}

/// How one proc is run; the part of its settings that an instance's host needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSettings {
    /// When it is healthy; unless set, `web*` must listen and others must have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Memory and the like.
    #[serde(default)]
    pub limits: Limits,
    /// From SIGTERM to SIGKILL; 30 s unless set (what Heroku gives).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
    /// From start to healthy; 60 s unless set (what Heroku gives).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_timeout_ms: Option<u64>,
    /// What happens when its host is cut off.
    #[serde(default)]
    pub on_partition: OnPartition,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/procs/P`: a service, registered once and kept for the app's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// The service's own port on each proxy, fixed for its life.
    pub port: u16,
    /// How it is run.
    #[serde(default)]
    pub run: RunSettings,
    /// How long a new instance must stay healthy before a trial or a batch counts it; 1 s unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_ms: Option<u64>,
    /// How many old instances a rollout may stop before their replacements run; 0 unless set.
    #[serde(default)]
    pub max_unavailable: u32,
    /// How many instances a rollout replaces at a time; a quarter of them, at least one, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/formation/P`: what the user wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// How many instances of head. The user's word alone: no daemon writes it.
    pub count: u32,
    /// How many instances of other releases, beside head.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<ReleaseId, u32>,
    /// The share of the traffic of releases beside head, in percent, where it is set. The others have the rest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<ReleaseId, u32>,
    /// How many of `count` are to stand in a zone, where that was said; the others stand anywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<ZoneName, u32>,
    /// Instances with a lower id are to be replaced: `restart` of the whole proc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_before: Option<InstanceId>,
    /// Who scaled it last, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// These instances are to be replaced: `restart` of one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replace: BTreeSet<InstanceId>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
