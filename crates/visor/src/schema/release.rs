//! The rows of an app's releases, of the current one, and of the one on trial.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{EnvRef, ProcName, ReleaseId, RevId};

/// The stage that a release has reached.
///
/// ```text
/// trying ─▶ verified ─▶ released
///    └────────┴───────▶ failed          beside: never tried, runs by formation alone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// On trial: its first instances are not all healthy yet.
    Trying,
    /// The first instances were healthy; head has not moved yet.
    Verified,
    /// The release became head, and is head or was until a later release.
    Released,
    /// The release never became head; the cause says why.
    Failed,
    /// `scale -r` made it to run beside head.
    Beside,
}

/// `apps/A/releases/N`: a rev with an env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The rev that it runs.
    pub rev: RevId,
    /// The env that it runs with.
    pub env: EnvRef,
    /// The name of the identity that made it.
    pub by: String,
    /// The time when it was made.
    pub at: Timestamp,
    /// The reason for people: `push`, `config set A B`, `rollback to v3`.
    pub reason: String,
    /// The stage that it has reached.
    pub status: ReleaseStatus,
    /// The reason why it failed; of a released one, who aborted it before all its instances ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Tells a caller's own write whose reply was lost from a rival's.
    pub token: String,
    /// Fields of a newer version, and `excused`: the procs that failed before the release, and did in its trial.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The field of the procs that failed before the release.
const EXCUSED: &str = "excused";

impl Release {
    /// Reports whether a proc failed before the release, so that its trial did not count it.
    pub fn excuses(&self, proc: &ProcName) -> bool {
        let excused = self.extra.get(EXCUSED).and_then(serde_json::Value::as_array);
        excused.is_some_and(|excused| excused.iter().any(|name| name.as_str() == Some(proc.as_str())))
    }

    /// Notes the procs that failed before the release.
    pub fn excuse(&mut self, procs: &BTreeSet<ProcName>) {
        if !procs.is_empty() {
            let names: Vec<serde_json::Value> = procs.iter().map(|proc| proc.as_str().into()).collect();
            self.extra.insert(EXCUSED.to_owned(), names.into());
        }
    }

    /// Reports whether it was head and its rollout was aborted.
    pub fn was_aborted(&self) -> bool {
        self.status == ReleaseStatus::Released && self.cause.is_some()
    }
}

/// `apps/A/pause`: holds the app's rollout.
///
/// While the row exists, no new instance replaces one of another release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The name of the identity that paused it.
    pub by: String,
    /// The time of the pause.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/head`: the app's current release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of the release.
    pub release: ReleaseId,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The part that moves head once a trial is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promoter {
    /// The push that waits for the trial, once git has moved the branch.
    Pusher,
    /// The converger.
    Converger,
}

/// `apps/A/trial`: the release on trial; an app has one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The number of the release.
    pub release: ReleaseId,
    /// The part that moves head.
    pub promote: Promoter,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
