//! An instance: where the converger placed it, and what its host says of it.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Extra, RunSettings, Slug};
use crate::names::{AppName, EnvRef, HostName, Link, ProcName, ReleaseId, RevId};

/// `apps/A/instances/ID`: where an instance was placed; an index by app over `assigned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The host that runs it, for its whole life.
    pub host: HostName,
    /// The proc that it is one of.
    pub proc: ProcName,
    /// What it runs, for its whole life.
    pub release: ReleaseId,
    /// That release's rev.
    pub rev: RevId,
    /// Its place among the instances of its proc and release: 0, 1, ...; replacements take it over.
    pub index: u32,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// Why it was placed, for people.
    pub reason: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What an instance is meant to do. It only ever goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Run, and be routed once healthy.
    Run,
    /// Run, but take no new requests.
    Drain,
    /// End.
    Stop,
}

/// `assigned/H/ID`: all that a host needs in order to run an instance, bar the values of its env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// What it is meant to do.
    pub desired: Desired,
    /// Why `desired` is not `run`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its app.
    pub app: AppName,
    /// Its proc.
    pub proc: ProcName,
    /// Its release.
    pub release: ReleaseId,
    /// Its rev.
    pub rev: RevId,
    /// Its env, to be read from `sealed/H/A/E`.
    pub env: EnvRef,
    /// Its slug.
    pub slug: Slug,
    /// Its command, a line for `/bin/sh -c`.
    pub command: String,
    /// Its place among its kind.
    pub index: u32,
    /// How it is run.
    #[serde(default)]
    pub run: RunSettings,
    /// The port of each service that its env links, as it was when this was placed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<Link, u16>,
    /// Placed as part of a trial: no backoff, it fails for good once the quick restarts are spent.
    #[serde(default)]
    pub trial: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An instance's state, as its host reports it.
///
/// ```text
/// claimed ─▶ running ─▶ stopping ─▶ exited
///   │  ▲        │
///   │  └ backoff ◀┘ (crashed; next start at a known time)
///   └─▶ failed (given up)                    lost: said by the converger, once the host is
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The host has taken it up: fetching, starting, not healthy yet.
    Claimed,
    /// Its check has passed since it last started.
    Running,
    /// It crashed and will be started again at `next_start_at`.
    Backoff,
    /// It has been told to end.
    Stopping,
    /// It ended because it was meant to. Final.
    Exited,
    /// It can't run here: the cause says why. Final.
    Failed,
    /// Its host has gone. Final.
    Lost,
}

impl State {
    /// Its word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Claimed => "starting",
            State::Running => "running",
            State::Backoff => "backoff",
            State::Stopping => "stopping",
            State::Exited => "exited",
            State::Failed => "failed",
            State::Lost => "lost",
        }
    }

    /// Nothing of the instance runs any more, and nothing will.
    pub fn is_final(self) -> bool {
        matches!(self, State::Exited | State::Failed | State::Lost)
    }
}

/// Why an instance failed, where the difference matters to placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The app's own: exits, doesn't listen, no such command.
    App,
    /// It ran out of memory: the host is avoided by its replacement.
    OutOfMemory,
    /// No port was free: the host is avoided by its replacement.
    NoPort,
    /// The host's: disk full, slug can't be fetched or is broken. Avoided by its replacement.
    Host,
}

/// One end of an instance's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at: Timestamp,
    /// The exit status, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel ended it because it ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// How long it ran.
    pub ran_ms: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something that happened to an instance, for `why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// What, in one line, without any value of a config var.
    pub what: String,
}

/// `status/H/ID`: what a host says of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// When it came into that state.
    pub since: Timestamp,
    /// Where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Its port there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When that process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How often it was started again after a crash.
    #[serde(default)]
    pub restarts: u32,
    /// When it will be started again, in `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Timestamp>,
    /// Why it is in this state, where that isn't plain; in one line, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What kind of failure, in `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The last lines of its output, kept when it failed or crashed; 20 lines and 4 KiB at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<String>,
    /// Its last exits, newest last; 5 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
    /// Its story, newest last; 32 moments at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub story: Vec<Moment>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Status {
    /// A status in this state with everything else empty.
    pub fn new(state: State, since: Timestamp) -> Self {
        Status {
            state,
            since,
            ip: None,
            port: None,
            pid: None,
            started_at: None,
            restarts: 0,
            next_start_at: None,
            cause: None,
            fault: None,
            last_output: Vec::new(),
            exits: Vec::new(),
            story: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// `apps/A/pending/P`: instances that have no place yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What they would run.
    pub release: ReleaseId,
    /// How many.
    pub short: u32,
    /// Why, in one line.
    pub reason: String,
    /// Each host's refusal.
    #[serde(default)]
    pub refusals: BTreeMap<HostName, String>,
    /// Since when there has been a shortfall.
    pub since: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `history/A/P/ID`: an instance that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Where and what it was.
    pub instance: Instance,
    /// The last that its host said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why it was ended, where someone decided that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was put away.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
