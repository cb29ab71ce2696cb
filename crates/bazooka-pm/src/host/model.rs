//! The state of this host's instances, as bazooka-pm knows it.
//!
//! Owns the types and the state that other parts see. `plan` decides on them, `observe` changes them. They are plain
//! data: no process, no descriptor, no clock.
//!
//! ```text
//!            ┌──────────── crashed, at once ◀───────────┐
//!            ▼                                          │
//! waiting ─▶ starting ─▶ booting ─▶ running ────────────┤
//!   ▲           │           └─────────┴──▶ ending ──────┤ exit seen
//!   └─ backoff ◀┼───────────────────────────────────────┤
//!               └─▶ ended ◀─────────────────────────────┘
//! found ─▶ adopting ─▶ booting, running or as an exit       (after bazooka-pm's own restart)
//! ```

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use visor::{
    names::{AppName, Digest, EnvRef, InstanceId},
    schema::{Assignment, Exit, Fault, Handed, Incarnation, Moment, State},
};

/// Milliseconds on the machine's monotonic clock. They stay valid across restarts of bazooka-pm, but not across a
/// boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Tick {
    /// Returns this time plus `wait`.
    pub fn after(self, wait: std::time::Duration) -> Tick {
        Tick(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The current moment on both clocks, read once for each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock, for measuring.
    pub tick: Tick,
    /// The wall clock, for people.
    pub at: Timestamp,
}

/// The phase of an instance's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The instance starts as soon as its slug and env are here.
    Waiting,
    /// The shim is being started.
    Starting,
    /// The instance is older than this bazooka-pm, which has yet to look for it.
    Found,
    /// The instance is older than this bazooka-pm, which is finding out whether it still runs.
    Adopting,
    /// The instance runs; its check has not passed yet.
    Booting {
        /// The time of its start.
        since: Tick,
    },
    /// The instance runs, and its check has passed.
    Running,
    /// The shim was told to end the instance.
    Ending {
        /// The reason.
        why: Ending,
        /// The time at which the shim was told.
        since: Tick,
        /// How often the shim was killed because it didn't end the instance.
        forced: u32,
    },
    /// The instance crashed and will be started again.
    Backoff {
        /// The time of the next start.
        until: Tick,
        /// The same time on the wall clock, for people.
        next_start_at: Timestamp,
    },
    /// Nothing of the instance runs, and nothing will.
    Ended {
        /// The part at fault; none if the instance ended as it should.
        fault: Option<Fault>,
    },
}

/// The reason for ending an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The instance is not wanted any more.
    Unwanted,
    /// The check didn't pass in time.
    TimedOut,
    /// Another process listens on its port.
    PortTaken,
}

/// An instance as bazooka-pm knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The last known assignment: what to run, and whether to run it.
    pub assignment: Assignment,
    /// The phase of its life.
    pub phase: Phase,
    /// The time at which its state, as others see it, last changed.
    pub since: Timestamp,
    /// The number of its last start; 0 before the first.
    #[serde(default)]
    pub run: u32,
    /// The number of the last start whose check passed.
    #[serde(default)]
    pub healthy_run: u32,
    /// The instance's port, until it ends.
    #[serde(default)]
    pub port: Option<u16>,
    /// The instance's user, until it ends.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The instance's process, while there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The time at which that process was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// The number of restarts after a crash.
    #[serde(default)]
    pub restarts: u32,
    /// The number of crashes in a row.
    #[serde(default)]
    pub crashes: u32,
    /// True once one of its runs was healthy for so long that the instance counts as proven.
    #[serde(default)]
    pub proven: bool,
    /// The cause of its current state.
    #[serde(default)]
    pub cause: Option<String>,
    /// True if another process listens on its port, so that it needs another port.
    #[serde(default)]
    pub port_lost: bool,
    /// The observation that made its check fail, while it is being ended for that.
    #[serde(default)]
    pub heard: Option<String>,
    /// The last lines of output before its last crash.
    #[serde(default)]
    pub last_output: Vec<String>,
    /// The instance's last exits.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// The events of the instance's life.
    #[serde(default)]
    pub story: Vec<Moment>,
    /// The incarnation of the cluster in which it was last seen assigned.
    #[serde(rename = "era", default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
}

