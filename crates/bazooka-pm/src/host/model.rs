//! What bazooka-pm knows of its own instances.
//!
//! Owns the shapes, and the words for a state; `plan` decides over them, `observe` changes them. All of it
//! is plain data: no process, no descriptor, no clock.
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
    schema::{Assignment, Era, Exit, Fault, Handed, Moment, State},
};

/// Milliseconds on the machine's clock that never jumps; it outlives bazooka-pm, but no boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Tick {
    /// So much later.
    pub fn after(self, wait: std::time::Duration) -> Tick {
        Tick(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Both clocks, read once for each look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For what is measured.
    pub tick: Tick,
    /// For people.
    pub at: Timestamp,
}

/// How far an instance has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// To be started as soon as its slug and env are here.
    Waiting,
    /// Its shim is being started.
    Starting,
    /// It was there before this bazooka-pm, which has yet to look after it.
    Found,
    /// It was there before this bazooka-pm, which is finding out whether it still is.
    Adopting,
    /// It runs; its check has not passed yet.
    Booting {
        /// Since it was started.
        since: Tick,
    },
    /// It runs, and its check has passed.
    Running,
    /// Its shim was told to end it.
    Ending {
        /// What for.
        why: Ending,
        /// Since then.
        since: Tick,
        /// The shim didn't, so it was killed itself, so many times.
        forced: u32,
    },
    /// It crashed, and will be started again.
    Backoff {
        /// Then.
        until: Tick,
        /// The same, for people.
        next_start_at: Timestamp,
    },
    /// Nothing of it runs, and nothing will.
    Ended {
        /// What was at fault; none if it ended because it was meant to.
        fault: Option<Fault>,
    },
}

/// What an instance is being ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It is not wanted any more.
    Unwanted,
    /// Its check didn't pass in time.
    TimedOut,
    /// Another process listens on its port.
    PortTaken,
}

/// An instance as bazooka-pm knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// What it runs, and what it is meant to do, as last heard.
    pub assignment: Assignment,
    /// How far it has come.
    pub phase: Phase,
    /// Since when its state, as others see it, is what it is.
    pub since: Timestamp,
    /// The number of its last start; 0 before the first.
    #[serde(default)]
    pub run: u32,
    /// The number of the last start whose check passed.
    #[serde(default)]
    pub healthy_run: u32,
    /// Its port, until it ends.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its user, until it ends.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Its process, while there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// When that was started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// How often it was started again after a crash.
    #[serde(default)]
    pub restarts: u32,
    /// How many crashes there were in a row.
    #[serde(default)]
    pub crashes: u32,
    /// Why it is as it is.
    #[serde(default)]
    pub cause: Option<String>,
    /// Another process listens on its port: it needs another one.
    #[serde(default)]
    pub port_lost: bool,
    /// What its failing check saw instead, while it is being ended for that.
    #[serde(default)]
    pub heard: Option<String>,
    /// The last lines before its last crash.
    #[serde(default)]
    pub last_output: Vec<String>,
    /// Its last exits.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// What happened to it.
    #[serde(default)]
    pub story: Vec<Moment>,
    /// The cluster, and its restoration, in which it was last seen assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub era: Option<Era>,
}

/// How many exits are kept.
const EXITS: usize = 5;

/// How many moments are kept.
const MOMENTS: usize = 32;

impl Local {
    /// An instance that has just been taken up.
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
            cause: None,
            port_lost: false,
            heard: None,
            last_output: Vec::new(),
            exits: Vec::new(),
            story: Vec::new(),
            era: None,
        };
        local.tell(at, "claimed".to_owned());
        local
    }

    /// Its state as others see it.
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

    /// Whether a process of it runs, or may.
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

    /// Whether nothing of it runs, and nothing will.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Moves it on.
    pub fn enter(&mut self, phase: Phase, at: Timestamp) {
        let before = self.state();
        self.phase = phase;
        if self.state() != before {
            self.since = at;
        }
    }

    /// Adds to its story.
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

/// Whether a slug is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlugState {
    /// It is on its way.
    Fetching,
    /// It is here, whole.
    Ready,
}

/// Whether an env is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvState {
    /// It is being read.
    Reading,
    /// It couldn't be read or opened; to be tried again.
    Later(Tick),
    /// Here it is, sealed to this host.
    Ready(Handed),
}

/// All that bazooka-pm knows of what it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locals {
    /// By id.
    pub instances: BTreeMap<InstanceId, Local>,
    /// By digest.
    pub slugs: BTreeMap<Digest, SlugState>,
    /// By app and ref.
    pub envs: BTreeMap<(AppName, EnvRef), EnvState>,
}

/// What is assigned to this host, by a list that was complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// By id.
    pub instances: BTreeMap<InstanceId, Assignment>,
    /// Assignments that can't be read. They are there, whatever they say.
    pub unreadable: BTreeSet<InstanceId>,
    /// Instances here of which this coordinator has never known: it was restored from a backup, or is another. They
    /// are kept as they are until somebody takes them up.
    pub held: BTreeSet<InstanceId>,
}
