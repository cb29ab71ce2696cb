//! The rows of a service: how its proc is run, and how many instances the user wants.
//!
//! [`crate::settings`] has the default and the allowed values of each setting.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CheckPath, Extra};
use crate::names::{AppName, InstanceId, ProcName, ReleaseId, ZoneName};

/// The condition under which an instance counts as healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// As soon as its process has been started and has not exited at once.
    Started,
    /// When the instance itself listens on $PORT.
    Listening,
    /// When it listens and `GET path` is answered with a status below 400.
    Http {
        /// The path.
        path: CheckPath,
    },
}

/// The protocol of a proc on $PORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP requests and responses, which proxies balance one by one.
    Http,
    /// Bytes that proxies hand on without a look, or nothing.
    Tcp,
}

/// The limits on what an instance may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Resident memory without swap; none means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processor time in thousandths of one processor; none means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millis: Option<u32>,
    /// Processes and threads; 1,024 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes_limit: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The fate of instances on a host that has lost the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPartition {
    /// The instances go on running.
    #[default]
    Keep,
    /// The instances end before their host's lease can run out, because two instances at once would be worse than none.
    Stop,
}

/// How one proc is run: the part of its settings that an instance's host needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSettings {
    /// The protocol on $PORT. A row of an earlier release has none: then `web*` speaks HTTP and must listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The condition for healthy; unless set, `web` must listen and other procs must have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// The limits on memory, processor and processes.
    #[serde(default)]
    pub limits: Limits,
    /// The time from SIGTERM to SIGKILL; 30 s unless set (Heroku's value).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
    /// The time allowed from start to healthy; 60 s unless set (Heroku's value).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_timeout_ms: Option<u64>,
    /// The behaviour when its host has lost the coordinator.
    #[serde(default)]
    pub on_partition: OnPartition,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/procs/P`: a service, registered once and kept for the app's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// The port of the service as it was registered. Its app's people may write this row, so [`Port`] has the port that
    /// counts; readers of schema version 2 obey this one.
    pub port: u16,
    /// The settings that its instances run with.
    #[serde(default)]
    pub run: RunSettings,
    /// The time that a new instance must stay healthy before a trial or a batch counts it; 1 s unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_ms: Option<u64>,
    /// The number of old instances that a rollout may stop before their replacements run; 0 unless set.
    #[serde(default)]
    pub max_unavailable: u32,
    /// The number of instances that a rollout replaces at a time; a quarter of them, at least one, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `ports/N`: the service that a port is given to, for the life of its app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The app of the service.
    pub app: AppName,
    /// The service's proc.
    pub proc: ProcName,
    /// The token of the app's registration. The row of an app with another one is of an earlier app of that name.
    pub token: String,
    /// The time at which the port was given.
    pub at: Timestamp,
    /// The time at which the app was destroyed; the port rests from then on. None while the service has the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed_at: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/formation/P`: what the user wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// The number of instances of head. Only users set it; no daemon writes it.
    pub count: u32,
    /// The number of instances of each other release that runs beside head.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<ReleaseId, u32>,
    /// The share of the traffic for releases beside head, in percent, where it is set; the other releases get the rest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<ReleaseId, u32>,
    /// The number of instances out of `count` that are to stand in each named zone; the others stand anywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<ZoneName, u32>,
    /// Instances with an id below this one are to be replaced: the restart of a whole proc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_before: Option<InstanceId>,
    /// The name of the identity that scaled it last, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The single instances that are to be replaced: the restart of one instance.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replace: BTreeSet<InstanceId>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
