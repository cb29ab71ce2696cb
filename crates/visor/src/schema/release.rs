//! An app's releases, and which of them is current or being tried.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{EnvRef, ReleaseId, RevId};

/// How far a release has come.
///
/// ```text
/// trying ─▶ verified ─▶ released
///    └────────┴───────▶ failed          beside: never tried, runs by formation alone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// On trial: its first instances have yet to become healthy.
    Trying,
    /// They did; head has not moved yet.
    Verified,
    /// It was made head, and is, or was until a later one.
    Released,
    /// It never became head; the cause says why.
    Failed,
    /// Made by `scale -r` to run beside head.
    Beside,
}

/// `apps/A/releases/N`: rev + env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The rev that it runs.
    pub rev: RevId,
    /// The env that it runs with.
    pub env: EnvRef,
    /// Who made it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why, for people: `push`, `config set A B`, `rollback to v3`.
    pub reason: String,
    /// How far it has come.
    pub status: ReleaseStatus,
    /// Why it failed; of one that was released: who called it off before all of it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Tells a lost reply's own write from a rival's.
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Release {
    /// It was head, and its rollout was called off.
    pub fn was_aborted(&self) -> bool {
        self.status == ReleaseStatus::Released && self.cause.is_some()
    }
}

/// `apps/A/pause`: while it is there, no new instance takes over from one of another release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/head`: the app's current release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub release: ReleaseId,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who moves head once a trial is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promoter {
    /// The push that waits for it, when git has moved the branch.
    Pusher,
    /// The converger.
    Converger,
}

/// `apps/A/trial`: the release that is being tried, one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number.
    pub release: ReleaseId,
    /// Who moves head.
    pub promote: Promoter,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
