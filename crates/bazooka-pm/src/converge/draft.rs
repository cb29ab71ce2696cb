//! The input of one app's planners, and their output before capacity is given out.
//!
//! Owns the vocabulary of these planners. They read a [`Context`] and add to a [`Draft`].

use std::{collections::BTreeMap, time::Instant};

use visor::{
    names::{AppName, ProcName, ReleaseId},
    rules::placement::PlacementRequest,
    snapshot::{AppView, Snapshot},
};

use super::{
    facts::Facts,
    memory::{AppMemory, Now},
    step::{Act, Hindrance},
};

/// Instances that need places, with what placement must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub release: ReleaseId,
    /// The reason for placing them, for people.
    pub reason: String,
    pub request: PlacementRequest,
}

/// Everything that an app's plan is made from.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub snapshot: &'a Snapshot,
    pub name: &'a AppName,
    pub view: &'a AppView,
    /// The app's instances, by id.
    pub instances: &'a [Facts<'a>],
    pub memory: &'a AppMemory,
    pub hosts: &'a super::hosts::Hosts,
    pub now: Now,
}

impl<'a> Context<'a> {
    /// Returns the instances of a proc, by id.
    pub fn of_proc(&self, proc: &ProcName) -> impl Iterator<Item = Facts<'a>> {
        self.instances.iter().filter(move |facts| facts.row.proc == *proc).copied()
    }
}

/// An app's plan before capacity is given out.
#[derive(Default)]
pub(super) struct Draft {
    pub acts: Vec<(Act, String)>,
    pub demands: Vec<Demand>,
    /// The hosts of each proc's instances that will stay, as positions among the hosts of the image.
    pub spread: BTreeMap<ProcName, Vec<usize>>,
    pub hindrances: BTreeMap<ProcName, Hindrance>,
    pub look_again: Option<Instant>,
    /// True if an instance waits for a slug that no host can serve to its host.
    pub lacks_sources: bool,
}

impl Draft {
    pub fn act(&mut self, act: Act, reason: impl Into<String>) {
        self.acts.push((act, reason.into()));
    }

    pub fn look_again_at(&mut self, at: Instant) {
        self.look_again = Some(self.look_again.map_or(at, |other| other.min(at)));
    }
}