/// The number of exits that are kept.
const EXITS: usize = 5;

/// The number of story entries that are kept.
const MOMENTS: usize = 32;

impl Local {
    /// Returns an instance that has just been taken up.
    pub fn claimed(assignment: Assignment, at: Timestamp) -> Local {
        let mut local = Local {
            assignment,
            phase: Phase::Waiting,
            since: at,
            run: 0,
            healthy_run: 0,
            port: None,
            uid: None,
            pid: None,
            started_at: None,
            restarts: 0,
            crashes: 0,
            proven: false,
            cause: None,
            port_lost: false,
            heard: None,
            last_output: Vec::new(),
            exits: Vec::new(),
            story: Vec::new(),
            incarnation: None,
        };
        local.tell(at, "claimed".to_owned());
        local
    }

    /// Returns its state as others see it.
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Found | Phase::Adopting if self.healthy_run > 0 && self.healthy_run == self.run => {
                State::Running
            }
            Phase::Waiting | Phase::Starting | Phase::Found | Phase::Adopting | Phase::Booting { .. } => {
                State::Claimed
            }
            Phase::Running => State::Running,
            Phase::Ending { why: Ending::Unwanted, .. } => State::Stopping,
            Phase::Ending { why: Ending::TimedOut | Ending::PortTaken, .. } => State::Claimed,
            Phase::Backoff { .. } => State::Backoff,
            Phase::Ended { fault: None } => State::Exited,
            Phase::Ended { fault: Some(_) } => State::Failed,
        }
    }

    /// Reports whether a process of it runs, or may run.
    pub fn may_run(&self) -> bool {
        match self.phase {
            Phase::Starting
            | Phase::Found
            | Phase::Adopting
            | Phase::Booting { .. }
            | Phase::Running
            | Phase::Ending { .. } => true,
            Phase::Waiting | Phase::Backoff { .. } | Phase::Ended { .. } => false,
        }
    }

    /// Reports whether nothing of it runs, and nothing will.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Moves the instance into a phase.
    pub fn enter(&mut self, phase: Phase, at: Timestamp) {
        let before = self.state();
        self.phase = phase;
        if self.state() != before {
            self.since = at;
        }
    }

    /// Adds an event to its story.
    pub fn tell(&mut self, at: Timestamp, what: String) {
        self.story.push(Moment { at, what });
        let surplus = self.story.len().saturating_sub(MOMENTS);
        self.story.drain(..surplus);
    }

    /// Adds an exit.
    pub fn add_exit(&mut self, exit: Exit) {
        self.exits.push(exit);
        let surplus = self.exits.len().saturating_sub(EXITS);
        self.exits.drain(..surplus);
    }
}

/// The state of a slug on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlugState {
    /// The slug is being fetched.
    Fetching,
    /// The slug is here, unpacked as a whole.
    Ready,
}

/// The state of an env on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvState {
    /// The env is being read.
    Reading,
    /// The env couldn't be read or opened; the next attempt is at this time.
    Later(Tick),
    /// The env is here, sealed to this host.
    Ready(Handed),
}

/// The whole state of this host's instances, slugs and envs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locals {
    /// The instances, by id.
    pub instances: BTreeMap<InstanceId, Local>,
    /// The slugs, by digest.
    pub slugs: BTreeMap<Digest, SlugState>,
    /// The slugs whose archives are here, for other hosts.
    pub archives: BTreeSet<Digest>,
    /// The envs, by app and ref.
    pub envs: BTreeMap<(AppName, EnvRef), EnvState>,
}

/// The assignments to this host, from a complete list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The assignments, by instance.
    pub instances: BTreeMap<InstanceId, Assignment>,
    /// Assignments that can't be read. They exist, so their instances go on.
    pub unreadable: BTreeSet<InstanceId>,
    /// Instances here that this coordinator has never known, because it was restored from a backup or is another one.
    /// They go on as they are until the coordinator assigns them.
    pub held: BTreeSet<InstanceId>,
}
