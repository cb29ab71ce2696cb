//! The rows of an instance: where the converger placed it, and what its host reports of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Extra, RunSettings, Slug, SlugSource};
use crate::names::{AppName, EnvRef, HostName, Link, ProcName, ReleaseId, RevId};

/// `apps/A/instances/ID`: where an instance was placed; an index by app over `assigned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The host that runs it, for its whole life.
    pub host: HostName,
    /// The proc that it runs.
    pub proc: ProcName,
    /// The release that it runs, for its whole life.
    pub release: ReleaseId,
    /// The rev of that release.
    pub rev: RevId,
    /// The index among the instances of its proc and release: 0, 1, ...; a replacement takes over the index.
    pub index: u32,
    /// The time of the placement.
    pub placed_at: Timestamp,
    /// The reason for the placement, for people.
    pub reason: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The state that the converger wants an instance in; it only ever moves down this list.
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

/// `assigned/H/ID`: all that a host needs in order to run an instance, except the values of its env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The wanted state.
    pub desired: Desired,
    /// The reason why `desired` is not `run`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
    /// The release.
    pub release: ReleaseId,
    /// The rev.
    pub rev: RevId,
    /// The env, which the host reads from `sealed/H/A/E`.
    pub env: EnvRef,
    /// The slug.
    pub slug: Slug,
    /// The command, a line for the shell.
    pub command: String,
    /// The index among the instances of its proc and release.
    pub index: u32,
    /// The settings that it runs with.
    #[serde(default)]
    pub run: RunSettings,
    /// The port of each service that its env links, as it was at the placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<Link, u16>,
    /// The hosts that serve its slug to this host, in the order in which to ask them; empty if its host had the slug, or
    /// no other host did. A bazooka-rm is asked first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SlugSource>,
    /// True if it was placed for a trial: without backoff, it fails for good once the quick restarts are used up.
    #[serde(default)]
    pub trial: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The state of an instance, as its host reports it.
///
/// ```text
/// claimed ─▶ running ─▶ stopping ─▶ exited
///   │  ▲        │
///   │  └ backoff ◀┘ (crashed; next start at a known time)
///   └─▶ failed (given up)                    lost: set by the converger alone, once the host has gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The host has accepted it: it is being fetched or started, or is not healthy yet.
    Claimed,
    /// The check has passed since it last started.
    Running,
    /// The instance crashed and will be started again at `next_start_at`.
    Backoff,
    /// The host has told it to end.
    Stopping,
    /// The instance ended because it was meant to. Final.
    Exited,
    /// The instance cannot run here; the cause says why. Final.
    Failed,
    /// The host has gone. Final.
    Lost,
}

impl State {
    /// Returns the word for this state that people see.
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

    /// Reports whether nothing of the instance runs any more, and nothing will again.
    pub fn is_final(self) -> bool {
        matches!(self, State::Exited | State::Failed | State::Lost)
    }
}

/// The kind of an instance's failure, where placement depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A fault of the app: it exits, does not listen, or its command does not exist.
    App,
    /// The instance ran out of memory; its replacement avoids the host.
    OutOfMemory,
    /// No port was free; its replacement avoids the host.
    NoPort,
    /// A fault of the host: its disk is full, or the slug is broken or cannot be fetched. The replacement avoids the
    /// host.
    Host,
}

/// One exit of an instance's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The time of the exit.
    pub at: Timestamp,
    /// The exit status, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal, if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// True if the kernel ended it because it ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// The time from its start to its exit.
    pub ran_ms: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An event in an instance's life, which `why` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The time of the event.
    pub at: Timestamp,
    /// The event in one line, without any value of a config var.
    pub what: String,
}

/// `status/H/ID`: what a host reports of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// The time when it entered that state.
    pub since: Timestamp,
    /// The address where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The port where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The process id, while there is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The time when that process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The number of restarts after a crash.
    #[serde(default)]
    pub restarts: u32,
    /// The time of the next start, in `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Timestamp>,
    /// The reason for this state where it is not obvious; in one line, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The kind of the failure, in `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The last lines of its output, kept when it failed or crashed; at most 20 lines and 4 KiB.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<String>,
    /// The last exits, newest last; at most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
    /// The story of the instance, newest last; at most 32 moments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub story: Vec<Moment>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Status {
    /// Returns a status in this state with all other fields empty.
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

/// `apps/A/pending/P`: the instances of a service that have no place yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The release that they would run.
    pub release: ReleaseId,
    /// The number of instances without a place.
    pub short: u32,
    /// The reason in one line.
    pub reason: String,
    /// The refusals of a few hosts, for readers of the release before; of each host, if that release wrote the row.
    #[serde(default)]
    pub refusals: BTreeMap<HostName, String>,
    /// The hosts that cannot take an instance, by the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, Refusing>,
    /// The time since when instances have lacked a place.
    pub since: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The hosts that cannot take an instance for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusing {
    /// The number of hosts, as it was when the row was written; a few more or less write no row.
    pub hosts: u32,
    /// The first hosts by name, five at most.
    pub examples: BTreeSet<HostName>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Refusing {
    /// The most examples.
    pub const MOST_EXAMPLES: usize = 5;

    /// Adds a host. Hosts come in the order of their names.
    pub fn add(&mut self, host: &HostName) {
        self.hosts = self.hosts.saturating_add(1);
        if self.examples.len() < Self::MOST_EXAMPLES {
            self.examples.insert(host.clone());
        }
    }

    /// Reports whether a row that says `other` need not be written anew: of many hosts a tenth may have changed.
    pub fn is_about(&self, other: &Refusing) -> bool {
        let is_listed = self.hosts.max(other.hosts) as usize <= Self::MOST_EXAMPLES;
        if is_listed { self == other } else { self.hosts.abs_diff(other.hosts) <= self.hosts / 10 }
    }

    /// Returns the hosts in words: `host1, host2 and 3 more`.
    pub fn words(&self) -> String {
        let examples: Vec<&str> = self.examples.iter().map(HostName::as_str).collect();
        let more = (self.hosts as usize).saturating_sub(examples.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", examples.join(", "))
    }
}

impl Pending {
    /// Returns the reasons in words, a line each: `host1: is full`, `host1, host2 and 3 more: each is full`.
    pub fn lines(&self) -> Vec<String> {
        if self.reasons.is_empty() {
            return self.refusals.iter().map(|(host, why)| format!("{host}: {why}")).collect();
        }
        let each = |hosts: &Refusing| if hosts.hosts > 1 { "each " } else { "" };
        let line = |(why, hosts): (&String, &Refusing)| format!("{}: {}{why}", hosts.words(), each(hosts));
        self.reasons.iter().map(line).collect()
    }
}

/// `history/A/P/ID`: the story of an instance that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The row of its placement.
    pub instance: Instance,
    /// The last status that its host reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The reason for its end, where a user or the converger decided on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time when it was archived.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
